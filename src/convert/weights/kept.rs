//! Integers that a checkpoint gives, or that its values lie on, as they are: into integers with scales, and into palettes of
//! single rows. Tiles of whole rows, as in [`super::tile`].

use super::input::Input;
use super::tile::{Buffers, Stopped, Tiler, failed};
use crate::bundle::provenance::GridRecord;
use crate::checkpoint::Grid;
use crate::convert::decide::{LOOKED_FOR, grid_record};
use crate::convert::error::{Error, Result};
use crate::package::Part;
use crate::quantize::grid::{fp16_product, recover};
use crate::quantize::linear::{add_errors, quantize_full};
use crate::quantize::{BitPacker, ErrorStats, Scheme};
use half::f16;
use rayon::prelude::*;
use std::ops::Range;

/// Where the integers of a tensor come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The checkpoint holds them.
    Given(Grid),
    /// Looked for in the numbers of every group; computed where there are none.
    LookedFor,
    /// Computed.
    Computed,
}

/// What became of the groups of a row or a tensor.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::convert) struct Counts {
    pub on: u64,
    pub off: u64,
    pub inexact: u64,
}

impl Counts {
    pub fn merge(&mut self, other: Counts) {
        self.on += other.on;
        self.off += other.off;
        self.inexact += other.inexact;
    }

    pub fn into_record(self, empty: GridRecord) -> GridRecord {
        GridRecord {
            on: self.on,
            off: self.off,
            inexact: self.inexact,
            ..empty
        }
    }
}

impl Tiler<'_> {
    /// The grid of the checkpoint's integers, if `scheme` keeps it and no factors of columns change it.
    pub fn given(&self, scheme: Scheme) -> Option<Grid> {
        let (input, grid) = (self.input, self.input.view.grid()?);
        let whole = input.inputs.is_multiple_of(grid.block.max(1));
        let kept = scheme.keeps(grid.nbits, grid.block, input.inputs);
        (kept && whole && input.factors.columns.is_none()).then_some(grid)
    }

    /// Integers of 8 or 4 bits over their whole range, one scale for every `block` values of a row, or for a row. Tells what
    /// became of the groups, where there was something to keep.
    pub fn full(
        &mut self,
        scheme: Scheme,
        nbits: u8,
        shared: Option<usize>,
    ) -> std::result::Result<(ErrorStats, Option<GridRecord>), Stopped> {
        let inputs = self.input.inputs;
        let block = shared.unwrap_or(inputs).max(1);
        let stored = self.input.view.grid();
        let origin = match (self.given(scheme), stored) {
            (Some(grid), _) => Origin::Given(grid),
            (None, None) if nbits == LOOKED_FOR && self.input.factors.columns.is_none() => {
                Origin::LookedFor
            }
            (None, _) => Origin::Computed,
        };
        let (mut total, mut counts) = (ErrorStats::default(), Counts::default());
        let mut scales = vec![f16::ZERO; self.input.view.len() / block];
        let mut packer = BitPacker::new(nbits).map_err(|e| self.failed(0, e))?;
        for tile in self.tiles(inputs) {
            let row = Row {
                input: self.input,
                origin,
                nbits,
                block,
            };
            let scales = &mut scales[tile.start / block..tile.end / block];
            for result in row.each(&tile, self.buffers, scales) {
                let (stats, found) = result?;
                total.merge(&stats);
                counts.merge(found);
            }
            self.push_codes(&mut packer, &tile)?;
        }
        self.finish(packer, Part::Scale, &scales)?;
        let record = grid_record(scheme, self.shape(), stored, false);
        let record = record.map(|empty| counts.into_record(empty));
        Ok((total, record))
    }

    /// Rows and their length.
    fn shape(&self) -> [usize; 2] {
        let inputs = self.input.inputs;
        [self.input.view.len() / inputs.max(1), inputs]
    }

    /// Palettes of single rows for integers that the checkpoint gives: an entry is an integer times the row's step.
    pub fn given_palettes(
        &mut self,
        scheme: Scheme,
        nbits: u8,
        grid: Grid,
    ) -> std::result::Result<(ErrorStats, Option<GridRecord>), Stopped> {
        let inputs = self.input.inputs;
        let (mut total, mut counts) = (ErrorStats::default(), Counts::default());
        let entries = 1usize << nbits;
        let mut luts = vec![f16::ZERO; self.input.view.len() / inputs * entries];
        let mut packer = BitPacker::new(nbits).map_err(|e| self.failed(0, e))?;
        for tile in self.tiles(inputs) {
            let buffers = &mut *self.buffers;
            buffers.values.resize(tile.len(), f16::ZERO);
            buffers.codes.resize(tile.len(), 0);
            let luts = &mut luts[tile.start / inputs * entries..tile.end / inputs * entries];
            let input = self.input;
            let rows = buffers
                .values
                .par_chunks_mut(inputs)
                .zip(buffers.codes.par_chunks_mut(inputs))
                .zip(luts.par_chunks_mut(entries))
                .enumerate();
            let rows: Vec<Result<(ErrorStats, Counts)>> = rows
                .map(|(i, ((values, codes), lut))| {
                    let start = tile.start + i * inputs;
                    palette_row(input, grid, start, (values, codes, lut))
                })
                .collect();
            for result in rows {
                let (stats, found) = result?;
                total.merge(&stats);
                counts.merge(found);
            }
            self.push_codes(&mut packer, &tile)?;
        }
        self.finish(packer, Part::Lut, &luts)?;
        let record = grid_record(scheme, self.shape(), Some(grid), false);
        Ok((total, record.map(|empty| counts.into_record(empty))))
    }
}

