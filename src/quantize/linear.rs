//! Symmetric integers with an fp16 scale, as coremltools' `linear_symmetric` mode computes them.
//!
//! `scale = fp16(max|w| / levels)`, `q = round_half_even(fp16(w / scale))`, clipped to ±levels;
//! the reader computes `q * scale`. Equal to coremltools 9.0 bit for bit, except where its
//! `max - min` overflows fp16 (|w| above 32752), which is computed here without the overflow.

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

/// One output channel to int8 (`out` has the row's length). Returns the scale.
pub fn quantize_int8_channel(row: &[f16], out: &mut [i8]) -> Result<f16> {
    quantize(row, INT8_LEVELS, out)
}

/// One block of consecutive inputs to int4 values in -7..=7, one per byte (`out` has the block's
/// length). Returns the scale.
pub fn quantize_int4_block(block: &[f16], out: &mut [i8]) -> Result<f16> {
    quantize(block, INT4_LEVELS, out)
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

fn quantize(weights: &[f16], levels: i8, out: &mut [i8]) -> Result<f16> {
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
    let levels = f32::from(levels);
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
        round_to_f16(quotients);
        for (quotient, q) in quotients.iter().zip(out) {
            *q = round_half_even(quotient.clamp(-levels, levels)) as i8;
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
        let scale = quantize_int8_channel(&row, &mut out).unwrap();
        assert_eq!((scale.to_f32(), out), (472.5, [127, -61, 0]));
        assert_eq!(
            quantize_int4_block(&[f16::ZERO; 3], &mut out),
            Ok(f16::ZERO)
        );
        assert_eq!(out, [0; 3]);
        let bad = [f16::ONE, f16::ONE, f16::NAN];
        let error = quantize_int8_channel(&bad, &mut out).unwrap_err();
        assert!(
            matches!(error, Error::NotFinite { index: 2, .. }),
            "{error}"
        );
        assert!(quantize_int8_channel(&row, &mut out[1..]).is_err());
    }

    #[test]
    fn errors_are_against_what_the_reader_computes() {
        let row = [1.0, 0.4].map(f16::from_f32);
        let mut out = [0; 2];
        let scale = quantize_int4_block(&row, &mut out).unwrap();
        assert_eq!(out, [7, 3]);
        let mut stats = ErrorStats::default();
        add_errors(&row, &out, scale, &mut stats);
        let stored = |q: f32| f16::from_f32(q * scale.to_f32()).to_f64();
        let (a, b) = (1.0 - stored(7.0), row[1].to_f64() - stored(3.0));
        assert_eq!(stats.sse, a * a + b * b);
        assert_eq!(stats.n, 2);
    }
}
