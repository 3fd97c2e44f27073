//! The element types that tensors hold, for code that is written once for all of them.

use super::error::Result;
use super::pool::Pool;
use super::tensor::{Data, Tensor};
use std::sync::Arc;

/// An element type that tensors hold.
pub(crate) trait Element: Copy + Default {
    /// The elements of a tensor of this type; an error for another kind.
    fn of(tensor: &Tensor) -> Result<&[Self]>;
    /// A buffer of `len` elements of unspecified value.
    fn buffer(pool: &mut Pool, len: usize) -> Vec<Self>;
    /// Elements as the data of a tensor.
    fn data(values: Vec<Self>) -> Data;
}

impl Element for f32 {
    fn of(tensor: &Tensor) -> Result<&[f32]> {
        tensor.as_f32()
    }

    fn buffer(pool: &mut Pool, len: usize) -> Vec<f32> {
        pool.floats(len)
    }

    fn data(values: Vec<f32>) -> Data {
        Data::F32(Arc::new(values))
    }
}

impl Element for i32 {
    fn of(tensor: &Tensor) -> Result<&[i32]> {
        tensor.as_i32()
    }

    fn buffer(_: &mut Pool, len: usize) -> Vec<i32> {
        vec![0; len]
    }

    fn data(values: Vec<i32>) -> Data {
        Data::I32(Arc::new(values))
    }
}

impl Element for bool {
    fn of(tensor: &Tensor) -> Result<&[bool]> {
        tensor.as_bool()
    }

    fn buffer(_: &mut Pool, len: usize) -> Vec<bool> {
        vec![false; len]
    }

    fn data(values: Vec<bool>) -> Data {
        Data::Bool(Arc::new(values))
    }
}

/// Evaluates `$body` with `$element` the element type of tensors of a kind.
macro_rules! for_each_kind {
    ($kind:expr, $element:ident => $body:expr) => {
        match $kind {
            crate::runtime::values::kind::Kind::Float => {
                type $element = f32;
                $body
            }
            crate::runtime::values::kind::Kind::Int => {
                type $element = i32;
                $body
            }
            crate::runtime::values::kind::Kind::Bool => {
                type $element = bool;
                $body
            }
        }
    };
}
pub(crate) use for_each_kind;
