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
    // Factors that are known here cost nothing.
    if max < TINY {
        return (1..=LARGEST).find_map(|m| Peak::new(max, m, UP).step(weights, codes));
    }
    let first = padded(weights);
    let mut near = [false; LARGEST as usize];
    for (near, m) in near.iter_mut().zip(1..) {
        *near = Peak::new(max, m, 1.0).is_near(&first);
    }
    for (near, m) in near.into_iter().zip(1..) {
        let peak = Peak::new(max, m, 1.0);
        let all = near
            && each_block(
                weights,
                #[inline(always)]
                |block| peak.is_near(block),
            );
        if all && let Some(step) = peak.step(weights, codes) {
            return Some(step);
        }
    }
    None
}

/// Below this a quotient may be beyond f32, and numbers of bf16 may have fewer digits than eight.
const TINY: f32 = f32::from_bits((127 - 100) << 23);
/// Lifts numbers below that.
const UP: f32 = f32::from_bits((127 + 100) << 23);

/// The largest magnitude; `None` where a number is no bf16, or beyond what fp16 rounds to.
#[inline(always)]
fn largest(weights: &[f32]) -> Option<f32> {
    let (mut most, mut low) = ([0u32; LANES], [0u32; LANES]);
    each_block(
        weights,
        #[inline(always)]
        |block| {
            for i in 0..LANES {
                let bits = block[i].to_bits();
                most[i] = most[i].max(bits & 0x7fff_ffff);
                low[i] |= bits & 0xffff;
            }
            true
        },
    );
    let max = f32::from_bits(most.into_iter().fold(0, u32::max));
    let bf16 = low.into_iter().fold(0, |all, bits| all | bits) == 0;
    (bf16 && max < 65520.0).then_some(max)
}

/// Calls `work` with numbers, the last block filled up with zeros, until it says no. Tells whether it never did.
#[inline(always)]
fn each_block(weights: &[f32], mut work: impl FnMut(&[f32; LANES]) -> bool) -> bool {
    let (blocks, rest) = weights.as_chunks::<LANES>();
    for block in blocks {
        if !work(block) {
            return false;
        }
    }
    rest.is_empty() || work(&padded(rest))
}

/// Numbers, at most a block of them, and zeros.
#[inline(always)]
fn padded(weights: &[f32]) -> [f32; LANES] {
    let mut block = [0f32; LANES];
    for (to, from) in block.iter_mut().zip(weights) {
        *to = *from;
    }
    block
}

/// A guess: the largest number is `m` steps.
#[derive(Clone, Copy)]
struct Peak {
    max: f32,
    m: f32,
    /// What numbers are lifted by before they are multiplied with `ratio`, which makes integers of them.
    up: f32,
    ratio: f32,
}

/// Bits of the least and the largest possible step times [`MULTIPLE`], both included.
///
/// An end that is not included is moved by one unit in the last place: bounds, and fp16 values times [`MULTIPLE`], have at most 21
/// bits, so that none lies between.
struct Interval {
    low: u32,
    high: u32,
}

impl Peak {
    #[inline(always)]
    fn new(max: f32, m: u8, up: f32) -> Self {
        let m = f32::from(m);
        let ratio = m / (max * up);
        Peak { max, m, up, ratio }
    }

    /// The integer of a number.
    #[inline(always)]
    fn code(self, w: f32) -> i32 {
        round_half_even(w * self.up * self.ratio)
    }

    /// Integers and step, if the guess is right.
    #[inline(always)]
    fn step(self, weights: &[f32], codes: &mut [i8]) -> Option<Step> {
        let interval = self.interval(weights)?;
        let sign = self.sign(weights)?;
        for (code, w) in codes.iter_mut().zip(weights) {
            *code = (sign * self.code(*w)) as i8;
        }
        let (value, exact) = match self.common(weights, codes) {
            Some(value) => (value, true),
            None => interval.step(),
        };
        let value = if sign < 0 { -value } else { value };
        Some(Step { value, exact })
    }

