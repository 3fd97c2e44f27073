//! Groups of bf16 numbers that are integers of 4 bits times one step, and which.
//!
//! A training that rounds weights to a grid keeps them as bf16, so that a weight is `bf16(step * q)`. The integers are found by
//! trying each magnitude that the largest may have; an interval of steps that explains every number proves them. There is
//! no tolerance: the bounds of the interval are exact in f32.

use half::f16;

use super::error::{Error, Result};
use super::fp16::nearest;
use super::wide::{round_half_even, wide};

/// What the integers of a group are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// In fp16; below zero where the largest integer would be 8 otherwise.
    pub value: f16,
    /// Whether `bf16(value * q)` is each of the numbers. If not, no fp16 value has that property and this is the nearest.
    pub exact: bool,
}

/// Largest magnitude of an integer of 4 bits.
const LARGEST: u8 = 8;

/// A multiple of every magnitude: a bound divided by one of them is a whole number of units in its last place when it is
/// multiplied by this before. With the 10 bits of a bound that makes 20, of the 24 that f32 has.
const MULTIPLE: f32 = 840.0;

/// Numbers that are looked at together.
const LANES: usize = 16;

/// The integers -8..=7 (into `codes`, as many as `weights`) and the step of a group, the smallest integers that are possible;
/// `None` if there are none. Numbers that are no bf16 are on no grid.
pub fn recover(weights: &[f32], codes: &mut [i8]) -> Result<Option<Step>> {
    if codes.len() != weights.len() {
        return Err(Error::Length {
            what: "codes",
            expected: weights.len(),
            got: codes.len(),
        });
    }
    Ok(wide(
        #[inline(always)]
        || on_grid(weights, codes),
    ))
}

/// The fp16 value nearest to `step * factor * q`, rounded once, and whether it is that product. The magnitude of `q` is at most
/// 256, so that the product is exact in f64 unless `factor` has more than 21 digits.
pub fn fp16_product(step: f32, factor: f32, q: i16) -> (f16, bool) {
    let product = f64::from(step) * f64::from(q) * f64::from(factor);
    let value = nearest(product);
    (value, value.to_f64() == product)
}

#[inline(always)]
fn on_grid(weights: &[f32], codes: &mut [i8]) -> Option<Step> {
    let max = largest(weights)?;
    if max == 0.0 {
        codes.fill(0);
        return Some(Step {
            value: f16::ZERO,
            exact: true,
        });
    }
    for m in 1..=LARGEST {
        let peak = Peak {
            max,
            m: f32::from(m),
        };
        if let Some(interval) = peak.interval(weights) {
            // Only at m = 8 there are both ends to choose from.
            let sign = if interval.most == i32::from(LARGEST) {
                -1
            } else {
                1
            };
            for (code, w) in codes.iter_mut().zip(weights) {
                *code = (sign * peak.code(*w)) as i8;
            }
            let (value, exact) = match peak.common(weights, codes) {
                Some(value) => (value, true),
                None => interval.step(),
            };
            let value = if sign < 0 { -value } else { value };
            return Some(Step { value, exact });
        }
    }
    None
}

