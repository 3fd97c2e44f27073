//! Weights as they are stored: fp16, palette indices with their LUTs, block-scaled integers, or the elements of a
//! sparse weight with their mask.
//!
//! A weight of shape `[n0, n1, ...]` is seen as `n0` rows of `n1 * n2 * ...` columns. Palettes with one LUT per row, fp16, and int4
//! and int8 with one scale per row or for each block of a row are multiplied as they are stored; rows of other forms are decoded when
//! they are needed.

use super::coding::{Coding, SharedBytes, each_code};
use super::palette::{Palette, column_coordinates, group_of, palette_columns};
use super::sparse::Sparse;
use super::usage::WeightUse;
use crate::runtime::kernels::codec::{self, RowCoding};
use crate::runtime::kernels::kernel::Kernel;
use crate::runtime::kernels::math::round_f16;
use crate::runtime::kernels::matvec::{CodedRows, multiply_decoded};
use crate::runtime::kernels::vectors::Vectors;
use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::tensor::elements;

/// Integers (or floats) with one scale and offset per block.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Coding of the data.
    pub coding: Coding,
    /// Shape of the scales, each dim dividing that of the data.
    pub scale_shape: Vec<usize>,
    /// The scales, row-major.
    pub scale: Vec<f32>,
    /// Offsets of the same shape, subtracted before the scaling.
    pub offset: Option<Vec<f32>>,
    /// Whether the results are rounded to fp16.
    pub rounded: bool,
}

#[derive(Debug)]
enum Form {
    Plain(Coding),
    Palette {
        palette: Palette,
        /// Per column: index column and place in the LUTs of the row's group; empty when it is the column itself and 0.
        columns: Vec<(u32, u32)>,
        /// Whether all LUT values are: then padding with index 0 adds nothing to a product.
        finite: bool,
    },
    Blocks {
        blocks: Blocks,
        /// Per column: scale within the row's group.
        columns: Vec<u32>,
        /// How a kernel multiplies the rows; `None` if they have to be decoded first.
        coding: Option<RowCoding>,
    },
    Sparse(Sparse),
}

/// A weight in its stored form.
pub(crate) struct PackedWeight {
    shape: Vec<usize>,
    rows: usize,
    cols: usize,
    bytes: SharedBytes,
    form: Form,
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeight({:?}, {:?})", self.shape, self.form)
    }
}

impl PackedWeight {
    /// A plain weight. `None` if the bytes are fewer than the shape needs, or the shape is a scalar.
    pub fn plain(shape: &[usize], coding: Coding, bytes: SharedBytes) -> Option<Self> {
        Self::new(shape, coding, bytes, Form::Plain(coding))
    }

    /// A palettized weight. `None` if shapes, LUT and bytes do not fit together.
    pub fn palette(palette: Palette, bytes: SharedBytes) -> Option<Self> {
        let shape = palette.shape()?;
        let index_elements = elements(&palette.index_shape)?;
        let coding = Coding::Unsigned(palette.bits);
        if bytes.as_ref().as_ref().len() < coding.bytes(index_elements)? {
            return None;
        }
        let columns = palette_columns(&palette, &shape)?;
        let finite = palette.lut.iter().all(|v| v.is_finite());
        let form = Form::Palette {
            palette,
            columns,
            finite,
        };
        // The number of bytes is that of the indices, checked above.
        Self::new(&shape, Coding::Unsigned(0), bytes, form)
    }

    /// A block-scaled weight of `shape`. `None` if shapes, scales and bytes do not fit together.
    pub fn blocks(shape: &[usize], mut blocks: Blocks, bytes: SharedBytes) -> Option<Self> {
        let scales = elements(&blocks.scale_shape)?;
        let fits = blocks.scale_shape.len() == shape.len()
            && blocks
                .scale_shape
                .iter()
                .zip(shape)
                .all(|(&g, &n)| g > 0 && n % g == 0);
        let full = blocks.scale.len() == scales
            && blocks.offset.as_ref().is_none_or(|o| o.len() == scales);
        if !fits || !full {
            return None;
        }
        let columns = column_coordinates(shape)
            .map(|at| u32::try_from(group_of(&at, &shape[1..], &blocks.scale_shape[1..])).ok())
            .collect::<Option<Vec<u32>>>()?;
        let coding = row_coding(&blocks, columns.len());
        let stored = blocks.coding;
        let behind = coding.map_or(0, RowCoding::behind);
        blocks.scale.resize(scales + behind, 0.0);
        let form = Form::Blocks {
            blocks,
            columns,
            coding,
        };
        Self::new(shape, stored, bytes, form)
    }

