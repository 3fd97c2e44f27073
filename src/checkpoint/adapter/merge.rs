//! Merged weights: what adapters make of the elements of one tensor, any range of them at a time.
//!
//! A product of two factors is added as `w + s * sum(b * a)`, in f32, the sum over the rank in its order. So an element is
//! the same whatever range it is read in and on whichever thread. Nothing of the size of the tensor is held: the factors stay
//! in the file, a block of columns of one of them is converted at a time, and DoRA keeps one number a row.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::stored::Raw;
use super::stored::Stored;

/// Elements of a factor that are held as f32.
const HELD: usize = 1 << 16;
/// Columns of a block, unless the rank is so high that fewer are held.
const COLUMNS: usize = 1024;
/// Elements that the pass over a whole tensor has at a time.
const PASS: usize = 1 << 16;

/// One of the two matrices whose product is added.
#[derive(Debug)]
pub(super) struct Factor {
    pub stored: Stored,
    /// The rank is the first dim in the file for the left factor, the second for the right one.
    pub transposed: bool,
}

/// What DoRA scales after the product is added: `magnitude / norm`.
#[derive(Debug)]
pub(super) enum Magnitude {
    /// A factor for each row; 0 where it is not known yet. Every thread computes the same one.
    Rows {
        stored: Stored,
        factors: Box<[AtomicU32]>,
    },
    /// A factor for each column.
    Columns {
        stored: Stored,
        factors: OnceLock<Vec<f32>>,
    },
}

/// A product of two narrow matrices, `[rows, rank]` and `[rank, columns]`.
#[derive(Debug)]
pub(super) struct LowRank {
    pub left: Factor,
    pub right: Factor,
    pub rank: usize,
    pub scale: f32,
    pub magnitude: Option<Magnitude>,
}

/// One thing that is done to a tensor.
#[derive(Debug)]
pub(super) enum Step {
    /// Another tensor takes its place.
    Whole(Stored),
    /// Rows take the place of others: pairs of the row and the row of `values`, sorted.
    Rows {
        rows: Vec<(usize, usize)>,
        values: Stored,
    },
    /// A product is added.
    Product(Box<LowRank>),
}

/// All that is done to a tensor, in order.
#[derive(Debug)]
pub(crate) struct Change {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) steps: Vec<Step>,
    /// The adapters, for messages.
    pub(super) adapters: String,
}

