//! Arithmetic on slices: knows no op, no name and no file.

pub(crate) mod axes;
pub(crate) mod broadcast;
pub(crate) mod dot;
pub(crate) mod math;
pub(crate) mod rows;
pub(crate) mod strided;
pub(crate) mod wide;
