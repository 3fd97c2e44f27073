//! Adapters that lie in a checkpoint or beside one.

use crate::helpers::*;

pub fn lora() -> Vec<Raw> {
    let name = |x| {
        format!("base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{x}.weight")
    };
    let of =
        |x, shape: [usize; 2]| Raw::new(&name(x), "F32", &shape, vec![1; 4 * shape[0] * shape[1]]);
    vec![of("A", [8, 160]), of("B", [128, 8])]
}

pub const ADAPTER_CONFIG: &str =
    r#"{"base_model_name_or_path": "google/gemma-4-E2B-it", "peft_type": "LORA", "r": 8}"#;

#[test]
fn adapters_inside_the_weights_are_refused_by_their_first_tensor() {
    let dir = edited(|t| t.extend(lora()));
    says(
        &refused(dir.path()),
        &[
            "q_proj.lora_A.weight and 1 more are not part",
            "hint: this looks like an adapter that is not merged",
        ],
    );
    for name in [
        "q_proj.lora_a",
        "q_proj.lora_magnitude_vector.default.weight",
        "q_proj.lora_embedding_A",
    ] {
        let full = format!("model.language_model.layers.0.self_attn.{name}");
        let dir = edited(|t| t.push(Raw::new(&full, "BF16", &[1], vec![0, 0])));
        says(&refused(dir.path()), &[&full, "adapter that is not merged"]);
    }
    // A model saved with its adapter still wrapped around a projection.
    let base = "model.language_model.layers.0.self_attn.q_proj.base_layer.weight";
    let dir = renamed("nano", |n| {
        n.replace(
            "layers.0.self_attn.q_proj.weight",
            "layers.0.self_attn.q_proj.base_layer.weight",
        )
    });
    says(
        &refused(dir.path()),
        &[
            "layers.0.self_attn.q_proj.weight is missing",
            base,
            "adapter that is not merged",
        ],
    );
}

#[test]
fn an_adapter_beside_the_weights_is_a_notice() {
    for (file, config, base) in [
        (
            "adapter_model.safetensors",
            Some(ADAPTER_CONFIG),
            Some("google/gemma-4-E2B-it"),
        ),
        ("adapter_model.bin", Some("{"), None),
        ("adapters.safetensors", None, None),
        (
            "adapter_config.json",
            Some(ADAPTER_CONFIG),
            Some("google/gemma-4-E2B-it"),
        ),
    ] {
        let dir = with_config(|_| ());
        write(dir.path(), file, serialize(&lora()));
        if let Some(config) = config {
            write(dir.path(), "adapter_config.json", config);
        }
        let checkpoint = checked(dir.path()).unwrap();
        let expected = Notice::AdapterNotApplied {
            path: dir.path().join(file),
            base: base.map(str::to_string),
        };
        assert_eq!(checkpoint.notices(), std::slice::from_ref(&expected));
        says(
            &expected.to_string(),
            &[file, "not applied", base.unwrap_or("")],
        );
    }
}
