//! Figures that compare two models' outputs. All sums are f64, in the order of the steps.

use serde::Serialize;

use super::trace::{Hidden, Trace, argmax};

/// Cosine of the angle between two vectors; 1 when both are zero, 0 when one is, NaN when a value is not finite.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let (mut dot, mut aa, mut bb) = (0.0f64, 0.0f64, 0.0f64);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (f64::from(*x), f64::from(*y));
        dot += x * y;
        aa += x * x;
        bb += y * y;
    }
    if aa == 0.0 && bb == 0.0 {
        return 1.0;
    }
    if aa == 0.0 || bb == 0.0 {
        return if dot.is_nan() { f64::NAN } else { 0.0 };
    }
    dot / (aa.sqrt() * bb.sqrt())
}

/// `ln(sum(exp(row)))`, with the maximum taken out first.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return f64::NAN;
    }
    let max = f64::from(max);
    let sum: f64 = row.iter().map(|v| (f64::from(*v) - max).exp()).sum();
    max + sum.ln()
}

/// Kullback-Leibler divergence of softmax(`got`) from softmax(`reference`), in nats; at least 0.
pub fn kl_divergence(reference: &[f32], got: &[f32]) -> f64 {
    let (zr, zg) = (log_sum_exp(reference), log_sum_exp(got));
    let mut sum = 0.0;
    for (r, g) in reference.iter().zip(got) {
        let lr = f64::from(*r) - zr;
        let lg = f64::from(*g) - zg;
        let p = lr.exp();
        if p > 0.0 || p.is_nan() {
            sum += p * (lr - lg);
        }
    }
    // Rounding can leave a tiny negative sum; a NaN stays one.
    if sum < 0.0 { 0.0 } else { sum }
}

/// Negative log-likelihood of `token` under softmax(`row`), in nats; NaN when the token is outside the row.
pub fn nll(row: &[f32], token: u32) -> f64 {
    match row.get(token as usize) {
        Some(logit) => log_sum_exp(row) - f64::from(*logit),
        None => f64::NAN,
    }
}

/// Mean that keeps a NaN visible; NaN for no values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Smallest value; NaN when one is NaN or there is none.
pub fn min(values: &[f64]) -> f64 {
    if values.is_empty() || values.iter().any(|v| v.is_nan()) {
        return f64::NAN;
    }
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Value at quantile `q` (nearest rank); NaN when one is NaN or there is none.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    if values.is_empty() || values.iter().any(|v| v.is_nan()) {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Standard error of the mean (sample deviation over the root of the count); 0 for fewer than two values.
pub fn standard_error(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if values.len() < 2 {
        return 0.0;
    }
    let m = mean(values);
    let variance = values.iter().map(|v| (v - m) * (v - m)).sum::<f64>() / (n - 1.0);
    (variance / n).sqrt()
}

/// Per-step figures of one pair of models, gathered over any number of steps.
#[derive(Debug, Clone, Default)]
pub struct LogitStats {
    cosines: Vec<f64>,
    kls: Vec<f64>,
    max_abs: f64,
    top1: usize,
}

/// What [`LogitStats`] adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LogitSummary {
    /// Steps compared.
    pub steps: usize,
    /// Mean and minimum over the steps of the cosine between the two logit vectors.
    pub cosine_mean: f64,
    /// Worst step.
    pub cosine_min: f64,
    /// KL divergence from the reference in nats: mean, 99th percentile (nearest rank), standard error of the mean.
    pub kl_mean: f64,
    /// 99th percentile.
    pub kl_p99: f64,
    /// Standard error of `kl_mean`.
    pub kl_stderr: f64,
    /// Largest absolute difference of any logit.
    pub max_abs_diff: f64,
    /// Share of steps whose largest logit is at the same id.
    pub top1_agreement: f64,
}

impl LogitStats {
    /// Adds one step. The rows have equal lengths (checked by the callers).
    pub fn add(&mut self, reference: &[f32], got: &[f32]) {
        self.cosines.push(cosine(reference, got));
        self.kls.push(kl_divergence(reference, got));
        for (r, g) in reference.iter().zip(got) {
            let d = (f64::from(*r) - f64::from(*g)).abs();
            if d > self.max_abs || d.is_nan() {
                self.max_abs = d;
            }
        }
        self.top1 += usize::from(argmax(reference) == argmax(got));
    }

    /// Appends another's steps.
    pub fn merge(&mut self, other: &LogitStats) {
        self.cosines.extend_from_slice(&other.cosines);
        self.kls.extend_from_slice(&other.kls);
        if other.max_abs > self.max_abs || other.max_abs.is_nan() {
            self.max_abs = other.max_abs;
        }
        self.top1 += other.top1;
    }

    /// The figures; NaN where there was no step.
    pub fn summary(&self) -> LogitSummary {
        LogitSummary {
            steps: self.cosines.len(),
            cosine_mean: mean(&self.cosines),
            cosine_min: min(&self.cosines),
            kl_mean: mean(&self.kls),
            kl_p99: quantile(&self.kls, 0.99),
            kl_stderr: standard_error(&self.kls),
            max_abs_diff: self.max_abs,
            top1_agreement: self.top1 as f64 / self.cosines.len() as f64,
        }
    }
}

/// Cosines of hidden states, per state.
#[derive(Debug, Clone, Default)]
pub struct StateStats {
    per_state: Vec<Vec<f64>>,
}

/// What [`StateStats`] adds up to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StateSummary {
    /// Vectors compared (states times positions).
    pub vectors: usize,
    /// Mean over all vectors.
    pub cosine_mean: f64,
    /// Worst vector.
    pub cosine_min: f64,
    /// The state the worst vector is of.
    pub worst_state: String,
    /// Mean per state, first to last.
    pub per_state: Vec<(String, f64)>,
}

