//! Loops compiled a second time for wider registers.
//!
//! The wide copy does the same operations on the same elements in the same order: nothing is contracted or reordered, so a
//! result does not depend on the CPU.

/// Runs `work`, compiled for AVX2 and F16C where the CPU has them. `work` must be inlined for that to be of use: mark
/// what it calls `#[inline(always)]`.
#[inline(always)]
pub fn wide<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: the CPU has what the function is compiled for.
        return unsafe { compiled_wide(work) };
    }
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn compiled_wide<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// `x` rounded to the nearest integer, ties to even, for |x| up to 2^22: what `round_ties_even` gives, without a call.
#[inline(always)]
pub fn round_half_even(x: f32) -> i32 {
    // Beside 1.5 * 2^23 the last place of an f32 is one, so that the addition rounds; the integer is then in its low bits.
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_the_standard_library_does() {
        let mut x = -200.0f32;
        while x < 200.0 {
            assert_eq!(round_half_even(x), x.round_ties_even() as i32, "{x}");
            x += 1.0 / 64.0;
        }
        for x in [4_194_303.5f32, -4_194_304.0, 0.499_999_97, -0.0, 1e-30] {
            assert_eq!(round_half_even(x), x.round_ties_even() as i32, "{x}");
        }
    }

    #[test]
    fn the_wide_copy_gives_the_same_bits() {
        let x: Vec<f32> = (0..999).map(|i| (i as f32 * 0.37).sin()).collect();
        let sum = |x: &[f32]| x.iter().fold(0f32, |s, v| s + v * 1.7 + 0.1).to_bits();
        assert_eq!(wide(|| sum(&x)), sum(&x));
    }
}
