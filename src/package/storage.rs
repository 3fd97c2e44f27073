//! How a weight is stored, and the parts it is made of.

use super::MIN_BLOB_ELEMENTS;
use super::error::{Error, Result};
use crate::mil::{DType, DeferredConst, TensorType};

/// How a [`DeferredConst`] is stored; decides between `const` and a constexpr op.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// The element type of the constant itself.
    Dense,
    /// `constexpr_lut_to_dense`: indices of `nbits` bits, then an fp16 LUT.
    Palette {
        /// 1, 2, 3, 4, 6 or 8.
        nbits: u8,
        /// `[g0..gK-1, 2^nbits, vec]`; each `g` divides its dimension of the indices.
        lut_shape: Vec<usize>,
        /// The axis that vectors of `vec` elements lie along; none if `vec` is 1.
        vector_axis: Option<usize>,
    },
    /// `constexpr_lut_to_sparse` and `constexpr_sparse_to_dense`: indices of the elements that are kept, a mask
    /// of all (1 where one is kept), then an fp16 LUT. Elements that are not kept are zero.
    PaletteSparse {
        /// 1, 2, 3, 4, 6 or 8.
        nbits: u8,
        /// As for a palette, of the mask.
        lut_shape: Vec<usize>,
        /// As for a palette.
        vector_axis: Option<usize>,
        /// Indices that are kept.
        nonzero: usize,
    },
    /// `constexpr_blockwise_shift_scale` and `constexpr_lut_to_dense`: indices, an int8 LUT, then one fp16 scale of
    /// the LUT.
    PaletteInt8 {
        /// 1, 2, 3, 4, 6 or 8.
        nbits: u8,
        /// `[g0..gK-1, 2^nbits, 1]`.
        lut_shape: Vec<usize>,
    },
    /// `constexpr_blockwise_shift_scale`: quantized data, then fp16 scales, then offsets.
    Blockwise {
        /// int8, uint8, int4 or uint4.
        data: DType,
        /// Rank of the constant; each size divides its dimension.
        scale_shape: Vec<usize>,
        /// Whether there are offsets, in the element type of the data.
        offset: bool,
    },
}

/// A part of a stored weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Dense data, LUT indices or quantized data.
    Data,
    /// Which elements of a sparse weight are kept.
    Mask,
    /// Look-up tables of palettes.
    Lut,
    /// fp16 scales of blocks, or of a LUT.
    Scale,
    /// Offsets of blocks, in the element type of the data.
    Offset,
}

impl Part {
    /// The name in errors.
    pub fn name(self) -> &'static str {
        match self {
            Part::Data => "data",
            Part::Mask => "mask",
            Part::Lut => "lut",
            Part::Scale => "scale",
            Part::Offset => "offset",
        }
    }
}

/// Type and size of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartSpec {
    /// Which part.
    pub part: Part,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// Packed bytes.
    pub bytes: u64,
}

impl PartSpec {
    fn new(c: &DeferredConst, part: Part, dtype: DType, shape: &[usize]) -> Result<Self> {
        let bytes = TensorType::new(dtype, shape).bytes();
        let bytes = bytes.filter(|&n| n > 0 && dtype.blob_number().is_some());
        Ok(PartSpec {
            part,
            dtype,
            shape: shape.to_vec(),
            bytes: bytes.ok_or_else(|| {
                let ty = TensorType::new(dtype, shape);
                storage_error(c, format!("{} {ty} cannot be stored", part.name()))
            })?,
        })
    }

    /// Whether the part is in the program instead of the weight file: fewer than [`MIN_BLOB_ELEMENTS`] elements.
    pub fn is_immediate(&self) -> bool {
        self.shape.iter().product::<usize>() < MIN_BLOB_ELEMENTS
    }

    /// Element type and shape.
    pub fn ty(&self) -> TensorType {
        TensorType::new(self.dtype, &self.shape)
    }
}

