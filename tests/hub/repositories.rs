//! Which files of a repository are fetched, and what is said of one that is something else.

use std::path::PathBuf;

use gemma_coreml::checkpoint::{Error, HubOptions, resolve_adapter_with, resolve_with};
use gemma_coreml::progress::NoProgress;

use super::mock::{Hub, REPO, WEIGHTS, hub_error};

/// A hub whose repository has lost some files and got others.
fn with_files(fixture: &str, gone: &[&str], new: &[(&str, &str)]) -> Hub {
    let hub = Hub::start(fixture);
    hub.with(|s| {
        s.files.retain(|name, _| {
            !gone.contains(&name.as_str())
                && !["pytorch_model.bin", "consolidated.safetensors"].contains(&name.as_str())
        });
        for (name, text) in new {
            s.files.insert(name.to_string(), text.as_bytes().to_vec());
        }
    });
    hub
}

#[test]
fn repositories_that_are_no_checkpoints() {
    let bare = ["config.json", WEIGHTS];
    for (gone, new, named) in [
        (&bare[..1], &[][..], "config.json"),
        (
            &bare[1..],
            &[],
            "no model.safetensors and no model.safetensors.index.json",
        ),
        (
            &bare,
            &[("gemma-Q4_K_M.gguf", "x"), ("gemma-Q8_0.gguf", "x")],
            "gemma-Q4_K_M.gguf",
        ),
        (&bare[1..], &[("gemma.gguf", "x")], "gemma.gguf"),
        (
            &bare[1..],
            &[("pytorch_model.bin", "x")],
            "pytorch_model.bin",
        ),
        (
            &bare[1..],
            &[("consolidated.safetensors", "x")],
            "consolidated.safetensors",
        ),
        (&bare, &[("it/config.json", "{}")], "it/config.json"),
    ] {
        let hub = with_files("e4b-tiny", gone, new);
        let (message, hint) = hub_error(hub.resolve(REPO));
        assert!(message.contains(named), "{message}");
        assert!(!hint.contains("again"), "{hint}");
        assert!(
            hub.requests()
                .iter()
                .all(|r| r.method == "GET" && r.path.contains("/api/"))
        );
    }
    let hub = with_files("e4b-tiny", &[WEIGHTS], &[("evil\u{1b}[2J.gguf", "x")]);
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("evil?[2J.gguf"), "{message}");

    let hub = with_files("e2b35-tiny", &["model-00002-of-00003.safetensors"], &[]);
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("model-00002"), "{message}");
}

#[test]
fn shards_without_an_index_are_fetched_by_their_names() {
    let index = "model.safetensors.index.json";
    let hub = with_files(
        "e2b35-tiny",
        &[index],
        &[("model-00001-of-00002.fp16.safetensors", "x")],
    );
    let dir = hub.resolve(REPO).expect("a snapshot");
    for i in 1..=3 {
        let name = format!("model-{i:05}-of-00003.safetensors");
        assert!(std::fs::read(dir.join(&name)).expect("a shard") == hub.file(&name));
    }
    let offline = HubOptions {
        offline: true,
        ..hub.options()
    };
    assert_eq!(
        resolve_with(REPO, &offline, &NoProgress).expect("a snapshot"),
        dir
    );
    let second = "model-00002-of-00003.safetensors";
    std::fs::remove_file(dir.join(second)).expect("a file");
    let (message, _) = hub_error(resolve_with(REPO, &offline, &NoProgress));
    assert!(message.contains(second), "{message}");

    let hub = with_files("e2b35-tiny", &[index, second], &[]);
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(
        message.contains(second) && message.contains("model-00001-of-00003"),
        "{message}"
    );
}

const CONFIG: &str =
    r#"{"base_model_name_or_path": "google/gemma-4-E2B-it", "peft_type": "LORA", "r": 8}"#;

fn adapter(hub: &Hub, model: &str) -> Result<PathBuf, Error> {
    resolve_adapter_with(model, &hub.options(), &NoProgress)
}

#[test]
fn an_adapter_given_as_a_model_names_its_base() {
    let own = ("adapter_config.json", CONFIG);
    for gone in [&["config.json", WEIGHTS][..], &[WEIGHTS]] {
        let hub = with_files(
            "e4b-tiny",
            gone,
            &[own, ("adapter_model.safetensors", "lora")],
        );
        let (message, hint) = hub_error(hub.resolve(REPO));
        assert!(
            message.contains("adapter for google/gemma-4-E2B-it") && hint.contains("merge"),
            "{message}; {hint}"
        );
        assert!(
            hub.requests()
                .iter()
                .all(|r| !r.path.contains("adapter_model"))
        );
    }
    // Beside whole weights it is fetched, so that one can see that it is there.
    let hub = with_files("e4b-tiny", &[], &[own]);
    let dir = hub.resolve(REPO).expect("a snapshot");
    assert!(dir.join("adapter_config.json").is_file());
}

#[test]
fn adapters_of_peft_and_mlx() {
    let own = ("adapter_config.json", CONFIG);
    for weights in ["adapter_model.safetensors", "adapters.safetensors"] {
        let hub = with_files(
            "e4b-tiny",
            &["config.json", WEIGHTS],
            &[own, (weights, "lora")],
        );
        let dir = adapter(&hub, REPO).expect("an adapter");
        let mut names: Vec<_> = std::fs::read_dir(&dir)
            .expect("a folder")
            .map(|e| {
                e.expect("a file")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        assert_eq!(names, ["adapter_config.json", weights]);
        let offline = HubOptions {
            offline: true,
            ..hub.options()
        };
        assert_eq!(
            resolve_adapter_with(REPO, &offline, &NoProgress).expect("an adapter"),
            dir
        );
        let path = dir.to_string_lossy();
        assert_eq!(adapter(&hub, &path).expect("a folder as it is"), dir);
    }
    let hub = with_files("e4b-tiny", &[], &[]);
    let (message, _) = hub_error(adapter(&hub, REPO));
    assert!(message.contains("no adapter_config.json"), "{message}");
    let hub = with_files("e4b-tiny", &[WEIGHTS], &[own, ("adapter_model.bin", "x")]);
    let (message, _) = hub_error(adapter(&hub, REPO));
    assert!(
        message.contains("no adapter_model.safetensors") && message.contains("adapter_model.bin"),
        "{message}"
    );
}
