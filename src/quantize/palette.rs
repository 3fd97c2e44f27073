//! Palettes: a group of weights as indices into a small table of fp16 values.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::error::{Error, Result};
use super::fp16::nearest;
use super::histogram::{Bins, Histogram};
use super::kmeans::{Solver, clusters, mean};
use super::scheme::PALETTE_BITS;
use super::stats::ErrorStats;

/// A look-up table of `2^nbits` entries: ascending, then zeros for entries without a cluster, as
/// coremltools writes it. An entry is an fp16 value, or a vector of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lut {
    entries: Vec<f16>,
    used: usize,
}

impl Lut {
    pub(super) fn new(entries: Vec<f16>, used: usize) -> Self {
        Lut { entries, used }
    }

    /// A table of `2^nbits` entries: `entries` sorted, equal ones once, the rest zero.
    pub(super) fn from_entries(entries: impl IntoIterator<Item = f16>, nbits: u8) -> Self {
        let mut entries: Vec<f16> = entries.into_iter().collect();
        entries.sort_by(f16::total_cmp);
        entries.dedup_by(|a, b| a == b);
        let used = entries.len();
        entries.resize(1 << nbits, f16::ZERO);
        Lut { entries, used }
    }

    /// The values of every entry, `2^nbits` of them, one after the other.
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
/// turns tiles into indices. [`Scratch::fit_each`] solves for several widths at once.
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
        let weighted = self.take(&[nbits])?;
        let lut = self.table(nbits, weighted);
        Ok(self.assign_bins(lut))
    }

    /// As [`Scratch::fit`] for each of several widths, of one histogram: what it would give after
    /// collecting the same values for each. [`Scratch::assign`] then gives indices of the last width.
    pub fn fit_each(&mut self, widths: &[u8]) -> Result<Vec<GroupResult>> {
        let weighted = self.take(widths)?;
        let fit = |&nbits: &u8| {
            let lut = self.table(nbits, weighted);
            self.assign_bins(lut)
        };
        Ok(widths.iter().map(fit).collect())
    }

    /// Sum of squares times importance of the group last fitted; without importance the sum of squares.
    pub fn energy(&self) -> f64 {
        let bins = self.bins.values.iter().zip(&self.bins.weights);
        bins.map(|(x, w)| w * (x * x)).sum()
    }

    /// Moves what was collected into the bins; tells whether it has importance.
    fn take(&mut self, widths: &[u8]) -> Result<bool> {
        if let Some(&nbits) = widths.iter().find(|n| !PALETTE_BITS.contains(n)) {
            return Err(Error::Bits { nbits });
        }
        self.histogram.collect(&mut self.bins);
        let weighted = self.histogram.is_weighted();
        self.histogram.clear();
        match self.bins.bits.is_empty() {
            true => Err(Error::Empty),
            false => Ok(weighted),
        }
    }

    /// Assigns what was collected to a table that is there, whose used entries ascend, and empties the
    /// histogram.
    pub fn assign_to(&mut self, lut: Lut) -> Result<GroupResult> {
        self.histogram.collect(&mut self.bins);
        self.histogram.clear();
        if self.bins.bits.is_empty() || lut.used == 0 {
            return Err(Error::Empty);
        }
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
            .map(|c| nearest(mean(&bins.values[c.clone()], &bins.weights[c])))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn palettize(group: &[f16], nbits: u8, importance: Option<&[f32]>) -> (GroupResult, Vec<u8>) {
        let mut indices = vec![0xff; group.len()];
        let mut scratch = Scratch::new();
        let result = palettize_group(group, nbits, importance, &mut scratch, &mut indices);
        (result.unwrap(), indices)
    }

    fn f16s(values: &[f32]) -> Vec<f16> {
        values.iter().map(|v| f16::from_f32(*v)).collect()
    }

    fn entries(result: &GroupResult) -> Vec<f32> {
        result.lut.entries().iter().map(|v| v.to_f32()).collect()
    }

    /// One histogram solved for several widths gives what a histogram for each gives, to the last bit.
    #[test]
    fn widths_of_one_histogram_are_those_of_separate_fits() {
        let value = |i: u32| ((i * 7919 % 1009) as f32 - 504.0) * 0.003;
        let group = f16s(&(0..2048).map(value).collect::<Vec<f32>>());
        let importance: Vec<f32> = (0..64).map(|i| ((i * 5 % 11) as f32) * 0.5).collect();
        let widths = [2, 3, 4, 6, 8];
        for importance in [None, Some(importance.as_slice())] {
            let mut shared = Scratch::new();
            match importance {
                None => shared.histogram.add(&group).unwrap(),
                Some(importance) => shared.histogram.add_weighted(&group, importance).unwrap(),
            }
            let together = shared.fit_each(&widths).unwrap();
            assert_eq!(shared.histogram.total(), 0);
            let apart: Vec<(GroupResult, Vec<u8>)> = widths
                .iter()
                .map(|&n| palettize(&group, n, importance))
                .collect();
            let mut indices = vec![0; group.len()];
            shared.assign(&group, &mut indices).unwrap();
            assert_eq!(indices, apart[widths.len() - 1].1);
            let results = apart.iter().map(|(result, _)| result);
            assert!(together.iter().eq(results));
            let weight = |i: usize| importance.map_or(1.0, |w| f64::from(w[i % w.len()]));
            let squares = group.iter().enumerate();
            let energy: f64 = squares.map(|(i, v)| weight(i) * v.to_f64().powi(2)).sum();
            assert!((shared.energy() - energy).abs() <= 1e-12 * energy);
            let errors: Vec<f64> = together.iter().map(|r| r.weighted_sse).collect();
            assert!(errors.windows(2).all(|e| e[1] < e[0]), "{errors:?}");
        }
        let mut scratch = Scratch::new();
        assert_eq!(scratch.fit_each(&[3, 5]), Err(Error::Bits { nbits: 5 }));
        assert_eq!(scratch.fit_each(&[3]), Err(Error::Empty));
    }

    #[test]
    fn fewer_values_than_entries_are_kept_as_they_are() {
        let group = f16s(&[0.5, -0.0, 0.0, -1.0, 0.5, 5.96e-8]);
        let (result, indices) = palettize(&group, 3, None);
        assert_eq!(
            entries(&result),
            [-1.0, 0.0, 5.9604645e-8, 0.5, 0.0, 0.0, 0.0, 0.0]
        );
        assert_eq!(result.lut.used(), 4);
        assert_eq!(indices, [3, 1, 1, 0, 3, 2]);
        assert_eq!(result.stats.sse, 0.0);
        assert_eq!(result.stats.n, 6);
        assert_eq!(result.stats.sqnr_db(), f64::INFINITY);
    }

    #[test]
    fn one_value_fills_one_entry() {
        for value in [0.0, -0.0, 0.02, -65504.0, 5.96e-8] {
            let (result, indices) = palettize(&f16s(&[value; 40]), 4, None);
            assert_eq!(result.lut.used(), 1);
            assert_eq!(result.lut.entries()[0], f16::from_f32(value));
            assert_eq!(indices, [0; 40]);
        }
    }

    #[test]
    fn a_tie_goes_to_the_lower_index() {
        // Optimal clusters are {-3, -1} and {1, 3} with 0 in either; entries round to ±2.
        let (result, indices) = palettize(&f16s(&[-3.0, -2.0, -1.0, 1.0, 2.0, 3.0]), 1, None);
        assert_eq!(entries(&result), [-2.0, 2.0]);
        assert_eq!(indices, [0, 0, 0, 1, 1, 1]);
        let mut group = vec![f16::from_f32(-2.0); 5000];
        group.extend(vec![f16::from_f32(2.0); 5000]);
        group.push(f16::ZERO);
        let (result, indices) = palettize(&group, 1, None);
        assert_eq!(entries(&result), [-2.0, 2.0]);
        assert_eq!(indices[10_000], 0);
    }

    #[test]
    fn values_without_importance_do_not_pull() {
        let group = f16s(&[1.0, 2.0, 8.0, 9.0, 100.0, 200.0]);
        let importance = [1.0, 3.0, 1.0, 1.0, 0.0, 0.0];
        let (result, indices) = palettize(&group, 1, Some(&importance));
        assert_eq!(entries(&result), [1.75, 8.5]);
        assert_eq!(indices, [0, 0, 1, 1, 1, 1]);
        assert_eq!(result.weighted_sse, 0.75 * 0.75 + 3.0 * 0.0625 + 0.5);
        assert_eq!(result.stats.n, 6);
        assert!(result.stats.sse > 1000.0);
        let (none, _) = palettize(&group, 1, Some(&[0.0]));
        let (plain, _) = palettize(&group, 1, None);
        assert_eq!(none.lut, plain.lut);
        assert_eq!(none.weighted_sse, 0.0);
    }

    #[test]
    fn importance_counts_as_that_many_elements() {
        let group: Vec<f16> = (0..600)
            .map(|i| f16::from_f32((i * i % 601) as f32 / 601.0))
            .collect();
        let importance: Vec<f32> = (0..200).map(|i| (i % 4) as f32 + 1.0).collect();
        let repeat = |i: usize| std::iter::repeat_n(group[i], importance[i % 200] as usize);
        let repeated: Vec<f16> = (0..600).flat_map(repeat).collect();
        for nbits in PALETTE_BITS {
            let (weighted, indices) = palettize(&group, nbits, Some(&importance));
            let (plain, _) = palettize(&repeated, nbits, None);
            assert_eq!(weighted.lut, plain.lut, "{nbits} bits");
            assert_eq!(weighted.weighted_sse, plain.stats.sse);
            let mut again = vec![0; 600];
            let mut used = Scratch::new();
            palettize_group(&repeated, 3, None, &mut used, &mut vec![0; repeated.len()]).unwrap();
            let result = palettize_group(&group, nbits, Some(&importance), &mut used, &mut again);
            assert_eq!(
                (result.unwrap(), again),
                (weighted, indices),
                "a used scratch"
            );
        }
    }

    #[test]
    fn bad_input_is_named() {
        let mut scratch = Scratch::new();
        let mut run = |group: &[f16], nbits, importance: Option<&[f32]>| {
            let mut indices = vec![0; group.len()];
            palettize_group(group, nbits, importance, &mut scratch, &mut indices).unwrap_err()
        };
        let good = f16s(&[1.0, 2.0, 3.0, 4.0]);
        let mut bad = good.clone();
        bad[2] = f16::NEG_INFINITY;
        let error = run(&bad, 4, None);
        assert!(
            matches!(error, Error::NotFinite { index: 2, .. }),
            "{error}"
        );
        bad[1] = f16::NAN;
        let error = run(&bad, 4, Some(&[1.0, 1.0]));
        assert!(
            matches!(error, Error::NotFinite { index: 1, .. }),
            "{error}"
        );
        assert_eq!(run(&[], 4, None), Error::Empty);
        assert_eq!(run(&good, 5, None), Error::Bits { nbits: 5 });
        assert!(matches!(
            run(&good, 4, Some(&[1.0; 3])),
            Error::Length { .. }
        ));
        assert!(matches!(run(&good, 4, Some(&[])), Error::Length { .. }));
        let error = run(&good, 4, Some(&[1.0, -1.0]));
        assert!(
            matches!(error, Error::Importance { index: 1, .. }),
            "{error}"
        );
        let result = palettize_group(&good, 4, None, &mut scratch, &mut [0; 3]);
        assert!(matches!(result, Err(Error::Length { .. })));
        // Nothing of the failures is left behind.
        let mut indices = [0; 4];
        let result = palettize_group(&good, 4, None, &mut scratch, &mut indices).unwrap();
        assert_eq!(result, palettize(&good, 4, None).0);
    }

    #[test]
    fn weighted_and_unweighted_do_not_mix() {
        let mut histogram = Histogram::new();
        histogram.add(&f16s(&[1.0])).unwrap();
        let error = histogram.add_weighted(&f16s(&[1.0]), &[1.0]).unwrap_err();
        assert_eq!(error, Error::MixedImportance);
        assert_eq!(histogram.total(), 0);
    }

    proptest! {
        /// Every element is at its nearest entry (the lower of two), entries ascend, the error is the
        /// sum it says it is, tiles give the same as the whole, and more bits are never worse.
        #[test]
        fn indices_are_nearest_and_errors_add_up(
            raw in prop::collection::vec(any::<u16>(), 1..400),
            coarse in 0u32..14,
            used in prop::collection::vec(0f32..4.0, 1..400),
            weigh in any::<bool>(),
        ) {
            let group: Vec<f16> = raw
                .iter()
                .map(|b| f16::from_bits(b >> coarse << coarse))
                .filter(|v| v.is_finite())
                .collect();
            prop_assume!(!group.is_empty());
            let importance = &used[..used.len().min(group.len())];
            let importance = (weigh && group.len().is_multiple_of(importance.len())).then_some(importance);
            let mut scratch = Scratch::new();
            let mut indices = vec![0; group.len()];
            let mut last = f64::INFINITY;
            let largest = group.iter().fold(0f64, |m, v| m.max(v.to_f64().abs()));
            let weight_of = |i: usize| importance.map_or(1.0, |w| f64::from(w[i % w.len()]));
            let total: f64 = (0..group.len()).map(weight_of).sum();
            for nbits in PALETTE_BITS {
                let result =
                    palettize_group(&group, nbits, importance, &mut scratch, &mut indices).unwrap();
                let table = &result.lut.entries()[..result.lut.used()];
                prop_assert_eq!(result.lut.entries().len(), 1 << nbits);
                prop_assert!(table.windows(2).all(|p| p[0] < p[1]));
                prop_assert!(result.lut.entries()[table.len()..].iter().all(|v| v.to_bits() == 0));
                let (mut sse, mut weighted) = (0.0, 0.0);
                for (i, (x, &index)) in group.iter().zip(&indices).enumerate() {
                    let x = x.to_f64();
                    let distance = |e: &f16| (x - e.to_f64()).abs();
                    let at = distance(&table[usize::from(index)]);
                    let nearest = table.iter().position(|e| distance(e) <= at);
                    prop_assert_eq!(nearest, Some(usize::from(index)));
                    sse += at * at;
                    weighted += weight_of(i) * at * at;
                }
                prop_assert!((result.stats.sse - sse).abs() <= 1e-9 * sse);
                prop_assert!((result.weighted_sse - weighted).abs() <= 1e-9 * weighted);
                // Rounding moves an entry by half a place, which costs that much of every element.
                let place = largest * 2f64.powi(-11) + 2f64.powi(-25);
                prop_assert!(result.weighted_sse <= (last + place * place * total) * (1.0 + 1e-9));
                last = result.weighted_sse;
                if importance.is_none() {
                    for tile in group.chunks(7) {
                        scratch.histogram.add(tile).unwrap();
                    }
                    prop_assert_eq!(&scratch.fit(nbits).unwrap(), &result);
                    let mut tiles = vec![0; group.len()];
                    for (tile, out) in group.chunks(7).zip(tiles.chunks_mut(7)) {
                        scratch.assign(tile, out).unwrap();
                    }
                    prop_assert_eq!(&tiles, &indices);
                }
            }
        }
    }
}