impl StateStats {
    /// Adds every vector that both hold.
    pub fn add(&mut self, reference: &Hidden, got: &Hidden) {
        let states = reference.states.min(got.states);
        if self.per_state.len() < states {
            self.per_state.resize(states, Vec::new());
        }
        for state in 0..states {
            for position in 0..reference.positions.min(got.positions) {
                if let (Some(r), Some(g)) =
                    (reference.get(state, position), got.get(state, position))
                {
                    self.per_state[state].push(cosine(r, g));
                }
            }
        }
    }

    /// Appends another's vectors.
    pub fn merge(&mut self, other: &StateStats) {
        if self.per_state.len() < other.per_state.len() {
            self.per_state.resize(other.per_state.len(), Vec::new());
        }
        for (mine, theirs) in self.per_state.iter_mut().zip(&other.per_state) {
            mine.extend_from_slice(theirs);
        }
    }

    /// The figures; `None` when there was nothing to compare.
    pub fn summary(&self) -> Option<StateSummary> {
        let all: Vec<f64> = self.per_state.iter().flatten().copied().collect();
        if all.is_empty() {
            return None;
        }
        let states = self.per_state.len();
        let name = |i| Hidden::state_name(i, states);
        let worst = self
            .per_state
            .iter()
            .map(|v| min(v))
            .enumerate()
            .min_by(|a, b| nan_first(a.1, b.1))
            .map_or(0, |(i, _)| i);
        Some(StateSummary {
            vectors: all.len(),
            cosine_mean: mean(&all),
            cosine_min: min(&all),
            worst_state: name(worst),
            per_state: self
                .per_state
                .iter()
                .enumerate()
                .map(|(i, v)| (name(i), mean(v)))
                .collect(),
        })
    }
}

fn nan_first(a: f64, b: f64) -> std::cmp::Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => std::cmp::Ordering::Equal,
        (true, false) => std::cmp::Ordering::Less,
        (false, true) => std::cmp::Ordering::Greater,
        _ => a.total_cmp(&b),
    }
}

/// Compares two traces of the same ids: logits row by row, states where both have them.
pub fn compare(reference: &Trace, got: &Trace) -> (LogitStats, StateStats) {
    let mut logits = LogitStats::default();
    for (r, g) in reference.logits.iter().zip(got.logits.iter()) {
        logits.add(r, g);
    }
    let mut states = StateStats::default();
    if let (Some(r), Some(g)) = (&reference.hidden, &got.hidden) {
        states.add(r, g);
    }
    (logits, states)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounding of a handful of f64 operations.
    const F64_ROUNDING: f64 = 1e-12;

    #[test]
    fn cosine_of_known_vectors() {
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < F64_ROUNDING);
        assert_eq!(cosine(&[0.0], &[0.0]), 1.0);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
        assert!(cosine(&[f32::NAN], &[1.0]).is_nan());
    }

    #[test]
    fn kl_matches_the_definition() {
        // softmax of [ln 1, ln 3] is [1/4, 3/4], of [0, 0] it is [1/2, 1/2].
        let p = [0.0f32, 3.0f32.ln()];
        let want = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
        /// f32 logits carry about 1e-7.
        const F32_LOGITS: f64 = 1e-7;
        assert!((kl_divergence(&p, &[0.0, 0.0]) - want).abs() < F32_LOGITS);
        assert_eq!(kl_divergence(&p, &p), 0.0);
        // A constant shift of the logits changes nothing.
        assert!(kl_divergence(&p, &[10.0, 10.0 + 3.0f32.ln()]) < F32_LOGITS);
    }

    #[test]
    fn a_broken_value_is_never_averaged_away() {
        let mut stats = LogitStats::default();
        stats.add(&[1.0, 2.0], &[1.0, 2.0]);
        stats.add(&[1.0, 2.0], &[f32::NAN, 2.0]);
        let summary = stats.summary();
        assert!(summary.cosine_mean.is_nan() && summary.cosine_min.is_nan());
        assert!(summary.kl_mean.is_nan() && summary.max_abs_diff.is_nan());
    }

    #[test]
    fn nearest_rank_quantile_and_standard_error() {
        let v: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&v, 0.99), 99.0);
        assert_eq!(quantile(&[5.0], 0.99), 5.0);
        assert!((standard_error(&[1.0, 3.0]) - 1.0).abs() < F64_ROUNDING);
        assert_eq!(standard_error(&[1.0]), 0.0);
    }

    #[test]
    fn nll_of_a_uniform_row() {
        assert!((nll(&[0.0; 8], 3) - 8.0f64.ln()).abs() < F64_ROUNDING);
        assert!(nll(&[0.0; 8], 8).is_nan());
    }

    #[test]
    fn the_worst_state_is_named() {
        let reference = Hidden {
            states: 3,
            positions: 1,
            width: 2,
            data: vec![1.0, 0.0, 1.0, 0.0, 1.0, 0.0],
        };
        let mut got = reference.clone();
        got.data[3] = 1.0;
        let mut stats = StateStats::default();
        stats.add(&reference, &got);
        let summary = stats.summary().unwrap();
        assert_eq!(summary.worst_state, "layer_0_out");
        assert_eq!(summary.vectors, 3);
    }
}
