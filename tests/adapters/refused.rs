//! What is refused, by name.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::fixtures::fixture;
use crate::helpers::{Made, Q, stored, try_adapted};

/// The message for an adapter of `textonly-tiny`.
fn message(path: &Path) -> String {
    match try_adapted("textonly-tiny", &[path]) {
        Ok(_) => panic!("{path:?} was accepted"),
        Err(e) => e.to_string(),
    }
}

fn refused(made: &Made) -> String {
    let dir = tempfile::tempdir().unwrap();
    message(&made.write(dir.path()))
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text:?}");
    }
}

fn good() -> Made {
    Made::peft().lora(Q, [32, 32], 2)
}

#[test]
fn settings_that_no_merge_gives_are_refused_by_name() {
    let cases: Vec<(&str, Value, &str)> = vec![
        ("peft_type", json!("LOHA"), "LORA is"),
        ("peft_type", json!("PROMPT_TUNING"), "LORA is"),
        ("task_type", json!("SEQ_CLS"), "CAUSAL_LM"),
        ("bias", json!("all"), "no biases"),
        ("bias", json!("lora_only"), "no biases"),
        ("lora_bias", json!(true), "biases of B"),
        ("layer_replication", json!([[0, 4], [2, 5]]), "other layers"),
        ("megatron_config", json!({"x": 1}), "Megatron"),
        ("alora_invocation_tokens", json!([1, 2]), "activated LoRA"),
        (
            "target_parameters",
            json!(["experts.gate_up_proj"]),
            "experts",
        ),
        ("arrow_config", json!({"top_k": 3}), "Arrow"),
        (
            "corda_config",
            json!({"corda_method": "ipm"}),
            "changed base",
        ),
        (
            "lora_ga_config",
            json!({"direction": "ArBr"}),
            "changed base",
        ),
        ("kasa_config", json!({"beta": 0.1}), "KaSA"),
        ("velora_config", json!({"num_groups": 1}), "plain LoRA"),
        ("monteclora_config", json!({"num_samples": 1}), "plain LoRA"),
        ("some_new_config", json!({"x": 1}), "unknown variant"),
        ("use_qalora", json!(true), "QA-LoRA"),
        ("use_bdlora", json!({"nblocks": 2}), "block-diagonal"),
        ("use_something", json!(true), "unknown variant"),
        (
            "init_lora_weights",
            json!("pissa"),
            "path_initial_model_for_weight_conversion",
        ),
        ("init_lora_weights", json!("pissa_niter_16"), "changed base"),
        ("init_lora_weights", json!("olora"), "changed base"),
        ("init_lora_weights", json!("corda"), "changed base"),
        ("init_lora_weights", json!("lora_ga"), "changed base"),
        (
            "init_lora_weights",
            json!("of next year"),
            "unknown initialisation",
        ),
    ];
    for (field, value, why) in cases {
        let text = refused(&good().set(field, value.clone()));
        let value = value.to_string();
        let value = value.trim_matches('"');
        assert_says(
            &text,
            &["adapter_config.json", &format!("`{field}`"), value, why],
        );
    }
}

#[test]
fn settings_that_change_no_merge_are_accepted() {
    for (field, value) in [
        ("task_type", Value::Null),
        ("bias", Value::Null),
        ("loftq_config", json!({})),
        ("layer_replication", Value::Null),
        ("megatron_core", json!("megatron.core")),
        (
            "auto_mapping",
            json!({"base_model_class": "Gemma4ForConditionalGeneration", "unsloth_fixed": true}),
        ),
        ("init_lora_weights", json!(false)),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!("eva")),
        ("eva_config", json!({"rho": 2.0})),
        ("init_lora_weights", json!("orthogonal")),
        ("init_lora_weights", json!("mica")),
        ("target_modules", json!("all-linear")),
        ("target_modules", json!(["q_proj"])),
        ("target_modules", json!(["model.layers.0.self_attn.q_proj"])),
        (
            "target_modules",
            json!(["model.language_model.layers.0.self_attn.q_proj"]),
        ),
        (
            "target_modules",
            json!(r".*language_model\..*\.(q_proj|v_proj)"),
        ),
        (
            "target_modules",
            json!(
                r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj)))"
            ),
        ),
        ("target_modules", json!(r"^(?!.*vision).*q_proj$")),
        ("layers_to_transform", json!(0)),
        ("layers_to_transform", json!([3, 0])),
        ("exclude_modules", json!(["v_proj"])),
        ("modules_to_save", json!([])),
        ("trainable_token_indices", Value::Null),
        ("use_bdlora", Value::Null),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = good().set(field, value.clone()).write(dir.path());
        if let Err(e) = try_adapted("textonly-tiny", &[&path]) {
            panic!("{field} {value}: {e}");
        }
    }
}

