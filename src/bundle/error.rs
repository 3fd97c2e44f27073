//! What can be wrong with a bundle or an archive of one.

use std::path::PathBuf;

/// Result of bundle operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong, where, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory the bundle needs is not there.
    #[error("{path}: not there\nhint: {hint}")]
    Missing {
        /// The missing path.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The path read or written.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{path}: {reason}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason, with line and column.
        reason: String,
    },
    /// A value of `model_config.json` cannot be right.
    #[error("model_config.json: {field}: expected {expected}, got {got}")]
    Config {
        /// The key.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A file has another size than the config calls for.
    #[error("{path}: expected {expected} bytes ({why}), got {got}")]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes it must have.
        expected: u64,
        /// Where that figure comes from.
        why: String,
        /// Bytes it has.
        got: u64,
    },
    /// A file is not an fp16 table in npy version 1.
    #[error("{path}: not an fp16 table in npy version 1: {reason}")]
    Npy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A package does not open.
    #[error("{chunk}.mlpackage: {source}")]
    Package {
        /// The chunk.
        chunk: String,
        /// The reader's reason.
        source: Box<crate::package::Error>,
    },
    /// A chunk's feature disagrees with the config or with another chunk.
    #[error("{chunk}.mlpackage: {feature}: expected {expected}, got {got}")]
    Feature {
        /// The chunk.
        chunk: String,
        /// The input or output.
        feature: String,
        /// What it must be, and by whom.
        expected: String,
        /// What the package declares.
        got: String,
    },
    /// A row index past the end of a table.
    #[error("{table}: row {row} asked for, it has {rows}")]
    Row {
        /// The table's file.
        table: String,
        /// The row asked for.
        row: usize,
        /// Rows there are.
        rows: usize,
    },
    /// The caller's buffer has another length than a row.
    #[error("{table}: a row has {expected} values, the buffer {got}")]
    RowLength {
        /// The table's file.
        table: String,
        /// Values in a row.
        expected: usize,
        /// Values the buffer holds.
        got: usize,
    },
    /// The output exists and was not to be replaced.
    #[error("{path}: exists\nhint: choose another output or ask for it to be replaced")]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// Another process is writing the same output.
    #[error("{path}: locked by another conversion\nhint: wait for it, or choose another output")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The output exists and is not a bundle, so it is not replaced either.
    #[error("{path}: exists and is not a bundle ({reason})\nhint: choose another output")]
    NotABundle {
        /// The output.
        path: PathBuf,
        /// What gave it away.
        reason: &'static str,
    },
    /// The disk, a quota or a file size limit was reached. What was finished is kept.
    #[error(
        "{path}: no space: {source}\nhint: free some and run the same command again; finished parts are kept"
    )]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file was changed or damaged since it was written.
    #[error("{path}: {what}: expected {expected}, got {got}")]
    Content {
        /// The file.
        path: PathBuf,
        /// `sha256` or `bytes`.
        what: &'static str,
        /// What was recorded.
        expected: String,
        /// What is there.
        got: String,
    },
    /// An archive is damaged, or not one of ours.
    #[error("{path}: {entry}: {reason}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The entry, or "archive".
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A directory that is to be packed holds something a bundle has no place for.
    #[error("{path}: {reason}")]
    Foreign {
        /// The odd thing.
        path: PathBuf,
        /// Why it cannot be packed.
        reason: &'static str,
    },
}

/// Attaches a path to an I/O error; "not found" becomes [`Error::Missing`].
pub(crate) fn at(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| {
        if source.kind() == std::io::ErrorKind::NotFound {
            Error::Missing {
                path: path.to_path_buf(),
                hint: "the bundle is not complete: convert again",
            }
        } else {
            Error::Io {
                path: path.to_path_buf(),
                source,
            }
        }
    }
}

/// Attaches a path to an error of writing; a full disk, quota or file size limit becomes [`Error::DiskFull`].
pub(crate) fn writing(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| {
        let path = path.to_path_buf();
        if is_full(&source) {
            Error::DiskFull { path, source }
        } else {
            Error::Io { path, source }
        }
    }
}

/// Whether an I/O error says that no more can be written.
pub(crate) fn is_full(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull, WriteZero};
    matches!(
        e.kind(),
        FileTooLarge | QuotaExceeded | StorageFull | WriteZero
    )
}
