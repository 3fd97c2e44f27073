//! The weights of a snapshot: which files hold them, what each tensor is, memory-mapped access.

mod check;
mod coded;
mod files;
mod head;
mod names;
mod store;

pub use coded::{Quantization, QuantizationFormat};
pub use store::{ActivationScales, Checkpoint, HASHED, PassedOver};

pub(super) use files::{INDEX, SINGLE, has_weights, shard_name, shard_names, shard_number};