#[test]
fn settings_of_another_training_are_refused() {
    for (field, value, parts) in [
        (
            "r",
            json!(3),
            &["shape", "[3, 32]", "rank 3", "[2, 32]"][..],
        ),
        ("r", json!(0), &["`r`", "1 to"]),
        ("r", json!(1_000_000), &["`r`", "65536"]),
        ("lora_alpha", json!("8"), &["`lora_alpha`", "a number"]),
        ("rank_pattern", json!({"q_proj": 4}), &["rank 4"]),
        (
            "rank_pattern",
            json!({"(": 4}),
            &["`rank_pattern`", "regular expression"],
        ),
        (
            "alpha_pattern",
            json!({"q_proj": "x"}),
            &["alpha_pattern.q_proj", "a number"],
        ),
        (
            "target_modules",
            json!(["v_proj"]),
            &["`target_modules`", "q_proj"],
        ),
        (
            "target_modules",
            json!(r".*\.v_proj"),
            &["`target_modules`", "q_proj"],
        ),
        (
            "target_modules",
            json!(["proj"]),
            &["`target_modules`", "q_proj"],
        ),
        (
            "exclude_modules",
            json!(["q_proj"]),
            &["`exclude_modules`", "q_proj"],
        ),
        (
            "layers_to_transform",
            json!([1]),
            &["`layers_to_transform`", "layers.0"],
        ),
        ("use_dora", json!(true), &["magnitude", "none"]),
        (
            "modules_to_save",
            json!(["embed_tokens"]),
            &["`modules_to_save`", "embed_tokens"],
        ),
    ] {
        let text = refused(&good().set(field, value));
        assert_says(&text, parts);
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let a = format!("{Q}.lora_A.weight");
    let b = format!("{Q}.lora_B.weight");
    let m = format!("{Q}.lora_magnitude_vector");
    let one = |_| 1.0;
    let without = |name: &str| {
        let mut made = good();
        made.tensors.remove(name);
        made
    };
    let cases: Vec<(Made, Vec<&str>)> = vec![
        (without(&b), vec![&a, "A and B", "A alone"]),
        (without(&a), vec![&b, "A and B", "B alone"]),
        (
            good().tensor(&a, &[2, 31], one),
            vec![
                &a,
                "[2, 32]",
                "[2, 31]",
                "layers.0.self_attn.q_proj.weight of shape [32, 32]",
            ],
        ),
        (
            good().tensor(&b, &[2, 32], one),
            vec![&b, "[32, 2]", "[2, 32]"],
        ),
        (good().tensor(&a, &[0], one), vec![&a, "shape", "[0]"]),
        (good().tensor(&m, &[32], one), vec![&m, "no magnitude"]),
        (
            good().set("use_dora", true).tensor(&m, &[31], one),
            vec![&m, "[32]", "[31]"],
        ),
        (
            good().set("use_dora", true).tensor(&m, &[32], |i| i as f32),
            vec![&m, "other than 0", "0 at element 0"],
        ),
        (
            good().tensor(&a, &[2, 32], |i| if i == 5 { f32::NAN } else { 0.0 }),
            vec![&a, "NaN at element 5"],
        ),
        (
            good().tensor(&b, &[32, 2], |_| f32::INFINITY),
            vec![&b, "inf at element 0"],
        ),
        (
            good().tensor(&format!("{Q}.lora_B.bias"), &[32], one),
            vec!["lora_B.bias", "lora_bias"],
        ),
        (
            good().tensor(&format!("{Q}.lora_diag.default"), &[2], one),
            vec!["lora_diag", "a part of LoRA"],
        ),
        (
            good().tensor(&format!("{Q}.lora_A.other.weight"), &[2, 32], one),
            vec!["lora_A", "one tensor for each part"],
        ),
        (
            good().tensor(&format!("{Q}.bias"), &[32], one),
            vec!["no tensor layers.0.self_attn.q_proj.bias"],
        ),
        (
            good().lora(
                "base_model.model.model.layers.99.self_attn.q_proj",
                [32, 32],
                2,
            ),
            vec!["layers.99", "no tensor"],
        ),
        (
            good().lora(
                "base_model.model.model.layers.0.input_layernorm",
                [32, 32],
                2,
            ),
            vec!["input_layernorm", "no matrix"],
        ),
        (
            good().lora("base_model.model.score", [2, 32], 2),
            vec!["score", "no tensor"],
        ),
        (
            good().lora("base_model.model.model.layers.0.experts", [2, 32], 2),
            vec!["experts", "not supported"],
        ),
        (
            good().lora(
                "base_model.model.model.layers.0.experts.switch_glu.gate_proj",
                [2, 32],
                2,
            ),
            vec!["experts", "not supported"],
        ),
        (
            good().tensor(
                "base_model.model.model.layers.0.mlp.up_proj.weight",
                &[16, 32],
                one,
            ),
            vec!["up_proj", "[32, 32]", "[16, 32]"],
        ),
        (
            good().tensor(
                "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
                &[1, 32],
                one,
            ),
            vec!["trainable_tokens_delta", "`trainable_token_indices`"],
        ),
    ];
    for (made, parts) in cases {
        assert_says(&refused(&made), &parts);
    }
    let rows = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
    for (ids, shape, parts) in [
        (json!([224]), [1, 32], &["ids below 224", "got 224"][..]),
        (json!([3, 3]), [2, 32], &["each once", "twice"]),
        (json!([3, 4]), [1, 32], &["[2, 32]", "[1, 32]"]),
        (
            json!([-1]),
            [1, 32],
            &["`trainable_token_indices`", "whole numbers"],
        ),
    ] {
        let made = good()
            .set("trainable_token_indices", ids)
            .tensor(rows, &shape, one);
        assert_says(&refused(&made), parts);
    }
}

#[test]
fn a_table_that_leaves_its_head_is_refused() {
    let table = "base_model.model.model.embed_tokens.weight";
    let head = "base_model.model.lm_head.weight";
    let value = |i: usize| (i % 7) as f32;
    let saved = |modules: &[&str]| good().set("modules_to_save", modules.to_vec());
    let alone = saved(&["embed_tokens"]).tensor(table, &[224, 32], value);
    assert_says(
        &refused(&alone),
        &[table, "no longer equal", "ensure_weight_tying"],
    );
    let alone = saved(&["lm_head"]).tensor(head, &[224, 32], value);
    assert_says(&refused(&alone), &[head, "no longer equal"]);
    let both = saved(&["embed_tokens", "lm_head"]).tensor(table, &[224, 32], value);
    assert_says(
        &refused(&both.clone().tensor(head, &[224, 32], |i| i as f32)),
        &["no longer equal"],
    );
    let dir = tempfile::tempdir().unwrap();
    let equal = both.tensor(head, &[224, 32], value).write(dir.path());
    try_adapted("textonly-tiny", &[&equal]).unwrap();
    // A vocabulary that grew.
    let grown = good()
        .tensor(table, &[232, 32], value)
        .tensor(head, &[232, 32], value);
    assert_says(
        &refused(&grown),
        &["embed_tokens.weight", "[224, 32]", "[232, 32]"],
    );
}

#[test]
fn an_adapter_of_nothing_in_the_model_is_refused() {
    let tower = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.linear";
    let text = refused(&Made::peft().lora(tower, [8, 8], 2));
    assert_says(&text, &["no tensor changes the model", "2 of the towers"]);
    let shared = "base_model.model.model.layers.9.self_attn.v_proj";
    assert_says(
        &refused(&Made::peft().lora(shared, [8, 8], 2)),
        &["2 of unused K and V"],
    );
    assert_says(
        &refused(&Made::peft()),
        &["no tensor changes the model", "0 in all"],
    );
    // Of another size of the model.
    assert_says(&message(&stored("multimodal")), &["q_proj", "[2, 96]"]);
}

#[test]
fn merged_values_beyond_the_format_name_tensor_and_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let b = format!("{Q}.lora_B.weight");
    let large = |value: f32| good().tensor(&b, &[32, 2], move |i| if i == 6 { value } else { 0.0 });
    let path = large(1e5).write(&dir.path().join("fp16"));
    let checkpoint = try_adapted("textonly-tiny", &[&path]).unwrap();
    let view = checkpoint
        .tensor(crate::helpers::Q_WEIGHT, &[32, 32])
        .unwrap();
    let (mut floats, mut halves) = (vec![0f32; 1024], vec![half::f16::ZERO; 1024]);
    view.read_f32(0..1024, &mut floats).unwrap();
    let text = view.read_f16(0..1024, &mut halves).unwrap_err().to_string();
    assert_says(
        &text,
        &[
            "layers.0.self_attn.q_proj.weight",
            "element 96",
            "fp16",
            "fp16/adapter_model",
        ],
    );
    let path = large(3e38).write(&dir.path().join("f32"));
    let checkpoint = try_adapted("textonly-tiny", &[&path]).unwrap();
    let view = checkpoint
        .tensor(crate::helpers::Q_WEIGHT, &[32, 32])
        .unwrap();
    let text = view.read_f32(0..1024, &mut floats).unwrap_err().to_string();
    assert_says(
        &text,
        &[
            "layers.0.self_attn.q_proj.weight",
            "finite",
            "f32/adapter_model",
        ],
    );
}

