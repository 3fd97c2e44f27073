//! Embedding tables stored row by row, outside the packages: integers, and one fp16 scale a row or one fp16 step for each
//! block of a row.
//!
//! A step is that of a grid that has all integers of its width: `step = fp16(max|block| / 7.5)` for 4 bits,
//! `q = round_half_even(w / step)` clipped to -8..=7, and the reader computes `q * step`.
//!
//! Scales are the published form. Unlike the weights in a package, the scale is the row's largest magnitude itself:
//! `scale = fp16(max|row|)`, `q = round_half_even(w * levels / scale)` clipped to ±levels, and the
//! reader computes `q * (scale / levels)`. The row is quantized against the *rounded* scale.

use half::f16;

use super::error::{Error, Result};
use super::linear::{INT4_LEVELS, INT8_LEVELS};
use super::stats::ErrorStats;
use super::wide::{round_half_even, wide};

/// Smallest scale: the smallest normal fp16, since readers flush subnormals to 0.
pub const MIN_SCALE: f16 = f16::MIN_POSITIVE;

/// One row to int8 (`out` has the row's length). Returns the scale.
pub fn quantize_row_int8(row: &[f32], out: &mut [i8]) -> Result<f16> {
    quantize_row(row, INT8_LEVELS, out)
}

/// One row to int4 values in -7..=7, one per byte (`out` has the row's length; pack with
/// [`super::pack::pack_signed`]). Returns the scale.
pub fn quantize_row_int4(row: &[f32], out: &mut [i8]) -> Result<f16> {
    quantize_row(row, INT4_LEVELS, out)
}

/// Adds the errors of a row that was quantized in steps of `step` to `stats`.
pub fn add_row_errors(row: &[f32], quantized: &[i8], step: f64, stats: &mut ErrorStats) {
    wide(
        #[inline(always)]
        || stats.add_row((row, f64::from), (quantized, |q| f64::from(q) * step)),
    );
}

/// One block of a row to integers of `nbits` (2, 4 or 8), one per byte (`out` has the block's length; pack with
/// [`super::pack::pack_signed`]). Returns the step: 0 for a block of zeros, else at least [`MIN_SCALE`].
pub fn quantize_block(block: &[f32], nbits: u8, out: &mut [i8]) -> Result<f16> {
    let all = match nbits {
        2 | 4 | 8 => (1u32 << nbits) as f32,
        _ => return Err(Error::Bits { nbits }),
    };
    let max = largest_of(block, out.len())?;
    if max == 0.0 {
        out.fill(0);
        return Ok(f16::ZERO);
    }
    let step = f16::from_f32(max * 2.0 / (all - 1.0)).max(MIN_SCALE);
    check_scale(step, max, block)?;
    let (low, high, divisor) = (-all / 2.0, all / 2.0 - 1.0, step.to_f32());
    wide(
        #[inline(always)]
        || {
            for (w, q) in block.iter().zip(out) {
                *q = round_half_even((w / divisor).clamp(low, high)) as i8;
            }
        },
    );
    Ok(step)
}

fn quantize_row(row: &[f32], levels: i8, out: &mut [i8]) -> Result<f16> {
    let max = largest_of(row, out.len())?;
    let scale = f16::from_f32(max).max(MIN_SCALE);
    check_scale(scale, max, row)?;
    let (levels, divisor) = (f32::from(levels), scale.to_f32());
    wide(
        #[inline(always)]
        || {
            for (w, q) in row.iter().zip(out) {
                // The rounded scale is at most a part in 2000 below the largest weight.
                *q = round_half_even((w * levels / divisor).clamp(-levels, levels)) as i8;
            }
        },
    );
    Ok(scale)
}

/// The largest magnitude of a row, all of which must be finite; `got` is the length of what it is quantized into.
fn largest_of(row: &[f32], got: usize) -> Result<f32> {
    if got != row.len() {
        return Err(Error::Length {
            what: "quantized row",
            expected: row.len(),
            got,
        });
    }
    let (max, finite) = wide(
        #[inline(always)]
        || largest(row),
    );
    if !finite {
        let index = row.iter().position(|w| !w.is_finite()).unwrap_or(0);
        let value = row[index];
        return Err(Error::NotFinite { index, value });
    }
    Ok(max)
}

/// A scale must be finite; `max` is the magnitude that it comes from.
fn check_scale(scale: f16, max: f32, row: &[f32]) -> Result<()> {
    if scale.is_finite() {
        return Ok(());
    }
    let index = row.iter().position(|w| w.abs() == max).unwrap_or(0);
    let value = row[index];
    Err(Error::Fp16Range { index, value })
}

