//! k-means in a few dimensions: seeds and Lloyd's iteration.
//!
//! A point is compared with every centroid only where Hamerly's bounds (2010, "Making k-means even
//! faster") cannot tell that it stays where it is: an upper bound of the distance to its own centroid, a
//! lower bound of that to any other, both moved by as much as the centroids moved.

use half::f16;
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

use super::{MAX_ENTRIES, Points};

/// Centroids compared at once; the compiler makes vectors of them.
const LANES: usize = 8;
/// The most iterations.
const MAX_ITERATIONS: usize = 100;
/// An iteration that lowers the error by less than this part of the first one's is the last.
const CONVERGED: f64 = 1e-6;
/// Points per entry that the seeds are drawn from.
const SEED_POINTS: usize = 32;

/// Centroids in planes, one per coordinate; what is beyond the last is infinitely far.
struct Planes<const D: usize> {
    at: [[f32; MAX_ENTRIES]; D],
    len: usize,
}

/// The nearest centroid, and the squared distances of the two nearest.
struct Nearest {
    index: usize,
    best: f32,
    second: f32,
}

impl<const D: usize> Planes<D> {
    fn new(centroids: &[[f32; D]]) -> Self {
        let mut at = [[f32::INFINITY; MAX_ENTRIES]; D];
        for (i, centroid) in centroids.iter().enumerate() {
            for (plane, x) in at.iter_mut().zip(centroid) {
                plane[i] = *x;
            }
        }
        Planes {
            at,
            len: centroids.len().next_multiple_of(LANES),
        }
    }

    fn nearest(&self, point: &[f32; D]) -> Nearest {
        let mut distance = [0.0f32; MAX_ENTRIES];
        let distance = &mut distance[..self.len];
        for (plane, x) in self.at.iter().zip(point) {
            for (sum, c) in distance.iter_mut().zip(plane) {
                *sum += (x - c) * (x - c);
            }
        }
        let (mut low, mut next) = ([f32::INFINITY; LANES], [f32::INFINITY; LANES]);
        for lane in distance.as_chunks::<LANES>().0 {
            for j in 0..LANES {
                let larger = if lane[j] > low[j] { lane[j] } else { low[j] };
                next[j] = if larger < next[j] { larger } else { next[j] };
                low[j] = if lane[j] < low[j] { lane[j] } else { low[j] };
            }
        }
        let (mut best, mut second) = (f32::INFINITY, f32::INFINITY);
        for d in low.into_iter().chain(next) {
            if d < best {
                second = best;
                best = d;
            } else if d < second {
                second = d;
            }
        }
        let index = distance.iter().position(|d| *d == best).unwrap_or(0);
        Nearest {
            index,
            best,
            second,
        }
    }
}

fn squared<const D: usize>(a: &[f32; D], b: &[f32; D]) -> f32 {
    let mut sum = 0.0;
    for (x, y) in a.iter().zip(b) {
        sum += (x - y) * (x - y);
    }
    sum
}

/// What is known of a point between iterations.
struct Bound {
    own: u32,
    /// At least the distance to its own centroid.
    upper: f32,
    /// At most the distance to any other.
    lower: f32,
}

/// Moves `centroids` until the error no longer falls. A centroid that loses its last point takes the one
/// that is farthest from its own, weighted.
pub(super) fn lloyd<const D: usize>(
    points: &Points<D>,
    mut centroids: Vec<[f32; D]>,
) -> Vec<[f64; D]> {
    let at: Vec<[f32; D]> = points.at.iter().map(|p| p.map(f16::to_f32)).collect();
    let mut planes = Planes::new(&centroids);
    let mut first = 0.0;
    let mut bounds: Vec<Bound> = Vec::with_capacity(at.len());
    for (point, weight) in at.iter().zip(&points.weight) {
        let found = planes.nearest(point);
        first += f64::from(*weight) * f64::from(found.best);
        bounds.push(Bound {
            own: found.index as u32,
            upper: found.best.sqrt(),
            lower: found.second.sqrt(),
        });
    }
    let mut iteration = 0;
    loop {
        let (means, weights) = means(points, &mut bounds, &centroids);
        let moved: Vec<[f32; D]> = means.iter().map(|m| m.map(|x| x as f32)).collect();
        let pairs = centroids.iter().zip(&moved);
        let shifts: Vec<f32> = pairs.map(|(a, b)| squared(a, b).sqrt()).collect();
        let each = weights.iter().zip(&shifts);
        let gained: f64 = each.map(|(w, s)| w * f64::from(*s) * f64::from(*s)).sum();
        iteration += 1;
        if iteration == MAX_ITERATIONS || gained <= CONVERGED * first {
            return means;
        }
        centroids = moved;
        planes = Planes::new(&centroids);
        let farthest = shifts.iter().fold(0f32, |m, s| if *s > m { *s } else { m });
        let half = half_gaps(&centroids);
        for (point, bound) in at.iter().zip(&mut bounds) {
            let own = bound.own as usize;
            bound.upper += shifts[own];
            bound.lower -= farthest;
            let safe = if half[own] > bound.lower {
                half[own]
            } else {
                bound.lower
            };
            if bound.upper <= safe {
                continue;
            }
            bound.upper = squared(point, &centroids[own]).sqrt();
            if bound.upper <= safe {
                continue;
            }
            let found = planes.nearest(point);
            bound.own = found.index as u32;
            bound.upper = found.best.sqrt();
            bound.lower = found.second.sqrt();
        }
    }
}

