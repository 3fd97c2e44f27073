//! Counts of magnitudes in bins of equal ratio.
//!
//! Bin 0 holds magnitudes below [`LOW`], the last bin those from [`HIGH`] on; in between, a bin is the exponent and the top
//! [`MANTISSA_BITS`] bits of the mantissa of an f32, so that a bin's middle is within 1/128 of every value in it.

/// Bits of the mantissa that tell bins apart.
pub const MANTISSA_BITS: u32 = 6;
/// 2^-24, the least magnitude of fp16.
pub const LOW: f32 = 1.0 / 16_777_216.0;
/// 2^16; fp16 ends at 65504.
pub const HIGH: f32 = 65_536.0;

const SHIFT: u32 = f32::MANTISSA_DIGITS - 1 - MANTISSA_BITS;
const FIRST: u32 = LOW.to_bits() >> SHIFT;
/// Number of bins: 40 octaves of 64, and one on either side.
pub const BINS: usize = ((HIGH.to_bits() >> SHIFT) - FIRST) as usize + 2;

/// The bin of a finite value's magnitude.
pub fn bin(value: f32) -> usize {
    let magnitude = value.abs();
    if magnitude < LOW {
        0
    } else if magnitude >= HIGH {
        BINS - 1
    } else {
        ((magnitude.to_bits() >> SHIFT) - FIRST) as usize + 1
    }
}

/// The magnitude that a bin stands for: its middle, [`LOW`] for the first and [`HIGH`] for the last.
pub fn middle(bin: usize) -> f32 {
    let edge = |n: usize| f32::from_bits((FIRST + n as u32) << SHIFT);
    match bin {
        0 => LOW,
        b if b >= BINS - 1 => HIGH,
        b => (edge(b - 1) + edge(b)) / 2.0,
    }
}

/// The bin of the value of rank `ceil(p / 100 * n)` of `n` counted values, `None` when there are none or the rank is `n`.
pub(super) fn percentile_bin(counts: impl Iterator<Item = u64>, n: u64, p: f64) -> Option<usize> {
    let rank = (p / 100.0 * n as f64).ceil().max(1.0) as u64;
    if rank >= n {
        return None;
    }
    let mut below = 0u64;
    counts
        .enumerate()
        .find(|(_, count)| {
            below = below.saturating_add(*count);
            below >= rank
        })
        .map(|(bin, _)| bin)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest distance of a value from its bin's middle, relative to the value.
    const TOLERANCE: f32 = 1.0 / 128.0;

    #[test]
    fn a_bins_middle_is_close_to_what_is_in_it() {
        let mut value = LOW;
        let mut last = 0;
        while value < HIGH {
            let b = bin(value);
            assert!(b == bin(-value) && b >= last && b < BINS - 1, "{value}");
            assert!((middle(b) - value).abs() <= TOLERANCE * value, "{value}");
            last = b;
            value *= 1.0007;
        }
        assert_eq!(last, BINS - 2);
        for (value, b) in [
            (0.0, 0),
            (LOW * 0.999, 0),
            (LOW, 1),
            (HIGH, BINS - 1),
            (1e30, BINS - 1),
        ] {
            assert_eq!(bin(value), b, "{value}");
        }
    }
}
