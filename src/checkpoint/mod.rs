//! A Hugging Face snapshot: config, memory-mapped safetensors, tokenizer, hub download.
//!
//! A snapshot is a directory with `config.json`, `model.safetensors` or shards, and the tokenizer's files.
//! [`Checkpoint::open`] reads the config, checks every safetensors header against its file and memory-maps the files through
//! candle; weights are then read a range of elements at a time.
//!
//! Names are those of the text decoder without prefix (`layers.0.mlp.up_proj.weight`): `model.language_model.` in multimodal
//! files, `model.` in text-only ones. Vision and audio tensors, constants that are computed from the config, an
//! `lm_head.weight` that repeats the embedding table, and the K and V weights that google's files carry for layers that share
//! K and V, are passed over and counted. A tensor that is none of these is an error of [`Checkpoint::check`].
//!
//! A weight may be stored as integers and steps, in several tensors; it is one under its usual name, and [`TensorView::grid`] says
//! so. [`Checkpoint::quantization`] has the format.
//!
//! Adapters are merged into what is read: [`Checkpoint::with_adapters`].
//!
//! What lies in the folder and may be thought to be read is in [`Checkpoint::notices`]; a folder or a file that is something
//! else than it should be is named as what it is ([`Error::NotASnapshot`], [`Error::NotTheFile`]).

mod adapter;
mod config;
mod error;
mod fields;
mod folder;
mod hub;
mod notice;
mod pointer;
mod stored;
mod template;
mod tensor;
mod text;
mod weights;

pub use adapter::{
    AboutAdapter, Adapter, AdapterFormat, AdapterMethod, AdapterNotice, MergedAdapter,
};
pub use config::{HeadConfig, LayerKind, MoeConfig, RopeParameters, RopeType, TextConfig};
pub use error::{AdapterError, Error, Result};
pub use hub::{HubOptions, Proxies, resolve, resolve_adapter, resolve_adapter_with, resolve_with};
pub use notice::Notice;
pub use pointer::check_file;
pub use stored::{Grid, StoredDType};
pub(crate) use stored::{MapError, MappedSafetensors};
pub use tensor::TensorView;
pub use text::{
    ChatTemplate, Message, Piece, Reply, ReplyDecoder, StreamDecoder, Tokenizer, stop_ids,
};
pub use weights::{
    ActivationScales, Checkpoint, HASHED, PassedOver, Quantization, QuantizationFormat,
};
