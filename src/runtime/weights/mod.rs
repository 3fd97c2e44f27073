//! Constants and weights in their stored form: their codings, what they decode to, products with them, and how fast
//! a machine could read and multiply them.
//!
//! May use `values` and `kernels`. Knows no op.

pub(crate) mod coding;
pub(crate) mod constant;
pub(crate) mod matrix;
pub(crate) mod packed;
pub(crate) mod palette;
pub mod roofline;
pub(crate) mod rows;
pub(crate) mod sparse;
pub(crate) mod usage;
