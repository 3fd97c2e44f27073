//! Plans of the published geometries.

use std::path::Path;

use serde_json::json;

use super::*;

struct Shape<'a> {
    pattern: &'a str,
    shared: usize,
    double_wide: bool,
    k_eq_v: bool,
    kv_heads: usize,
    global_kv: Option<usize>,
    ple: usize,
}

fn plan(shape: Shape) -> ModelPlan {
    plan_with(shape, json!({}))
}

/// The plan of a shape with further fields of config.json.
fn plan_with(shape: Shape, fields: serde_json::Value) -> ModelPlan {
    let kind = |c| {
        if c == 'F' {
            "full_attention"
        } else {
            "sliding_attention"
        }
    };
    let mut config = json!({
        "model_type": "gemma4_text", "hidden_size": 1536, "intermediate_size": 6144, "vocab_size": 1000,
        "num_attention_heads": 8, "num_key_value_heads": shape.kv_heads, "num_hidden_layers": shape.pattern.len(),
        "layer_types": shape.pattern.chars().map(kind).collect::<Vec<_>>(), "num_kv_shared_layers": shape.shared,
        "use_double_wide_mlp": shape.double_wide, "attention_k_eq_v": shape.k_eq_v,
        "num_global_key_value_heads": shape.global_kv, "hidden_size_per_layer_input": shape.ple
    });
    for (name, value) in fields.as_object().expect("an object") {
        config[name] = value.clone();
    }
    let config = TextConfig::parse(Path::new("config.json"), config.to_string().as_bytes())
        .expect("a config");
    ModelPlan::new(&config).expect("a plan")
}

fn e2b() -> ModelPlan {
    plan(Shape {
        pattern: &"SSSSF".repeat(7),
        shared: 20,
        double_wide: true,
        k_eq_v: false,
        kv_heads: 1,
        global_kv: None,
        ple: 256,
    })
}

#[test]
fn e2b_shares_from_13_and_14() {
    let plan = e2b();
    assert_eq!(plan.first_shared, 15);
    let producers = Producers {
        sliding: Some(13),
        full: Some(14),
    };
    assert_eq!(plan.producers, Some(producers));
    for layer in &plan.layers[15..] {
        let source = if layer.kind == LayerKind::Full {
            14
        } else {
            13
        };
        assert_eq!(layer.kv, KvRole::Shared { source });
        assert_eq!(layer.intermediate, 12288);
    }
    assert!(
        plan.layers[..15]
            .iter()
            .all(|l| l.owns_kv() && l.intermediate == 6144)
    );
    assert_eq!(
        (
            plan.owners(LayerKind::Sliding),
            plan.owners(LayerKind::Full)
        ),
        (12, 3)
    );
    assert_eq!(plan.layers[13].kv, KvRole::Own { slot: 11 });
    assert_eq!(plan.layers[14].kv, KvRole::Own { slot: 2 });
    assert_eq!(
        (plan.layers[0].head_dim, plan.layers[4].head_dim),
        (256, 512)
    );
    assert_eq!(
        (
            plan.sliding.rope.rotated_pairs,
            plan.full.rope.rotated_pairs
        ),
        (128, 64)
    );
}

#[test]
fn e4b_shares_from_22_and_23() {
    let plan = plan(Shape {
        pattern: &"SSSSSF".repeat(7),
        shared: 18,
        double_wide: false,
        k_eq_v: false,
        kv_heads: 2,
        global_kv: None,
        ple: 256,
    });
    let producers = Producers {
        sliding: Some(22),
        full: Some(23),
    };
    assert_eq!((plan.first_shared, plan.producers), (24, Some(producers)));
    assert!(
        plan.layers
            .iter()
            .all(|l| l.intermediate == 6144 && l.kv_heads == 2)
    );
}

/// google/gemma-4-E2B-it has 600 text tensors; those of K and V on the 20 shared layers are not needed.
#[test]
fn tensors_of_e2b() {
    let plan = e2b();
    let tensors = plan.tensors();
    assert_eq!(tensors.len(), 600 - 20 * 3);
    let shape = |name: &str| {
        let found = tensors.iter().find(|(n, _)| n == name);
        found.map(|(_, shape)| shape.clone())
    };
    assert_eq!(shape("embed_tokens.weight"), Some(vec![1000, 1536]));
    assert_eq!(
        shape("per_layer_model_projection.weight"),
        Some(vec![35 * 256, 1536])
    );
    assert_eq!(
        shape("layers.4.self_attn.q_proj.weight"),
        Some(vec![4096, 1536])
    );
    assert_eq!(shape("layers.4.self_attn.k_norm.weight"), Some(vec![512]));
    assert_eq!(
        shape("layers.14.mlp.down_proj.weight"),
        Some(vec![1536, 6144])
    );
    assert_eq!(
        shape("layers.15.mlp.down_proj.weight"),
        Some(vec![1536, 12288])
    );
    assert_eq!(shape("layers.15.self_attn.k_proj.weight"), None);
    assert_eq!(shape("layers.15.self_attn.q_norm.weight"), Some(vec![256]));
    assert_eq!(shape("layers.34.layer_scalar"), Some(vec![1]));
}

