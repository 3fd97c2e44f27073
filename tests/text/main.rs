//! Tokenizer, chat templates and thoughts against transformers: the stored cases of `tests/data`, each beside the script that made it.

#[path = "../common/fixtures.rs"]
mod fixtures;

mod decode;
mod templates;
mod thoughts;
mod tokenizers;

use std::path::Path;

use serde_json::Value;

/// A JSON file of `tests/data`.
fn data(name: &str) -> Value {
    json(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data")
            .join(name),
    )
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a readable file")).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().expect("a list of ids");
    list.iter()
        .map(|v| v.as_u64().expect("an id") as u32)
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// Copies the files of nano's tokenizer to a folder, `tokenizer.json` changed.
fn tokenizer_folder(dir: &Path, change: impl FnOnce(&mut Value)) {
    let nano = fixtures::fixture("nano");
    let mut root = json(&nano.join("tokenizer.json"));
    change(&mut root);
    std::fs::write(dir.join("tokenizer.json"), root.to_string()).expect("written");
    for name in [
        "tokenizer_config.json",
        "config.json",
        "generation_config.json",
    ] {
        std::fs::copy(nano.join(name), dir.join(name)).expect("copied");
    }
}

/// Renames tokens of `tokenizer.json` and makes them special, as `data/channels/make.py` does.
fn rename_tokens(root: &mut Value, names: &Value) {
    let names = names.as_object().expect("names and ids");
    for (new, id) in names {
        let vocab = root["model"]["vocab"]
            .as_object_mut()
            .expect("a vocabulary");
        let old = vocab.iter().find(|(_, i)| *i == id).map(|(t, _)| t.clone());
        let old = old.expect("a token of that id");
        vocab.remove(&old);
        vocab.insert(new.clone(), id.clone());
        let merges = root["model"]["merges"].as_array_mut().expect("merges");
        merges.retain(|merge| {
            let pair: Vec<&str> = match merge {
                Value::String(pair) => pair.split(' ').collect(),
                pair => pair.as_array().expect("a pair").iter().map(text).collect(),
            };
            !pair.contains(&old.as_str()) && pair.concat() != old
        });
        root["added_tokens"]
            .as_array_mut()
            .expect("tokens")
            .push(serde_json::json!({
                "id": id, "content": new, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            }));
    }
    let added = root["added_tokens"].as_array_mut().expect("tokens");
    added.sort_by_key(|t| t["id"].as_u64());
}
