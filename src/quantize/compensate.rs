//! Palettes with error compensation: indices chosen for the error of the outputs, not of the weights.
//!
//! The error to keep small is `d^T H d` of every row, `d` the error of its weights and `H` the second moments of the inputs
//! ([`Moments`]). Three steps, each of which may be the last:
//!
//! 1. A palette by exact k-means.
//! 2. Indices in GPTQ's order: each weight goes to its nearest entry, and the weights after it take up its error
//!    (Frantar et al. 2022), with a palette in the place of a grid.
//! 3. Rounds of coordinate descent on the indices (each weight to the entry that is best given all others) and of a new
//!    palette, the least-squares solution for the indices. Both lower the error; rounding the palette to fp16 may raise it,
//!    and the best round is kept.
//!
//! Sums are taken in a fixed order, and no element of a result is a sum whose order depends on the machine.

use half::f16;

use super::error::{Error, Result};
use super::moments::Moments;
use super::palette::{GroupResult, Lut, Scratch};
use super::stats::ErrorStats;

/// Passes over the inputs of a round of coordinate descent, at most.
const PASSES: usize = 4;

/// Weight of the old entry in the least-squares palette, relative to the mean diagonal: decides the entries that no weight
/// has, and nothing else.
const RIDGE: f64 = 1e-9;

/// What compensation is given beside the weights.
#[derive(Debug, Clone, Copy)]
pub struct Compensation<'a> {
    /// Second moments of the inputs.
    pub moments: &'a Moments,
    /// Importance of each input for the first palette; alike when `None`.
    pub importance: Option<&'a [f32]>,
    /// Importance of each row of the group for the palettes; alike when `None`. (A row's own indices do not depend on it.)
    pub rows: Option<&'a [f32]>,
    /// Rounds of step 3.
    pub rounds: usize,
}

/// Palettizes one group of whole rows of `moments.inputs()` weights. `indices` has the group's length.
///
/// `weighted_sse` of the result is the sum of `d^T H d` over the rows, each times its importance.
///
/// # Errors
/// As [`palettize_group`](super::palettize_group); a group that is not whole rows.
pub fn palettize_compensated(
    group: &[f16],
    nbits: u8,
    with: &Compensation<'_>,
    scratch: &mut Scratch,
    indices: &mut [u8],
) -> Result<GroupResult> {
    let n = with.moments.inputs();
    if group.is_empty() || !group.len().is_multiple_of(n) {
        return Err(Error::NotDivisible {
            what: "weights of a group",
            len: group.len(),
            group: n,
        });
    }
    if indices.len() != group.len() {
        return Err(Error::Length {
            what: "indices",
            expected: group.len(),
            got: indices.len(),
        });
    }
    let first = first_palette(group, nbits, with, scratch)?;
    let mut state = State::new(group, with, &first);
    state.propagate();
    let mut best = state.clone_choice();
    let mut least = state.gradient();
    if with.rounds > 0 {
        state.descend(&mut least);
        best = state.clone_choice();
    }
    for _ in 1..with.rounds {
        state.fit_palette(nbits);
        let mut error = state.gradient();
        state.descend(&mut error);
        if error >= least {
            break;
        }
        (least, best) = (error, state.clone_choice());
    }
    let (lut, codes) = best;
    Ok(state.finish(group, nbits, &lut, &codes, least, indices))
}

fn first_palette(
    group: &[f16],
    nbits: u8,
    with: &Compensation<'_>,
    scratch: &mut Scratch,
) -> Result<Lut> {
    let weights = element_importance(group.len(), with)?;
    scratch.histogram.clear();
    match weights {
        None => scratch.histogram.add(group)?,
        Some(weights) => scratch.histogram.add_weighted(group, &weights)?,
    }
    Ok(scratch.fit(nbits)?.lut)
}

