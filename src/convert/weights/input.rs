//! A tensor as the quantizers are to see it: read from the checkpoint, with the factors of its folds.

use crate::checkpoint::TensorView;
use crate::convert::error::{Error, Result};
use half::f16;
use std::ops::Range;
use std::sync::Arc;

/// Factors on the rows and columns of a matrix; none where `None`.
#[derive(Debug, Clone, Default)]
pub(super) struct Factors {
    /// One per row.
    pub rows: Option<Arc<[f32]>>,
    /// One per column.
    pub columns: Option<Arc<[f32]>>,
}

impl Factors {
    /// These, and `factor` on each of so many rows.
    pub fn times(mut self, factor: f32, rows: usize) -> Self {
        if factor != 1.0 {
            self.rows = Some(match &self.rows {
                Some(factors) => factors.iter().map(|f| f * factor).collect(),
                None => vec![factor; rows].into(),
            });
        }
        self
    }

    /// Whether a product with any of them changes no digit.
    fn are_powers_of_two(&self) -> bool {
        let all = self.rows.iter().chain(&self.columns);
        all.flat_map(|factors| factors.iter())
            .all(|f| f.is_normal() && f.to_bits() << 9 == 0)
    }
}

/// A matrix of the checkpoint times its factors.
#[derive(Debug, Clone)]
pub(super) struct Input<'a> {
    pub view: TensorView<'a>,
    /// Length of a row.
    pub inputs: usize,
    pub factors: Factors,
    /// Whether the factors are powers of two.
    exact: bool,
}

impl<'a> Input<'a> {
    /// A tensor of rows of `inputs` elements.
    pub fn new(view: TensorView<'a>, inputs: usize, factors: Factors) -> Self {
        Self {
            view,
            inputs,
            exact: factors.are_powers_of_two(),
            factors,
        }
    }

    /// Reads elements as f32.
    ///
    /// # Errors
    /// As [`TensorView::read_f32`].
    pub fn read_f32(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let start = range.start;
        self.view.read_f32(range, out)?;
        self.each_factor(start, out.len(), |i, factor| out[i] *= factor);
        Ok(())
    }

    /// Reads elements as fp16. Where factors are powers of two, only a value beyond the range of fp16 can be off: too
    /// large is an error, too small loses digits below 2^-24. Products with others are rounded once.
    ///
    /// # Errors
    /// As [`TensorView::read_f16`]; [`Error::FoldRange`].
    pub fn read_f16(&self, range: Range<usize>, out: &mut [f16]) -> Result<()> {
        let start = range.start;
        let mut beyond = None;
        if self.exact {
            self.view.read_f16(range, out)?;
            self.each_factor(start, out.len(), |i, factor| {
                let scaled = f16::from_f32(out[i].to_f32() * factor);
                if scaled.is_infinite() && beyond.is_none() {
                    beyond = Some((i, out[i].to_f32(), factor));
                }
                out[i] = scaled;
            });
        } else {
            let mut values = vec![0f32; out.len()];
            self.view.read_f32(range, &mut values)?;
            self.each_factor(start, out.len(), |i, factor| {
                out[i] = f16::from_f64(f64::from(values[i]) * f64::from(factor));
                if out[i].is_infinite() && beyond.is_none() {
                    beyond = Some((i, values[i], factor));
                }
            });
        }
        match beyond {
            Some((i, value, factor)) => Err(Error::FoldRange {
                tensor: self.view.name.to_string(),
                element: start + i,
                value,
                factor,
            }),
            None => Ok(()),
        }
    }

    /// Takes the factors off values that begin at element `start`.
    pub fn undo(&self, start: usize, values: &mut [f32]) {
        self.each_factor(start, values.len(), |i, factor| values[i] /= factor);
    }

    /// Calls `apply` with the factor of each of the `len` elements from `start` on, where there are factors.
    fn each_factor(&self, start: usize, len: usize, mut apply: impl FnMut(usize, f32)) {
        let Factors { rows, columns } = &self.factors;
        if rows.is_none() && columns.is_none() {
            return;
        }
        let (mut row, mut column) = (start / self.inputs, start % self.inputs);
        for i in 0..len {
            let of_row = rows.as_ref().map_or(1.0, |f| f[row]);
            let of_column = columns.as_ref().map_or(1.0, |f| f[column]);
            apply(i, of_row * of_column);
            column += 1;
            if column == self.inputs {
                (row, column) = (row + 1, 0);
            }
        }
    }
}
