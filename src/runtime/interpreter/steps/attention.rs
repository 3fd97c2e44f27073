//! `softmax(q kᵀ + mask) v` as one step, over the keys that the mask shows.
//!
//! A key is left out where its weight is exactly 0 anyway: its mask is so low that `exp` underflows for every row, whatever
//! the key. With `|q · k| <= |q| |k|` this follows from the norms of the queries and the largest norm of a key, which caches
//! know; masks of -inf only need them finite. Where it does not follow, all keys are taken.

use super::attend::{BLOCK, Block, Running};
use super::part::{Base, Located, Operands, Part};
use crate::runtime::kernels::lanes::LANES;
use crate::runtime::kernels::wide::widest;
use crate::runtime::values::held::norm;
use rayon::prelude::*;

/// Attention found in a plan.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    /// `(1, heads, rows, d)`.
    pub q: usize,
    /// `(1, 1, 1 or rows, length)`.
    pub mask: usize,
    /// Joined along the keys: `(1, heads, .., d)` and `(1, heads, .., dv)`.
    pub keys: Vec<Part>,
    pub values: Vec<Part>,
    pub dims: Dims,
    pub form: Form,
}

/// Its extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dims {
    pub heads: usize,
    pub rows: usize,
    pub d: usize,
    pub dv: usize,
    pub length: usize,
    pub mask_rows: usize,
}

/// How it is summed.
#[derive(Clone, Debug)]
pub(crate) enum Form {
    /// All keys at once.
    Standard,
    /// Slices that end at these keys, with a running maximum that begins here.
    Flash { ends: Vec<usize>, lowest: f32 },
}

/// A mask below this hides a key: what is added elsewhere are zeros and sums of at most a few.
const HIDES: f32 = -10_000.0;

widest! {
    /// Adds the keys that a row of a mask shows to `shown`. What hides the others has its maximum in the lanes of `lowest`.
    /// What is not a number hides nothing.
    fn scan(mask: &[f32], shown: &mut [bool], lowest: &mut [f32; LANES]) {
        for (mask, shown) in mask.chunks(LANES).zip(shown.chunks_mut(LANES)) {
            for ((&m, shown), lowest) in mask.iter().zip(shown).zip(lowest.iter_mut()) {
                let hides = m < HIDES;
                *shown |= !hides;
                *lowest = if hides && m > *lowest { m } else { *lowest };
            }
        }
    }
}

/// `exp` of less is 0, with room for the rounding of a score.
const UNDERFLOW: f32 = -106.0;

/// An inner product in f32 is at most the product of the norms times this.
const ROUNDING: f32 = 1.001;

impl Attention {
    /// The values that are read, caches apart.
    pub fn reads(&self) -> Vec<usize> {
        let parts = self.keys.iter().chain(&self.values);
        let values = parts.filter_map(|part| match part.base {
            Base::Value(value) => Some(value),
            Base::Cache(_) => None,
        });
        [self.q, self.mask].into_iter().chain(values).collect()
    }

    /// Those of [`Self::reads`] that must be dense.
    pub fn dense(&self) -> [usize; 2] {
        [self.q, self.mask]
    }

    /// The result `(1, heads, rows, dv)`; none if an operand is not there.
    pub fn run(&self, operands: &(impl Operands + Sync), out: &mut [f32]) -> Option<()> {
        let Dims {
            heads, rows, d, dv, ..
        } = self.dims;
        let (q, mask) = (operands.dense(self.q)?, operands.dense(self.mask)?);
        let keys = Rows::new(operands, &self.keys)?;
        let values = Rows::new(operands, &self.values)?;
        let bound = keys.largest(self, d);
        let finite = values.largest(self, dv).is_finite();
        let blocks = rows.div_ceil(BLOCK);
        let one = |index: usize, out: &mut [f32], parallel: bool| {
            let (head, first) = (index / blocks, index % blocks * BLOCK);
            let count = BLOCK.min(rows - first);
            let start = (head * rows + first) * d;
            let work = Work {
                attention: self,
                keys: &keys,
                values: &values,
                mask,
                head,
                first,
                bound: if finite { bound } else { f32::INFINITY },
                parallel,
            };
            out.copy_from_slice(&work.block(&q[start..start + count * d])[..count * dv]);
        };
        let mut parts = Vec::with_capacity(heads * blocks);
        for head in out.chunks_exact_mut((rows * dv).max(1)) {
            parts.extend(head.chunks_mut((BLOCK * dv).max(1)));
        }
        let threads = rayon::current_num_threads();
        if parts.len() < 2 * threads || threads < 2 {
            let parts = parts.into_iter().enumerate();
            parts.for_each(|(index, out)| one(index, out, true));
        } else {
            let parts = parts.into_par_iter().enumerate();
            parts.for_each(|(index, out)| one(index, out, false));
        }
        Some(())
    }
}

/// Rows of K or V, joined of parts.
struct Rows<'a> {
    parts: Vec<(Located<'a>, usize)>,
}

impl<'a> Rows<'a> {
    fn new(operands: &'a impl Operands, parts: &[Part]) -> Option<Self> {
        let located = parts.iter().map(|part| {
            let rows = *part.region.size.get(2)?;
            Some((operands.part(part)?, rows))
        });
        Some(Self {
            parts: located.collect::<Option<_>>()?,
        })
    }

