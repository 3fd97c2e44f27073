//! Vector palettes: an entry is a vector of weights, an index stands for a whole vector.
//!
//! A vector is 2 or 4 weights of consecutive output channels at the same input (coremltools:
//! `cluster_dim`, with `vector_axis` 0). The optimum is not within reach as it is for single weights, so
//! several starts go through Lloyd's iteration and the table with the least weighted error wins: the
//! product of the exact palette of single weights with itself, where the widths allow one (so the error
//! is never above that palette's), and seeded k-means++ starts. Importance weighs a column, that is all
//! coordinates of a vector alike.
//!
//! Centroids are rounded to fp16 once and sorted; assignment is then redone in f64 against the rounded
//! table. Everything runs in a fixed order in f32 or f64, so the result does not depend on threads or CPU.

mod lloyd;
#[cfg(test)]
mod tests;

use half::f16;
use rand::RngCore;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use super::error::{Error, Result};
use super::fp16::{first_not_finite, nearest};
use super::palette::{GroupResult, Lut, Scratch};
use super::scheme::{PALETTE_BITS, VECTOR_SIZES};
use super::stats::ErrorStats;
use lloyd::{lloyd, seeds};

/// The most entries of a table.
const MAX_ENTRIES: usize = 256;
/// The most vectors that one table is fitted to; a group with more is sampled.
pub const MAX_FITTED: usize = 1 << 17;
/// k-means++ starts of a large group.
const RESTARTS: usize = 2;
/// k-means++ starts of a small one.
const MAX_RESTARTS: usize = 32;
/// Vectors times entries times starts up to which a group is small.
const RESTART_WORK: usize = 1 << 16;
/// Seed of the positions sampled; start `i` of a fit has seed `i` above it.
const SEED: u64 = 0;

/// Vectors with their importance, as a table is fitted to them.
struct Points<const D: usize> {
    at: Vec<[f16; D]>,
    weight: Vec<f32>,
}

/// Positions of the vectors that a group of `vectors` is fitted to, ascending: all, or one from each of
/// [`MAX_FITTED`] equal stretches, drawn with a fixed seed.
pub fn sample(vectors: usize) -> Vec<usize> {
    if vectors <= MAX_FITTED {
        return (0..vectors).collect();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let bound = |i: usize| (i as u128 * vectors as u128 / MAX_FITTED as u128) as usize;
    (0..MAX_FITTED)
        .map(|i| {
            let (start, end) = (bound(i), bound(i + 1));
            start + (rng.next_u64() % (end - start) as u64) as usize
        })
        .collect()
}

/// Fits a table of `2^nbits` vectors of `vector` weights to `vectors` (one after the other). `weights`,
/// where given, has one importance per vector; vectors without any say nothing about the table, unless
/// none has any. The table is ascending by its first coordinate, then the next; entries that were not
/// needed are zero, at its end.
pub fn fit_vectors(
    vectors: &[f16],
    weights: Option<&[f32]>,
    nbits: u8,
    vector: usize,
    scratch: &mut Scratch,
) -> Result<Lut> {
    if !PALETTE_BITS.contains(&nbits) {
        return Err(Error::Bits { nbits });
    }
    match vector {
        2 => fit::<2>(vectors, weights, nbits, scratch),
        4 => fit::<4>(vectors, weights, nbits, scratch),
        _ => Err(Error::VectorSize { vector }),
    }
}

/// Indices of the vectors of `rows` (row-major, `inputs` values each, a whole number of vectors high) into
/// `lut`, in row-major order over `[rows / vector, inputs]`; at a tie the lower index. `importance`, where
/// given, has one value per input.
pub fn assign_vectors(
    rows: &[f16],
    inputs: usize,
    lut: &Lut,
    vector: usize,
    importance: Option<&[f32]>,
    indices: &mut [u8],
) -> Result<Assigned> {
    check_rows(rows, inputs, vector, importance)?;
    if indices.len() != rows.len() / vector {
        return Err(Error::Length {
            what: "indices",
            expected: rows.len() / vector,
            got: indices.len(),
        });
    }
    Ok(match vector {
        2 => assign::<2>(rows, inputs, lut, importance, indices),
        _ => assign::<4>(rows, inputs, lut, importance, indices),
    })
}

/// Errors of the vectors that were assigned.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Assigned {
    /// Every weight counted once.
    pub stats: ErrorStats,
    /// Sum of squared errors times importance; equals `stats.sse` without importance.
    pub weighted_sse: f64,
}

