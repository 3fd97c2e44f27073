//! What several test programs share; each uses its part.
#![allow(dead_code, unused_imports)]

pub mod coremltools;
pub mod every_op;
pub mod fixtures;
pub mod source;

pub use coremltools::*;
