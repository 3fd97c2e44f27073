//! Inner products in a fixed order of summation, so that neither threads nor CPU change a result.

use super::lanes::{LANES, reduce};
use rayon::prelude::*;

/// From so many multiplications on, rows are shared among threads.
pub(crate) const PARALLEL_WORK: usize = 1 << 17;

/// Multiplications of a run of rows that are worth handing over.
const SHORTEST_RUN: usize = PARALLEL_WORK / 2;

/// Adds the products of one block to the partial sums.
#[inline(always)]
pub(crate) fn accumulate(lanes: &mut [f32; LANES], a: &[f32; LANES], b: &[f32; LANES]) {
    for i in 0..LANES {
        lanes[i] += a[i] * b[i];
    }
}

/// The inner product of two slices of one length: term `i` goes to partial sum `i % LANES`.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut lanes = [0.0; LANES];
    let (blocks_a, rest_a) = a.as_chunks::<LANES>();
    let (blocks_b, rest_b) = b.as_chunks::<LANES>();
    for (x, y) in blocks_a.iter().zip(blocks_b) {
        accumulate(&mut lanes, x, y);
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(rest_a.iter().zip(rest_b)) {
        *lane += x * y;
    }
    reduce(lanes)
}

/// `out += factor * x`.
pub(crate) fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    for (o, &v) in out.iter_mut().zip(x) {
        *o += factor * v;
    }
}

/// Calls `f(first row, rows)` for runs of the rows of `out` (`width` elements each), on several threads when the whole is
/// `work` multiplications and that is much. Runs are multiples of `align` rows, the last one excepted. `f` must give each row a value that does not depend on the run it is in.
pub(crate) fn for_rows(
    out: &mut [f32],
    width: usize,
    align: usize,
    work: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) {
    let threads = rayon::current_num_threads();
    let rows = out.len().checked_div(width).unwrap_or(0);
    if rows == 0 {
        return;
    }
    if threads < 2 || rows < 2 || work < PARALLEL_WORK {
        return f(0, out);
    }
    // Some runs more than threads, so that a late thread does not hold up the rest, but none too short.
    let runs = (work / SHORTEST_RUN).clamp(threads, threads * 4) / threads * threads;
    let run = rows.div_ceil(runs).next_multiple_of(align);
    out.par_chunks_mut(run * width)
        .enumerate()
        .for_each(|(i, rows)| f(i * run, rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allowed relative difference of an f32 sum of 1000 terms from the f64 one.
    const SUM_TOLERANCE: f64 = 1e-6;

    #[test]
    fn dot_is_close_to_f64_for_every_length() {
        let a: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.11).cos()).collect();
        for n in (0..70).chain([999, 1000]) {
            let terms = a[..n].iter().zip(&b[..n]);
            let want: f64 = terms.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            let got = f64::from(dot(&a[..n], &b[..n]));
            assert!((got - want).abs() <= SUM_TOLERANCE * n as f64, "{n}");
        }
    }

    #[test]
    fn rows_do_not_depend_on_threads() {
        let fill = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let mut out = vec![0.0; 3 * 1001];
            pool.install(|| {
                for_rows(&mut out, 3, 1, PARALLEL_WORK, |first, rows| {
                    for (i, row) in rows.chunks_mut(3).enumerate() {
                        row.fill((first + i) as f32);
                    }
                });
            });
            out
        };
        assert_eq!(fill(1), fill(3));
        assert_eq!(fill(1)[3000..], [1000.0; 3]);
    }
}
