use half::bf16;
use proptest::prelude::*;

use super::*;

/// The number that a training keeps.
fn kept(step: f32, q: i8) -> f32 {
    bf16::from_f64(f64::from(step) * f64::from(q)).to_f32()
}

fn group(step: f32, codes: &[i8]) -> Vec<f32> {
    codes.iter().map(|&q| kept(step, q)).collect()
}

fn found(weights: &[f32]) -> Option<(Vec<i8>, Step)> {
    let mut codes = vec![99; weights.len()];
    let step = recover(weights, &mut codes).unwrap();
    step.map(|step| (codes, step))
}

/// What `bf16` makes of an fp16 step and an integer; the product is exact in f32.
fn product(step: f16, q: i8) -> f32 {
    bf16::from_f32(step.to_f32() * f32::from(q)).to_f32()
}

/// Codes in their smallest form, the sign chosen so that none is 8.
fn smallest(codes: &[i8]) -> Vec<i8> {
    let gcd = |a: i8, b: i8| {
        let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a as i8
    };
    let all = codes.iter().fold(0, |a, &b| gcd(a, b)).max(1);
    codes.iter().map(|q| q / all).collect()
}

/// Whether some step explains the numbers with these integers, in fractions of i128.
fn explained(weights: &[f32], codes: &[i8]) -> bool {
    // In places of a number 2^60 below the largest, which no integer stands for.
    let max = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
    let lowest = (max.to_bits() >> 23).saturating_sub(60);
    let place = |bits: u32| -> i128 {
        let (exponent, digits) = (bits >> 23, i128::from(bits & 0x7f_ffff));
        let digits = if exponent > 0 {
            digits | 1 << 23
        } else {
            digits
        };
        digits << exponent.max(1).saturating_sub(lowest)
    };
    // Bounds as numerator, denominator, included.
    let (mut low, mut high) = ((0i128, 1i128, true), None::<(i128, i128, bool)>);
    for (w, &q) in weights.iter().zip(codes) {
        let bits = w.to_bits() & 0x7fff_ffff;
        if (q == 0) != (bits == 0) {
            return false;
        }
        if q == 0 {
            continue;
        }
        let (above, below) = (place(bits + 0x1_0000), place(bits - 0x1_0000));
        let (own, even) = (place(bits), bits >> 16 & 1 == 0);
        let divisor = 2 * i128::from(q.unsigned_abs());
        let from = (own + below, divisor, even);
        let to = (own + above, divisor, even);
        let order = |a: (i128, i128, bool), b: (i128, i128, bool)| (a.0 * b.1).cmp(&(b.0 * a.1));
        if order(from, low).is_gt() || order(from, low).is_eq() && !even {
            low = from;
        }
        if high.is_none_or(|high| order(to, high).is_lt() || order(to, high).is_eq() && !even) {
            high = Some(to);
        }
    }
    high.is_none_or(|high| match (low.0 * high.1).cmp(&(high.0 * low.1)) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Equal => low.2 && high.2,
        std::cmp::Ordering::Greater => false,
    })
}

/// Integers for a largest one of `m`, the long way round; `None` where they leave both ranges.
fn guess(weights: &[f32], m: i32) -> Option<Vec<i8>> {
    let max = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
    let codes: Vec<i32> = weights
        .iter()
        .map(|w| (f64::from(*w) / f64::from(max) * f64::from(m)).round_ties_even() as i32)
        .collect();
    let within = |sign: i32| codes.iter().all(|q| (-8..8).contains(&(sign * q)));
    let sign = [1, -1].into_iter().find(|sign| within(*sign))?;
    Some(codes.iter().map(|q| (sign * q) as i8).collect())
}

/// The outcome against fractions and against every fp16 value nearby.
fn check(weights: &[f32]) -> Option<(Vec<i8>, Step)> {
    let result = found(weights);
    let expected = (1..=8).find_map(|m| {
        let codes = guess(weights, m)?;
        explained(weights, &codes).then_some(codes)
    });
    assert_eq!(
        result.as_ref().map(|r| &r.0),
        expected.as_ref(),
        "{weights:?}"
    );
    if let Some((codes, step)) = &result {
        let same = |value: f16| {
            codes
                .iter()
                .zip(weights)
                .all(|(q, w)| product(value, *q) == *w)
        };
        assert_eq!(same(step.value), step.exact, "{step:?} {weights:?}");
        if !step.exact {
            for by in -3..=3 {
                let near = f16::from_bits(step.value.to_bits().saturating_add_signed(by));
                assert!(!same(near), "{near} {weights:?}");
            }
        }
    }
    result
}

fn step_of(weights: &[f32]) -> Step {
    check(weights).unwrap().1
}

#[test]
fn blocks_by_hand() {
    let step = f16::from_f32(0.0123).to_f32();
    for codes in [
        vec![7, -3, 0, 1],
        vec![-7, 5, 2, 0],
        vec![-8, 7, 1, -1],
        vec![3, -2, 1, 0],
        vec![-8, -7, 0, 0],
        vec![1, 1, -1, 0],
    ] {
        let (found, got) = check(&group(step, &codes)).unwrap();
        assert_eq!(found, codes);
        assert!(got.exact && got.value > f16::ZERO);
    }
    // One number, and equal ones, are one step.
    for codes in [[0, 0, 5, 0], [4, 4, 4, 4], [-6, 6, -6, -6]] {
        let (found, got) = check(&group(step, &codes)).unwrap();
        assert_eq!(found, smallest(&codes));
        assert!(got.exact);
        let common = codes.iter().fold(0, |m, q| q.abs().max(m));
        assert_eq!(got.value.to_f32(), kept(step, common));
    }
    let zero = Step {
        value: f16::ZERO,
        exact: true,
    };
    assert_eq!(found(&[0.0, -0.0]), Some((vec![0, 0], zero)));
    assert_eq!(found(&[]), Some((vec![], zero)));
}

