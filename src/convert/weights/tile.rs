//! Takes one weight from the checkpoint through a quantizer, a tile of whole groups at a time.
//!
//! Groups of a tile are worked on in parallel; what comes out is written, and errors are summed, in their order, so the
//! result does not depend on the number of threads.

use super::input::Input;
use super::tuning::Tuning;
use crate::convert::error::{Error, Result};
use crate::convert::limits::TILE;
use crate::package::Part;
use crate::progress::Progress;
use crate::quantize::linear::{add_errors, quantize_symmetric};
use crate::quantize::{BitPacker, ErrorStats, GroupResult, Scratch};
use half::f16;
use rayon::prelude::*;
use std::sync::Mutex;

/// Values one task works on where there are no groups.
pub(super) const STRIP: usize = 1 << 16;

/// Why a stream stopped: an [`Error`] of ours or the sink's I/O error.
pub(super) type Stopped = Box<dyn std::error::Error + Send + Sync>;
/// Takes the bytes of a part.
pub(super) type Sink<'a> = &'a mut dyn FnMut(Part, &[u8]) -> std::io::Result<()>;

/// Buffers that are kept from tensor to tensor.
#[derive(Default)]
pub(super) struct Buffers {
    pub floats: Vec<f32>,
    pub values: Vec<f16>,
    pub codes: Vec<u8>,
    pub bytes: Vec<u8>,
    pub scratch: Pool,
}

/// Palettizer buffers, one per task at work.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Scratch>>);

impl Pool {
    pub fn with<T>(&self, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let taken = self.0.lock().ok().and_then(|mut free| free.pop());
        let mut scratch = taken.unwrap_or_default();
        let result = work(&mut scratch);
        if let Ok(mut free) = self.0.lock() {
            free.push(scratch);
        }
        result
    }
}

/// One weight on its way: what it is read from, and where its bytes go.
pub(super) struct Tiler<'a> {
    pub input: &'a Input<'a>,
    pub tuning: &'a Tuning,
    pub buffers: &'a mut Buffers,
    pub progress: &'a dyn Progress,
    pub sink: Sink<'a>,
}

