//! A bundle's layout from its files, and bundles whose packages disagree.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gemma_coreml::bundle::Bundle;
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::convert::{self, Options};
use gemma_coreml::progress::NoProgress;

use crate::cases::*;
use crate::fixtures::fixture;

/// Copies a bundle.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), &target).unwrap()),
        }
    }
}

/// Without our keys in its config, as a published bundle is, the packages are found by their names.
#[test]
fn the_layout_is_found_from_the_files() {
    let fixture = fixture("e2b35-tiny");
    for recipe in RECIPES {
        let bundle = made(&fixture, recipe);
        let dir = tempfile::tempdir().unwrap();
        copy(bundle.dir(), dir.path());
        let path = dir.path().join("model_config.json");
        let text = std::fs::read(&path).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let keys = config.as_object_mut().unwrap();
        for key in ["layout", "chunks", "prefill_chunks", "chunk_ends"] {
            assert!(keys.remove(key).is_some(), "{key}");
        }
        std::fs::write(&path, config.to_string()).unwrap();
        let found = Bundle::open(dir.path()).unwrap_or_else(|e| panic!("{recipe}: {}", chain(&e)));
        let names = |b: &Bundle| b.packages().map(|c| c.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&bundle), "{recipe}");
        if recipe.starts_with("prefill") {
            let found = std::sync::Arc::new(found);
            let [mut one, mut other] = [&found, &bundle].map(decoder);
            let prompt: Vec<u32> = (2..40).collect();
            let [one, other] = [&mut one, &mut other].map(|d| d.prefill(&prompt).unwrap());
            assert_eq!(one.1.token_id, other.1.token_id);
        }
    }
}

/// One package of a bundle in place of another's of that name.
fn mixed(base: &Bundle, other: &Bundle, package: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    copy(base.dir(), dir.path());
    let package = format!("{package}.mlpackage");
    std::fs::remove_dir_all(dir.path().join(&package)).unwrap();
    copy(&other.dir().join(&package), &dir.path().join(&package));
    match Bundle::open(dir.path()) {
        Err(error) => chain(&error),
        Ok(_) => panic!("opened with the other's {package}"),
    }
}

#[test]
fn packages_that_disagree_are_refused_with_both_sides() {
    let fixture = fixture("e2b35-tiny");
    let base = made(&fixture, "swa4-fp16");
    let longer = bundle_of(&fixture, &unquantized("swa4-fp16"), "longer", 2 * CONTEXT).unwrap();
    for i in 1..=4 {
        let chunk = format!("chunk{i}");
        let error = mixed(&base, &longer, &chunk);
        for part in [chunk.as_str(), "208", "416"] {
            assert!(error.contains(part), "{error}");
        }
    }
    // A verify function of another width, and none at all.
    let (three, five) = (made(&fixture, "verify-3"), made(&fixture, "verify-5"));
    let error = mixed(&three, &five, "chunk3");
    for part in ["chunk3", "3 tokens", "5"] {
        assert!(error.contains(part), "{error}");
    }
    let error = mixed(&three, &base, "chunk2");
    assert!(
        error.contains("chunk2") && error.contains("chunk1"),
        "{error}"
    );
    // Prefill of another width.
    let (one, other) = (made(&fixture, "prefill-48"), made(&fixture, "prefill-40"));
    let error = mixed(&one, &other, "prefill_chunk4");
    for part in ["prefill_chunk4", "48", "40"] {
        assert!(error.contains(part), "{error}");
    }
    // Padded heads in one chunk only.
    let error = mixed(&base, &made(&fixture, "padded-kv"), "chunk2");
    assert!(error.contains("chunk2") && error.contains("32"), "{error}");
    // RoPE tables that are too short for the context.
    let dir = tempfile::tempdir().unwrap();
    copy(longer.dir(), dir.path());
    let path = dir.path().join("model_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        text.replace("\"context_length\": 416", "\"context_length\": 5000"),
    )
    .unwrap();
    let error = chain(&Bundle::open(dir.path()).unwrap_err());
    assert!(error.contains("4096") && error.contains("5000"), "{error}");
}

/// A bundle of every recipe rewritten for another context has the bytes of a fresh one.
#[test]
fn another_context_is_a_fresh_conversion() {
    const OTHER: usize = 224;
    let fixture = fixture("e2b35-tiny");
    let checkpoint = Checkpoint::open(&fixture).unwrap();
    for name in RECIPES {
        let recipe = unquantized(name);
        let dir = tempfile::tempdir().unwrap();
        let rewritten = dir.path().join("bundle");
        copy(made(&fixture, name).dir(), &rewritten);
        let options = Options {
            context: Some(OTHER),
            ..Options::default()
        };
        let report = convert::convert(&checkpoint, &recipe, &rewritten, &options, &NoProgress)
            .unwrap_or_else(|e| panic!("{name}: {}", chain(&e)));
        assert!(!report.kept.is_empty(), "{name}");
        let fresh = bundle_of(&fixture, &recipe, &format!("{name}-other"), OTHER).unwrap();
        let (ours, theirs) = (files(&rewritten), files(fresh.dir()));
        let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs), "{name}");
        for (file, bytes) in &ours {
            assert!(*bytes == theirs[file], "{name}: {}", file.display());
        }
    }
}

/// Every file below a directory, by its relative path.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(folder) = left.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => left.push(path),
                false => {
                    let name = path.strip_prefix(dir).unwrap().to_path_buf();
                    found.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}