/// What a GGUF file dequantizes to: the largest number is -8 steps, whatever its sign.
#[test]
fn a_largest_integer_of_eight_has_a_step_below_zero() {
    let step = f16::from_f32(0.031).to_f32();
    let codes = [-8, 5, 0, 7];
    let weights: Vec<f32> = group(step, &codes).iter().map(|w| -w).collect();
    let (found, got) = check(&weights).unwrap();
    assert_eq!(found, codes);
    assert!(got.exact && got.value < f16::ZERO, "{got:?}");
    // Both ends are not to be had.
    assert_eq!(check(&[-8.0, 8.0, 7.0, 1.0]), None);
    assert!(check(&[-8.0, 8.0, 4.0]).is_some());
}

#[test]
fn an_exact_common_step_is_taken_before_the_middle() {
    // 0x3e00 is 1.5; the interval of these numbers is wide, and its middle another value.
    let got = step_of(&[1.5, -3.0, 4.5, -1.5]);
    assert_eq!((got.value.to_f32(), got.exact), (1.5, true));
    let got = step_of(&[kept(1.0 / 3.0, 1), kept(1.0 / 3.0, 3)]);
    assert!(got.exact);
}

#[test]
fn steps_that_fp16_has_not() {
    // Below the subnormals: the integers are right and the step is nothing.
    let got = step_of(&group(1e-9, &[7, -8, 3]));
    assert_eq!((got.value, got.exact), (f16::ZERO, false));
    // Among them: few digits. 2.5 of the smallest.
    let got = step_of(&group(2.5 * 2f32.powi(-24), &[7, -8, 3]));
    assert_eq!((got.value.to_bits(), got.exact), (2, false));
    // The very small numbers of bf16.
    assert!(check(&group(f32::from_bits(0x30_0000), &[7, -8, 3])).is_some());
}

#[test]
fn what_is_no_bf16_is_on_no_grid() {
    assert_eq!(found(&[1.0, 2.0 + f32::EPSILON * 2.0]), None);
    for bad in [f32::NAN, f32::INFINITY, 1e30, 65536.0] {
        assert_eq!(found(&[1.0, bad]), None);
    }
    assert!(recover(&[1.0], &mut [0; 2]).is_err());
}

/// A number that its integer is far from, wherever it stands.
#[test]
fn every_position_counts() {
    for len in [1usize, 15, 16, 17, 32, 33, 1536] {
        let codes: Vec<i8> = (0..len).map(|i| (i * 7 % 15) as i8 - 7).collect();
        let weights = group(0.02, &codes);
        assert!(check(&weights).is_some());
        for at in (0..len).step_by(len.div_ceil(40)) {
            let mut moved = weights.clone();
            moved[at] = bf16::from_f32(0.4 * 0.02).to_f32();
            if len > 1 && at != len.min(15) - 1 {
                assert_eq!(check(&moved), None, "{len} {at}");
            }
        }
    }
}

proptest! {
    #[test]
    fn integers_come_back(
        codes in prop::collection::vec(-8i8..8, 1..70),
        digits in 0u32..1 << 23,
        exponent in 100u32..135,
        fp16 in any::<bool>(),
    ) {
        let mut step = f32::from_bits(exponent << 23 | digits);
        if fp16 {
            step = f16::from_f32(step.clamp(1e-4, 5000.0)).to_f32();
        }
        let weights = group(step, &codes);
        prop_assume!(weights.iter().all(|w| w.abs() < 65520.0));
        let (found, got) = check(&weights).unwrap();
        let expected = smallest(&codes);
        // -8 alone may as well be 1 with its sign.
        let negated: Vec<i8> = expected.iter().map(|q| -q).collect();
        let sign = if got.value < f16::ZERO { &negated } else { &expected };
        prop_assert!(found == *sign, "{codes:?} {found:?}");
        prop_assert!(got.exact || !fp16 || smallest(&codes) != codes);
    }

    /// One number moved by a place or a few: on the grid exactly where fractions say so.
    #[test]
    fn moved_numbers(
        codes in prop::collection::vec(-8i8..8, 1..40),
        digits in 0u32..1 << 23,
        at in any::<prop::sample::Index>(),
        by in -3i32..=3,
    ) {
        let mut weights = group(f32::from_bits(120 << 23 | digits), &codes);
        let at = at.index(weights.len());
        let bits = weights[at].to_bits();
        weights[at] = f32::from_bits(bits.wrapping_add_signed(by << 16));
        prop_assume!(weights[at].abs() < 65520.0);
        check(&weights);
    }

    /// Any numbers of bf16.
    #[test]
    fn any_numbers(bits in prop::collection::vec(0x3f80u16..0x4080, 1..4), signs in any::<u8>()) {
        let weights: Vec<f32> = bits
            .iter()
            .enumerate()
            .map(|(i, b)| f32::from_bits(u32::from(b | u16::from(signs >> i & 1) << 15) << 16))
            .collect();
        check(&weights);
    }
}
