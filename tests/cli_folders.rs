//! What the program says of folders that are no checkpoint, or not only one.

mod program;

use std::path::Path;

use program::*;
use tempfile::TempDir;

const POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d4d\nsize 10246621918\n";

/// Runs without a hub.
fn without_hub(args: &[&str], home: &Path) -> (i32, String) {
    let output = program()
        .args(args)
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("HF_HOME", home)
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_HUB_CACHE")
        .output()
        .unwrap();
    assert_eq!(stdout(&output), "", "{args:?}");
    (output.status.code().unwrap(), stderr(&output))
}

#[test]
fn an_adapter_beside_the_weights_is_a_warning_and_stdout_stays_json() {
    let dir = TempDir::new().unwrap();
    copy_tree(&fixture("e4b-tiny"), dir.path());
    let config = r#"{"base_model_name_or_path": "google/gemma-4-E4B-it"}"#;
    std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    std::fs::write(dir.path().join("adapter_model.safetensors"), "x").unwrap();
    for args in [
        &["plan", path(dir.path()), "--format", "json"],
        &["inspect", path(dir.path()), "--format", "json"],
    ] {
        let output = run(args);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap();
        let text = stderr(&output);
        let warnings: Vec<&str> = text
            .lines()
            .filter(|l| l.starts_with("warning: "))
            .collect();
        assert_eq!(warnings.len(), 1, "{text}");
        for part in [
            "adapter_model.safetensors",
            "google/gemma-4-E4B-it",
            "not applied",
        ] {
            assert!(warnings[0].contains(part), "{text}");
        }
    }
}

#[test]
fn an_adapter_beside_the_weights_that_is_applied_is_not_said_to_be_left_out() {
    let dir = TempDir::new().unwrap();
    copy_tree(&fixture("textonly-tiny"), dir.path());
    let lora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters/lora");
    copy_tree(&lora, dir.path());
    let here = path(dir.path());
    let without = stderr(&run(&["plan", here]));
    assert!(without.contains("not applied"), "{without}");
    let with = run(&["plan", here, "--adapter", here]);
    assert!(with.status.success(), "{}", stderr(&with));
    let with = stderr(&with);
    assert!(
        with.contains("rank 4") && !with.contains("not applied"),
        "{with}"
    );
}

#[test]
fn an_adapter_may_be_a_hub_id() {
    let home = TempDir::new().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = home.path().join("hub/models--me--my-lora");
    let lora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters/lora");
    copy_tree(&lora, &repo.join("snapshots").join(commit));
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), commit).unwrap();
    let model = fixture("textonly-tiny");
    let plan = |adapter: &str| {
        let output = program()
            .args(["plan", path(&model), "--adapter", adapter])
            .env("HF_HOME", home.path())
            .env("HF_HUB_OFFLINE", "1")
            .env_remove("HF_HUB_CACHE")
            .output()
            .unwrap();
        (output.status.code().unwrap(), stderr(&output))
    };
    let (code, text) = plan("me/my-lora");
    assert!(code == 0 && text.contains("LoRA of PEFT, rank 4"), "{text}");
    let (code, text) = plan("me/other-lora");
    assert_eq!(code, INVALID, "{text}");
    assert!(
        text.contains("me/other-lora: no such adapter here"),
        "{text}"
    );
}

#[test]
fn a_folder_that_is_not_there_is_said_first() {
    let home = TempDir::new().unwrap();
    for model in ["models/gemma4-finetuned", "google/gemma-4-E2B-it"] {
        let (code, text) = without_hub(&["plan", model], home.path());
        assert_eq!(code, INVALID, "{text}");
        let first = format!(
            "error: {model}: no such folder here, so it was taken for a hub id\n  caused by: "
        );
        assert!(
            text.starts_with(&first) && text.contains("\nhint: "),
            "{text}"
        );
    }
    for model in [
        "./x",
        "../x",
        "/x",
        "~/x",
        "models/x/",
        "a/b/c",
        "./x@main",
        "x\\y",
    ] {
        let (code, text) = without_hub(&["plan", model], home.path());
        assert_eq!(code, INVALID, "{text}");
        assert!(
            text.starts_with(&format!("error: {model}: no such folder\nhint: ")),
            "{text}"
        );
    }
    let text = bad(&["plan", "gemma4"], INVALID);
    assert!(
        text.starts_with("error: gemma4: no such folder here, and no hub id\n"),
        "{text}"
    );
    let gguf = home.path().join("m.gguf");
    std::fs::write(&gguf, b"GGUF\x03\0\0\0").unwrap();
    assert!(bad(&["plan", path(&gguf)], INVALID).contains("a GGUF file"));
    let config = fixture("nano").join("config.json");
    assert!(hinted(&["plan", path(&config)], INVALID).contains("a file, expected the folder"));
}

#[cfg(unix)]
#[test]
fn a_link_to_a_folder_that_is_gone() {
    let dir = TempDir::new().unwrap();
    let link = dir.path().join("model");
    std::os::unix::fs::symlink("gone", &link).unwrap();
    assert!(
        hinted(&["plan", path(&link)], INVALID).contains("a link to a folder that is not there")
    );
}

#[test]
fn inspect_says_what_a_file_or_a_folder_is() {
    let dir = TempDir::new().unwrap();
    for name in ["model.safetensors", "tokenizer.json", "pytorch_model.bin"] {
        let file = dir.path().join(name);
        std::fs::write(&file, POINTER).unwrap();
        let text = hinted(&["inspect", path(&file)], INVALID);
        assert!(
            text.contains("pointer of Git LFS") && text.contains("git lfs pull"),
            "{text}"
        );
    }
    let trainer = dir.path().join("out");
    copy_tree(&fixture("e4b-tiny"), &trainer.join("checkpoint-500"));
    let text = hinted(&["inspect", path(&trainer)], INVALID);
    assert!(
        text.contains("newest checkpoint is checkpoint-500"),
        "{text}"
    );
    good(&["inspect", path(&trainer.join("checkpoint-500"))]);
}
