//! Configurations of the published models and of the ways they get changed.

use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn parse(value: &Value) -> Result<TextConfig> {
    TextConfig::parse(Path::new("config.json"), value.to_string().as_bytes())
}

fn kinds(pattern: &str) -> Vec<&'static str> {
    let kind = |c| {
        if c == 'F' {
            "full_attention"
        } else {
            "sliding_attention"
        }
    };
    pattern.chars().map(kind).collect()
}

/// The text decoder of google/gemma-4-E2B-it, as published.
fn e2b() -> Value {
    let mut config: Value = serde_json::from_str(E2B).expect("valid JSON");
    config["text_config"]["layer_types"] = json!(kinds(&"SSSSF".repeat(7)));
    config
}

const E2B: &str = r#"{
    "model_type": "gemma4", "dtype": "bfloat16", "eos_token_id": [1, 106], "tie_word_embeddings": true,
    "audio_config": {"hidden_size": 1024, "hidden_act": "silu"},
    "vision_config": {"hidden_activation": "gelu_pytorch_tanh", "global_head_dim": 64, "attention_bias": false},
    "text_config": {
        "attention_bias": false, "attention_dropout": 0.0, "attention_k_eq_v": false, "bos_token_id": 2,
        "dtype": "bfloat16", "enable_moe_block": false, "eos_token_id": 1, "expert_intermediate_size": null,
        "final_logit_softcapping": 30.0, "global_head_dim": 512, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1536, "hidden_size_per_layer_input": 256,
        "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 131072,
        "model_type": "gemma4_text", "num_attention_heads": 8, "num_experts": null,
        "num_global_key_value_heads": null, "num_hidden_layers": 35, "num_key_value_heads": 1,
        "num_kv_shared_layers": 20, "pad_token_id": 0, "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}
        },
        "sliding_window": 512, "tie_word_embeddings": true, "top_k_experts": null, "use_bidirectional_attention": null,
        "use_cache": true, "use_double_wide_mlp": true, "vocab_size": 262144, "vocab_size_per_layer_input": 262144
    }
}"#;

/// [`e2b`] with fields of its text config set, or removed where the value is `"(remove)"`.
fn with(changes: Value) -> Value {
    let mut config = e2b();
    edit(&mut config["text_config"], changes);
    config
}

fn edit(target: &mut Value, changes: Value) {
    for (name, value) in changes.as_object().expect("an object") {
        let object = target.as_object_mut().expect("an object");
        match value.as_str() {
            Some("(remove)") => drop(object.remove(name)),
            _ => drop(object.insert(name.clone(), value.clone())),
        }
    }
}

fn text_only(config: Value) -> Value {
    config["text_config"].clone()
}

#[test]
fn published_e2b() {
    let c = parse(&e2b()).expect("a config");
    assert_eq!((c.num_hidden_layers, c.first_shared()), (35, 15));
    assert_eq!((c.sliding.head_dim, c.full.head_dim), (256, 512));
    assert_eq!((c.sliding.kv_heads, c.full.kv_heads), (1, 1));
    assert_eq!(
        c.layer_types
            .iter()
            .filter(|k| **k == LayerKind::Full)
            .count(),
        7
    );
    assert_eq!(c.sliding.rope.rope_type, RopeType::Default);
    let partial = RopeType::Proportional {
        partial_rotary_factor: 0.25,
    };
    assert_eq!(
        (c.full.rope.rope_type, c.full.rope.theta, c.full.rope.factor),
        (partial, 1e6, 1.0)
    );
    assert_eq!(
        (c.hidden_size_per_layer_input, c.vocab_size_per_layer_input),
        (256, 262_144)
    );
    assert_eq!(
        (c.final_logit_softcapping, c.rms_norm_eps),
        (Some(30.0), 1e-6)
    );
    assert_eq!(
        (c.bos_token_id, c.pad_token_id, c.eos_token_ids),
        (Some(2), 0, vec![1, 106])
    );
    assert_eq!(c.dtype.as_deref(), Some("bfloat16"));
    assert!(c.use_double_wide_mlp && !c.attention_k_eq_v);
}