/// How a row becomes integers.
#[derive(Clone, Copy)]
struct Row<'a> {
    input: &'a Input<'a>,
    origin: Origin,
    nbits: u8,
    block: usize,
}

impl Row<'_> {
    /// The rows of a tile into the codes of `buffers` and their scales, in parallel.
    fn each(
        self,
        tile: &Range<usize>,
        buffers: &mut Buffers,
        scales: &mut [f16],
    ) -> Vec<Result<(ErrorStats, Counts)>> {
        let inputs = self.input.inputs;
        buffers.floats.resize(tile.len(), 0.0);
        buffers.values.resize(tile.len(), f16::ZERO);
        buffers.codes.resize(tile.len(), 0);
        let rows = buffers
            .floats
            .par_chunks_mut(inputs)
            .zip(buffers.values.par_chunks_mut(inputs))
            .zip(buffers.codes.par_chunks_mut(inputs))
            .zip(scales.par_chunks_mut(inputs / self.block))
            .enumerate();
        rows.map(|(i, (((floats, values), codes), scales))| {
            let start = tile.start + i * inputs;
            self.input.read_f16(start..start + values.len(), values)?;
            let integers: &mut [i8] = bytemuck::cast_slice_mut(codes);
            let counts = match self.origin {
                Origin::Given(grid) => self.given(grid, start, integers, scales)?,
                Origin::LookedFor => {
                    let range = start..start + floats.len();
                    self.input.view.read_f32(range, floats)?;
                    self.looked_for((floats, values), start, integers, scales)?
                }
                Origin::Computed => self.computed(values, start, integers, scales)?,
            };
            let mut stats = ErrorStats::default();
            let blocks = values.chunks(self.block).zip(integers.chunks(self.block));
            for ((values, integers), scale) in blocks.zip(scales) {
                add_errors(values, integers, *scale, &mut stats);
            }
            if self.nbits < 8 {
                codes.iter_mut().for_each(|code| *code &= 0x0f);
            }
            Ok((stats, counts))
        })
        .collect()
    }

    /// The checkpoint's integers; its steps in fp16, repeated where they stand for several blocks.
    fn given(
        self,
        grid: Grid,
        start: usize,
        integers: &mut [i8],
        scales: &mut [f16],
    ) -> Result<Counts> {
        let (steps, factor) = read_grid(self.input, grid, start, integers)?;
        let mut counts = Counts::default();
        let blocks = integers.chunks(self.block).zip(scales).enumerate();
        for (i, (integers, scale)) in blocks {
            let step = steps[i * self.block / grid.block];
            let (value, _) = fp16_product(step, factor, 1);
            let most = integers.iter().map(|q| q.unsigned_abs()).max().unwrap_or(0);
            // A step that stands for zeros alone is not missed.
            *scale = if most == 0 && value.is_infinite() {
                f16::ZERO
            } else {
                value
            };
            if !fp16_product(scale.to_f32(), 1.0, i16::from(most))
                .0
                .is_finite()
            {
                return Err(step_range(self.input, start + i * self.block, step, factor));
            }
            counts.on += 1;
            counts.inexact += u64::from(!fp16_product(step, 1.0, 1).1);
        }
        Ok(counts)
    }

    /// Integers and steps of the groups that lie on a grid, computed ones of the others.
    fn looked_for(
        self,
        (exact, values): (&[f32], &[f16]),
        start: usize,
        integers: &mut [i8],
        scales: &mut [f16],
    ) -> Result<Counts> {
        let factor = row_factor(self.input, start);
        let mut counts = Counts::default();
        let blocks = exact
            .chunks(self.block)
            .zip(values.chunks(self.block))
            .zip(integers.chunks_mut(self.block))
            .zip(scales)
            .enumerate();
        for (i, (((exact, values), integers), scale)) in blocks {
            let wrong = |e| failed(self.input, start + i * self.block, e);
            match recover(exact, integers).map_err(wrong)? {
                Some(step) => {
                    let (value, _) = fp16_product(step.value.to_f32(), factor, 1);
                    if value.is_infinite() {
                        let step = step.value.to_f32();
                        return Err(step_range(self.input, start + i * self.block, step, factor));
                    }
                    *scale = value;
                    counts.on += 1;
                    counts.inexact += u64::from(!step.exact);
                }
                None => {
                    *scale = quantize_full(values, self.nbits, integers).map_err(wrong)?;
                    counts.off += 1;
                }
            }
        }
        Ok(counts)
    }

    fn computed(
        self,
        values: &[f16],
        start: usize,
        integers: &mut [i8],
        scales: &mut [f16],
    ) -> Result<Counts> {
        let blocks = values
            .chunks(self.block)
            .zip(integers.chunks_mut(self.block));
        let mut counts = Counts::default();
        for (i, ((values, integers), scale)) in blocks.zip(scales).enumerate() {
            let scaled = quantize_full(values, self.nbits, integers);
            *scale = scaled.map_err(|e| failed(self.input, start + i * self.block, e))?;
            counts.off += 1;
        }
        Ok(counts)
    }
}

