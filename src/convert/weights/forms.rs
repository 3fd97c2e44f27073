//! Palettes whose entries or indices are not single fp16 weights: tiles of whole groups, as in [`super::tile`].

use super::tile::{Stopped, Tiler, failed, little_endian, within};
use crate::convert::error::Result;
use crate::convert::limits::TILE;
use crate::package::Part;
use crate::quantize::sparse::{Pruner, add_pruned, kept, palettize_sparse};
use crate::quantize::vector::{Assigned, assign_vectors, fit_vectors, sample, vector_at};
use crate::quantize::{
    BitPacker, ErrorStats, GroupResult, Lut, Scratch, palettize_vectors, scale_luts,
};
use half::f16;
use rayon::prelude::*;
use std::ops::Range;

/// What a quantizer gives.
type Quantized<T> = crate::quantize::Result<T>;

impl Tiler<'_> {
    /// Vector palettes for groups of `length` values in rows of `inputs`, several to a tile. `shape` is the width of an
    /// index and the length of a vector.
    pub fn vector_groups(
        &mut self,
        shape: (u8, usize),
        length: usize,
        inputs: usize,
    ) -> std::result::Result<ErrorStats, Stopped> {
        let importance = self.tuning.inputs.as_deref();
        self.fitted(shape.0, length, shape.1, |scratch, group, _, indices| {
            palettize_vectors(group, inputs, shape, importance, scratch, indices)
        })
    }

    /// Vector palettes for groups larger than a tile: each is read twice, for the vectors its table is fitted to and for
    /// its indices.
    pub fn large_vector_groups(
        &mut self,
        (nbits, vector): (u8, usize),
        length: usize,
        inputs: usize,
    ) -> std::result::Result<ErrorStats, Stopped> {
        self.refuse(length, self.tuning.inputs.is_some())?;
        let mut total = ErrorStats::default();
        let mut luts: Vec<f16> = Vec::new();
        let mut packer = BitPacker::new(nbits).map_err(|e| self.failed(0, e))?;
        let mut scratch = Scratch::new();
        let unit = vector * inputs;
        for start in (0..self.input.view.len()).step_by(length) {
            let group = start..self.input.view.len().min(start + length);
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
                let blocks: Vec<Quantized<Assigned>> = blocks
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

    /// Sparse palettes for groups of `length` values, several to a tile. The mask, a bit per value, waits until all
    /// indices are written. `shape` is the width of an index and the percentage of zeros.
    pub fn sparse_groups(
        &mut self,
        shape: (u8, u8),
        length: usize,
    ) -> std::result::Result<ErrorStats, Stopped> {
        let mut total = ErrorStats::default();
        let mut out = SparseParts::new(shape.0).map_err(|e| self.failed(0, e))?;
        let stays = kept(length, shape.1);
        let mut mask = Vec::new();
        for tile in self.tiles(length) {
            let buffers = &mut *self.buffers;
            buffers.values.resize(tile.len(), f16::ZERO);
            buffers.codes.resize(tile.len() / length * stays, 0);
            mask.resize(tile.len(), 0);
            let (input, scratch) = (self.input, &buffers.scratch);
            let importance = self.tuning.inputs.as_deref();
            let groups = buffers
                .values
                .par_chunks_mut(length)
                .zip(buffers.codes.par_chunks_mut(stays))
                .zip(mask.par_chunks_mut(length))
                .enumerate();
            let groups: Vec<Result<GroupResult>> = groups
                .map(|(i, ((group, indices), mask))| {
                    let start = tile.start + i * length;
                    input.read_f16(start..start + group.len(), group)?;
                    let result = scratch
                        .with(|s| palettize_sparse(group, shape, importance, s, mask, indices));
                    result.map_err(|e| failed(input, start, e))
                })
                .collect();
            for group in groups {
                let group = group?;
                total.merge(&group.stats);
                out.luts.extend_from_slice(group.lut.entries());
            }
            out.push_mask(&mask)
                .map_err(|e| self.failed(tile.start, e))?;
            self.push_codes(&mut out.indices, &tile)?;
        }
        self.finish_sparse(out)?;
        Ok(total)
    }

    /// Sparse palettes for groups larger than a tile: each is read for its magnitudes, for the palette of what stays, and
    /// for its indices.
    pub fn large_sparse_groups(
        &mut self,
        (nbits, percent): (u8, u8),
        length: usize,
    ) -> std::result::Result<ErrorStats, Stopped> {
        self.refuse(length, self.tuning.inputs.is_some())?;
        let mut total = ErrorStats::default();
        let mut out = SparseParts::new(nbits).map_err(|e| self.failed(0, e))?;
        let mut scratch = Scratch::new();
        let (mut mask, mut values, mut pruned) = (Vec::new(), Vec::new(), ErrorStats::default());
        for start in (0..self.input.view.len()).step_by(length) {
            let group = start..self.input.view.len().min(start + length);
            let mut pruner = Pruner::new();
            for tile in within(&group, 1) {
                self.read(&tile)?;
                let added = pruner.add(&self.buffers.values);
                added.map_err(|e| self.failed(tile.start, e))?;
            }
            let mut selection = pruner.select(percent);
            for tile in within(&group, 1) {
                self.read(&tile)?;
                let stays = self.buffers.values.iter().filter(|v| selection.keeps(**v));
                values.clear();
                values.extend(stays.copied());
                let added = scratch.histogram.add(&values);
                added.map_err(|e| self.failed(tile.start, e))?;
            }
            let result = scratch.fit(nbits).map_err(|e| self.failed(start, e))?;
            let mut selection = pruner.select(percent);
            for tile in within(&group, 1) {
                self.read(&tile)?;
                values.clear();
                mask.clear();
                for &value in &self.buffers.values {
                    let keep = selection.keeps(value);
                    mask.push(u8::from(keep));
                    match keep {
                        true => values.push(value),
                        false => add_pruned(value, 1.0, &mut pruned, &mut 0.0),
                    }
                }
                self.buffers.codes.resize(values.len(), 0);
                let assigned = scratch.assign(&values, &mut self.buffers.codes);
                assigned.map_err(|e| self.failed(tile.start, e))?;
                out.push_mask(&mask)
                    .map_err(|e| self.failed(tile.start, e))?;
                self.push_codes(&mut out.indices, &tile)?;
            }
            total.merge(&result.stats);
            out.luts.extend_from_slice(result.lut.entries());
        }
        total.merge(&pruned);
        self.finish_sparse(out)?;
        Ok(total)
    }

    /// The last indices, the mask, the tables.
    fn finish_sparse(&mut self, mut out: SparseParts) -> std::io::Result<()> {
        let bytes = &mut self.buffers.bytes;
        bytes.clear();
        out.indices.finish(bytes);
        if !bytes.is_empty() {
            (self.sink)(Part::Data, bytes)?;
        }
        out.mask_bits.finish(&mut out.mask);
        (self.sink)(Part::Mask, &out.mask)?;
        little_endian(&out.luts, bytes);
        (self.sink)(Part::Lut, bytes)
    }

    /// Palettes with int8 tables for groups of `length` values. All are read twice: for their tables, which share a scale,
    /// and for their indices.
    pub fn scaled_groups(
        &mut self,
        nbits: u8,
        length: usize,
    ) -> std::result::Result<ErrorStats, Stopped> {
        let mut total = ErrorStats::default();
        let mut packer = BitPacker::new(nbits).map_err(|e| self.failed(0, e))?;
        let mut luts: Vec<Lut> = Vec::new();
        let large = length > TILE;
        let mut scratch = Scratch::new();
        for tile in self.tiles(length) {
            if large {
                self.collect(&tile, &mut scratch)?;
                let result = scratch.fit(nbits).map_err(|e| self.failed(tile.start, e))?;
                luts.push(result.lut);
                continue;
            }
            let fitted = self.each_group(&tile, length, 1, |s, group, _| {
                s.histogram.clear();
                s.histogram.add(group)?;
                s.fit(nbits)
            });
            luts.extend(fitted?.into_iter().map(|result| result.lut));
        }
        let scaled = scale_luts(&luts).map_err(|e| self.failed(0, e))?;
        for tile in self.tiles(length) {
            let first = tile.start / length;
            if large {
                self.collect(&tile, &mut scratch)?;
                let result = scratch.assign_to(scaled.luts[first].clone());
                let result = result.map_err(|e| self.failed(tile.start, e))?;
                total.merge(&result.stats);
                for part in within(&tile, 1) {
                    self.read(&part)?;
                    let buffers = &mut *self.buffers;
                    buffers.codes.resize(part.len(), 0);
                    let assigned = scratch.assign(&buffers.values, &mut buffers.codes);
                    assigned.map_err(|e| self.failed(part.start, e))?;
                    self.push_codes(&mut packer, &part)?;
                }
                continue;
            }
            let luts = &scaled.luts[first..];
            let assigned = self.each_group(&tile, length, 1, |s, group, (i, indices)| {
                s.histogram.clear();
                s.histogram.add(group)?;
                let result = s.assign_to(luts[i].clone())?;
                s.assign(group, indices)?;
                Ok(result)
            });
            for result in assigned? {
                total.merge(&result.stats);
            }
            self.push_codes(&mut packer, &tile)?;
        }
        let bytes = &mut self.buffers.bytes;
        bytes.clear();
        packer.finish(bytes);
        if !bytes.is_empty() {
            (self.sink)(Part::Data, bytes)?;
        }
        (self.sink)(Part::Lut, bytemuck::cast_slice(&scaled.codes))?;
        (self.sink)(Part::Scale, &scaled.scale.to_le_bytes())?;
        Ok(total)
    }

    /// The histogram of a group larger than a tile.
    fn collect(&mut self, group: &Range<usize>, scratch: &mut Scratch) -> Result<()> {
        scratch.histogram.clear();
        for tile in within(group, 1) {
            self.read(&tile)?;
            let added = scratch.histogram.add(&self.buffers.values);
            added.map_err(|e| self.failed(tile.start, e))?;
        }
        Ok(())
    }
}

/// What a sparse palette is made of, as far as it is known.
struct SparseParts {
    indices: BitPacker,
    mask_bits: BitPacker,
    mask: Vec<u8>,
    luts: Vec<f16>,
}

impl SparseParts {
    fn new(nbits: u8) -> Quantized<Self> {
        Ok(SparseParts {
            indices: BitPacker::new(nbits)?,
            mask_bits: BitPacker::new(1)?,
            mask: Vec::new(),
            luts: Vec::new(),
        })
    }

    fn push_mask(&mut self, mask: &[u8]) -> Quantized<()> {
        self.mask_bits.push(mask, &mut self.mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::TensorView;
    use crate::convert::weights::input::{Factors, Input};
    use crate::convert::weights::tile::Buffers;
    use crate::convert::weights::tuning::Tuning;
    use crate::progress::NoProgress;

    /// Sums of the same squares in another order.
    const SUM_TOLERANCE: f64 = 1e-9;
    const INPUTS: usize = 1100;
    /// One group of 2048 channels: more than a tile, and no whole number of tiles.
    const LENGTH: usize = 2048 * INPUTS;

    /// What a way of streaming writes, part by part, and its errors.
    fn written(
        values: &[u8],
        tuning: &Tuning,
        work: impl FnOnce(&mut Tiler<'_>) -> std::result::Result<ErrorStats, Stopped>,
    ) -> (Vec<(Part, Vec<u8>)>, ErrorStats) {
        let view = TensorView::of_f16("w", &[LENGTH / INPUTS, INPUTS], values);
        let mut parts: Vec<(Part, Vec<u8>)> = Vec::new();
        let mut buffers = Buffers::default();
        let sink = &mut |part, bytes: &[u8]| {
            match parts.last_mut() {
                Some((last, all)) if *last == part => all.extend(bytes),
                _ => parts.push((part, bytes.to_vec())),
            }
            Ok(())
        };
        let input = Input::new(view, INPUTS, Factors::default());
        let mut job = Tiler {
            input: &input,
            tuning,
            buffers: &mut buffers,
            progress: &NoProgress,
            sink,
        };
        let stats = work(&mut job).unwrap();
        (parts, stats)
    }

    /// Few values of many magnitudes, so that magnitudes are equal across the border of tiles.
    fn values() -> Vec<u8> {
        let mut state = 1u32;
        let value = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f16::from_f32(((state >> 20) as f32 - 2048.0) / 1024.0).to_le_bytes()
        };
        (0..LENGTH).flat_map(value).collect()
    }

    #[test]
    fn a_group_larger_than_a_tile_is_as_one_that_fits() {
        const { assert!(LENGTH > TILE && !LENGTH.is_multiple_of(TILE)) };
        let values = values();
        let check = |what: &str, large: (Vec<_>, ErrorStats), small: (Vec<_>, ErrorStats)| {
            let order = |parts: &[(Part, Vec<u8>)]| parts.iter().map(|p| p.0).collect::<Vec<_>>();
            assert_eq!(order(&large.0), order(&small.0), "{what}");
            assert!(large.0 == small.0, "{what}: the bytes differ");
            assert_eq!(large.1.n, LENGTH as u64);
            assert!(
                (large.1.sse - small.1.sse).abs() <= SUM_TOLERANCE * small.1.sse,
                "{what}"
            );
            assert_eq!(large.1.max_abs, small.1.max_abs, "{what}");
        };
        let plain = Tuning::default();
        let importance: Vec<f32> = (0..INPUTS).map(|i| (i % 7) as f32 + 0.5).collect();
        let weighted = Tuning {
            inputs: Some(importance.into()),
            ..Tuning::default()
        };
        check(
            "weighted",
            written(&values, &weighted, |job| job.large_groups(3, LENGTH)),
            written(&values, &weighted, |job| job.groups(3, LENGTH)),
        );
        check(
            "scalar",
            written(&values, &plain, |job| job.large_groups(3, LENGTH)),
            written(&values, &plain, |job| job.groups(3, LENGTH)),
        );
        check(
            "vectors",
            written(&values, &plain, |job| {
                job.large_vector_groups((2, 2), LENGTH, INPUTS)
            }),
            written(&values, &plain, |job| {
                job.vector_groups((2, 2), LENGTH, INPUTS)
            }),
        );
        check(
            "sparse",
            written(&values, &plain, |job| {
                job.large_sparse_groups((3, 33), LENGTH)
            }),
            written(&values, &plain, |job| job.sparse_groups((3, 33), LENGTH)),
        );
    }

    #[test]
    fn int8_tables_of_a_large_group_are_nearest_as_stored() {
        let values = values();
        let (parts, stats) = written(&values, &Tuning::default(), |job| {
            job.scaled_groups(4, LENGTH)
        });
        let [
            (Part::Data, indices),
            (Part::Lut, codes),
            (Part::Scale, scale),
        ] = parts.as_slice()
        else {
            panic!("{:?}", parts.iter().map(|p| p.0).collect::<Vec<_>>());
        };
        let scale = f16::from_le_bytes([scale[0], scale[1]]).to_f32();
        let stored: Vec<f64> = codes
            .iter()
            .map(|&c| f16::from_f32(f32::from(c as i8) * scale).to_f64())
            .collect();
        let mut sse = 0.0;
        for (i, value) in values.as_chunks::<2>().0.iter().enumerate() {
            let value = f16::from_le_bytes(*value).to_f64();
            let index = indices[i / 2] >> (i % 2 * 4) & 15;
            let own = (value - stored[usize::from(index)]).abs();
            assert!(
                stored.iter().all(|entry| (value - entry).abs() >= own),
                "{i}"
            );
            sse += own * own;
        }
        assert!((stats.sse - sse).abs() <= SUM_TOLERANCE * sse);
    }
}