impl Change {
    /// The adapters whose steps these are, for messages.
    pub fn adapters(&self) -> &str {
        &self.adapters
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Merged elements from `start` on; `base` has those of the tensor.
    pub fn read(&self, base: Raw<'_>, start: usize, out: &mut [f32]) {
        self.after(self.steps.len(), base, start, out);
    }

    /// Elements from `start` on after the first `count` steps.
    fn after(&self, count: usize, base: Raw<'_>, start: usize, out: &mut [f32]) {
        let steps = &self.steps[..count];
        let whole = steps.iter().enumerate().rev().find_map(|(i, s)| match s {
            Step::Whole(stored) => Some((i, stored)),
            _ => None,
        });
        let first = match whole {
            Some((i, stored)) => {
                stored.raw().read(start, out);
                i + 1
            }
            None => {
                base.read(start, out);
                0
            }
        };
        for (i, step) in steps.iter().enumerate().skip(first) {
            match step {
                Step::Whole(_) => {}
                Step::Rows { rows, values } => self.replace(rows, values, start, out),
                Step::Product(product) => {
                    product.add(self.columns, start, out);
                    match &product.magnitude {
                        None => {}
                        Some(Magnitude::Rows { stored, factors }) => {
                            self.scale_rows(i, product, (stored, factors), base, start, out);
                        }
                        Some(Magnitude::Columns { stored, factors }) => {
                            let factors =
                                factors.get_or_init(|| self.of_columns(i, product, stored, base));
                            for (at, value) in (start..).zip(out.iter_mut()) {
                                *value *= factors[at % self.columns];
                            }
                        }
                    }
                }
            }
        }
    }

    fn replace(&self, rows: &[(usize, usize)], values: &Stored, start: usize, out: &mut [f32]) {
        for piece in pieces(self.columns, start, out) {
            if let Ok(found) = rows.binary_search_by_key(&piece.row, |(row, _)| *row) {
                let from = rows[found].1 * self.columns + piece.column;
                values.raw().read(from, piece.values);
            }
        }
    }

    /// Scales rows to which product `step` has been added.
    fn scale_rows(
        &self,
        step: usize,
        product: &LowRank,
        (magnitudes, factors): (&Stored, &[AtomicU32]),
        base: Raw<'_>,
        start: usize,
        out: &mut [f32],
    ) {
        for piece in pieces(self.columns, start, out) {
            let known = f32::from_bits(factors[piece.row].load(Ordering::Relaxed));
            let factor = match known != 0.0 {
                true => known,
                false => {
                    let norm = match piece.values.len() == self.columns {
                        true => norm(piece.values),
                        false => {
                            let mut row = vec![0f32; self.columns];
                            let begin = piece.row * self.columns;
                            self.after(step, base, begin, &mut row);
                            product.add(self.columns, begin, &mut row);
                            norm(&row)
                        }
                    };
                    let factor = (f64::from(magnitudes.raw().get(piece.row)) / norm) as f32;
                    factors[piece.row].store(factor.to_bits(), Ordering::Relaxed);
                    factor
                }
            };
            piece.values.iter_mut().for_each(|v| *v *= factor);
        }
    }

    /// The factors of all columns, by one pass over the tensor, in the order of its rows. It has no use of the pool, whose
    /// threads may be waiting for it.
    fn of_columns(
        &self,
        step: usize,
        product: &LowRank,
        magnitudes: &Stored,
        base: Raw<'_>,
    ) -> Vec<f32> {
        let mut sums = vec![0f64; self.columns];
        let rows = (PASS / self.columns.max(1)).max(1);
        let mut values = vec![0f32; rows * self.columns];
        for first in (0..self.rows).step_by(rows) {
            let count = rows.min(self.rows - first);
            let values = &mut values[..count * self.columns];
            self.after(step, base, first * self.columns, values);
            product.add(self.columns, first * self.columns, values);
            for row in values.chunks_exact(self.columns) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += f64::from(*value) * f64::from(*value);
                }
            }
        }
        let raw = magnitudes.raw();
        let factor = |(i, sum): (usize, f64)| (f64::from(raw.get(i)) / sum.sqrt()) as f32;
        sums.into_iter().enumerate().map(factor).collect()
    }
}

impl LowRank {
    /// Whether the factors are those of another product, in whatever format and order they are stored.
    pub fn same_factors(&self, other: &Self) -> bool {
        let rows = |product: &Self| product.left.stored.len() / product.rank;
        let columns = |product: &Self| product.right.stored.len() / product.rank;
        if self.rank != other.rank || rows(self) != rows(other) || columns(self) != columns(other) {
            return false;
        }
        let [mut a, mut b] = [(); 2].map(|()| vec![0f32; self.rank]);
        let rows = (0..rows(self)).all(|row| {
            self.left.row(row, self.rank, &mut a);
            other.left.row(row, self.rank, &mut b);
            a == b
        });
        rows && (0..columns(self)).all(|i| {
            let count = columns(self);
            self.right.block(i..i + 1, self.rank, count, &mut a);
            other.right.block(i..i + 1, self.rank, count, &mut b);
            a == b
        })
    }

