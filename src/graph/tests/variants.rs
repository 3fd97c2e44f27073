//! Inputs and outputs of every variant at E2B's sizes, by hand from sections 3.2 to 3.13 and 7 of the bundle contract; and
//! every variant on every published geometry.

use super::*;
use crate::graph::{AttentionForm, CacheForm, Error, FunctionKind, PrefillPackages, packages};

const CONTEXT: usize = 2048;

/// `name dtype[dims]` with the dtype left out where it is fp16.
fn features(text: &str) -> Vec<String> {
    let lines = text.split(';').map(str::trim).filter(|l| !l.is_empty());
    let full = lines.map(|line| {
        let (name, shape) = line.split_once(' ').unwrap();
        let (dtype, shape) = match shape.strip_prefix("int32") {
            Some(rest) => ("int32", rest),
            None => ("fp16", shape),
        };
        format!("{name} {dtype}{shape}")
    });
    full.collect()
}

/// The functions of every package by `package/function`.
fn functions(plan: &ModelPlan, options: &GraphOptions) -> Vec<(String, Function)> {
    let mut all = Vec::new();
    for spec in packages(plan, options).unwrap() {
        let graph = build_chunk(plan, &spec, options).unwrap();
        for (name, function) in graph.program.functions {
            let label = match name.as_str() {
                "main" => spec.name.clone(),
                _ => format!("{}/{name}", spec.name),
            };
            all.push((label, function));
        }
    }
    all
}

/// Checks functions in order: label, inputs, outputs.
fn check(options: &GraphOptions, expected: &[(&str, &str, &str)]) {
    let built = functions(&e2b(), options);
    let labels: Vec<&str> = built.iter().map(|(label, _)| label.as_str()).collect();
    let wanted: Vec<&str> = expected.iter().map(|(label, ..)| *label).collect();
    assert_eq!(labels, wanted);
    for ((label, function), (_, takes, gives)) in built.iter().zip(expected) {
        assert_eq!(inputs(function), features(takes), "inputs of {label}");
        assert_eq!(outputs(function), features(gives), "outputs of {label}");
    }
}

fn options(layout: Layout, cache: CacheForm) -> GraphOptions {
    GraphOptions {
        layout,
        cache,
        ..GraphOptions::decode(CONTEXT)
    }
}

const MASKS: &str = "causal_mask_full [1, 1, 1, 2048]; causal_mask_sliding [1, 1, 1, 512]";
const ROPE: &str =
    "cos_s [1, 1, 1, 256]; sin_s [1, 1, 1, 256]; cos_f [1, 1, 1, 512]; sin_f [1, 1, 1, 512]";
const SHARED: &str = "kv13_k [1, 1, 512, 256]; kv13_v [1, 1, 512, 256]; kv14_k [1, 1, 2048, 512]; kv14_v [1, 1, 2048, 512]";
const TOKEN: &str = "token_id int32[1]; token_logit [1]";
const HIDDEN: &str = "[1, 1, 1536]";

/// Inputs 1 to 9 of a decode chunk.
fn decode(per_layer: &str) -> String {
    format!(
        "hidden_states {HIDDEN}; {MASKS}; update_mask [1, 1, 2048, 1]; {per_layer} [1, 1, 8960]; {ROPE};"
    )
}

/// Caches of so many sliding and full slots; `end` is `in` or `out`.
fn slots(sliding: usize, full: usize, end: &str) -> String {
    format!(
        "K_sliding_{end} [{sliding}, 1, 512, 512]; V_sliding_{end} [{sliding}, 1, 512, 512]; \
         K_full_{end} [{full}, 1, 2048, 512]; V_full_{end} [{full}, 1, 2048, 512];"
    )
}