#[test]
fn published_12b_is_unified_and_without_per_layer_embeddings() {
    let mut config = with(json!({
        "model_type": "gemma4_unified_text", "attention_k_eq_v": true, "num_global_key_value_heads": 1,
        "num_key_value_heads": 8, "num_attention_heads": 16, "hidden_size": 3840, "intermediate_size": 15360,
        "num_hidden_layers": 48, "layer_types": kinds(&"SSSSSF".repeat(8)), "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": "(remove)", "vocab_size_per_layer_input": "(remove)", "sliding_window": "(remove)",
        "use_double_wide_mlp": false, "use_bidirectional_attention": "vision", "enable_moe_block": "(remove)"
    }));
    config["model_type"] = json!("gemma4_unified");
    let c = parse(&config).expect("a config");
    assert_eq!((c.sliding.kv_heads, c.full.kv_heads), (8, 1));
    assert_eq!((c.hidden_size_per_layer_input, c.sliding_window), (0, 1024));
    edit(
        &mut config["text_config"],
        json!({"hidden_size_per_layer_input": 256}),
    );
    assert_field(&config, "hidden_size_per_layer_input");
}

/// The text decoder of google/gemma-4-26B-A4B-it.
fn a4b() -> Value {
    with(json!({
        "attention_k_eq_v": true, "num_global_key_value_heads": 2, "num_key_value_heads": 8, "num_attention_heads": 16,
        "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30, "layer_types": kinds(&"SSSSSF".repeat(5)),
        "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "sliding_window": 1024,
        "use_double_wide_mlp": false, "use_bidirectional_attention": "vision", "expert_intermediate_size": "(remove)",
        "enable_moe_block": true, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704
    }))
}

#[test]
fn published_26b_has_experts() {
    let c = parse(&a4b()).expect("a config");
    let moe = MoeConfig {
        num_experts: 128,
        top_k_experts: 8,
        moe_intermediate_size: 704,
    };
    assert_eq!(c.moe, Some(moe));
    assert_eq!(
        (c.intermediate_size, c.full.kv_heads, c.sliding.kv_heads),
        (2112, 2, 8)
    );
}

/// transformers reads the other fields only where `enable_moe_block` is true.
#[test]
fn experts_follow_the_flag() {
    let a4b_with = |changes: Value| {
        let mut config = a4b();
        edit(&mut config["text_config"], changes);
        config
    };
    assert_eq!(parse(&e2b()).expect("a config").moe, None);
    let off = a4b_with(json!({"enable_moe_block": false}));
    assert_eq!(parse(&off).expect("a config").moe, None);
    for absent in [json!(null), json!("(remove)")] {
        let stray = a4b_with(json!({"enable_moe_block": absent}));
        assert_field(&stray, "enable_moe_block");
        let none = a4b_with(json!({"enable_moe_block": absent, "num_experts": null}));
        assert_eq!(parse(&none).expect("a config").moe, None);
    }
    for (field, value) in [
        ("num_experts", json!(null)),
        ("num_experts", json!(0)),
        ("num_experts", json!(1u64 << 40)),
        ("top_k_experts", json!("(remove)")),
        ("top_k_experts", json!(0)),
        ("top_k_experts", json!(129)),
        ("moe_intermediate_size", json!(null)),
        ("moe_intermediate_size", json!("704")),
        ("enable_moe_block", json!("yes")),
    ] {
        assert_field(&a4b_with(json!({field: value})), field);
    }
    let mut unified = a4b_with(json!({
        "model_type": "gemma4_unified_text", "hidden_size_per_layer_input": "(remove)"
    }));
    unified["model_type"] = json!("gemma4_unified");
    assert_unsupported(&unified, "text_config.enable_moe_block");
}

#[test]
fn text_only_and_torch_dtype() {
    let config = text_only(with(json!({"dtype": "(remove)", "torch_dtype": "float16"})));
    let c = parse(&config).expect("a config");
    assert_eq!(
        (c.model_type.as_str(), c.dtype.as_deref()),
        ("gemma4_text", Some("float16"))
    );
    assert_eq!(c.eos_token_ids, vec![1]);
    let nested = parse(&e2b()).expect("a config");
    assert_eq!((c.layer_types, c.full), (nested.layer_types, nested.full));
}

#[test]
fn per_layer_config_replaces_the_dropped_global_fields() {
    let overrides: serde_json::Map<String, Value> = (4..35)
        .step_by(5)
        .map(|l| (format!("{l:02}"), json!({"head_dim": 512})))
        .collect();
    let c = parse(&with(
        json!({"global_head_dim": "(remove)", "per_layer_config": overrides}),
    ))
    .expect("a config");
    assert_eq!(c, parse(&e2b()).expect("a config"));

    // With the overrides present the global field has no say, as in transformers.
    let with_kv: serde_json::Map<String, Value> = (4..35)
        .step_by(5)
        .map(|l| {
            (
                l.to_string(),
                json!({"head_dim": 128, "num_key_value_heads": 4, "sliding_window": 512}),
            )
        })
        .collect();
    let c = parse(&with(json!({"per_layer_config": with_kv}))).expect("a config");
    assert_eq!(
        (c.full.head_dim, c.full.kv_heads, c.sliding.head_dim),
        (128, 4, 256)
    );

    let c = parse(&with(json!({"per_layer_config": {}}))).expect("a config");
    assert_eq!(c.full.head_dim, 256);
    let c = parse(&with(json!({"per_layer_config": null}))).expect("a config");
    assert_eq!(c.full.head_dim, 512);
}

