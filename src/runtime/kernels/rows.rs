//! Products of the rows of a weight with vectors.

use super::dot::{dot, for_rows};
use crate::runtime::packed::{PackedWeight, Scratch};

/// The rows of a weight.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// Row-major values, `cols` per row.
    Dense { values: &'a [f32], cols: usize },
    /// As stored.
    Packed(&'a PackedWeight),
}

impl Rows<'_> {
    fn cols(&self) -> usize {
        match self {
            Rows::Dense { cols, .. } => *cols,
            Rows::Packed(weight) => weight.cols(),
        }
    }

    /// `out[r][v] = rows[first + r] · x[v] + bias[first + r]` for `vectors` vectors `x` of `cols` values; `out` is
    /// `[rows, vectors]`.
    pub fn multiply(
        self,
        first: usize,
        x: &[f32],
        vectors: usize,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let cols = self.cols();
        let work = out.len().saturating_mul(cols);
        for_rows(out, vectors, work, |start, out| {
            let mut scratch = Scratch::default();
            for (i, out) in out.chunks_exact_mut(vectors).enumerate() {
                let row = first + start + i;
                match self {
                    Rows::Packed(weight) => weight.dot_row(row, x, out, &mut scratch),
                    Rows::Dense { values, cols } => {
                        let values = &values[row * cols..(row + 1) * cols];
                        for (v, o) in out.iter_mut().enumerate() {
                            *o = dot(values, &x[v * cols..(v + 1) * cols]);
                        }
                    }
                }
                if let Some(bias) = bias {
                    out.iter_mut().for_each(|o| *o += bias[row]);
                }
            }
        });
    }
}

/// `[rows, cols]` to `[cols, rows]`.
pub(crate) fn transpose(x: &[f32], rows: usize, cols: usize, out: &mut [f32]) {
    for (c, out) in out.chunks_exact_mut(rows.max(1)).enumerate() {
        for (r, o) in out.iter_mut().enumerate() {
            *o = x[r * cols + c];
        }
    }
}