impl Tiler<'_> {
    /// Ranges of at most a tile, each whole multiples of `unit` values. The next tile is read from the disk meanwhile.
    pub fn tiles<'v>(&self, unit: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<'v>
    where
        Self: 'v,
    {
        let view = self.input.view.clone();
        within(&(0..view.len()), unit)
            .inspect(move |tile| view.prefetch(tile.end..tile.end + tile.len()))
    }

    /// Values as they are, rounded to fp16.
    pub fn fp16(&mut self) -> std::result::Result<ErrorStats, Stopped> {
        let mut total = ErrorStats::default();
        for tile in self.tiles(STRIP) {
            let Buffers {
                floats,
                values,
                bytes,
                ..
            } = &mut *self.buffers;
            floats.resize(tile.len(), 0.0);
            values.resize(tile.len(), f16::ZERO);
            let strips = floats
                .par_chunks_mut(STRIP)
                .zip(values.par_chunks_mut(STRIP))
                .enumerate();
            let input = self.input;
            let strips: Vec<Result<ErrorStats>> = strips
                .map(|(i, (exact, stored))| {
                    let start = tile.start + i * STRIP;
                    let range = start..start + exact.len();
                    input.read_f32(range.clone(), exact)?;
                    input.read_f16(range, stored)?;
                    let mut stats = ErrorStats::default();
                    for (w, s) in exact.iter().zip(stored.iter()) {
                        stats.add(f64::from(*w), s.to_f64(), 1);
                    }
                    Ok(stats)
                })
                .collect();
            for stats in strips {
                total.merge(&stats?);
            }
            little_endian(values, bytes);
            (self.sink)(Part::Data, bytes)?;
            self.progress.advance(tile.len() as u64);
        }
        Ok(total)
    }

    /// Palettes for groups of `length` values, several to a tile.
    pub fn groups(&mut self, nbits: u8, length: usize) -> std::result::Result<ErrorStats, Stopped> {
        let (inputs, tuning) = (self.input.inputs, self.tuning);
        self.fitted(nbits, length, 1, |scratch, group, first, indices| {
            tuning.palettize(group, (first / inputs, inputs), nbits, scratch, indices)
        })
    }

    /// Groups of `length` values, several to a tile, by `fit`: from a group and the element that it begins with to an index for
    /// every `per` values and a table.
    pub fn fitted(
        &mut self,
        nbits: u8,
        length: usize,
        per: usize,
        fit: impl Fn(&mut Scratch, &[f16], usize, &mut [u8]) -> crate::quantize::Result<GroupResult>
        + Sync,
    ) -> std::result::Result<ErrorStats, Stopped> {
        let mut total = ErrorStats::default();
        let mut luts: Vec<f16> = Vec::new();
        let mut packer = BitPacker::new(nbits).map_err(|e| self.failed(0, e))?;
        for tile in self.tiles(length) {
            let fitted = self.each_group(&tile, length, per, |scratch, group, (i, indices)| {
                fit(scratch, group, tile.start + i * length, indices)
            });
            for group in fitted? {
                total.merge(&group.stats);
                luts.extend_from_slice(group.lut.entries());
            }
            self.push_codes(&mut packer, &tile)?;
        }
        self.finish(packer, Part::Lut, &luts)?;
        Ok(total)
    }

    /// Runs `work` on every group of a tile, with its place in the tile and its indices, one for `per` values; results in
    /// order.
    pub fn each_group(
        &mut self,
        tile: &std::ops::Range<usize>,
        length: usize,
        per: usize,
        work: impl Fn(&mut Scratch, &[f16], (usize, &mut [u8])) -> crate::quantize::Result<GroupResult>
        + Sync,
    ) -> Result<Vec<GroupResult>> {
        let buffers = &mut *self.buffers;
        buffers.values.resize(tile.len(), f16::ZERO);
        buffers.codes.resize(tile.len() / per, 0);
        let (input, scratch) = (self.input, &buffers.scratch);
        let groups = buffers
            .values
            .par_chunks_mut(length)
            .zip(buffers.codes.par_chunks_mut(length / per))
            .enumerate();
        let results: Vec<Result<GroupResult>> = groups
            .map(|(i, (group, indices))| {
                let start = tile.start + i * length;
                input.read_f16(start..start + group.len(), group)?;
                let result = scratch.with(|s| work(s, group, (i, indices)));
                result.map_err(|e| failed(input, start, e))
            })
            .collect();
        results.into_iter().collect()
    }

    /// Palettes for groups larger than a tile: each is read twice, for its histogram and for its indices.
    pub fn large_groups(
        &mut self,
        nbits: u8,
        length: usize,
    ) -> std::result::Result<ErrorStats, Stopped> {
        self.refuse(length, self.tuning.moments.is_some())?;
        let mut total = ErrorStats::default();
        let mut luts: Vec<f16> = Vec::new();
        let mut packer = BitPacker::new(nbits).map_err(|e| self.failed(0, e))?;
        let mut scratch = Scratch::new();
        for start in (0..self.input.view.len()).step_by(length) {
            let group = start..self.input.view.len().min(start + length);
            for tile in within(&group, self.input.inputs) {
                self.read(&tile)?;
                let values = &self.buffers.values;
                let (row, inputs) = (tile.start / self.input.inputs, self.input.inputs);
                let added = match self.tuning.importance(row, tile.len() / inputs, inputs) {
                    None => scratch.histogram.add(values),
                    Some(importance) => scratch.histogram.add_weighted(values, &importance),
                };
                added.map_err(|e| self.failed(tile.start, e))?;
            }
            let result = scratch.fit(nbits).map_err(|e| self.failed(start, e))?;
            for tile in within(&group, self.input.inputs) {
                self.read(&tile)?;
                let Buffers { values, codes, .. } = &mut *self.buffers;
                codes.resize(tile.len(), 0);
                let strips = values.par_chunks(STRIP).zip(codes.par_chunks_mut(STRIP));
                let assigned: std::result::Result<(), _> =
                    strips.map(|(v, c)| scratch.assign(v, c)).collect();
                assigned.map_err(|e| failed(self.input, tile.start, e))?;
                self.push_codes(&mut packer, &tile)?;
            }
            total.merge(&result.stats);
            luts.extend_from_slice(result.lut.entries());
        }
        self.finish(packer, Part::Lut, &luts)?;
        Ok(total)
    }

    /// Symmetric integers of 8 or 4 bits, one scale for every `block` values of a row of `inputs`.
    pub fn linear(
        &mut self,
        nbits: u8,
        inputs: usize,
        block: usize,
    ) -> std::result::Result<ErrorStats, Stopped> {
        let mut total = ErrorStats::default();
        let blocks = inputs / block.max(1);
        let mut scales = vec![f16::ZERO; self.input.view.len() / block.max(1)];
        let mut packer = BitPacker::new(nbits).map_err(|e| self.failed(0, e))?;
        for tile in self.tiles(inputs) {
            self.read(&tile)?;
            let Buffers { values, codes, .. } = &mut *self.buffers;
            codes.resize(tile.len(), 0);
            let input = self.input;
            let first = tile.start / inputs;
            let scales = &mut scales[first * blocks..(tile.end / inputs) * blocks];
            let rows = values
                .par_chunks(inputs)
                .zip(codes.par_chunks_mut(inputs))
                .zip(scales.par_chunks_mut(blocks))
                .enumerate();
            let rows: Vec<Result<ErrorStats>> = rows
                .map(|(i, ((row, codes), scales))| {
                    linear_row(row, nbits, block, codes, scales)
                        .map_err(|e| failed(input, tile.start + i * inputs, e))
                })
                .collect();
            for stats in rows {
                total.merge(&stats?);
            }
            self.push_codes(&mut packer, &tile)?;
        }
        self.finish(packer, Part::Scale, &scales)?;
        Ok(total)
    }

    /// Packs the codes of a tile and passes them on.
    pub fn push_codes(
        &mut self,
        packer: &mut BitPacker,
        tile: &std::ops::Range<usize>,
    ) -> std::result::Result<(), Stopped> {
        let Buffers { codes, bytes, .. } = &mut *self.buffers;
        bytes.clear();
        packer
            .push(codes, bytes)
            .map_err(|e| failed(self.input, tile.start, e))?;
        (self.sink)(Part::Data, bytes)?;
        self.progress.advance(tile.len() as u64);
        Ok(())
    }

    /// The last bits of the data, then its look-up tables or scales.
    pub fn finish(
        &mut self,
        mut packer: BitPacker,
        part: Part,
        values: &[f16],
    ) -> std::io::Result<()> {
        let bytes = &mut self.buffers.bytes;
        bytes.clear();
        packer.finish(bytes);
        if !bytes.is_empty() {
            (self.sink)(Part::Data, bytes)?;
        }
        little_endian(values, bytes);
        (self.sink)(part, bytes)
    }

    /// Reads a tile into `values` on all threads.
    pub fn read(&mut self, tile: &std::ops::Range<usize>) -> Result<()> {
        let values = &mut self.buffers.values;
        values.resize(tile.len(), f16::ZERO);
        let input = self.input;
        let strips: Vec<Result<()>> = values
            .par_chunks_mut(STRIP)
            .enumerate()
            .map(|(i, strip)| {
                let start = tile.start + i * STRIP;
                input.read_f16(start..start + strip.len(), strip)
            })
            .collect();
        strips.into_iter().collect()
    }

    /// What `tuning` cannot do for a group larger than a tile.
    pub fn refuse(&self, length: usize, tuned: bool) -> Result<()> {
        match tuned {
            true => Err(Error::LargeGroup {
                tensor: self.input.view.name.to_string(),
                length,
                most: TILE,
            }),
            false => Ok(()),
        }
    }

    pub fn failed(&self, start: usize, source: crate::quantize::Error) -> Error {
        failed(self.input, start, source)
    }
}

