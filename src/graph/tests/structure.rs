//! Weights, op counts, kept names, errors.

use std::collections::BTreeMap;

use super::*;
use crate::graph::{ChunkSpec, Error, WeightKind, WeightLayout};
use crate::mil::ConstValue;

/// Every tensor of the plan but the tables is bound once, with its shape, over all chunks.
pub(super) fn check_weights(plan: &ModelPlan, context: usize) {
    let graphs = swa4(plan, context);
    let mut bound = BTreeMap::new();
    for graph in &graphs {
        for w in &graph.weights {
            assert!(
                bound
                    .insert(w.tensor.clone(), w.source_shape.clone())
                    .is_none(),
                "{} is bound twice",
                w.tensor
            );
        }
    }
    let needed: BTreeMap<_, _> = plan
        .tensors()
        .into_iter()
        .filter(|(name, _)| name != "embed_tokens_per_layer.weight")
        .collect();
    assert_eq!(bound, needed);
}

#[test]
fn every_tensor_is_bound_once() {
    check_weights(&e2b(), 2048);
    check_weights(&e4b(), 2048);
    check_weights(&dense_12b(), 2048);
}

#[test]
fn every_binding_is_a_weight_of_the_program() {
    for graph in swa4(&e2b(), 256).iter().chain(&swa4(&dense_12b(), 256)) {
        let mut ids: Vec<_> = graph.program.weights().into_iter().collect();
        ids.sort_by(|a, b| a.id.cmp(&b.id));
        let mut bound: Vec<_> = graph.weights.iter().map(|w| &w.konst).collect();
        bound.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(ids, bound, "{}", graph.name);
        for w in &graph.weights {
            assert_eq!(
                w.layout.shape(&w.source_shape).as_ref(),
                Some(&w.konst.shape)
            );
            assert_eq!(
                w.konst.shape.iter().product::<usize>(),
                w.source_shape.iter().product::<usize>()
            );
        }
    }
}

#[test]
fn weights_are_in_canonical_order() {
    let graphs = swa4(&e2b(), 256);
    let names = |g: &ChunkGraph| {
        g.weights
            .iter()
            .map(|w| w.tensor.clone())
            .collect::<Vec<_>>()
    };
    let first = names(&graphs[0]);
    assert_eq!(
        first[..3],
        [
            "per_layer_model_projection.weight",
            "per_layer_projection_norm.weight",
            "layers.0.input_layernorm.weight",
        ]
    );
    let last = names(&graphs[3]);
    assert_eq!(
        last[last.len() - 2..],
        ["norm.weight", "embed_tokens.weight"]
    );
    for graph in &graphs {
        let layers: Vec<usize> = names(graph)
            .iter()
            .filter_map(|n| n.strip_prefix("layers.")?.split('.').next()?.parse().ok())
            .collect();
        assert!(layers.is_sorted(), "{}", graph.name);
    }
}

#[test]
fn weights_have_the_right_kind_and_layout() {
    let graphs = swa4(&e2b(), 256);
    let all: Vec<_> = graphs.iter().flat_map(|g| &g.weights).collect();
    let find = |tensor: &str| *all.iter().find(|w| w.tensor == tensor).unwrap();
    let check = |tensor: &str, kind, layout, shape: &[usize]| {
        let w = find(tensor);
        assert_eq!(
            (w.kind, w.layout, w.konst.shape.as_slice()),
            (kind, layout, shape),
            "{tensor}"
        );
    };
    check(
        "layers.4.self_attn.q_proj.weight",
        WeightKind::Projection,
        WeightLayout::Conv1x1,
        &[4096, 1536, 1, 1],
    );
    check(
        "layers.15.mlp.down_proj.weight",
        WeightKind::Projection,
        WeightLayout::Conv1x1,
        &[1536, 12288, 1, 1],
    );
    check(
        "per_layer_model_projection.weight",
        WeightKind::Projection,
        WeightLayout::Conv1x1,
        &[8960, 1536, 1, 1],
    );
    check(
        "per_layer_projection_norm.weight",
        WeightKind::Norm,
        WeightLayout::LastAxis4,
        &[1, 1, 1, 256],
    );
    check(
        "layers.4.self_attn.k_norm.weight",
        WeightKind::Norm,
        WeightLayout::LastAxis4,
        &[1, 1, 1, 512],
    );
    check(
        "layers.0.input_layernorm.weight",
        WeightKind::Norm,
        WeightLayout::Vector4,
        &[1, 1536, 1, 1],
    );
    check(
        "layers.0.layer_scalar",
        WeightKind::Scalar,
        WeightLayout::Vector4,
        &[1, 1, 1, 1],
    );
    check(
        "embed_tokens.weight",
        WeightKind::Head,
        WeightLayout::Conv1x1,
        &[262_144, 1536, 1, 1],
    );
}

fn histogram(graph: &ChunkGraph) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for op in &main_of(graph).ops {
        *counts.entry(op.op_type.name()).or_insert(0) += 1;
    }
    counts
}

