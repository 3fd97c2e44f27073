//! Gemma 4 as MIL: one decoder layer, chunk split, functions.
//!
//! [`split::chunks`] cuts a [`ModelPlan`](crate::gemma::ModelPlan) into packages, [`build_chunk`] writes one of them as a MIL program whose
//! weights are still to come, and says which checkpoint tensor fills each. How weights are quantized is not known here.
//!
//! The layer is written once, in `layer.rs`; variants enter through its seams: `inputs.rs` (where embedding, per-layer
//! input, RoPE and masks come from), `emitter.rs` (how a projection is written), `cache.rs` (K/V between steps),
//! `attention.rs`, `ffn.rs`, `experts.rs`. `chunk.rs` declares the inputs and outputs of a package. `docs/graph.md` tells how to add one.
//!
//! A stream is `(1, channels, 1, 1)`, heads are `(1, heads, 1, head_dim)`, keys and values `(1, kv_heads, length,
//! head_dim)`. All fp16, batch 1, rank at most 4. Intermediates with names of their own, for whoever runs a package and
//! wants to see them: `layer_{i}_out`, `final_norm_out`, `logits`.

mod attention;
mod cache;
mod chunk;
mod emitter;
mod error;
mod experts;
mod ffn;
mod head;
mod inputs;
mod layer;
pub mod split;
#[cfg(test)]
mod tests;
mod weights;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use chunk::build_chunk;
pub use error::{Error, Result};
pub use split::{ChunkSpec, Layout};
pub use weights::{WeightBinding, WeightKind, WeightLayout, chunk_weights};

use crate::mil;

/// What a chunk is built for, beside the model.
#[derive(Debug, Clone)]
pub struct GraphOptions {
    /// Context length in tokens: rows of the full-attention caches.
    pub context: usize,
    /// How a query attends to its keys.
    pub attention: AttentionForm,
    /// How keys and values are kept between steps.
    pub cache: CacheForm,
    /// The function to build.
    pub function: FunctionKind,
}

impl GraphOptions {
    /// One-token decode with the plain forms.
    pub fn decode(context: usize) -> Self {
        Self {
            context,
            attention: AttentionForm::Standard,
            cache: CacheForm::Shift,
            function: FunctionKind::Decode,
        }
    }
}

/// How a query attends to its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionForm {
    /// All keys at once, softmax in its parts.
    Standard,
}

/// How keys and values are kept between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheForm {
    /// Passed in and out: sliding caches drop the oldest row and append, full caches scatter through `update_mask`.
    Shift,
}

/// A function of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FunctionKind {
    /// One token in, the next one out.
    Decode,
}

impl fmt::Display for FunctionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decode => "decode",
        })
    }
}

/// A chunk as MIL, and what fills its weights.
#[derive(Debug, Clone)]
pub struct ChunkGraph {
    /// File name of the package without extension.
    pub name: String,
    /// The program.
    pub program: mil::Program,
    /// Every weight of the program, in canonical blob order.
    pub weights: Vec<WeightBinding>,
}
