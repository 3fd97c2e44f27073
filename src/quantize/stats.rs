//! How far the stored weights are from the given ones.

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