#[test]
fn dense_with_shared_key_and_value() {
    let plan = plan(Shape {
        pattern: &"SSSSSF".repeat(2),
        shared: 0,
        double_wide: false,
        k_eq_v: true,
        kv_heads: 8,
        global_kv: Some(1),
        ple: 0,
    });
    assert_eq!(
        (plan.first_shared, plan.producers, plan.ple_dim),
        (12, None, 0)
    );
    assert_eq!((plan.sliding.kv_heads, plan.full.kv_heads), (8, 1));
    let names: Vec<String> = plan.tensors().into_iter().map(|(n, _)| n).collect();
    assert!(names.contains(&"layers.4.self_attn.v_proj.weight".to_string()));
    assert!(!names.contains(&"layers.5.self_attn.v_proj.weight".to_string()));
    assert!(names.iter().all(|n| !n.contains("per_layer")));
}

/// The published geometry: a dense MLP and 128 experts in each of 30 layers.
#[test]
fn a4b_has_experts_in_every_layer() {
    let shape = Shape {
        pattern: &"SSSSSF".repeat(5),
        shared: 0,
        double_wide: false,
        k_eq_v: true,
        kv_heads: 8,
        global_kv: Some(2),
        ple: 0,
    };
    let plan = plan_with(
        shape,
        json!({
            "hidden_size": 2816, "intermediate_size": 2112, "vocab_size": 262144, "num_attention_heads": 16,
            "enable_moe_block": true, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704
        }),
    );
    let moe = Moe {
        experts: 128,
        top_k: 8,
        intermediate: 704,
    };
    assert_eq!(plan.moe, Some(moe));
    for layer in &plan.layers {
        let tensors = plan.layer_tensors(layer);
        let prefix = layer.prefix();
        let from = tensors
            .iter()
            .position(|(n, _)| n.ends_with("mlp.down_proj.weight"));
        let after: Vec<(&str, &[usize])> = tensors[from.expect("an MLP") + 1..]
            .iter()
            .map(|(n, shape)| (n.strip_prefix(&prefix).expect("a prefix"), &shape[..]))
            .collect();
        let expected: [(&str, &[usize]); 10] = [
            ("post_feedforward_layernorm_1.weight", &[2816]),
            ("router.scale", &[2816]),
            ("router.proj.weight", &[128, 2816]),
            ("router.per_expert_scale", &[128]),
            ("pre_feedforward_layernorm_2.weight", &[2816]),
            ("experts.gate_up_proj", &[128, 1408, 2816]),
            ("experts.down_proj", &[128, 2816, 704]),
            ("post_feedforward_layernorm_2.weight", &[2816]),
            ("post_feedforward_layernorm.weight", &[2816]),
            ("layer_scalar", &[1]),
        ];
        assert_eq!(after, expected);
    }
    let cost = plan.moe_cost().expect("experts");
    assert_eq!(cost.all, 30 * 128 * 3 * 704 * 2816);
    assert_eq!(cost.chosen * 16, cost.all);
    // The name says 26 B with 4 B active; vision is apart.
    let billions = |n: u64| n as f64 / 1e9;
    assert!((25.0..26.0).contains(&billions(cost.model)));
    assert!((3.5..4.0).contains(&billions(cost.model - cost.all + cost.chosen)));
    assert_eq!(e2b().moe_cost(), None);
}

#[test]
fn folds_name_tensors_of_the_layer_and_fit() {
    let plan = e2b();
    for layer in &plan.layers {
        let shapes: std::collections::BTreeMap<_, _> =
            plan.layer_tensors(layer).into_iter().collect();
        let folds = plan.folds(layer);
        for fold in &folds {
            let channels = shapes[&fold.source][0];
            for consumer in &fold.consumers {
                assert_eq!(shapes[consumer].last(), Some(&channels), "{consumer}");
            }
        }
        let attention = &folds[1];
        assert_eq!(
            attention.source,
            format!("layers.{}.input_layernorm.weight", layer.index)
        );
        assert_eq!(
            attention.consumers.len(),
            if layer.owns_kv() { 3 } else { 1 }
        );
    }
}
