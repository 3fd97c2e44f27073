//! The part of the Hugging Face cache that is one repository's:
//!
//! | path | what it is |
//! |---|---|
//! | `models--ORG--NAME/blobs/ETAG` | a file's bytes, once for all commits; `ETAG.incomplete` while it is fetched |
//! | `models--ORG--NAME/snapshots/COMMIT/FILE` | a link to the blob, or the file itself where there are no links |
//! | `models--ORG--NAME/refs/REVISION` | the commit that a branch, tag or `refs/pr/N` meant when it was asked for last |
//! | `.locks/models--ORG--NAME/ETAG.lock` | held (`flock`) by the process that fetches the blob |
//!
//! `.no_exist/` and `trees/`, which `huggingface_hub` keeps beside them, are neither read nor written: the list of files tells.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo};

use super::id::{HubId, is_commit};
use super::{Error, Result};

/// Times that a lock is taken anew because another process removed its file.
const LOCK_ATTEMPTS: usize = 100;

/// One repository in the cache.
pub(super) struct RepoCache {
    dir: PathBuf,
    locks: PathBuf,
    layout: CacheRepo,
    symlinks: bool,
}

impl RepoCache {
    pub fn new(cache: &Path, id: &HubId, symlinks: bool) -> Self {
        let repo = Repo::model(id.repo());
        let folder = repo.folder_name();
        Self {
            dir: cache.join(&folder),
            locks: cache.join(".locks").join(folder),
            layout: Cache::new(cache.to_path_buf()).repo(repo),
            symlinks,
        }
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(etag)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.dir.join("refs").join(revision)
    }

    /// The commit that a revision meant when it was asked for last.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        let text = fs::read_to_string(self.reference(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Notes what a revision means now. Written only where it says something else, by a rename, so that nobody reads half of it.
    pub fn record(&self, revision: &str, commit: &str) -> std::io::Result<()> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference(revision);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let new = beside(&path);
        let written = fs::write(&new, commit).and_then(|()| fs::rename(&new, &path));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    /// Waits for the right to fetch a blob. `None` where the file system has no locks.
    pub fn lock(&self, etag: &str) -> Result<Option<File>> {
        let path = self.locks.join(format!("{etag}.lock"));
        fs::create_dir_all(&self.locks).map_err(at(&self.locks))?;
        for _ in 0..LOCK_ATTEMPTS {
            let file = match open(&path, true) {
                // Another user's lock can be held without writing to it.
                Err(e) if e.kind() == ErrorKind::PermissionDenied => open(&path, false),
                other => other,
            };
            let file = file.map_err(at(&path))?;
            match file.lock() {
                Ok(()) if is_same(&file, &path) => return Ok(Some(file)),
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::Unsupported => return Ok(None),
                Err(e) => return Err(at(&path)(e)),
            }
        }
        Err(at(&path)(std::io::Error::other(
            "the lock is removed again and again",
        )))
    }

    /// Puts a blob into a snapshot. `new` says that no other snapshot can have it.
    pub fn link(&self, commit: &str, name: &str, etag: &str, new: bool) -> Result<()> {
        let pointer = self.snapshot(commit).join(name);
        let blob = self.blob(etag);
        if let Some(parent) = pointer.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        // What is there is no file that can be read: a link whose blob is gone.
        remove(&pointer)?;
        if self.symlinks {
            let up = "../".repeat(name.split('/').count() + 1);
            match symlink(Path::new(&format!("{up}blobs/{etag}")), &pointer) {
                Ok(()) => return Ok(()),
                Err(_) if pointer.is_file() => return Ok(()),
                Err(e) if e.kind() == ErrorKind::StorageFull => return Err(at(&pointer)(e)),
                // No links here: the file itself.
                Err(_) => {}
            }
        }
        if new {
            return fs::rename(&blob, &pointer).map_err(at(&pointer));
        }
        let copy = beside(&pointer);
        let copied = fs::copy(&blob, &copy).and_then(|_| fs::rename(&copy, &pointer));
        copied.map_err(|e| {
            let _ = fs::remove_file(&copy);
            at(&pointer)(e)
        })
    }
}

/// A name of this process for what becomes `path` by a rename.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{}.tmp", std::process::id()))
}

/// Opens or creates a file, and not what a link in its place points to.
pub(super) fn open(path: &Path, write: bool) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(write)
        .create(write)
        .truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options
            .mode(0o664)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    options.open(path)
}

fn is_same(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let pair = (file.metadata(), fs::metadata(path));
        matches!(pair, (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::symlink(target, link);
    #[cfg(not(unix))]
    {
        let _ = (target, link);
        Err(ErrorKind::Unsupported.into())
    }
}

/// Removes a file that need not be there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(at(path)(e)),
        _ => Ok(()),
    }
}

/// An error of the system about a path.
pub(super) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}
