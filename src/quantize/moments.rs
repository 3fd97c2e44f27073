//! Second moments of a projection's inputs, prepared for error compensation.
//!
//! With inputs `x`, the squared error of an output whose weights are off by `d` is on average `d^T H d`, where `H = E[x x^T]`.
//! Compensation needs two things of `H`: itself, and the upper triangular factor `U` of its inverse, `H^-1 = U^T U`, whose
//! row `j` says how the error of input `j` is made up for by the inputs after it (Frantar et al. 2022, "GPTQ"). `U` is
//! the inverse of the factor of `H = R R^T` with `R` upper triangular, so `H` itself is never inverted.
//!
//! All sums are f64 in a fixed order; work is split over rows, never over the terms of a sum.

use rayon::prelude::*;

use super::error::{Error, Result};

/// Damping that [`Moments::new`] starts with where the caller has no better: a hundredth of the mean diagonal element.
pub const DAMPING: f64 = 0.01;

/// Factor on the damping when `H` turns out not to be positive definite, and how often it is tried.
const DAMPING_STEP: f64 = 10.0;
const DAMPING_TRIES: usize = 4;

/// `H`, damped, with its inputs in the order they are quantized in, and the factor of its inverse.
#[derive(Debug, Clone)]
pub struct Moments {
    n: usize,
    order: Vec<u32>,
    matrix: Vec<f32>,
    factor: Vec<f32>,
}

impl Moments {
    /// Prepares the symmetric `n x n` matrix with these elements. The inputs are ordered by their second moment, largest
    /// first (equal ones as they come), so that those which matter most are quantized while the most others can make up
    /// for them. `damping` times the mean of the diagonal is added to it.
    ///
    /// # Errors
    /// No inputs, an element that is not finite, or a matrix that is far from positive semidefinite.
    pub fn new(
        n: usize,
        element: impl Fn(usize, usize) -> f32 + Sync,
        damping: f64,
    ) -> Result<Self> {
        if n == 0 {
            return Err(Error::Empty);
        }
        let bad = |i: usize| (0..n).find(|&j| !element(i, j).is_finite()).map(|j| (i, j));
        if let Some((i, j)) = (0..n).into_par_iter().find_map_first(bad) {
            return Err(Error::NotFinite {
                index: i * n + j,
                value: element(i, j),
            });
        }
        let mut order: Vec<u32> = (0..n as u32).collect();
        let diagonal = |i: u32| element(i as usize, i as usize);
        order.sort_by(|&a, &b| diagonal(b).total_cmp(&diagonal(a)));
        let mean = order.iter().map(|&i| f64::from(diagonal(i))).sum::<f64>() / n as f64;
        // All inputs zero: any weights do; with the unit matrix the nearest ones are taken.
        let unit = if mean > 0.0 { mean } else { 1.0 };
        let mut damping = damping.max(f64::EPSILON);
        for _ in 0..DAMPING_TRIES {
            let added = damping * unit;
            if let Some(factor) = inverse_factor(&element, n, &order, added) {
                let matrix = ordered(&element, n, &order, added);
                return Ok(Moments {
                    n,
                    order,
                    matrix,
                    factor,
                });
            }
            damping *= DAMPING_STEP;
        }
        Err(Error::NotPositive { n })
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.n
    }

    /// The inputs in the order they are quantized in.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// Row `j` of the damped `H`, both axes in that order.
    pub fn row(&self, j: usize) -> &[f32] {
        &self.matrix[j * self.n..(j + 1) * self.n]
    }

    /// `U[j][k] / U[j][j]` for the inputs `k` after `j`: what an error of one at `j` takes off the weights there.
    pub fn pull(&self, j: usize) -> &[f32] {
        &self.factor[j * self.n + j + 1..(j + 1) * self.n]
    }

    /// The second moment of every input, damped, in the inputs' own order.
    #[cfg(test)]
    pub(super) fn diagonal(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n];
        for (j, &input) in self.order.iter().enumerate() {
            out[input as usize] = self.row(j)[j];
        }
        out
    }
}

