//! What a cluster of neighbouring distinct values costs, from prefix sums.
//!
//! The bins `l..r` as one cluster cost `sum w x^2 - (sum w x)^2 / sum w`. The first term adds up to
//! the same total whatever the clusters, so [`PlainSums`] leaves it out. Where the total is so much
//! larger than the error sought that f64 would lose digits, [`WideSums`] keeps the prefix sums as
//! unevaluated pairs of f64 (double-double) and takes the difference before rounding.

/// Costs of clusters, up to a constant.
pub(super) trait Sums {
    /// Bins.
    fn len(&self) -> usize;

    /// Cost of the bins `l..r` as one cluster, up to the constant that is left out.
    fn link(&self, l: usize, r: usize) -> f64;

    /// The smallest `paid[l] + link(l, r)` for `l` in `first..end` and the lowest such `l`.
    fn best(&self, paid: &[f64], first: usize, end: usize, r: usize) -> (f64, usize) {
        let mut best = (f64::INFINITY, first);
        for (l, &paid) in paid.iter().enumerate().take(end).skip(first) {
            let value = paid + self.link(l, r);
            if value < best.0 {
                best = (value, l);
            }
        }
        best
    }
}

/// Candidates that [`PlainSums::best`] looks at together; the compiler makes vectors of them.
const LANES: usize = 8;

/// Prefix sums in f64 about a centre.
#[derive(Debug, Clone, Default)]
pub(super) struct PlainSums {
    /// `w[i]`: sum of the weights before bin `i`.
    w: Vec<f64>,
    /// `s[i]`: sum of weight times centred value before bin `i`.
    s: Vec<f64>,
    /// Sum of weight times squared centred value over all bins.
    pub energy: f64,
}

impl PlainSums {
    /// Sums over the bins. The centre is the value nearest the mean, so that differences to it are
    /// exact.
    pub fn fill(&mut self, values: &[f64], weights: &[f64]) {
        let (mut w, mut s) = (0.0, 0.0);
        for (x, weight) in values.iter().zip(weights) {
            w += weight;
            s += weight * x;
        }
        let mean = s / w;
        let at = values.partition_point(|x| *x < mean).min(values.len() - 1);
        let centre = values[at];
        self.w.clear();
        self.s.clear();
        self.w.push(0.0);
        self.s.push(0.0);
        self.energy = 0.0;
        (w, s) = (0.0, 0.0);
        for (x, weight) in values.iter().zip(weights) {
            let x = x - centre;
            w += weight;
            s += weight * x;
            self.energy += weight * (x * x);
            self.w.push(w);
            self.s.push(s);
        }
    }
}

impl Sums for PlainSums {
    fn len(&self) -> usize {
        self.w.len() - 1
    }

    #[inline(always)]
    fn link(&self, l: usize, r: usize) -> f64 {
        let d = self.s[r] - self.s[l];
        -(d * d / (self.w[r] - self.w[l]))
    }

    #[inline(always)]
    fn best(&self, paid: &[f64], first: usize, end: usize, r: usize) -> (f64, usize) {
        let (wr, sr) = (self.w[r], self.s[r]);
        let (paid, w, s) = (&paid[first..end], &self.w[first..end], &self.s[first..end]);
        let value = |paid: f64, w: f64, s: f64| {
            let d = sr - s;
            paid - d * d / (wr - w)
        };
        let (paid, paid_rest) = paid.as_chunks::<LANES>();
        let (w, w_rest) = w.as_chunks::<LANES>();
        let (s, s_rest) = s.as_chunks::<LANES>();
        let mut best = (f64::INFINITY, first);
        if !paid.is_empty() {
            let mut low = [f64::INFINITY; LANES];
            let mut at = [0.0f64; LANES];
            let mut chunk = 0.0;
            for ((paid, w), s) in paid.iter().zip(w).zip(s) {
                for j in 0..LANES {
                    let v = value(paid[j], w[j], s[j]);
                    let better = v < low[j];
                    low[j] = if better { v } else { low[j] };
                    at[j] = if better { chunk } else { at[j] };
                }
                chunk += 1.0;
            }
            for j in 0..LANES {
                let l = first + at[j] as usize * LANES + j;
                if low[j] < best.0 || (low[j] == best.0 && l < best.1) {
                    best = (low[j], l);
                }
            }
        }
        let rest = first + paid.len() * LANES;
        for (j, ((&paid, &w), &s)) in paid_rest.iter().zip(w_rest).zip(s_rest).enumerate() {
            let v = value(paid, w, s);
            if v < best.0 {
                best = (v, rest + j);
            }
        }
        best
    }
}

/// A sum as the unevaluated sum of two f64.
type Pair = (f64, f64);

/// Prefix sums in double-double.
#[derive(Debug, Clone, Default)]
pub(super) struct WideSums {
    w: Vec<Pair>,
    s: Vec<Pair>,
    q: Vec<Pair>,
}

impl WideSums {
    /// Sums over the bins.
    pub fn fill(&mut self, values: &[f64], weights: &[f64]) {
        for sums in [&mut self.w, &mut self.s, &mut self.q] {
            sums.clear();
            sums.push((0.0, 0.0));
        }
        let (mut w, mut s, mut q) = ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0));
        for (&x, &weight) in values.iter().zip(weights) {
            w = add(w, (weight, 0.0));
            let first = product(weight, x);
            s = add(s, first);
            let (high, low) = product(first.0, x);
            q = add(q, (high, low + first.1 * x));
            self.w.push(w);
            self.s.push(s);
            self.q.push(q);
        }
    }
}

impl Sums for WideSums {
    fn len(&self) -> usize {
        self.w.len() - 1
    }

    fn link(&self, l: usize, r: usize) -> f64 {
        let w = difference(self.w[r], self.w[l]);
        let s = difference(self.s[r], self.s[l]);
        let q = difference(self.q[r], self.q[l]);
        (q - s * s / w).max(0.0)
    }
}

/// Exact `a * b`.
fn product(a: f64, b: f64) -> Pair {
    let high = a * b;
    (high, a.mul_add(b, -high))
}

/// `a + b` to about 106 bits (Dekker, Knuth).
fn add(a: Pair, b: Pair) -> Pair {
    let sum = a.0 + b.0;
    let back = sum - a.0;
    let lost = (a.0 - (sum - back)) + (b.0 - back) + a.1 + b.1;
    let high = sum + lost;
    (high, lost - (high - sum))
}

/// `a - b`, rounded once.
fn difference(a: Pair, b: Pair) -> f64 {
    let high = a.0 - b.0;
    let back = high - a.0;
    let lost = (a.0 - (high - back)) - (b.0 + back);
    high + (lost + (a.1 - b.1))
}
