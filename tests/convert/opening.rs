//! Bundles that are not as they should be do not open.

use crate::helpers::*;
use gemma_coreml::bundle::{Bundle, Error};
use gemma_coreml::convert::Options;
use std::fs;
use std::path::Path;

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in contents(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn bundle(dir: &Path, name: &str, model: &str, context: usize) -> std::path::PathBuf {
    let out = dir.join(name);
    let options = Options {
        context: Some(context),
        ..options()
    };
    run(&fixture(model), "swa4-int4", &out, &options).unwrap();
    out
}

#[test]
fn every_missing_or_cut_file_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let good = bundle(dir.path(), "good", "e4b-tiny", 64);
    for (name, bytes) in contents(&good) {
        let optional = [
            "hf_model/generation_config.json",
            "hf_model/chat_template.jinja",
        ]
        .contains(&name.as_str());
        let file = good.join(&name);
        fs::remove_file(&file).unwrap();
        match Bundle::open(&good) {
            Ok(_) => assert!(optional, "{name} is not missed"),
            Err(e) => assert!(
                e.to_string().contains(name.rsplit('/').next().unwrap())
                    || e.to_string().contains("mlpackage"),
                "{name}: {e}"
            ),
        }
        if !name.starts_with("hf_model") {
            fs::write(&file, &bytes[..bytes.len() - 2]).unwrap();
            assert!(
                Bundle::open(&good).is_err(),
                "{name} cut short is not noticed"
            );
        }
        fs::write(&file, &bytes).unwrap();
    }
    Bundle::open(&good).unwrap();
}

#[test]
fn chunks_of_another_conversion_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let good = bundle(dir.path(), "good", "e4b-tiny", 64);
    let longer = bundle(dir.path(), "longer", "e4b-tiny", 96);
    let other = bundle(dir.path(), "other", "nano", 64);
    for (from, what) in [(&longer, "causal_mask_full"), (&other, "hidden_states")] {
        for chunk in ["chunk1", "chunk2", "chunk3", "chunk4"] {
            let mixed = tempfile::tempdir().unwrap();
            copy(&good, mixed.path());
            let package = format!("{chunk}.mlpackage");
            fs::remove_dir_all(mixed.path().join(&package)).unwrap();
            copy(&from.join(&package), &mixed.path().join(&package));
            let error = Bundle::open(mixed.path()).unwrap_err();
            let Error::Feature {
                chunk: named,
                feature,
                ..
            } = &error
            else {
                panic!("{error}")
            };
            assert_eq!((named.as_str(), feature.as_str()), (chunk, what), "{error}");
        }
    }
    // Chunks in another order: chunk 2 has no per_layer_raw.
    let mixed = tempfile::tempdir().unwrap();
    copy(&good, mixed.path());
    fs::rename(
        mixed.path().join("chunk1.mlpackage"),
        mixed.path().join("x"),
    )
    .unwrap();
    fs::rename(
        mixed.path().join("chunk2.mlpackage"),
        mixed.path().join("chunk1.mlpackage"),
    )
    .unwrap();
    fs::rename(
        mixed.path().join("x"),
        mixed.path().join("chunk2.mlpackage"),
    )
    .unwrap();
    let error = Bundle::open(mixed.path()).unwrap_err();
    assert!(error.to_string().contains("per_layer_raw"), "{error}");
}

/// A checkpoint with one number of its config changed, converted.
fn other_geometry(dir: &Path, key: &str, value: usize) -> std::path::PathBuf {
    let model = copy_model("e4b-tiny", &dir.join(key));
    let path = model.join("config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let text = match json.get_mut("text_config") {
        Some(text) => text,
        None => &mut json,
    };
    text[key] = value.into();
    fs::write(&path, json.to_string()).unwrap();
    let out = dir.join(key).join("bundle");
    run(&model, "swa4-int4", &out, &options()).unwrap();
    out
}

