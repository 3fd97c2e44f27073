//! Constants: immediates, whose elements are in the program, and weights still to come.

use half::f16;

use super::error::{Error, Result};
use super::types::{DType, TensorType};

/// A weight of the program: named and sized, not yet there.
///
/// The id is unique in a package and becomes the stem of the constant's name. The type is that of
/// the value the ops see (fp16 as a rule); how it is stored is for the package writer's caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeferredConst {
    /// Unique in a package.
    pub id: String,
    /// Element type that ops see.
    pub dtype: DType,
    /// Shape that ops see.
    pub shape: Vec<usize>,
}

impl DeferredConst {
    /// A weight to come.
    pub fn new(id: impl Into<String>, dtype: DType, shape: &[usize]) -> Self {
        DeferredConst {
            id: id.into(),
            dtype,
            shape: shape.to_vec(),
        }
    }

    /// The type that ops see.
    pub fn ty(&self) -> TensorType {
        TensorType::new(self.dtype, &self.shape)
    }
}

/// A constant with its elements, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Immediate {
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: ImmediateData,
}

/// Elements of an [`Immediate`].
#[derive(Debug, Clone, PartialEq)]
pub enum ImmediateData {
    Bool(Vec<bool>),
    /// A scalar string.
    String(String),
    Fp16(Vec<f16>),
    Fp32(Vec<f32>),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    UInt8(Vec<u8>),
    UInt16(Vec<u16>),
    UInt32(Vec<u32>),
    /// A sub-byte type with its packed bytes: a little-endian bit stream, element `i` at bit
    /// `i * bits`.
    SubByte(DType, Vec<u8>),
}

impl Immediate {
    /// Checks that the data fills the shape.
    ///
    /// # Errors
    /// [`Error::ImmediateLength`] when it does not, or when a string is not a scalar.
    pub fn new(shape: &[usize], data: ImmediateData) -> Result<Self> {
        let value = Immediate {
            shape: shape.to_vec(),
            data,
        };
        let expected = value.ty().elements().unwrap_or(usize::MAX);
        let got = value.stored_len(expected);
        if got != expected {
            return Err(Error::ImmediateLength {
                shape: value.shape,
                expected,
                got,
            });
        }
        Ok(value)
    }

    /// Elements present; a packed type answers `expected` when its byte count fits it.
    fn stored_len(&self, expected: usize) -> usize {
        match &self.data {
            ImmediateData::Bool(v) => v.len(),
            ImmediateData::String(_) => 1,
            ImmediateData::Fp16(v) => v.len(),
            ImmediateData::Fp32(v) => v.len(),
            ImmediateData::Int8(v) => v.len(),
            ImmediateData::Int16(v) => v.len(),
            ImmediateData::Int32(v) => v.len(),
            ImmediateData::UInt8(v) => v.len(),
            ImmediateData::UInt16(v) => v.len(),
            ImmediateData::UInt32(v) => v.len(),
            ImmediateData::SubByte(dtype, v) => {
                if dtype.packed_bytes(expected as u64) == Some(v.len() as u64) {
                    expected
                } else {
                    v.len().saturating_mul(8) / dtype.bits().max(1) as usize
                }
            }
        }
    }

    /// A scalar.
    pub fn scalar(data: ImmediateData) -> Result<Self> {
        Immediate::new(&[], data)
    }

    /// An int32 scalar.
    pub fn int32(value: i32) -> Self {
        Immediate {
            shape: vec![],
            data: ImmediateData::Int32(vec![value]),
        }
    }

    /// An int32 vector.
    pub fn int32s(values: &[i32]) -> Self {
        Immediate {
            shape: vec![values.len()],
            data: ImmediateData::Int32(values.to_vec()),
        }
    }

    /// A bool scalar.
    pub fn bool(value: bool) -> Self {
        Immediate {
            shape: vec![],
            data: ImmediateData::Bool(vec![value]),
        }
    }

    /// A bool vector.
    pub fn bools(values: &[bool]) -> Self {
        Immediate {
            shape: vec![values.len()],
            data: ImmediateData::Bool(values.to_vec()),
        }
    }

    /// A string scalar.
    pub fn string(value: &str) -> Self {
        Immediate {
            shape: vec![],
            data: ImmediateData::String(value.to_owned()),
        }
    }

    /// An fp16 scalar.
    pub fn fp16(value: f16) -> Self {
        Immediate {
            shape: vec![],
            data: ImmediateData::Fp16(vec![value]),
        }
    }

    /// An fp32 scalar.
    pub fn fp32(value: f32) -> Self {
        Immediate {
            shape: vec![],
            data: ImmediateData::Fp32(vec![value]),
        }
    }