    /// Adds the product to elements from `start` on.
    fn add(&self, columns: usize, start: usize, out: &mut [f32]) {
        let width = (HELD / self.rank).clamp(8, COLUMNS).min(columns);
        let mut right = vec![0f32; self.rank * width];
        let mut left = vec![0f32; self.rank];
        let mut sums = vec![0f32; width];
        let (first, last) = (start / columns, (start + out.len()).div_ceil(columns));
        for begin in (0..columns).step_by(width) {
            let end = (begin + width).min(columns);
            let mut filled = false;
            for row in first..last {
                // The part of this row and block that is in `out`.
                let from = (row * columns + begin).max(start);
                let to = (row * columns + end).min(start + out.len());
                if from >= to || !self.left.row(row, self.rank, &mut left) {
                    continue;
                }
                if !filled {
                    self.right.block(begin..end, self.rank, columns, &mut right);
                    filled = true;
                }
                let offset = from - row * columns - begin;
                let sums = &mut sums[..to - from];
                sums.fill(0.0);
                accumulate(&left, &right, end - begin, offset, sums);
                for (value, sum) in out[from - start..to - start].iter_mut().zip(sums) {
                    *value += self.scale * *sum;
                }
            }
        }
    }
}

impl Factor {
    /// A row of the left factor; whether anything of it is not 0.
    fn row(&self, row: usize, rank: usize, out: &mut [f32]) -> bool {
        let raw = self.stored.raw();
        if self.transposed {
            let rows = self.stored.len() / rank;
            for (k, value) in out.iter_mut().enumerate() {
                *value = raw.get(k * rows + row);
            }
        } else {
            raw.read(row * rank, out);
        }
        out.iter().any(|v| *v != 0.0)
    }

    /// These columns of the right factor, `[rank, block.len()]`.
    fn block(&self, block: std::ops::Range<usize>, rank: usize, columns: usize, out: &mut [f32]) {
        let (raw, width) = (self.stored.raw(), block.len());
        if self.transposed {
            let mut column = vec![0f32; rank];
            for (at, i) in block.enumerate() {
                raw.read(i * rank, &mut column);
                for (k, value) in column.iter().enumerate() {
                    out[k * width + at] = *value;
                }
            }
        } else {
            for (k, row) in out.chunks_exact_mut(width).take(rank).enumerate() {
                raw.read(k * columns + block.start, row);
            }
        }
    }
}

/// Adds `left[k] * right[k]` to the sums, k in its order; `right` has rows of `width` values, of which those from `offset` on
/// are meant.
fn accumulate(left: &[f32], right: &[f32], width: usize, offset: usize, sums: &mut [f32]) {
    let count = sums.len();
    let row = |k: usize| &right[k * width + offset..][..count];
    let (fours, rest) = left.as_chunks::<4>();
    for (i, &[a, b, c, d]) in fours.iter().enumerate() {
        let (p, q, r, s) = (row(4 * i), row(4 * i + 1), row(4 * i + 2), row(4 * i + 3));
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = *sum + a * p[j] + b * q[j] + c * r[j] + d * s[j];
        }
    }
    for (k, factor) in rest.iter().enumerate() {
        for (sum, value) in sums.iter_mut().zip(row(fours.len() * 4 + k)) {
            *sum += factor * value;
        }
    }
}

/// The root of the sum of squares, in f64: eight sums of every eighth value, which are then added in order.
fn norm(values: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    for chunk in values.chunks(8) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*value) * f64::from(*value);
        }
    }
    sums.iter().sum::<f64>().sqrt()
}

/// The part of a row that is in a range of elements.
struct Piece<'a> {
    row: usize,
    column: usize,
    values: &'a mut [f32],
}

/// Elements from `start` on, row by row.
fn pieces(columns: usize, start: usize, out: &mut [f32]) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = out;
    let mut at = start;
    std::iter::from_fn(move || {
        let values = std::mem::take(&mut rest);
        if values.is_empty() {
            return None;
        }
        let (row, column) = (at / columns, at % columns);
        let (values, after) = values.split_at_mut((columns - column).min(values.len()));
        rest = after;
        at += values.len();
        Some(Piece {
            row,
            column,
            values,
        })
    })
}
