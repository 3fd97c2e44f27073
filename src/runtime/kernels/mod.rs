//! Arithmetic on slices: knows no op, no name and no file.

pub(crate) mod broadcast;
pub(crate) mod codec;
pub(crate) mod dot;
pub(crate) mod kernel;
pub(crate) mod lanes;
pub(crate) mod math;
pub(crate) mod matvec;
pub(crate) mod strided;
pub(crate) mod wide;
#[cfg(target_arch = "x86_64")]
mod x86;
