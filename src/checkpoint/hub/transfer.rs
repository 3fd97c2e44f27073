//! One file from the hub into `blobs/`: resumed, checked, and under its name only when it is whole and right.
//!
//! A file on its way is `blobs/ETAG.incomplete`, the name that `huggingface_hub` has used for it (hf-hub's is `.part`): tools that
//! look after the cache know it, and what an older client of Python left is gone on with. Its newer ones give each process a file
//! of its own and resume nothing. Here the lock keeps others off, and the hash tells if it did not.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::Response;
use url::Url;

use super::cache::{RepoCache, at, open, remove};
use super::client::{Client, Metadata, begin, length, shown};
use super::failure::{Failure, Why};
use super::{Error, Result};
use crate::progress::Progress;

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;
/// A connection that brings less than this in the time of a time-out counts as silent.
const LEAST: u64 = 1 << 10;
/// After this many new bytes the count of retries begins anew.
const PROGRESS: u64 = 1 << 20;
/// Longest file that is taken when nobody tells its length.
const LONGEST_UNKNOWN: u64 = 256 << 20;

/// A file to be fetched.
pub(super) struct Item {
    pub name: String,
    pub url: Url,
    pub metadata: Metadata,
}

/// Why a transfer stopped.
pub(super) enum Stop {
    /// This machine: a path that cannot be written.
    Local(Error),
    /// The hub or the way to it.
    Remote(Failure),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Local(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Remote(failure)
    }
}

/// Brings a blob into the cache, unless it is there. True when it is new.
pub(super) fn fetch(
    client: &Client,
    cache: &RepoCache,
    item: &Item,
    progress: &dyn Progress,
) -> Result<bool, Stop> {
    let Metadata { etag, size } = &item.metadata;
    let blob = cache.blob(etag);
    progress.item(&item.name);
    let lock = cache.lock(etag)?;
    if let Ok(found) = std::fs::metadata(&blob) {
        if found.is_file() && size.is_none_or(|size| size == found.len()) {
            progress.advance(found.len());
            return Ok(false);
        }
        remove(&blob)?;
    }
    if let Some(parent) = blob.parent() {
        std::fs::create_dir_all(parent).map_err(at(parent))?;
    }
    // Without a lock no other process may write to the same file.
    let own = lock.is_none().then(|| format!(".{}", std::process::id()));
    let path = blob.with_file_name(format!("{etag}{}.incomplete", own.unwrap_or_default()));
    let mut part = Partial::open(path, etag, *size)?;
    let mut report = Report {
        progress,
        reported: 0,
    };
    report.reach(part.len);
    let mut tries = 0;
    loop {
        let before = part.len;
        let failure = match attempt(client, item, &mut part, &mut report) {
            Ok(()) => break,
            Err(Stop::Remote(failure)) => failure,
            Err(local) => return Err(local),
        };
        if std::mem::take(&mut part.misled) {
            continue;
        }
        if part.len.saturating_sub(before) >= PROGRESS {
            tries = 0;
        }
        match client.pause(&failure, tries) {
            Some(wait) => std::thread::sleep(wait),
            None if part.len == 0 => {
                remove(&part.path)?;
                return Err(failure.into());
            }
            None => return Err(failure.into()),
        }
        tries += 1;
    }
    part.file.sync_all().map_err(at(&part.path))?;
    std::fs::rename(&part.path, &blob).map_err(at(&blob))?;
    Ok(true)
}

/// Fetches what is missing, in one request, and checks the whole.
fn attempt(
    client: &Client,
    item: &Item,
    part: &mut Partial,
    report: &mut Report,
) -> Result<(), Stop> {
    let size = item.metadata.size;
    let mut expected = size;
    if size.is_none_or(|size| part.len < size) {
        let response = match client.open(&item.url, part.len) {
            Err(failure) if failure.why == Why::Status(416) => {
                part.restart()?;
                return Err(failure.into());
            }
            other => other?,
        };
        expected = expect(&response, item, part)?;
        receive(client, item, response, expected, part, report)?;
    }
    if let Some(size) = expected.filter(|size| *size != part.len) {
        let text = format!("expected {size} bytes, got {}", part.len);
        return Err(Failure::cut(text).into());
    }
    if size.is_none() {
        part.settle(&item.metadata.etag)?;
    }
    if expected.is_none() && matches!(part.hash, Hash::None) {
        part.restart()?;
        return Err(Failure::broken(
            "the hub tells neither length nor hash: nothing shows that it is whole",
        )
        .into());
    }
    if let Err(found) = part.hash.check(&item.metadata.etag) {
        part.restart()?;
        let text = format!(
            "expected bytes with the hash {}, got {found}: damaged on the way",
            item.metadata.etag
        );
        return Err(Failure::broken(text).into());
    }
    Ok(())
}

/// How long the whole file will be by an answer's headers. Sets a partial file back where the answer is the whole one.
fn expect(response: &Response<Body>, item: &Item, part: &mut Partial) -> Result<Option<u64>, Stop> {
    let whole = response.status() == 200;
    if whole && part.len > 0 {
        part.restart()?;
        part.misled = false;
    }
    let from = begin(response.headers()).unwrap_or(part.len);
    if !whole && from != part.len {
        let text = format!(
            "asked for bytes from {} on, got those from {from} on",
            part.len
        );
        part.restart()?;
        return Err(Failure::broken(text).into());
    }
    let told = match whole || begin(response.headers()).is_some() {
        true => length(response.headers()),
        false => None,
    };
    match (item.metadata.size, told) {
        (Some(size), Some(told)) if size != told => {
            part.restart()?;
            let text = format!(
                "expected {size} bytes, got an answer of {told} from {}",
                shown(&item.url)
            );
            Err(Failure::broken(text).into())
        }
        (size, told) => Ok(size.or(told)),
    }
}

