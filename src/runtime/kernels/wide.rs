//! Loops compiled for wide registers, and taken where the CPU has them. Without fused multiply-adds they give the same bits.

use rayon::prelude::*;

/// Defines a function that is compiled for AVX-512 and AVX2 as well.
macro_rules! widest {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$f:ident: $bound:path>)? ($($arg:ident: $ty:ty),*) $body:block) => {
        $(#[$doc])*
        $vis fn $name $(<$f: $bound>)? ($($arg: $ty),*) {
            #[inline(always)]
            fn body $(<$f: $bound>)? ($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq")]
                fn avx512 $(<$f: $bound>)? ($($arg: $ty),*) {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2 $(<$f: $bound>)? ($($arg: $ty),*) {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                {
                    // SAFETY: the CPU has the features, as just asked.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the CPU has the feature, as just asked.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use widest;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Asks the memory for values that are read soon.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks((LINE / size_of::<T>().max(1)).max(1)) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 CPU has the instruction, which changes nothing but caches.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// A function of one number.
pub(crate) trait Scalar: Fn(f32) -> f32 + Sync {}

impl<F: Fn(f32) -> f32 + Sync> Scalar for F {}

/// From so many elements on, threads share a map.
const PARALLEL: usize = 1 << 13;

widest! {
    fn map_part<F: Scalar>(f: &F, x: &[f32], out: &mut [f32]) {
        for (o, &v) in out.iter_mut().zip(x) {
            *o = f(v);
        }
    }
}

/// `f` of each element of `x` into `out`, of the same length.
pub(crate) fn map(f: &impl Scalar, x: &[f32], out: &mut [f32]) {
    let threads = rayon::current_num_threads();
    if threads < 2 || x.len() < PARALLEL {
        return map_part(f, x, out);
    }
    let part = x.len().div_ceil(threads);
    out.par_chunks_mut(part)
        .zip(x.par_chunks(part))
        .for_each(|(out, x)| map_part(f, x, out));
}

widest! {
    /// `x / sqrt(mean(x^2) + epsilon)`, the mean in f64.
    pub(crate) fn rms(x: &[f32], epsilon: f64, out: &mut [f32]) {
        let mut square = [0.0];
        add_squares(x, &mut square);
        let scale = 1.0 / (square[0] / x.len() as f64 + epsilon).sqrt();
        for (o, &v) in out.iter_mut().zip(x) {
            *o = (f64::from(v) * scale) as f32;
        }
    }
}

/// Partial sums of a sum of squares.
const SUMS: usize = 16;

/// The sum of squares in f64.
pub(crate) fn sum_of_squares(x: &[f32]) -> f64 {
    let mut out = [0.0];
    sum_into(x, &mut out);
    out[0]
}

widest! {
    fn sum_into(x: &[f32], out: &mut [f64; 1]) {
        add_squares(x, out);
    }
}

#[inline(always)]
fn add_squares(x: &[f32], out: &mut [f64; 1]) {
    let mut sums = [0.0f64; SUMS];
    let (blocks, rest) = x.as_chunks::<SUMS>();
    for block in blocks {
        for (sum, &v) in sums.iter_mut().zip(block) {
            *sum += f64::from(v) * f64::from(v);
        }
    }
    for (sum, &v) in sums.iter_mut().zip(rest) {
        *sum += f64::from(v) * f64::from(v);
    }
    out[0] = sums.iter().sum();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_do_not_depend_on_threads_or_registers() {
        let x: Vec<f32> = (0..PARALLEL + 13)
            .map(|i| (i as f32 * 0.37).sin() * 9.0)
            .collect();
        let f = |v: f32| crate::runtime::kernels::math::tanh(v) * 3.0;
        let expected: Vec<f32> = x.iter().map(|&v| f(v)).collect();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let mut out = vec![0.0; x.len()];
            pool.install(|| map(&f, &x, &mut out));
            assert!(out == expected, "{threads}");
        }
    }

    #[test]
    fn sums_of_squares_of_every_length() {
        for n in 0..40u16 {
            let x: Vec<f32> = (0..n).map(f32::from).collect();
            let expected: f64 = (0..n).map(|i| f64::from(i) * f64::from(i)).sum();
            assert_eq!(sum_of_squares(&x), expected);
        }
        let mut out = [0.0; 3];
        rms(&[3.0, -4.0, 5.0], 0.0, &mut out);
        let scale = (50.0f64 / 3.0).sqrt();
        assert_eq!(out, [3.0, -4.0, 5.0].map(|v: f64| (v / scale) as f32));
    }
}