/// Importance of every element, or of every input where rows are alike.
fn element_importance(len: usize, with: &Compensation<'_>) -> Result<Option<Vec<f32>>> {
    let n = with.moments.inputs();
    let (inputs, rows) = (with.importance, with.rows);
    for (what, given, expected) in [
        ("importance of the inputs", inputs.map(<[f32]>::len), n),
        ("importance of the rows", rows.map(<[f32]>::len), len / n),
    ] {
        if let Some(got) = given.filter(|got| *got != expected) {
            return Err(Error::Length {
                what,
                expected,
                got,
            });
        }
    }
    Ok(spread(inputs, rows, n))
}

/// Importance of every element of rows of `n` weights, or of every input where rows are alike: the product of its input's
/// and its row's.
pub fn spread(inputs: Option<&[f32]>, rows: Option<&[f32]>, n: usize) -> Option<Vec<f32>> {
    let Some(rows) = rows else {
        return inputs.map(<[f32]>::to_vec);
    };
    let mut out = Vec::with_capacity(rows.len() * n);
    for &row in rows {
        match inputs {
            Some(inputs) => out.extend(inputs.iter().map(|input| input * row)),
            None => out.extend(std::iter::repeat_n(row, n)),
        }
    }
    Some(out)
}

/// A group at work: weights, entries and gradients row-major, inputs in the order of the moments.
struct State<'a> {
    moments: &'a Moments,
    n: usize,
    rows: Vec<f32>,
    weights: Vec<f32>,
    /// Ascending.
    lut: Vec<f32>,
    /// Halfway between neighbours of `lut`.
    middles: Vec<f32>,
    codes: Vec<u8>,
    /// `H d` of every row, `d` the stored value less the weight.
    gradient: Vec<f32>,
}

impl<'a> State<'a> {
    fn new(group: &[f16], with: &Compensation<'a>, lut: &Lut) -> Self {
        let n = with.moments.inputs();
        let order = with.moments.order();
        let ordered = group
            .chunks_exact(n)
            .flat_map(|row| order.iter().map(|&input| row[input as usize].to_f32()));
        let mut state = State {
            moments: with.moments,
            n,
            rows: match with.rows {
                Some(rows) => rows.to_vec(),
                None => vec![1.0; group.len() / n],
            },
            weights: ordered.collect(),
            lut: Vec::new(),
            middles: Vec::new(),
            codes: vec![0; group.len()],
            gradient: vec![0.0; group.len()],
        };
        let used = &lut.entries()[..lut.used()];
        state.set_lut(used.iter().map(|v| v.to_f32()).collect());
        state
    }

    fn set_lut(&mut self, lut: Vec<f32>) {
        self.middles = lut.windows(2).map(|p| p[0] + (p[1] - p[0]) / 2.0).collect();
        self.lut = lut;
    }

    fn clone_choice(&self) -> (Vec<f32>, Vec<u8>) {
        (self.lut.clone(), self.codes.clone())
    }

    /// Step 2: each weight to its nearest entry; the ones after it take up the error.
    fn propagate(&mut self) {
        let n = self.n;
        let mut targets = self.weights.clone();
        for j in 0..n {
            let pull = self.moments.pull(j);
            for (row, codes) in targets
                .chunks_exact_mut(n)
                .zip(self.codes.chunks_exact_mut(n))
            {
                let code = nearest(&self.middles, row[j]);
                codes[j] = code as u8;
                let error = row[j] - self.lut[code];
                for (target, pull) in row[j + 1..].iter_mut().zip(pull) {
                    *target -= error * pull;
                }
            }
        }
    }

    /// Computes the gradient anew; returns the error, the weighted sum of `d^T H d`.
    fn gradient(&mut self) -> f64 {
        let n = self.n;
        self.gradient.fill(0.0);
        for j in 0..n {
            let moments = self.moments.row(j);
            for (r, gradient) in self.gradient.chunks_exact_mut(n).enumerate() {
                let at = r * n + j;
                let d = self.lut[usize::from(self.codes[at])] - self.weights[at];
                for (g, h) in gradient.iter_mut().zip(moments) {
                    *g += d * h;
                }
            }
        }
        let mut error = 0.0;
        for (r, &weight) in self.rows.iter().enumerate() {
            let mut of_row = 0.0;
            for at in r * n..(r + 1) * n {
                let d = self.lut[usize::from(self.codes[at])] - self.weights[at];
                of_row += f64::from(d) * f64::from(self.gradient[at]);
            }
            error += f64::from(weight) * of_row;
        }
        error.max(0.0)
    }

