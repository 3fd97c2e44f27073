//! Exact weighted 1-D k-means over sorted distinct values.
//!
//! Clusters of an optimal solution are intervals, so the task is a shortest path of exactly `k`
//! links over the prefixes of the values. Link costs are Monge, hence the optimal cost is convex in
//! `k` (Aggarwal, Schieber, Tokuyama 1994), and a penalty λ per link selects `k`: one pass finds the
//! cheapest path with penalty in `O(n log n)`, by divide and conquer over the monotone predecessors
//! (online, since a prefix must be final before it is one). λ starts at what high-rate theory
//! gives for the density (Panter and Dite 1951) and follows `k ∝ λ^(-1/3)`; where that does not
//! land on `k`, the chord between a path with fewer and one with more links gives the next λ. If
//! the chord's own pass finds nothing below it, every count between lies on it, and splicing the two
//! paths gives one with exactly `k` links at the same penalized cost.
//!
//! The result is optimal up to rounding: its cost is within [`COST_TOLERANCE`] of the optimum.

use super::error::{Error, Result};
use super::sums::{PlainSums, Sums, WideSums};

/// Relative error of the objective above which the sums are taken again in double-double.
pub const COST_TOLERANCE: f64 = 1e-7;

/// Passes with a guessed penalty before chords take over.
const GUESSED_PASSES: usize = 6;

/// Added to the count in the high-rate formulas, which makes them hold for few clusters too: the
/// Gaussian's optimal costs (Max 1960) follow `(k + 0.85)^-2` from `k = 1` on.
const SMALL_COUNT_OFFSET: f64 = 0.85;

/// Slices of equal weight over which the first penalty takes the density.
const DENSITY_SLICES: f64 = 256.0;

/// Prefixes that the divide and conquer leaves to a plain loop.
const LEAF: usize = 8;

/// Buffers of the solver, reused from group to group.
#[derive(Debug, Clone, Default)]
pub struct Solver {
    plain: PlainSums,
    wide: WideSums,
    pass: Pass,
    ends: Vec<u32>,
}

impl Solver {
    /// The ends (exclusive) of the `min(k, n)` optimal clusters of `n` values. `values` strictly
    /// ascending and finite, `weights` above zero and finite, equal lengths, `k` at least 1.
    pub(super) fn solve(&mut self, values: &[f64], weights: &[f64], k: usize) -> &[u32] {
        let n = values.len();
        self.ends.clear();
        if n <= k {
            self.ends.extend(1..=n as u32);
            return &self.ends;
        }
        if k == 1 {
            self.ends.push(n as u32);
            return &self.ends;
        }
        let start = penalty_guess(values, weights, k);
        self.plain.fill(values, weights);
        let noise = 4.0 * f64::EPSILON * self.plain.energy * k as f64;
        self.pass
            .search(&self.plain, k, start, noise, &mut self.ends);
        if noise > COST_TOLERANCE * objective(values, weights, &self.ends) {
            self.wide.fill(values, weights);
            self.pass.search(&self.wide, k, start, 0.0, &mut self.ends);
        }
        &self.ends
    }
}

/// Means of the optimal `min(k, n)` clusters, ascending. `values` must be finite and strictly
/// ascending, `weights` finite and above zero.
pub fn optimal_palette(values: &[f64], weights: &[f64], k: usize) -> Result<Vec<f64>> {
    if weights.len() != values.len() {
        return Err(Error::Length {
            what: "weights of the values",
            expected: values.len(),
            got: weights.len(),
        });
    }
    if values.is_empty() || k == 0 {
        return Err(Error::Empty);
    }
    let sorted = |i: usize| i == 0 || values[i - 1] < values[i];
    let wrong = (0..values.len()).find(|&i| {
        !values[i].is_finite() || !sorted(i) || !weights[i].is_finite() || weights[i] <= 0.0
    });
    if let Some(index) = wrong {
        return Err(Error::Bin { index });
    }
    let mut solver = Solver::default();
    let ends = solver.solve(values, weights, k);
    Ok(clusters(ends)
        .map(|c| mean(&values[c.clone()], &weights[c]))
        .collect())
}

/// The ranges of bins that the ends cut.
pub(super) fn clusters(ends: &[u32]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(l, &r)| l as usize..r as usize)
}

/// Weighted mean, never outside the values.
pub(super) fn mean(values: &[f64], weights: &[f64]) -> f64 {
    let (mut w, mut s) = (0.0, 0.0);
    for (x, weight) in values.iter().zip(weights) {
        w += weight;
        s += weight * x;
    }
    match values {
        [first, .., last] => (s / w).clamp(*first, *last),
        [only] => *only,
        [] => 0.0,
    }
}

