//! Choosing a token from logits: greedy, or temperature, then top-k, then top-p, in transformers' order.

use crate::runtime::values::error::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

/// Parameters of [`Sampler`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 means greedy.
    pub temperature: f64,
    /// Keeps that many most probable tokens; 0 means all.
    pub top_k: usize,
    /// Keeps the smallest set of most probable tokens that reaches this probability; 1 means all.
    pub top_p: f64,
    /// Seed of the ChaCha12 generator.
    pub seed: u64,
}

impl Default for SamplingOptions {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

/// Draws tokens. The same options and the same logits give the same tokens on every machine.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    rng: ChaCha12Rng,
}

impl Sampler {
    /// Checks the ranges: temperature finite and ≥ 0, top-p in (0, 1].
    pub fn new(options: SamplingOptions) -> Result<Self> {
        if !(options.temperature.is_finite() && options.temperature >= 0.0) {
            return Err(Error::Sampling {
                name: "temperature",
                expected: "finite and at least 0",
                got: options.temperature,
            });
        }
        if !(options.top_p > 0.0 && options.top_p <= 1.0) {
            return Err(Error::Sampling {
                name: "top_p",
                expected: "above 0 and at most 1",
                got: options.top_p,
            });
        }
        Ok(Self {
            options,
            rng: ChaCha12Rng::seed_from_u64(options.seed),
        })
    }

    /// Whether no random number is drawn, so that logits are not needed when the argmax is known.
    pub fn is_greedy(&self) -> bool {
        self.options.temperature == 0.0 || self.options.top_k == 1
    }

    /// One token of `logits` `[vocab]`. Of equal logits the lower index ranks first. `-inf` excludes a token; NaN, `+inf`
    /// and no finite logit at all are errors.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let best = argmax(logits)?;
        if self.is_greedy() {
            return Ok(best as u32);
        }
        let candidates = self.candidates(logits, logits[best]);
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut left = self.rng.random::<f64>() * total;
        for &(index, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return Ok(index as u32);
            }
        }
        // Rounding of the running difference: the last candidate with any weight.
        let last = candidates.iter().rev().find(|c| c.1 > 0.0);
        Ok(last.map_or(best, |c| c.0) as u32)
    }

    /// The tokens left after temperature, top-k and top-p, with their unnormalized probabilities.
    fn candidates(&self, logits: &[f32], best: f32) -> Vec<(usize, f64)> {
        let SamplingOptions {
            temperature,
            top_k,
            top_p,
            ..
        } = self.options;
        let weight = |logit: f32| ((f64::from(logit) - f64::from(best)) / temperature).exp();
        let descending =
            |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let mut ranked: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
        if top_k > 0 && top_k < ranked.len() {
            ranked.select_nth_unstable_by(top_k - 1, descending);
            ranked.truncate(top_k);
        }
        if top_k > 0 || top_p < 1.0 {
            ranked.sort_unstable_by(descending);
        }
        let mut out: Vec<(usize, f64)> = ranked.into_iter().map(|(i, l)| (i, weight(l))).collect();
        if top_p < 1.0 {
            let limit = top_p * out.iter().map(|c| c.1).sum::<f64>();
            let mut before = 0.0;
            let mut keep = 0;
            while keep < out.len() && (keep == 0 || before < limit) {
                before += out[keep].1;
                keep += 1;
            }
            out.truncate(keep);
        }
        out
    }
}

