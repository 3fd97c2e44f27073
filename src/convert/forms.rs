//! Palettes whose entries or indices are not single fp16 weights: tiles of whole groups, as in [`super::tile`].

use super::error::Result;
use super::tile::{Job, Stopped, failed, within};
use crate::package::Part;
use crate::quantize::vector::{Assigned, assign_vectors, fit_vectors, sample, vector_at};
use crate::quantize::{BitPacker, ErrorStats, GroupResult, Scratch, palettize_vectors};
use half::f16;
use rayon::prelude::*;

impl Job<'_> {
    /// Vector palettes for groups of `length` values in rows of `inputs`, several to a tile. `shape` is the width of an
    /// index and the length of a vector.
    pub fn vector_groups(
        &mut self,
        shape: (u8, usize),
        length: usize,
        inputs: usize,
    ) -> std::result::Result<ErrorStats, Stopped> {
        let mut total = ErrorStats::default();
        let mut luts: Vec<f16> = Vec::new();
        let mut packer = BitPacker::new(shape.0).map_err(|e| self.failed(0, e))?;
        for tile in self.tiles(length) {
            let buffers = &mut *self.buffers;
            buffers.values.resize(tile.len(), f16::ZERO);
            buffers.codes.resize(tile.len() / shape.1, 0);
            let (view, scratch) = (self.view, &buffers.scratch);
            let groups = buffers
                .values
                .par_chunks_mut(length)
                .zip(buffers.codes.par_chunks_mut(length / shape.1))
                .enumerate();
            let groups: Vec<Result<GroupResult>> = groups
                .map(|(i, (group, indices))| {
                    let start = tile.start + i * length;
                    view.read_f16(start..start + group.len(), group)?;
                    let result =
                        scratch.with(|s| palettize_vectors(group, inputs, shape, None, s, indices));
                    result.map_err(|e| failed(view, start, e))
                })
                .collect();
            for group in groups {
                let group = group?;
                total.merge(&group.stats);
                luts.extend_from_slice(group.lut.entries());
            }
            self.push_codes(&mut packer, &tile)?;
        }
        self.finish(packer, Part::Lut, &luts)?;
        Ok(total)
    }

    /// Vector palettes for groups larger than a tile: each is read twice, for the vectors its table is fitted to and for
    /// its indices.
    pub fn large_vector_groups(
        &mut self,
        (nbits, vector): (u8, usize),
        length: usize,
        inputs: usize,
    ) -> std::result::Result<ErrorStats, Stopped> {
        let mut total = ErrorStats::default();
        let mut luts: Vec<f16> = Vec::new();
        let mut packer = BitPacker::new(nbits).map_err(|e| self.failed(0, e))?;
        let mut scratch = Scratch::new();
        let unit = vector * inputs;
        for start in (0..self.view.len()).step_by(length) {
            let group = start..self.view.len().min(start + length);
            let chosen = sample(length / vector);
            let mut chosen = chosen.into_iter().peekable();
            let mut vectors: Vec<f16> = Vec::new();
            for tile in within(&group, unit) {
                self.read(&tile)?;
                let first = (tile.start - start) / vector;
                while let Some(at) = chosen.next_if(|at| at - first < tile.len() / vector) {
                    let values = &self.buffers.values;
                    vectors.extend(vector_at(values, inputs, vector, at - first));
                }
            }
            let lut = fit_vectors(&vectors, None, nbits, vector, &mut scratch);
            let lut = lut.map_err(|e| self.failed(start, e))?;
            for tile in within(&group, unit) {
                self.read(&tile)?;
                let buffers = &mut *self.buffers;
                buffers.codes.resize(tile.len() / vector, 0);
                let blocks = buffers
                    .values
                    .par_chunks(unit)
                    .zip(buffers.codes.par_chunks_mut(inputs));
                let blocks: Vec<crate::quantize::Result<Assigned>> = blocks
                    .map(|(v, c)| assign_vectors(v, inputs, &lut, vector, None, c))
                    .collect();
                for block in blocks {
                    total.merge(&block.map_err(|e| self.failed(tile.start, e))?.stats);
                }
                self.push_codes(&mut packer, &tile)?;
            }
            luts.extend_from_slice(lut.entries());
        }
        self.finish(packer, Part::Lut, &luts)?;
        Ok(total)
    }
}
