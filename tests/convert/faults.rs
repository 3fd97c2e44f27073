//! Bad input: a clear error that names the thing, and no bundle.

use crate::helpers::*;
use gemma_coreml::bundle::Error as BundleError;
use gemma_coreml::checkpoint::Error as CheckpointError;
use gemma_coreml::convert::{Error, Fault, Options};
use gemma_coreml::recipe::Recipe;
use serde_json::json;
use std::fs;
use std::path::Path;

const MODEL: &str = "dense-tiny";
const WEIGHT: &str = "layers.1.mlp.up_proj.weight";

/// Converts a damaged model, expects an error of the input, and nothing at or beside the output.
fn refused(model: &Path, recipe: &Recipe) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let error = run_recipe(model, recipe, &out, &options()).unwrap_err();
    assert_eq!(error.fault(), Fault::Input, "{error}");
    assert!(!out.exists(), "{error}");
    let left = entries(dir.path());
    assert!(left.is_empty() || left == [".b.partial"], "{left:?}");
    error
}

fn int4() -> Recipe {
    Recipe::builtin("swa4-int4").unwrap()
}

fn refused_after(change: impl FnOnce(&mut Safetensors)) -> String {
    let dir = tempfile::tempdir().unwrap();
    refused(&damaged(MODEL, dir.path(), change), &int4()).to_string()
}

#[test]
fn truncated_shard() {
    for keep in [0, 7, 100, 5000] {
        let dir = tempfile::tempdir().unwrap();
        let model = copy_model(MODEL, dir.path());
        let path = model.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..keep]).unwrap();
        let error = refused(&model, &int4());
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let model = copy_model("e2b35-tiny", dir.path());
    let path = model.join("model-00002-of-00003.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(
        refused(&model, &int4())
            .to_string()
            .contains("model-00002-of-00003")
    );
    fs::remove_file(&path).unwrap();
    assert!(
        refused(&model, &int4())
            .to_string()
            .contains("model-00002-of-00003")
    );
}

#[test]
fn header_that_lies_about_offsets() {
    let text = refused_after(|f| {
        let key = f.key(WEIGHT);
        let end = f.data.len() as u64 + 64;
        f.header[&key]["data_offsets"][1] = json!(end);
    });
    assert!(text.contains("model.safetensors"), "{text}");
    let text = refused_after(|f| {
        let (a, b) = (f.key(WEIGHT), f.key("layers.2.mlp.up_proj.weight"));
        f.header[&a]["data_offsets"] = f.header[&b]["data_offsets"].clone();
    });
    assert!(text.contains("model.safetensors"), "{text}");
}

#[test]
fn missing_tensor() {
    let text = refused_after(|f| {
        let key = f.key(WEIGHT);
        let entry = f.header.remove(&key).unwrap();
        f.header.insert("model.vision_tower.stray".into(), entry);
    });
    assert!(text.contains(WEIGHT) && text.contains("missing"), "{text}");
}

#[test]
fn wrong_shape() {
    let text = refused_after(|f| {
        let key = f.key(WEIGHT);
        let shape = f.header[&key]["shape"].clone();
        let (o, i) = (shape[0].as_u64().unwrap(), shape[1].as_u64().unwrap());
        f.header[&key]["shape"] = json!([o * 2, i / 2]);
    });
    assert!(text.contains(WEIGHT) && text.contains("shape"), "{text}");
}

#[test]
fn nan_and_infinity_in_a_weight() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let text = refused_after(|f| f.set(WEIGHT, 77, value));
        assert!(text.contains(WEIGHT) && text.contains("77"), "{text}");
        // In a norm, and in the table that is also the head.
        let text = refused_after(|f| f.set("layers.0.input_layernorm.weight", 3, value));
        assert!(text.contains("layers.0.input_layernorm.weight"), "{text}");
        let text = refused_after(|f| f.set("embed_tokens.weight", 5, value));
        assert!(text.contains("embed_tokens.weight"), "{text}");
    }
}

#[test]
fn weight_beyond_fp16() {
    for suffix in [WEIGHT, "layers.0.input_layernorm.weight"] {
        let dir = tempfile::tempdir().unwrap();
        // A fixture in bf16, which can hold it.
        let model = damaged("e4b-tiny", dir.path(), |f| f.set(suffix, 1, 1e5));
        let text = refused(&model, &int4()).to_string();
        assert!(text.contains(suffix) && text.contains("fp16"), "{text}");
    }
}

#[test]
fn table_row_beyond_fp16_once_scaled() {
    // Within fp16 as it is, beyond it times sqrt(64).
    let text = refused_after(|f| f.set("embed_tokens.weight", 64 * 3 + 1, 2e4));
    assert!(
        text.contains("embed_tokens.weight") && text.contains("row 3"),
        "{text}"
    );
}

#[test]
fn unknown_dtype() {
    let text = refused_after(|f| {
        let key = f.key(WEIGHT);
        f.header[&key]["dtype"] = json!("F8_E4M3");
    });
    assert!(
        text.contains("F8_E4M3") || text.contains("model.safetensors"),
        "{text}"
    );
}

