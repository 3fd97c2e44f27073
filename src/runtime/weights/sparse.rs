//! Sparse weights: a bit per element, and the elements whose bit is 1, in row-major order.

use super::coding::{Coding, SharedBytes, each_code};
use super::palette::{Palette, palette_columns};
use crate::runtime::values::tensor::elements;
use std::sync::Arc;

/// Whether a bit of a mask is 1.
pub(super) fn bit(mask: &[u8], at: usize) -> bool {
    mask[at / 8] >> (at % 8) & 1 == 1
}

/// Ones of each row of a mask, as the number of ones before it; one more for those of all. `None` if the bytes are too
/// few, or `ones` are not what there are.
fn starts(mask: &[u8], shape: &[usize], ones: usize) -> Option<Vec<usize>> {
    let count = elements(shape)?;
    let rows = *shape.first()?;
    let columns = count.checked_div(rows)?;
    if mask.len() < count.div_ceil(8) {
        return None;
    }
    let mut starts = Vec::with_capacity(rows + 1);
    let mut sum = 0;
    for row in 0..rows {
        starts.push(sum);
        sum += (row * columns..(row + 1) * columns)
            .filter(|&at| bit(mask, at))
            .count();
    }
    starts.push(sum);
    (sum == ones).then_some(starts)
}

/// Where the elements of a sparse weight go.
#[derive(Debug)]
pub(crate) struct Sparse {
    coding: Coding,
    columns: usize,
    mask: Mask,
    starts: Vec<usize>,
}

/// Bytes that are not printed.
struct Mask(SharedBytes);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mask")
    }
}

impl Sparse {
    /// For a weight of `shape` with `ones` elements of `coding`. `None` if the mask does not fit.
    pub fn new(shape: &[usize], coding: Coding, ones: usize, mask: SharedBytes) -> Option<Self> {
        let starts = starts((*mask).as_ref(), shape, ones)?;
        Some(Self {
            coding,
            columns: shape[1..].iter().product(),
            mask: Mask(mask),
            starts,
        })
    }

    /// Bytes of the elements and of the mask.
    pub fn bytes(&self) -> usize {
        let rows = self.starts.len() - 1;
        let elements = self.coding.bytes(self.starts[rows]).unwrap_or(0);
        elements + (rows * self.columns).div_ceil(8)
    }

    /// Decodes a row from the bytes of the elements.
    pub fn decode_row(&self, bytes: &[u8], row: usize, out: &mut [f32]) {
        let mask: &[u8] = (*self.mask.0).as_ref();
        let (first, count) = (self.starts[row], self.starts[row + 1] - self.starts[row]);
        // The row's elements wait at its end; none is overwritten before it is moved.
        let mut from = out.len() - count;
        self.coding.read(bytes, first, &mut out[from..]);
        for column in 0..out.len() {
            out[column] = match bit(mask, row * self.columns + column) {
                true => {
                    from += 1;
                    out[from - 1]
                }
                false => 0.0,
            };
        }
    }
}

/// Where the palettized elements of a sparse weight go.
pub(crate) struct LookedUp {
    /// Shape of the weight.
    pub shape: Vec<usize>,
    /// A bit per element of the weight.
    pub mask: SharedBytes,
}

/// Looks up the `count` indices in `data`, which belong to the ones of `mask`, and gives `element` each element whose bit
/// is 1, in row-major order. `None` if mask, indices and LUT do not fit together.
pub(crate) fn look_up(
    palette: &Palette,
    data: &[u8],
    count: usize,
    mask: SharedBytes,
    mut element: impl FnMut(f32),
) -> Option<LookedUp> {
    let shape = palette.shape()?;
    let ones: &[u8] = (*mask).as_ref();
    let starts = starts(ones, &palette.index_shape, count)?;
    if data.len() < Coding::Unsigned(palette.bits).bytes(count)? {
        return None;
    }
    let columns = palette_columns(palette, &shape)?;
    let index_columns: usize = palette.index_shape[1..].iter().product();
    let row_columns: usize = shape[1..].iter().product();
    let vector = palette.vector();
    let mut expanded = vec![
        0u8;
        if vector > 1 {
            elements(&shape)?.div_ceil(8)
        } else {
            0
        }
    ];
    let mut codes = vec![0u8; index_columns];
    for row in 0..shape[0] {
        let (index_row, lut) = palette.row(row);
        let found = starts[index_row + 1] - starts[index_row];
        each_code(
            data,
            palette.bits,
            starts[index_row],
            &mut codes[..found],
            |c| c,
        );
        // To their columns, from the last on: none is overwritten before it is moved.
        let mut from = found;
        for column in (0..index_columns).rev() {
            if bit(ones, index_row * index_columns + column) {
                from -= 1;
                codes[column] = codes[from];
            }
        }
        for column in 0..row_columns {
            let (index_column, place) = match columns.get(column) {
                Some(&(index_column, place)) => (index_column as usize, place as usize),
                None => (column, 0),
            };
            if bit(ones, index_row * index_columns + index_column) {
                element(palette.lut[lut + place + usize::from(codes[index_column]) * vector]);
                if vector > 1 {
                    let at = row * row_columns + column;
                    expanded[at / 8] |= 1 << (at % 8);
                }
            }
        }
    }
    Some(LookedUp {
        shape,
        mask: if vector > 1 {
            Arc::new(expanded)
        } else {
            mask.clone()
        },
    })
}