    /// Each weight in turn to the entry that is best while the others stay, until nothing changes or [`PASSES`] are
    /// done. Takes what that gains off `error`.
    fn descend(&mut self, error: &mut f64) {
        let n = self.n;
        for _ in 0..PASSES {
            let mut gained = 0.0;
            for j in 0..n {
                let moments = self.moments.row(j);
                let own = moments[j];
                for (r, gradient) in self.gradient.chunks_exact_mut(n).enumerate() {
                    let code = &mut self.codes[r * n + j];
                    let old = self.lut[usize::from(*code)];
                    let best = old - gradient[j] / own;
                    let choice = nearest(&self.middles, best);
                    if choice == usize::from(*code) {
                        continue;
                    }
                    *code = choice as u8;
                    let step = self.lut[choice] - old;
                    let (before, after) =
                        (f64::from(old - best), f64::from(self.lut[choice] - best));
                    gained += f64::from(self.rows[r])
                        * f64::from(own)
                        * (before * before - after * after);
                    for (g, h) in gradient.iter_mut().zip(moments) {
                        *g += step * h;
                    }
                }
            }
            *error -= gained;
            if gained <= 0.0 {
                break;
            }
        }
        *error = error.max(0.0);
    }

    /// The palette with the least error for the indices as they are, rounded to fp16 and sorted.
    fn fit_palette(&mut self, nbits: u8) {
        let (n, k) = (self.n, self.lut.len());
        let mut matrix = vec![0f64; k * k];
        let mut right = vec![0f64; k];
        // For a row with indices a: sums over inputs j with a_j = l of row j of H.
        let mut by_entry = vec![0f32; k * n];
        let mut of_weights = vec![0f32; n];
        for (r, &importance) in self.rows.iter().enumerate() {
            let importance = f64::from(importance);
            let codes = &self.codes[r * n..(r + 1) * n];
            by_entry.fill(0.0);
            of_weights.fill(0.0);
            for (j, &code) in codes.iter().enumerate() {
                let weight = self.weights[r * n + j];
                let entry = &mut by_entry[usize::from(code) * n..][..n];
                let sums = entry.iter_mut().zip(of_weights.iter_mut());
                for ((sum, of_weight), h) in sums.zip(self.moments.row(j)) {
                    *sum += h;
                    *of_weight += weight * h;
                }
            }
            for (i, &code) in codes.iter().enumerate() {
                let code = usize::from(code);
                right[code] += importance * f64::from(of_weights[i]);
                for l in 0..k {
                    matrix[code * k + l] += importance * f64::from(by_entry[l * n + i]);
                }
            }
        }
        let ridge = RIDGE * (0..k).map(|i| matrix[i * k + i]).sum::<f64>() / k as f64;
        for i in 0..k {
            matrix[i * k + i] += ridge;
            right[i] += ridge * f64::from(self.lut[i]);
        }
        let Some(entries) = solve(matrix, right) else {
            return;
        };
        let rounded: Vec<f16> = entries.iter().map(|v| f16::from_f64(*v)).collect();
        if rounded.iter().any(|v| !v.is_finite()) {
            return;
        }
        let lut = Lut::from_entries(rounded.iter().copied(), nbits);
        let place = |value: &f16| lut.entries()[..lut.used()].partition_point(|v| v < value) as u8;
        let places: Vec<u8> = rounded.iter().map(place).collect();
        self.codes
            .iter_mut()
            .for_each(|c| *c = places[usize::from(*c)]);
        self.set_lut(
            lut.entries()[..lut.used()]
                .iter()
                .map(|v| v.to_f32())
                .collect(),
        );
    }

