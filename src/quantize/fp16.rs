//! Narrowing to fp16.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::error::{Error, Result};

/// Rounds `from` to the nearest fp16, ties to even, into `to` (same length). Underflow goes to the
/// nearest subnormal or zero. NaN, infinity, and a finite value that would become an infinity
/// (65520 and above) are errors with the index.
pub fn narrow(from: &[f32], to: &mut [f16]) -> Result<()> {
    if from.len() != to.len() {
        return Err(Error::Length {
            what: "fp16 output",
            expected: from.len(),
            got: to.len(),
        });
    }
    to.convert_from_f32_slice(from);
    match first_not_finite(to) {
        None => Ok(()),
        Some(index) if from[index].is_finite() => Err(Error::Fp16Range {
            index,
            value: from[index],
        }),
        Some(index) => Err(Error::NotFinite {
            index,
            value: from[index],
        }),
    }
}

/// The fp16 nearest to a finite `x` within fp16 range, ties to even. `half`'s own conversions from f64
/// round twice or drop the low bits, depending on the CPU.
#[inline(always)]
pub(super) fn nearest(x: f64) -> f16 {
    // Exponent of the last fp16 place: 10 below that of x, at least the subnormals' -24.
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i64 - 1023).max(-14) - 10;
    let power = |e: i64| f64::from_bits(((1023 + e) as u64) << 52);
    let whole = (x * power(-exponent)).round_ties_even();
    f16::from_f64(whole * power(exponent))
}

/// Position of the first NaN or infinity.
pub(super) fn first_not_finite(values: &[f16]) -> Option<usize> {
    const BLOCK: usize = 1024;
    let blocks = values.chunks(BLOCK);
    for (b, block) in blocks.enumerate() {
        // A fold without an exit vectorizes; the search follows only where it must.
        if block.iter().fold(false, |bad, v| bad | !v.is_finite()) {
            let within = block.iter().position(|v| !v.is_finite());
            return within.map(|i| b * BLOCK + i);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_even_and_keeps_subnormals() {
        let from = [2049.0, 2051.0, 5.96e-8, 2.0e-8, -0.0, 65519.9];
        let mut to = [f16::ZERO; 6];
        narrow(&from, &mut to).unwrap();
        let bits: Vec<u16> = to.iter().map(|v| v.to_bits()).collect();
        assert_eq!(bits, [0x6800, 0x6802, 1, 0, 0x8000, 0x7bff]);
    }

    #[test]
    fn f64_rounds_once() {
        let ulp = 2f64.powi(-10);
        for (x, bits) in [
            (1.0 + ulp / 2.0, 0x3c00),
            (1.0 + ulp / 2.0 + 2f64.powi(-52), 0x3c01),
            (1.0 + 1.5 * ulp - 2f64.powi(-52), 0x3c01),
            (1.0 + 1.5 * ulp, 0x3c02),
            (2.0 - 2f64.powi(-52), 0x4000),
            (-2f64.powi(-25), 0x8000),
            (-2f64.powi(-25) * (1.0 + 2f64.powi(-52)), 0x8001),
            (2f64.powi(-14) - 2f64.powi(-40), 0x0400),
            (0.0, 0),
            (65504.0, 0x7bff),
        ] {
            assert_eq!(nearest(x).to_bits(), bits, "{x:e}");
        }
        for bits in (0..=u16::MAX).filter(|b| f16::from_bits(*b).is_finite()) {
            assert_eq!(nearest(f16::from_bits(bits).to_f64()).to_bits(), bits);
        }
    }

    #[test]
    fn says_where_it_overflows() {
        let mut from = vec![0.5f32; 3000];
        let mut to = vec![f16::ZERO; 3000];
        from[2999] = -65520.0;
        let range = Error::Fp16Range {
            index: 2999,
            value: -65520.0,
        };
        assert_eq!(narrow(&from, &mut to), Err(range));
        from[1500] = f32::INFINITY;
        let error = narrow(&from, &mut to).unwrap_err();
        assert!(matches!(error, Error::NotFinite { index: 1500, .. }));
        from[3] = f32::NAN;
        let error = narrow(&from, &mut to).unwrap_err();
        assert!(matches!(error, Error::NotFinite { index: 3, .. }));
        assert!(narrow(&from, &mut to[1..]).is_err());
    }
}
