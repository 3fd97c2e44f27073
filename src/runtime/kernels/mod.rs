//! Arithmetic on slices. Uses no other room of the runtime: knows no tensor, op, name or file.

pub(crate) mod broadcast;
pub(crate) mod codec;
pub(crate) mod dot;
pub(crate) mod kernel;
pub(crate) mod lanes;
pub(crate) mod math;
pub(crate) mod matvec;
pub(crate) mod strided;
pub(crate) mod vectors;
pub(crate) mod wide;
#[cfg(target_arch = "x86_64")]
mod x86;
