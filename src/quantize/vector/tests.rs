use proptest::prelude::*;
use rand::RngCore;

use super::*;
use crate::quantize::palettize_group;

/// How far the error may be above the least of all partitions, relative: the starts are many, not all.
const OPTIMUM_TOLERANCE: f64 = 1e-9;
/// Sums of the same squares in another order.
const SUM_TOLERANCE: f64 = 1e-9;

fn run(
    rows: &[f16],
    inputs: usize,
    shape: (u8, usize),
    importance: Option<&[f32]>,
) -> (GroupResult, Vec<u8>) {
    let mut indices = vec![0xff; rows.len() / shape.1];
    let mut scratch = Scratch::new();
    let result = palettize_vectors(rows, inputs, shape, importance, &mut scratch, &mut indices);
    (result.unwrap(), indices)
}

/// Seeded values in -1..1, rounded to `places` binary places.
fn noise(n: usize, places: u32, seed: u64) -> Vec<f16> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let unit = f64::from(1u32 << places);
    let mut value = || (rng.next_u64() >> 11) as f64 * 2f64.powi(-52) - 1.0;
    (0..n)
        .map(|_| nearest((value() * unit).round() / unit))
        .collect()
}

/// The least weighted error of any partition into `size` clusters, centroids rounded to fp16 and vectors
/// then at their nearest one.
fn brute_force<const D: usize>(points: &[[f64; D]], weights: &[f64], size: usize) -> f64 {
    let mut least = f64::INFINITY;
    for partition in 0..size.pow(points.len() as u32) {
        let of = |i: usize| partition / size.pow(i as u32) % size;
        let centroids: Vec<[f64; D]> = (0..size)
            .map(|k| {
                let mine = || (0..points.len()).filter(|&i| of(i) == k);
                let total: f64 = mine().map(|i| weights[i]).sum();
                std::array::from_fn(|d| {
                    let sum: f64 = mine().map(|i| weights[i] * points[i][d]).sum();
                    nearest(if total > 0.0 { sum / total } else { 0.0 }).to_f64()
                })
            })
            .collect();
        let error = points.iter().zip(weights).map(|(p, w)| {
            let distance =
                |c: &[f64; D]| -> f64 { p.iter().zip(c).map(|(x, y)| (x - y) * (x - y)).sum() };
            w * centroids.iter().map(distance).fold(f64::INFINITY, f64::min)
        });
        least = least.min(error.sum());
    }
    least
}

#[test]
fn no_partition_of_a_few_vectors_is_better() {
    for seed in 0..40 {
        let rows = noise(18, 6, seed);
        let importance: Vec<f32> = (0..9).map(|i| 1.0 + (i * 7 % 5) as f32).collect();
        let points: Vec<[f64; 2]> = (0..9)
            .map(|i| [rows[i], rows[9 + i]].map(f16::to_f64))
            .collect();
        for weigh in [false, true] {
            let weight = |i: usize| if weigh { f64::from(importance[i]) } else { 1.0 };
            let weights: Vec<f64> = (0..9).map(weight).collect();
            let (result, _) = run(&rows, 9, (1, 2), weigh.then_some(&importance));
            let least = brute_force(&points, &weights, 2);
            assert!(
                result.weighted_sse <= least * (1.0 + OPTIMUM_TOLERANCE),
                "{seed} {weigh}: {} above {least}",
                result.weighted_sse
            );
        }
        let rows = noise(32, 6, seed);
        let points: Vec<[f64; 4]> = (0..8)
            .map(|i| std::array::from_fn(|d| rows[d * 8 + i].to_f64()))
            .collect();
        let (result, _) = run(&rows, 8, (1, 4), None);
        let least = brute_force(&points, &[1.0; 8], 2);
        assert!(
            result.weighted_sse <= least * (1.0 + OPTIMUM_TOLERANCE),
            "{seed}"
        );
    }
}