#[test]
fn three_chunks() {
    let (raw, combined) = (decode("per_layer_raw"), decode("per_layer_combined"));
    let out = format!("hidden_states_out {HIDDEN};");
    let last = format!("{TOKEN}; hidden_states_out {HIDDEN}");
    let combined_out = "per_layer_combined_out [1, 1, 8960];";
    check(
        &options(Layout::Swa3, CacheForm::Shift),
        &[
            (
                "chunk1",
                &format!("{raw} {}", slots(7, 1, "in")),
                &format!("{out} {} {combined_out}", slots(7, 1, "out")),
            ),
            (
                "chunk2_3way",
                &format!("{combined} {}", slots(5, 2, "in")),
                &format!("{out} {} {SHARED}", slots(5, 2, "out")),
            ),
            ("chunk3_3way", &format!("{combined} {SHARED}"), &last),
        ],
    );
    check(
        &options(Layout::Swa3Topology1, CacheForm::Shift),
        &[
            (
                "chunk1_topoI",
                &format!("{raw} {}", slots(12, 3, "in")),
                &format!("{out} {} {combined_out} {SHARED}", slots(12, 3, "out")),
            ),
            ("chunk2_topoI", &format!("{combined} {SHARED}"), &out),
            ("chunk3_topoI", &format!("{combined} {SHARED}"), &last),
        ],
    );
}

#[test]
fn two_chunks_and_one() {
    let (raw, combined) = (decode("per_layer_raw"), decode("per_layer_combined"));
    let last = format!("{TOKEN}; hidden_states_out {HIDDEN};");
    check(
        &options(Layout::Swa2, CacheForm::Shift),
        &[
            (
                "merged_chunk1",
                &format!("{raw} {}", slots(12, 3, "in")),
                &format!(
                    "hidden_states_out {HIDDEN}; {} {SHARED}; per_layer_combined_out [1, 1, 8960]",
                    slots(12, 3, "out")
                ),
            ),
            ("merged_chunk2", &format!("{combined} {SHARED}"), &last),
        ],
    );
    check(
        &options(Layout::Swa1, CacheForm::Shift),
        &[(
            "merged_full",
            &format!("{raw} {}", slots(12, 3, "in")),
            &format!("{last} {}", slots(12, 3, "out")),
        )],
    );
}

const WHOLE_SHARED: &str = "kv13_k [1, 1, 2048, 256]; kv13_v [1, 1, 2048, 256]; kv14_k [1, 1, 2048, 512]; kv14_v [1, 1, 2048, 512]";

#[test]
fn layouts_that_take_ids() {
    let masks = "position_ids int32[1]; causal_mask [1, 1, 1, 2048]; update_mask [1, 1, 2048, 1]; \
                 per_layer_combined [1, 1, 8960];";
    let state = "kv_cache_0 [30, 1, 2048, 512]";
    check(
        &options(Layout::Lite2, CacheForm::StateFull),
        &[
            (
                "lite_chunk1",
                &format!("input_ids int32[1, 1]; {masks} image_embedding {HIDDEN}; {state}"),
                &format!("hidden_states_out {HIDDEN}; {WHOLE_SHARED}"),
            ),
            (
                "lite_chunk2",
                &format!("hidden_states {HIDDEN}; {masks} {WHOLE_SHARED}"),
                TOKEN,
            ),
        ],
    );
    check(
        &options(Layout::Monolithic, CacheForm::StateFull),
        &[(
            "model",
            &format!("input_ids int32[1, 1]; {masks} {state}"),
            TOKEN,
        )],
    );
}

#[test]
fn stateless_full() {
    let common = format!(
        "hidden_states {HIDDEN}; causal_mask [1, 1, 1, 2048]; update_mask [1, 1, 2048, 1]; \
         per_layer_combined [1, 1, 8960]; {ROPE};"
    );
    let caches =
        |n: usize, end: &str| format!("K_{end} [{n}, 1, 2048, 512]; V_{end} [{n}, 1, 2048, 512];");
    let out = format!("hidden_states_out {HIDDEN};");
    check(
        &options(Layout::Swa4, CacheForm::Full),
        &[
            (
                "chunk1",
                &format!("{common} {}", caches(8, "in")),
                &format!("{out} {}", caches(8, "out")),
            ),
            (
                "chunk2",
                &format!("{common} {}", caches(7, "in")),
                &format!("{out} {} {WHOLE_SHARED}", caches(7, "out")),
            ),
            ("chunk3", &format!("{common} {WHOLE_SHARED}"), &out),
            ("chunk4", &format!("{common} {WHOLE_SHARED}"), TOKEN),
        ],
    );
}

