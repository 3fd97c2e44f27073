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

/// `e^x`, within two units in the last place; 0 from -104 down. Without branches, so that loops of it use wide registers,
/// and of basic arithmetic only, so that it gives the same bits on every CPU.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Added and subtracted again it rounds to an integer, which stands in its lower bits in between.
    const ROUND: f32 = 12_582_912.0;
    /// The upper bits of ln 2, and the rest.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // Beyond these bounds the result is 0 or infinite; NaN passes.
    let x = x.clamp(-104.0, 89.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let whole = rounded - ROUND;
    let r = (x - whole * LN2[0]) - whole * LN2[1];
    // e^r by its polynomial of degree 6 on |r| <= ln 2 / 2 (Cephes, expf).
    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p * r + c;
    }
    let p = p * r * r + r + 1.0;
    // In two steps, each within the range of the exponent.
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n - half)
}

/// `2^n` for n from -126 to 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// The hyperbolic tangent, within three units in the last place; see [`exp`].
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let far = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    // Near 0 by a polynomial (Cephes, tanhf).
    let z = a * a;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_909e-2, -5.373_971_4e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = p * z + c;
    }
    let near = p * z * a + a;
    let value = if a < 0.625 { near } else { far };
    value.copysign(x)
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
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

    /// Allowed relative difference of exp and tanh from f64's, and of what is below the least normal number.
    const FUNCTION_TOLERANCE: f64 = 2.5e-7;
    const LEAST: f64 = 1.5e-45;

    #[test]
    fn exp_and_tanh_are_those_of_f64() {
        let close = |got: f32, want: f64| {
            let bound = FUNCTION_TOLERANCE * want.abs() + LEAST;
            (f64::from(got) - want).abs() <= bound
        };
        for i in -1_000_000..=1_000_000 {
            let x = i as f32 * 1.1e-4;
            let e = f64::from(x).exp();
            match e > f64::from(f32::MAX) {
                true => assert!(exp(x) >= f32::MAX * 0.999, "{x}"),
                false => assert!(close(exp(x), e), "exp({x}) = {} not {e}", exp(x)),
            }
            let small = x * 0.1;
            let t = f64::from(small).tanh();
            assert!(
                close(tanh(small), t),
                "tanh({small}) = {} not {t}",
                tanh(small)
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(-104.0), exp(-1e30), exp(f32::NEG_INFINITY)], [0.0; 3]);
        assert_eq!([exp(89.0), exp(f32::INFINITY)], [f32::INFINITY; 2]);
        assert_eq!([tanh(f32::INFINITY), tanh(-50.0)], [1.0, -1.0]);
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert!(tanh(-0.0).is_sign_negative() && tanh(1e-40) == 1e-40);
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
