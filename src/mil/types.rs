//! Element types and tensor types.

use std::fmt;
use std::str::FromStr;

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    Bool,
    String,
    Fp16,
    Fp32,
    Int8,
    Int16,
    Int32,
    UInt8,
    UInt16,
    UInt32,
    UInt1,
    UInt2,
    UInt3,
    UInt4,
    UInt6,
    Int4,
}

/// One row per [`DType`]: text name, bits, number in the MIL protobuf, number in weight.bin.
const TABLE: [(DType, &str, u32, i32, Option<u32>); 16] = [
    (DType::Bool, "bool", 8, 1, None),
    (DType::String, "string", 0, 2, None),
    (DType::Fp16, "fp16", 16, 10, Some(1)),
    (DType::Fp32, "fp32", 32, 11, Some(2)),
    (DType::Int8, "int8", 8, 21, Some(4)),
    (DType::Int16, "int16", 16, 22, Some(6)),
    (DType::Int32, "int32", 32, 23, Some(14)),
    (DType::UInt8, "uint8", 8, 31, Some(3)),
    (DType::UInt16, "uint16", 16, 32, Some(7)),
    (DType::UInt32, "uint32", 32, 33, Some(15)),
    (DType::UInt1, "uint1", 1, 37, Some(9)),
    (DType::UInt2, "uint2", 2, 36, Some(10)),
    (DType::UInt3, "uint3", 3, 39, Some(12)),
    (DType::UInt4, "uint4", 4, 35, Some(11)),
    (DType::UInt6, "uint6", 6, 38, Some(13)),
    (DType::Int4, "int4", 4, 25, Some(8)),
];

impl DType {
    /// Every element type.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (DType, &'static str, u32, i32, Option<u32>) {
        // The table is in the order of the enum; a test holds it to that.
        &TABLE[self as usize]
    }

    /// Name in MIL text: `fp16`, `int32`, `uint4`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Bits of one element as stored; 0 for strings, 8 for bool.
    pub fn bits(self) -> u32 {
        self.row().2
    }

    /// Whether several elements share a byte.
    pub fn is_sub_byte(self) -> bool {
        matches!(self.bits(), 1..8)
    }

    /// Whether this is fp16 or fp32.
    pub fn is_float(self) -> bool {
        matches!(self, DType::Fp16 | DType::Fp32)
    }

    /// Number in the `DataType` enum of MIL.proto.
    pub fn proto_number(self) -> i32 {
        self.row().3
    }

    /// The type with this number in MIL.proto, if it is one of ours.
    pub fn from_proto_number(number: i32) -> Option<DType> {
        TABLE.iter().find(|row| row.3 == number).map(|row| row.0)
    }

    /// Number in the metadata of weight.bin; none for bool and string.
    pub fn blob_number(self) -> Option<u32> {
        self.row().4
    }

    /// The type with this number in weight.bin, if it is one of ours.
    pub fn from_blob_number(number: u32) -> Option<DType> {
        TABLE
            .iter()
            .find(|row| row.4 == Some(number))
            .map(|row| row.0)
    }

    /// The unsigned type of `nbits` bits that indexes a LUT: 1, 2, 3, 4, 6 or 8.
    pub fn index_of_bits(nbits: u8) -> Option<DType> {
        Some(match nbits {
            1 => DType::UInt1,
            2 => DType::UInt2,
            3 => DType::UInt3,
            4 => DType::UInt4,
            6 => DType::UInt6,
            8 => DType::UInt8,
            _ => return None,
        })
    }

    /// Bytes of `elements` packed elements, the last partial byte included; none if it overflows
    /// or the type has no size.
    pub fn packed_bytes(self, elements: u64) -> Option<u64> {
        match self.bits() {
            0 => None,
            bits => elements.checked_mul(u64::from(bits)).map(|n| n.div_ceil(8)),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        TABLE
            .iter()
            .find(|row| row.1 == s)
            .map(|row| row.0)
            .ok_or_else(|| format!("unknown element type `{s}`"))
    }
}

/// Element type and static shape; a scalar has an empty shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// A tensor type.
    pub fn new(dtype: DType, shape: &[usize]) -> Self {
        TensorType {
            dtype,
            shape: shape.to_vec(),
        }
    }

    /// A scalar type.
    pub fn scalar(dtype: DType) -> Self {
        TensorType::new(dtype, &[])
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements; none if the product overflows.
    pub fn elements(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(1usize, |n, &dim| n.checked_mul(dim))
    }

    /// Bytes of the packed elements; none if it overflows or the type has no size.
    pub fn bytes(&self) -> Option<u64> {
        self.dtype
            .packed_bytes(u64::try_from(self.elements()?).ok()?)
    }
}

/// `fp16` for a scalar, `tensor<fp16, [1, 8]>` otherwise.
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shape.is_empty() {
            return write!(f, "{}", self.dtype);
        }
        write!(f, "tensor<{}, {:?}>", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_enum_order_and_numbers_are_unique() {
        for (i, dtype) in DType::all().enumerate() {
            assert_eq!(dtype as usize, i);
            assert_eq!(DType::from_proto_number(dtype.proto_number()), Some(dtype));
            assert_eq!(dtype.name().parse::<DType>(), Ok(dtype));
            if let Some(number) = dtype.blob_number() {
                assert_eq!(DType::from_blob_number(number), Some(dtype));
            }
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(DType::UInt3.packed_bytes(9), Some(4));
        assert_eq!(DType::Fp16.packed_bytes(3), Some(6));
        assert_eq!(DType::Fp32.packed_bytes(u64::MAX), None);
        assert_eq!(TensorType::new(DType::Fp16, &[usize::MAX, 2]).bytes(), None);
        assert_eq!(TensorType::scalar(DType::Int32).elements(), Some(1));
        assert_eq!(
            TensorType::new(DType::UInt4, &[2, 3]).to_string(),
            "tensor<uint4, [2, 3]>"
        );
    }
}
