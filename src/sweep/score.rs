//! What one row of logits says against the reference's, of which the largest logits and two sums are kept.

use serde::{Deserialize, Serialize};

use crate::evaluate::argmax;
use crate::evaluate::metrics::{log_sum_exp, mean, quantile, standard_error};

/// Logits kept of each row of the reference, at most.
pub const TOP: usize = 1024;

/// What is kept of a row of the reference's logits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopRow {
    /// Ids of the largest logits, the largest first, the lowest id first among equal ones.
    pub ids: Vec<u32>,
    /// Their logits.
    pub logits: Vec<f32>,
    /// `ln(sum(exp(logit)))` of the whole row.
    pub log_sum: f64,
    /// The same of all but the largest; minus infinity when there are no others.
    pub log_rest: f64,
    /// Logit of the id that follows in the text; NaN where none does.
    pub next: f32,
}

impl TopRow {
    /// Keeps the `top` largest of a row. `next` is the id that follows. Logits in `row` are overwritten.
    pub fn of(row: &mut [f32], top: usize, next: Option<u32>) -> Self {
        let log_sum = log_sum_exp(row);
        let next = next.and_then(|id| row.get(id as usize)).copied();
        let mut ids: Vec<u32> = (0..row.len() as u32).collect();
        let larger = |a: &u32, b: &u32| {
            let (x, y) = (row[*a as usize], row[*b as usize]);
            y.total_cmp(&x).then(a.cmp(b))
        };
        let top = top.min(ids.len());
        if top > 0 && top < ids.len() {
            ids.select_nth_unstable_by(top - 1, larger);
            ids.truncate(top);
        }
        ids.sort_by(larger);
        let logits = ids.iter().map(|&id| row[id as usize]).collect();
        Self {
            log_rest: log_sum_without(row, &ids),
            ids,
            logits,
            log_sum,
            next: next.unwrap_or(f32::NAN),
        }
    }

    /// Kullback-Leibler divergence of softmax(`got`) from the reference, in nats: the terms of the kept ids, and one for all
    /// others together. By the log-sum inequality at most the true divergence, and equal to it when every id is kept.
    /// `log_sum` is that of `got`, whose kept logits are overwritten.
    pub fn kl_divergence(&self, got: &mut [f32], log_sum: f64) -> f64 {
        let mut sum = 0.0;
        for (&id, &logit) in self.ids.iter().zip(&self.logits) {
            let p = f64::from(logit) - self.log_sum;
            let q = f64::from(got[id as usize]) - log_sum;
            let weight = p.exp();
            if weight > 0.0 || weight.is_nan() {
                sum += weight * (p - q);
            }
        }
        if self.ids.len() < got.len() {
            let p = self.log_rest - self.log_sum;
            let q = log_sum_without(got, &self.ids) - log_sum;
            let weight = p.exp();
            if weight > 0.0 || weight.is_nan() {
                sum += weight * (p - q);
            }
        }
        // Rounding can leave a tiny negative sum; a NaN stays one.
        if sum < 0.0 { 0.0 } else { sum }
    }
}

/// `ln(sum(exp(logit)))` of all but `ids`, whose logits become minus infinity.
fn log_sum_without(row: &mut [f32], ids: &[u32]) -> f64 {
    if ids.len() == row.len() {
        return f64::NEG_INFINITY;
    }
    for &id in ids {
        row[id as usize] = f32::NEG_INFINITY;
    }
    log_sum_exp(row)
}

/// Figures of a bundle against the f32 reference over a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Tokens fed.
    pub tokens: usize,
    /// KL divergence from the reference in nats, mean over the tokens.
    #[serde(deserialize_with = "number")]
    pub kl_mean: f64,
    /// Its standard error.
    #[serde(deserialize_with = "number")]
    pub kl_stderr: f64,
    /// 99th percentile (nearest rank).
    #[serde(deserialize_with = "number")]
    pub kl_p99: f64,
    /// Share of tokens after which the largest logit is at the same id.
    #[serde(deserialize_with = "number")]
    pub top1_agreement: f64,
    /// exp of the mean negative log-likelihood of the next token.
    #[serde(deserialize_with = "number")]
    pub perplexity: f64,
    /// Of the reference.
    #[serde(deserialize_with = "number")]
    pub perplexity_reference: f64,
    /// Mean difference of the negative log-likelihoods (bundle less reference), nats per token.
    #[serde(deserialize_with = "number")]
    pub nll_difference: f64,
    /// Standard error of that mean.
    #[serde(deserialize_with = "number")]
    pub nll_difference_stderr: f64,
}

