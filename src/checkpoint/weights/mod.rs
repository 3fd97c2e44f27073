//! The weights of a snapshot: which files hold them, what each tensor is, memory-mapped access.

mod check;
mod coded;
mod files;
mod fingerprint;
mod head;
mod located;
mod names;
mod quantization;
mod store;

pub use fingerprint::HASHED;
pub use located::ActivationScales;
pub use quantization::{Quantization, QuantizationFormat};
pub use store::{Checkpoint, PassedOver};

pub(super) use files::{INDEX, SINGLE, has_weights, shard_name, shard_names, shard_number};