/// Half the distance of each centroid to the nearest other.
fn half_gaps<const D: usize>(centroids: &[[f32; D]]) -> Vec<f32> {
    let gap = |(i, a): (usize, &[f32; D])| {
        let others = centroids.iter().enumerate().filter(|(j, _)| *j != i);
        let least = others.fold(f32::INFINITY, |least, (_, b)| {
            let d = squared(a, b);
            if d < least { d } else { least }
        });
        least.sqrt() / 2.0
    };
    centroids.iter().enumerate().map(gap).collect()
}

/// Weighted means of the points of each centroid, and the weights of those points.
fn means<const D: usize>(
    points: &Points<D>,
    bounds: &mut [Bound],
    centroids: &[[f32; D]],
) -> (Vec<[f64; D]>, Vec<f64>) {
    let mut sums = vec![[0.0; D]; centroids.len()];
    let mut weights = vec![0.0; centroids.len()];
    let mut counts = vec![0usize; centroids.len()];
    let scaled = |i: usize| {
        let weight = f64::from(points.weight[i]);
        (points.at[i].map(|x| weight * x.to_f64()), weight)
    };
    for (i, bound) in bounds.iter().enumerate() {
        let own = bound.own as usize;
        let (point, weight) = scaled(i);
        for (sum, x) in sums[own].iter_mut().zip(point) {
            *sum += x;
        }
        weights[own] += weight;
        counts[own] += 1;
    }
    for empty in 0..centroids.len() {
        if counts[empty] > 0 {
            continue;
        }
        let mut farthest = (0.0, None);
        for (i, bound) in bounds.iter().enumerate() {
            let far = points.weight[i] * bound.upper * bound.upper;
            if far > farthest.0 && counts[bound.own as usize] > 1 {
                farthest = (far, Some(i));
            }
        }
        let Some(i) = farthest.1 else { break };
        let from = bounds[i].own as usize;
        let (point, weight) = scaled(i);
        for (sum, x) in sums[from].iter_mut().zip(point) {
            *sum -= x;
        }
        (sums[empty], weights[empty]) = (point, weight);
        weights[from] -= weight;
        counts[from] -= 1;
        counts[empty] = 1;
        bounds[i] = Bound {
            own: empty as u32,
            upper: 0.0,
            lower: 0.0,
        };
    }
    for (i, sum) in sums.iter_mut().enumerate() {
        for (x, old) in sum.iter_mut().zip(centroids[i]) {
            *x = if weights[i] > 0.0 {
                *x / weights[i]
            } else {
                f64::from(old)
            };
        }
    }
    (sums, weights)
}

/// `size` points by greedy k-means++ (Arthur and Vassilvitskii 2007): each the best of a few that are
/// drawn with a chance proportional to their weighted squared distance from those before. Fewer where
/// nothing is left to gain.
pub(super) fn seeds<const D: usize>(
    points: &Points<D>,
    size: usize,
    mut rng: ChaCha8Rng,
) -> Vec<[f32; D]> {
    let count = points.at.len().min(size * SEED_POINTS);
    // One point of each of as many equal stretches.
    let chosen = (0..count).map(|i| {
        let bound = |i: usize| i * points.at.len() / count;
        let width = bound(i + 1) - bound(i);
        bound(i) + (rng.next_u64() % width as u64) as usize
    });
    let chosen: Vec<usize> = chosen.collect();
    let at: Vec<[f32; D]> = chosen
        .iter()
        .map(|&i| points.at[i].map(f16::to_f32))
        .collect();
    let weight: Vec<f32> = chosen.iter().map(|&i| points.weight[i]).collect();
    let draws = 2 + size.ilog2() as usize;
    let mut cost = weight.clone();
    let mut out: Vec<[f32; D]> = Vec::with_capacity(size);
    while out.len() < size {
        let mut sum = 0.0;
        let running: Vec<f64> = cost
            .iter()
            .map(|c| {
                sum += f64::from(*c);
                sum
            })
            .collect();
        if sum <= 0.0 {
            break;
        }
        let mut best: Option<(f64, [f32; D])> = None;
        for _ in 0..if out.is_empty() { 1 } else { draws } {
            let draw = (rng.next_u64() >> 11) as f64 * 2f64.powi(-53) * sum;
            let candidate = at[running.partition_point(|r| *r <= draw).min(count - 1)];
            let left = lowered(&at, &weight, &cost, &candidate, out.is_empty());
            let total = left.map(f64::from).sum();
            if best.is_none_or(|(least, _)| total < least) {
                best = Some((total, candidate));
            }
        }
        let Some((_, candidate)) = best else { break };
        cost = lowered(&at, &weight, &cost, &candidate, out.is_empty()).collect();
        out.push(candidate);
    }
    out
}

/// The cost of every point once `candidate` is a seed too.
fn lowered<'a, const D: usize>(
    at: &'a [[f32; D]],
    weight: &'a [f32],
    cost: &'a [f32],
    candidate: &'a [f32; D],
    first: bool,
) -> impl Iterator<Item = f32> + 'a {
    at.iter().zip(weight).zip(cost).map(move |((p, w), c)| {
        let own = w * squared(p, candidate);
        if first || own < *c { own } else { *c }
    })
}
