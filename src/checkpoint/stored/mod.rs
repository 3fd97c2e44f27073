//! Files of tensors, whatever the tensors are for: header, memory map, number formats.

mod coded;
mod dtype;
pub(super) mod header;
mod mapped;
mod raw;

pub(super) use coded::Coded;
pub use coded::Grid;
pub use dtype::StoredDType;
pub(super) use dtype::convert;
pub(crate) use mapped::{MapError, MappedSafetensors};
pub(super) use raw::Raw;
