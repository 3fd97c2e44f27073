//! Symmetric integers with an fp16 scale, as coremltools' `linear_symmetric` mode computes them.
//!
//! `scale = fp16(max|w| / levels)`, `q = round_half_even(fp16(w / scale))`, clipped to ±levels;
//! the reader computes `q * scale`. Equal to coremltools 9.0 bit for bit, except where its
//! `max - min` overflows fp16 (|w| above 32752), which is computed here without the overflow.

use half::f16;

use super::error::{Error, Result};
use super::fp16::first_not_finite;
use super::stats::ErrorStats;

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

/// Adds the errors of a row or block that was quantized with `scale` to `stats`.
pub fn add_errors(weights: &[f16], quantized: &[i8], scale: f16, stats: &mut ErrorStats) {
    for (w, &q) in weights.iter().zip(quantized) {
        let stored = f16::from_f32(f32::from(q) * scale.to_f32());
        stats.add(w.to_f64(), stored.to_f64(), 1);
    }
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
    let max = weights.iter().fold(0f32, |m, w| m.max(w.to_f32().abs()));
    let levels = f32::from(levels);
    let scale = f16::from_f32(max / levels);
    let divisor = scale.to_f32();
    for (w, q) in weights.iter().zip(out) {
        let quotient = f16::from_f32(w.to_f32() / divisor).to_f32();
        // 0/0 is NaN, which the cast turns into 0; x/0 (a scale that underflowed) clips.
        *q = quotient.round_ties_even().clamp(-levels, levels) as i8;
    }
    Ok(scale)
}
