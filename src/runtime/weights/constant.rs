//! Constants: their types, and their elements as they are stored or decoded.

use super::coding::{Coding, SharedBytes};
use super::packed::PackedWeight;
use crate::mil::{DType, TensorType};
use crate::runtime::values::tensor::{Data, Tensor};
use std::sync::{Arc, OnceLock};

/// A constant, decoded on first use.
#[derive(Debug)]
pub(crate) struct Constant {
    ty: TensorType,
    stored: Stored,
    dense: OnceLock<Tensor>,
}

enum Stored {
    /// Only the decoded tensor.
    Folded(Tensor),
    /// Row-major elements, packed as in weight.bin.
    Raw(SharedBytes),
    /// The result of a constexpr op.
    Packed(Arc<PackedWeight>),
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stored::Folded(_) => "Folded",
            Stored::Raw(_) => "Raw",
            Stored::Packed(_) => "Packed",
        })
    }
}

impl Constant {
    /// A tensor computed while planning.
    pub fn folded(ty: TensorType, tensor: Tensor) -> Self {
        Self {
            ty,
            stored: Stored::Folded(tensor.clone()),
            dense: OnceLock::from(tensor),
        }
    }

    /// Stored elements. `None` if the bytes are fewer than the type needs.
    pub fn raw(ty: TensorType, bytes: SharedBytes) -> Option<Self> {
        let have = bytes.as_ref().as_ref().len() as u64;
        (have >= ty.bytes()?).then(|| Self {
            ty,
            stored: Stored::Raw(bytes),
            dense: OnceLock::new(),
        })
    }

    /// The result of a constexpr op.
    pub fn packed(ty: TensorType, weight: PackedWeight) -> Self {
        Self {
            ty,
            stored: Stored::Packed(Arc::new(weight)),
            dense: OnceLock::new(),
        }
    }

    /// Type of the value.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }

    /// All elements, decoded once.
    pub fn dense(&self) -> &Tensor {
        self.dense.get_or_init(|| match &self.stored {
            Stored::Raw(bytes) => decode(&self.ty, bytes.as_ref().as_ref()),
            Stored::Packed(weight) => from_floats(&self.ty, weight.decode()),
            Stored::Folded(tensor) => tensor.clone(),
        })
    }

    /// The decoded elements, if they were asked for.
    pub fn decoded(&self) -> Option<&Tensor> {
        self.dense.get()
    }

    /// The weight in its stored form: a constexpr result, or a float weight of rank 2 and more.
    pub fn weight(&self) -> Option<Arc<PackedWeight>> {
        match &self.stored {
            Stored::Packed(weight) => Some(weight.clone()),
            Stored::Raw(bytes) if self.ty.rank() >= 2 && self.ty.dtype == DType::Fp16 => {
                PackedWeight::plain(&self.ty.shape, Coding::F16, bytes.clone()).map(Arc::new)
            }
            _ => None,
        }
    }

    /// The elements packed as in weight.bin.
    pub fn bytes(&self) -> SharedBytes {
        if let Stored::Raw(bytes) = &self.stored {
            return bytes.clone();
        }
        let bytes: Vec<u8> = match self.dense().data() {
            Data::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::I32(v) => v.iter().map(|&x| x as u8).collect(),
            Data::Bool(v) => v.iter().map(|&x| u8::from(x)).collect(),
        };
        Arc::new(bytes)
    }

    /// How [`Constant::bytes`] codes an element; `None` for types that are no weight data.
    pub fn coding(&self) -> Option<Coding> {
        let raw = matches!(self.stored, Stored::Raw(_));
        Some(match self.ty.dtype {
            DType::Fp16 | DType::Fp32 if !raw => Coding::F32,
            DType::Fp16 => Coding::F16,
            DType::Fp32 => Coding::F32,
            DType::Int8 => Coding::Signed(8),
            DType::Int4 if raw => Coding::Signed(4),
            DType::UInt8 => Coding::Unsigned(8),
            dtype if raw && dtype.is_sub_byte() => Coding::Unsigned(dtype.bits()),
            _ => return None,
        })
    }
}