/// The largest magnitude, and whether all are finite.
#[inline(always)]
fn largest(row: &[f32]) -> (f32, bool) {
    const LANES: usize = 16;
    let mut lanes = [0u32; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    // Bits of magnitudes order as the magnitudes do, NaN above all.
    let magnitude = |w: &f32| w.to_bits() & 0x7fff_ffff;
    for block in blocks {
        for (lane, w) in lanes.iter_mut().zip(block) {
            *lane = magnitude(w).max(*lane);
        }
    }
    let all = lanes.into_iter().chain(rest.iter().map(magnitude));
    let max = f32::from_bits(all.max().unwrap_or(0));
    (max, max.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn against_the_rounded_scale() {
        // 0.1 rounds to fp16 0.099976: the largest element then needs 127.03, clipped to 127.
        let row = [0.1f32, -0.1, 0.05, 0.0, 0.0003];
        let mut out = [0; 5];
        let scale = quantize_row_int8(&row, &mut out).unwrap();
        assert_eq!(scale.to_bits(), f16::from_f32(0.1).to_bits());
        assert_eq!(out, [127, -127, 64, 0, 0]);
        let step = scale.to_f32() / 127.0;
        for (w, q) in row.iter().zip(out) {
            assert!((w - f32::from(q) * step).abs() <= 0.5001 * step);
        }
        quantize_row_int4(&row, &mut out).unwrap();
        assert_eq!(out, [7, -7, 4, 0, 0]);
    }

    #[test]
    fn small_rows_take_the_smallest_normal_scale() {
        let mut out = [9; 3];
        assert_eq!(quantize_row_int8(&[0.0; 3], &mut out), Ok(MIN_SCALE));
        assert_eq!(out, [0; 3]);
        let scale = quantize_row_int8(&[1e-5, -3e-5, 0.0], &mut out).unwrap();
        assert_eq!(scale.to_bits(), 0x0400);
        assert_eq!(out, [21, -62, 0]);
    }

    #[test]
    fn blocks_use_all_integers_of_their_width() {
        for (nbits, low, high) in [(2u8, -2i8, 1i8), (4, -8, 7), (8, -128, 127)] {
            // The step is 0.5: the largest magnitude lies half a step beyond one end of the grid, and within the other.
            let max = 0.5 * (f32::from(high) + 0.5);
            let row = [-max, max, 0.25, 0.75, -0.25, 0.0, 0.5, -0.5];
            let mut out = [9; 8];
            let step = quantize_block(&row, nbits, &mut out).unwrap();
            assert_eq!(step.to_f32(), 0.5);
            // Ties go to even; those of 0.75 to 2, which two bits do not have.
            assert_eq!(out, [low, high, 0, 2.min(high), 0, 0, 1, -1], "{nbits}");
        }
        let mut out = [9; 2];
        assert_eq!(quantize_block(&[0.0; 2], 4, &mut out), Ok(f16::ZERO));
        assert_eq!(out, [0; 2]);
        // A step that readers would flush to 0 is not written.
        let step = quantize_block(&[1e-4, -2e-5], 4, &mut out).unwrap();
        assert_eq!((step, out), (MIN_SCALE, [2, 0]));
        for nbits in [0, 1, 3, 6, 16] {
            assert_eq!(
                quantize_block(&[1.0; 2], nbits, &mut out),
                Err(Error::Bits { nbits })
            );
        }
        let error = quantize_block(&[1.0, f32::NAN], 4, &mut out).unwrap_err();
        assert!(matches!(error, Error::NotFinite { index: 1, .. }));
        let error = quantize_block(&[1.0, -5e5], 4, &mut out).unwrap_err();
        assert!(matches!(error, Error::Fp16Range { index: 1, .. }));
        assert!(quantize_block(&[1.0], 4, &mut out).is_err());
    }

    #[test]
    fn errors_are_those_of_the_elements() {
        let row: Vec<f32> = (0..45).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut out = [0; 45];
        let step = quantize_row_int8(&row, &mut out).unwrap().to_f64() / 127.0;
        let (mut stats, mut one_by_one) = (ErrorStats::default(), ErrorStats::default());
        add_row_errors(&row, &out, step, &mut stats);
        for (w, q) in row.iter().zip(out) {
            one_by_one.add(f64::from(*w), f64::from(q) * step, 1);
        }
        assert_eq!((stats.n, stats.max_abs), (45, one_by_one.max_abs));
        assert!((stats.sse / one_by_one.sse - 1.0).abs() < 1e-14);
        assert!((stats.sum_sq / one_by_one.sum_sq - 1.0).abs() < 1e-14);
    }

    #[test]
    fn ties_go_to_even() {
        let mut out = [0; 4];
        // The scale is 127, so that quotients are the weights.
        quantize_row_int8(&[127.0, 0.5, 1.5, -2.5], &mut out).unwrap();
        assert_eq!(out, [127, 0, 2, -2]);
    }

    #[test]
    fn bad_rows_are_named() {
        let mut out = [0; 3];
        let error = quantize_row_int8(&[0.0, f32::NAN, 1.0], &mut out).unwrap_err();
        assert!(
            matches!(error, Error::NotFinite { index: 1, .. }),
            "{error}"
        );
        let error = quantize_row_int8(&[0.0, 1.0, f32::INFINITY], &mut out).unwrap_err();
        assert!(
            matches!(error, Error::NotFinite { index: 2, .. }),
            "{error}"
        );
        let error = quantize_row_int8(&[0.0, 1.0, -7e4], &mut out).unwrap_err();
        assert!(
            matches!(error, Error::Fp16Range { index: 2, .. }),
            "{error}"
        );
        assert!(quantize_row_int8(&[0.0; 2], &mut out).is_err());
    }
}
