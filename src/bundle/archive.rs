//! A bundle as one zip file.
//!
//! Entries are stored, sorted by name, with the zip epoch as time and mode 0644, so that equal bundles give equal archives.
//! The last entry, `gemma-coreml-archive.json`, maps every other entry to its size and SHA-256. Unpacking accepts exactly
//! the entries listed there, checks CRC, size and hash of each, and opens the bundle before it is put in place.

use super::error::{Error, Result, at, writing};
use super::files::{self, COPY_BUFFER};
use super::provenance::FileRecord;
use super::staging::Staging;
use super::{Bundle, layout};
use crate::progress::Progress;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, System, ZipArchive, ZipWriter};

/// Name of the manifest entry.
pub const MANIFEST: &str = "gemma-coreml-archive.json";
/// Version of the manifest's form.
const FORMAT: u32 = 1;
/// Largest manifest that is read.
const MAX_MANIFEST: u64 = 16 << 20;
/// Entries of at least this size carry 64-bit sizes.
const ZIP64_FROM: u64 = u32::MAX as u64;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    tool: String,
    files: BTreeMap<String, FileRecord>,
}

/// What was packed or unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArchiveReport {
    /// The archive or the directory written.
    pub output: PathBuf,
    /// Files of the bundle.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Packs the bundle in `dir` into the zip file `output`. The bundle is opened first and each file compared with its hash in
/// provenance.json. An existing `output` is [`Error::Exists`] unless `replace`. Compiled models beside the packages are left out.
pub fn pack(
    dir: &Path,
    output: &Path,
    replace: bool,
    progress: &dyn Progress,
) -> Result<ArchiveReport> {
    let bundle = Bundle::open(dir)?;
    let known = &bundle.provenance().files;
    let mut names = files::list(dir)?;
    names.retain(|name| !is_compiled(&bundle, name));
    for name in &names {
        if !known.contains_key(name) && name != layout::PROVENANCE {
            return Err(Error::Foreign {
                path: dir.join(name),
                reason: "not a file of this bundle",
            });
        }
    }
    if fs::symlink_metadata(output).is_ok() && !replace {
        return Err(Error::Exists {
            path: output.to_path_buf(),
        });
    }
    let foreign = |reason| Error::Foreign {
        path: output.to_path_buf(),
        reason,
    };
    let Some(partial) = files::partial_sibling(output) else {
        return Err(foreign("not a name for a file"));
    };
    let absolute = |path: &Path| std::path::absolute(path).map_err(writing(path));
    if absolute(output)?.starts_with(absolute(dir)?) {
        return Err(foreign("inside the bundle that is to be packed"));
    }
    if let Some(parent) = output.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(writing(parent))?;
    }
    progress.begin("pack", known.values().map(|r| r.bytes).sum());
    let result = write_archive(dir, &names, known, &partial, progress);
    progress.end();
    match result {
        Ok(bytes) => {
            fs::rename(&partial, output).map_err(writing(output))?;
            let parent = output.parent().filter(|p| !p.as_os_str().is_empty());
            files::sync_dir(parent.unwrap_or(Path::new(".")))?;
            Ok(ArchiveReport {
                output: output.to_path_buf(),
                files: names.len(),
                bytes,
            })
        }
        Err(e) => {
            if !matches!(e, Error::Locked { .. }) {
                files::remove(&partial)?;
            }
            Err(e)
        }
    }
}

/// Whether `name` belongs to a compiled chunk (`chunk1.mlmodelc/...`), which `compile` puts beside its package. Archives leave
/// those out: they can be made again, and by another compiler they are other bytes.
fn is_compiled(bundle: &Bundle, name: &str) -> bool {
    let top = name.split('/').next().unwrap_or_default();
    top.strip_suffix(".mlmodelc")
        .is_some_and(|stem| bundle.packages().any(|c| c.name == stem))
}

fn write_archive(
    dir: &Path,
    names: &[String],
    known: &BTreeMap<String, FileRecord>,
    partial: &Path,
    progress: &dyn Progress,
) -> Result<u64> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(partial);
    let file = file.map_err(writing(partial))?;
    if file.try_lock().is_err() {
        return Err(Error::Locked {
            path: partial.to_path_buf(),
        });
    }
    file.set_len(0).map_err(writing(partial))?;
    let mut zip = ZipWriter::new(Fused::new(BufWriter::with_capacity(COPY_BUFFER, file)));
    let mut manifest = Manifest {
        format: FORMAT,
        tool: tool(),
        files: BTreeMap::new(),
    };
    for name in names {
        progress.item(name);
        let path = dir.join(name);
        let mut source = File::open(&path).map_err(at(&path))?;
        let bytes = source.metadata().map_err(at(&path))?.len();
        zip.start_file(name, options(bytes))
            .map_err(zip_writing(partial))?;
        let record =
            copy(&mut source, &mut zip, u64::MAX, progress).map_err(|e| e.at(&path, partial))?;
        if let Some(expected) = known.get(name).filter(|r| **r != record) {
            let (expected, got) = (expected.sha256.clone(), record.sha256);
            return Err(Error::Content {
                path,
                what: "sha256",
                expected,
                got,
            });
        }
        manifest.files.insert(name.clone(), record);
    }
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::Json {
        path: MANIFEST.into(),
        reason: e.to_string(),
    })?;
    zip.start_file(MANIFEST, options(text.len() as u64))
        .map_err(zip_writing(partial))?;
    zip.write_all(&text).map_err(writing(partial))?;
    let mut out = zip.finish().map_err(zip_writing(partial))?.inner;
    out.flush().map_err(writing(partial))?;
    out.get_ref().sync_all().map_err(writing(partial))?;
    Ok(manifest.files.values().map(|r| r.bytes).sum())
}