    /// The result, with indices in the weights' own order.
    fn finish(
        &self,
        group: &[f16],
        nbits: u8,
        lut: &[f32],
        codes: &[u8],
        weighted_sse: f64,
        indices: &mut [u8],
    ) -> GroupResult {
        let n = self.n;
        let mut stats = ErrorStats::default();
        for (out, codes) in indices.chunks_exact_mut(n).zip(codes.chunks_exact(n)) {
            for (&code, &input) in codes.iter().zip(self.moments.order()) {
                out[input as usize] = code;
            }
        }
        for (w, &index) in group.iter().zip(indices.iter()) {
            stats.add(w.to_f64(), f64::from(lut[usize::from(index)]), 1);
        }
        let entries = lut.iter().map(|v| f16::from_f32(*v));
        GroupResult {
            lut: Lut::from_entries(entries, nbits),
            stats,
            weighted_sse,
        }
    }
}

/// The nearest entry by the middles between entries; at a tie the lower one.
#[inline]
fn nearest(middles: &[f32], value: f32) -> usize {
    if middles.len() < 32 {
        return middles.iter().map(|m| usize::from(*m < value)).sum();
    }
    middles.partition_point(|m| *m < value)
}

/// Solves a symmetric positive definite system; `None` when it is not.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let n = b.len();
    for j in 0..n {
        for i in j..n {
            let sum: f64 = (0..j).map(|k| a[i * n + k] * a[j * n + k]).sum();
            let rest = a[i * n + j] - sum;
            if i == j {
                if rest.is_nan() || rest <= 0.0 {
                    return None;
                }
                a[j * n + j] = rest.sqrt();
            } else {
                a[i * n + j] = rest / a[j * n + j];
            }
        }
    }
    for i in 0..n {
        let sum: f64 = (0..i).map(|k| a[i * n + k] * b[k]).sum();
        b[i] = (b[i] - sum) / a[i * n + i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|k| a[k * n + i] * b[k]).sum();
        b[i] = (b[i] - sum) / a[i * n + i];
    }
    Some(b)
}

#[cfg(test)]
mod tests {
    use super::super::moments::tests::{correlated, of};
    use super::super::palette::palettize_group;
    use super::super::scheme::PALETTE_BITS;
    use super::*;

    const N: usize = 48;

