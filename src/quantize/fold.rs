//! Factors for input channels, so that one palette serves channels of different sizes.
//!
//! Columns of a weight matrix that are multiplied by `s` while their inputs are divided by it give the same outputs.
//! Activation-aware scaling (Lin et al. 2023, "AWQ") enlarges the columns whose inputs are large, so that rounding hurts
//! them less; equalization makes the columns alike. Both are members of `s = r^a * m^-b`, `r` the root mean square of the
//! inputs, `m` that of the column. Factors here are powers of two: the products are exact, and so is the fold.

/// Exponents that are worth a try; none at all first.
pub const CANDIDATES: [Exponents; 8] = [
    Exponents::new(0.0, 0.0),
    Exponents::new(0.5, 0.0),
    Exponents::new(1.0, 0.0),
    Exponents::new(0.0, 0.5),
    Exponents::new(0.0, 1.0),
    Exponents::new(0.5, 0.5),
    Exponents::new(1.0, 0.5),
    Exponents::new(0.5, 1.0),
];

/// Factors are from `2^-8` to `2^8`.
const MAX_EXPONENT: f64 = 8.0;

/// The two exponents of [`factors`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exponents {
    /// Of the inputs.
    pub inputs: f64,
    /// Of the columns, negated.
    pub columns: f64,
}

impl Exponents {
    const fn new(inputs: f64, columns: f64) -> Self {
        Exponents { inputs, columns }
    }
}

/// A power of two for every channel, with a geometric mean near one: `inputs` and `columns` are mean squares. A channel
/// without inputs or without weights has the factor one.
pub fn factors(inputs: &[f64], columns: &[f64], exponents: Exponents) -> Vec<f32> {
    let log = |(&r, &m): (&f64, &f64)| -> Option<f64> {
        let known = r > 0.0 && m > 0.0;
        // Halves, since these are squares.
        known.then(|| (exponents.inputs * r.log2() - exponents.columns * m.log2()) / 2.0)
    };
    let logs: Vec<Option<f64>> = inputs.iter().zip(columns).map(log).collect();
    let known = logs.iter().flatten();
    let mean = known.clone().sum::<f64>() / known.count().max(1) as f64;
    let factor = |log: &Option<f64>| match log {
        Some(log) => {
            let exponent = (log - mean).round_ties_even();
            exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT).exp2() as f32
        }
        None => 1.0,
    };
    logs.iter().map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_follow_inputs_and_columns() {
        let inputs = [16.0, 1.0, 1.0 / 16.0, 0.0];
        let columns = [1.0, 1.0, 1.0, 1.0];
        assert_eq!(
            factors(&inputs, &columns, Exponents::new(1.0, 0.0)),
            [4.0, 1.0, 0.25, 1.0]
        );
        assert_eq!(
            factors(&inputs, &columns, Exponents::new(0.5, 0.0)),
            [2.0, 1.0, 0.5, 1.0]
        );
        assert_eq!(
            factors(&columns, &inputs, Exponents::new(0.0, 1.0)),
            [0.25, 1.0, 4.0, 1.0]
        );
        assert_eq!(factors(&inputs, &columns, CANDIDATES[0]), [1.0; 4]);
    }

    #[test]
    fn factors_are_powers_of_two_within_bounds() {
        let inputs: Vec<f64> = (0..60).map(|i| (f64::from(i) * 1.7 - 50.0).exp()).collect();
        let columns = vec![3.0; 60];
        for exponents in CANDIDATES {
            for f in factors(&inputs, &columns, exponents) {
                assert!((2f32.powi(-8)..=256.0).contains(&f));
                assert_eq!(f.to_bits() & 0x007f_ffff, 0, "{f}");
            }
        }
    }
}