/// Weighted sum of squared distances to the cluster means, without cancellation.
fn objective(values: &[f64], weights: &[f64], ends: &[u32]) -> f64 {
    let mut total = 0.0;
    for cluster in clusters(ends) {
        let (values, weights) = (&values[cluster.clone()], &weights[cluster]);
        let centre = mean(values, weights);
        for (x, w) in values.iter().zip(weights) {
            total += w * ((x - centre) * (x - centre));
        }
    }
    total
}

/// The penalty for which high-rate theory expects `k` clusters: with `I` the integral of the cube
/// root of the density, the cost of `k` clusters is `I^3 / (12 k^2)`, and λ is minus its slope.
fn penalty_guess(values: &[f64], weights: &[f64], k: usize) -> f64 {
    // Slices of equal weight: a density taken value by value would be mostly noise.
    let slice = weights.iter().sum::<f64>() / DENSITY_SLICES;
    let (mut integral, mut weight, mut start) = (0.0, 0.0, values[0]);
    for (i, w) in weights.iter().enumerate() {
        weight += w;
        if weight >= slice || i + 1 == values.len() {
            let end = values
                .get(i + 1)
                .map_or(values[i], |next| (values[i] + next) * 0.5);
            let width = end - start;
            integral += cube_root((weight * (width * width)) as f32);
            (weight, start) = (0.0, end);
        }
    }
    let per_cluster = integral / (k as f64 + SMALL_COUNT_OFFSET);
    per_cluster * per_cluster * per_cluster / 6.0
}

/// Cube root to about 0.1 %, in plain arithmetic, so that it is the same on every machine.
fn cube_root(x: f32) -> f64 {
    let guess = f64::from(f32::from_bits(x.to_bits() / 3 + 0x2a51_7d3c));
    (guess + guess + f64::from(x) / (guess * guess)) / 3.0
}

/// A path over the prefixes.
#[derive(Debug, Clone, Default)]
struct Path {
    /// Ends of its clusters.
    ends: Vec<u32>,
    /// Sum of its links, without penalties.
    cost: f64,
    /// The penalty it was found with.
    penalty: f64,
}

impl Path {
    fn measure(&mut self, sums: &impl Sums) {
        self.cost = clusters(&self.ends)
            .map(|c| sums.link(c.start, c.end))
            .sum();
    }
}

/// Buffers of the passes.
#[derive(Debug, Clone, Default)]
struct Pass {
    /// Cheapest penalized cost of a prefix, once final.
    paid: Vec<f64>,
    /// Cheapest found so far, without the last link's penalty.
    low: Vec<f64>,
    /// The predecessor that `low` came from.
    from: Vec<u32>,
    fewer: Path,
    more: Path,
    found: Path,
}

impl Pass {
    /// The ends of the cheapest path of exactly `k` links, `1 < k < n`, into `ends`. Costs closer
    /// than `noise` are equal.
    fn search(&mut self, sums: &impl Sums, k: usize, start: f64, noise: f64, ends: &mut Vec<u32>) {
        let n = sums.len();
        self.fewer.ends.clear();
        self.fewer.ends.push(n as u32);
        self.fewer.penalty = f64::INFINITY;
        self.fewer.measure(sums);
        self.more.ends.clear();
        self.more.ends.extend(1..=n as u32);
        self.more.penalty = 0.0;
        self.more.measure(sums);
        let mut guess = start;
        for pass in 0.. {
            let (a, b) = (self.fewer.ends.len(), self.more.ends.len());
            let inside = guess > self.more.penalty && guess < self.fewer.penalty;
            let guessed = pass < GUESSED_PASSES && inside;
            let chord = (self.fewer.cost - self.more.cost) / (b - a) as f64;
            let penalty = if guessed { guess } else { chord };
            self.run(sums, penalty);
            let links = self.found.ends.len();
            if links == k {
                std::mem::swap(ends, &mut self.found.ends);
                return;
            }
            if !guessed {
                let on_chord = self.fewer.cost + chord * a as f64;
                let below = on_chord - (self.found.cost + chord * links as f64);
                if links <= a || links >= b || below <= noise {
                    splice(&self.fewer.ends, &self.more.ends, k, ends);
                    return;
                }
            }
            let side = if links < k {
                &mut self.fewer
            } else {
                &mut self.more
            };
            std::mem::swap(side, &mut self.found);
            guess = self.interpolate(k, penalty, links);
        }
    }

    /// The next penalty: between those of the two paths where both came from passes, else by the power
    /// law from the last one.
    fn interpolate(&self, k: usize, penalty: f64, links: usize) -> f64 {
        let (fewer, more) = (&self.fewer, &self.more);
        if fewer.penalty.is_finite() && more.penalty > 0.0 {
            let (a, b) = (fewer.ends.len() as f64, more.ends.len() as f64);
            return more.penalty + (fewer.penalty - more.penalty) * ((b - k as f64) / (b - a));
        }
        let ratio = (links as f64 + SMALL_COUNT_OFFSET) / (k as f64 + SMALL_COUNT_OFFSET);
        penalty * (ratio * ratio * ratio)
    }

