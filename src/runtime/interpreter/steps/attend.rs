//! Attention of a block of query rows over the rows of K and V that they see.
//!
//! Scores lie as `[key, row]`, so that the rows of a block are the lanes of what runs over the keys. Every sum has the
//! order of the ops one by one: [`dot`](crate::runtime::kernels::dot::dot) over a head, f64 over the keys for the softmax,
//! f32 over the keys for the values. The kernels are compiled for wider registers too; without fused multiply-adds they
//! give the same bits.

use crate::runtime::kernels::dot::accumulate;
use crate::runtime::kernels::lanes::LANES;
use crate::runtime::kernels::lanes::reduce;
use crate::runtime::kernels::math::exp;
use crate::runtime::kernels::wide::{prefetch, widest};
use rayon::prelude::*;

/// Query rows of a block: the lanes of its scores.
pub(super) const BLOCK: usize = 8;

/// Rows that the kernels take at once.
const GROUP: usize = 4;

/// Columns of V that they take at once.
const TILE: usize = 16;

/// Keys after which they go on to the next columns: their part of V stays in the cache.
const KEYS: usize = 64;

/// From so many multiplications on, a block is shared among threads.
const PARALLEL_WORK: usize = 1 << 18;

widest! {
    /// `out[key][row] = q[row] · keys[key]`; `q` is `[BLOCK, d]`. Meanwhile the memory is asked for the rows `later`.
    fn scores(q: &[f32], keys: &[&[f32]], later: &[&[f32]], out: &mut [[f32; BLOCK]]) {
        let d = q.len() / BLOCK;
        let (low, high) = q.split_at(GROUP * d);
        for ((out, key), later) in out.iter_mut().zip(keys).zip(later) {
            prefetch(later);
            let (a, b) = out.split_at_mut(GROUP);
            dots(low, key, a);
            dots(high, key, b);
        }
    }
}

/// The inner products of four rows with a key. The sums have names, so that they stay in registers.
#[inline(always)]
fn dots(rows: &[f32], key: &[f32], out: &mut [f32]) {
    let d = key.len();
    let row = |i: usize| rows[i * d..(i + 1) * d].as_chunks::<LANES>();
    let ((x0, r0), (x1, r1), (x2, r2), (x3, r3)) = (row(0), row(1), row(2), row(3));
    let (mut s0, mut s1) = ([0.0; LANES], [0.0; LANES]);
    let (mut s2, mut s3) = ([0.0; LANES], [0.0; LANES]);
    let (blocks, rest) = key.as_chunks::<LANES>();
    let rows = x0.iter().zip(x1).zip(x2).zip(x3);
    for (block, (((x0, x1), x2), x3)) in blocks.iter().zip(rows) {
        accumulate(&mut s0, x0, block);
        accumulate(&mut s1, x1, block);
        accumulate(&mut s2, x2, block);
        accumulate(&mut s3, x3, block);
    }
    for (out, (mut sums, x)) in out.iter_mut().zip([(s0, r0), (s1, r1), (s2, r2), (s3, r3)]) {
        for (lane, (x, y)) in sums.iter_mut().zip(x.iter().zip(rest)) {
            *lane += x * y;
        }
        *out = reduce(sums);
    }
}