/// The largest magnitude; `None` where a number is no bf16, or beyond what fp16 rounds to.
#[inline(always)]
fn largest(weights: &[f32]) -> Option<f32> {
    let (mut most, mut low) = ([0u32; LANES], [0u32; LANES]);
    let (blocks, rest) = weights.as_chunks::<LANES>();
    let mut padded = [0f32; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    for block in blocks.iter().chain([&padded]) {
        for i in 0..LANES {
            let bits = block[i].to_bits();
            most[i] = most[i].max(bits & 0x7fff_ffff);
            low[i] |= bits & 0xffff;
        }
    }
    let max = f32::from_bits(most.into_iter().fold(0, u32::max));
    let bf16 = low.into_iter().fold(0, |all, bits| all | bits) == 0;
    (bf16 && max < 65520.0).then_some(max)
}

/// A guess: the largest number is `m` steps.
#[derive(Clone, Copy)]
struct Peak {
    max: f32,
    m: f32,
}

/// Bits of the least and the largest possible step times [`MULTIPLE`], both included, and the largest integer.
///
/// An end that is not included is moved by one unit in the last place: bounds, and fp16 values times [`MULTIPLE`], have at most 21
/// bits, so that none lies between.
struct Interval {
    low: u32,
    high: u32,
    most: i32,
}

impl Peak {
    /// The integer of a number.
    #[inline(always)]
    fn code(self, w: f32) -> i32 {
        round_half_even(w / self.max * self.m)
    }

    /// Every step `x` with `bf16(x * q) = w` for all numbers; `None` where there is none.
    #[inline(always)]
    fn interval(self, weights: &[f32]) -> Option<Interval> {
        let mut all = Interval {
            low: 0,
            high: u32::MAX,
            most: 0,
        };
        let mut least = 0;
        let (blocks, rest) = weights.as_chunks::<LANES>();
        let mut padded = [0f32; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        let last = (!rest.is_empty()).then_some(&padded);
        for block in blocks.iter().chain(last) {
            let (mut low, mut high) = ([0u32; LANES], [u32::MAX; LANES]);
            let (mut q, mut wrong) = ([0i32; LANES], [0u32; LANES]);
            for i in 0..LANES {
                let bits = block[i].to_bits() & 0x7fff_ffff;
                q[i] = self.code(block[i]);
                // Half a place of bf16 on either side, a quarter below a power of two.
                let below = f32::from_bits(bits.wrapping_sub(0x8000));
                let above = f32::from_bits(bits.wrapping_add(0x8000));
                let times = MULTIPLE / q[i].abs() as f32;
                let odd = bits >> 16 & 1;
                let is_zero = bits == 0;
                // The ends round to this number where its last digit is even.
                let (from, to) = (
                    (below * times).to_bits().wrapping_add(odd),
                    (above * times).to_bits().wrapping_sub(odd),
                );
                low[i] = if is_zero { 0 } else { from };
                high[i] = if is_zero { u32::MAX } else { to };
                wrong[i] = u32::from((q[i] == 0) != is_zero);
            }
            all.low = low.into_iter().fold(all.low, u32::max);
            all.high = high.into_iter().fold(all.high, u32::min);
            all.most = q.into_iter().fold(all.most, i32::max);
            least = q.into_iter().fold(least, i32::min);
            let both = all.most == i32::from(LARGEST) && least == -i32::from(LARGEST);
            let wrong = wrong.into_iter().fold(0, |any, w| any | w) != 0;
            if wrong || both || all.low > all.high {
                return None;
            }
        }
        Some(all)
    }

    /// The step, where every number is exactly its integer times the same fp16 value.
    #[inline(always)]
    fn common(self, weights: &[f32], codes: &[i8]) -> Option<f16> {
        let value = nearest(f64::from(self.max) / f64::from(self.m));
        let step = value.to_f32();
        let mut pairs = weights.iter().zip(codes);
        let all = pairs.all(|(w, q)| w.abs() == f32::from(*q).abs() * step);
        all.then_some(value)
    }
}

impl Interval {
    /// The fp16 value nearest to the middle, and whether it is inside.
    fn step(&self) -> (f16, bool) {
        // Bounds as they were before an end was moved.
        let bound = |bits: u32| f64::from(f32::from_bits(bits.wrapping_add(8) & !15));
        let middle = (bound(self.low) + bound(self.high)) / (2.0 * f64::from(MULTIPLE));
        let value = nearest(middle).min(f16::MAX);
        // Where one end is included and the other is not, both may be nearest.
        let neighbours =
            [-1i16, 1].map(|by| f16::from_bits(value.to_bits().wrapping_add_signed(by)));
        let mut tried = [value].into_iter().chain(neighbours);
        match tried.find(|value| self.contains(*value)) {
            Some(inside) => (inside, true),
            None => (value, false),
        }
    }

    fn contains(&self, value: f16) -> bool {
        let bits = (value.to_f32() * MULTIPLE).to_bits();
        value > f16::ZERO && value.is_finite() && (self.low..=self.high).contains(&bits)
    }
}

#[cfg(test)]
#[path = "grid/tests.rs"]
mod tests;
