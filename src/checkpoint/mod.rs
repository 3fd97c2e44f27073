//! A Hugging Face snapshot: config, memory-mapped safetensors, tokenizer, hub download.
//!
//! A snapshot is a directory with `config.json`, `model.safetensors` or shards with `model.safetensors.index.json`, and the
//! tokenizer's files. [`Checkpoint::open`] reads the config, checks every safetensors header against its file and memory-maps
//! the files through candle; weights are then read a range of elements at a time.
//!
//! Names are those of the text decoder without prefix (`layers.0.mlp.up_proj.weight`): `model.language_model.` in multimodal
//! files, `model.` in text-only ones. Vision and audio tensors, an `lm_head.weight` that repeats the tied table, and the K and
//! V weights that google's files carry for layers that share K and V, are passed over and counted.

mod adapter;
mod chat;
mod clock;
mod config;
mod dtype;
mod error;
mod fields;
mod header;
mod hub;
mod mapped;
mod moe;
mod python_json;
mod store;
mod tensor;
mod tokenizer;

pub use adapter::{
    AboutAdapter, Adapter, AdapterError, AdapterFormat, AdapterMethod, AdapterNotice, MergedAdapter,
};
pub use chat::{ChatTemplate, Message, stop_ids};
pub use config::{HeadConfig, LayerKind, RopeParameters, RopeType, TextConfig};
pub use error::{Error, Result};
pub use hub::{HubOptions, resolve, resolve_with};
pub(crate) use mapped::{MapError, MappedSafetensors};
pub use moe::MoeConfig;
pub use store::{Checkpoint, HASHED, PassedOver};
pub use dtype::StoredDType;
pub use tensor::TensorView;
pub use tokenizer::{StreamDecoder, Tokenizer};