fn storage_error(c: &DeferredConst, message: String) -> Error {
    Error::Storage {
        weight: c.id.clone(),
        message,
    }
}

impl Storage {
    /// The parts in the order of the file.
    ///
    /// # Errors
    /// [`Error::Storage`] when the storage does not fit the constant.
    pub fn parts(&self, c: &DeferredConst) -> Result<Vec<PartSpec>> {
        match self {
            Storage::Dense => Ok(vec![PartSpec::new(c, Part::Data, c.dtype, &c.shape)?]),
            Storage::Palette {
                nbits,
                lut_shape,
                vector_axis,
            } => palette_parts(c, *nbits, lut_shape, *vector_axis),
            Storage::PaletteSparse {
                nbits,
                lut_shape,
                vector_axis,
                nonzero,
            } => sparse_parts(c, (*nbits, lut_shape, *vector_axis), *nonzero),
            Storage::PaletteInt8 { nbits, lut_shape } => {
                let mut parts = palette_parts(c, *nbits, lut_shape, None)?;
                parts[1] = PartSpec::new(c, Part::Lut, DType::Int8, lut_shape)?;
                let one = vec![1; lut_shape.len()];
                parts.push(PartSpec::new(c, Part::Scale, DType::Fp16, &one)?);
                Ok(parts)
            }
            Storage::Blockwise {
                data,
                scale_shape,
                offset,
            } => blockwise_parts(c, *data, scale_shape, *offset),
        }
    }
}

fn palette_parts(
    c: &DeferredConst,
    nbits: u8,
    lut_shape: &[usize],
    vector_axis: Option<usize>,
) -> Result<Vec<PartSpec>> {
    let bad = |message: String| Err(storage_error(c, message));
    let Some(index) = DType::index_of_bits(nbits) else {
        return bad(format!(
            "palettes have 1, 2, 3, 4, 6 or 8 bits, not {nbits}"
        ));
    };
    if c.dtype != DType::Fp16 {
        return bad(format!("a palette makes fp16, the constant is {}", c.dtype));
    }
    let rank = c.shape.len();
    let [groups @ .., entries, vector] = lut_shape else {
        return bad(format!("lut shape {lut_shape:?} is too short"));
    };
    if rank == 0 || groups.len() != rank || *entries != 1 << nbits {
        return bad(format!(
            "lut shape {lut_shape:?} for {}: expected {rank} groups, {} entries, vector size",
            c.ty(),
            1 << nbits
        ));
    }
    let mut shape = c.shape.clone();
    match (vector_axis, *vector) {
        (None, 1) => {}
        (Some(axis), 2..) if axis < rank && shape[axis].is_multiple_of(*vector) => {
            shape[axis] /= vector
        }
        _ => {
            return bad(format!(
                "vectors of {vector} along {vector_axis:?} do not fit {}",
                c.ty()
            ));
        }
    }
    if let Some(i) = (0..rank).find(|&i| !shape[i].is_multiple_of(groups[i])) {
        return bad(format!(
            "{} groups do not divide {} (dimension {i} of the indices)",
            groups[i], shape[i]
        ));
    }
    Ok(vec![
        PartSpec::new(c, Part::Data, index, &shape)?,
        PartSpec::new(c, Part::Lut, DType::Fp16, lut_shape)?,
    ])
}

/// Parts of a sparse palette: those of the palette, with the indices kept alone, and the mask between them.
fn sparse_parts(
    c: &DeferredConst,
    (nbits, lut_shape, vector_axis): (u8, &[usize], Option<usize>),
    nonzero: usize,
) -> Result<Vec<PartSpec>> {
    let mut parts = palette_parts(c, nbits, lut_shape, vector_axis)?;
    let (index, all) = (parts[0].dtype, parts[0].shape.clone());
    if nonzero > all.iter().product() {
        return Err(storage_error(
            c,
            format!("{nonzero} elements of {} cannot be kept", c.ty()),
        ));
    }
    parts[0] = PartSpec::new(c, Part::Data, index, &[nonzero])?;
    parts.insert(1, PartSpec::new(c, Part::Mask, DType::UInt1, &all)?);
    Ok(parts)
}

