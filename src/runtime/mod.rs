//! The CPU runtime: bundle → execution plan → kernels → decode loop.
//!
//! It executes the bytes on disk, read through [`crate::package`]'s reader, and never sees the graph that wrote them.
//! [`Model`] is one function of one package compiled to a plan; [`Decoder`] chains the chunks of a bundle and owns the
//! caches; [`sampling`] chooses a token from kept logits.
//!
//! Two precisions ([`Precision`]): f32 carries every activation in f32, fp16-typed features included, with constants at
//! their stored values; f16 rounds the result of every op to fp16, as the device stores it, and reports overflows.
//!
//! Tensors are dense and row-major. Weights that are stored compressed stay packed in the mapped file.

mod chain;
mod decode;
mod error;
pub mod generate;
pub mod sampling;
mod tensor;

pub use chain::{ChainSpec, RopeTable, RopeTables};
pub use decode::{DecodeOptions, Decoder, StepOutput, TokenRows};
pub use error::{BoxError, Error, Result};
pub use tensor::{Data, Kind, Precision, Tensor};