/// The tensor of stored elements; `bytes` are at least as many as the type needs.
fn decode(ty: &TensorType, bytes: &[u8]) -> Tensor {
    let elements = ty.elements().unwrap_or(0);
    let ints = |values: Vec<i32>| Tensor::i32(&ty.shape, values);
    let tensor = match ty.dtype {
        DType::Fp16 | DType::Fp32 => {
            let coding = match ty.dtype {
                DType::Fp16 => Coding::F16,
                _ => Coding::F32,
            };
            let mut out = vec![0.0; elements];
            coding.read(bytes, 0, &mut out);
            Tensor::f32(&ty.shape, out)
        }
        DType::Bool | DType::String => Tensor::bool(
            &ty.shape,
            bytes[..elements].iter().map(|&b| b != 0).collect(),
        ),
        DType::Int16 => ints(wide(bytes, elements, |b| i32::from(i16::from_le_bytes(b)))),
        DType::UInt16 => ints(wide(bytes, elements, |b| i32::from(u16::from_le_bytes(b)))),
        DType::Int32 => ints(wide(bytes, elements, i32::from_le_bytes)),
        DType::UInt32 => ints(wide(bytes, elements, |b| u32::from_le_bytes(b) as i32)),
        dtype => {
            let coding = match dtype {
                DType::Int8 | DType::Int4 => Coding::Signed(dtype.bits()),
                _ => Coding::Unsigned(dtype.bits()),
            };
            let mut out = vec![0.0; elements];
            coding.read(bytes, 0, &mut out);
            ints(out.into_iter().map(|v| v as i32).collect())
        }
    };
    tensor.expect("as many elements as the shape has")
}

fn wide<const N: usize>(bytes: &[u8], elements: usize, f: impl Fn([u8; N]) -> i32) -> Vec<i32> {
    let (values, _) = bytes.as_chunks::<N>();
    values[..elements].iter().map(|&b| f(b)).collect()
}

/// A tensor of `ty` from float values that are integers where the type is one.
fn from_floats(ty: &TensorType, values: Vec<f32>) -> Tensor {
    let tensor = match ty.dtype.is_float() {
        true => Tensor::f32(&ty.shape, values),
        false => Tensor::i32(&ty.shape, values.into_iter().map(|v| v as i32).collect()),
    };
    tensor.expect("as many elements as the shape has")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Constant> {
        Constant::raw(TensorType::new(dtype, shape), Arc::new(bytes.to_vec()))
    }

    #[test]
    fn stored_elements_of_every_type() {
        let ints = |dtype, n: usize, bytes: &[u8]| {
            let constant = raw(dtype, &[n], bytes).unwrap();
            constant.dense().as_i32().unwrap().to_vec()
        };
        assert_eq!(
            ints(DType::UInt3, 9, &[0xd1, 0x58, 0x1f, 0x01]),
            [1, 2, 3, 4, 5, 6, 7, 0, 1]
        );
        assert_eq!(
            ints(DType::UInt6, 5, &[0x81, 0x30, 0xfc, 0x05]),
            [1, 2, 3, 63, 5]
        );
        assert_eq!(
            ints(DType::UInt1, 9, &[0x8d, 0x01]),
            [1, 0, 1, 1, 0, 0, 0, 1, 1]
        );
        assert_eq!(ints(DType::UInt2, 5, &[0xe4, 0x01]), [0, 1, 2, 3, 1]);
        assert_eq!(
            ints(DType::Int4, 5, &[0xf8, 0x17, 0x0e]),
            [-8, -1, 7, 1, -2]
        );
        assert_eq!(ints(DType::Int8, 2, &[0xff, 0x7f]), [-1, 127]);
        assert_eq!(ints(DType::UInt8, 2, &[0xff, 0x7f]), [255, 127]);
        assert_eq!(ints(DType::Int16, 1, &[0xfe, 0xff]), [-2]);
        assert_eq!(ints(DType::UInt16, 1, &[0xfe, 0xff]), [65534]);
        assert_eq!(ints(DType::Int32, 1, &(-5i32).to_le_bytes()), [-5]);
        let bools = raw(DType::Bool, &[2], &[0, 1]).unwrap();
        assert_eq!(bools.dense().as_bool().unwrap(), [false, true]);
        let half = raw(DType::Fp16, &[2, 1], &[0x00, 0x3c, 0x00, 0xc0]).unwrap();
        assert_eq!(half.dense().as_f32().unwrap(), [1.0, -2.0]);
        assert_eq!(half.weight().unwrap().decode(), [1.0, -2.0]);
        let single = raw(DType::Fp32, &[1], &1.5f32.to_le_bytes()).unwrap();
        assert_eq!(single.dense().as_f32().unwrap(), [1.5]);
        assert!(raw(DType::Fp16, &[2], &[0; 3]).is_none());
    }
}