#[test]
fn places_without_an_adapter_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert_says(&message(&at("absent")), &["absent", "not there", "hub"]);
    fs::create_dir(at("empty")).unwrap();
    assert_says(&message(&at("empty")), &["empty", "adapter_config.json"]);
    assert_says(
        &message(&fixture("textonly-tiny")),
        &["a checkpoint", "without --adapter"],
    );
    // Settings without weights, weights without settings.
    good().write(&at("whole"));
    let (config, weights) = ("adapter_config.json", "adapter_model.safetensors");
    for (folder, file, says) in [
        ("settings", config, "without adapter_model.safetensors"),
        ("weights", weights, "without adapter_config.json"),
    ] {
        fs::create_dir(at(folder)).unwrap();
        fs::copy(at("whole").join(file), at(folder).join(file)).unwrap();
        assert_says(&message(&at(folder)), &[folder, says]);
    }
    assert_says(
        &message(&at("weights").join(weights)),
        &["without adapter_config.json"],
    );
    fs::write(at("settings").join("adapter_model.bin"), "").unwrap();
    assert_says(
        &message(&at("settings")),
        &["adapter_model.bin", "PyTorch", "save_pretrained"],
    );
    assert_says(
        &message(&at("settings").join("adapter_model.bin")),
        &["adapter_model.bin", "safetensors"],
    );
    // Several.
    good().write(&at("run/checkpoint-500"));
    good().write(&at("run/checkpoint-1000"));
    assert_says(
        &message(&at("run")),
        &["2 adapters", "checkpoint-500", "checkpoint-1000"],
    );
    // What Git LFS leaves.
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n";
    fs::write(at("whole").join(weights), pointer).unwrap();
    assert_says(
        &message(&at("whole")),
        &[weights, "Git LFS", "git lfs pull"],
    );
    fs::write(at("whole").join(config), pointer).unwrap();
    assert_says(&message(&at("whole")), &[config, "Git LFS"]);
}

