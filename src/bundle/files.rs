//! Hashing, listing and syncing files.

use super::error::{Error, Result, at, writing};
use super::provenance::FileRecord;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes moved at a time when a file is read from end to end.
pub(crate) const COPY_BUFFER: usize = 1 << 20;

/// Lower-case hex of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
}

/// Size and SHA-256 of a file.
pub fn record(path: &Path) -> Result<FileRecord> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; COPY_BUFFER];
    let mut bytes = 0u64;
    loop {
        let n = file.read(&mut buffer).map_err(at(path))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        bytes += n as u64;
    }
    Ok(FileRecord {
        bytes,
        sha256: hex(&hash.finalize()),
    })
}

/// Checks a file against what was recorded of it.
pub fn verify(path: &Path, expected: &FileRecord) -> Result<()> {
    let wrong = |what, expected: String, got: String| {
        Err(Error::Content {
            path: path.to_path_buf(),
            what,
            expected,
            got,
        })
    };
    let bytes = fs::metadata(path).map_err(at(path))?.len();
    if bytes != expected.bytes {
        return wrong("bytes", expected.bytes.to_string(), bytes.to_string());
    }
    let got = record(path)?;
    if got.sha256 != expected.sha256 {
        return wrong("sha256", expected.sha256.clone(), got.sha256);
    }
    Ok(())
}

/// Every file below `dir`, as relative paths with `/`, sorted by bytes. Links and special files are errors.
pub fn list(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![(dir.to_path_buf(), String::new())];
    while let Some((path, prefix)) = open.pop() {
        for entry in fs::read_dir(&path).map_err(at(&path))? {
            let entry = entry.map_err(at(&path))?;
            let kind = entry.file_type().map_err(at(&path))?;
            let foreign = |reason| {
                Err(Error::Foreign {
                    path: entry.path(),
                    reason,
                })
            };
            let Ok(name) = entry.file_name().into_string() else {
                return foreign("its name is not UTF-8");
            };
            if name.contains('\\') {
                return foreign("its name holds a backslash");
            }
            if kind.is_dir() {
                open.push((entry.path(), format!("{prefix}{name}/")));
            } else if kind.is_file() {
                found.push(format!("{prefix}{name}"));
            } else {
                return foreign("neither a file nor a directory");
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Writes a file in whole, through to the disk.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(writing(path))?;
    file.write_all(bytes).map_err(writing(path))?;
    file.sync_all().map_err(writing(path))
}

/// Brings a directory's entries to the disk.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(writing(dir))
}

/// Brings every file and directory below and including `dir` to the disk.
pub fn sync_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        let path = entry.path();
        if entry.file_type().map_err(at(dir))?.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)
                .and_then(|f| f.sync_all())
                .map_err(writing(&path))?;
        }
    }
    sync_dir(dir)
}

/// Removes a file or a directory with all it holds; nothing there is fine.
pub fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::Io {
            path: path.to_path_buf(),
            source: e,
        }),
        _ => Ok(()),
    }
}

/// Free bytes for an ordinary user on the file system that holds `path`; `None` where the system does not say.
pub fn free_space(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: `name` is a NUL-terminated string and `stat` is room for the one struct that statvfs fills in.
        if unsafe { libc::statvfs(name.as_ptr(), stat.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: statvfs returned 0, so it has filled the struct.
        let stat = unsafe { stat.assume_init() };
        #[allow(clippy::unnecessary_cast)] // the fields are 32 bits wide on some systems
        (stat.f_bavail as u64).checked_mul(stat.f_frsize as u64)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// The path beside `path` whose name is `.NAME.partial`.
pub(crate) fn partial_sibling(path: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    name.push(".partial");
    Some(path.with_file_name(name))
}