    /// The cheapest path with `penalty` per link, into `found`.
    fn run(&mut self, sums: &impl Sums, penalty: f64) {
        let n = sums.len();
        self.paid.clear();
        self.paid.resize(n + 1, 0.0);
        self.low.clear();
        self.low.resize(n + 1, f64::INFINITY);
        self.from.clear();
        self.from.resize(n + 1, 0);
        self.low[n] = sums.link(0, n);
        self.split(sums, penalty, 0, n);
        self.found.ends.clear();
        let mut at = n as u32;
        while at > 0 {
            self.found.ends.push(at);
            at = self.from[at as usize];
        }
        self.found.ends.reverse();
        self.found.penalty = penalty;
        self.found.measure(sums);
    }

    /// Makes the prefixes `l + 1..=r` final. `l` is final; `r` has seen every predecessor up to `l`.
    fn split(&mut self, sums: &impl Sums, penalty: f64, l: usize, r: usize) {
        if r - l <= LEAF {
            let (first, last) = (self.from[l] as usize, self.from[r] as usize);
            for i in l + 1..=r {
                if i < r {
                    self.update(sums, first, last + 1, i);
                }
                self.update(sums, l + 1, i, i);
                self.paid[i] = self.low[i] + penalty;
            }
            return;
        }
        let m = l.midpoint(r);
        let (first, last) = (self.from[l] as usize, self.from[r] as usize);
        self.update(sums, first, last + 1, m);
        self.split(sums, penalty, l, m);
        self.update(sums, l + 1, m + 1, r);
        self.split(sums, penalty, m, r);
    }

    #[inline(always)]
    fn update(&mut self, sums: &impl Sums, first: usize, end: usize, r: usize) {
        if first < end {
            let (low, from) = sums.best(&self.paid, first, end, r);
            if low < self.low[r] {
                self.low[r] = low;
                self.from[r] = from as u32;
            }
        }
    }
}