widest! {
    /// `out[row] += weights[key][row] * values[key][first..][..n]` key after key; `out` is `[BLOCK, n]`.
    fn weighted(weights: &[[f32; BLOCK]], values: &[&[f32]], first: usize, out: &mut [f32]) {
        let n = out.len() / BLOCK;
        for (weights, values) in weights.chunks(KEYS).zip(values.chunks(KEYS)) {
            for tile in 0..n / TILE {
                tiles::<0>(weights, values, (first, tile * TILE), out);
                tiles::<GROUP>(weights, values, (first, tile * TILE), out);
            }
            let rest = n / TILE * TILE..n;
            for (weights, value) in weights.iter().zip(values) {
                let value = &value[first + rest.start..first + rest.end];
                for (row, weight) in weights.iter().enumerate() {
                    let out = &mut out[row * n + rest.start..row * n + rest.end];
                    for (o, v) in out.iter_mut().zip(value) {
                        *o += weight * v;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn add(sums: &mut [f32; TILE], weight: f32, value: &[f32; TILE]) {
    for i in 0..TILE {
        sums[i] += weight * value[i];
    }
}

/// Four rows of [`weighted`] from row `ROW` on, over the columns of a tile. The sums have names, so that they stay in
/// registers.
#[inline(always)]
fn tiles<const ROW: usize>(
    weights: &[[f32; BLOCK]],
    values: &[&[f32]],
    (first, column): (usize, usize),
    out: &mut [f32],
) {
    let n = out.len() / BLOCK;
    let place = |row: usize| (ROW + row) * n + column..(ROW + row) * n + column + TILE;
    let load = |row: usize| {
        let mut sums = [0.0f32; TILE];
        sums.copy_from_slice(&out[place(row)]);
        sums
    };
    let (mut s0, mut s1, mut s2, mut s3) = (load(0), load(1), load(2), load(3));
    for (weights, value) in weights.iter().zip(values) {
        let Some(value) = value[first + column..].first_chunk::<TILE>() else {
            continue;
        };
        add(&mut s0, weights[ROW], value);
        add(&mut s1, weights[ROW + 1], value);
        add(&mut s2, weights[ROW + 2], value);
        add(&mut s3, weights[ROW + 3], value);
    }
    for (row, sums) in [s0, s1, s2, s3].iter().enumerate() {
        out[place(row)].copy_from_slice(sums);
    }
}

widest! {
    /// `exp(x - max)` in place, and its sums over the keys.
    fn exponentials(x: &mut [[f32; BLOCK]], max: &[f32; BLOCK], sums: &mut [f64; BLOCK]) {
        for lanes in x {
            for row in 0..BLOCK {
                lanes[row] = exp(lanes[row] - max[row]);
                sums[row] += f64::from(lanes[row]);
            }
        }
    }
}

/// The queries of a block and what they see.
pub(super) struct Block<'a> {
    /// `[BLOCK, d]`, zeros where there are fewer rows.
    pub q: &'a [f32],
    /// Rows of K, of `d` values.
    pub keys: &'a [&'a [f32]],
    /// Rows of V.
    pub values: &'a [&'a [f32]],
    /// What is added to the scores.
    pub mask: &'a [[f32; BLOCK]],
    /// Whether threads may share the work.
    pub parallel: bool,
}

/// The running softmax of a block.
pub(super) struct Running {
    pub max: [f32; BLOCK],
    pub sum: [f32; BLOCK],
    /// `[BLOCK, dv]`.
    pub out: Vec<f32>,
}

impl Block<'_> {
    /// The masked scores, and their maxima, NaN if any is.
    pub fn scores(&self) -> (Vec<[f32; BLOCK]>, [f32; BLOCK]) {
        let mut out = vec![[0.0; BLOCK]; self.keys.len()];
        match self.chunk(self.q.len()) {
            None => scores(self.q, self.keys, self.values, &mut out),
            Some(chunk) => {
                let rows = (self.keys.par_chunks(chunk)).zip(self.values.par_chunks(chunk));
                out.par_chunks_mut(chunk)
                    .zip(rows)
                    .for_each(|(out, (keys, values))| scores(self.q, keys, values, out));
            }
        }
        let mut max = [f32::NEG_INFINITY; BLOCK];
        for (lanes, mask) in out.iter_mut().zip(self.mask) {
            for row in 0..BLOCK {
                lanes[row] += mask[row];
                let v = lanes[row];
                max[row] = if v > max[row] || v.is_nan() {
                    v
                } else {
                    max[row]
                };
            }
        }
        (out, max)
    }

    /// Keys of a chunk where threads share what takes `width` multiplications a key.
    fn chunk(&self, width: usize) -> Option<usize> {
        let threads = rayon::current_num_threads();
        let much = self.keys.len() * width >= PARALLEL_WORK;
        (self.parallel && threads > 1 && much).then(|| self.keys.len().div_ceil(threads))
    }

    /// `exp(scores - max)` in place, summed over the keys.
    pub fn exponentials(&self, scores: &mut [[f32; BLOCK]], max: &[f32; BLOCK]) -> [f32; BLOCK] {
        let mut sums = [0.0; BLOCK];
        exponentials(scores, max, &mut sums);
        sums.map(|s| s as f32)
    }

    /// The values weighted and summed, `[BLOCK, dv]`.
    pub fn weighted(&self, weights: &[[f32; BLOCK]]) -> Vec<f32> {
        let dv = self.values.first().map_or(0, |v| v.len());
        let mut out = vec![0.0; BLOCK * dv];
        if self.chunk(BLOCK * dv).is_none() {
            weighted(weights, self.values, 0, &mut out);
            return out;
        }
        // Threads take columns, so that each sum stays in one.
        let width = dv
            .div_ceil(rayon::current_num_threads())
            .next_multiple_of(TILE);
        let parts: Vec<(usize, Vec<f32>)> = (0..dv.div_ceil(width))
            .into_par_iter()
            .map(|part| {
                let columns = width.min(dv - part * width);
                let mut out = vec![0.0; BLOCK * columns];
                weighted(weights, self.values, part * width, &mut out);
                (part * width, out)
            })
            .collect();
        for (first, part) in parts {
            let columns = part.len() / BLOCK;
            for (row, part) in part.chunks_exact(columns.max(1)).enumerate() {
                out[row * dv + first..row * dv + first + columns].copy_from_slice(part);
            }
        }
        out
    }

    /// `softmax(q kᵀ + mask) v` from scores and their maxima.
    pub fn finish(&self, mut scores: Vec<[f32; BLOCK]>, max: &[f32; BLOCK]) -> Vec<f32> {
        let sums = self.exponentials(&mut scores, max);
        for lanes in &mut scores {
            lanes.iter_mut().zip(&sums).for_each(|(w, s)| *w /= s);
        }
        self.weighted(&scores)
    }
}

impl Running {
    /// Before any key; `lowest` stands for the maximum.
    pub fn new(dv: usize, lowest: f32) -> Self {
        Self {
            max: [lowest; BLOCK],
            sum: [0.0; BLOCK],
            out: vec![0.0; BLOCK * dv],
        }
    }

    /// Takes in some more keys.
    pub fn add(&mut self, block: &Block<'_>, mut scores: Vec<[f32; BLOCK]>, max: &[f32; BLOCK]) {
        let old = self.max;
        for (running, &v) in self.max.iter_mut().zip(max) {
            *running = if v > *running || v.is_nan() {
                v
            } else {
                *running
            };
        }
        let sums = block.exponentials(&mut scores, &self.max);
        let new = block.weighted(&scores);
        let dv = self.out.len() / BLOCK;
        for row in 0..BLOCK {
            let factor = exp(old[row] - self.max[row]);
            self.sum[row] = self.sum[row] * factor + sums[row];
            let out = &mut self.out[row * dv..(row + 1) * dv];
            for (o, n) in out.iter_mut().zip(&new[row * dv..]) {
                *o = *o * factor + n;
            }
        }
    }

    /// The result.
    pub fn finish(mut self) -> Vec<f32> {
        let dv = self.out.len() / BLOCK;
        for (out, sum) in self.out.chunks_exact_mut(dv.max(1)).zip(self.sum) {
            out.iter_mut().for_each(|o| *o /= sum);
        }
        self.out
    }
}