    /// What integers are multiplied with so that none is 8, which there is not; `None` where both ends are taken.
    #[inline(always)]
    fn sign(self, weights: &[f32]) -> Option<i32> {
        if self.m < f32::from(LARGEST) {
            return Some(1);
        }
        let most = i32::from(LARGEST);
        let (mut above, mut below) = (0, 0);
        for w in weights {
            let q = self.code(*w);
            above |= u32::from(q == most);
            below |= u32::from(q == -most);
        }
        match (above, below) {
            (0, _) => Some(1),
            (_, 0) => Some(-1),
            _ => None,
        }
    }

    /// Whether all numbers are near an integer: a quick look that most wrong guesses do not pass, nor a number for which the
    /// integer is 0. Rounding to bf16 moves a number and the largest by 2^-8 of themselves at most.
    #[inline(always)]
    fn is_near(self, block: &[f32; LANES]) -> bool {
        const NEAR: f32 = 1.0 / 128.0 + 1.0 / 4096.0;
        // Beside it the last place of an f32 is one, so that the addition rounds.
        const MAGIC: f32 = 12_582_912.0;
        let mut far = [0u32; LANES];
        for i in 0..LANES {
            let quotient = block[i] * self.ratio;
            let integer = (quotient + MAGIC) - MAGIC;
            far[i] = u32::from((quotient - integer).abs() > NEAR * integer.abs());
        }
        far.into_iter().fold(0, |any, f| any | f) == 0
    }

    /// Every step `x` with `bf16(x * q) = w` for all numbers; `None` where there is none.
    #[inline(always)]
    fn interval(self, weights: &[f32]) -> Option<Interval> {
        let (mut low, mut high) = ([0u32; LANES], [u32::MAX; LANES]);
        let mut wrong = [0u32; LANES];
        each_block(
            weights,
            #[inline(always)]
            |block| {
                for i in 0..LANES {
                    let bits = block[i].to_bits() & 0x7fff_ffff;
                    let q = self.code(block[i]);
                    let is_zero = bits == 0;
                    if self.up != 1.0 {
                        wrong[i] |= u32::from((q == 0) != is_zero);
                    }
                    // A zero says nothing; the largest number in its place nothing new.
                    let bits = if is_zero { self.max.to_bits() } else { bits };
                    let size = if is_zero { self.m } else { q.abs() as f32 };
                    // Half a place of bf16 on either side, a quarter below a power of two.
                    let below = f32::from_bits(bits.wrapping_sub(0x8000));
                    let above = f32::from_bits(bits.wrapping_add(0x8000));
                    let times = MULTIPLE / size;
                    let odd = bits >> 16 & 1;
                    // The ends round to this number where its last digit is even.
                    low[i] = low[i].max((below * times).to_bits().wrapping_add(odd));
                    high[i] = high[i].min((above * times).to_bits().wrapping_sub(odd));
                }
                true
            },
        );
        let low = low.into_iter().fold(0, u32::max);
        let high = high.into_iter().fold(u32::MAX, u32::min);
        let wrong = wrong.into_iter().fold(0, |any, w| any | w) != 0;
        (!wrong && low <= high).then_some(Interval { low, high })
    }

    /// The step, where every number is exactly its integer times the same fp16 value.
    #[inline(always)]
    fn common(self, weights: &[f32], codes: &[i8]) -> Option<f16> {
        let value = f16::from_f32(self.max / self.m);
        let step = value.to_f32();
        if step * self.m != self.max {
            return None;
        }
        let mut pairs = weights.iter().zip(codes);
        let all = pairs.all(|(w, q)| w.abs() == f32::from(*q).abs() * step);
        all.then_some(value)
    }
}

impl Interval {
    /// The fp16 value nearest to the middle, and whether it is inside.
    #[inline(always)]
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

    #[inline(always)]
    fn contains(&self, value: f16) -> bool {
        let bits = (value.to_f32() * MULTIPLE).to_bits();
        value > f16::ZERO && value.is_finite() && (self.low..=self.high).contains(&bits)
    }
}

#[cfg(test)]
mod tests;