/// Takes the bytes of an answer in. No byte more than expected is kept.
fn receive(
    client: &Client,
    item: &Item,
    response: Response<Body>,
    expected: Option<u64>,
    part: &mut Partial,
    report: &mut Report,
) -> Result<(), Stop> {
    let silence = client.options().download_timeout;
    let most = expected.unwrap_or(LONGEST_UNKNOWN);
    let mut reader = response.into_body().into_reader();
    let mut buffer = vec![0; CHUNK];
    let mut pace = Pace::new(silence);
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => {
                return Err(client
                    .lost(&ureq::Error::from(e), &item.url, silence)
                    .into());
            }
        };
        if part.len + count as u64 > most {
            part.restart()?;
            let text = format!("expected {most} bytes, got more");
            return Err(Failure::broken(text).into());
        }
        part.append(&buffer[..count])?;
        report.reach(part.len);
        if pace.is_silent(count as u64) {
            let text = format!(
                "{}: fewer than {LEAST} bytes within {silence:?}",
                shown(&item.url)
            );
            return Err(Failure::cut(text).into());
        }
    }
}

/// Notices connections that are alive and bring next to nothing.
struct Pace {
    limit: Duration,
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: Instant::now(),
            bytes: 0,
        }
    }

    fn is_silent(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        if self.bytes >= LEAST {
            (self.since, self.bytes) = (Instant::now(), 0);
        }
        self.since.elapsed() > self.limit
    }
}

/// A file on its way, hashed as it grows.
struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    size: Option<u64>,
    hash: Hash,
    /// The first bytes are from an earlier run.
    kept: bool,
    /// Bytes from an earlier run were of no use, which says nothing of the hub: the request deserves another try.
    misled: bool,
}

impl Partial {
    /// Opens what an earlier transfer left, or begins.
    fn open(path: PathBuf, etag: &str, size: Option<u64>) -> Result<Self> {
        let is_file = |path: &Path| std::fs::symlink_metadata(path).map(|m| m.is_file());
        if is_file(&path).is_ok_and(|is_file| !is_file) {
            remove(&path)?;
        }
        let file = open(&path, true).map_err(at(&path))?;
        let len = file.metadata().map_err(at(&path))?.len();
        let mut part = Self {
            path,
            file,
            len: 0,
            size,
            hash: Hash::of(etag, size),
            kept: false,
            misled: false,
        };
        match size.is_some_and(|size| len <= size) {
            true => {
                part.rehash(len)?;
                part.kept = len > 0;
            }
            // Of no use: too long, or nobody can tell what is missing.
            false => part.restart()?,
        }
        Ok(part)
    }

    /// Takes the first bytes in the file as they are.
    fn rehash(&mut self, len: u64) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        while self.len < len {
            let count = self.file.read(&mut buffer).map_err(at(&self.path))?;
            if count == 0 {
                break;
            }
            self.hash.update(&buffer[..count]);
            self.len += count as u64;
        }
        Ok(())
    }

    /// Hashes what is there once more, with a length that was not known before.
    fn settle(&mut self, etag: &str) -> Result<()> {
        let len = std::mem::take(&mut self.len);
        self.file.seek(SeekFrom::Start(0)).map_err(at(&self.path))?;
        self.hash = Hash::of(etag, Some(len));
        self.rehash(len)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(at(&self.path))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what is there.
    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(at(&self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(at(&self.path))?;
        self.misled |= std::mem::take(&mut self.kept);
        self.len = 0;
        self.hash = self.hash.anew(self.size);
        Ok(())
    }
}

/// The hash that an etag is, as far as one can tell by its form.
enum Hash {
    /// 64 digits: of a large file's bytes.
    Sha256(Sha256),
    /// 40 digits: git's hash of a file, or the plain one that some mirrors give.
    Sha1 { git: Sha1, plain: Sha1 },
    /// None of both: only the length can be compared.
    None,
}

impl Hash {
    fn of(etag: &str, size: Option<u64>) -> Self {
        let is_hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
        match (etag.len(), size) {
            (64, _) if is_hex => Self::Sha256(Sha256::new()),
            (40, Some(_)) if is_hex => Self::None.sha1(size),
            _ => Self::None,
        }
    }

    fn sha1(&self, size: Option<u64>) -> Self {
        let git = Sha1::new_with_prefix(format!("blob {}\0", size.unwrap_or_default()));
        let plain = Sha1::new();
        Self::Sha1 { git, plain }
    }

    fn anew(&self, size: Option<u64>) -> Self {
        match self {
            Self::Sha256(_) => Self::Sha256(Sha256::new()),
            Self::Sha1 { .. } => self.sha1(size),
            Self::None => Self::None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha1 { git, plain } => {
                git.update(bytes);
                plain.update(bytes);
            }
            Self::None => {}
        }
    }

    /// Compares with the etag; the hash that was found where it is another.
    fn check(&self, etag: &str) -> Result<(), String> {
        let found = match self {
            Self::Sha256(hash) => vec![hex(&hash.clone().finalize())],
            Self::Sha1 { git, plain } => {
                vec![hex(&git.clone().finalize()), hex(&plain.clone().finalize())]
            }
            Self::None => return Ok(()),
        };
        match found.iter().any(|found| found.eq_ignore_ascii_case(etag)) {
            true => Ok(()),
            false => Err(found[0].clone()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Counts each byte of a file once, also when it comes a second time.
struct Report<'a> {
    progress: &'a dyn Progress,
    reported: u64,
}

impl Report<'_> {
    fn reach(&mut self, len: u64) {
        if len > self.reported {
            self.progress.advance(len - self.reported);
            self.reported = len;
        }
    }
}
