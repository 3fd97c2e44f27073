//! Gemma 4 as MIL: one decoder layer, chunk split, functions.
//!
//! [`packages`] cuts a [`ModelPlan`](crate::gemma::ModelPlan) into packages, [`build_chunk`] writes one of them as a MIL program whose
//! weights are still to come, and says which checkpoint tensor fills each. How weights are quantized is not known here.
//!
//! The layer is written once, in `layer.rs`; variants enter through its seams: `inputs.rs` (where embedding, per-layer
//! input, RoPE and masks come from), `emitter.rs` (how a projection is written), `cache/` (K/V between steps),
//! `attention.rs`, `ffn.rs`, `experts.rs`. `chunk.rs` declares the outputs of a package. `docs/graph.md` tells how to add one.
//!
//! A stream of T tokens is `(1, channels, 1, T)`, heads are `(1, heads, T, head_dim)`, keys and values `(1, kv_heads,
//! length, head_dim)`. All fp16, batch 1, rank at most 4. Intermediates with names of their own, for whoever runs a package and
//! wants to see them: `layer_{i}_out`, `final_norm_out`, `logits`.

mod attention;
mod cache;
mod chunk;
mod emitter;
mod error;
mod experts;
mod ffn;
mod forms;
mod head;
mod inputs;
mod layer;
pub mod split;
#[cfg(test)]
mod tests;
mod weights;

pub use chunk::build_chunk;
pub use error::{Error, Result};
pub use forms::{
    AttentionForm, CacheForm, FunctionKind, GraphOptions, Layout, LinearActivations,
    PrefillPackages, Rounding,
};
pub use split::{ChunkSpec, packages};
pub use weights::{WeightBinding, WeightKind, WeightLayout, chunk_weights};

use crate::mil;

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
