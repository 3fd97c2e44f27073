//! One weight: from the memory map through its folds and its quantizer to the parts of its blob, in tiles of whole groups.
//!
//! Uses [`super::decide`], and the files beside it. Knows packages only as a sink of parts.

mod forms;
mod input;
mod kept;
mod levers;
mod measure;
mod source;
mod stream;
mod tile;
mod tuning;

pub(super) use kept::Counts;
pub(super) use levers::Levers;
pub(crate) use measure::{Measured, Measurer, scalar_group};
pub(super) use source::Weights;
pub(super) use tile::little_endian;
