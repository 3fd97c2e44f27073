//! Gemma 4 checkpoints to Core ML bundles for the Apple Neural Engine, checked on the CPU.
//!
//! Data flows one way: [`checkpoint`] → [`gemma`] plan → [`graph`] as [`mil`] → [`quantize`]d blobs →
//! [`package`] → [`bundle`] → [`runtime`]. `docs/architecture.md` says what each module may use.

pub mod allocate;
pub mod bundle;
pub mod calibrate;
pub mod checkpoint;
pub mod cli;
pub mod convert;
pub mod evaluate;
pub mod failpoint;
pub mod gemma;
pub mod graph;
pub mod mil;
pub mod package;
pub mod progress;
pub mod quantize;
pub mod recipe;
pub mod runtime;
pub mod sweep;
