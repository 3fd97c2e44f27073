//! How far the stored weights are from the given ones.

/// Interleaved sums of [`ErrorStats::add_row`].
const LANES: usize = 8;

/// Sums over the elements of a tensor, added up group by group in a fixed order.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ErrorStats {
    /// Elements seen.
    pub n: u64,
    /// Sum of squared errors against the fp16 weights.
    pub sse: f64,
    /// Sum of squared fp16 weights.
    pub sum_sq: f64,
    /// Largest absolute error.
    pub max_abs: f64,
}

impl ErrorStats {
    /// Adds one element, or `count` equal ones.
    pub fn add(&mut self, weight: f64, stored: f64, count: u64) {
        let error = weight - stored;
        let times = count as f64;
        self.n += count;
        self.sse += times * (error * error);
        self.sum_sq += times * (weight * weight);
        self.max_abs = self.max_abs.max(error.abs());
    }

    /// Adds a row of weights, each given by `weight`, and what it is stored as, given by `stored`. Both slices have the
    /// same length. The sums are made of eight interleaved ones, always alike.
    #[inline(always)]
    pub(super) fn add_row<W: Copy, S: Copy>(
        &mut self,
        weights: (&[W], impl Fn(W) -> f64),
        values: (&[S], impl Fn(S) -> f64),
    ) {
        let (weight, stored) = (weights.1, values.1);
        let (weights, weights_rest) = weights.0.as_chunks::<LANES>();
        let (values, values_rest) = values.0.as_chunks::<LANES>();
        let (mut sse, mut sum_sq, mut max) = ([0f64; LANES], [0f64; LANES], [0f64; LANES]);
        for (w, v) in weights.iter().zip(values) {
            for i in 0..LANES {
                let w = weight(w[i]);
                let error = w - stored(v[i]);
                sse[i] += error * error;
                sum_sq[i] += w * w;
                // A comparison, as `max` minds NaN and takes longer; there is none here.
                max[i] = if error.abs() > max[i] {
                    error.abs()
                } else {
                    max[i]
                };
            }
        }
        self.n += (LANES * weights.len()) as u64;
        self.sse += sse.iter().sum::<f64>();
        self.sum_sq += sum_sq.iter().sum::<f64>();
        self.max_abs = max.iter().fold(self.max_abs, |m, e| m.max(*e));
        for (w, v) in weights_rest.iter().zip(values_rest) {
            self.add(weight(*w), stored(*v), 1);
        }
    }

    /// Adds the sums of another part of the tensor.
    pub fn merge(&mut self, other: &ErrorStats) {
        self.n += other.n;
        self.sse += other.sse;
        self.sum_sq += other.sum_sq;
        self.max_abs = self.max_abs.max(other.max_abs);
    }

    /// Mean squared error; 0 for nothing.
    pub fn mse(&self) -> f64 {
        if self.n == 0 {
            0.0
        } else {
            self.sse / self.n as f64
        }
    }

    /// Signal to quantization noise in dB: `10 log10(sum w^2 / sum e^2)`. Infinite when nothing
    /// was lost.
    pub fn sqnr_db(&self) -> f64 {
        if self.sse == 0.0 {
            f64::INFINITY
        } else {
            10.0 * (self.sum_sq / self.sse).log10()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_ratio() {
        let mut stats = ErrorStats::default();
        stats.add(3.0, 2.5, 2);
        let mut rest = ErrorStats::default();
        rest.add(-4.0, -4.0, 1);
        stats.merge(&rest);
        assert_eq!(
            (stats.n, stats.sse, stats.sum_sq, stats.max_abs),
            (3, 0.5, 34.0, 0.5)
        );
        assert_eq!(stats.mse(), 0.5 / 3.0);
        assert!((stats.sqnr_db() - 18.325).abs() < 1e-3);
        assert_eq!(rest.sqnr_db(), f64::INFINITY);
        assert_eq!(ErrorStats::default().mse(), 0.0);
    }
}