    /// A sparse weight of `shape` from its elements other than zero, and a mask with one bit per element. `None` if
    /// the mask has another number of ones than there are elements, or the bytes are too few.
    pub fn sparse(
        shape: &[usize],
        coding: Coding,
        (bytes, elements): (SharedBytes, usize),
        mask: SharedBytes,
    ) -> Option<Self> {
        let sparse = Sparse::new(shape, coding, elements, mask)?;
        if bytes.as_ref().as_ref().len() < coding.bytes(elements)? {
            return None;
        }
        Self::new(shape, Coding::Unsigned(0), bytes, Form::Sparse(sparse))
    }

    fn new(shape: &[usize], coding: Coding, bytes: SharedBytes, form: Form) -> Option<Self> {
        let elements = elements(shape)?;
        let rows = *shape.first()?;
        if bytes.as_ref().as_ref().len() < coding.bytes(elements)? {
            return None;
        }
        Some(Self {
            shape: shape.to_vec(),
            rows,
            cols: elements.checked_div(rows).unwrap_or(0),
            bytes,
            form,
        })
    }

    /// The shape that ops see.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Extent of the first dim.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Product of the other dims.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Decodes row `row` into `out` (`cols` values).
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let bytes: &[u8] = self.bytes.as_ref().as_ref();
        match &self.form {
            Form::Plain(coding) => coding.read(bytes, row * self.cols, out),
            Form::Sparse(sparse) => sparse.decode_row(bytes, row, out),
            Form::Palette {
                palette, columns, ..
            } => {
                let (index_row, lut) = palette.row(row);
                let lut = &palette.lut[lut..];
                let vector = palette.vector();
                if columns.is_empty() {
                    let first = index_row * self.cols;
                    each_code(bytes, palette.bits, first, out, |code| {
                        lut[usize::from(code) * vector]
                    });
                } else {
                    let index_cols: usize = palette.index_shape[1..].iter().product();
                    for (o, &(column, place)) in out.iter_mut().zip(columns) {
                        let at = index_row * index_cols + column as usize;
                        each_code(bytes, palette.bits, at, std::slice::from_mut(o), |code| {
                            lut[place as usize + usize::from(code) * vector]
                        });
                    }
                }
            }
            Form::Blocks {
                blocks, columns, ..
            } => {
                blocks.coding.read(bytes, row * self.cols, out);
                let scales_per_row: usize = blocks.scale_shape[1..].iter().product();
                let base = row / (self.rows / blocks.scale_shape[0]) * scales_per_row;
                for (o, &column) in out.iter_mut().zip(columns) {
                    let at = base + column as usize;
                    let offset = blocks.offset.as_ref().map_or(0.0, |offset| offset[at]);
                    *o = blocks.scale[at] * (*o - offset);
                }
                if blocks.rounded {
                    round_f16(out);
                }
            }
        }
    }

    /// Every value, row-major.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        if self.cols > 0 {
            for (row, out) in out.chunks_exact_mut(self.cols).enumerate() {
                self.decode_row(row, out);
            }
        }
        out
    }

    /// The rows as a kernel multiplies them; `None` if they have to be decoded first.
    fn coded(&self) -> Option<CodedRows<'_>> {
        let bytes: &[u8] = self.bytes.as_ref().as_ref();
        let size = (self.rows, self.cols);
        match &self.form {
            Form::Plain(Coding::F16) => CodedRows::new(RowCoding::Half, bytes, size, (&[], 1)),
            Form::Palette {
                palette,
                columns,
                finite: true,
            } if columns.is_empty() && palette.vector() == 1 => {
                let group = palette.index_shape[0] / palette.lut_shape[0];
                let coding = RowCoding::Palette(palette.bits);
                CodedRows::new(coding, bytes, size, (&palette.lut, group))
            }
            Form::Blocks {
                blocks,
                coding: Some(coding),
                ..
            } => {
                let group = self.rows / blocks.scale_shape[0];
                CodedRows::new(*coding, bytes, size, (&blocks.scale, group))
            }
            _ => None,
        }
    }

    /// What a product with all rows reads.
    pub fn usage(&self) -> WeightUse {
        let elements = self.rows * self.cols;
        let size = |coding: Coding, elements: usize| coding.bytes(elements).unwrap_or(0);
        // LUTs and scales are stored in fp16.
        let (coding, bytes) = match &self.form {
            Form::Plain(coding) => (format!("fp{}", coding.bits()), size(*coding, elements)),
            Form::Palette { palette, .. } => {
                let indices: usize = palette.index_shape.iter().product();
                let bytes = size(Coding::Unsigned(palette.bits), indices);
                let vector = match palette.vector() {
                    1 => String::new(),
                    n => format!(" vectors of {n}"),
                };
                (
                    format!("palette{}{vector}", palette.bits),
                    bytes + palette.lut.len() * 2,
                )
            }
            Form::Blocks { blocks, .. } => {
                let offsets = blocks.offset.as_ref().map_or(0, Vec::len);
                let scales: usize = blocks.scale_shape.iter().product();
                let bytes = size(blocks.coding, elements) + scales * 2 + offsets;
                let coding = match self.coded() {
                    Some(rows) => rows.coding().name(),
                    None => format!("blocks of int{}", blocks.coding.bits()),
                };
                (coding, bytes)
            }
            Form::Sparse(sparse) => ("sparse".to_owned(), sparse.bytes()),
        };
        WeightUse {
            coding,
            elements: elements as u64,
            bytes: bytes as u64,
            direct: self.coded().map(|rows| rows.coding()),
        }
    }

    /// `vectors` vectors of `cols` values, ready for [`PackedWeight::multiply`].
    pub fn vectors(&self, x: &[f32], vectors: usize) -> Vectors {
        let coding = self.coded().map(|rows| rows.coding());
        Vectors::new(coding, x, self.cols, vectors)
    }

    /// The inner products of rows from `first` on with vectors that were made for this weight into `out`,
    /// `[rows, vectors]`. A product depends on nothing but its row, its vector, the kernel and whether there is one vector
    /// or more; it differs from that in f64 by rounding of f32 sums.
    pub fn multiply(&self, kernel: Kernel, first: usize, x: &Vectors, out: &mut [f32]) {
        match self.coded() {
            Some(rows) => rows.multiply(kernel, first, x, out),
            None => multiply_decoded(kernel, x, out, |row, to| {
                self.decode_row(first + row, &mut to[..self.cols]);
            }),
        }
    }

    /// [`PackedWeight::multiply`] of all rows with `vectors` vectors of `cols` values.
    ///
    /// # Errors
    /// [`Error::TensorLength`] when `x` or `out` is of another length.
    pub fn multiply_all(
        &self,
        kernel: Kernel,
        x: &[f32],
        vectors: usize,
        out: &mut [f32],
    ) -> Result<()> {
        for (shape, got) in [
            ([vectors, self.cols], x.len()),
            ([self.rows, vectors], out.len()),
        ] {
            let expected = shape[0].saturating_mul(shape[1]);
            if expected != got {
                return Err(Error::TensorLength {
                    shape: shape.to_vec(),
                    expected,
                    got,
                });
            }
        }
        self.multiply(kernel, 0, &self.vectors(x, vectors), out);
        Ok(())
    }
}

/// How a kernel multiplies rows of `cols` integers; `None` where there is none for the form.
fn row_coding(blocks: &Blocks, cols: usize) -> Option<RowCoding> {
    let Coding::Signed(bits @ (4 | 8)) = blocks.coding else {
        return None;
    };
    let (per_row, inner) = blocks.scale_shape[1..].split_first()?;
    let finite = blocks.scale.iter().all(|scale| scale.is_finite());
    if blocks.offset.is_some() || !finite || inner.iter().any(|&n| n != 1) {
        return None;
    }
    match (bits, per_row, blocks.rounded) {
        (4, 1, false) => Some(RowCoding::Int4),
        (8, 1, false) => Some(RowCoding::Int8),
        _ => {
            let of_row = codec::Blocks::new(bits, cols / per_row, cols, blocks.rounded)?;
            Some(RowCoding::Blocks(of_row))
        }
    }
}

#[cfg(test)]
mod tests;
