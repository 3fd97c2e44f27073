//! One row of a table: from the checkpoint to integers and scales, or to fp16.

use crate::checkpoint::{Grid, TensorView};
use crate::convert::decide::TableSpec;
use crate::convert::error::{Error, Result};
use crate::convert::weights::Counts;
use crate::quantize::linear::{INT4_LEVELS, INT8_LEVELS};
use crate::quantize::pack::pack_signed;
use crate::quantize::table::{
    add_row_errors, quantize_block, quantize_row_int4, quantize_row_int8,
};
use crate::quantize::{ErrorStats, TableScheme, grid, narrow};
use half::f16;

/// What became of the rows of a table.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Encoded {
    pub stats: ErrorStats,
    /// Blocks whose integers were kept or computed.
    pub blocks: Counts,
}

impl Encoded {
    pub fn merge(&mut self, other: &Self) {
        self.stats.merge(&other.stats);
        self.blocks.merge(other.blocks);
    }
}

/// Buffers of a thread.
#[derive(Default)]
pub(super) struct Buffers {
    /// The row as the checkpoint has it.
    exact: Vec<f32>,
    codes: Vec<i8>,
    steps: Vec<f32>,
    packed: Vec<u8>,
}

/// Rows of one table.
pub(super) struct Rows<'a> {
    view: &'a TensorView<'a>,
    spec: &'a TableSpec,
    /// The grid of the checkpoint's integers, where the scheme holds them.
    given: Option<Grid>,
}

impl<'a> Rows<'a> {
    pub fn new(view: &'a TensorView<'a>, spec: &'a TableSpec) -> Self {
        let given = view.grid().filter(|grid| holds(spec, *grid));
        Self { view, spec, given }
    }

    /// One row into its bytes and scales, as many as the scheme has.
    pub fn encode(
        &self,
        row: usize,
        buffers: &mut Buffers,
        out: &mut [u8],
        scales: &mut [f16],
    ) -> Result<Encoded> {
        let dim = self.spec.dim;
        let start = row * dim;
        buffers.exact.resize(dim, 0.0);
        buffers.codes.resize(dim, 0);
        self.view.read_f32(start..start + dim, &mut buffers.exact)?;
        if let Some(grid) = self.given {
            self.view
                .read_codes(start..start + dim, &mut buffers.codes)?;
            let steps = dim / grid.block;
            buffers.steps.resize(steps, 0.0);
            self.view
                .read_steps(row * steps..(row + 1) * steps, &mut buffers.steps)?;
        }
        let mut encoded = Encoded::default();
        let largest = match self.spec.scheme {
            TableScheme::RowsInt8 => {
                let of = (quantize_row_int8 as Quantize, INT8_LEVELS, 8);
                self.scaled(of, buffers, (out, scales), &mut encoded)
            }
            TableScheme::RowsInt4 => {
                let of = (quantize_row_int4 as Quantize, INT4_LEVELS, 4);
                self.scaled(of, buffers, (out, scales), &mut encoded)
            }
            TableScheme::RowsFp16 => half_row(&buffers.exact, out, &mut encoded.stats),
            TableScheme::RowsSteps { bits, .. } => {
                self.stepped(bits.count(), buffers, (out, scales), &mut encoded)
            }
        };
        let largest = largest.map_err(|source| Error::Quantize {
            tensor: self.spec.tensor.to_string(),
            start,
            source,
        })?;
        self.check_range(row, largest, &buffers.exact)?;
        Ok(encoded)
    }

    /// The row with one scale, `levels` times its step. Returns the largest magnitude that is stored.
    fn scaled(
        &self,
        (quantize, levels, nbits): (Quantize, i8, u8),
        buffers: &mut Buffers,
        (out, scales): (&mut [u8], &mut [f16]),
        encoded: &mut Encoded,
    ) -> crate::quantize::Result<f64> {
        let Buffers {
            exact,
            codes,
            steps,
            packed,
        } = buffers;
        let kept = self.given.and_then(|_| {
            let scale = f16::from_f64(f64::from(steps[0]) * f64::from(levels));
            is_kept(scale, steps[0], codes).then_some(scale)
        });
        let scale = match kept {
            Some(scale) => {
                encoded.blocks.on += 1;
                let exact = scale.to_f64() == f64::from(steps[0]) * f64::from(levels);
                encoded.blocks.inexact += u64::from(!exact);
                scale
            }
            None => {
                encoded.blocks.off += 1;
                quantize(exact, codes)?
            }
        };
        let step = scale.to_f64() / f64::from(levels);
        add_row_errors(exact, codes, step, &mut encoded.stats);
        scales[0] = scale;
        pack_row(codes, nbits, packed, out)?;
        Ok(largest(codes) * step.abs())
    }

