//! A hub on the loopback interface: two servers, one that is the endpoint and one that keeps the large files, as the real hub has a
//! CDN. A test may answer any request in its own way.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use gemma_coreml::checkpoint::{Error, HubOptions, resolve_with};
use gemma_coreml::progress::NoProgress;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::fixtures;

pub const REPO: &str = "some-org/Gemma_4.test";
pub const FOLDER: &str = "models--some-org--Gemma_4.test";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const WEIGHTS: &str = "model.safetensors";

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
    /// It came to the server that keeps the large files.
    pub cdn: bool,
}

/// How the body of an answer goes out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum How {
    Whole,
    /// The connection closes after so many bytes.
    Cut(usize),
    /// Nothing follows after so many bytes, and the connection stays.
    Hang(usize),
    /// One byte at a time.
    Drip(Duration),
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Whether Content-Length is sent.
    pub announced: bool,
    pub how: How,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            announced: true,
            how: How::Whole,
        }
    }

    pub fn redirect(status: u16, to: impl Into<String>) -> Self {
        Self::new(status, "").with("Location", to)
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self
    }

    pub fn how(mut self, how: How) -> Self {
        self.how = how;
        self
    }

    pub fn unannounced(mut self) -> Self {
        self.announced = false;
        self
    }
}

type Override = Box<dyn FnMut(&Request, &State) -> Option<Reply> + Send>;

/// What the hub has.
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    pub commit: String,
    /// The token that is asked for.
    pub token: Option<String>,
    /// What the endpoint's paths begin with.
    pub prefix: String,
    pub hub: String,
    pub cdn: String,
    log: Vec<Request>,
}

struct Shared {
    state: Mutex<State>,
    answer: Mutex<Option<Override>>,
    stop: AtomicBool,
}

pub struct Hub {
    shared: Arc<Shared>,
    hub: String,
    threads: Vec<(String, JoinHandle<()>)>,
    pub cache: TempDir,
}

impl Hub {
    /// A hub with the files of a fixture, and some that are not wanted.
    pub fn start(fixture: &str) -> Self {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(fixtures::fixture(fixture)).expect("a fixture") {
            let path = entry.expect("a file").path();
            let name = path.file_name().expect("a name").to_string_lossy();
            if !name.starts_with("reference") {
                let bytes = std::fs::read(&path).expect("a readable file");
                files.insert(name.into_owned(), bytes);
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
        let bind = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("an address").to_string();
            (listener, address)
        };
        let (hub_listener, hub) = bind();
        let (cdn_listener, cdn) = bind();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                files,
                commit: COMMIT.into(),
                token: None,
                prefix: String::new(),
                hub: hub.clone(),
                cdn: cdn.clone(),
                log: Vec::new(),
            }),
            answer: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let listen = |listener: TcpListener, address: String, is_cdn: bool| {
            let shared = shared.clone();
            let thread = std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if shared.stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let (Ok(stream), shared) = (stream, shared.clone()) else {
                        continue;
                    };
                    // A client that goes away is its own business.
                    std::thread::spawn(move || serve(stream, is_cdn, &shared));
                }
            });
            (address, thread)
        };
        Self {
            threads: vec![
                listen(hub_listener, hub.clone(), false),
                listen(cdn_listener, cdn, true),
            ],
            shared,
            hub,
            cache: TempDir::new().expect("a temporary directory"),
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}{}", self.hub, self.with(|s| s.prefix.clone()))
    }

    /// Options for this hub that give up soon.
    pub fn options(&self) -> HubOptions {
        let set = |name: &str| match name {
            "HF_ENDPOINT" => Some(self.endpoint()),
            "HF_HOME" => Some(self.cache.path().to_string_lossy().into_owned()),
            _ => None,
        };
        HubOptions {
            retries: 0,
            retry_wait: Duration::from_millis(10),
            ..HubOptions::from_variables(set, None).expect("options")
        }
    }

    pub fn resolve(&self, model: &str) -> Result<PathBuf, Error> {
        resolve_with(model, &self.options(), &NoProgress)
    }

    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.shared.state.lock().expect("no panic in the server"))
    }

    /// Answers requests in another way where the closure gives an answer.
    pub fn on(&self, answer: impl FnMut(&Request, &State) -> Option<Reply> + Send + 'static) {
        *self.shared.answer.lock().expect("no panic in the server") = Some(Box::new(answer));
    }

    pub fn behave(&self) {
        *self.shared.answer.lock().expect("no panic in the server") = None;
    }

    /// Changes the first `times` transfers of the weights.
    pub fn spoil(&self, times: usize, change: impl Fn(Reply) -> Reply + Send + 'static) {
        let mut left = times;
        self.on(move |request, state| {
            if left == 0 || request.method != "GET" || !request.cdn {
                return None;
            }
            left -= 1;
            Some(change(state.answer(request)))
        });
    }

    /// Requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        self.with(|s| std::mem::take(&mut s.log))
    }

    pub fn file(&self, name: &str) -> Vec<u8> {
        self.with(|s| s.files[name].clone())
    }

    /// The repository's folder in the cache.
    pub fn folder(&self) -> PathBuf {
        self.cache.path().join("hub").join(FOLDER)
    }

    /// Files in `blobs/` whose names end so.
    pub fn blobs(&self, end: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.folder().join("blobs")) else {
            return Vec::new();
        };
        let paths = entries.map(|e| e.expect("a file").path());
        paths
            .filter(|p| p.to_string_lossy().ends_with(end))
            .collect()
    }

    /// The partial transfer in the cache.
    pub fn part(&self) -> Option<PathBuf> {
        self.blobs(".incomplete").pop()
    }

    pub fn halt(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (address, thread) in self.threads.drain(..) {
            let _ = TcpStream::connect(address);
            thread.join().expect("the server ends");
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.halt();
    }
}

