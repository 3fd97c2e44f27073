//! The cache is shared: with other tools, with users who may not write to it, and over file systems without links.

use std::path::{Path, PathBuf};

use gemma_coreml::checkpoint::{Checkpoint, Error, HubOptions, resolve_with};
use gemma_coreml::progress::NoProgress;

use super::mock::{COMMIT, FOLDER, Hub, REPO, WEIGHTS, etag, hub_error};

fn offline(hub: &Hub) -> HubOptions {
    HubOptions {
        offline: true,
        ..hub.options()
    }
}

/// A complete snapshot in a cache whose `refs/` cannot be written: a file in the place of the folder, which stops root, too.
#[test]
fn a_snapshot_that_is_complete_needs_no_write() {
    let hub = Hub::start("e4b-tiny");
    let dir = hub.resolve(REPO).expect("a snapshot");
    let refs = hub.folder().join("refs");
    std::fs::remove_dir_all(&refs).expect("a folder");
    std::fs::write(&refs, "in the way").expect("a file");
    assert_eq!(hub.resolve(REPO).expect("the snapshot"), dir);
    assert_eq!(std::fs::read(&refs).expect("a file"), b"in the way");
}

/// What says the same already is not written again.
#[test]
fn a_ref_that_says_the_same_is_left_alone() {
    let hub = Hub::start("e4b-tiny");
    hub.resolve(REPO).expect("a snapshot");
    let main = hub.folder().join("refs/main");
    let made = |path: &Path| {
        let meta = std::fs::metadata(path).expect("a ref");
        #[cfg(unix)]
        return (
            std::os::unix::fs::MetadataExt::ino(&meta),
            meta.modified().expect("a time"),
        );
        #[cfg(not(unix))]
        return (0, meta.modified().expect("a time"));
    };
    // As an editor leaves it.
    std::fs::write(&main, format!("{COMMIT}\n")).expect("a ref");
    let before = made(&main);
    hub.resolve(REPO).expect("the snapshot");
    assert_eq!(made(&main), before);
    std::fs::write(&main, "f".repeat(40)).expect("a ref");
    hub.resolve(REPO).expect("the snapshot");
    assert_eq!(std::fs::read_to_string(&main).expect("a ref"), COMMIT);
    let left: Vec<_> = std::fs::read_dir(hub.folder().join("refs"))
        .expect("a folder")
        .collect();
    assert_eq!(left.len(), 1);
}

/// The error of a cache that cannot be written names the path that is wanted.
#[test]
fn a_missing_file_in_a_cache_that_cannot_be_written_names_the_place() {
    for (blocked, named) in [
        ("blobs", "blobs"),
        ("snapshots", "snapshots"),
        (".locks", ".locks"),
    ] {
        let hub = Hub::start("e4b-tiny");
        let root = hub.cache.path().join("hub");
        let place = match blocked {
            ".locks" => root.join(".locks"),
            name => root.join(FOLDER).join(name),
        };
        std::fs::create_dir_all(place.parent().expect("a parent")).expect("a folder");
        std::fs::write(&place, "in the way").expect("a file");
        match hub.resolve(REPO) {
            Err(Error::Io { path, .. }) => {
                assert!(path.to_string_lossy().contains(named), "{}", path.display());
            }
            other => panic!("expected an error of the system, got {other:?}"),
        }
    }
}

#[test]
fn an_incomplete_snapshot_offline_names_what_is_missing() {
    for (fixture, gone, named) in [
        ("e4b-tiny", WEIGHTS, WEIGHTS),
        ("e4b-tiny", "config.json", "config.json"),
        (
            "e2b35-tiny",
            "model-00003-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
        ),
    ] {
        let hub = Hub::start(fixture);
        let dir = hub.resolve(REPO).expect("a snapshot");
        // The link stays, what it leads to is gone.
        let blob = std::fs::canonicalize(dir.join(gone)).expect("a blob");
        std::fs::remove_file(blob).expect("a blob");
        let (message, _) = hub_error(resolve_with(REPO, &offline(&hub), &NoProgress));
        assert!(
            message.contains(named) && message.contains(COMMIT),
            "{message}"
        );
        hub.requests();
        assert_eq!(hub.resolve(REPO).expect("a mended snapshot"), dir);
        let again = hub
            .requests()
            .into_iter()
            .filter(|r| r.method == "GET" && r.path.contains("/resolve/"));
        assert_eq!(again.count(), 1, "only what is missing");
        Checkpoint::open(&dir).expect("a snapshot that opens");
    }
}

