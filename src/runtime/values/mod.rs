//! What is computed on, and what can go wrong: tensors, caches that lie in larger buffers, spare buffers, errors.
//!
//! May use `kernels`. Knows no weight, op or file.

pub(crate) mod axes;
pub(crate) mod element;
pub(crate) mod error;
pub(crate) mod held;
pub(crate) mod kind;
pub(crate) mod pool;
pub(crate) mod tensor;