#[test]
fn op_counts_follow_from_the_layers() {
    let plan = e2b();
    let graphs = swa4(&plan, 2048);
    // chunk1: 8 own layers and the per-layer projection. A layer has q, k, v, o, gate, up, down and two per-layer
    // projections; norms: four on the stream, q, k, v, and the per-layer one.
    let c1 = histogram(&graphs[0]);
    assert_eq!(c1["conv"], 8 * 9 + 1);
    assert_eq!(c1["layer_norm"], 8 * 8 + 1);
    assert_eq!(c1["gelu"], 8 * 2);
    assert_eq!(
        (
            c1["matmul"],
            c1["reduce_max"],
            c1["exp"],
            c1["reduce_sum"],
            c1["real_div"]
        ),
        (16, 8, 8, 8, 8)
    );
    // Keys and values of the 7 sliding layers are padded from 256 to 512; the full layer needs none.
    assert_eq!(c1["pad"], 14);
    // chunk3: 10 sharing layers, without k and v.
    let c3 = histogram(&graphs[2]);
    assert_eq!((c3["conv"], c3["layer_norm"]), (10 * 7, 10 * 6));
    assert!(!c3.contains_key("pad"));
    // chunk4: the same, with final norm and head.
    let c4 = histogram(&graphs[3]);
    assert_eq!((c4["conv"], c4["layer_norm"]), (10 * 7 + 1, 10 * 6 + 1));
    assert_eq!((c4["tanh"], c4["reduce_argmax"], c4["gather"]), (1, 1, 1));
    for graph in &graphs {
        assert!(!histogram(graph).contains_key("softmax"));
    }
}

#[test]
fn k_eq_v_layers_have_no_value_projection() {
    let graphs = swa4(&dense_12b(), 2048);
    // 10 sliding layers with q, k, v, o, gate, up, down, and 2 full ones without v.
    assert_eq!(histogram(&graphs[0])["conv"], 10 * 7 + 2 * 6);
    assert_eq!(histogram(&graphs[0])["layer_norm"], 12 * 7);
}

#[test]
fn values_have_bounded_rank_and_one_dtype() {
    for graph in swa4(&e4b(), 256) {
        for op in &main_of(&graph).ops {
            for (name, ty) in &op.outputs {
                assert!(ty.shape.len() <= 5, "{name}");
                let head = ["token_id", "bool"];
                let attribute = op.value.is_some();
                assert!(
                    attribute
                        || ty.dtype == crate::mil::DType::Fp16
                        || head.contains(&name.as_str()),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn immediates_are_small() {
    for graph in swa4(&e2b(), 8192) {
        for op in &main_of(&graph).ops {
            if let Some(ConstValue::Immediate(_)) = &op.value {
                assert!(
                    op.outputs[0].1.shape.iter().product::<usize>() < 10,
                    "{}",
                    op.name
                );
            }
        }
    }
}

#[test]
fn intermediates_keep_their_names() {
    let plan = e2b();
    for (graph, spec) in swa4(&plan, 256)
        .iter()
        .zip(split::chunks(&plan, Layout::Swa4).unwrap())
    {
        let f = main_of(graph);
        for i in spec.layers {
            assert_eq!(type_of(f, &format!("layer_{i}_out")).shape, [1, 1536, 1, 1]);
        }
        if spec.last {
            assert_eq!(type_of(f, "final_norm_out").shape, [1, 1536, 1, 1]);
            assert_eq!(type_of(f, "logits").shape, [1, 262_144, 1, 1]);
        }
    }
}

#[test]
fn without_softcap_the_logits_are_plain() {
    let mut plan = small("sssfsf", 2);
    plan.softcap = None;
    let last = swa4(&plan, 16).pop().unwrap();
    assert!(!histogram(&last).contains_key("tanh"));
    assert_eq!(type_of(main_of(&last), "logits").shape, [1, 96, 1, 1]);
}

#[test]
fn the_same_plan_gives_the_same_program() {
    let (a, b) = (swa4(&e4b(), 512), swa4(&e4b(), 512));
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a.program, b.program);
        assert_eq!(a.weights, b.weights);
    }
}

#[test]
fn too_few_layers_are_refused() {
    let refused = |kinds: &str, shared| {
        split::chunks(&small(kinds, shared), Layout::Swa4)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refused("ssf", 0),
        "layout swa4 has 4 chunks: expected at least 4 layers, got 3"
    );
    assert_eq!(
        refused("fff", 2),
        "layout swa4 has 4 chunks: expected at least 2 layers with their own K/V, got 1"
    );
    assert_eq!(
        refused("ssff", 1),
        "layout swa4 has 4 chunks: expected at least 2 layers that share K/V, got 1"
    );
}

#[test]
fn a_producer_in_the_first_chunk_is_refused() {
    // Own layers: s | f, cut in half: the sliding producer lies in chunk1, which hands nothing on.
    let error = split::chunks(&small("sfsf", 2), Layout::Swa4).unwrap_err();
    assert!(matches!(
        error,
        Error::ProducerElsewhere { producer: 0, .. }
    ));
    assert_eq!(
        error.to_string(),
        "layout swa4: the last own-KV sliding_attention layer is 0, in chunk1; expected in chunk2, which hands its K/V \
         to the sharing layers"
    );
}

#[test]
fn contexts_the_model_has_no_positions_for_are_refused() {
    let plan = small("sssfsf", 2);
    let spec = &split::chunks(&plan, Layout::Swa4).unwrap()[0];
    for context in [0, 65] {
        let error = build_chunk(&plan, spec, &GraphOptions::decode(context)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("context {context}: expected 1 to 64 tokens (max_position_embeddings)")
        );
    }
}

#[test]
fn a_sharing_layer_needs_its_source() {
    let plan = small("sssfsf", 2);
    // Layer 4 shares with layer 2, which lies before the chunk, and no kv13 input is declared: the chunk owns layer 3.
    let spec = ChunkSpec {
        name: "part".into(),
        layers: 3..6,
        first: false,
        functions: vec![crate::graph::FunctionKind::Decode],
        last: true,
    };
    let error = build_chunk(&plan, &spec, &GraphOptions::decode(16)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 4 shares the K/V of layer 2, which is not available in its chunk"
    );
}