/// Palettizes one group of whole rows: [`fit_vectors`] on the vectors of [`sample`], then
/// [`assign_vectors`]. Errors: an element that is not finite, an importance that is negative, a width or a
/// vector without a Core ML type, rows that are not whole vectors, an empty group.
pub fn palettize_vectors(
    rows: &[f16],
    inputs: usize,
    (nbits, vector): (u8, usize),
    importance: Option<&[f32]>,
    scratch: &mut Scratch,
    indices: &mut [u8],
) -> Result<GroupResult> {
    check_rows(rows, inputs, vector, importance)?;
    let (mut vectors, mut weights) = (Vec::new(), Vec::new());
    for at in sample(rows.len() / vector) {
        vectors.extend(vector_at(rows, inputs, vector, at));
        weights.extend(importance.map(|importance| importance[at % inputs]));
    }
    let weights = importance.map(|_| weights.as_slice());
    let lut = fit_vectors(&vectors, weights, nbits, vector, scratch)?;
    let Assigned {
        stats,
        weighted_sse,
    } = assign_vectors(rows, inputs, &lut, vector, importance, indices)?;
    Ok(GroupResult {
        lut,
        stats,
        weighted_sse,
    })
}

/// The weights of vector `at` of rows, in the order of their channels.
pub fn vector_at(
    rows: &[f16],
    inputs: usize,
    vector: usize,
    at: usize,
) -> impl Iterator<Item = f16> + '_ {
    let first = at / inputs * vector * inputs + at % inputs;
    (0..vector).map(move |d| rows[first + d * inputs])
}

fn check_rows(
    rows: &[f16],
    inputs: usize,
    vector: usize,
    importance: Option<&[f32]>,
) -> Result<()> {
    if !VECTOR_SIZES.contains(&vector) {
        return Err(Error::VectorSize { vector });
    }
    if rows.is_empty() || inputs == 0 {
        return Err(Error::Empty);
    }
    if !rows.len().is_multiple_of(inputs * vector) {
        return Err(Error::NotDivisible {
            what: "weights of a group",
            len: rows.len(),
            group: inputs * vector,
        });
    }
    if let Some(importance) = importance {
        if importance.len() != inputs {
            return Err(Error::Length {
                what: "importance",
                expected: inputs,
                got: importance.len(),
            });
        }
        check_importance(importance)?;
    }
    check_finite(rows)
}

fn check_finite(values: &[f16]) -> Result<()> {
    match first_not_finite(values) {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite {
            index,
            value: values[index].to_f32(),
        }),
    }
}

fn check_importance(importance: &[f32]) -> Result<()> {
    match importance.iter().position(|w| !w.is_finite() || *w < 0.0) {
        None => Ok(()),
        Some(index) => Err(Error::Importance {
            index,
            value: importance[index],
        }),
    }
}

fn fit<const D: usize>(
    vectors: &[f16],
    weights: Option<&[f32]>,
    nbits: u8,
    scratch: &mut Scratch,
) -> Result<Lut> {
    let (all, rest) = vectors.as_chunks::<D>();
    if all.is_empty() {
        return Err(Error::Empty);
    }
    if !rest.is_empty() || weights.is_some_and(|w| w.len() != all.len()) {
        return Err(Error::Length {
            what: "vectors",
            expected: weights.map_or(all.len(), <[f32]>::len) * D,
            got: vectors.len(),
        });
    }
    check_finite(vectors)?;
    weights.map_or(Ok(()), check_importance)?;
    let points = points(all, weights);
    let size = 1usize << nbits;
    let table = match distinct(&points.at, size) {
        Some(table) => table,
        None => best_table(&points, nbits, weights.is_some(), scratch)?,
    };
    let used = table.len();
    let mut entries = table.concat();
    entries.resize(size * D, f16::ZERO);
    Ok(Lut::new(entries, used))
}