    /// An fp16 tensor.
    ///
    /// # Errors
    /// [`Error::ImmediateLength`] when the values do not fill the shape.
    pub fn fp16s(shape: &[usize], values: Vec<f16>) -> Result<Self> {
        Immediate::new(shape, ImmediateData::Fp16(values))
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match &self.data {
            ImmediateData::Bool(_) => DType::Bool,
            ImmediateData::String(_) => DType::String,
            ImmediateData::Fp16(_) => DType::Fp16,
            ImmediateData::Fp32(_) => DType::Fp32,
            ImmediateData::Int8(_) => DType::Int8,
            ImmediateData::Int16(_) => DType::Int16,
            ImmediateData::Int32(_) => DType::Int32,
            ImmediateData::UInt8(_) => DType::UInt8,
            ImmediateData::UInt16(_) => DType::UInt16,
            ImmediateData::UInt32(_) => DType::UInt32,
            ImmediateData::SubByte(dtype, _) => *dtype,
        }
    }

    /// Element type and shape.
    pub fn ty(&self) -> TensorType {
        TensorType::new(self.dtype(), &self.shape)
    }

    /// The elements of an integer type of 8 bits and more, none for any other.
    pub fn ints(&self) -> Option<Vec<i64>> {
        Some(match &self.data {
            ImmediateData::Int8(v) => v.iter().map(|&x| i64::from(x)).collect(),
            ImmediateData::Int16(v) => v.iter().map(|&x| i64::from(x)).collect(),
            ImmediateData::Int32(v) => v.iter().map(|&x| i64::from(x)).collect(),
            ImmediateData::UInt8(v) => v.iter().map(|&x| i64::from(x)).collect(),
            ImmediateData::UInt16(v) => v.iter().map(|&x| i64::from(x)).collect(),
            ImmediateData::UInt32(v) => v.iter().map(|&x| i64::from(x)).collect(),
            _ => return None,
        })
    }

    /// The element of an integer with one element.
    pub fn as_int(&self) -> Option<i64> {
        match self.ints()?.as_slice() {
            [value] => Some(*value),
            _ => None,
        }
    }

    /// The elements of a float type as f32, none for any other.
    pub fn floats(&self) -> Option<Vec<f32>> {
        Some(match &self.data {
            ImmediateData::Fp16(v) => v.iter().map(|x| x.to_f32()).collect(),
            ImmediateData::Fp32(v) => v.clone(),
            _ => return None,
        })
    }

    /// The element of a float with one element.
    pub fn as_float(&self) -> Option<f32> {
        match self.floats()?.as_slice() {
            [value] => Some(*value),
            _ => None,
        }
    }

    /// The elements of a bool tensor.
    pub fn as_bools(&self) -> Option<&[bool]> {
        match &self.data {
            ImmediateData::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// The element of a bool with one element.
    pub fn as_bool(&self) -> Option<bool> {
        match self.as_bools()? {
            [value] => Some(*value),
            _ => None,
        }
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.data {
            ImmediateData::String(v) => Some(v),
            _ => None,
        }
    }

    /// The elements as little-endian bytes, packed as in weight.bin; bools as one byte each,
    /// a string as its UTF-8.
    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.data {
            ImmediateData::Bool(v) => v.iter().map(|&x| u8::from(x)).collect(),
            ImmediateData::String(v) => v.as_bytes().to_vec(),
            ImmediateData::Fp16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ImmediateData::Fp32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ImmediateData::Int8(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ImmediateData::Int16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ImmediateData::Int32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ImmediateData::UInt8(v) => v.clone(),
            ImmediateData::UInt16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ImmediateData::UInt32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ImmediateData::SubByte(_, v) => v.clone(),
        }
    }

    /// The immediate with these packed little-endian bytes (the inverse of [`Immediate::to_bytes`]
    /// for every type but bool and string).
    ///
    /// # Errors
    /// [`Error::ImmediateLength`] when the bytes do not fill the type exactly.
    pub fn from_bytes(ty: &TensorType, bytes: &[u8]) -> Result<Self> {
        let wrong = || Error::ImmediateLength {
            shape: ty.shape.clone(),
            expected: ty.elements().unwrap_or(usize::MAX),
            got: bytes.len().saturating_mul(8) / ty.dtype.bits().max(1) as usize,
        };
        if ty.bytes() != Some(bytes.len() as u64) {
            return Err(wrong());
        }
        fn each<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
            let (chunks, _) = bytes.as_chunks::<N>();
            chunks.iter().map(|&c| f(c)).collect()
        }
        let data = match ty.dtype {
            DType::Bool | DType::String => return Err(wrong()),
            DType::Fp16 => ImmediateData::Fp16(each(bytes, f16::from_le_bytes)),
            DType::Fp32 => ImmediateData::Fp32(each(bytes, f32::from_le_bytes)),
            DType::Int8 => ImmediateData::Int8(each(bytes, i8::from_le_bytes)),
            DType::Int16 => ImmediateData::Int16(each(bytes, i16::from_le_bytes)),
            DType::Int32 => ImmediateData::Int32(each(bytes, i32::from_le_bytes)),
            DType::UInt8 => ImmediateData::UInt8(bytes.to_vec()),
            DType::UInt16 => ImmediateData::UInt16(each(bytes, u16::from_le_bytes)),
            DType::UInt32 => ImmediateData::UInt32(each(bytes, u32::from_le_bytes)),
            dtype => ImmediateData::SubByte(dtype, bytes.to_vec()),
        };
        Ok(Immediate {
            shape: ty.shape.clone(),
            data,
        })
    }
}