#[test]
fn per_layer_config_must_make_sense() {
    for overrides in [
        json!({"04": {"head_dim": 512}}),
        json!({"35": {"head_dim": 512}}),
        json!({"four": {"head_dim": 512}}),
        json!({"4": {"head_dim": 512}, "04": {"head_dim": 512}}),
        json!({"04": {"head_dim": 0}}),
        json!({"04": 512}),
        json!([1]),
    ] {
        assert_field(
            &with(json!({"per_layer_config": overrides})),
            "per_layer_config",
        );
    }
    let other = json!({"per_layer_config": {"04": {"intermediate_size": 64}}});
    assert_unsupported(
        &with(other),
        "text_config.per_layer_config.04.intermediate_size",
    );
}

#[test]
fn layer_types_default_and_last_layer() {
    let c = parse(&with(json!({"layer_types": "(remove)"}))).expect("a config");
    let full: Vec<usize> = (0..35)
        .filter(|l| c.layer_types[*l] == LayerKind::Full)
        .collect();
    assert_eq!(full, [5, 11, 17, 23, 29, 34]);
    let c = parse(&with(
        json!({"layer_types": kinds(&format!("SSSSF{}", "S".repeat(30)))}),
    ))
    .expect("a config");
    assert_eq!(c.layer_types[34], LayerKind::Full);
    assert_eq!(c.layer_types[33], LayerKind::Sliding);
}

#[test]
fn global_kv_heads_only_with_k_eq_v() {
    let c = parse(&with(json!({"num_global_key_value_heads": 4}))).expect("a config");
    assert_eq!(c.full.kv_heads, 1);
    let c = parse(&with(
        json!({"num_global_key_value_heads": 4, "attention_k_eq_v": true}),
    ))
    .expect("a config");
    assert_eq!((c.full.kv_heads, c.sliding.kv_heads), (4, 1));
    let c = parse(&with(
        json!({"num_global_key_value_heads": null, "attention_k_eq_v": true}),
    ))
    .expect("a config");
    assert_eq!(c.full.kv_heads, 1);
}

#[test]
fn absent_and_null_fields() {
    for absent in [json!("(remove)"), json!(null)] {
        let c = parse(&with(json!({
            "rope_parameters": absent, "final_logit_softcapping": absent, "sliding_window": absent, "head_dim": absent,
            "global_head_dim": absent, "num_kv_shared_layers": absent, "use_double_wide_mlp": absent,
            "vocab_size_per_layer_input": absent, "rms_norm_eps": absent, "pad_token_id": absent
        })))
        .expect("a config");
        let published = parse(&e2b()).expect("a config");
        assert_eq!((c.sliding, c.full), (published.sliding, published.full));
        assert_eq!((c.final_logit_softcapping, c.sliding_window), (None, 512));
        assert_eq!((c.num_kv_shared_layers, c.use_double_wide_mlp), (0, false));
    }
    let of = |value: Value| {
        parse(&with(json!({"hidden_size_per_layer_input": value}))).expect("a config")
    };
    assert_eq!(of(json!(0)).hidden_size_per_layer_input, 0);
    assert_eq!(of(json!(null)).hidden_size_per_layer_input, 0);
    assert_eq!(of(json!("(remove)")).hidden_size_per_layer_input, 256);
}

#[test]
fn rope_factor_and_types() {
    let rope = |full: Value| {
        with(json!({"rope_parameters": {
            "full_attention": full, "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}
        }}))
    };
    let c = parse(&rope(
        json!({"rope_type": "proportional", "rope_theta": 5e5, "factor": 8.0}),
    ))
    .expect("a config");
    let whole = RopeType::Proportional {
        partial_rotary_factor: 1.0,
    };
    assert_eq!(
        (c.full.rope.rope_type, c.full.rope.theta, c.full.rope.factor),
        (whole, 5e5, 8.0)
    );
    let c = parse(&rope(json!({"type": "default", "rope_theta": 5e5}))).expect("a config");
    assert_eq!(c.full.rope.rope_type, RopeType::Default);
    let field = "text_config.rope_parameters.full_attention.rope_type";
    assert_unsupported(
        &rope(json!({"rope_type": "yarn", "rope_theta": 5e5})),
        field,
    );
    assert_field(&rope(json!({"rope_type": "default"})), "rope_theta");
    assert_field(
        &rope(json!({"rope_type": "default", "rope_theta": -1.0})),
        "rope_theta",
    );
    let factor =
        json!({"rope_type": "proportional", "rope_theta": 5e5, "partial_rotary_factor": 1.5});
    assert_field(&rope(factor), "partial_rotary_factor");
    assert_field(&rope(json!(null)), "full_attention");
}

