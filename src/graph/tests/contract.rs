//! Inputs and outputs of every chunk: names, order, shapes, dtypes.

use super::*;

fn ranges(plan: &ModelPlan) -> Vec<(usize, usize)> {
    let specs = split::chunks(plan, Layout::Swa4).unwrap();
    assert!(
        specs
            .iter()
            .enumerate()
            .all(|(i, s)| s.name == format!("chunk{}", i + 1))
    );
    assert!(
        specs
            .iter()
            .enumerate()
            .all(|(i, s)| s.first == (i == 0) && s.last == (i == 3))
    );
    specs
        .iter()
        .map(|s| (s.layers.start, s.layers.end))
        .collect()
}

#[test]
fn boundaries_are_the_published_ones() {
    assert_eq!(ranges(&e2b()), [(0, 8), (8, 15), (15, 25), (25, 35)]);
    assert_eq!(ranges(&e4b()), [(0, 12), (12, 24), (24, 33), (33, 42)]);
}

#[test]
fn boundaries_without_sharing_are_even() {
    assert_eq!(
        ranges(&dense_12b()),
        [(0, 12), (12, 24), (24, 36), (36, 48)]
    );
    assert_eq!(
        ranges(&small(&"sf".repeat(3), 0)),
        [(0, 2), (2, 3), (3, 5), (5, 6)]
    );
    assert_eq!(ranges(&small("sssf", 0)), [(0, 1), (1, 2), (2, 3), (3, 4)]);
}

