//! What can go wrong in measuring, and with a file of statistics.

use std::path::PathBuf;

use crate::{checkpoint, gemma};

/// An error of this room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint or its tokenizer cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The reference forward failed.
    #[error(transparent)]
    Gemma(#[from] gemma::Error),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The output is there already.
    #[error("{path}: there already")]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The output's name is not one for a file.
    #[error("{path}: not a name for a file")]
    NotAFile {
        /// The output.
        path: PathBuf,
    },
    /// Another process writes the same output.
    #[error("{path}: another process is writing it")]
    Locked {
        /// The file that is being written.
        path: PathBuf,
    },
    /// The text gives no tokens.
    #[error("the text has no tokens")]
    NoText,
    /// A chat was asked for and the checkpoint has no template.
    #[error("{dir}: no chat template\nhint: without --chat the text is taken as it is")]
    NoTemplate {
        /// The snapshot directory.
        dir: PathBuf,
    },
    /// A sequence length that cannot be used.
    #[error("sequences of {got} tokens: expected from {least} to {most}")]
    Length {
        /// The least that holds a token of the text.
        least: usize,
        /// Positions that the model was made for.
        most: usize,
        /// What was asked for.
        got: usize,
    },
    /// More noise than there are token ids to hand it out by.
    #[error("{got} samples of noise: expected from 1 to {most}")]
    Noise {
        /// The size of the vocabulary, or the positions of the model.
        most: usize,
        /// What was asked for.
        got: usize,
    },
    /// An input that is NaN or infinite.
    #[error("the input of {tensor} is {value} in channel {channel}: expected finite numbers")]
    NotFinite {
        /// The tensor of the linear layer.
        tensor: String,
        /// Channel of the input.
        channel: usize,
        /// The value.
        value: f32,
    },
    /// A linear layer that the sites do not know, or one that saw another number of rows.
    #[error("{tensor}: expected {expected} rows of input, saw {got}")]
    Rows {
        /// The tensor of the linear layer.
        tensor: String,
        /// Rows that every token of the text makes.
        expected: u64,
        /// Rows seen.
        got: u64,
    },
    /// Not a safetensors file.
    #[error("{path}: {source}")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// The metadata of a file is not that of statistics.
    #[error(
        "{path}: metadata `{key}`: expected {expected}, got {got}\nhint: `gemma-coreml calibrate` writes such files"
    )]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: &'static str,
        /// What belongs there.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A tensor of a file is missing, surplus, or not what it should be.
    #[error(
        "{path}: tensor {tensor}: expected {expected}, got {got}\nhint: measure again with `gemma-coreml calibrate`"
    )]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        tensor: String,
        /// What belongs there.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A file has no statistics of a tensor's input.
    #[error(
        "{path}: no statistics of the input of {tensor}; the file has {has}\nhint: measure the checkpoint that is converted"
    )]
    NoSuchInput {
        /// The file.
        path: PathBuf,
        /// The tensor asked for, without prefix.
        tensor: String,
        /// What the file has.
        has: String,
    },
}

/// Result of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;
