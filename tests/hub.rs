//! Fetching a snapshot from a hub: a server on the loopback interface that speaks the hub's protocol and can break it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use gemma_coreml::checkpoint::{Checkpoint, Error, HubOptions, resolve_with};
use gemma_coreml::progress::{NoProgress, Progress};
use tempfile::TempDir;

#[path = "common/fixtures.rs"]
mod fixtures;

const REPO: &str = "some-org/Gemma_4.test";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS: &str = "model.safetensors";

/// How the server treats transfers of the weights.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The connection closes after so many bytes of what was asked for.
    Cut(usize),
    /// The same, and the length was not announced.
    CutUnannounced(usize),
    /// The answer to a range is the whole file.
    IgnoresRange,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    commit: String,
    token: Option<String>,
    fault: Fault,
    /// Transfers of weights left that the fault applies to.
    faulty: usize,
    /// `path range authorization` of every request.
    log: Vec<String>,
}

struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    cache: TempDir,
}

impl Hub {
    /// A hub with the files of a fixture, and some that are not wanted.
    fn start(fixture: &str) -> Self {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(fixtures::fixture(fixture)).expect("a fixture") {
            let path = entry.expect("a file").path();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            if !name.starts_with("reference") {
                files.insert(name, std::fs::read(path).expect("a readable file"));
            }
        }
        for unwanted in [
            "README.md",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "consolidated.safetensors",
        ] {
            files.insert(unwanted.into(), b"unwanted".to_vec());
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(Mutex::new(State {
            files,
            commit: COMMIT.into(),
            token: None,
            fault: Fault::None,
            faulty: 0,
            log: Vec::new(),
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopping, host) = (state.clone(), stop.clone(), address.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(stream) = stream {
                    // A client that goes away is its own business.
                    let _ = serve(stream, &host, &shared);
                }
            }
        });
        Self {
            address,
            state,
            stop,
            thread: Some(thread),
            cache: TempDir::new().expect("a temporary directory"),
        }
    }

    fn options(&self) -> HubOptions {
        let set = |name: &str| match name {
            "HF_ENDPOINT" => Some(format!("http://{}", self.address)),
            "HF_HOME" => Some(self.cache.path().to_string_lossy().into_owned()),
            _ => None,
        };
        HubOptions {
            retries: 0,
            ..HubOptions::from_variables(set, None).expect("options")
        }
    }

    fn resolve(&self, model: &str) -> Result<PathBuf, Error> {
        resolve_with(model, &self.options(), &NoProgress)
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().expect("no panic in the server"))
    }

    fn fail(&self, fault: Fault, times: usize) {
        self.with(|s| (s.fault, s.faulty) = (fault, times));
    }

    /// Requests since the last call.
    fn requests(&self) -> Vec<String> {
        self.with(|s| std::mem::take(&mut s.log))
    }

    fn file(&self, name: &str) -> Vec<u8> {
        self.with(|s| s.files[name].clone())
    }

    /// The partial transfer in the cache.
    fn part(&self) -> Option<PathBuf> {
        let blobs = self
            .cache
            .path()
            .join("hub/models--some-org--Gemma_4.test/blobs");
        let entries = std::fs::read_dir(blobs).ok()?;
        let mut paths = entries.map(|e| e.expect("a file").path());
        paths.find(|p| p.extension().is_some_and(|e| e == "part"))
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends");
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.halt();
    }
}