/// A number that JSON may have as null, which is how it writes NaN.
pub(super) fn number<'de, D: serde::Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
}

/// Gathers [`Figures`] row by row.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    kls: Vec<f64>,
    top1: usize,
    nll: Vec<f64>,
    nll_reference: Vec<f64>,
}

impl Scores {
    /// Adds the logits after one token; `next` is the token that follows in the text. They are overwritten.
    pub fn add(&mut self, reference: &TopRow, got: &mut [f32], next: Option<u32>) {
        let log_sum = log_sum_exp(got);
        self.top1 += usize::from(reference.ids.first() == Some(&(argmax(got) as u32)));
        if let Some(logit) = next.and_then(|id| got.get(id as usize)) {
            self.nll.push(log_sum - f64::from(*logit));
            self.nll_reference
                .push(reference.log_sum - f64::from(reference.next));
        }
        self.kls.push(reference.kl_divergence(got, log_sum));
    }

    /// Mean KL divergence of the first `tokens` tokens; NaN when there are none.
    pub fn kl_of_first(&self, tokens: usize) -> f64 {
        mean(&self.kls[..tokens.min(self.kls.len())])
    }

    /// The figures; NaN where there was no token.
    pub fn figures(&self) -> Figures {
        let pairs = self.nll.iter().zip(&self.nll_reference);
        let differences: Vec<f64> = pairs.map(|(s, r)| s - r).collect();
        Figures {
            tokens: self.kls.len(),
            kl_mean: mean(&self.kls),
            kl_stderr: standard_error(&self.kls),
            kl_p99: quantile(&self.kls, 0.99),
            top1_agreement: self.top1 as f64 / self.kls.len() as f64,
            perplexity: mean(&self.nll).exp(),
            perplexity_reference: mean(&self.nll_reference).exp(),
            nll_difference: mean(&differences),
            nll_difference_stderr: standard_error(&differences),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::metrics::kl_divergence;

    /// f64 sums of f32 logits in two orders.
    const ROUNDING: f64 = 1e-9;
    const IDS: usize = 97;

    /// Two rows of logits that differ by noise.
    fn rows(seed: u32) -> (Vec<f32>, Vec<f32>) {
        let mut state = seed;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let row: Vec<f32> = (0..IDS).map(|_| noise() * 12.0).collect();
        let other = row.iter().map(|v| v + noise()).collect();
        (row, other)
    }

    fn kl(row: &[f32], got: &[f32], top: usize) -> f64 {
        let kept = TopRow::of(&mut row.to_vec(), top, None);
        assert_eq!(kept.ids.len(), top.min(IDS));
        let log_sum = log_sum_exp(got);
        kept.kl_divergence(&mut got.to_vec(), log_sum)
    }

    #[test]
    fn kl_is_exact_with_every_id_and_a_lower_bound_with_fewer() {
        for seed in 1..20 {
            let (row, got) = rows(seed);
            let exact = kl_divergence(&row, &got);
            assert!(exact > 0.01, "{exact}");
            assert!((kl(&row, &got, IDS) - exact).abs() < ROUNDING);
            let mut last = 0.0;
            for top in [1, 2, 8, 32, IDS - 1] {
                let bound = kl(&row, &got, top);
                assert!(bound <= exact + ROUNDING, "{top}: {bound} > {exact}");
                assert!(bound + ROUNDING >= last, "{top}: {bound} < {last}");
                last = bound;
            }
            // With one id left over the bucket is that id.
            assert!((last - exact).abs() < ROUNDING);
        }
    }

    #[test]
    fn ids_are_sorted_and_ties_go_to_the_lowest() {
        let kept = TopRow::of(&mut [1.0, 3.0, 2.0, 3.0], 3, Some(2));
        assert_eq!(kept.ids, [1, 3, 2]);
        assert_eq!(kept.logits, [3.0, 3.0, 2.0]);
        assert_eq!(kept.next, 2.0);
        assert_eq!(kept.log_rest, 1.0);
    }

    #[test]
    fn a_nan_stays_visible() {
        let (row, mut got) = rows(3);
        got[5] = f32::NAN;
        assert!(kl(&row, &got, 4).is_nan());
        assert!(kl(&row, &got, IDS).is_nan());
    }
}