/// A writer that swallows everything after its first error: `ZipWriter` tries to finish an archive when it is dropped, and
/// prints to stderr when that fails too.
struct Fused<W> {
    inner: W,
    blown: bool,
    /// Where the next byte goes, or would go.
    position: u64,
}

impl<W> Fused<W> {
    /// `inner` must stand at its beginning.
    fn new(inner: W) -> Self {
        Self {
            inner,
            blown: false,
            position: 0,
        }
    }

    fn watch<T>(&mut self, result: std::io::Result<T>) -> std::io::Result<T> {
        if let Err(e) = &result {
            self.blown |= e.kind() != std::io::ErrorKind::Interrupted;
        }
        result
    }
}

impl<W: Write> Write for Fused<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = match self.blown {
            true => bytes.len(),
            false => {
                let result = self.inner.write(bytes);
                self.watch(result)?
            }
        };
        self.position = self.position.saturating_add(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.blown {
            return Ok(());
        }
        let result = self.inner.flush();
        self.watch(result)
    }
}

impl<W: Seek> Seek for Fused<W> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.position = match (self.blown, to) {
            (true, SeekFrom::Start(n)) => n,
            (true, SeekFrom::Current(n) | SeekFrom::End(n)) => {
                self.position.saturating_add_signed(n)
            }
            (false, _) => {
                let result = self.inner.seek(to);
                self.watch(result)?
            }
        };
        Ok(self.position)
    }
}

fn tool() -> String {
    format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
}

fn options(bytes: u64) -> SimpleFileOptions {
    SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::DEFAULT)
        .unix_permissions(0o644)
        .system(System::Unix)
        .large_file(bytes >= ZIP64_FROM)
}

/// Unpacks `archive` into the directory `output`, which must not exist unless `replace` (then it must be a bundle).
/// Nothing appears at `output` unless every entry is right and the bundle opens.
pub fn unpack(
    archive: &Path,
    output: &Path,
    replace: bool,
    progress: &dyn Progress,
) -> Result<ArchiveReport> {
    let file = File::open(archive).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::Missing {
            path: archive.to_path_buf(),
            hint: "name the archive to unpack",
        },
        _ => Error::Io {
            path: archive.to_path_buf(),
            source: e,
        },
    })?;
    let mut zip =
        ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(archive, "archive", e))?;
    let manifest = read_manifest(&mut zip, archive)?;
    let staging = Staging::lock(output, replace)?;
    staging.clear()?;
    let bytes = manifest
        .files
        .values()
        .fold(0u64, |n, r| n.saturating_add(r.bytes));
    let result = check_space(staging.output(), bytes).and_then(|()| {
        let content = staging.content()?;
        progress.begin("unpack", bytes);
        let result = extract(&mut zip, archive, &manifest, &content, progress);
        progress.end();
        result?;
        files::sync_tree(&content)?;
        Bundle::open(&content).map(drop)
    });
    match result {
        Ok(()) => {
            let report = ArchiveReport {
                output: output.to_path_buf(),
                files: manifest.files.len(),
                bytes,
            };
            staging.install()?;
            Ok(report)
        }
        Err(e) => {
            staging.discard()?;
            Err(e)
        }
    }
}

fn check_space(output: &Path, bytes: u64) -> Result<()> {
    let free = output.parent().and_then(files::free_space);
    match free {
        Some(free) if free < bytes => Err(Error::DiskFull {
            path: output.to_path_buf(),
            source: std::io::Error::new(
                std::io::ErrorKind::StorageFull,
                format!("{bytes} bytes needed, {free} free"),
            ),
        }),
        _ => Ok(()),
    }
}

