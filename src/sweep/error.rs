//! What can stop a sweep.

use std::path::{Path, PathBuf};

/// An error of this room; the name of the thing is in the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing to compare.
    #[error("no recipe given")]
    NoRecipes,
    /// Results are kept by name.
    #[error(
        "two recipes are named `{name}`\nhint: give one of them another `name` in its TOML file"
    )]
    SameName {
        /// The name.
        name: String,
    },
    /// A recipe does not fit the model, or its conversion failed.
    #[error("recipe {recipe}: {source}")]
    Convert {
        /// Its name.
        recipe: String,
        /// Why.
        source: Box<crate::convert::Error>,
    },
    /// A calibration was given that no conversion takes.
    #[error("{}: this version's conversion takes no calibration", path.display())]
    Calibration {
        /// The file.
        path: PathBuf,
    },
    /// The context is not one the model can have.
    #[error("context {context}: expected 2 to {max}, the positions the model was made for")]
    Context {
        /// What was asked.
        context: usize,
        /// `max_position_embeddings`.
        max: usize,
    },
    /// An id of text, prompt or recall set is not in the vocabulary.
    #[error("{what}: token id {id}: expected an id below the vocabulary size {vocab}")]
    TokenId {
        /// Where it stands.
        what: String,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// Prompt or recall context do not fit the bundles' context.
    #[error(
        "{what} needs {needed} positions, the context has {context}\nhint: give a longer --context"
    )]
    TooLong {
        /// What is too long.
        what: String,
        /// Positions it takes.
        needed: usize,
        /// Positions there are.
        context: usize,
    },
    /// A line of a recall set is not one.
    #[error("{}:{line}: {message}", path.display())]
    Recall {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Another sweep works in the directory.
    #[error(
        "{}: another sweep is at work there\nhint: wait for it, or choose another directory", dir.display()
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{}: cannot be read or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Logits of another width than the reference's.
    #[error("{recipe}: logits of {got} ids, expected {expected}")]
    Width {
        /// The recipe.
        recipe: String,
        /// Ids of the reference.
        expected: usize,
        /// Ids of the bundle.
        got: usize,
    },
    /// A result could not be written as JSON.
    #[error("{what}: {source}")]
    Json {
        /// The file.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(Box<crate::checkpoint::Error>),
    /// The bundle.
    #[error(transparent)]
    Bundle(Box<crate::bundle::Error>),
    /// Running a model.
    #[error(transparent)]
    Evaluate(Box<crate::evaluate::Error>),
}

impl From<crate::checkpoint::Error> for Error {
    fn from(e: crate::checkpoint::Error) -> Self {
        Error::Checkpoint(Box::new(e))
    }
}

impl From<crate::bundle::Error> for Error {
    fn from(e: crate::bundle::Error) -> Self {
        Error::Bundle(Box::new(e))
    }
}

impl From<crate::evaluate::Error> for Error {
    fn from(e: crate::evaluate::Error) -> Self {
        Error::Evaluate(Box::new(e))
    }
}

impl From<crate::gemma::Error> for Error {
    fn from(e: crate::gemma::Error) -> Self {
        Error::Evaluate(Box::new(e.into()))
    }
}

impl From<crate::runtime::Error> for Error {
    fn from(e: crate::runtime::Error) -> Self {
        Error::Evaluate(Box::new(e.into()))
    }
}

/// Names the file of an I/O error.
pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.to_path_buf(),
        source,
    }
}

/// Result of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;