/// A cache as `huggingface_hub` writes it, with what it keeps beside the files.
#[cfg(unix)]
#[test]
fn a_cache_of_the_python_client_is_used() {
    let hub = Hub::start("e4b-tiny");
    let folder = hub.folder();
    let snapshot = folder.join("snapshots").join(COMMIT);
    let write = |path: PathBuf, bytes: &[u8]| {
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
    };
    write(folder.join("refs/main"), COMMIT.as_bytes());
    write(folder.join("refs/refs/pr/3"), COMMIT.as_bytes());
    write(
        folder.join(format!(".no_exist/{COMMIT}/added_tokens.json")),
        b"",
    );
    write(
        folder.join(format!("trees/{COMMIT}.json")),
        b"{\"format_version\": 1, \"files\": {}}",
    );
    write(
        hub.cache.path().join("hub/CACHEDIR.TAG"),
        b"Signature: 8a477f597d28d172789f06886806bc55",
    );
    std::fs::create_dir_all(&snapshot).expect("a folder");
    for name in ["config.json", "tokenizer.json", WEIGHTS] {
        let blob = etag(name, &hub.file(name));
        write(folder.join("blobs").join(&blob), &hub.file(name));
        write(
            hub.cache
                .path()
                .join("hub/.locks")
                .join(FOLDER)
                .join(format!("{blob}.lock")),
            b"",
        );
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join(name))
            .expect("a link");
    }
    assert_eq!(
        resolve_with(REPO, &offline(&hub), &NoProgress).expect("a snapshot"),
        snapshot
    );
    let pull = format!("{REPO}@refs/pr/3");
    assert_eq!(
        resolve_with(&pull, &offline(&hub), &NoProgress).expect("a snapshot"),
        snapshot
    );
    // With the hub, what is not there yet comes to it.
    assert_eq!(hub.resolve(REPO).expect("a snapshot"), snapshot);
    assert!(!hub.requests().iter().any(|r| r.cdn), "no large file again");
    assert!(snapshot.join("tokenizer_config.json").is_file());
}

/// A blob of another length than the hub tells is no whole file.
#[test]
fn a_stump_of_a_blob_is_fetched_anew() {
    let hub = Hub::start("e4b-tiny");
    let blob = hub
        .folder()
        .join("blobs")
        .join(etag(WEIGHTS, &hub.file(WEIGHTS)));
    std::fs::create_dir_all(blob.parent().expect("a parent")).expect("a folder");
    std::fs::write(&blob, "stump").expect("a file");
    let dir = hub.resolve(REPO).expect("a snapshot");
    assert!(std::fs::read(dir.join(WEIGHTS)).expect("weights") == hub.file(WEIGHTS));
}

#[test]
fn a_cache_without_links_holds_files() {
    let hub = Hub::start("e4b-tiny");
    let options = HubOptions {
        symlinks: false,
        ..hub.options()
    };
    let dir = resolve_with(REPO, &options, &NoProgress).expect("a snapshot");
    assert!(!dir.join(WEIGHTS).is_symlink());
    assert!(std::fs::read(dir.join(WEIGHTS)).expect("weights") == hub.file(WEIGHTS));
    assert!(hub.blobs("").is_empty(), "nothing is there twice");
    // What is in `blobs/` already may belong to another snapshot, and is copied.
    let hub = Hub::start("e4b-tiny");
    let first = hub.resolve(REPO).expect("a snapshot");
    hub.with(|s| s.commit = "e".repeat(40));
    let options = HubOptions {
        symlinks: false,
        ..hub.options()
    };
    let second = resolve_with(REPO, &options, &NoProgress).expect("a snapshot");
    assert!(second.join(WEIGHTS).is_file() && !second.join(WEIGHTS).is_symlink());
    assert!(first.join(WEIGHTS).is_file());
}
