//! The CPU runtime: bundle → execution plan → kernels → decode loop. Five rooms, each of which may use those before it:
//! `kernels`, `values`, `weights`, `interpreter`, `decoder`.
//!
//! It executes the bytes on disk, read through [`crate::package`]'s reader, and never sees the graph that wrote them.
//! [`Model`] is one function of one package compiled to a plan; [`Decoder`] chains the chunks of a bundle and owns the
//! caches; [`sampling`] chooses a token from kept logits.
//!
//! Two precisions ([`Precision`]): f32 carries every activation in f32, fp16-typed features included, with constants at
//! their stored values; f16 rounds the result of every op to fp16, as the device stores it, and reports overflows.
//!
//! Tensors are dense and row-major. Weights of conv and linear stay as they are stored, in the mapped file; other
//! constants are decoded once. With the emitter the runtime shares op names, argument names and attribute defaults
//! ([`crate::mil::schema`]), no arithmetic and no shape inference: it derives every type itself and compares it with what
//! the file declares.
//!
//! In f32 several ops run as one step where that gives the same: attention over the keys that the mask shows, caches changed
//! in place, RMS norms, RoPE. [`Model::load_plain`] and [`DecodeOptions::plain`] run every op by itself, to compare with.
//!
//! Results do not depend on the number of threads: work is shared by output rows, and every sum has a fixed order. They depend
//! on the [`Kernel`] that multiplies weights: AVX-512 and AVX2 give equal bits, the portable one others, within rounding.

mod decoder;
mod interpreter;
mod kernels;
mod values;
mod weights;

pub use decoder::decode::{Decoder, StepOutput, Verified};
pub use decoder::spec::{
    ChainSpec, DecodeOptions, MixScales, Owner, PerLayerMix, RopeTable, RopeTables, TokenRows,
};
pub use decoder::{generate, sampling};
pub use interpreter::model::{Model, Overflow, RunOutput};
pub use interpreter::plan::Feature;
pub use interpreter::profile::{OpTime, Profile};
pub use interpreter::stored::StoredWeights;
pub use kernels::kernel::Kernel;
pub use values::error::{BoxError, Error, Result};
pub use values::kind::Kind;
pub use values::tensor::{Data, Precision, Tensor};
pub use weights::matrix::{IntegerMatrix, PalettizedMatrix};
pub use weights::roofline;
