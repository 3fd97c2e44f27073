//! What can go wrong while a package is written or read.

use std::io;
use std::path::PathBuf;

/// The error of a [`super::ConstSource`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A fault of a package, or of writing one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be written or read: full disk, missing file, no permission.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The program is at fault.
    #[error(transparent)]
    Mil(#[from] crate::mil::Error),
    /// A storage that does not fit its constant.
    #[error("weight `{weight}`: {message}")]
    Storage { weight: String, message: String },
    /// The blob order and the weights of the program differ.
    #[error("blob order: weight `{weight}` {message}")]
    BlobOrder {
        weight: String,
        message: &'static str,
    },
    /// A weight that no weight file has room for.
    #[error(
        "weight `{weight}`: {bytes} bytes, a weight file must stay below {limit}\n\
         hint: a scheme of fewer bits makes it smaller"
    )]
    WeightTooLarge {
        weight: String,
        bytes: u64,
        limit: u64,
    },
    /// The source of the weights failed.
    #[error("weight `{weight}`: {source}")]
    Source { weight: String, source: BoxError },
    /// The source streamed a part out of turn.
    #[error("weight `{weight}`: got {got} where {expected} is next")]
    PartOrder {
        weight: String,
        expected: &'static str,
        got: &'static str,
    },
    /// The source streamed too few or too many bytes.
    #[error("weight `{weight}`: {part} needs {expected} bytes, got {got}")]
    PartLength {
        weight: String,
        part: &'static str,
        expected: u64,
        got: u64,
    },
    /// Unused bits of a sub-byte part are not zero.
    #[error("weight `{weight}`: the unused bits of the last byte of {part} are not zero")]
    PartPadding { weight: String, part: &'static str },
    /// The package whose weights are to be used does not have one as the program needs it.
    #[error(
        "weight `{weight}`: expected {expected}, {donor} has {got}\n\
         hint: the two packages are of different models: write this one from the checkpoint",
        donor = donor.display()
    )]
    Donor {
        donor: PathBuf,
        weight: String,
        expected: String,
        got: String,
    },
    /// The manifest is not as Core ML expects it.
    #[error("{path}: {message}", path = path.display())]
    Manifest { path: PathBuf, message: String },
    /// The model does not decode, or its top level is at fault.
    #[error("{path}: {message}", path = path.display())]
    Model { path: PathBuf, message: String },
    /// The description does not say what the program has.
    #[error(
        "function `{function}`: description of {what} `{name}`: expected {expected}, got {got}"
    )]
    Description {
        function: String,
        what: &'static str,
        name: String,
        expected: String,
        got: String,
    },
    /// A function, an op or a value of the program is at fault.
    #[error("function `{function}`, op `{op}`, value `{value}`: {message}")]
    Program {
        function: String,
        op: String,
        value: String,
        message: String,
    },
    /// An op that the schema does not have.
    #[error("function `{function}`, op `{op}`: the op type `{op_type}` is not supported")]
    UnknownOp {
        function: String,
        op: String,
        op_type: String,
    },
    /// A weight file, or a reference to it, is at fault.
    #[error("{path} at byte {offset}: {message}", path = path.display())]
    Blob {
        path: PathBuf,
        offset: u64,
        message: String,
    },
}

impl Error {
    pub(super) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
