//! Names as transformers finds them, and tensors that nothing explains.

use crate::helpers::*;

#[test]
fn names_of_base_models_are_found() {
    let fingerprint = |dir: &Path| checked(dir).unwrap().fingerprint(&NoProgress).unwrap();
    for of in ["nano", "textonly-tiny"] {
        let expected = fingerprint(&fixture(of));
        let base = |name: &str| name.strip_prefix("model.").unwrap().to_string();
        let mixed = |name: &str| match name.contains("layers.1.") {
            true => base(name),
            false => name.to_string(),
        };
        for dir in [
            renamed(of, base),
            renamed(of, mixed),
            renamed(of, |n| format!("model.{n}")),
        ] {
            assert_eq!(fingerprint(dir.path()), expected, "{of}");
        }
    }
    let base = |name: &str| name.strip_prefix("model.").unwrap().to_string();
    assert_eq!(goes_on(renamed("nano", base).path()), NANO);
}

#[test]
fn other_prefixes_are_named_as_found_and_as_expected() {
    for (with, part) in [
        ("language_model.model.", "mlx"),
        ("model.language_model.language_model.", "config.json"),
        ("base_model.model.model.language_model.", "PEFT"),
        ("_orig_mod.model.language_model.", "torch.compile"),
        ("module.model.language_model.", "DataParallel"),
        (
            "language_model.language_model.language_model.",
            "config.json",
        ),
        ("transformer.", "config.json"),
    ] {
        let dir = renamed("nano", |name| name.replace("model.language_model.", with));
        let found = format!("{with}embed_tokens.weight");
        says(&refused(dir.path()), &[&found, EMBED, "hint: ", part]);
    }
    let dir = renamed("textonly-tiny", |name| format!("_orig_mod.{name}"));
    says(
        &refused(dir.path()),
        &["_orig_mod.model.embed_tokens.weight, expected model.embed_tokens.weight"],
    );
    // Wrappers inside a name, and other parts of a module.
    for (with, part) in [
        ("layers.0._orig_mod.mlp.up_proj.weight", "torch.compile"),
        (
            "_fsdp_wrapped_module.layers.0._fsdp_wrapped_module.mlp.up_proj.weight",
            "FSDP",
        ),
        ("layers.0.mlp.up_proj.qweight", "quantization"),
    ] {
        let dir = renamed("nano", |name| {
            name.replace("layers.0.mlp.up_proj.weight", with)
        });
        let found = format!("there is model.language_model.{with}, expected");
        says(
            &refused(dir.path()),
            &[
                "tensor layers.0.mlp.up_proj.weight is missing",
                &found,
                part,
            ],
        );
    }
    // One tensor in two spellings.
    let dir = edited(|t| {
        let mut again = find(t, "language_model.norm.weight").clone();
        again.name = "language_model.norm.weight".into();
        t.push(again);
    });
    let error = Checkpoint::open(dir.path()).expect_err("twice");
    assert!(
        matches!(&error, Error::DuplicateTensor { tensor, .. } if tensor == "norm.weight"),
        "{error}"
    );
}

#[test]
fn towers_and_computed_constants_are_passed_over_and_nothing_else() {
    let dir = edited(|t| {
        for name in [
            "model.vision_tower.a",
            "embed_vision.b",
            "model.vision_embedder.c",
            "model.audio_tower.d",
            "embed_audio.e",
            "model.language_model.rotary_emb.inv_freq",
            "model.language_model.rotary_emb.full_attention_original_inv_freq",
            "model.language_model.embed_tokens.embed_scale",
            "model.language_model.layers.9.self_attn.k_proj.weight",
        ] {
            t.retain(|t| t.name != name);
            t.push(Raw::new(name, "I64", &[], vec![0; 8]));
        }
    });
    let passed = *checked(dir.path()).unwrap().passed_over();
    assert_eq!((passed.vision, passed.audio, passed.other), (3, 2, 3));
    for name in [
        "multi_modal_projector.weight",
        "model.embed_visions.x",
        "model.language_model.vision_tower.x",
        "model.language_model.layers.0.self_attn.inv_freq",
        "model.language_model.layers.9.self_attn.k_proj.lora_A.weight",
        "model.language_model.layers.0.self_attn.q_proj.weight_scale",
    ] {
        let dir = edited(|t| t.push(Raw::new(name, "F32", &[], vec![0; 4])));
        says(&refused(dir.path()), &[name]);
    }
}