/// Reads the manifest and checks that it lists exactly the other entries, under harmless names.
fn read_manifest(zip: &mut ZipArchive<BufReader<File>>, archive: &Path) -> Result<Manifest> {
    let bad = |entry: &str, reason: String| {
        Err(Error::Archive {
            path: archive.to_path_buf(),
            entry: entry.into(),
            reason,
        })
    };
    let mut text = Vec::new();
    match zip.by_name(MANIFEST) {
        Ok(entry) => entry.take(MAX_MANIFEST + 1).read_to_end(&mut text),
        Err(e) => return Err(damaged(archive, MANIFEST, e)),
    }
    .map_err(|e| damaged(archive, MANIFEST, e.into()))?;
    if text.len() as u64 > MAX_MANIFEST {
        return bad(MANIFEST, format!("larger than {MAX_MANIFEST} bytes"));
    }
    let manifest: Manifest = match serde_json::from_slice(&text) {
        Ok(manifest) => manifest,
        Err(e) => return bad(MANIFEST, e.to_string()),
    };
    if manifest.format != FORMAT {
        return bad(
            MANIFEST,
            format!("format: expected {FORMAT}, got {}", manifest.format),
        );
    }
    if zip.len() != manifest.files.len() + 1 {
        let listed = manifest.files.len();
        let (expected, got) = (listed + 1, zip.len());
        return bad(
            "archive",
            format!("entries: expected {expected} ({listed} files and their list), got {got}"),
        );
    }
    for name in manifest.files.keys() {
        if !harmless(name) || name == MANIFEST {
            return bad(name, "not a plain relative path".into());
        }
    }
    match zip.has_overlapping_files() {
        Ok(false) => Ok(manifest),
        Ok(true) => bad("archive", "entries overlap".into()),
        Err(e) => Err(damaged(archive, "archive", e)),
    }
}

/// Whether `name` is `part/part/...` of plain parts that mean the same on every system.
fn harmless(name: &str) -> bool {
    let odd = |c: char| c.is_control() || matches!(c, '\\' | ':');
    name.len() <= 1024
        && name
            .split('/')
            .all(|part| !matches!(part, "" | "." | "..") && !part.contains(odd))
}

fn extract(
    zip: &mut ZipArchive<BufReader<File>>,
    archive: &Path,
    manifest: &Manifest,
    content: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    for (name, expected) in &manifest.files {
        progress.item(name);
        let bad = |reason: String| {
            Err(Error::Archive {
                path: archive.to_path_buf(),
                entry: name.clone(),
                reason,
            })
        };
        let mut entry = zip.by_name(name).map_err(|e| damaged(archive, name, e))?;
        if entry.is_dir() || entry.is_symlink() || entry.encrypted() {
            return bad("not a plain file".into());
        }
        if entry.size() != expected.bytes {
            return bad(format!(
                "size: expected {}, got {}",
                expected.bytes,
                entry.size()
            ));
        }
        let target = content.join(name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(writing(parent))?;
        }
        let mut out = File::create_new(&target).map_err(writing(&target))?;
        let got = copy(&mut entry, &mut out, expected.bytes, progress).map_err(|e| match e {
            CopyError::Read(e) => damaged(archive, name, e.into()),
            CopyError::Write(e) => writing(&target)(e),
            CopyError::TooLong => Error::Archive {
                path: archive.to_path_buf(),
                entry: name.clone(),
                reason: format!("longer than its {} bytes", expected.bytes),
            },
        })?;
        if got != *expected {
            return bad(format!(
                "sha256: expected {}, got {}",
                expected.sha256, got.sha256
            ));
        }
    }
    Ok(())
}

enum CopyError {
    Read(std::io::Error),
    Write(std::io::Error),
    TooLong,
}

impl CopyError {
    fn at(self, from: &Path, to: &Path) -> Error {
        match self {
            Self::Read(e) => at(from)(e),
            Self::Write(e) => writing(to)(e),
            Self::TooLong => writing(to)(std::io::ErrorKind::FileTooLarge.into()),
        }
    }
}

/// Copies at most `limit` bytes and hashes them; more is [`CopyError::TooLong`].
fn copy(
    from: &mut dyn Read,
    to: &mut dyn Write,
    limit: u64,
    progress: &dyn Progress,
) -> std::result::Result<FileRecord, CopyError> {
    let mut buffer = vec![0; COPY_BUFFER];
    let (mut bytes, mut hash) = (0u64, Sha256::new());
    loop {
        let n = from.read(&mut buffer).map_err(CopyError::Read)?;
        if n == 0 {
            return Ok(FileRecord {
                bytes,
                sha256: files::hex(&hash.finalize()),
            });
        }
        bytes += n as u64;
        if bytes > limit {
            return Err(CopyError::TooLong);
        }
        hash.update(&buffer[..n]);
        to.write_all(&buffer[..n]).map_err(CopyError::Write)?;
        progress.advance(n as u64);
    }
}

fn damaged(archive: &Path, entry: &str, e: ZipError) -> Error {
    Error::Archive {
        path: archive.to_path_buf(),
        entry: entry.into(),
        reason: e.to_string(),
    }
}

fn zip_writing(path: &Path) -> impl FnOnce(ZipError) -> Error + '_ {
    move |e| match e {
        ZipError::Io(e) => writing(path)(e),
        other => damaged(path, "archive", other),
    }
}