/// Fields that change the arithmetic are refused by name.
#[test]
fn unsupported_fields_are_named() {
    for (field, value) in [
        ("attention_bias", json!(true)),
        ("hidden_activation", json!("silu")),
        ("use_bidirectional_attention", json!("all")),
        ("quantization_config", json!({"bits": 4})),
        ("rope_scaling", json!({"factor": 8.0})),
        ("attn_logit_softcapping", json!(50.0)),
    ] {
        let changed = with(json!({field: value}));
        assert_unsupported(&changed, &format!("text_config.{field}"));
        assert_unsupported(&text_only(changed), field);
    }
    let mut top = e2b();
    top["quantization_config"] = json!({"quant_method": "awq"});
    assert_unsupported(&top, "quantization_config.quant_method");
    let mut other = e2b();
    other["model_type"] = json!("gemma3n");
    assert_unsupported(&other, "model_type");
    assert!(parse(&with(json!({"use_bidirectional_attention": "vision"}))).is_ok());
}

#[test]
fn implausible_values_are_named() {
    for (field, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-1)),
        ("hidden_size", json!(1.5)),
        ("hidden_size", json!("1536")),
        ("vocab_size", json!(u64::MAX)),
        ("intermediate_size", json!(1u64 << 40)),
        ("num_hidden_layers", json!(34)),
        ("num_hidden_layers", json!(1u64 << 33)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(255)),
        ("global_head_dim", json!(511)),
        ("sliding_window", json!(0)),
        ("num_kv_shared_layers", json!(35)),
        ("num_kv_shared_layers", json!(32)),
        ("rms_norm_eps", json!(0.0)),
        ("final_logit_softcapping", json!(-30.0)),
        ("max_position_embeddings", json!(0)),
        ("vocab_size_per_layer_input", json!(1000)),
        ("layer_types", json!(["full_attention"])),
        ("layer_types", json!(vec!["chunked_attention"; 35])),
        ("layer_types", json!("full_attention")),
        ("use_double_wide_mlp", json!("yes")),
        ("eos_token_id", json!("<eos>")),
        ("rope_parameters", json!(3)),
    ] {
        let mut changed = with(json!({field: value}));
        if field == "eos_token_id" {
            changed
                .as_object_mut()
                .expect("an object")
                .remove("eos_token_id");
        }
        let blamed = match field {
            "num_hidden_layers" if value == json!(34) => "layer_types",
            "num_key_value_heads" => "num_attention_heads",
            _ => field,
        };
        assert_field(&changed, blamed);
    }
    for field in [
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "num_key_value_heads",
        "intermediate_size",
    ] {
        let error = parse(&with(json!({field: "(remove)"}))).expect_err(field);
        assert!(
            matches!(&error, Error::MissingField { field: f, .. } if f.ends_with(field)),
            "{error}"
        );
    }
}

#[test]
fn broken_json_has_a_line() {
    let error = TextConfig::parse(
        Path::new("config.json"),
        b"{\n  \"model_type\": \"gemma4\",\n  oops\n}",
    )
    .expect_err("bad");
    assert!(matches!(error, Error::Json { line: 3, .. }), "{error}");
    for bytes in [&b"[]"[..], b"", b"{}", b"\xff\xfe", b"null"] {
        TextConfig::parse(Path::new("config.json"), bytes).expect_err("not a config");
    }
    let deep = "[".repeat(100_000);
    TextConfig::parse(Path::new("config.json"), deep.as_bytes()).expect_err("too deep");
}

#[track_caller]
fn assert_unsupported(config: &Value, field: &str) {
    match parse(config) {
        Err(Error::UnsupportedField {
            field: named,
            supported,
            ..
        }) => {
            assert_eq!(named, field);
            assert!(!supported.is_empty());
        }
        other => panic!("{field}: expected an unsupported field, got {other:?}"),
    }
}

/// The field is named as missing or invalid.
#[track_caller]
fn assert_field(config: &Value, field: &str) {
    match parse(config) {
        Err(
            Error::InvalidField { field: named, .. }
            | Error::MissingField { field: named, .. }
            | Error::UnsupportedField { field: named, .. },
        ) => assert!(named.contains(field), "expected {field}, got {named}"),
        other => panic!("{field}: expected an error, got {other:?}"),
    }
}