    /// Rows of weights with a few different spreads.
    fn weights(rows: usize, n: usize) -> Vec<f16> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..rows * n)
            .map(|i| f16::from_f32((next() + next() + next()) * (1.0 + (i % n % 5) as f32)))
            .collect()
    }

    /// The error from the definition, in f64.
    fn error(group: &[f16], lut: &Lut, indices: &[u8], moments: &Moments, rows: &[f32]) -> f64 {
        let n = moments.inputs();
        let mut total = 0.0;
        for (r, (row, codes)) in group.chunks(n).zip(indices.chunks(n)).enumerate() {
            let d: Vec<f64> = moments
                .order()
                .iter()
                .map(|&i| {
                    let i = i as usize;
                    lut.entries()[usize::from(codes[i])].to_f64() - row[i].to_f64()
                })
                .collect();
            for i in 0..n {
                for j in 0..n {
                    total += f64::from(rows[r]) * d[i] * d[j] * f64::from(moments.row(i)[j]);
                }
            }
        }
        total
    }

    /// f32 gradients over 48 terms.
    const F32_SUMS: f64 = 1e-4;

    #[test]
    fn every_step_lowers_the_error_it_says_it_has() {
        let moments = of(&correlated(N, 400), 0.01).unwrap();
        let group = weights(8, N);
        let importance = moments.diagonal();
        let rows: Vec<f32> = (0..8).map(|r| 1.0 + r as f32 / 4.0).collect();
        for nbits in PALETTE_BITS {
            let mut scratch = Scratch::new();
            let mut indices = vec![0; group.len()];
            let plain = palettize_group(&group, nbits, None, &mut scratch, &mut indices).unwrap();
            let mut last = error(&group, &plain.lut, &indices, &moments, &rows);
            for rounds in [0, 1, 4] {
                let with = Compensation {
                    moments: &moments,
                    importance: Some(&importance),
                    rows: Some(&rows),
                    rounds,
                };
                let got = palettize_compensated(&group, nbits, &with, &mut scratch, &mut indices)
                    .unwrap();
                let seen = error(&group, &got.lut, &indices, &moments, &rows);
                assert!(
                    (seen - got.weighted_sse).abs() <= F32_SUMS * seen,
                    "{nbits} bits"
                );
                // At 8 bits most of the weights have an entry of their own.
                let lower = seen < last || (nbits > 4 && seen <= last * (1.0 + F32_SUMS));
                assert!(
                    lower,
                    "{nbits} bits, {rounds} rounds: {seen:e} after {last:e}"
                );
                assert!(indices.iter().all(|i| usize::from(*i) < got.lut.used()));
                assert_eq!(got.stats.n as usize, group.len());
                last = seen;
            }
        }
    }

    #[test]
    fn uncorrelated_inputs_leave_nothing_to_compensate() {
        let mut diagonal = vec![0f32; N * N];
        (0..N).for_each(|i| diagonal[i * (N + 1)] = 1.0);
        let moments = of(&diagonal, 0.01).unwrap();
        let group = weights(4, N);
        let with = Compensation {
            moments: &moments,
            importance: None,
            rows: None,
            rounds: 0,
        };
        let (mut scratch, mut ours, mut plain) = (Scratch::new(), vec![0; 4 * N], vec![0; 4 * N]);
        let a = palettize_compensated(&group, 3, &with, &mut scratch, &mut ours).unwrap();
        let b = palettize_group(&group, 3, None, &mut scratch, &mut plain).unwrap();
        assert_eq!((a.lut, ours), (b.lut, plain));
        assert_eq!(a.stats, b.stats);
    }

    /// Two weights whose inputs are equal: only their sum matters, and one bit each can make it.
    #[test]
    fn the_error_of_one_weight_is_taken_up_by_the_next() {
        let moments = of(&[1.0, 1.0, 1.0, 1.0], 1e-6).unwrap();
        let group: Vec<f16> = [0.45f32, 0.45, 0.0, 1.0, 1.0, 0.0]
            .map(f16::from_f32)
            .to_vec();
        let with = Compensation {
            moments: &moments,
            importance: None,
            rows: None,
            rounds: 0,
        };
        let mut indices = vec![0; 6];
        let got =
            palettize_compensated(&group, 1, &with, &mut Scratch::new(), &mut indices).unwrap();
        let value = |i: usize| got.lut.entries()[usize::from(indices[i])].to_f32();
        // Alone both would go to the low entry.
        assert!(
            (value(0) - value(1)).abs() > 0.5,
            "{} {}",
            value(0),
            value(1)
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let moments = of(&[1.0, 0.0, 0.0, 1.0], 0.01).unwrap();
        let mut with = Compensation {
            moments: &moments,
            importance: None,
            rows: None,
            rounds: 1,
        };
        let run = |with: &Compensation<'_>, n: usize| {
            let group = vec![f16::ONE; n];
            palettize_compensated(&group, 4, with, &mut Scratch::new(), &mut vec![0; n])
        };
        assert!(matches!(run(&with, 3), Err(Error::NotDivisible { .. })));
        assert!(matches!(run(&with, 0), Err(Error::NotDivisible { .. })));
        with.rows = Some(&[1.0]);
        assert!(matches!(run(&with, 4), Err(Error::Length { .. })));
        with.rows = None;
        with.importance = Some(&[1.0]);
        assert!(matches!(run(&with, 4), Err(Error::Length { .. })));
        with.importance = None;
        // One value: one entry, no error, and a palette that stays.
        let one = run(&with, 4).unwrap();
        assert_eq!((one.lut.used(), one.stats.sse), (1, 0.0));
    }
}
