//! Ids and texts under every setting of the tokenizer's files.

use gemma_coreml::checkpoint::{Error, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{data, ids, text, tokenizer_folder};

/// A folder with nano's tokenizer as a case changes it.
fn folder(case: &Value) -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    tokenizer_folder(dir.path(), |root| {
        for (name, value) in case["json"].as_object().into_iter().flatten() {
            root[name] = value.clone();
        }
    });
    let write = |name: &str, value: &Value| {
        std::fs::write(dir.path().join(name), value.to_string()).expect("written")
    };
    match case.get("config") {
        None => {}
        Some(Value::Null) => {
            std::fs::remove_file(dir.path().join("tokenizer_config.json")).expect("removed")
        }
        Some(config) => write("tokenizer_config.json", config),
    }
    for (name, value) in case["files"].as_object().into_iter().flatten() {
        write(name, value);
    }
    dir
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut out = String::new();
    for id in ids {
        out += &stream.push(*id).expect("a piece");
    }
    out + &stream.finish().expect("the rest")
}

/// Ids are transformers' ones, but for the first token: a model of this kind needs it, so it is put before a text where no
/// post-processor says otherwise, and never twice.
#[test]
fn tokenizer_files_are_read_as_in_transformers() {
    let cases = data("tokenizers/cases.json");
    for case in cases.as_array().expect("cases") {
        let name = text(&case["name"]);
        let dir = folder(case);
        let tokenizer = Tokenizer::open(dir.path()).expect(name);
        let none = ["add_bos_token false", "bos_token null"].contains(&name);
        let bos = match name {
            "special_tokens_map.json" => 63,
            _ => 2,
        };
        let texts = case["texts"].as_array().expect("texts").iter().enumerate();
        for (n, prompt) in texts {
            let plain = ids(&case["plain_ids"][n]);
            assert_eq!(
                tokenizer.encode(text(prompt), false).expect("ids"),
                plain,
                "{name}: {prompt}"
            );
            let mut expected = ids(&case["ids"][n]);
            match case["json"].get("post_processor").is_some() {
                true if expected.starts_with(&[2, 2])
                    && !name.contains("false")
                    && !name.contains("null") =>
                {
                    expected.remove(0);
                }
                false if !none && expected.first() != Some(&bos) => expected.insert(0, bos),
                _ => {}
            }
            assert_eq!(
                tokenizer.encode(text(prompt), true).expect("ids"),
                expected,
                "{name}: {prompt}"
            );
        }
        for decoded in case["decoded"].as_array().expect("ids and texts") {
            let ids = ids(&decoded["ids"]);
            let expected = text(&decoded["text"]);
            assert_eq!(
                tokenizer.decode(&ids).expect("a text"),
                expected,
                "{name}: {ids:?}"
            );
            assert_eq!(
                streamed(&tokenizer, &ids),
                expected,
                "streamed, {name}: {ids:?}"
            );
        }
    }
}

#[test]
fn dropout_of_a_training_is_off() {
    let case = json!({});
    let plain = Tokenizer::open(folder(&case).path()).expect("a tokenizer");
    let dir = TempDir::new().expect("a temporary directory");
    tokenizer_folder(dir.path(), |root| root["model"]["dropout"] = json!(0.5));
    let dropping = Tokenizer::open(dir.path()).expect("a tokenizer");
    let story = "Once there was a girl named Zoe. Zoe had a dog and a red bell. ".repeat(9);
    assert_eq!(
        dropping.encode(&story, true).expect("ids"),
        plain.encode(&story, true).expect("ids")
    );
}

/// Files that end the process inside the tokenizers library, and others that are no tokenizer of this kind.
#[test]
fn tokenizers_that_cannot_be_read() {
    let mut nested = json!({"type": "Fuse"});
    for _ in 0..20 {
        nested = json!({"type": "Sequence", "decoders": [nested]});
    }
    let tens =
        vec![json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}); 20];
    for (field, value, said) in [
        (
            "pre_tokenizer",
            json!({"type": "FixedLength", "length": 0}),
            "FixedLength",
        ),
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": ""}),
            "Precompiled",
        ),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": tens}),
            "normalizer",
        ),
        ("decoder", nested, "levels"),
        ("decoder", json!({"type": "ByteFallbac"}), "ByteFallbac"),
        ("decoder", json!({"tpe": "Fuse"}), "no type"),
        (
            "model",
            json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}),
            "Unigram",
        ),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": "aaaa"}),
            "continuing_subword_prefix",
        ),
    ] {
        let dir = TempDir::new().expect("a temporary directory");
        tokenizer_folder(dir.path(), |root| root[field] = value.clone());
        let error = Tokenizer::open(dir.path()).expect_err(said);
        assert!(
            matches!(error, Error::Tokenizer { .. }) && error.to_string().contains(said),
            "{error}"
        );
    }
    let dir = TempDir::new().expect("a temporary directory");
    let say = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join(name), bytes).expect("written");
        Tokenizer::open(dir.path())
            .expect_err("no tokenizer")
            .to_string()
    };
    assert!(say("tokenizer.model", b"x").contains("tokenizer.model"));
    let deep = format!("{{\"decoder\": {}", "[".repeat(100_000));
    assert!(say("tokenizer.json", deep.as_bytes()).contains("recursion"));
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n";
    assert!(say("tokenizer.json", pointer).contains("git lfs pull"));
    assert!(say("tokenizer.json", b"{\"model\": [}").contains("line 1"));
}