/// The vectors with an importance above zero; all of them, alike, where none has any.
fn points<const D: usize>(all: &[[f16; D]], weights: Option<&[f32]>) -> Points<D> {
    let weights = weights.filter(|weights| weights.iter().any(|w| *w > 0.0));
    let Some(weights) = weights else {
        return Points {
            at: all.to_vec(),
            weight: vec![1.0; all.len()],
        };
    };
    let kept = all.iter().zip(weights).filter(|(_, w)| **w > 0.0);
    let (at, weight) = kept.map(|(at, w)| (*at, *w)).unzip();
    Points { at, weight }
}

/// All different vectors in order, if there are at most `size`.
fn distinct<const D: usize>(points: &[[f16; D]], size: usize) -> Option<Vec<[f16; D]>> {
    let mut seen = std::collections::BTreeSet::new();
    for point in points {
        seen.insert(point.map(|x| if x == f16::ZERO { 0 } else { x.to_bits() }));
        if seen.len() > size {
            return None;
        }
    }
    let seen = seen.into_iter().map(|bits| bits.map(f16::from_bits));
    Some(canonical(seen.collect()))
}

/// Sorted, without doubles, zeros as +0.
fn canonical<const D: usize>(mut table: Vec<[f16; D]>) -> Vec<[f16; D]> {
    for x in table.as_flattened_mut() {
        if *x == f16::ZERO {
            *x = f16::ZERO;
        }
    }
    // Finite and without -0, so this is the order of the numbers.
    table.sort_by_key(|vector| vector.map(|x| x.to_f32().to_bits() as i32).map(ordered));
    table.dedup();
    table
}

/// An integer that orders as the f32 with these bits.
fn ordered(bits: i32) -> i32 {
    if bits < 0 {
        i32::MIN.wrapping_sub(bits)
    } else {
        bits
    }
}

/// The best table of all starts, by its weighted error once rounded; the first of equal ones.
fn best_table<const D: usize>(
    points: &Points<D>,
    nbits: u8,
    weighted: bool,
    scratch: &mut Scratch,
) -> Result<Vec<[f16; D]>> {
    let size = 1usize << nbits;
    let product = product(points, nbits, weighted, scratch)?;
    let work = points.at.len() * size;
    let restarts = (RESTART_WORK / work).clamp(RESTARTS, MAX_RESTARTS);
    let mut tables: Vec<(f64, Vec<[f16; D]>)> = (0..restarts + 2)
        .into_par_iter()
        .filter_map(|start| {
            let table = match start {
                // The product as it is: rounding may undo what little an iteration gained.
                0 => product.clone()?,
                1 => rounded(lloyd(points, as_f32(product.as_ref()?))),
                _ => {
                    let rng = ChaCha8Rng::seed_from_u64(SEED + start as u64);
                    rounded(lloyd(points, seeds(points, size, rng)))
                }
            };
            Some((weighted_sse(points, &table), table))
        })
        .collect();
    let mut best = 0;
    for i in 1..tables.len() {
        if tables[i].0 < tables[best].0 {
            best = i;
        }
    }
    Ok(tables.swap_remove(best).1)
}

fn as_f32<const D: usize>(table: &[[f16; D]]) -> Vec<[f32; D]> {
    table.iter().map(|v| v.map(f16::to_f32)).collect()
}

fn rounded<const D: usize>(centroids: Vec<[f64; D]>) -> Vec<[f16; D]> {
    canonical(centroids.into_iter().map(|c| c.map(nearest)).collect())
}