/// Inputs 1 to 9 at E2B's sizes and a context of 2048.
fn e2b_common(per_layer: &str) -> Vec<String> {
    [
        "hidden_states fp16[1, 1, 1536]",
        "causal_mask_full fp16[1, 1, 1, 2048]",
        "causal_mask_sliding fp16[1, 1, 1, 512]",
        "update_mask fp16[1, 1, 2048, 1]",
        &format!("{per_layer} fp16[1, 1, 8960]"),
        "cos_s fp16[1, 1, 1, 256]",
        "sin_s fp16[1, 1, 1, 256]",
        "cos_f fp16[1, 1, 1, 512]",
        "sin_f fp16[1, 1, 1, 512]",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn with(mut list: Vec<String>, more: &[&str]) -> Vec<String> {
    list.extend(more.iter().map(|s| (*s).to_owned()));
    list
}

#[test]
fn e2b_own_chunks() {
    let graphs = swa4(&e2b(), 2048);
    let c1 = main_of(&graphs[0]);
    assert_eq!(
        inputs(c1),
        with(
            e2b_common("per_layer_raw"),
            &[
                "K_sliding_in fp16[7, 1, 512, 512]",
                "V_sliding_in fp16[7, 1, 512, 512]",
                "K_full_in fp16[1, 1, 2048, 512]",
                "V_full_in fp16[1, 1, 2048, 512]",
            ]
        )
    );
    assert_eq!(
        outputs(c1),
        [
            "hidden_states_out fp16[1, 1, 1536]",
            "K_sliding_out fp16[7, 1, 512, 512]",
            "V_sliding_out fp16[7, 1, 512, 512]",
            "K_full_out fp16[1, 1, 2048, 512]",
            "V_full_out fp16[1, 1, 2048, 512]",
            "per_layer_combined_out fp16[1, 1, 8960]",
        ]
    );
    let c2 = main_of(&graphs[1]);
    assert_eq!(
        inputs(c2),
        with(
            e2b_common("per_layer_combined"),
            &[
                "K_sliding_in fp16[5, 1, 512, 512]",
                "V_sliding_in fp16[5, 1, 512, 512]",
                "K_full_in fp16[2, 1, 2048, 512]",
                "V_full_in fp16[2, 1, 2048, 512]",
            ]
        )
    );
    assert_eq!(
        outputs(c2),
        [
            "hidden_states_out fp16[1, 1, 1536]",
            "K_sliding_out fp16[5, 1, 512, 512]",
            "V_sliding_out fp16[5, 1, 512, 512]",
            "K_full_out fp16[2, 1, 2048, 512]",
            "V_full_out fp16[2, 1, 2048, 512]",
            "kv13_k fp16[1, 1, 512, 256]",
            "kv13_v fp16[1, 1, 512, 256]",
            "kv14_k fp16[1, 1, 2048, 512]",
            "kv14_v fp16[1, 1, 2048, 512]",
        ]
    );
}

#[test]
fn e2b_sharing_chunks() {
    let graphs = swa4(&e2b(), 2048);
    let shared = [
        "kv13_k fp16[1, 1, 512, 256]",
        "kv13_v fp16[1, 1, 512, 256]",
        "kv14_k fp16[1, 1, 2048, 512]",
        "kv14_v fp16[1, 1, 2048, 512]",
    ];
    for graph in &graphs[2..] {
        assert_eq!(
            inputs(main_of(graph)),
            with(e2b_common("per_layer_combined"), &shared)
        );
    }
    assert_eq!(
        outputs(main_of(&graphs[2])),
        ["hidden_states_out fp16[1, 1, 1536]"]
    );
    assert_eq!(
        outputs(main_of(&graphs[3])),
        [
            "token_id int32[1]",
            "token_logit fp16[1]",
            "hidden_states_out fp16[1, 1, 1536]"
        ]
    );
}

#[test]
fn e4b_chunks_have_two_kv_heads() {
    let graphs = swa4(&e4b(), 512);
    for (graph, name) in graphs.iter().zip(["per_layer_raw", "per_layer_combined"]) {
        let f = main_of(graph);
        assert_eq!(inputs(f)[0], "hidden_states fp16[1, 1, 2560]");
        assert_eq!(inputs(f)[4], format!("{name} fp16[1, 1, 10752]"));
        assert_eq!(inputs(f)[9], "K_sliding_in fp16[10, 2, 512, 512]");
        assert_eq!(inputs(f)[11], "K_full_in fp16[2, 2, 512, 512]");
    }
    assert_eq!(
        outputs(main_of(&graphs[1]))[5..],
        [
            "kv13_k fp16[1, 2, 512, 256]",
            "kv13_v fp16[1, 2, 512, 256]",
            "kv14_k fp16[1, 2, 512, 512]",
            "kv14_v fp16[1, 2, 512, 512]",
        ]
    );
    assert_eq!(
        inputs(main_of(&graphs[3]))[9],
        "kv13_k fp16[1, 2, 512, 256]"
    );
}

#[test]
fn dense_chunks_own_their_caches() {
    let graphs = swa4(&dense_12b(), 4096);
    for graph in &graphs {
        let f = main_of(graph);
        assert_eq!(
            inputs(f),
            [
                "hidden_states fp16[1, 1, 3840]",
                "causal_mask_full fp16[1, 1, 1, 4096]",
                "causal_mask_sliding fp16[1, 1, 1, 1024]",
                "update_mask fp16[1, 1, 4096, 1]",
                "cos_s fp16[1, 1, 1, 256]",
                "sin_s fp16[1, 1, 1, 256]",
                "cos_f fp16[1, 1, 1, 512]",
                "sin_f fp16[1, 1, 1, 512]",
                "K_sliding_in fp16[10, 8, 1024, 512]",
                "V_sliding_in fp16[10, 8, 1024, 512]",
                "K_full_in fp16[2, 1, 4096, 512]",
                "V_full_in fp16[2, 1, 4096, 512]",
            ]
        );
        let caches = [
            "K_sliding_out fp16[10, 8, 1024, 512]",
            "V_sliding_out fp16[10, 8, 1024, 512]",
            "K_full_out fp16[2, 1, 4096, 512]",
            "V_full_out fp16[2, 1, 4096, 512]",
        ];
        let head = ["token_id int32[1]", "token_logit fp16[1]"];
        let head = if graph.name == "chunk4" {
            head.as_slice()
        } else {
            &[]
        };
        let expected = with(Vec::new(), head);
        let expected = with(expected, &["hidden_states_out fp16[1, 1, 3840]"]);
        assert_eq!(outputs(f), with(expected, &caches));
    }
}

#[test]
fn a_kind_without_layers_passes_one_slot_through() {
    // Own layers: s s | s f, so chunk1 has no full layer.
    let graphs = swa4(&small("sssfsf", 2), 32);
    let c1 = main_of(&graphs[0]);
    assert_eq!(
        inputs(c1)[9..],
        [
            "K_sliding_in fp16[2, 2, 8, 32]",
            "V_sliding_in fp16[2, 2, 8, 32]",
            "K_full_in fp16[1, 2, 32, 32]",
            "V_full_in fp16[1, 2, 32, 32]",
        ]
    );
    assert_eq!(
        outputs(c1)[3..5],
        [
            "K_full_out fp16[1, 2, 32, 32]",
            "V_full_out fp16[1, 2, 32, 32]"
        ]
    );
    for (output, input) in [("K_full_out", "K_full_in"), ("V_full_out", "V_full_in")] {
        let op = c1.ops.iter().find(|op| op.outputs[0].0 == output).unwrap();
        assert_eq!(op.op_type.name(), "identity");
        assert_eq!(op.inputs[0].1, [input]);
    }
    // Own layers: f f | f f, all sharing layers full: no sliding layer anywhere, and kv13 is the empty slot.
    let graphs = swa4(&small("ffffff", 2), 32);
    assert_eq!(
        inputs(main_of(&graphs[1]))[9],
        "K_sliding_in fp16[1, 2, 8, 32]"
    );
    assert_eq!(outputs(main_of(&graphs[1]))[5], "kv13_k fp16[1, 2, 8, 16]");
    assert_eq!(inputs(main_of(&graphs[2]))[9], "kv13_k fp16[1, 2, 8, 16]");
}

#[test]
fn a_context_shorter_than_the_window_keeps_the_window() {
    let graphs = swa4(&small("sssfsf", 2), 4);
    let c1 = inputs(main_of(&graphs[0]));
    assert_eq!(
        c1[1..4],
        [
            "causal_mask_full fp16[1, 1, 1, 4]",
            "causal_mask_sliding fp16[1, 1, 1, 8]",
            "update_mask fp16[1, 1, 4, 1]",
        ]
    );
}