    /// The row in blocks with a step each. Returns the largest magnitude that is stored.
    fn stepped(
        &self,
        nbits: u8,
        buffers: &mut Buffers,
        (out, scales): (&mut [u8], &mut [f16]),
        encoded: &mut Encoded,
    ) -> crate::quantize::Result<f64> {
        let Buffers {
            exact,
            codes,
            steps,
            packed,
        } = buffers;
        let block = self.spec.scheme.block(self.spec.dim);
        let mut most = 0f64;
        let blocks = exact.chunks(block).zip(codes.chunks_mut(block));
        for (i, ((exact, codes), scale)) in blocks.zip(scales).enumerate() {
            let kept = match self.given {
                Some(grid) => {
                    let given = steps[i * block / grid.block];
                    let step = f16::from_f32(given);
                    is_kept(step, given, codes).then_some((step, step.to_f32() == given))
                }
                None if self.view.grid().is_some() => None,
                None => grid::recover(exact, codes)?
                    .and_then(|step| fit(nbits, step.value, codes).map(|v| (v, step.exact)))
                    .filter(|(step, _)| is_kept(*step, step.to_f32(), codes)),
            };
            *scale = match kept {
                Some((step, is_exact)) => {
                    encoded.blocks.on += 1;
                    encoded.blocks.inexact += u64::from(!is_exact);
                    step
                }
                None => {
                    encoded.blocks.off += 1;
                    quantize_block(exact, nbits, codes)?
                }
            };
            let step = scale.to_f64();
            add_row_errors(exact, codes, step, &mut encoded.stats);
            most = most.max(largest(codes) * step.abs());
        }
        pack_row(codes, nbits, packed, out)?;
        Ok(most)
    }

    /// The row as readers scale it must stay within fp16.
    fn check_range(&self, row: usize, largest: f64, exact: &[f32]) -> Result<()> {
        if f16::from_f64(largest * self.spec.factor).is_finite() {
            return Ok(());
        }
        Err(Error::RowRange {
            tensor: self.spec.tensor.to_string(),
            row,
            value: exact.iter().fold(0f32, |m, w| m.max(w.abs())),
            factor: self.spec.factor,
        })
    }
}

/// A row to integers and its scale.
type Quantize = fn(&[f32], &mut [i8]) -> crate::quantize::Result<f16>;

/// Whether the scheme of a table holds the integers of a grid, with the steps that they have.
fn holds(spec: &TableSpec, grid: Grid) -> bool {
    let block = spec.scheme.block(spec.dim);
    let nbits = match spec.scheme {
        TableScheme::RowsInt8 => 8,
        TableScheme::RowsInt4 => 4,
        TableScheme::RowsFp16 => return false,
        TableScheme::RowsSteps { bits, .. } => bits.count(),
    };
    let whole = grid.block > 0 && spec.dim.is_multiple_of(grid.block);
    grid.nbits <= nbits && whole && grid.block.is_multiple_of(block)
}

/// Whether integers are kept with the scale that stands for `step`: readers flush one below the smallest normal fp16 to 0, which
/// changes nothing only where all values are 0.
fn is_kept(scale: f16, step: f32, codes: &[i8]) -> bool {
    let zeros = || step == 0.0 || codes.iter().all(|q| *q == 0);
    scale.is_normal() || scale.is_finite() && zeros()
}

/// The step of integers that were recovered, and may be more than `nbits` have: with the other sign where that helps. `None` where
/// they do not fit.
fn fit(nbits: u8, step: f16, codes: &mut [i8]) -> Option<f16> {
    let limit = 1i16 << (nbits - 1);
    let most = codes.iter().map(|q| i16::from(*q)).max().unwrap_or(0);
    let least = codes.iter().map(|q| i16::from(*q)).min().unwrap_or(0);
    if most < limit && least >= -limit {
        return Some(step);
    }
    if most > limit || least <= -limit {
        return None;
    }
    codes.iter_mut().for_each(|q| *q = -*q);
    Some(-step)
}

fn largest(codes: &[i8]) -> f64 {
    f64::from(codes.iter().map(|q| q.unsigned_abs()).max().unwrap_or(0))
}

/// Integers of `nbits` into the bytes of a row.
fn pack_row(
    codes: &[i8],
    nbits: u8,
    packed: &mut Vec<u8>,
    out: &mut [u8],
) -> crate::quantize::Result<()> {
    packed.clear();
    pack_signed(codes, nbits, packed)?;
    out.copy_from_slice(packed);
    Ok(())
}

/// A row of fp16. Returns its largest magnitude.
fn half_row(exact: &[f32], out: &mut [u8], stats: &mut ErrorStats) -> crate::quantize::Result<f64> {
    let mut stored = vec![f16::ZERO; exact.len()];
    narrow(exact, &mut stored)?;
    for ((o, w), s) in out.chunks_exact_mut(2).zip(exact).zip(&stored) {
        o.copy_from_slice(&s.to_le_bytes());
        stats.add(f64::from(*w), s.to_f64(), 1);
    }
    let max = exact.iter().fold(0f32, |m, w| m.max(w.abs()));
    Ok(f64::from(max))
}

#[cfg(test)]
mod tests;