impl State {
    /// What the real hub would answer.
    pub fn answer(&self, request: &Request) -> Reply {
        if request.cdn {
            let path = request.path.split('?').next().unwrap_or_default();
            return match self.files.get(path.trim_start_matches("/blob/")) {
                // A signed address is refused when a token comes with it.
                Some(_) if request.token.is_some() => Reply::new(400, "two authorizations"),
                Some(bytes) => part_of(bytes, request),
                None => Reply::new(404, ""),
            };
        }
        if self.token.is_some() && request.token != self.token {
            let reply = Reply::new(401, r#"{"error":"Invalid username or password."}"#);
            return reply.with("X-Error-Message", "Invalid username or password.");
        }
        let Some(path) = request.path.strip_prefix(&self.prefix) else {
            return Reply::new(404, "");
        };
        if path.starts_with(&format!("/api/models/{REPO}/revision/")) {
            let names = self.files.keys();
            let names: Vec<_> = names.map(|n| serde_json::json!({"rfilename": n})).collect();
            let body = serde_json::json!({"sha": self.commit, "siblings": names}).to_string();
            return Reply::new(200, body).with("Content-Type", "application/json");
        }
        let file = path.strip_prefix(&format!("/{REPO}/resolve/{}/", self.commit));
        let Some((file, bytes)) = file.and_then(|f| Some((f, self.files.get(f)?))) else {
            let code = match path.contains(REPO) {
                true => "EntryNotFound",
                false => "RepoNotFound",
            };
            return Reply::new(404, "").with("X-Error-Code", code);
        };
        let commit = self.commit.clone();
        match is_large(file) {
            true => Reply::redirect(302, format!("http://{}/blob/{file}?sig=secret", self.cdn))
                .with("X-Linked-Etag", format!("\"{}\"", etag(file, bytes)))
                .with("X-Linked-Size", bytes.len().to_string()),
            false => part_of(bytes, request).with("ETag", format!("\"{}\"", etag(file, bytes))),
        }
        .with("X-Repo-Commit", commit)
    }
}

/// Large files are kept elsewhere, under their SHA-256.
fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name == "tokenizer.json"
}

/// The etag that the hub gives: SHA-256 of a large file, git's hash of a small one.
pub fn etag(name: &str, bytes: &[u8]) -> String {
    let digest: Vec<u8> = match is_large(name) {
        true => Sha256::digest(bytes).to_vec(),
        false => Sha1::new_with_prefix(format!("blob {}\0", bytes.len()))
            .chain_update(bytes)
            .finalize()
            .to_vec(),
    };
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// The range of a file that is asked for.
fn part_of(bytes: &[u8], request: &Request) -> Reply {
    let range = request
        .range
        .as_deref()
        .and_then(|r| r.strip_prefix("bytes="));
    let Some((begin, end)) = range.and_then(|r| r.split_once('-')) else {
        return Reply::new(200, bytes);
    };
    let begin: usize = begin.parse().expect("a number");
    let end = end.parse::<usize>().map_or(bytes.len(), |last| last + 1);
    if begin >= bytes.len() {
        return Reply::new(416, "");
    }
    let range = format!("bytes {begin}-{}/{}", end - 1, bytes.len());
    Reply::new(206, &bytes[begin..end]).with("Content-Range", range)
}

/// Answers one request and closes.
fn serve(mut stream: TcpStream, cdn: bool, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_string);
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
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
    if method.is_empty() {
        return Ok(());
    }
    let token = headers.remove("authorization");
    let request = Request {
        method,
        path,
        range: headers.remove("range"),
        token: token.map(|t| t.trim_start_matches("Bearer ").to_string()),
        cdn,
    };
    let reply = {
        let mut state = shared.state.lock().expect("no panic in the server");
        state.log.push(request.clone());
        let mut answer = shared.answer.lock().expect("no panic in the server");
        let own = answer.as_mut().and_then(|answer| answer(&request, &state));
        own.unwrap_or_else(|| state.answer(&request))
    };
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if reply.announced {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match reply.how {
        How::Whole => stream.write_all(&reply.body),
        How::Cut(n) => stream.write_all(&reply.body[..n.min(reply.body.len())]),
        How::Hang(n) => {
            stream.write_all(&reply.body[..n.min(reply.body.len())])?;
            stream.flush()?;
            // Until the client goes.
            std::io::copy(&mut stream, &mut std::io::sink()).map(|_| ())
        }
        How::Drip(pause) => reply.body.iter().try_for_each(|byte| {
            std::thread::sleep(pause);
            stream.write_all(&[*byte])
        }),
    }
}

#[track_caller]
pub fn hub_error(result: Result<PathBuf, Error>) -> (String, String) {
    match result {
        Err(Error::Hub { message, hint, .. }) => (message, hint),
        other => panic!("expected an error of the hub, got {other:?}"),
    }
}