fn blockwise_parts(
    c: &DeferredConst,
    data: DType,
    scale_shape: &[usize],
    offset: bool,
) -> Result<Vec<PartSpec>> {
    let bad = |message: String| Err(storage_error(c, message));
    if !matches!(
        data,
        DType::Int8 | DType::UInt8 | DType::Int4 | DType::UInt4
    ) {
        return bad(format!("{data} is not int8, uint8, int4 or uint4"));
    }
    if c.dtype != DType::Fp16 {
        return bad(format!("scales make fp16, the constant is {}", c.dtype));
    }
    let fits = !c.shape.is_empty()
        && scale_shape.len() == c.shape.len()
        && scale_shape
            .iter()
            .zip(&c.shape)
            .all(|(&s, &d)| s > 0 && d % s == 0);
    if !fits {
        return bad(format!(
            "scale shape {scale_shape:?} does not divide {}",
            c.ty()
        ));
    }
    let mut parts = vec![
        PartSpec::new(c, Part::Data, data, &c.shape)?,
        PartSpec::new(c, Part::Scale, DType::Fp16, scale_shape)?,
    ];
    if offset {
        parts.push(PartSpec::new(c, Part::Offset, data, scale_shape)?);
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn konst(shape: &[usize]) -> DeferredConst {
        DeferredConst::new("w", DType::Fp16, shape)
    }

    #[test]
    fn palette_sizes() {
        let storage = Storage::Palette {
            nbits: 4,
            lut_shape: vec![4, 1, 1, 1, 16, 1],
            vector_axis: None,
        };
        let parts = storage.parts(&konst(&[128, 1536, 1, 1])).unwrap();
        assert_eq!(parts[0].bytes, 128 * 1536 / 2);
        assert_eq!(parts[1].bytes, 4 * 16 * 2);
        assert!(storage.parts(&konst(&[130, 1536, 1, 1])).is_err());
    }

    #[test]
    fn vectors_divide_their_axis() {
        let storage = |axis| Storage::Palette {
            nbits: 2,
            lut_shape: vec![1, 1, 4, 2],
            vector_axis: axis,
        };
        let parts = storage(Some(0)).parts(&konst(&[6, 4])).unwrap();
        assert_eq!(parts[0].shape, [3, 4]);
        assert!(storage(None).parts(&konst(&[6, 4])).is_err());
        assert!(storage(Some(0)).parts(&konst(&[5, 4])).is_err());
    }

    #[test]
    fn sparse_and_int8_palette_sizes() {
        let bytes = |storage: &Storage, shape: &[usize]| -> Vec<u64> {
            let parts = storage.parts(&konst(shape)).unwrap();
            parts.iter().map(|p| p.bytes).collect()
        };
        let sparse = |nonzero| Storage::PaletteSparse {
            nbits: 4,
            lut_shape: vec![2, 1, 16, 1],
            vector_axis: None,
            nonzero,
        };
        assert_eq!(bytes(&sparse(45), &[8, 12]), [23, 12, 64]);
        assert!(sparse(97).parts(&konst(&[8, 12])).is_err());
        assert!(sparse(0).parts(&konst(&[8, 12])).is_err());
        let int8 = Storage::PaletteInt8 {
            nbits: 3,
            lut_shape: vec![4, 1, 8, 1],
        };
        assert_eq!(bytes(&int8, &[8, 12]), [36, 32, 2]);
    }

    #[test]
    fn blockwise_sizes() {
        let storage = Storage::Blockwise {
            data: DType::Int4,
            scale_shape: vec![8, 3],
            offset: true,
        };
        let parts = storage.parts(&konst(&[8, 96])).unwrap();
        let bytes: Vec<u64> = parts.iter().map(|p| p.bytes).collect();
        assert_eq!(bytes, [8 * 96 / 2, 48, 12]);
    }
}