/// A path of exactly `k` links from one of fewer and one of more that are cheapest for the same
/// penalty: where a link of the longer path, as many links ahead as are wanted beyond the shorter,
/// lies inside a link of the shorter, change over. Monge costs make the result no dearer.
fn splice(fewer: &[u32], more: &[u32], k: usize, ends: &mut Vec<u32>) {
    let ahead = k - fewer.len();
    let link = (0..fewer.len()).find(|&s| more[s + ahead] <= fewer[s]);
    let link = link.unwrap_or(fewer.len() - 1);
    ends.clear();
    ends.extend_from_slice(&more[..link + ahead]);
    ends.extend_from_slice(&fewer[link..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The optimum by trying every last cluster of every prefix.
    fn brute_force(values: &[f64], weights: &[f64], k: usize) -> f64 {
        let n = values.len();
        let cost = |l: usize, r: usize| objective(&values[l..r], &weights[l..r], &[(r - l) as u32]);
        let link: Vec<Vec<f64>> = (0..n)
            .map(|l| {
                (0..=n)
                    .map(|r| if r > l { cost(l, r) } else { f64::INFINITY })
                    .collect()
            })
            .collect();
        let mut best: Vec<f64> = (0..=n)
            .map(|r| if r == 0 { 0.0 } else { f64::INFINITY })
            .collect();
        for _ in 0..k.min(n) {
            best = (0..=n)
                .map(|r| {
                    (0..r)
                        .map(|l| best[l] + link[l][r])
                        .fold(f64::INFINITY, f64::min)
                })
                .collect();
        }
        best[n]
    }

    fn solved(values: &[f64], weights: &[f64], k: usize) -> f64 {
        let mut solver = Solver::default();
        let ends = solver.solve(values, weights, k);
        assert_eq!(ends.len(), k.min(values.len()));
        assert_eq!(ends.last(), Some(&(values.len() as u32)));
        assert!(ends.windows(2).all(|p| p[0] < p[1]));
        objective(values, weights, ends)
    }

    /// What rounding of a sum of a few hundred squares may cost.
    const ROUNDING: f64 = 1e-11;

    fn assert_optimal(values: &[f64], weights: &[f64], k: usize, tolerance: f64) {
        let (got, best) = (solved(values, weights, k), brute_force(values, weights, k));
        assert!(
            got <= best * (1.0 + tolerance),
            "k {k}: {got:e} above {best:e}"
        );
        assert!(
            best <= got * (1.0 + ROUNDING),
            "k {k}: brute force {best:e} above {got:e}"
        );
    }

    #[test]
    fn equal_steps_tie_at_every_count() {
        // Every path with the same cluster sizes costs the same: the chord always ties.
        for n in [5usize, 16, 37] {
            let values: Vec<f64> = (0..n).map(|i| i as f64 * 0.25 - 3.0).collect();
            for k in 1..=n + 1 {
                assert_optimal(&values, &vec![2.0; n], k, ROUNDING);
            }
        }
    }

    #[test]
    fn far_outliers_do_not_blur_the_rest() {
        // The squares span 2^80, far beyond f64's 53 bits: the sums must go wide.
        let step = 2f64.powi(-24);
        let mut values: Vec<f64> = (0..60)
            .map(|i| f64::from(i * i % 61 + 61 * i) * step)
            .collect();
        values.extend([60_000.0, 60_032.0, 65_504.0]);
        values.sort_by(f64::total_cmp);
        let weights: Vec<f64> = (0..values.len()).map(|i| (1 + i % 5) as f64).collect();
        for k in [2, 3, 4, 7, 20, 50, 62] {
            assert_optimal(&values, &weights, k, COST_TOLERANCE);
        }
        let far: Vec<f64> = (0..200).map(|i| 1024.0 + f64::from(i)).collect();
        for k in [2, 16, 64, 190] {
            assert_optimal(&far, &vec![1.0; far.len()], k, COST_TOLERANCE);
        }
    }

    #[test]
    fn importance_of_any_scale() {
        let values: Vec<f64> = (0..80).map(|i| f64::from(i) * 0.01 - 0.3).collect();
        for scale in [1e-30, 1.0, 1e30] {
            let weights: Vec<f64> = (0..80)
                .map(|i| scale * (1.0 + f64::from(i * 7 % 11)))
                .collect();
            for k in [2, 5, 16, 64] {
                assert_optimal(&values, &weights, k, COST_TOLERANCE);
            }
        }
    }

    #[test]
    fn centroids_of_a_known_case() {
        let palette = optimal_palette(&[1.0, 2.0, 10.0, 12.0], &[3.0, 1.0, 1.0, 1.0], 2).unwrap();
        assert_eq!(palette, [1.25, 11.0]);
        assert_eq!(
            optimal_palette(&[1.0, 2.0], &[1.0, 1.0], 5).unwrap(),
            [1.0, 2.0]
        );
    }

    #[test]
    fn bad_bins_are_named() {
        let wrong =
            |values: &[f64], weights: &[f64]| optimal_palette(values, weights, 2).unwrap_err();
        assert_eq!(wrong(&[1.0, 1.0], &[1.0; 2]), Error::Bin { index: 1 });
        assert_eq!(wrong(&[1.0, f64::NAN], &[1.0; 2]), Error::Bin { index: 1 });
        assert_eq!(wrong(&[1.0, 2.0], &[0.0, 1.0]), Error::Bin { index: 0 });
        assert!(matches!(wrong(&[1.0], &[]), Error::Length { .. }));
        assert_eq!(wrong(&[], &[]), Error::Empty);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Integer grids (full of ties) and weights: the cost is that of the brute force.
        #[test]
        fn small_inputs_are_optimal(
            steps in prop::collection::vec(1u32..6, 1..40),
            counts in prop::collection::vec(1u32..9, 40),
            k in 1usize..40,
        ) {
            let mut at = 0.0;
            let values: Vec<f64> = steps.iter().map(|s| { at += f64::from(*s); at }).collect();
            let weights: Vec<f64> = counts[..values.len()].iter().map(|c| f64::from(*c)).collect();
            assert_optimal(&values, &weights, k, ROUNDING);
        }

        /// fp16 values of every magnitude, real weights.
        #[test]
        fn fp16_inputs_are_optimal(
            bits in prop::collection::btree_set(0u16..0x7c00, 1..60),
            weights in prop::collection::vec(1e-3f64..10.0, 60),
            k in 1usize..60,
        ) {
            let values: Vec<f64> = bits.iter().map(|b| half::f16::from_bits(*b).to_f64()).collect();
            assert_optimal(&values, &weights[..values.len()], k, COST_TOLERANCE);
        }

        /// More values than one leaf of the divide and conquer, Gaussian-like counts.
        #[test]
        fn larger_inputs_are_optimal(
            noise in prop::collection::vec(0.5f64..1.5, 150..220),
            k in 2usize..60,
        ) {
            let n = noise.len() as f64;
            let values: Vec<f64> = (0..noise.len()).map(|i| i as f64 / n - 0.5).collect();
            let weights: Vec<f64> =
                values.iter().zip(&noise).map(|(x, e)| (100.0 * e / (1.0 + 40.0 * x * x)).ceil()).collect();
            assert_optimal(&values, &weights, k, ROUNDING);
        }
    }
}
