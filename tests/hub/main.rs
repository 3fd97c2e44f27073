//! Fetching a snapshot from a hub: servers on the loopback interface that speak the hub's protocol and can break it.

mod cache;
mod faults;
mod liars;
mod mirrors;
mod mock;
mod repositories;
mod tokens;

#[path = "../common/fixtures.rs"]
mod fixtures;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use gemma_coreml::checkpoint::{Checkpoint, Error, HubOptions, resolve_with};
use gemma_coreml::progress::{NoProgress, Progress};
use mock::{COMMIT, FOLDER, Hub, REPO, Reply, WEIGHTS, hub_error};
use tempfile::TempDir;

#[derive(Default)]
struct Bytes {
    total: AtomicU64,
    done: AtomicU64,
}

impl Progress for Bytes {
    fn begin(&self, _label: &str, total: u64) {
        self.total.fetch_add(total, Ordering::SeqCst);
    }
    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::SeqCst);
    }
    fn end(&self) {}
}

#[test]
fn a_snapshot_is_fetched_once() {
    for fixture in ["e4b-tiny", "e2b35-tiny"] {
        let hub = Hub::start(fixture);
        let progress = Bytes::default();
        let dir = resolve_with(REPO, &hub.options(), &progress).expect("a fetched snapshot");
        let checkpoint = Checkpoint::open(&dir).expect("a snapshot that opens");
        assert_eq!(checkpoint.token_files().len(), 5);
        let mut bytes = 0;
        for entry in std::fs::read_dir(&dir).expect("a folder") {
            let path = entry.expect("a file").path();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let content = std::fs::read(&path).expect("a readable file");
            bytes += content.len() as u64;
            assert!(content == hub.file(&name), "{name} differs");
            let target = std::fs::read_link(&path).expect("a link");
            let blob = mock::etag(&name, &content);
            assert_eq!(target, PathBuf::from(format!("../../blobs/{blob}")));
        }
        assert_eq!(
            (progress.total.into_inner(), progress.done.into_inner()),
            (bytes, bytes)
        );
        let main = hub.folder().join("refs/main");
        assert_eq!(std::fs::read_to_string(main).expect("a ref"), COMMIT);
        assert!(hub.part().is_none() && dir.ends_with(format!("hub/{FOLDER}/snapshots/{COMMIT}")));
        let unwanted = ["README", "pytorch", "onnx", "consolidated"];
        let requests = hub.requests();
        assert!(
            !requests
                .iter()
                .any(|r| unwanted.iter().any(|u| r.path.contains(u))),
            "{requests:?}"
        );

        assert_eq!(hub.resolve(REPO).expect("a cached snapshot"), dir);
        let paths: Vec<String> = hub.requests().into_iter().map(|r| r.path).collect();
        assert_eq!(paths, [format!("/api/models/{REPO}/revision/main")]);
        let pinned = hub
            .resolve(&format!("{REPO}@{COMMIT}"))
            .expect("a cached snapshot");
        assert_eq!(pinned, dir);
        assert!(
            hub.requests().is_empty(),
            "a commit in the cache needs no request"
        );
    }
}

/// A new commit of the revision is a new snapshot; without a hub the last complete one is used.
#[test]
fn revisions_and_absent_hubs() {
    let mut hub = Hub::start("e4b-tiny");
    let first = hub
        .resolve(&format!("{REPO}@refs/pr/7"))
        .expect("a snapshot");
    assert!(hub.requests()[0].path.contains("refs%2Fpr%2F7"));
    let noted = std::fs::read_to_string(hub.folder().join("refs/refs/pr/7"));
    assert_eq!(noted.expect("a ref"), COMMIT);
    let moved = COMMIT.replace('0', "f");
    hub.with(|s| {
        s.commit = moved.clone();
        s.files
            .insert("chat_template.jinja".into(), b"new".to_vec());
    });
    let second = hub.resolve(REPO).expect("a snapshot");
    assert!(first.ends_with(COMMIT) && second.ends_with(&moved));
    let read = |dir: &PathBuf| std::fs::read(dir.join("chat_template.jinja")).expect("a file");
    assert!(read(&second) == b"new" && read(&first) != b"new");
    let transfers = hub
        .requests()
        .into_iter()
        .filter(|r| r.method == "GET")
        .count();
    assert_eq!(transfers, 2, "the list and the one file that changed");

    let offline = HubOptions {
        offline: true,
        ..hub.options()
    };
    assert_eq!(
        resolve_with(REPO, &offline, &NoProgress).expect("a snapshot"),
        second
    );
    let pull = format!("{REPO}@refs/pr/7");
    assert_eq!(
        resolve_with(&pull, &offline, &NoProgress).expect("a snapshot"),
        first
    );
    let (_, hint) = hub_error(resolve_with("some-org/absent", &offline, &NoProgress));
    assert!(hint.contains("HF_HUB_OFFLINE"), "{hint}");
    assert!(hub.requests().is_empty());

    let options = hub.options();
    hub.halt();
    assert_eq!(
        resolve_with(REPO, &options, &NoProgress).expect("a snapshot"),
        second
    );
    let (message, hint) = hub_error(resolve_with("some-org/absent", &options, &NoProgress));
    assert!(
        message.contains("cannot list the files") && hint.contains("network"),
        "{message}; {hint}"
    );
}