/// The etag of a file, as the hub gives it: letters and digits.
fn etag(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Answers one request and closes.
fn serve(mut stream: TcpStream, host: &str, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.trim().split_once(": ") {
            headers.insert(name.to_ascii_lowercase(), value.to_string());
        }
    }
    let header = |name: &str| headers.get(name).cloned().unwrap_or_else(|| "-".into());
    let (range, authorization) = (header("range"), header("authorization"));
    let mut state = state.lock().expect("no panic in the server");
    state.log.push(format!("{path} {range} {authorization}"));
    if let Some(token) = &state.token
        && authorization != format!("Bearer {token}")
    {
        return answer(&mut stream, "401 Unauthorized", "", b"gated");
    }
    if let Some(file) = path.strip_prefix("/cdn/") {
        return transfer(&mut stream, &mut state, file, &range, "");
    }
    let listing = format!("/api/models/{REPO}/revision/");
    if path.starts_with(&listing) {
        let names: Vec<_> = state
            .files
            .keys()
            .map(|n| serde_json::json!({"rfilename": n}))
            .collect();
        let body = serde_json::json!({"sha": state.commit, "siblings": names}).to_string();
        return answer(
            &mut stream,
            "200 OK",
            "Content-Type: application/json\r\n",
            body.as_bytes(),
        );
    }
    let resolved = path
        .strip_prefix(&format!("/{REPO}/resolve/{}/", state.commit))
        .map(str::to_string);
    let Some(file) = resolved.filter(|f| state.files.contains_key(f)) else {
        return answer(
            &mut stream,
            "404 Not Found",
            "",
            b"no such repository or file",
        );
    };
    let meta = format!("X-Repo-Commit: {}\r\n", state.commit);
    let tag = etag(&state.files[&file]);
    if file.ends_with(".safetensors") {
        // Large files are elsewhere.
        let size = state.files[&file].len();
        let extra = format!(
            "{meta}X-Linked-Etag: \"{tag}\"\r\nX-Linked-Size: {size}\r\nLocation: http://{host}/cdn/{file}\r\n"
        );
        return answer(&mut stream, "302 Found", &extra, b"");
    }
    transfer(
        &mut stream,
        &mut state,
        &file,
        &range,
        &format!("{meta}ETag: \"{tag}\"\r\n"),
    )
}