/// Index of the largest logit, the lowest of equals.
fn argmax(logits: &[f32]) -> Result<usize> {
    let mut best: Option<usize> = None;
    for (index, &value) in logits.iter().enumerate() {
        if value.is_nan() || value == f32::INFINITY {
            return Err(Error::Logit { index, value });
        }
        if value > best.map_or(f32::NEG_INFINITY, |b| logits[b]) {
            best = Some(index);
        }
    }
    best.ok_or(Error::NoLogits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allowed difference of an observed frequency: five standard deviations of 20,000 draws at p = 0.5.
    const FREQUENCY_TOLERANCE: f64 = 0.018;
    const DRAWS: usize = 20_000;

    fn sampler(temperature: f64, top_k: usize, top_p: f64) -> Sampler {
        Sampler::new(SamplingOptions {
            temperature,
            top_k,
            top_p,
            seed: 7,
        })
        .unwrap()
    }

    fn frequencies(mut sampler: Sampler, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0usize; logits.len()];
        for _ in 0..DRAWS {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts.iter().map(|&c| c as f64 / DRAWS as f64).collect()
    }

    fn close(got: &[f64], want: &[f64]) {
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < FREQUENCY_TOLERANCE, "{got:?} {want:?}");
            assert!(*w > 0.0 || *g == 0.0, "{got:?} {want:?}");
        }
    }

    fn logs(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn temperature_one_draws_the_softmax() {
        let p = [0.1, 0.5, 0.0, 0.25, 0.15];
        let want: Vec<f64> = p.iter().map(|&p| f64::from(p)).collect();
        close(&frequencies(sampler(1.0, 0, 1.0), &logs(&p)), &want);
    }

    #[test]
    fn temperature_sharpens_and_flattens() {
        let p = [0.2f32, 0.8];
        for t in [0.5, 2.0] {
            let w: Vec<f64> = p.iter().map(|&p| f64::from(p).powf(1.0 / t)).collect();
            let sum: f64 = w.iter().sum();
            let want: Vec<f64> = w.iter().map(|w| w / sum).collect();
            close(&frequencies(sampler(t, 0, 1.0), &logs(&p)), &want);
        }
    }

    #[test]
    fn top_k_keeps_the_k_best_and_of_equals_the_lowest() {
        let p = [0.1, 0.3, 0.3, 0.3];
        close(
            &frequencies(sampler(1.0, 2, 1.0), &logs(&p)),
            &[0.0, 0.5, 0.5, 0.0],
        );
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_p() {
        let p = [0.1, 0.4, 0.2, 0.3];
        // 0.4 + 0.3 = 0.7 < 0.75 <= 0.9.
        let want = [0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0];
        close(&frequencies(sampler(1.0, 0, 0.75), &logs(&p)), &want);
    }

    #[test]
    fn top_p_is_measured_after_top_k() {
        let p = [0.4, 0.3, 0.2, 0.1];
        // Of the three best 0.4/0.9 and 0.3/0.9 reach 0.75; of all four they would reach 0.7 only.
        let want = [4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0];
        close(&frequencies(sampler(1.0, 3, 0.75), &logs(&p)), &want);
    }

    #[test]
    fn temperature_is_applied_before_top_p() {
        let p = [0.6f32, 0.3, 0.1];
        // At temperature 0.5: 0.36, 0.09, 0.01 of 0.46: the first alone reaches 0.75.
        close(
            &frequencies(sampler(0.5, 0, 0.75), &logs(&p)),
            &[1.0, 0.0, 0.0],
        );
    }

    #[test]
    fn the_edges_are_greedy() {
        let logits = [0.5, 2.0, 2.0, -1.0];
        for mut s in [
            sampler(0.0, 0, 1.0),
            sampler(0.0, 3, 0.5),
            sampler(1.7, 1, 1.0),
            sampler(1.0, 0, 1e-300),
        ] {
            for _ in 0..50 {
                assert_eq!(s.sample(&logits).unwrap(), 1);
            }
        }
    }

    #[test]
    fn a_tiny_temperature_does_not_overflow() {
        let mut s = sampler(1e-300, 0, 1.0);
        assert_eq!(s.sample(&[1.0, 30.0, -30.0]).unwrap(), 1);
    }

    #[test]
    fn top_k_beyond_the_vocabulary_is_all() {
        let p = [0.3, 0.7];
        close(&frequencies(sampler(1.0, 9, 1.0), &logs(&p)), &[0.3, 0.7]);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let logits = vec![0.0; 1000];
        let draw = |seed| {
            let options = SamplingOptions {
                temperature: 1.0,
                seed,
                ..Default::default()
            };
            let mut s = Sampler::new(options).unwrap();
            (0..8)
                .map(|_| s.sample(&logits).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn bad_options_and_bad_logits_are_errors() {
        for (t, p) in [(-1.0, 1.0), (f64::NAN, 1.0), (1.0, 0.0), (1.0, 1.5)] {
            let options = SamplingOptions {
                temperature: t,
                top_p: p,
                ..Default::default()
            };
            assert!(matches!(Sampler::new(options), Err(Error::Sampling { .. })));
        }
        let mut s = sampler(1.0, 0, 1.0);
        assert!(matches!(
            s.sample(&[0.0, f32::NAN]),
            Err(Error::Logit { index: 1, .. })
        ));
        assert!(matches!(
            s.sample(&[f32::INFINITY]),
            Err(Error::Logit { index: 0, .. })
        ));
        assert!(matches!(s.sample(&[]), Err(Error::NoLogits)));
        assert!(matches!(
            s.sample(&[f32::NEG_INFINITY]),
            Err(Error::NoLogits)
        ));
    }
}