#[test]
fn damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = good().write(dir.path());
    let weights = path.join("adapter_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    for cut in [0, 4, 9, 100, bytes.len() - 1] {
        fs::write(&weights, &bytes[..cut]).unwrap();
        assert_says(&message(&path), &["adapter_model.safetensors"]);
    }
    fs::write(&weights, &bytes).unwrap();
    for text in [
        "",
        "[]",
        "{",
        "{\"r\": 8}",
        "{\"peft_type\": 3}",
        "{\"lora_parameters\": 3}",
    ] {
        fs::write(path.join("adapter_config.json"), text).unwrap();
        assert_says(&message(&path), &["adapter_config.json"]);
    }
}

#[test]
fn settings_of_mlx_lm_are_checked() {
    let q = "language_model.model.layers.0.self_attn.q_proj";
    let made = |config: Value| {
        let mut made = Made::peft()
            .tensor(&format!("{q}.lora_a"), &[32, 2], |_| 0.5)
            .tensor(&format!("{q}.lora_b"), &[2, 32], |_| 0.5);
        made.config = config;
        made
    };
    let says = |made: &Made, parts: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let path = made.write_as(dir.path(), "adapters.safetensors");
        assert_says(&message(&path), parts);
    };
    let parameters = json!({"rank": 2, "scale": 20.0, "dropout": 0.0});
    for (config, parts) in [
        (
            json!({"fine_tune_type": "qlora"}),
            &["`fine_tune_type`", "lora, dora and full"][..],
        ),
        (json!({"fine_tune_type": "lora"}), &["`lora_parameters`"]),
        (
            json!({"fine_tune_type": "lora", "lora_parameters": {"rank": 2}}),
            &["scale"],
        ),
        (
            json!({"lora_parameters": {"rank": 3, "scale": 1}}),
            &["lora_a", "[32, 3]", "rank 3"],
        ),
        (
            json!({"lora_parameters": {"rank": 2, "scale": 1, "keys": ["self_attn.v_proj"]}}),
            &["lora_parameters.keys", "q_proj"],
        ),
        (
            json!({"fine_tune_type": "dora", "lora_parameters": parameters}),
            &["magnitude"],
        ),
        (
            json!({"fine_tune_type": "full", "num_layers": 4}),
            &["lora_a", "whole tensors"],
        ),
    ] {
        says(&made(config), parts);
    }
    let good = json!({"fine_tune_type": "lora", "lora_parameters": parameters});
    let extra = made(good.clone()).tensor("language_model.model.norm.weight", &[32], |_| 1.0);
    says(&extra, &["norm.weight", "a part of LoRA"]);
    let experts = "language_model.model.layers.0.experts.switch_glu.gate_proj";
    let experts = made(good)
        .tensor(&format!("{experts}.lora_a"), &[4, 2, 32], |_| 1.0)
        .tensor(&format!("{experts}.lora_b"), &[4, 32, 2], |_| 1.0);
    says(&experts, &["experts", "not supported"]);
}