#[test]
fn windowed_full_attention() {
    let mut options = options(Layout::Swa4, CacheForm::Window(1024));
    options.attention = AttentionForm::Flash(512);
    let common = |per_layer: &str| {
        format!(
            "hidden_states {HIDDEN}; causal_mask_full [1, 1, 1, 1024]; causal_mask_sliding [1, 1, 1, 512]; \
             {per_layer} [1, 1, 8960]; {ROPE};"
        )
    };
    let shared = SHARED.replace("2048", "1024");
    let slots = |s: usize, f: usize, end: &str| slots(s, f, end).replace("2048", "1024");
    let (out, combined) = (
        format!("hidden_states_out {HIDDEN};"),
        common("per_layer_combined"),
    );
    check(
        &options,
        &[
            (
                "chunk1",
                &format!("{} {}", common("per_layer_raw"), slots(7, 1, "in")),
                &format!(
                    "{out} {} per_layer_combined_out [1, 1, 8960]",
                    slots(7, 1, "out")
                ),
            ),
            (
                "chunk2",
                &format!("{combined} {}", slots(5, 2, "in")),
                &format!("{out} {} {shared}", slots(5, 2, "out")),
            ),
            ("chunk3", &format!("{combined} {shared}"), &out),
            (
                "chunk4",
                &format!("{combined} {shared}"),
                &format!("{TOKEN}; {out}"),
            ),
        ],
    );
}

#[test]
fn stateful() {
    let common = |per_layer: &str| {
        format!("hidden_states {HIDDEN}; {MASKS}; {per_layer} [1, 1, 8960]; {ROPE};")
    };
    let positions = "current_pos int32[1]; ring_pos int32[1];";
    let states = |s: usize, f: usize, heads: usize| {
        format!(
            "kv_cache_sliding [{s}, {heads}, 512, 512]; kv_cache_full [{f}, {heads}, 2048, 512];"
        )
    };
    let (raw, combined) = (common("per_layer_raw"), common("per_layer_combined"));
    let out = format!("hidden_states_out {HIDDEN};");
    let last = format!("{TOKEN}; hidden_normed {HIDDEN}");
    let first = format!("{out} per_layer_combined_out [1, 1, 8960]");
    let handed = format!("{out} {SHARED}");
    for heads in [1, 32] {
        let mut options = options(Layout::Swa4, CacheForm::State);
        options.pad_kv_heads = (heads > 1).then_some(heads);
        check(
            &options,
            &[
                (
                    "chunk_1",
                    &format!("{raw} {positions} {}", states(14, 2, heads)),
                    &first,
                ),
                (
                    "chunk_2",
                    &format!("{combined} {positions} {}", states(10, 4, heads)),
                    &handed,
                ),
                ("chunk_3", &format!("{combined} {SHARED}"), &out),
                ("chunk_4", &format!("{combined} {SHARED}"), &last),
            ],
        );
    }
    check(
        &options(Layout::Swa3, CacheForm::State),
        &[
            (
                "chunk_1",
                &format!("{raw} {positions} {}", states(14, 2, 1)),
                &first,
            ),
            (
                "chunk_2",
                &format!("{combined} {positions} {}", states(10, 4, 1)),
                &handed,
            ),
            ("chunk_3", &format!("{combined} {SHARED}"), &last),
        ],
    );
    check(
        &options(Layout::Swa1, CacheForm::State),
        &[(
            "model",
            &format!("{raw} {positions} kv_cache_unified [30, 1, 2048, 512]"),
            &last,
        )],
    );
}

/// Inputs of a function of `n` tokens; sliding keys of `window` columns.
fn several(n: usize, per_layer: &str) -> String {
    let rope = ROPE.replace("[1, 1, 1,", &format!("[1, 1, {n},"));
    format!("{per_layer} [1, {n}, 8960]; {rope};")
}