fn ordered(
    element: &(impl Fn(usize, usize) -> f32 + Sync),
    n: usize,
    order: &[u32],
    added: f64,
) -> Vec<f32> {
    let mut out = vec![0f32; n * n];
    out.par_chunks_exact_mut(n)
        .enumerate()
        .for_each(|(j, row)| {
            for (to, &k) in row.iter_mut().zip(order) {
                *to = element(order[j] as usize, k as usize);
            }
            row[j] = (f64::from(row[j]) + added) as f32;
        });
    out
}

/// The rows of `U`, each divided by its diagonal element; `None` when the matrix is not positive definite.
fn inverse_factor(
    element: &(impl Fn(usize, usize) -> f32 + Sync),
    n: usize,
    order: &[u32],
    added: f64,
) -> Option<Vec<f32>> {
    // With both axes reversed, `R R^T` becomes an ordinary Cholesky factorization.
    let reversed: Vec<u32> = order.iter().rev().copied().collect();
    let mut lower: Vec<f64> = Vec::with_capacity(n * n);
    for (i, &a) in reversed.iter().enumerate() {
        let row = reversed
            .iter()
            .map(|&b| f64::from(element(a as usize, b as usize)));
        lower.extend(row);
        lower[i * n + i] += added;
    }
    cholesky(&mut lower, n)?;
    let columns = inverse_columns(&lower, n);
    // U is the inverse of the lower factor with both axes reversed.
    let mut factor = vec![0f32; n * n];
    factor
        .par_chunks_exact_mut(n)
        .enumerate()
        .for_each(|(j, row)| {
            let at = n - 1 - j;
            let scale = 1.0 / columns[at * n + at];
            for (k, to) in row.iter_mut().enumerate().skip(j) {
                *to = (columns[(n - 1 - k) * n + at] * scale) as f32;
            }
        });
    Some(factor)
}

/// Columns that are eliminated at a time.
const PANEL: usize = 64;

/// The lower Cholesky factor, in place of the lower triangle of a symmetric matrix.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for first in (0..n).step_by(PANEL) {
        let end = n.min(first + PANEL);
        for j in first..end {
            let (above, rest) = a.split_at_mut((j + 1) * n);
            let pivot_row = &mut above[j * n..];
            let pivot = pivot_row[j] - square_sum(&pivot_row[first..j]);
            if pivot.is_nan() || pivot <= 0.0 {
                return None;
            }
            let root = pivot.sqrt();
            pivot_row[j] = root;
            let pivot_row = &*pivot_row;
            rest.par_chunks_exact_mut(n).for_each(|row| {
                row[j] = (row[j] - dot(&row[first..j], &pivot_row[first..j])) / root;
            });
        }
        // The rest of the triangle, less what these columns explain.
        let panel: Vec<f64> = a[end * n..]
            .chunks_exact(n)
            .flat_map(|row| row[first..end].iter().copied())
            .collect();
        let width = end - first;
        let below = a[end * n..].par_chunks_exact_mut(n).enumerate();
        below.for_each(|(i, row)| {
            let own: Vec<f64> = row[first..end].to_vec();
            for (k, to) in row[end..=end + i].iter_mut().enumerate() {
                *to -= dot(&own, &panel[k * width..(k + 1) * width]);
            }
        });
    }
    Some(())
}

/// Column `c` of the inverse of a lower triangular matrix at `[c * n..]`; elements above the diagonal are zero.
fn inverse_columns(lower: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0f64; n * n];
    out.par_chunks_exact_mut(n)
        .enumerate()
        .for_each(|(c, column)| {
            column[c] = 1.0 / lower[c * n + c];
            for i in c + 1..n {
                let row = &lower[i * n..][..=i];
                column[i] = -dot(&row[c..i], &column[c..i]) / row[i];
            }
        });
    out
}