fn answer(stream: &mut TcpStream, status: &str, extra: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// Sends a range of a file, with the fault of the moment.
fn transfer(
    stream: &mut TcpStream,
    state: &mut State,
    file: &str,
    range: &str,
    extra: &str,
) -> std::io::Result<()> {
    let Some(bytes) = state.files.get(file).cloned() else {
        return answer(stream, "404 Not Found", "", b"");
    };
    let Some((begin, end)) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return answer(stream, "200 OK", extra, &bytes);
    };
    let begin: usize = begin.parse().expect("a number");
    let end = end.parse::<usize>().map_or(bytes.len(), |last| last + 1);
    if begin >= bytes.len() {
        return answer(stream, "416 Range Not Satisfiable", "", b"");
    }
    let part = &bytes[begin..end];
    let is_probe = end == 1;
    let fault = match state.faulty > 0 && !is_probe && file.ends_with(".safetensors") {
        true => state.fault,
        false => Fault::None,
    };
    let content_range = format!(
        "Content-Range: bytes {begin}-{}/{}\r\n",
        end - 1,
        bytes.len()
    );
    let extra = format!("{extra}{content_range}");
    if fault != Fault::None {
        state.faulty -= 1;
    }
    let length = format!("Content-Length: {}\r\n", part.len());
    let (announced, sent) = match fault {
        Fault::None => return answer(stream, "206 Partial Content", &extra, part),
        Fault::IgnoresRange => return answer(stream, "200 OK", "", &bytes),
        Fault::Cut(n) => (length.as_str(), n),
        Fault::CutUnannounced(n) => ("", n),
    };
    let head =
        format!("HTTP/1.1 206 Partial Content\r\n{extra}{announced}Connection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(&part[..sent.min(part.len())])
}

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

#[track_caller]
fn hub_error(result: Result<PathBuf, Error>) -> (String, String) {
    match result {
        Err(Error::Hub { message, hint, .. }) => (message, hint),
        other => panic!("expected an error of the hub, got {other:?}"),
    }
}

#[test]
fn a_snapshot_is_fetched_once() {
    for fixture in ["e4b-tiny", "e2b35-tiny"] {
        let hub = Hub::start(fixture);
        let progress = Bytes::default();
        let dir = resolve_with(REPO, &hub.options(), &progress).expect("a fetched snapshot");
        let checkpoint = Checkpoint::open(&dir).expect("a snapshot that opens");
        assert_eq!(checkpoint.token_files().len(), 5);
        let fetched: Vec<PathBuf> = std::fs::read_dir(&dir)
            .expect("a folder")
            .map(|e| e.expect("a file").path())
            .collect();
        let mut bytes = 0;
        for path in fetched {
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let content = std::fs::read(&path).expect("a readable file");
            bytes += content.len() as u64;
            assert!(content == hub.file(&name), "{name} differs");
        }
        assert_eq!(
            (progress.total.into_inner(), progress.done.into_inner()),
            (bytes, bytes)
        );
        let unwanted = ["README", "pytorch", "onnx", "consolidated"];
        let requests = hub.requests();
        assert!(
            !requests
                .iter()
                .any(|r| unwanted.iter().any(|u| r.contains(u))),
            "{requests:?}"
        );

        assert_eq!(hub.resolve(REPO).expect("a cached snapshot"), dir);
        assert_eq!(
            hub.requests(),
            [format!("/api/models/{REPO}/revision/main - -")]
        );
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

#[test]
fn a_cut_transfer_resumes_where_it_stopped() {
    const CUT: usize = 300_000;
    let hub = Hub::start("e4b-tiny");
    hub.fail(Fault::Cut(CUT), 1);
    let (message, hint) = hub_error(hub.resolve(REPO));
    assert!(message.contains(WEIGHTS), "{message}");
    assert!(hint.contains("again"), "{hint}");
    let part = hub.part().expect("what was received is kept");
    let kept = std::fs::metadata(part).expect("a file").len();
    assert_eq!(kept, CUT as u64);
    let first = hub.requests();
    assert!(
        first.contains(&format!("/cdn/{WEIGHTS} bytes=0- -")),
        "{first:?}"
    );

    let dir = hub.resolve(REPO).expect("a resumed snapshot");
    let second = hub.requests();
    assert!(
        second.contains(&format!("/cdn/{WEIGHTS} bytes={CUT}- -")),
        "{second:?}"
    );
    assert!(
        !second.iter().any(|r| r.contains("bytes=0- ")),
        "nothing from the start: {second:?}"
    );
    assert!(std::fs::read(dir.join(WEIGHTS)).expect("weights") == hub.file(WEIGHTS));
    assert!(hub.part().is_none());
    Checkpoint::open(&dir).expect("a snapshot that opens");
}

#[test]
fn retries_resume_within_one_call() {
    let hub = Hub::start("e4b-tiny");
    hub.fail(Fault::Cut(200_000), 2);
    let options = HubOptions {
        retries: 3,
        ..hub.options()
    };
    let progress = Bytes::default();
    let dir = resolve_with(REPO, &options, &progress).expect("a snapshot in the end");
    let requests = hub.requests();
    for from in ["bytes=0- ", "bytes=200000- ", "bytes=400000- "] {
        assert!(
            requests
                .iter()
                .any(|r| r.contains(WEIGHTS) && r.contains(from)),
            "{from}: {requests:?}"
        );
    }
    assert!(std::fs::read(dir.join(WEIGHTS)).expect("weights") == hub.file(WEIGHTS));
    assert_eq!(progress.total.into_inner(), progress.done.into_inner());
}

#[test]
fn short_and_overlong_transfers_are_not_taken_for_whole() {
    // The length is not announced, so that only the comparison with the listed size can tell.
    let hub = Hub::start("e4b-tiny");
    hub.fail(Fault::CutUnannounced(1000), 1);
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("got 1000"), "{message}");
    hub.resolve(REPO).expect("a snapshot");

    let hub = Hub::start("e4b-tiny");
    hub.fail(Fault::Cut(1000), 1);
    hub_error(hub.resolve(REPO));
    hub.fail(Fault::IgnoresRange, 1);
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("expected"), "{message}");
    let dir = hub.resolve(REPO).expect("a snapshot");
    assert!(std::fs::read(dir.join(WEIGHTS)).expect("weights") == hub.file(WEIGHTS));
}

#[test]
fn useless_partial_files_are_dropped() {
    for extra in [0, 5] {
        let hub = Hub::start("e4b-tiny");
        hub.fail(Fault::Cut(10), 1);
        hub_error(hub.resolve(REPO));
        let part = hub.part().expect("a partial file");
        std::fs::write(part, vec![7; hub.file(WEIGHTS).len() + extra]).expect("a written file");
        let dir = hub.resolve(REPO).expect("a snapshot");
        assert!(std::fs::read(dir.join(WEIGHTS)).expect("weights") == hub.file(WEIGHTS));
    }
}

#[test]
fn unknown_and_gated_models() {
    let hub = Hub::start("e4b-tiny");
    let (message, hint) = hub_error(hub.resolve("some-org/other"));
    assert!(
        message.contains("404") && hint.contains("spelling"),
        "{message}; {hint}"
    );
    hub.with(|s| s.token = Some("hf_secret".into()));
    let (message, hint) = hub_error(hub.resolve(REPO));
    assert!(
        message.contains("401") && hint.contains("HF_TOKEN"),
        "{message}; {hint}"
    );
    let options = HubOptions {
        token: Some("hf_secret".into()),
        ..hub.options()
    };
    hub.requests();
    resolve_with(REPO, &options, &NoProgress).expect("a snapshot");
    assert!(
        hub.requests()
            .iter()
            .all(|r| r.ends_with("Bearer hf_secret"))
    );
    assert!(matches!(
        hub.resolve("no/such/dir"),
        Err(Error::BadModelId { .. })
    ));
}

#[test]
fn repositories_that_are_no_checkpoints() {
    for (gone, named) in [
        ("config.json", "config.json"),
        (WEIGHTS, "model.safetensors"),
    ] {
        let hub = Hub::start("e4b-tiny");
        hub.with(|s| s.files.remove(gone));
        let (message, _) = hub_error(hub.resolve(REPO));
        assert!(message.contains(named), "{message}");
    }
    let hub = Hub::start("e2b35-tiny");
    hub.with(|s| s.files.remove("model-00002-of-00003.safetensors"));
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("model-00002"), "{message}");
    let hub = Hub::start("e4b-tiny");
    hub.with(|s| s.commit = "../../../outside".into());
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("commit"), "{message}");
}