/// Every combination of entries of the exact palette of single weights with `nbits / D` bits, if there is
/// such a width.
fn product<const D: usize>(
    points: &Points<D>,
    nbits: u8,
    weighted: bool,
    scratch: &mut Scratch,
) -> Result<Option<Vec<[f16; D]>>> {
    let single = nbits / D as u8;
    if usize::from(single) * D != usize::from(nbits) || !PALETTE_BITS.contains(&single) {
        return Ok(None);
    }
    scratch.histogram.clear();
    let values = points.at.as_flattened();
    match weighted {
        false => scratch.histogram.add(values)?,
        true => {
            let each = points.weight.iter().flat_map(|w| [*w; D]);
            let each: Vec<f32> = each.collect();
            scratch.histogram.add_weighted(values, &each)?;
        }
    }
    let lut = scratch.fit(single)?.lut;
    let entries = &lut.entries()[..lut.used()];
    let all = entries.len().pow(D as u32);
    let table = (0..all).map(|mut at| {
        let mut vector = [f16::ZERO; D];
        for x in vector.iter_mut().rev() {
            *x = entries[at % entries.len()];
            at /= entries.len();
        }
        vector
    });
    Ok(Some(canonical(table.collect())))
}

/// A table in planes, one per coordinate, as the exact search reads it.
struct Exact<const D: usize> {
    planes: [[f64; MAX_ENTRIES]; D],
    used: usize,
}

impl<const D: usize> Exact<D> {
    fn new(table: &[[f16; D]]) -> Self {
        let mut planes = [[0.0; MAX_ENTRIES]; D];
        for (i, vector) in table.iter().enumerate() {
            for (plane, x) in planes.iter_mut().zip(vector) {
                plane[i] = x.to_f64();
            }
        }
        Exact {
            planes,
            used: table.len(),
        }
    }

    /// The entry nearest to `point` (the lowest of equals), and its squared distance.
    fn nearest(&self, point: [f64; D]) -> (usize, f64) {
        let mut distance = [0.0; MAX_ENTRIES];
        let distance = &mut distance[..self.used];
        for (plane, x) in self.planes.iter().zip(point) {
            for (sum, c) in distance.iter_mut().zip(plane) {
                *sum += (x - c) * (x - c);
            }
        }
        let mut best = (0, f64::INFINITY);
        for (i, &d) in distance.iter().enumerate() {
            if d < best.1 {
                best = (i, d);
            }
        }
        best
    }
}

fn weighted_sse<const D: usize>(points: &Points<D>, table: &[[f16; D]]) -> f64 {
    let exact = Exact::new(table);
    let each = points.at.iter().zip(&points.weight);
    each.map(|(at, w)| f64::from(*w) * exact.nearest(at.map(f16::to_f64)).1)
        .sum()
}

fn assign<const D: usize>(
    rows: &[f16],
    inputs: usize,
    lut: &Lut,
    importance: Option<&[f32]>,
    indices: &mut [u8],
) -> Assigned {
    let table = &lut.entries().as_chunks::<D>().0[..lut.used()];
    let exact = Exact::new(table);
    let mut out = Assigned::default();
    let blocks = rows.chunks_exact(D * inputs);
    for (block, indices) in blocks.zip(indices.chunks_exact_mut(inputs)) {
        for (column, index) in indices.iter_mut().enumerate() {
            let point: [f64; D] = std::array::from_fn(|d| block[d * inputs + column].to_f64());
            let (entry, distance) = exact.nearest(point);
            *index = entry as u8;
            for (x, stored) in point.iter().zip(table[entry]) {
                out.stats.add(*x, stored.to_f64(), 1);
            }
            let weight = importance.map_or(1.0, |importance| f64::from(importance[column]));
            out.weighted_sse += weight * distance;
        }
    }
    if importance.is_none() {
        out.weighted_sse = out.stats.sse;
    }
    out
}
