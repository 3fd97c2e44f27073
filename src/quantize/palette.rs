//! Palettes: a group of weights as indices into a small table of fp16 values.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::error::{Error, Result};
use super::histogram::{Bins, Histogram};
use super::kmeans::{Solver, clusters, mean};
use super::scheme::PALETTE_BITS;
use super::stats::ErrorStats;

/// A look-up table of `2^nbits` fp16 values: ascending, then zeros for entries without a cluster,
/// as coremltools writes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lut {
    entries: Vec<f16>,
    used: usize,
}

impl Lut {
    /// Every entry, `2^nbits`.
    pub fn entries(&self) -> &[f16] {
        &self.entries
    }

    /// Entries that have a cluster; the rest are zero.
    pub fn used(&self) -> usize {
        self.used
    }
}

/// What a group became.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupResult {
    /// The table.
    pub lut: Lut,
    /// Error of the group against the rounded table, every element counted once.
    pub stats: ErrorStats,
    /// Sum of squared errors times importance; equals `stats.sse` without importance.
    pub weighted_sse: f64,
}

/// Everything palettizing needs besides the weights, reused from group to group.
///
/// A group that fits in memory goes through [`palettize_group`]. A larger one (a whole tensor) comes
/// in tiles, twice: [`Scratch::histogram`] collects, [`Scratch::fit`] solves, [`Scratch::assign`]
/// turns tiles into indices.
#[derive(Debug, Clone)]
pub struct Scratch {
    /// The values of the group being collected; emptied by [`Scratch::fit`].
    pub histogram: Histogram,
    bins: Bins,
    solver: Solver,
    /// fp16 bits to table index, valid for the values last fitted.
    index_of: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// Empty buffers (about half a megabyte).
    pub fn new() -> Self {
        Scratch {
            histogram: Histogram::new(),
            bins: Bins::default(),
            solver: Solver::default(),
            index_of: vec![0; 1 << 16],
        }
    }

    /// The optimal palette of what was collected, and an empty histogram. Centroids are rounded to
    /// fp16 once; then every value goes to the nearest entry of the rounded table, at a tie to the
    /// lower index.
    pub fn fit(&mut self, nbits: u8) -> Result<GroupResult> {
        if !PALETTE_BITS.contains(&nbits) {
            return Err(Error::Bits { nbits });
        }
        self.histogram.collect(&mut self.bins);
        let weighted = self.histogram.is_weighted();
        self.histogram.clear();
        if self.bins.bits.is_empty() {
            return Err(Error::Empty);
        }
        let lut = self.table(nbits, weighted);
        Ok(self.assign_bins(lut))
    }

    /// Indices of `values`, all of which were in the histogram last fitted.
    pub fn assign(&self, values: &[f16], indices: &mut [u8]) -> Result<()> {
        if indices.len() != values.len() {
            return Err(Error::Length {
                what: "indices",
                expected: values.len(),
                got: indices.len(),
            });
        }
        let bits: &[u16] = values.reinterpret_cast();
        for (index, &b) in indices.iter_mut().zip(bits) {
            *index = self.index_of[usize::from(b)];
        }
        Ok(())
    }

    fn table(&mut self, nbits: u8, weighted: bool) -> Lut {
        let size = 1 << nbits;
        // Values without importance say nothing about the table, unless none has any.
        let kept = (weighted && self.bins.weights.contains(&0.0)).then(|| self.bins.important());
        let bins = kept.as_ref().unwrap_or(&self.bins);
        let ends = self.solver.solve(&bins.values, &bins.weights, size);
        let mut entries: Vec<f16> = clusters(ends)
            .map(|c| f16::from_f64(mean(&bins.values[c.clone()], &bins.weights[c])))
            .collect();
        let used = entries.len();
        entries.resize(size, f16::ZERO);
        Lut { entries, used }
    }

    fn assign_bins(&mut self, lut: Lut) -> GroupResult {
        let mut stats = ErrorStats::default();
        let mut weighted_sse = 0.0;
        let (mut at, table) = (0, &lut.entries[..lut.used]);
        let Bins {
            bits,
            counts,
            values,
            weights,
        } = &self.bins;
        for (i, &x) in values.iter().enumerate() {
            let mut entry = table[at].to_f64();
            while let Some(next) = table.get(at + 1).map(|e| e.to_f64()) {
                // Differences of two fp16 values are exact in f64.
                if (x - entry).abs() <= (next - x).abs() {
                    break;
                }
                at += 1;
                entry = next;
            }
            self.index_of[usize::from(bits[i])] = at as u8;
            if bits[i] == 0 {
                self.index_of[0x8000] = at as u8;
            }
            stats.add(x, entry, u64::from(counts[i]));
            weighted_sse += weights[i] * ((x - entry) * (x - entry));
        }
        GroupResult {
            lut,
            stats,
            weighted_sse,
        }
    }
}

/// Palettizes one group: the exact optimum for its weights, whatever their number.
///
/// `importance`, where given, weighs the squared error of element `i` by
/// `importance[i % importance.len()]` (one per element, or one per input channel of row-major
/// rows). `indices` has the group's length. Errors: an element that is not finite, an importance
/// that is negative, a width without a Core ML type, an empty group.
pub fn palettize_group(
    group: &[f16],
    nbits: u8,
    importance: Option<&[f32]>,
    scratch: &mut Scratch,
    indices: &mut [u8],
) -> Result<GroupResult> {
    scratch.histogram.clear();
    match importance {
        None => scratch.histogram.add(group)?,
        Some(importance) => scratch.histogram.add_weighted(group, importance)?,
    }
    let result = scratch.fit(nbits)?;
    scratch.assign(group, indices)?;
    Ok(result)
}
