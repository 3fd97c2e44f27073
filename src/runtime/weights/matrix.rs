//! A palettized matrix in memory, for measuring and checking the kernels by themselves.

use super::packed::PackedWeight;
use super::palette::Palette;
use crate::runtime::kernels::kernel::Kernel;
use crate::runtime::values::error::{Error, Result};
use std::sync::Arc;

/// A matrix of palette indices, as a package holds it, with one LUT for each so many rows.
#[derive(Debug)]
pub struct PalettizedMatrix {
    weight: PackedWeight,
    index_bytes: usize,
}

impl PalettizedMatrix {
    /// A matrix of `rows` x `cols` indices of `bits` bits: 1, 2, 3, 4, 6 or 8. `indices` are packed row-major, lowest bits of
    /// a byte first, as in weight.bin; `luts` has `2^bits` values for each `group_rows` rows.
    ///
    /// # Errors
    /// [`Error::TensorLength`] when there are fewer bytes, or more or fewer LUT values; [`Error::Disagreement`] when
    /// `group_rows` does not divide the rows or there are no indices of that width.
    pub fn new(
        bits: u32,
        (rows, cols): (usize, usize),
        indices: Vec<u8>,
        luts: &[f32],
        group_rows: usize,
    ) -> Result<Self> {
        let known = matches!(bits, 1 | 2 | 3 | 4 | 6 | 8);
        if !known || rows == 0 || group_rows == 0 || !rows.is_multiple_of(group_rows) {
            return Err(Error::Disagreement {
                what: "a palettized matrix",
                left_name: "the matrix".to_owned(),
                left: format!("{rows} rows of indices of {bits} bits"),
                right_name: "the LUTs".to_owned(),
                right: format!("groups of {group_rows} rows"),
            });
        }
        let lut_shape = vec![rows / group_rows, 1, 1 << bits, 1];
        let length = |shape: &[usize], expected, got| Error::TensorLength {
            shape: shape.to_vec(),
            expected,
            got,
        };
        let entries = (rows / group_rows) << bits;
        if luts.len() != entries {
            return Err(length(&lut_shape, entries, luts.len()));
        }
        let needed = rows
            .saturating_mul(cols)
            .saturating_mul(bits as usize)
            .div_ceil(8);
        let got = indices.len();
        let palette = Palette {
            bits,
            index_shape: vec![rows, cols],
            lut_shape,
            lut: luts.to_vec(),
            vector_axis: 0,
        };
        let weight = PackedWeight::palette(palette, Arc::new(indices));
        let weight = weight.ok_or_else(|| length(&[rows, cols], needed, got))?;
        Ok(Self {
            weight,
            index_bytes: needed,
        })
    }

    /// Bytes of indices that a product reads.
    pub fn index_bytes(&self) -> usize {
        self.index_bytes
    }

    /// The products of all rows with `vectors` vectors of `cols` values, one after another in `x`, into `out`: row-major
    /// `[rows, vectors]`. On the calling thread.
    ///
    /// # Errors
    /// [`Error::TensorLength`] when `x` or `out` is of another length.
    pub fn multiply(
        &self,
        kernel: Kernel,
        x: &[f32],
        vectors: usize,
        out: &mut [f32],
    ) -> Result<()> {
        self.weight.multiply_all(kernel, x, vectors, out)
    }
}