    /// A bound of the norms of all rows, infinite if a value is not finite.
    fn largest(&self, attention: &Attention, width: usize) -> f32 {
        let of = |(part, rows): &(Located<'_>, usize)| {
            part.largest.unwrap_or_else(|| {
                let heads = 0..attention.dims.heads;
                let norms = heads.flat_map(|head| (0..*rows).map(move |row| (head, row)));
                norms
                    .map(|(head, row)| norm(part.row(head, row, width)))
                    .fold(0.0, f32::max)
            })
        };
        self.parts.iter().map(of).fold(0.0, f32::max)
    }

    /// The rows of a head at `at`, ascending.
    fn at(&self, head: usize, at: &[usize], width: usize) -> Vec<&[f32]> {
        let mut out = Vec::with_capacity(at.len());
        let mut at = at.iter().peekable();
        let mut before = 0;
        for (part, rows) in &self.parts {
            while let Some(&row) = at.next_if(|&&row| row < before + rows) {
                out.push(part.row(head, row - before, width));
            }
            before += rows;
        }
        out
    }
}

/// One block of queries.
struct Work<'a> {
    attention: &'a Attention,
    keys: &'a Rows<'a>,
    values: &'a Rows<'a>,
    mask: &'a [f32],
    head: usize,
    first: usize,
    /// No key has a larger norm.
    bound: f32,
    parallel: bool,
}

impl Work<'_> {
    /// The rows of the result, `[BLOCK, dv]`, for the queries `q`.
    fn block(&self, q: &[f32]) -> Vec<f32> {
        let Dims { d, length, .. } = self.attention.dims;
        let count = q.len() / d.max(1);
        let mut padded = vec![0.0; BLOCK * d];
        padded[..q.len()].copy_from_slice(q);
        // One row of a mask is all of them.
        let masks = match self.attention.dims.mask_rows {
            1 => 1,
            _ => count,
        };
        let mut shown = vec![false; length];
        let lowest: Vec<f32> = (0..masks)
            .map(|row| {
                let mut lowest = [f32::NEG_INFINITY; LANES];
                scan(self.mask_row(row), &mut shown, &mut lowest);
                lowest.into_iter().fold(f32::NEG_INFINITY, f32::max)
            })
            .collect();
        let seen: Vec<usize> = (0..length).filter(|&key| shown[key]).collect();
        let all = || (0..length).collect::<Vec<_>>();
        if seen.is_empty() || seen.len() == length {
            return self.over(&padded, count, &all(), None).unwrap_or_default();
        }
        // No hidden key has a larger score; not a number where norms are infinite and masks -inf.
        let mut hidden = [f32::NEG_INFINITY; BLOCK];
        for (row, hidden) in hidden.iter_mut().enumerate().take(count) {
            let largest = norm(&q[row * d..(row + 1) * d]) * self.bound * ROUNDING;
            *hidden = largest + lowest[row.min(masks - 1)];
        }
        self.over(&padded, count, &seen, Some(&hidden))
            .or_else(|| self.over(&padded, count, &all(), None))
            .unwrap_or_default()
    }

    /// The mask of a row of the block.
    fn mask_row(&self, row: usize) -> &[f32] {
        let row = match self.attention.dims.mask_rows {
            1 => 0,
            _ => self.first + row,
        };
        &self.mask[row * self.attention.dims.length..][..self.attention.dims.length]
    }

    /// The result over the keys `at`. None if one of the others, whose scores are at most `hidden`, might have a weight.
    fn over(
        &self,
        q: &[f32],
        count: usize,
        at: &[usize],
        hidden: Option<&[f32; BLOCK]>,
    ) -> Option<Vec<f32>> {
        let Dims { d, dv, .. } = self.attention.dims;
        let keys = self.keys.at(self.head, at, d);
        let values = self.values.at(self.head, at, dv);
        let mut mask = vec![[0.0; BLOCK]; at.len()];
        for row in 0..count {
            let from = self.mask_row(row);
            for (lanes, &key) in mask.iter_mut().zip(at) {
                lanes[row] = from[key];
            }
        }
        let part = |from: usize, to: usize| Block {
            q,
            keys: &keys[from..to],
            values: &values[from..to],
            mask: &mask[from..to],
            parallel: self.parallel,
        };
        let vanish = |max: &[f32; BLOCK]| {
            let fits =
                |hidden: &[f32; BLOCK]| (0..count).all(|row| hidden[row] - max[row] < UNDERFLOW);
            hidden.is_none_or(fits)
        };
        match &self.attention.form {
            Form::Standard => {
                let block = part(0, at.len());
                let (scores, max) = block.scores();
                vanish(&max).then(|| block.finish(scores, &max))
            }
            Form::Flash { ends, lowest } => {
                let mut running = Running::new(dv, *lowest);
                let mut from = 0;
                for &end in ends {
                    let to = at.partition_point(|&key| key < end);
                    if to > from {
                        let block = part(from, to);
                        let (scores, max) = block.scores();
                        running.add(&block, scores, &max);
                    }
                    // In the slice itself, with the maximum after it.
                    vanish(&running.max).then_some(())?;
                    from = to;
                }
                Some(running.finish())
            }
        }
    }
}
