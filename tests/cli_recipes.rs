//! The program over bundles of other layouts: what `inspect` shows of states and functions, and that `decode` uses prefill.

#[path = "program/mod.rs"]
mod program;

use program::{fixture, good, json};
use std::path::{Path, PathBuf};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A bundle of a fixture by a recipe, for a context of 96.
fn converted(dir: &Path, model: &str, recipe: &str) -> PathBuf {
    let out = dir.join(recipe);
    let model = fixture(model);
    let model = path(&model).to_string();
    good(&[
        "convert",
        &model,
        "-r",
        recipe,
        "-o",
        path(&out),
        "--context",
        "96",
    ]);
    out
}

#[test]
fn inspect_shows_states_functions_ops_and_schemes() {
    let dir = tempfile::tempdir().unwrap();
    let stateful = converted(dir.path(), "e2b35-tiny", "stateful");
    let text = good(&["inspect", path(&stateful.join("chunk_1.mlpackage"))]);
    for part in [
        "function main",
        "kv_cache_sliding",
        "tensor<fp16, [14, 1, 16, 16]>",
        "current_pos",
        "tensor<int32, [1]>",
        "slice_update",
        "uint4 lut",
    ] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    let state = text
        .lines()
        .find(|line| line.contains("kv_cache_full"))
        .unwrap();
    assert!(state.starts_with("state"), "{state}");

    let verify = converted(dir.path(), "e2b35-tiny", "verify-3");
    let package = verify.join("chunk4.mlpackage");
    let about = json(&["inspect", path(&package), "--format", "json"]);
    let about = &about["packages"][0];
    assert_eq!(about["default_function"], "decode_q1");
    let functions = about["functions"].as_object().unwrap();
    assert_eq!(
        functions.keys().collect::<Vec<_>>(),
        ["decode_q1", "verify_qK"]
    );
    assert!(
        about["ops"]["conv"].as_u64().unwrap() > 40,
        "{}",
        about["ops"]
    );
    // Both functions use each weight; it counts once.
    let schemes = about["schemes"].as_object().unwrap();
    let bytes: u64 = schemes.values().map(|s| s["bytes"].as_u64().unwrap()).sum();
    let file = about["weight_bytes"].as_u64().unwrap();
    assert!(bytes < file && bytes * 2 > file, "{bytes} of {file}");
    let mil = good(&["inspect", "--mil", path(&package)]);
    assert!(
        mil.contains("verify_qK") && mil.contains("token_ids"),
        "{mil}"
    );
}

#[test]
fn decode_feeds_a_prompt_at_once_and_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let plain = converted(dir.path(), "nano", "swa4-int4");
    let prefill = converted(dir.path(), "nano", "prefill-32");
    let text = |bundle: &Path| {
        let prompt = "Once there was a girl named Zoe.";
        json(&[
            "decode",
            path(bundle),
            "-p",
            prompt,
            "-n",
            "30",
            "--format",
            "json",
        ])
    };
    let (one, other) = (text(&plain), text(&prefill));
    assert_eq!(one["tokens"], other["tokens"]);
    assert_eq!(one["tokens"].as_array().unwrap().len(), 30);
}

#[test]
fn recipes_are_listed_with_where_they_stand() {
    let listed = json(&["recipes", "list", "--format", "json"]);
    let listed = listed.as_array().unwrap();
    assert_eq!(listed[0]["name"], "swa4-int4");
    for (name, status) in [
        ("stateful-mask", "specimen"),
        ("wfa-2048", "shelved"),
        ("swa3", "variant"),
        ("monolithic", "experiment"),
    ] {
        let found = listed.iter().find(|r| r["name"] == name).unwrap();
        assert!(
            found["status"].as_str().unwrap().starts_with(status),
            "{found}"
        );
    }
    assert!(good(&["recipes", "show", "flash-64"]).contains("\"flash-64\""));
    assert!(good(&["recipes", "check", "verify-5"]).contains("valid"));
}

#[test]
fn inspect_names_the_forms_of_palettes() {
    let dir = tempfile::tempdir().unwrap();
    for (recipe, scheme, storage) in [
        ("v2", "uint6 lut", "constexpr_lut_to_dense(tensor<uint6, ["),
        (
            "sparse50",
            "uint4 lut sparse",
            "constexpr_sparse_to_dense(tensor<uint1, [",
        ),
        (
            "lut8",
            "uint4 lut int8",
            "constexpr_lut_to_dense(tensor<uint4, [",
        ),
    ] {
        let bundle = converted(dir.path(), "nano", recipe);
        let package = bundle.join("chunk2.mlpackage");
        let about = json(&["inspect", path(&package), "--format", "json"]);
        let schemes = about["packages"][0]["schemes"].as_object().unwrap();
        let names: Vec<&str> = schemes.keys().map(String::as_str).collect();
        assert_eq!(names, ["fp16", scheme], "{recipe}");
        let list = json(&["inspect", path(&package), "--weights", "--format", "json"]);
        let weights = list["packages"][0]["functions"]["main"].as_array().unwrap();
        let of_form = |w: &&serde_json::Value| w["storage"].as_str().unwrap().starts_with(storage);
        let found: Vec<_> = weights.iter().filter(of_form).collect();
        assert_eq!(
            found.len() as u64,
            schemes[scheme]["weights"].as_u64().unwrap()
        );
        let bytes: u64 = found.iter().map(|w| w["bytes"].as_u64().unwrap()).sum();
        assert_eq!(
            bytes,
            schemes[scheme]["bytes"].as_u64().unwrap(),
            "{recipe}"
        );
        // Nothing that only feeds a weight is listed by itself.
        assert!(
            weights
                .iter()
                .all(|w| w["shape"].as_array().unwrap().len() <= 4)
        );
    }
}