/// A row whose integers have one step: its values, indices and table.
fn palette_row(
    input: &Input<'_>,
    grid: Grid,
    start: usize,
    (values, codes, lut): (&mut [f16], &mut [u8], &mut [f16]),
) -> Result<(ErrorStats, Counts)> {
    input.read_f16(start..start + values.len(), values)?;
    let integers: &mut [i8] = bytemuck::cast_slice_mut(codes);
    let (steps, factor) = read_grid(input, grid, start, integers)?;
    let step = steps.first().copied().unwrap_or(0.0);
    let zero = 1i16 << (grid.nbits - 1);
    let mut counts = Counts {
        on: 1,
        ..Counts::default()
    };
    for (q, entry) in (-zero..zero).zip(lut.iter_mut()) {
        let (value, exact) = fp16_product(step, factor, q);
        *entry = value;
        counts.inexact |= u64::from(!exact);
    }
    let mut stats = ErrorStats::default();
    for (value, code) in values.iter().zip(codes) {
        let index = i16::from(*code as i8) + zero;
        *code = index as u8;
        let stored = lut[usize::from(*code)];
        if stored.is_infinite() {
            return Err(step_range(input, start, step, factor));
        }
        stats.add(value.to_f64(), stored.to_f64(), 1);
    }
    // Entries that no weight has may be beyond fp16.
    for entry in lut.iter_mut().filter(|entry| entry.is_infinite()) {
        *entry = f16::ZERO;
    }
    Ok((stats, counts))
}

/// The integers of the row at `start`, its steps, and the factor of the row.
fn read_grid(
    input: &Input<'_>,
    grid: Grid,
    start: usize,
    integers: &mut [i8],
) -> Result<(Vec<f32>, f32)> {
    let end = start + integers.len();
    input.view.read_codes(start..end, integers)?;
    let mut steps = vec![0f32; integers.len() / grid.block];
    let range = start / grid.block..end / grid.block;
    input.view.read_steps(range, &mut steps)?;
    Ok((steps, row_factor(input, start)))
}

/// The factor of the row that begins at element `start`.
fn row_factor(input: &Input<'_>, start: usize) -> f32 {
    let rows = input.factors.rows.as_ref();
    rows.map_or(1.0, |factors| factors[start / input.inputs])
}

fn step_range(input: &Input<'_>, element: usize, step: f32, factor: f32) -> Error {
    Error::StepRange {
        tensor: input.view.name.to_string(),
        element,
        step: f64::from(step) * f64::from(factor),
    }
}

#[cfg(test)]
mod tests;