#[test]
fn prefill() {
    let mut options = options(Layout::Swa3, CacheForm::Shift);
    options.functions.push(FunctionKind::Prefill(64));
    let built = functions(&e2b(), &options);
    let rows = |i: usize, d: usize| format!("K{i} [1, 1, 64, {d}]; V{i} [1, 1, 64, {d}];");
    let masks = "hidden_states [1, 64, 1536]; causal_mask [1, 1, 64, 64];";
    let shared = "kv13_k [1, 1, 64, 256]; kv13_v [1, 1, 64, 256]; kv14_k [1, 1, 64, 512]; kv14_v [1, 1, 64, 512];";
    let (raw, combined) = (
        several(64, "per_layer_raw"),
        several(64, "per_layer_combined"),
    );
    let own =
        |dims: &[usize]| -> String { dims.iter().enumerate().map(|(i, &d)| rows(i, d)).collect() };
    let expected = [
        (
            "prefill_chunk1",
            format!("{masks} {raw}"),
            format!(
                "hidden_states_out [1, 64, 1536]; per_layer_combined_out [1, 64, 8960]; {}",
                own(&[256, 256, 256, 256, 512, 256, 256, 256])
            ),
        ),
        (
            "prefill_chunk2",
            format!("{masks} {combined}"),
            format!(
                "hidden_states_out [1, 64, 1536]; {} {shared}",
                own(&[256, 512, 256, 256, 256])
            ),
        ),
        (
            "prefill_chunk3",
            format!("{masks} {combined} {shared}"),
            "hidden_states_out [1, 64, 1536]".to_owned(),
        ),
        (
            "prefill_chunk4",
            format!("{masks} {combined} {shared} last_position_mask [1, 64, 1]"),
            TOKEN.to_owned(),
        ),
    ];
    assert_eq!(built.len(), 3 + expected.len());
    for ((label, function), (name, takes, gives)) in built[3..].iter().zip(&expected) {
        assert_eq!(label, name);
        assert_eq!(inputs(function), features(takes), "inputs of {label}");
        assert_eq!(outputs(function), features(gives), "outputs of {label}");
    }
    // Several sizes are functions of one package, the largest the default.
    options.functions.push(FunctionKind::Prefill(512));
    let spec = &packages(&e2b(), &options).unwrap()[3];
    let program = build_chunk(&e2b(), spec, &options).unwrap().program;
    assert_eq!(program.default_function, "prefill_b512");
    assert_eq!(
        program.functions.keys().collect::<Vec<_>>(),
        ["prefill_b512", "prefill_b64"]
    );
    options.prefill = PrefillPackages::Combined;
    let spec = &packages(&e2b(), &options).unwrap();
    assert_eq!(spec.len(), 3);
    let program = build_chunk(&e2b(), &spec[0], &options).unwrap().program;
    assert_eq!(program.default_function, "decode_q1");
    assert_eq!(program.functions.len(), 3);
}

#[test]
fn verify() {
    for compat in [false, true] {
        let mut options = options(Layout::Swa4, CacheForm::Shift);
        options.functions.push(FunctionKind::Verify(3));
        options.compat = compat;
        let columns = if compat { 512 } else { 515 };
        let masks = format!(
            "hidden_states [1, 3, 1536]; causal_mask_full [1, 1, 3, 2048]; causal_mask_sliding [1, 1, 3, {columns}];"
        );
        let indicator = "update_indicator [1, 1, 2048, 3];";
        let new = |s: usize, f: usize| {
            format!(
                "new_K_sliding [{s}, 1, 3, 256]; new_V_sliding [{s}, 1, 3, 256]; \
                 new_K_full [{f}, 1, 3, 512]; new_V_full [{f}, 1, 3, 512];"
            )
        };
        let shared = SHARED.replace("1, 512, 256", &format!("1, {columns}, 256"));
        let (raw, combined) = (
            several(3, "per_layer_raw"),
            several(3, "per_layer_combined"),
        );
        let out = "hidden_states_out [1, 3, 1536];";
        let built = functions(&e2b(), &options);
        let verify: Vec<_> = built
            .iter()
            .filter(|(l, _)| l.ends_with("/verify_qK"))
            .collect();
        assert_eq!((built.len(), verify.len()), (8, 4));
        assert!(
            built
                .iter()
                .step_by(2)
                .all(|(l, _)| l.ends_with("/decode_q1"))
        );
        let expected = [
            (
                format!("{masks} {indicator} {raw} {}", slots(7, 1, "in")),
                format!("{out} per_layer_combined_out [1, 3, 8960]; {}", new(7, 1)),
            ),
            (
                format!("{masks} {indicator} {combined} {}", slots(5, 2, "in")),
                format!("{out} {} {shared}", new(5, 2)),
            ),
            (format!("{masks} {combined} {shared}"), out.to_owned()),
            (
                format!("{masks} {combined} {shared}"),
                format!("token_ids int32[1, 3]; {out}"),
            ),
        ];
        for ((label, function), (takes, gives)) in verify.iter().zip(&expected) {
            assert_eq!(inputs(function), features(takes), "inputs of {label}");
            assert_eq!(outputs(function), features(gives), "outputs of {label}");
        }
    }
}

