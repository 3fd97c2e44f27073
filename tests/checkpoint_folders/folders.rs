//! Folders that are no snapshot, and files that are something else.

use crate::adapters::{ADAPTER_CONFIG, lora};
use crate::helpers::*;
use crate::weights::sharded;

#[test]
fn a_folder_that_is_no_snapshot_is_said_to_be_what_it_is() {
    let only = TempDir::new().unwrap();
    write(only.path(), "adapter_model.safetensors", serialize(&lora()));
    write(only.path(), "adapter_config.json", ADAPTER_CONFIG);
    let hint = format!(
        "convert google/gemma-4-E2B-it --adapter {}",
        only.path().display()
    );
    says(
        &refused(only.path()),
        &["an adapter for google/gemma-4-E2B-it", "merge", &hint],
    );
    // Trainers save the config of the model beside the adapter.
    std::fs::copy(
        fixture("nano").join("config.json"),
        only.path().join("config.json"),
    )
    .unwrap();
    says(
        &refused(only.path()),
        &["an adapter for google/gemma-4-E2B-it", &hint],
    );

    let trainer = TempDir::new().unwrap();
    for step in ["checkpoint-90", "checkpoint-500", "checkpoint-last"] {
        write(trainer.path(), &format!("{step}/config.json"), "{}");
    }
    write(trainer.path(), "checkpoint-1000/optimizer.pt", "");
    let newest = trainer.path().join("checkpoint-500");
    says(
        &refused(trainer.path()),
        &["trainer", &format!("give {}", newest.display())],
    );

    let cache = TempDir::new().unwrap();
    let commit = "9dbdf8a839e4e9e0eb56ed80cc8886661d3817cf";
    let repo = "models--google--gemma-4-E2B-it";
    for at in [
        "0000000000000000000000000000000000000000",
        commit,
        "ffffffffffffffffffffffffffffffffffffffff",
    ] {
        write(
            cache.path(),
            &format!("{repo}/snapshots/{at}/config.json"),
            "{}",
        );
    }
    write(cache.path(), &format!("{repo}/refs/main"), commit);
    let repo = cache.path().join(repo);
    let snapshot = repo.join("snapshots").join(commit);
    says(
        &refused(&repo),
        &["hub's cache", &format!("give {}", snapshot.display())],
    );
    says(
        &refused(&repo.join("snapshots")),
        &["no model of its own, but in 0000", "give "],
    );
    says(
        &refused(cache.path()),
        &["hub's cache", "google/gemma-4-E2B-it"],
    );

    let parent = TempDir::new().unwrap();
    write(parent.path(), "merged/config.json", "{}");
    says(
        &refused(parent.path()),
        &[
            "in merged",
            &parent.path().join("merged").display().to_string(),
        ],
    );

    for (file, part) in [
        (
            "gemma-4-Q4_K_M.gguf",
            "GGUF files, not a checkpoint: gemma-4-Q4_K_M.gguf",
        ),
        ("model_config.json", "a bundle"),
        ("chunk1.mlpackage/Manifest.json", "Core ML packages"),
        ("Manifest.json", "Core ML packages"),
        ("notes.txt", "no config.json"),
    ] {
        let dir = TempDir::new().unwrap();
        write(dir.path(), file, "{}");
        says(&refused(dir.path()), &[part, "hint: "]);
    }
}

#[test]
fn files_that_are_something_else_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d4d\nsize 10246621918\n";
    for (content, parts) in [
        (pointer, &["pointer of Git LFS", "git lfs pull"][..]),
        ("<!DOCTYPE html>\n<html></html>", &["web page", "hint: "]),
        ("", &["empty", "hint: "]),
    ] {
        for file in [
            SINGLE,
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "chat_template.jinja",
        ] {
            let dir = with_config(|_| ());
            write(dir.path(), file, content);
            let text = refused(dir.path());
            says(&text, parts);
            says(&text, &[file]);
        }
        for file in [INDEX, "model-00002-of-00003.safetensors"] {
            let dir = sharded();
            write(dir.path(), file, content);
            let text = refused(dir.path());
            says(&text, parts);
            says(&text, &[file]);
        }
    }
    says(
        &refused(with(SINGLE, pointer).path()),
        &["10246621918 bytes", "sha256:4d4d"],
    );
    says(
        &refused(with(SINGLE, "GGUF\x03\0\0\0").path()),
        &["a GGUF file"],
    );
    says(&refused(with(SINGLE, "PK\x03\x04\0\0").path()), &["zip"]);
    says(
        &refused(with(SINGLE, "Entry not found").path()),
        &["\"Entry not found\""],
    );
    let error = gemma_coreml::checkpoint::Tokenizer::open(with("tokenizer.json", pointer).path())
        .err()
        .unwrap();
    says(&error.to_string(), &["git lfs pull"]);
}

fn with(file: &str, content: &str) -> TempDir {
    let dir = with_config(|_| ());
    write(dir.path(), file, content);
    dir
}

#[test]
fn directories_and_dead_links_in_place_of_files() {
    for file in [SINGLE, "config.json", "tokenizer.json"] {
        let dir = with_config(|_| ());
        let path = dir.path().join(file);
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir(&path).unwrap();
        says(
            &refused(dir.path()),
            &[file, "a directory, where a file is expected"],
        );
        #[cfg(unix)]
        {
            std::fs::remove_dir(&path).unwrap();
            std::os::unix::fs::symlink("../../blobs/4d4d", &path).unwrap();
            says(
                &refused(dir.path()),
                &[file, "a link to ../../blobs/4d4d, which is not there"],
            );
        }
    }
    #[cfg(unix)]
    {
        let dir = sharded();
        let path = dir.path().join("model-00003-of-00003.safetensors");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("../blobs/00", &path).unwrap();
        says(
            &refused(dir.path()),
            &["model-00003-of-00003.safetensors: a link to ../blobs/00"],
        );
    }
}
