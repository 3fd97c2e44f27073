//! Dense row-major tensors whose data is shared, so that a clone or a reshape copies nothing.

use super::error::{Error, Result};
use super::kind::Kind;
use crate::runtime::kernels::math::{is_f16, round_f16};
use std::sync::Arc;

/// How activations are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Every activation in f32, fp16-typed values included.
    F32,
    /// The result of every op that is declared fp16 is rounded to fp16 (nearest even); inside one op the arithmetic is
    /// f32.
    F16,
}

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// fp16 (as f32) and fp32.
    F32(Arc<Vec<f32>>),
    /// All integer types.
    I32(Arc<Vec<i32>>),
    /// bool.
    Bool(Arc<Vec<bool>>),
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(v) => v.len(),
            Data::I32(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the elements are held as.
    pub fn kind(&self) -> Kind {
        match self {
            Data::F32(_) => Kind::Float,
            Data::I32(_) => Kind::Int,
            Data::Bool(_) => Kind::Bool,
        }
    }
}

/// A dense row-major tensor; a scalar has the empty shape. Cloning shares the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

impl Tensor {
    /// A tensor of `shape` over `data`; an error if the numbers of elements differ.
    pub fn new(shape: &[usize], data: Data) -> Result<Self> {
        let expected = elements(shape);
        if expected != Some(data.len()) {
            return Err(Error::TensorLength {
                shape: shape.to_vec(),
                expected: expected.unwrap_or(usize::MAX),
                got: data.len(),
            });
        }
        Ok(Self {
            shape: shape.to_vec(),
            data,
        })
    }

    /// A tensor of no element.
    pub(crate) fn empty() -> Self {
        Self {
            shape: vec![0],
            data: Data::F32(Arc::default()),
        }
    }

    /// A float tensor; an error if the numbers of elements differ.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Result<Self> {
        Self::new(shape, Data::F32(Arc::new(values)))
    }

    /// An integer tensor; an error if the numbers of elements differ.
    pub fn i32(shape: &[usize], values: Vec<i32>) -> Result<Self> {
        Self::new(shape, Data::I32(Arc::new(values)))
    }

    /// A bool tensor; an error if the numbers of elements differ.
    pub fn bool(shape: &[usize], values: Vec<bool>) -> Result<Self> {
        Self::new(shape, Data::Bool(Arc::new(values)))
    }

    /// The extents, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The elements, taken out of the tensor.
    pub fn into_data(self) -> Data {
        self.data
    }

    /// What the elements are held as.
    pub fn kind(&self) -> Kind {
        self.data.kind()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements of a float tensor; an error for another kind.
    pub fn as_f32(&self) -> Result<&[f32]> {
        match &self.data {
            Data::F32(v) => Ok(v),
            other => Err(Error::TensorKind {
                expected: Kind::Float,
                got: other.kind(),
            }),
        }
    }

    /// The elements of an integer tensor; an error for another kind.
    pub fn as_i32(&self) -> Result<&[i32]> {
        match &self.data {
            Data::I32(v) => Ok(v),
            other => Err(Error::TensorKind {
                expected: Kind::Int,
                got: other.kind(),
            }),
        }
    }

    /// The elements of a bool tensor; an error for another kind.
    pub fn as_bool(&self) -> Result<&[bool]> {
        match &self.data {
            Data::Bool(v) => Ok(v),
            other => Err(Error::TensorKind {
                expected: Kind::Bool,
                got: other.kind(),
            }),
        }
    }

    /// Rounds float elements to fp16, nearest even; other kinds are left. Returns how many finite values became infinite.
    pub(crate) fn round_f16(&mut self) -> usize {
        match &mut self.data {
            Data::F32(v) if !is_f16(v) => round_f16(Arc::make_mut(v).as_mut_slice()),
            _ => 0,
        }
    }

    /// The same data under another shape of as many elements.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Self> {
        Self::new(shape, self.data.clone())
    }
}

/// Number of elements of a shape; `None` beyond `usize`.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
}