#[test]
fn added_tokens_must_have_their_ids() {
    let config = json!({"added_tokens_decoder": {"5000": {"content": "<new>", "special": true}}});
    let dir = folder(&json!({"config": config}));
    let error = Tokenizer::open(dir.path())
        .expect_err("another id")
        .to_string();
    assert!(
        error.contains("<new>") && error.contains("5000") && error.contains("992"),
        "{error}"
    );
}

/// A file stays readable in pieces: text comes as soon as no later id can change it.
#[test]
fn text_is_handed_out_as_soon_as_it_is_certain() {
    let dir = folder(&json!({}));
    let tokenizer = Tokenizer::open(dir.path()).expect("a tokenizer");
    let story = tokenizer
        .encode("Once there was a girl", false)
        .expect("ids");
    let mut stream = tokenizer.stream();
    let pieces: Vec<String> = story
        .iter()
        .map(|id| stream.push(*id).expect("a piece"))
        .collect();
    assert!(pieces.iter().all(|p| !p.is_empty()), "{pieces:?}");
}

fn decoders() -> Vec<Value> {
    let cases = data("tokenizers/cases.json");
    let mut found: Vec<Value> = cases
        .as_array()
        .expect("cases")
        .iter()
        .filter_map(|case| case["json"].get("decoder").cloned())
        .collect();
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let fuse = json!({"type": "Fuse"});
    let strip = |content: &str, start: usize, stop: usize| json!({"type": "Strip", "content": content, "start": start, "stop": stop});
    for decoders in [
        json!([replace, {"type": "ByteFallback"}, fuse, strip(" ", 9, 0)]),
        json!([{"type": "ByteFallback"}, fuse, strip("e", 2, 0), replace]),
        json!([{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}, fuse, strip(" ", 1, 0)]),
        json!([{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}, {"type": "ByteFallback"}]),
        json!([fuse, {"type": "ByteFallback"}]),
        json!([strip("▁", 1, 1), {"type": "ByteFallback"}, strip(" ", 1, 0)]),
        json!([{"type": "Replace", "pattern": {"String": "0x"}, "content": "x"}, {"type": "ByteFallback"}]),
        json!([{"type": "Replace", "pattern": {"Regex": "e|▁"}, "content": ""}, fuse]),
        json!([]),
    ] {
        found.push(json!({"type": "Sequence", "decoders": decoders}));
    }
    found
}

/// nano's tokenizer with byte-level tokens beside its others, so that `ByteLevel` has characters to put together.
fn with_decoder(decoder: &Value) -> (TempDir, Tokenizer) {
    let dir = TempDir::new().expect("a temporary directory");
    tokenizer_folder(dir.path(), |root| {
        root["decoder"] = decoder.clone();
        let vocab = root["model"]["vocab"]
            .as_object_mut()
            .expect("a vocabulary");
        // The letters that stand for the bytes of "é🙂", a space and a newline.
        let letters = ["Ã", "©", "ð", "Ł", "Ļ", "Ĥ", "Ġ", "Ċ", "Ãģ", "Ġa"];
        for (n, letter) in letters.iter().enumerate() {
            let old = format!("<unused{}>", 60 + n);
            let id = vocab.remove(&old).expect("an unused token");
            vocab.insert((*letter).to_string(), id);
        }
    });
    let tokenizer = Tokenizer::open(dir.path()).expect("a tokenizer");
    (dir, tokenizer)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the decoder and the ids, pieces joined are the text of all ids.
    #[test]
    fn streamed_text_is_the_text_of_all_ids(
        which in 0usize..20,
        ids in prop::collection::vec(prop_oneof![
            3 => 107u32..363,
            2 => prop::sample::select(vec![107 + 0xF0, 107 + 0x9F, 107 + 0x99, 107 + 0x82, 107 + 0xC3, 107 + 0xA9]),
            2 => 60u32..70,
            2 => prop::sample::select(vec![0u32, 1, 2, 50, 105, 106, 991, 992, 5000, u32::MAX]),
            4 => 363u32..992,
        ], 0..40),
    ) {
        thread_local! {
            static ALL: Vec<(TempDir, Tokenizer)> = decoders().iter().map(with_decoder).collect();
        }
        ALL.with(|all| {
            let (_, tokenizer) = &all[which % all.len()];
            let whole = tokenizer.decode(&ids).expect("a text");
            prop_assert_eq!(streamed(tokenizer, &ids), whole);
            Ok(())
        })?;
    }
}
