//! Quality over a text: KL from the f32 model, agreement and perplexity, teacher-forced.
//!
//! The text's ids are cut into windows that fit the context; each window starts afresh with the first id of the text
//! (its `bos`). A window's logits are compared step by step and not kept.

use serde::Serialize;

use super::error::{Error, Result};
use super::metrics::{LogitStats, LogitSummary, mean, nll, standard_error};
use super::subject::Subject;

/// Figures of a bundle against a model over a text.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TextReport {
    /// Tokens fed.
    pub tokens: usize,
    /// Comparison of the logits after every token.
    pub logits: LogitSummary,
    /// exp of the mean negative log-likelihood of the next token, under the reference and under the bundle.
    pub perplexity_reference: f64,
    /// Of the bundle.
    pub perplexity: f64,
    /// Mean difference of the negative log-likelihoods (bundle less reference), nats per token.
    pub nll_difference: f64,
    /// Standard error of that mean.
    pub nll_difference_stderr: f64,
}

/// Cuts `ids` into windows of at most `length` ids. From the second on, each begins with `ids[0]`.
///
/// # Errors
/// Fewer than two ids, or a length below 2: nothing could be predicted.
pub fn windows(ids: &[u32], length: usize) -> Result<Vec<Vec<u32>>> {
    let Some((&first, rest)) = ids.split_first().filter(|_| ids.len() > 1) else {
        return Err(Error::Mismatch {
            what: "tokens of the text".into(),
            expected: "2 or more".into(),
            got: ids.len().to_string(),
        });
    };
    if length < 2 {
        return Err(Error::Mismatch {
            what: "context for the text".into(),
            expected: "2 or more".into(),
            got: length.to_string(),
        });
    }
    Ok(rest
        .chunks(length - 1)
        .map(|chunk| {
            std::iter::once(first)
                .chain(chunk.iter().copied())
                .collect()
        })
        .collect())
}

/// Runs both models over `ids`.
///
/// # Errors
/// As [`windows`]; different vocabularies; a failing step.
pub fn evaluate_text(
    reference: &mut dyn Subject,
    subject: &mut dyn Subject,
    ids: &[u32],
    progress: &mut dyn FnMut(),
) -> Result<TextReport> {
    let context = [reference.context(), subject.context()]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(ids.len());
    let mut logits = LogitStats::default();
    let (mut nll_reference, mut nll_subject) = (Vec::new(), Vec::new());
    let mut tokens = 0;
    for window in windows(ids, context)? {
        reference.reset()?;
        subject.reset()?;
        for (i, id) in window.iter().enumerate() {
            let expected = reference.step(*id, false)?.logits;
            let got = subject.step(*id, false)?.logits;
            if expected.len() != got.len() {
                return Err(Error::Mismatch {
                    what: "vocabulary size (reference against bundle)".into(),
                    expected: expected.len().to_string(),
                    got: got.len().to_string(),
                });
            }
            logits.add(&expected, &got);
            if let Some(next) = window.get(i + 1) {
                nll_reference.push(nll(&expected, *next));
                nll_subject.push(nll(&got, *next));
            }
            tokens += 1;
            progress();
        }
    }
    let differences: Vec<f64> = nll_subject
        .iter()
        .zip(&nll_reference)
        .map(|(s, r)| s - r)
        .collect();
    Ok(TextReport {
        tokens,
        logits: logits.summary(),
        perplexity_reference: mean(&nll_reference).exp(),
        perplexity: mean(&nll_subject).exp(),
        nll_difference: mean(&differences),
        nll_difference_stderr: standard_error(&differences),
    })
}

#[cfg(test)]
mod tests {
    use super::super::subject::fake::Sum;
    use super::*;

    /// f64 rounding of a few sums.
    const ROUNDING: f64 = 1e-9;

    #[test]
    fn windows_overlap_only_in_the_first_id() {
        let got = windows(&[9, 1, 2, 3, 4, 5], 3).unwrap();
        assert_eq!(got, [vec![9, 1, 2], vec![9, 3, 4], vec![9, 5]]);
        assert!(windows(&[9], 3).is_err());
        assert!(windows(&[9, 1], 1).is_err());
    }

    #[test]
    fn perplexity_of_a_known_model() {
        // Every row has one logit 4 and ten 0; the text never follows the model's choice.
        let mut a = Sum::new(11);
        a.context = Some(4);
        let mut b = Sum::new(11);
        b.context = Some(3);
        let report = evaluate_text(&mut a, &mut b, &[2, 3, 4, 4], &mut || ()).unwrap();
        let want = 4.0f64.exp() + 10.0;
        assert!((report.perplexity - want).abs() < ROUNDING * want);
        assert_eq!(report.perplexity, report.perplexity_reference);
        assert_eq!(report.tokens, 5);
        assert_eq!(report.logits.kl_mean, 0.0);
        assert_eq!(report.nll_difference, 0.0);
    }
}
