//! What can go wrong while comparing models.

use std::path::PathBuf;

/// An error of this room; the name of the thing is in the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: cannot be read or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not valid safetensors, or could not be written as such.
    #[error("{}: not a valid safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// A reference file lacks a tensor.
    #[error("{}: tensor `{name}` is missing", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor of a reference file is not as the format says.
    #[error("{}: tensor `{name}`: expected {expected}, got {got}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What the format asks for.
        expected: String,
        /// What the file has.
        got: String,
    },
    /// Reference and bundle are of different models, or the text or prompt does not fit.
    #[error("{what}: expected {expected}, got {got}")]
    Mismatch {
        /// What does not agree.
        what: String,
        /// One side.
        expected: String,
        /// The other.
        got: String,
    },
    /// The model plan or the f32 reference.
    #[error(transparent)]
    Gemma(Box<crate::gemma::Error>),
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(Box<crate::checkpoint::Error>),
    /// The bundle.
    #[error(transparent)]
    Bundle(Box<crate::bundle::Error>),
    /// The CPU runtime.
    #[error(transparent)]
    Runtime(Box<crate::runtime::Error>),
}

macro_rules! boxed {
    ($($variant:ident: $source:ty),*) => {$(
        impl From<$source> for Error {
            fn from(source: $source) -> Self {
                Error::$variant(Box::new(source))
            }
        }
    )*};
}

boxed!(
    Gemma: crate::gemma::Error,
    Checkpoint: crate::checkpoint::Error,
    Bundle: crate::bundle::Error,
    Runtime: crate::runtime::Error
);

/// Result of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;
