//! Building a directory so that it either does not exist or is complete.
//!
//! Beside the output `NAME` stands `.NAME.partial/` while work goes on:
//!
//! | entry | content |
//! |---|---|
//! | `lock` | held (`flock`) by the process at work |
//! | `journal` | what is finished (written by `convert`) |
//! | `content/` | becomes `NAME` by a rename at the end |
//! | `unit0/`, `unit1/` | parts of the content while they are written |
//! | `old/` | the directory being replaced, for the moment between two renames |
//!
//! A process that dies leaves the lock free and the rest in place.

use super::error::{Error, Result, writing};
use super::{files, layout};
use crate::failpoint;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// Name of the lock file.
const LOCK: &str = "lock";
/// Times an attempt to lock is repeated when the lock file vanishes meanwhile (its last holder finished).
const LOCK_ATTEMPTS: usize = 16;

/// The right to build one output. Dropping it frees the lock and leaves what was built for a later run.
#[derive(Debug)]
pub struct Staging {
    output: PathBuf,
    root: PathBuf,
    replace: bool,
    _lock: File,
}

impl Staging {
    /// Locks `output` for building. An existing output is [`Error::Exists`] unless `replace`; then it must look like a
    /// bundle (or be an empty directory). An interrupted replacement is brought back to one of its two sound states, and
    /// what a process left that died when its output was in place is deleted, whatever comes of the call.
    pub fn lock(output: &Path, replace: bool) -> Result<Self> {
        let output = std::path::absolute(output).map_err(writing(output))?;
        let Some(root) = files::partial_sibling(&output) else {
            return Err(Error::NotABundle {
                path: output,
                reason: "not a name for a directory",
            });
        };
        if !root.exists() {
            check_output(&output, replace)?;
        }
        let lock = acquire(&root)?;
        let staging = Self {
            output,
            root,
            replace,
            _lock: lock,
        };
        staging.recover()?;
        if let Err(e) = check_output(&staging.output, replace) {
            staging.discard_if_empty();
            return Err(e);
        }
        Ok(staging)
    }

    /// Where the directory is built; made when it is not there.
    pub fn content(&self) -> Result<PathBuf> {
        let path = self.root.join("content");
        fs::create_dir_all(&path).map_err(writing(&path))?;
        Ok(path)
    }

    /// The journal's file.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// The staging directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the result will stand.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// Brings the names in the staging directory, and its own, to the disk.
    pub fn sync(&self) -> Result<()> {
        files::sync_dir(&self.root)?;
        self.root.parent().map_or(Ok(()), files::sync_dir)
    }

    /// Throws away what earlier runs left.
    pub fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.root).map_err(writing(&self.root))? {
            let entry = entry.map_err(writing(&self.root))?;
            if entry.file_name() != LOCK {
                files::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Puts the content in place: synced, renamed, an older output moved out of the way first and deleted last.
    pub fn install(self) -> Result<()> {
        let content = self.content()?;
        files::sync_dir(&content)?;
        check_output(&self.output, self.replace)?;
        let old = self.root.join("old");
        if fs::symlink_metadata(&self.output).is_ok() {
            fs::rename(&self.output, &old).map_err(writing(&self.output))?;
            failpoint::reach("install.between");
        }
        fs::rename(&content, &self.output).map_err(writing(&self.output))?;
        self.sync()?;
        failpoint::reach("install.done");
        self.discard()
    }

    /// Removes the staging directory and all it holds.
    pub fn discard(self) -> Result<()> {
        self.clear()?;
        failpoint::reach("discard.cleared");
        // The lock file goes last, still held: whoever opened it meanwhile sees that its path is gone and begins anew.
        files::remove(&self.root.join(LOCK))?;
        let _ = fs::remove_dir(&self.root); // not empty when the next process is already in
        Ok(())
    }

    /// Removes the staging directory if it holds nothing but the lock.
    pub fn discard_if_empty(self) {
        let entries = fs::read_dir(&self.root).map(|d| d.count()).unwrap_or(0);
        if entries <= 1 {
            let _ = self.discard();
        }
    }

    /// After a crash between the two renames of a replacement the old output is put back; after a crash behind the last
    /// rename, which leaves no content, what remains is deleted.
    fn recover(&self) -> Result<()> {
        let old = self.root.join("old");
        if fs::symlink_metadata(&self.output).is_ok() {
            match self.root.join("content").exists() {
                true => files::remove(&old),
                false => self.clear(),
            }
        } else if fs::symlink_metadata(&old).is_ok() {
            fs::rename(&old, &self.output).map_err(writing(&self.output))
        } else {
            Ok(())
        }
    }
}

/// Whether `output` may be written: absent, an empty directory, or a bundle that is to be replaced.
fn check_output(output: &Path, replace: bool) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(output) else {
        return Ok(());
    };
    let path = output.to_path_buf();
    if !meta.is_dir() {
        return Err(Error::NotABundle {
            path,
            reason: "not a directory",
        });
    }
    if fs::read_dir(output)
        .map_err(writing(output))?
        .next()
        .is_none()
    {
        return Ok(());
    }
    if !replace {
        return Err(Error::Exists { path });
    }
    if !output.join(layout::MODEL_CONFIG).is_file() {
        return Err(Error::NotABundle {
            path,
            reason: "no model_config.json",
        });
    }
    Ok(())
}

