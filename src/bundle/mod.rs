//! The directory a device loads, and the checks that make one trustworthy.
//!
//! A bundle (bundle contract, section 4) is one directory:
//!
//! | file | content |
//! |---|---|
//! | `chunk1.mlpackage` ... | the model, split by layers; names in [`BundleConfig::chunks`] |
//! | `embed_tokens_q8.bin`, `embed_tokens_scales.bin` | int8 `[V, H]`, fp16 `[V]` |
//! | `embed_tokens_per_layer_q8.bin`, `embed_tokens_per_layer_scales.bin` | int8 `[Vp, L*D]`, fp16 `[Vp]`; only when D > 0 |
//! | `per_layer_projection.bin` | fp16 `[L*D, H]`; only when D > 0 |
//! | `per_layer_norm_weight.bin` | fp32 `[D]`; only when D > 0 |
//! | `cos_sliding.npy`, `sin_sliding.npy` | fp16 `[P, head_dim]`, P at least the context |
//! | `cos_full.npy`, `sin_full.npy` | fp16 `[P, global_head_dim]` |
//! | `model_config.json` | [`BundleConfig`] |
//! | `hf_model/` | tokenizer files and the checkpoint's `config.json` |
//! | `provenance.json` | [`Provenance`]: recipe, checkpoint hash, tool version, scheme and error per tensor |
//!
//! H is the hidden size, L the layers, D the per-layer dimension, V and Vp the rows of the two vocabularies. Tables of
//! another [`TableScheme`](crate::quantize::TableScheme) have other file names, see [`layout`].

pub mod archive;
pub mod config;
pub mod error;
pub mod files;
pub mod layout;
pub mod npy;
pub mod provenance;
pub mod staging;
pub mod table;

mod check;
mod chunk;
mod open;

pub use chunk::Chunk;
pub use config::BundleConfig;
pub use error::{Error, Result};
pub use npy::NpyTable;
pub use open::{Bundle, RopeTables};
pub use provenance::Provenance;
pub use table::RowTable;