#[test]
fn never_worse_than_the_exact_palette_of_single_weights() {
    for (nbits, vector) in [(2, 2), (4, 2), (6, 2), (8, 2), (4, 4), (8, 4)] {
        for weigh in [false, true] {
            let rows = noise(8 * 150, 11, u64::from(nbits));
            let importance: Vec<f32> = (0..150).map(|i| (i % 7) as f32).collect();
            let (result, _) = run(&rows, 150, (nbits, vector), weigh.then_some(&importance));
            let (mut scratch, mut indices) = (Scratch::new(), vec![0; rows.len()]);
            let single = palettize_group(
                &rows,
                nbits / vector as u8,
                weigh.then_some(&importance),
                &mut scratch,
                &mut indices,
            );
            let single = single.unwrap().weighted_sse;
            assert!(
                result.weighted_sse <= single * (1.0 + SUM_TOLERANCE),
                "{nbits} bits, vectors of {vector}: {} above {single}",
                result.weighted_sse
            );
        }
    }
}

#[test]
fn few_vectors_are_kept_as_they_are() {
    let values = [0.5, -1.0, 0.5, -0.0, /* row 1 */ 2.0, 3.0, 2.0, 0.0].map(f16::from_f32);
    let (result, indices) = run(&values, 4, (2, 2), None);
    let entries: Vec<f32> = result.lut.entries().iter().map(|x| x.to_f32()).collect();
    assert_eq!(entries, [-1.0, 3.0, 0.0, 0.0, 0.5, 2.0, 0.0, 0.0]);
    assert_eq!((result.lut.used(), indices), (3, vec![2, 0, 2, 1]));
    assert_eq!((result.stats.sse, result.stats.n), (0.0, 8));
    assert_eq!(result.lut.entries()[2].to_bits(), 0, "-0 is written as 0");
}

#[test]
fn columns_without_importance_do_not_pull() {
    let rows = noise(4 * 64, 11, 3);
    let (left, right): (Vec<f32>, Vec<f32>) = (vec![1.0; 32], vec![0.0; 32]);
    let importance = [left, right].concat();
    let (weighted, _) = run(&rows, 64, (4, 2), Some(&importance));
    let half: Vec<f16> = rows.chunks(64).flat_map(|r| r[..32].to_vec()).collect();
    let (alone, _) = run(&half, 32, (4, 2), None);
    assert_eq!(weighted.lut, alone.lut);
    assert!((weighted.weighted_sse - alone.stats.sse).abs() <= SUM_TOLERANCE * alone.stats.sse);
    let (none, _) = run(&rows, 64, (4, 2), Some(&[0.0; 64]));
    let (plain, _) = run(&rows, 64, (4, 2), None);
    assert_eq!((none.lut, none.weighted_sse), (plain.lut, 0.0));
}

#[test]
fn any_number_of_threads_gives_the_same() {
    let rows = noise(16 * 200, 11, 9);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| run(&rows, 200, (6, 4), None))
    };
    let one = with(1);
    for threads in [2, 5] {
        assert_eq!(with(threads), one);
    }
}

#[test]
fn a_large_group_is_sampled_evenly() {
    let n = 3 * MAX_FITTED + 5;
    let positions = sample(n);
    assert_eq!(positions.len(), MAX_FITTED);
    assert!(positions.windows(2).all(|p| p[0] < p[1]));
    assert!(positions.windows(2).all(|p| p[1] - p[0] <= 8) && positions[MAX_FITTED - 1] < n);
    assert_eq!(sample(7), [0, 1, 2, 3, 4, 5, 6]);
    // Columns of a matrix as wide as a stretch are all met.
    let columns: std::collections::BTreeSet<usize> = positions.iter().map(|p| p % 3).collect();
    assert_eq!(columns.len(), 3);
}