/// A hub that fails or refuses does not keep from what is in the cache; one that says there is no such revision does.
#[test]
fn a_complete_snapshot_outlives_a_hub_that_fails() {
    let hub = Hub::start("e4b-tiny");
    let dir = hub.resolve(REPO).expect("a snapshot");
    for status in [401, 403, 404, 429, 500, 503] {
        hub.on(move |_, _| Some(Reply::new(status, "")));
        assert_eq!(
            hub.resolve(REPO).expect("the cached snapshot"),
            dir,
            "{status}"
        );
    }
    hub.on(|_, _| Some(Reply::new(200, "<html>log in</html>")));
    assert_eq!(hub.resolve(REPO).expect("the cached snapshot"), dir);
    hub.on(|_, _| Some(Reply::new(404, "").with("X-Error-Code", "RevisionNotFound")));
    let (message, hint) = hub_error(hub.resolve(REPO));
    assert!(
        message.contains("404") && hint.contains("revision"),
        "{message}; {hint}"
    );
    // What is incomplete is not taken.
    std::fs::remove_file(dir.join(WEIGHTS)).expect("a file");
    hub.on(|_, _| Some(Reply::new(503, "")));
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("503"), "{message}");
}

#[test]
fn a_directory_is_itself() {
    let hub = Hub::start("e4b-tiny");
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().to_string_lossy().into_owned();
    assert_eq!(hub.resolve(&path).expect("a directory"), dir.path());
    for model in ["no/such/dir", "Cargo.toml", "src/main.rs"] {
        assert!(
            matches!(hub.resolve(model), Err(Error::BadModelId { .. })),
            "{model}"
        );
    }
    assert!(hub.requests().is_empty());
}

/// The program itself, told of the hub by the environment alone.
#[test]
fn the_program_converts_a_hub_id_from_hf_endpoint() {
    let hub = Hub::start("dense-tiny");
    let out = hub.cache.path().join("bundle");
    hub.with(|s| s.token = Some("hf_of_the_file".into()));
    std::fs::write(hub.cache.path().join("token"), "hf_of_the_file\n").expect("a token file");
    let run = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gemma-coreml"));
        for name in [
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "HF_TOKEN",
            "HF_TOKEN_PATH",
        ] {
            command.env_remove(name);
        }
        command
            .args(["convert", REPO, "--context", "64", "--threads", "1", "-o"])
            .arg(&out)
            .env("HF_ENDPOINT", hub.endpoint())
            .env("HF_HOME", hub.cache.path())
            .env("NO_PROXY", "127.0.0.1")
            .output()
            .expect("the program runs")
    };
    // A damaged file is no reason to try again.
    hub.spoil(100, |mut reply| {
        reply.body[100] ^= 1;
        reply
    });
    let damaged = run();
    let text = String::from_utf8_lossy(&damaged.stderr).into_owned();
    assert_eq!(damaged.status.code(), Some(3), "{text}");
    assert!(
        text.contains("damaged") && text.contains("hint: "),
        "{text}"
    );
    assert!(!out.exists());
    hub.behave();
    let whole = run();
    let text = String::from_utf8_lossy(&whole.stderr).into_owned();
    assert!(whole.status.success(), "{text}");
    gemma_coreml::bundle::Bundle::open(&out).expect("a complete bundle");
}
