//! One weight, from the memory map to the blob.

pub(super) mod forms;
pub(super) mod input;
pub(super) mod levers;
pub(super) mod measure;
pub(super) mod source;
pub(super) mod tile;
pub(super) mod tuning;
