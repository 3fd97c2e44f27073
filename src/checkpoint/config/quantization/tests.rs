use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn parse(config: Value) -> Result<QuantizationConfig> {
    let root = json!({"quantization_config": config});
    let top = Fields::top(Path::new("config.json"), &root)?;
    QuantizationConfig::parse([&top, &top])
}

fn gemma(modules: Value, skipped: &[&str]) -> GemmaBits {
    let config = json!({"quant_method": "gemma", "module_quant_configs": modules, "modules_to_not_convert": skipped});
    match parse(config) {
        Ok(QuantizationConfig::Gemma(bits)) => bits,
        other => panic!("{other:?}"),
    }
}

fn bits(of: &GemmaBits, module: &str) -> u8 {
    of.found(module).unwrap_or(of.default_bits())
}

/// Patterns of the kind that E2B has: those of its first 15 layers are sorted before that of all.
#[test]
fn patterns_of_e2b() {
    let modules = json!({
        r"(embed_tokens|lm_head)$": {"num_bits": 2},
        r"embed_tokens_per_layer": {"num_bits": 4},
        r"language_model\.layers\.(\d|1[0-4])\.mlp\.(gate|up|down)_proj": {"num_bits": 4},
        r"language_model\.layers\.\d+\.mlp\.(gate|up|down)_proj": {"num_bits": 2},
        r"layers\.\d+\.per_layer_(input_gate|projection)": {"num_bits": 8},
    });
    let e2b = gemma(modules, &[]);
    let prefix = "model.language_model.";
    for layer in 0..35 {
        let of = |module: &str| bits(&e2b, &format!("{prefix}layers.{layer}.{module}"));
        for module in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            assert_eq!(of(&format!("self_attn.{module}")), 4);
        }
        for module in ["gate_proj", "up_proj", "down_proj"] {
            let expected = if layer < 15 { 4 } else { 2 };
            assert_eq!(of(&format!("mlp.{module}")), expected, "{layer}");
        }
        assert_eq!(
            (of("per_layer_input_gate"), of("per_layer_projection")),
            (8, 8)
        );
    }
    let of = |module: &str| bits(&e2b, &format!("{prefix}{module}"));
    assert_eq!((of("embed_tokens"), of("embed_tokens_per_layer")), (2, 4));
    assert_eq!(bits(&e2b, "lm_head"), 2);
    // With `model.` cut.
    assert_eq!(bits(&e2b, "language_model.layers.20.mlp.up_proj"), 2);
}

/// Patterns of the kind that E4B has, and what is not quantized.
#[test]
fn patterns_of_e4b() {
    let skipped = [
        "model.vision_tower.patch_embedder",
        "model.audio_tower.output_proj",
        "relative_k_proj",
        "model.embed_audio",
        "per_layer_model_projection",
    ];
    let e4b = gemma(
        json!({"embed_tokens": {"num_bits": 2}, "lm_head": {"num_bits": 2}, "per_layer_(input_gate|projection)$": {"num_bits": 8}}),
        &skipped,
    );
    for layer in [0, 23, 24, 41] {
        let of = |module: &str| {
            bits(
                &e4b,
                &format!("model.language_model.layers.{layer}.{module}"),
            )
        };
        assert_eq!((of("mlp.up_proj"), of("self_attn.o_proj")), (4, 4));
        assert_eq!(of("per_layer_projection"), 8);
    }
    assert_eq!(bits(&e4b, "model.language_model.embed_tokens_per_layer"), 2);
    for (module, skips) in [
        ("model.language_model.per_layer_model_projection", true),
        ("model.audio_tower.layers.3.relative_k_proj", true),
        ("model.vision_tower.patch_embedder", true),
        ("model.vision_tower.patch_embedder.input_proj", true),
        ("model.vision_tower.patch_embedder2", false),
        ("model.embed_audio.embedding_projection", true),
        ("language_model.model.embed_audio.x", false),
        ("model.language_model.layers.0.per_layer_projection", false),
    ] {
        assert_eq!(e4b.skips(module), skips, "{module}");
    }
}

/// As in `re.compile("|".join(...)).search`: the leftmost match, then the order of the file.
#[test]
fn the_first_place_then_the_first_pattern() {
    for (patterns, module, expected) in [
        (
            json!({"up_proj": {"num_bits": 2}, "mlp": {"num_bits": 8}}),
            "layers.0.mlp.up_proj",
            8,
        ),
        (
            json!({"mlp": {"num_bits": 8}, "mlp.up": {"num_bits": 2}}),
            "layers.0.mlp.up_proj",
            8,
        ),
        (
            json!({"mlp.up": {"num_bits": 2}, "mlp": {"num_bits": 8}}),
            "layers.0.mlp.up_proj",
            2,
        ),
        (
            json!({"": {"num_bits": 2}, "layers": {"num_bits": 8}}),
            "layers.0",
            2,
        ),
        (json!({"^mlp": {"num_bits": 2}}), "layers.0.mlp", 4),
        (
            json!({"mlp|l": {"num_bits": 2}, "layers": {"num_bits": 8}}),
            "layers.0.mlp",
            2,
        ),
        (
            json!({"a|mlp": {"num_bits": 2}, "layers": {"num_bits": 8}}),
            "layers.0.mlp",
            8,
        ),
        (json!({"(?<!s)\\.0": {"num_bits": 2}}), "layers.0", 4),
        (json!({"mlp": {}}), "layers.0.mlp", 4),
    ] {
        assert_eq!(
            bits(&gemma(patterns.clone(), &[]), module),
            expected,
            "{patterns}"
        );
    }
}

#[test]
fn groups_by_names_patterns_and_classes() {
    let group = |targets: Value, bits: u8| json!({"targets": targets, "weights": {"num_bits": bits, "strategy": "channel"}});
    let config = json!({
        "quant_method": "compressed-tensors",
        "ignore": ["re:.*vision.*", "lm_head"],
        "config_groups": {
            "a": group(json!(["Linear", "model.layers.0.mlp.up_proj"]), 2),
            "b": group(json!(["re:.*mlp.*", "Embedding"]), 4),
            "c": group(json!(["re:.*mlp\\.down.*", "Linear"]), 8),
        },
    });
    let QuantizationConfig::CompressedTensors(config) = parse(config).unwrap() else {
        panic!("another method");
    };
    let linear = ["Linear", "Module"];
    for (module, classes, expected) in [
        ("model.layers.0.mlp.up_proj", &linear[..], Some(2)),
        // Of two patterns the first in the order of their texts: '*' is before '\'.
        ("model.layers.0.mlp.gate_proj", &linear[..], Some(4)),
        ("model.layers.0.mlp.down_proj", &linear[..], Some(4)),
        // The last group with a target has it.
        ("model.layers.0.self_attn.q_proj", &linear[..], Some(8)),
        ("model.embed_tokens", &["Embedding"][..], Some(4)),
        ("model.vision_tower.x", &linear[..], None),
        ("lm_head", &linear[..], None),
    ] {
        let found = match config.targeted(module, classes) {
            Targeted::In(group) => Some(group.nbits),
            _ => None,
        };
        assert_eq!(found, expected, "{module}");
    }
    assert_eq!(config.targeted("model.norm", &["RMSNorm"]), Targeted::No);
    assert_eq!(config.targeted("lm_head", &linear), Targeted::Ignored);
}