#[test]
fn unreadable_config() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_model(MODEL, dir.path());
    let path = model.join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    for bad in ["", "{", "[]", "\u{0}\u{1}"] {
        fs::write(&path, bad).unwrap();
        assert!(refused(&model, &int4()).to_string().contains("config.json"));
    }
    fs::write(
        &path,
        text.replace("\"num_hidden_layers\"", "\"num_hidden_layer\""),
    )
    .unwrap();
    assert!(
        refused(&model, &int4())
            .to_string()
            .contains("num_hidden_layers")
    );
    fs::remove_file(&path).unwrap();
    assert!(refused(&model, &int4()).to_string().contains("config.json"));
}

#[test]
fn tokenizer_files_are_required_before_work_begins() {
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let dir = tempfile::tempdir().unwrap();
        let model = copy_model(MODEL, dir.path());
        fs::remove_file(model.join(file)).unwrap();
        let error = refused(&model, &int4());
        let Error::Checkpoint(cause) = &error else {
            panic!("{error}")
        };
        assert!(matches!(**cause, CheckpointError::MissingFile { .. }));
        assert!(error.to_string().contains(file));
    }
}

#[test]
fn group_that_does_not_divide() {
    let mut recipe = int4();
    recipe.quantize.otherwise = None;
    recipe.quantize.default = "palette4-g48".parse().unwrap();
    let error = refused(&fixture(MODEL), &recipe);
    let Error::DoesNotFit { tensor, shape, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        (tensor.as_str(), shape.as_slice()),
        ("layers.0.self_attn.q_proj.weight", [64, 64].as_slice())
    );
    assert!(error.to_string().contains("hint"));

    recipe.quantize.otherwise = Some("palette4-tensor".parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let report = run_recipe(&fixture(MODEL), &recipe, &dir.path().join("b"), &options()).unwrap();
    let record = report.tensors.iter().find(|t| t.tensor == *tensor).unwrap();
    assert_eq!(record.scheme, "palette4-tensor");
    assert!(
        record.reason.starts_with("otherwise (palette4-g48"),
        "{}",
        record.reason
    );

    recipe.quantize.otherwise = Some("int4-block7".parse().unwrap());
    assert!(matches!(
        refused(&fixture(MODEL), &recipe),
        Error::DoesNotFit { .. }
    ));
}

#[test]
fn rule_that_matches_nothing() {
    let mut recipe = int4();
    let rule = gemma_coreml::recipe::Rule::new("lm_head", "fp16".parse().unwrap()).unwrap();
    recipe.quantize.rules.push(rule);
    let error = refused(&fixture(MODEL), &recipe);
    assert!(
        matches!(error, Error::Recipe(_)) && error.to_string().contains("lm_head"),
        "{error}"
    );
}

#[test]
fn context_beyond_the_model() {
    let dir = tempfile::tempdir().unwrap();
    for context in [0, 1025] {
        let options = Options {
            context: Some(context),
            ..options()
        };
        let error = run(
            &fixture(MODEL),
            "swa4-int4",
            &dir.path().join("b"),
            &options,
        )
        .unwrap_err();
        assert!(matches!(error, Error::Context { max: 1024, .. }), "{error}");
    }
    assert!(entries(dir.path()).is_empty());
}

#[test]
fn damage_found_late_leaves_nothing_that_looks_complete_and_does_not_stick() {
    let dir = tempfile::tempdir().unwrap();
    let bad = damaged("e4b-tiny", dir.path(), |f| {
        f.set("per_layer_model_projection.weight", 9, f32::NAN)
    });
    let (out, clean) = (dir.path().join("b"), dir.path().join("clean"));
    let error = run(&bad, "swa4-int4", &out, &options()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("per_layer_model_projection.weight"),
        "{error}"
    );
    assert!(!out.exists());
    let partial = dir.path().join(".b.partial");
    // Units of more values are begun before it, two at a time, and finished.
    let finished = entries(&partial.join("content"));
    assert!(
        finished.iter().any(|f| f.starts_with("chunk")),
        "finished parts are kept: {finished:?}"
    );
    assert!(gemma_coreml::bundle::Bundle::open(&partial.join("content")).is_err());
    // The sound checkpoint has another fingerprint: nothing of the bad one is used.
    let report = run(&fixture("e4b-tiny"), "swa4-int4", &out, &options()).unwrap();
    assert!(report.resumed.is_empty());
    run(&fixture("e4b-tiny"), "swa4-int4", &clean, &options()).unwrap();
    assert_same(&out, &clean);
    assert!(!partial.exists());
}

#[test]
fn existing_output_is_replaced_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    run(&fixture(MODEL), "swa4-int4", &out, &options()).unwrap();
    let plain = Options {
        context: None,
        ..options()
    };
    let error = run(&fixture(MODEL), "swa4-fp16", &out, &plain).unwrap_err();
    assert!(
        matches!(error, Error::Bundle(BundleError::Exists { .. })),
        "{error}"
    );
    let before = contents(&out);
    let force = Options {
        force: true,
        ..options()
    };
    run(&fixture(MODEL), "swa4-fp16", &out, &force).unwrap();
    assert_ne!(contents(&out), before);
    assert_eq!(entries(dir.path()), ["b"]);
}