pub(super) fn failed(input: &Input<'_>, start: usize, source: crate::quantize::Error) -> Error {
    Error::Quantize {
        tensor: input.view.name.to_string(),
        start,
        source,
    }
}

/// The tiles of one large group, each whole multiples of `unit` values.
pub(super) fn within(
    group: &std::ops::Range<usize>,
    unit: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
    let (end, step) = (group.end, (TILE / unit.max(1)).max(1) * unit.max(1));
    group
        .clone()
        .step_by(step)
        .map(move |start| start..end.min(start.saturating_add(step)))
}

/// One output channel to integers and scales; int4 as two's complement nibbles, one per byte.
fn linear_row(
    row: &[f16],
    nbits: u8,
    block: usize,
    codes: &mut [u8],
    scales: &mut [f16],
) -> crate::quantize::Result<ErrorStats> {
    let mut stats = ErrorStats::default();
    let integers: &mut [i8] = bytemuck::cast_slice_mut(codes);
    let blocks = row.chunks(block).zip(integers.chunks_mut(block));
    for ((values, out), scale) in blocks.zip(scales) {
        *scale = quantize_symmetric(values, nbits, out)?;
        add_errors(values, out, *scale, &mut stats);
    }
    if nbits < 8 {
        codes.iter_mut().for_each(|code| *code &= 0x0f);
    }
    Ok(stats)
}

/// fp16 values as little-endian bytes, in place of what `bytes` held.
pub(in crate::convert) fn little_endian(values: &[f16], bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
}