/// Lanes of a sum: enough for the compiler to vectorize, one fixed order.
const LANES: usize = 8;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_whole.iter().zip(b_whole) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

fn square_sum(a: &[f64]) -> f64 {
    dot(a, a)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `E[x x^T]` of `samples` correlated inputs with different sizes.
    pub fn correlated(n: usize, samples: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            ((state >> 33) as f64 / (1u64 << 31) as f64) * 2.0 - 1.0
        };
        let mut sums = vec![0f64; n * n];
        for _ in 0..samples {
            let common = next();
            let x: Vec<f64> = (0..n)
                .map(|i| (next() + common) * (1.0 + (i * 7 % n) as f64 / 4.0))
                .collect();
            for i in 0..n {
                for j in 0..n {
                    sums[i * n + j] += x[i] * x[j] / samples as f64;
                }
            }
        }
        sums.into_iter().map(|v| v as f32).collect()
    }

    /// Those of a whole matrix, row-major.
    pub fn of(matrix: &[f32], damping: f64) -> Result<Moments> {
        let n = matrix.len().isqrt();
        Moments::new(n, |i, j| matrix[i * n + j], damping)
    }

    /// f32 storage of a factor of a well-conditioned matrix.
    const FACTOR: f64 = 1e-4;

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        // Two panels and a bit.
        for n in [1, 5, 64, 150] {
            let moments = correlated(n, 4 * n);
            let prepared = of(&moments, 0.05).unwrap();
            // U = D * unit, D from: H^-1 = U^T U means U H U^T = 1, so with unit rows u_j: u_i H u_j = 0 for i != j.
            let unit = |j: usize| {
                let mut row = vec![0f64; n];
                row[j] = 1.0;
                for (k, v) in prepared.pull(j).iter().enumerate() {
                    row[j + 1 + k] = f64::from(*v);
                }
                row
            };
            let product = |a: &[f64], b: &[f64]| -> f64 {
                (0..n)
                    .map(|i| {
                        let row = prepared.row(i).iter().zip(b);
                        a[i] * row.map(|(h, y)| f64::from(*h) * y).sum::<f64>()
                    })
                    .sum()
            };
            for i in 0..n {
                let own = product(&unit(i), &unit(i));
                assert!(own > 0.0);
                for j in 0..i {
                    let scale = (own * product(&unit(j), &unit(j))).sqrt();
                    let cross = product(&unit(i), &unit(j)).abs() / scale;
                    assert!(cross < FACTOR, "{n}: rows {i} and {j}: {cross:e}");
                }
            }
        }
    }

    #[test]
    fn larger_inputs_come_first_and_the_diagonal_is_damped() {
        let moments = [1.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 2.0];
        let prepared = of(&moments, 0.25).unwrap();
        assert_eq!(prepared.order(), [1, 2, 0]);
        assert_eq!(prepared.diagonal(), [2.0, 10.0, 3.0]);
        assert_eq!(prepared.row(0), [10.0, 0.0, 0.0]);
        assert!(prepared.pull(0).iter().all(|v| *v == 0.0));
    }

    #[test]
    fn what_cannot_be_moments_is_refused() {
        assert_eq!(of(&[], 0.01).unwrap_err(), Error::Empty);
        let error = of(&[1.0, f32::NAN, 0.0, 1.0], 0.01).unwrap_err();
        assert!(
            matches!(error, Error::NotFinite { index: 1, .. }),
            "{error}"
        );
        let error = of(&[1.0, 90.0, 90.0, 1.0], 0.01).unwrap_err();
        assert!(matches!(error, Error::NotPositive { n: 2 }), "{error}");
        // Inputs that never occur, and fewer samples than inputs, are no error.
        let none = of(&[0.0; 9], 0.01).unwrap();
        assert_eq!(none.diagonal(), [0.01; 3]);
        assert!(of(&correlated(20, 3), 0.01).is_ok());
    }
}
