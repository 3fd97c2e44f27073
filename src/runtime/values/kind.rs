//! What elements are held as.

use std::fmt;

/// What a tensor's elements are held as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// fp16 and fp32.
    Float,
    /// All integer types, as i32.
    Int,
    /// bool.
    Bool,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Float => "float",
            Kind::Int => "integer",
            Kind::Bool => "bool",
        })
    }
}
