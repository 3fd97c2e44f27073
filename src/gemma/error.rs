//! What can go wrong in planning or running a model.

use crate::checkpoint;

/// An error of this room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint cannot be read, or is not what the plan needs.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// A KV-shared layer has nothing to share from.
    #[error("layer {layer} shares K and V, but no {kind} layer below it owns any")]
    NoProducer {
        /// The sharing layer.
        layer: usize,
        /// Its kind, as `layer_types` names it.
        kind: &'static str,
    },
    /// A token id is not in the vocabulary.
    #[error("token id {id} at position {position}: expected less than {vocab}")]
    TokenId {
        /// The id.
        id: u32,
        /// Its position in the input.
        position: usize,
        /// Rows of the table.
        vocab: usize,
    },
    /// A forward pass over no tokens.
    #[error("expected at least one token id, got none")]
    NoTokens,
    /// A cache of another model.
    #[error("the cache holds {got} layers, expected {expected}")]
    WrongCache {
        /// Layers of the model.
        expected: usize,
        /// Layers of the cache.
        got: usize,
    },
    /// A replacement for table rows failed.
    #[error("row of token {token}: {source}")]
    Row {
        /// The token.
        token: u32,
        /// What the replacement said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A replacement for cos and sin failed.
    #[error("cos and sin of position {position}: {source}")]
    Rotary {
        /// The position.
        position: usize,
        /// What the replacement said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A replacement for a weight failed.
    #[error("tensor {tensor}: {source}")]
    Weight {
        /// Name without prefix.
        tensor: String,
        /// What the replacement said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// candle refused an operation.
    #[error("{what}: {source}")]
    Compute {
        /// The part of the computation.
        what: String,
        /// What candle said.
        source: Box<candle_core::Error>,
    },
}

/// Result of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;
