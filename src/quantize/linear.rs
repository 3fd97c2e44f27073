//! Integers with an fp16 scale; the reader computes `q * scale`.
//!
//! Symmetric ones are those of coremltools' `linear_symmetric` mode: `scale = fp16(max|w| / levels)`,
//! `q = round_half_even(fp16(w / scale))`, clipped to ±levels. Equal to coremltools 9.0 bit for bit, except where its
//! `max - min` overflows fp16 (|w| above 32752), which is computed here without the overflow. The full range has one integer
//! more below zero and lies about it: `scale = fp16(max|w| / (levels + 1/2))`, `q = round_half_even(w / scale)`, clipped.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::error::{Error, Result};
use super::fp16::first_not_finite;
use super::stats::ErrorStats;
use super::wide::{round_half_even, wide};

/// Largest magnitude of symmetric int8.
pub const INT8_LEVELS: i8 = 127;
/// Largest magnitude of symmetric int4.
pub const INT4_LEVELS: i8 = 7;

/// Weights that share a scale to integers of 8 or 4 bits (`nbits`), one per byte, all but the least (`out` has the weights'
/// length). Returns the scale.
pub fn quantize_symmetric(weights: &[f16], nbits: u8, out: &mut [i8]) -> Result<f16> {
    let levels = f32::from(levels(nbits)?);
    quantize(weights, (levels, -levels..=levels), round_to_f16, out)
}

/// The same with all integers that the width has.
pub fn quantize_full(weights: &[f16], nbits: u8, out: &mut [i8]) -> Result<f16> {
    let levels = f32::from(levels(nbits)?);
    let range = -levels - 1.0..=levels;
    quantize(weights, (levels + 0.5, range), |_| (), out)
}

/// Largest integer of a width.
fn levels(nbits: u8) -> Result<i8> {
    match nbits {
        8 => Ok(INT8_LEVELS),
        4 => Ok(INT4_LEVELS),
        _ => Err(Error::LinearBits { nbits }),
    }
}

/// Values that are rounded to fp16 at a time.
const BLOCK: usize = 64;

/// Adds the errors of a row or block that was quantized with `scale` to `stats`.
pub fn add_errors(weights: &[f16], quantized: &[i8], scale: f16, stats: &mut ErrorStats) {
    let scale = scale.to_f32();
    for (weights, quantized) in weights.chunks(BLOCK).zip(quantized.chunks(BLOCK)) {
        let (mut exact, mut stored) = ([0f32; BLOCK], [0f32; BLOCK]);
        let (exact, stored) = (&mut exact[..weights.len()], &mut stored[..weights.len()]);
        weights.convert_to_f32_slice(exact);
        for (s, &q) in stored.iter_mut().zip(quantized) {
            *s = f32::from(q) * scale;
        }
        round_to_f16(stored);
        wide(
            #[inline(always)]
            || stats.add_row((exact, f64::from), (stored, f64::from)),
        );
    }
}

/// Rounds up to [`BLOCK`] values to fp16.
fn round_to_f16(values: &mut [f32]) {
    let mut rounded = [f16::ZERO; BLOCK];
    let rounded = &mut rounded[..values.len()];
    rounded.convert_from_f32_slice(values);
    rounded.convert_to_f32_slice(values);
}

/// `levels` is what the largest magnitude is divided by, and the integers that there are; `rounded` what happens to quotients.
fn quantize(
    weights: &[f16],
    levels: (f32, std::ops::RangeInclusive<f32>),
    rounded: impl Fn(&mut [f32]),
    out: &mut [i8],
) -> Result<f16> {
    if out.len() != weights.len() {
        return Err(Error::Length {
            what: "quantized output",
            expected: weights.len(),
            got: out.len(),
        });
    }
    if let Some(index) = first_not_finite(weights) {
        let value = weights[index].to_f32();
        return Err(Error::NotFinite { index, value });
    }
    // Bits of magnitudes order as the magnitudes do.
    let max = weights.iter().map(|w| w.to_bits() & 0x7fff).max();
    let max = f16::from_bits(max.unwrap_or(0)).to_f32();
    let (levels, range) = levels;
    let (least, most) = range.into_inner();
    let scale = f16::from_f32(max / levels);
    let divisor = scale.to_f32();
    for (weights, out) in weights.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        let mut quotients = [0f32; BLOCK];
        let quotients = &mut quotients[..weights.len()];
        weights.convert_to_f32_slice(quotients);
        for w in quotients.iter_mut() {
            // 0/0 is 0; x/0 (a scale that underflowed) clips.
            *w = if *w == 0.0 { 0.0 } else { *w / divisor };
        }
        rounded(quotients);
        for (quotient, q) in quotients.iter().zip(out) {
            *q = round_half_even(quotient.clamp(least, most)) as i8;
        }
    }
    Ok(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_what_coremltools_can() {
        let mut out = [0; 3];
        let row = [60000.0, -29008.0, 0.0].map(f16::from_f32);
        let scale = quantize_symmetric(&row, 8, &mut out).unwrap();
        assert_eq!((scale.to_f32(), out), (472.5, [127, -61, 0]));
        assert_eq!(
            quantize_symmetric(&[f16::ZERO; 3], 4, &mut out),
            Ok(f16::ZERO)
        );
        assert_eq!(out, [0; 3]);
        let bad = [f16::ONE, f16::ONE, f16::NAN];
        let error = quantize_symmetric(&bad, 8, &mut out).unwrap_err();
        assert!(
            matches!(error, Error::NotFinite { index: 2, .. }),
            "{error}"
        );
        assert!(quantize_symmetric(&row, 8, &mut out[1..]).is_err());
        let error = quantize_full(&row, 5, &mut out).unwrap_err();
        assert_eq!(error, Error::LinearBits { nbits: 5 });
    }

    #[test]
    fn the_full_range_reaches_both_ends() {
        let mut out = [0; 4];
        // Halves of steps go to the even integer, and 7.5 of them to what there is.
        let row = [7.5, -7.5, 0.5, -1.5].map(f16::from_f32);
        let scale = quantize_full(&row, 4, &mut out).unwrap();
        assert_eq!((scale.to_f32(), out), (1.0, [7, -8, 0, -2]));
        let row = [-127.5, 127.5, 126.5, 0.0].map(f16::from_f32);
        let scale = quantize_full(&row, 8, &mut out).unwrap();
        assert_eq!((scale.to_f32(), out), (1.0, [-128, 127, 126, 0]));
        let mut stats = ErrorStats::default();
        add_errors(&row, &out, scale, &mut stats);
        assert_eq!((stats.max_abs, stats.sse), (0.5, 0.75));
        let tiny = [f16::from_bits(1), f16::from_bits(0x8001), f16::ZERO];
        let scale = quantize_full(&tiny, 8, &mut out[..3]).unwrap();
        assert_eq!((scale.to_f32(), &out[..3]), (0.0, &[127, -128, 0][..]));
    }

    #[test]
    fn errors_are_against_what_the_reader_computes() {
        let row = [1.0, 0.4].map(f16::from_f32);
        let mut out = [0; 2];
        let scale = quantize_symmetric(&row, 4, &mut out).unwrap();
        assert_eq!(out, [7, 3]);
        let mut stats = ErrorStats::default();
        add_errors(&row, &out, scale, &mut stats);
        let stored = |q: f32| f16::from_f32(q * scale.to_f32()).to_f64();
        let (a, b) = (1.0 - stored(7.0), row[1].to_f64() - stored(3.0));
        assert_eq!(stats.sse, a * a + b * b);
        assert_eq!(stats.n, 2);
    }
}
