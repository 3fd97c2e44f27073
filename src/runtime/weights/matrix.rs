//! Matrices in memory as a package holds them, for measuring and checking the kernels by themselves.

use super::coding::Coding;
use super::packed::{Blocks, PackedWeight};
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

/// A matrix of integers in two's complement, as a package holds it, with a scale for each block of a row.
#[derive(Debug)]
pub struct IntegerMatrix(PackedWeight);

impl IntegerMatrix {
    /// A matrix of `rows` x `cols` integers of 4 or 8 bits. `integers` are packed row-major, lowest bits of a byte first, as in
    /// weight.bin; `scales` has as many values for each row as it has blocks.
    ///
    /// # Errors
    /// [`Error::TensorLength`] when there are fewer bytes; [`Error::Disagreement`] when the scales do not divide the matrix or there
    /// are no integers of that width.
    pub fn new(
        bits: u32,
        (rows, cols): (usize, usize),
        integers: Vec<u8>,
        scales: &[f32],
    ) -> Result<Self> {
        let per_row = scales.len().checked_div(rows).unwrap_or(0);
        let known = matches!(bits, 4 | 8);
        if !known
            || per_row == 0
            || !scales.len().is_multiple_of(rows)
            || !cols.is_multiple_of(per_row)
        {
            return Err(Error::Disagreement {
                what: "a matrix of integers",
                left_name: "the matrix".to_owned(),
                left: format!("{rows} x {cols} integers of {bits} bits"),
                right_name: "the scales".to_owned(),
                right: format!("{} values", scales.len()),
            });
        }
        let blocks = Blocks {
            coding: Coding::Signed(bits),
            scale_shape: vec![rows, per_row],
            scale: scales.to_vec(),
            offset: None,
            rounded: false,
        };
        let shape = [rows, cols];
        let got = integers.len();
        let weight = PackedWeight::blocks(&shape, blocks, Arc::new(integers));
        let weight = weight.ok_or_else(|| Error::TensorLength {
            shape: shape.to_vec(),
            expected: Coding::Signed(bits)
                .bytes(rows * cols)
                .unwrap_or(usize::MAX),
            got,
        })?;
        Ok(Self(weight))
    }

    /// As [`PalettizedMatrix::multiply`].
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
        self.0.multiply_all(kernel, x, vectors, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_times_their_scales() {
        // -8 7 1 -1 and 2 0 -3 4, two scales a row.
        let bytes = vec![0x78, 0xf1, 0x02, 0x4d];
        let scales = [0.5, 2.0, 1.0, -1.0];
        let matrix = IntegerMatrix::new(4, (2, 4), bytes.clone(), &scales).unwrap();
        for kernel in Kernel::available() {
            let mut out = [0.0; 2];
            matrix
                .multiply(kernel, &[1.0, 2.0, 3.0, 4.0], 1, &mut out)
                .unwrap();
            assert_eq!(out, [3.0 - 2.0, 2.0 - 7.0]);
            let short = matrix.multiply(kernel, &[1.0; 3], 1, &mut out);
            assert!(matches!(short, Err(Error::TensorLength { .. })));
        }
        let new = |bits, size, bytes: &[u8], scales: &[f32]| {
            IntegerMatrix::new(bits, size, bytes.to_vec(), scales).unwrap_err()
        };
        let short = new(4, (2, 4), &bytes[1..], &scales);
        assert!(matches!(
            short,
            Error::TensorLength {
                expected: 4,
                got: 3,
                ..
            }
        ));
        for (bits, size, scales) in [
            (2, (2, 4), &scales[..]),
            (4, (2, 4), &scales[..3]),
            (4, (2, 3), &scales[..]),
            (4, (0, 4), &scales[..]),
            (4, (2, 4), &[]),
        ] {
            assert!(matches!(
                new(bits, size, &bytes, scales),
                Error::Disagreement { .. }
            ));
        }
    }
}