#[test]
fn bad_input_is_named() {
    let good = noise(16, 8, 1);
    let mut scratch = Scratch::new();
    let mut error = |rows: &[f16], inputs, shape: (u8, usize), importance: Option<&[f32]>| {
        let mut indices = vec![0; rows.len() / 2];
        palettize_vectors(rows, inputs, shape, importance, &mut scratch, &mut indices).unwrap_err()
    };
    assert_eq!(error(&good, 4, (5, 2), None), Error::Bits { nbits: 5 });
    assert_eq!(
        error(&good, 4, (4, 3), None),
        Error::VectorSize { vector: 3 }
    );
    assert_eq!(error(&[], 4, (4, 2), None), Error::Empty);
    assert!(matches!(
        error(&good, 5, (4, 2), None),
        Error::NotDivisible { .. }
    ));
    assert!(matches!(
        error(&good, 4, (4, 4), None),
        Error::Length {
            what: "indices",
            ..
        }
    ));
    assert!(matches!(
        error(&good, 4, (4, 2), Some(&[1.0])),
        Error::Length { .. }
    ));
    let negative = [1.0, -1.0, 0.0, 0.0];
    let named = error(&good, 4, (4, 2), Some(&negative));
    assert!(matches!(named, Error::Importance { index: 1, .. }));
    let mut bad = good.clone();
    bad[9] = f16::NAN;
    assert!(matches!(
        error(&bad, 4, (4, 2), None),
        Error::NotFinite { index: 9, .. }
    ));
}

proptest! {
    /// Vectors are at their nearest entry (the lower of two), entries ascend, errors are the sums they say
    /// they are.
    #[test]
    fn indices_are_nearest_and_errors_add_up(
        raw in prop::collection::vec(any::<u16>(), 4..600),
        coarse in 0u32..13,
        inputs in 1usize..9,
        vector in prop::sample::select(&VECTOR_SIZES[..]),
        nbits in prop::sample::select(&PALETTE_BITS[..4]),
        weigh in any::<bool>(),
    ) {
        let all: Vec<f16> = raw
            .iter()
            .map(|b| f16::from_bits(b >> coarse << coarse))
            .filter(|v| v.is_finite())
            .collect();
        let len = all.len() / (inputs * vector) * (inputs * vector);
        prop_assume!(len > 0);
        let rows = &all[..len];
        let importance: Vec<f32> = (0..inputs).map(|i| (i % 3) as f32).collect();
        let (result, indices) = run(rows, inputs, (nbits, vector), weigh.then_some(&importance));
        let table: Vec<Vec<f64>> = result
            .lut
            .entries()
            .chunks(vector)
            .take(result.lut.used())
            .map(|v| v.iter().map(|x| x.to_f64()).collect())
            .collect();
        prop_assert_eq!(result.lut.entries().len(), vector << nbits);
        prop_assert!(table.windows(2).all(|p| p[0] < p[1]));
        let rest = &result.lut.entries()[table.len() * vector..];
        prop_assert!(rest.iter().all(|x| x.to_bits() == 0));
        let (mut sse, mut weighted) = (0.0, 0.0);
        for (i, &index) in indices.iter().enumerate() {
            let (block, column) = (i / inputs, i % inputs);
            let at = |d: usize| rows[(block * vector + d) * inputs + column].to_f64();
            let distance = |entry: &Vec<f64>| -> f64 {
                entry.iter().enumerate().map(|(d, x)| (at(d) - x) * (at(d) - x)).sum()
            };
            let own = distance(&table[usize::from(index)]);
            prop_assert_eq!(table.iter().position(|e| distance(e) <= own), Some(usize::from(index)));
            sse += own;
            weighted += if weigh { f64::from(importance[column]) * own } else { own };
        }
        prop_assert!((result.stats.sse - sse).abs() <= SUM_TOLERANCE * sse);
        prop_assert!((result.weighted_sse - weighted).abs() <= SUM_TOLERANCE * weighted);
        prop_assert_eq!(result.stats.n, len as u64);
    }
}