/// A new commit of the revision is a new snapshot; without a hub the last complete one is used.
#[test]
fn revisions_and_absent_hubs() {
    let mut hub = Hub::start("e4b-tiny");
    let first = hub
        .resolve(&format!("{REPO}@refs/pr/7"))
        .expect("a snapshot");
    assert!(hub.requests()[0].contains("refs%2Fpr%2F7"));
    let moved = COMMIT.replace('0', "f");
    hub.with(|s| {
        s.commit = moved.clone();
        s.files
            .insert("chat_template.jinja".into(), b"new".to_vec());
    });
    let second = hub.resolve(REPO).expect("a snapshot");
    assert!(first.ends_with(COMMIT) && second.ends_with(&moved));
    assert_eq!(
        std::fs::read(second.join("chat_template.jinja")).expect("a file"),
        b"new"
    );

    let offline = HubOptions {
        offline: true,
        ..hub.options()
    };
    hub.requests();
    assert_eq!(
        resolve_with(REPO, &offline, &NoProgress).expect("a snapshot"),
        second
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
    hub_error(resolve_with("some-org/absent", &options, &NoProgress));
}

#[test]
fn a_directory_is_itself() {
    let hub = Hub::start("e4b-tiny");
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().to_string_lossy().into_owned();
    assert_eq!(hub.resolve(&path).expect("a directory"), dir.path());
    assert!(hub.requests().is_empty());
}

/// The program itself, told of the hub by the environment alone.
#[test]
fn the_program_converts_a_hub_id_from_hf_endpoint() {
    let hub = Hub::start("dense-tiny");
    let out = hub.cache.path().join("bundle");
    let run = || {
        std::process::Command::new(env!("CARGO_BIN_EXE_gemma-coreml"))
            .args(["convert", REPO, "--context", "64", "--threads", "1", "-o"])
            .arg(&out)
            .env("HF_ENDPOINT", format!("http://{}", hub.address))
            .env("HF_HOME", hub.cache.path())
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_HUB_OFFLINE")
            .env_remove("HF_TOKEN")
            .output()
            .expect("the program runs")
    };
    hub.fail(Fault::Cut(1000), 100);
    let cut = run();
    assert!(!cut.status.success());
    assert!(String::from_utf8_lossy(&cut.stderr).contains("hint: "));
    assert!(!out.exists() && hub.part().is_some());
    hub.fail(Fault::None, 0);
    let whole = run();
    assert!(
        whole.status.success(),
        "{}",
        String::from_utf8_lossy(&whole.stderr)
    );
    gemma_coreml::bundle::Bundle::open(&out).expect("a complete bundle");
}