fn acquire(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    for _ in 0..LOCK_ATTEMPTS {
        fs::create_dir_all(root).map_err(writing(root))?;
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(writing(&path)(e)),
        };
        match file.try_lock() {
            Ok(()) if same_file(&file, &path) => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path }),
            Err(TryLockError::Error(e)) => return Err(writing(&path)(e)),
        }
    }
    Err(Error::Locked { path })
}

/// Whether `path` still names the opened file.
fn same_file(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        match (file.metadata(), fs::metadata(path)) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(staging: &Staging, text: &str) {
        let dir = staging.content().unwrap();
        fs::write(dir.join(layout::MODEL_CONFIG), text).unwrap();
    }

    fn read(output: &Path) -> String {
        fs::read_to_string(output.join(layout::MODEL_CONFIG)).unwrap()
    }

    fn entries(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn appears_whole_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("b");
        let staging = Staging::lock(&output, false).unwrap();
        fill(&staging, "one");
        assert!(!output.exists());
        staging.install().unwrap();
        assert_eq!(read(&output), "one");
        assert_eq!(entries(dir.path()), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_that_is_not_utf8_is_a_name() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join(std::ffi::OsStr::from_bytes(b"b\xff"));
        let staging = Staging::lock(&output, false).unwrap();
        fill(&staging, "one");
        staging.install().unwrap();
        assert_eq!(read(&output), "one");
        assert_eq!(entries(dir.path()), 1);
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("b");
        let first = Staging::lock(&output, false).unwrap();
        assert!(matches!(
            Staging::lock(&output, false),
            Err(Error::Locked { .. })
        ));
        drop(first);
        Staging::lock(&output, false).unwrap();
    }

    #[test]
    fn replaces_only_bundles_and_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("b");
        fs::create_dir(&output).unwrap();
        fs::write(output.join("letter.txt"), "dear").unwrap();
        assert!(matches!(
            Staging::lock(&output, false),
            Err(Error::Exists { .. })
        ));
        assert!(matches!(
            Staging::lock(&output, true),
            Err(Error::NotABundle { .. })
        ));
        fs::write(output.join(layout::MODEL_CONFIG), "old").unwrap();
        let staging = Staging::lock(&output, true).unwrap();
        fill(&staging, "new");
        staging.install().unwrap();
        assert_eq!(read(&output), "new");
        assert_eq!(entries(&output), 1);
        assert_eq!(entries(dir.path()), 1);
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        assert!(matches!(
            Staging::lock(&file, true),
            Err(Error::NotABundle { .. })
        ));
    }

    #[test]
    fn what_an_installed_output_left_is_deleted() {
        for (replace, left) in [
            (false, ["lock", "journal"]),
            (true, ["journal", "unit0"]),
            (false, ["old", "lock"]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let output = dir.path().join("b");
            let staging = Staging::lock(&output, false).unwrap();
            fill(&staging, "one");
            let root = staging.root.clone();
            staging.install().unwrap();
            fs::create_dir(&root).unwrap();
            for name in left {
                fs::write(root.join(name), "").unwrap();
            }
            let locked = Staging::lock(&output, replace);
            assert_eq!(locked.is_ok(), replace);
            let expected = if replace { 2 } else { 1 };
            assert_eq!(entries(dir.path()), expected, "{left:?}");
            if locked.is_ok() {
                assert_eq!(entries(&root), 1);
            }
            assert_eq!(read(&output), "one");
        }
    }

    #[test]
    fn death_between_the_renames_of_a_replacement_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("b");
        let staging = Staging::lock(&output, false).unwrap();
        fill(&staging, "old");
        staging.install().unwrap();
        let staging = Staging::lock(&output, true).unwrap();
        fill(&staging, "new");
        let root = staging.root.clone();
        drop(staging);
        fs::rename(&output, root.join("old")).unwrap();
        assert!(matches!(
            Staging::lock(&output, false),
            Err(Error::Exists { .. })
        ));
        assert_eq!(read(&output), "old");
        Staging::lock(&output, true).unwrap().install().unwrap();
        assert_eq!(read(&output), "new");
        assert_eq!(entries(dir.path()), 1);
    }
}