/// 31B: 60 layers, five sliding to one full, 16 KV heads against 4, no sharing, no per-layer embeddings.
fn dense_31b() -> ModelPlan {
    plan(
        &"sssssf".repeat(10),
        serde_json::json!({
            "hidden_size": 5376, "intermediate_size": 21504, "num_attention_heads": 32, "num_key_value_heads": 16,
            "num_global_key_value_heads": 4, "attention_k_eq_v": true, "sliding_window": 1024,
        }),
    )
}

/// Every built-in recipe on every published dense geometry: the chunks chain, and no value has more than five dims.
#[test]
fn every_recipe_builds_for_every_geometry() {
    let recipes = crate::recipe::Recipe::list().unwrap();
    let mut built = 0;
    for (name, plan) in [
        ("E2B", e2b()),
        ("E4B", e4b()),
        ("12B", dense_12b()),
        ("31B", dense_31b()),
    ] {
        for recipe in &recipes {
            let mut options = recipe.graph_options(recipe.context.unwrap_or(CONTEXT));
            // What a prefill function costs to build grows with its square.
            for function in &mut options.functions {
                if let FunctionKind::Prefill(n @ 513..) = function {
                    *n = 513;
                }
            }
            for spec in
                packages(&plan, &options).unwrap_or_else(|e| panic!("{name} {}: {e}", recipe.name))
            {
                let graph = build_chunk(&plan, &spec, &options)
                    .unwrap_or_else(|e| panic!("{name} {} {}: {e}", recipe.name, spec.name));
                let ops = graph.program.functions.values().flat_map(|f| &f.ops);
                let mut types = ops.flat_map(|op| &op.outputs);
                assert!(
                    types.all(|(_, ty)| ty.rank() <= 5),
                    "{name} {}",
                    recipe.name
                );
                built += 1;
            }
        }
    }
    assert!(built >= 4 * recipes.len(), "{built}");
}

#[test]
fn forms_that_do_not_go_together_say_why() {
    let refuse = |change: &dyn Fn(&mut GraphOptions)| {
        let mut options = GraphOptions::decode(16);
        change(&mut options);
        match packages(&small("sssfsf", 0), &options) {
            Err(error @ Error::Combination { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!(refuse(&|o| o.layout = Layout::Lite2).contains("state-full"));
    assert!(refuse(&|o| o.cache = CacheForm::StateFull).contains("lite2"));
    let ring = |o: &mut GraphOptions| (o.layout, o.cache) = (Layout::Swa2, CacheForm::State);
    assert!(refuse(&ring).contains("swa4, swa3 and swa1"));
    assert!(refuse(&|o| o.functions = vec![FunctionKind::Prefill(4)]).contains("decode"));
    let state = |o: &mut GraphOptions| {
        o.cache = CacheForm::State;
        o.functions.push(FunctionKind::Verify(3));
    };
    assert!(refuse(&state).contains("`shift`"));
    let two = |o: &mut GraphOptions| o.functions.extend([3, 4].map(FunctionKind::Verify));
    assert!(refuse(&two).contains("one verify"));
    let padded = |o: &mut GraphOptions| {
        o.pad_kv_heads = Some(32);
        o.functions.push(FunctionKind::Verify(3));
    };
    assert!(refuse(&padded).contains("padded"));

    let plan = small("sssfsf", 0);
    let mut options = GraphOptions::decode(16);
    options.cache = CacheForm::Window(17);
    let spec = &packages(&plan, &options).unwrap()[0];
    let error = build_chunk(&plan, spec, &options).unwrap_err().to_string();
    assert_eq!(
        error,
        "window-17 does not fit this model: the context has 16 positions"
    );
}
