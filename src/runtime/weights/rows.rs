//! Products of the rows of a weight with vectors.

use super::packed::PackedWeight;
use crate::runtime::kernels::dot::{PARALLEL_WORK, dot, for_rows};
use crate::runtime::kernels::kernel::Kernel;

/// Rows are shared among threads in runs of a multiple of this: the usual group of a palette.
const ROW_RUN: usize = 32;

/// So many multiplications of a packed weight take the time of one of plain rows.
const PACKED_SPEED: usize = 3;

/// Whether the rows of a packed weight of so many elements are shared among threads, for one vector.
pub(crate) fn is_shared(elements: usize) -> bool {
    elements / PACKED_SPEED >= PARALLEL_WORK
}

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
        let work = out.len().saturating_mul(self.cols());
        let add_bias = |row: usize, out: &mut [f32]| {
            if let Some(bias) = bias {
                for (out, bias) in out.chunks_exact_mut(vectors).zip(&bias[row..]) {
                    out.iter_mut().for_each(|o| *o += bias);
                }
            }
        };
        match self {
            Rows::Packed(weight) => {
                let (kernel, x) = (Kernel::current(), weight.vectors(x, vectors));
                for_rows(out, vectors, ROW_RUN, work / PACKED_SPEED, |start, out| {
                    weight.multiply(kernel, first + start, &x, out);
                    add_bias(first + start, out);
                });
            }
            Rows::Dense { values, cols } => for_rows(out, vectors, 1, work, |start, out| {
                for (i, out) in out.chunks_exact_mut(vectors).enumerate() {
                    let row = first + start + i;
                    let values = &values[row * cols..(row + 1) * cols];
                    for (v, o) in out.iter_mut().enumerate() {
                        *o = dot(values, &x[v * cols..(v + 1) * cols]);
                    }
                }
                add_bias(first + start, out);
            }),
        }
    }
}