#[test]
fn chunks_of_another_window_or_shorter_rope_tables_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let good = bundle(dir.path(), "good", "e4b-tiny", 64);
    let window = Bundle::open(&good).unwrap().config().sliding_window;
    let wider = other_geometry(dir.path(), "sliding_window", window + 8);
    for chunk in ["chunk1", "chunk2", "chunk3", "chunk4"] {
        let mixed = tempfile::tempdir().unwrap();
        copy(&good, mixed.path());
        let package = format!("{chunk}.mlpackage");
        fs::remove_dir_all(mixed.path().join(&package)).unwrap();
        copy(&wider.join(&package), &mixed.path().join(&package));
        let text = Bundle::open(mixed.path()).unwrap_err().to_string();
        assert!(text.contains(&package), "{text}");
        for side in [window, window + 8] {
            assert!(text.contains(&format!("1, {side}]")), "{text}");
        }
    }
    // A table of fewer rows than the context, its header and size in agreement.
    let file = good.join("cos_full.npy");
    let whole = fs::read(&file).unwrap();
    let dim = Bundle::open(&good).unwrap().config().global_head_dim;
    let mut short = Vec::new();
    gemma_coreml::bundle::npy::write_header(&mut short, 63, dim).unwrap();
    short.resize(short.len() + 63 * dim * 2, 0);
    fs::write(&file, short).unwrap();
    let text = Bundle::open(&good).unwrap_err().to_string();
    assert!(
        text.contains("cos_full.npy") && text.contains("63") && text.contains("64"),
        "{text}"
    );
    fs::write(&file, whole).unwrap();
    Bundle::open(&good).unwrap();
}

#[test]
fn config_values_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let good = bundle(dir.path(), "good", "e4b-tiny", 64);
    let path = good.join("model_config.json");
    let text = fs::read_to_string(&path).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cases: [(&str, serde_json::Value, &str); 16] = [
        ("architecture", "llama".into(), "architecture"),
        ("hidden_size", 0.into(), "hidden_size"),
        ("hidden_size", 97.into(), "embed_tokens_q8.bin"),
        ("context_length", 65.into(), "causal_mask_full"),
        ("context_length", 5000.into(), "cos_sliding.npy"),
        ("vocab_size", 255.into(), "embed_tokens_q8.bin"),
        ("per_layer_dim", 25.into(), "embed_tokens_per_layer_q8.bin"),
        ("sliding_window", 17.into(), "causal_mask_sliding"),
        ("num_key_value_heads", 1.into(), "K_sliding_in"),
        ("head_dim", 32.into(), "cos_sliding.npy"),
        (
            "layer_types",
            serde_json::json!(["full_attention"]),
            "layer_types",
        ),
        (
            "chunks",
            serde_json::json!(["chunk1", "../chunk2"]),
            "chunks",
        ),
        (
            "chunks",
            serde_json::json!(["chunk1", "chunk2", "chunk3"]),
            "chunk_ends",
        ),
        ("chunk_ends", serde_json::json!([4, 4, 9, 12]), "chunk_ends"),
        (
            "prefill_chunks",
            serde_json::json!(["chunk4"]),
            "distinct names",
        ),
        ("num_kv_shared_layers", 12.into(), "num_kv_shared_layers"),
    ];
    for (key, bad, named) in cases {
        let mut changed = value.clone();
        changed[key] = bad.clone();
        fs::write(&path, serde_json::to_vec(&changed).unwrap()).unwrap();
        let error = Bundle::open(&good).unwrap_err();
        assert!(error.to_string().contains(named), "{key} {bad}: {error}");
        let mut missing = value.clone();
        missing.as_object_mut().unwrap().remove(key);
        fs::write(&path, serde_json::to_vec(&missing).unwrap()).unwrap();
        // Our own keys have defaults; the published runtime's do not.
        let ours = ["chunks", "prefill_chunks", "chunk_ends"].contains(&key);
        assert_eq!(Bundle::open(&good).is_ok(), ours, "{key}");
    }
    // The keys of the published runtime alone are enough.
    let mut published = value.clone();
    for key in [
        "num_hidden_layers",
        "num_global_key_value_heads",
        "vocab_size_per_layer_input",
        "layout",
        "chunks",
        "prefill_chunks",
        "chunk_ends",
        "table_format",
        "full_rope",
    ] {
        published.as_object_mut().unwrap().remove(key).unwrap();
    }
    fs::write(&path, serde_json::to_vec(&published).unwrap()).unwrap();
    Bundle::open(&good).unwrap();
}
