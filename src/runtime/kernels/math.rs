//! Scalar functions that the standard library lacks, and rounding to fp16.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// The error function, to about 1e-15.
pub(crate) fn erf(x: f64) -> f64 {
    // erf(x) = 2/sqrt(pi) * exp(-x^2) * sum of 2^n x^(2n+1) / (2n+1)!!: all terms have one sign, nothing cancels.
    if x.abs() > 6.0 {
        return x.signum();
    }
    let mut term = x;
    let mut sum = x;
    let mut odd = 1.0;
    while term.abs() > 1e-17 * sum.abs() {
        odd += 2.0;
        term *= 2.0 * x * x / odd;
        sum += term;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

/// `1 / (1 + exp(-x))`.
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

const ROUND_BLOCK: usize = 256;

/// Rounds every value to fp16, nearest even. Returns how many became infinite that were not.
pub(crate) fn round_f16(values: &mut [f32]) -> usize {
    let mut block = [f16::ZERO; ROUND_BLOCK];
    let mut overflows = 0;
    for values in values.chunks_mut(ROUND_BLOCK) {
        let block = &mut block[..values.len()];
        block.convert_from_f32_slice(values);
        let before = values.iter().filter(|v| v.is_infinite()).count();
        block.convert_to_f32_slice(values);
        overflows += values.iter().filter(|v| v.is_infinite()).count() - before;
    }
    overflows
}

/// Whether every value is an fp16 value.
pub(crate) fn is_f16(values: &[f32]) -> bool {
    let mut block = [f16::ZERO; ROUND_BLOCK];
    let mut back = [0f32; ROUND_BLOCK];
    values.chunks(ROUND_BLOCK).all(|values| {
        let block = &mut block[..values.len()];
        let back = &mut back[..values.len()];
        block.convert_from_f32_slice(values);
        block.convert_to_f32_slice(back);
        values
            .iter()
            .zip(back.iter())
            .all(|(a, b)| a.to_bits() == b.to_bits())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allowed difference of erf from tabulated values, which have 10 digits.
    const ERF_TOLERANCE: f64 = 1e-10;

    #[test]
    fn erf_matches_its_table() {
        for (x, want) in [
            (0.0, 0.0),
            (0.1, 0.1124629160),
            (0.5, 0.5204998778),
            (1.0, 0.8427007929),
            (2.0, 0.9953222650),
            (3.5, 0.9999992569),
            (7.0, 1.0),
        ] {
            assert!((erf(x) - want).abs() < ERF_TOLERANCE);
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn rounding_counts_finite_values_that_overflow() {
        let mut v = vec![1.0 + 1.0 / 4096.0, 65519.0, 65520.0, -1e9, f32::INFINITY];
        assert!(!is_f16(&v));
        assert_eq!(round_f16(&mut v), 2);
        assert_eq!(
            v,
            [
                1.0,
                65504.0,
                f32::INFINITY,
                f32::NEG_INFINITY,
                f32::INFINITY
            ]
        );
        assert!(is_f16(&v));
        let mut long: Vec<f32> = (0..1000).map(|i| i as f32 / 7.0).collect();
        let want: Vec<f32> = long.iter().map(|&v| f16::from_f32(v).to_f32()).collect();
        assert_eq!(round_f16(&mut long), 0);
        assert_eq!(long, want);
    }
}
