//! Parity of a bundle with a reference: teacher-forced over the reference's ids, so that one different token does
//! not spoil the figures after it.
//!
//! The greedy figure needs no second run: as long as the bundle chooses the reference's token, running free and being
//! forced are the same computation, so the first forced step that differs is where a free run would leave.

use serde::Serialize;

use super::error::{Error, Result};
use super::metrics::{LogitStats, LogitSummary, StateStats, StateSummary, compare};
use super::subject::{Run, Subject, teacher_forced};
use super::trace::Trace;

/// How far a free greedy run follows the reference, per prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Greedy {
    /// Tokens equal before the first difference.
    pub equal: usize,
    /// Tokens of the reference.
    pub of: usize,
}

/// One side compared with the reference, over all prompts.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Logits, all steps of all prompts.
    pub logits: LogitSummary,
    /// Hidden states, where both sides have them.
    pub states: Option<StateSummary>,
    /// Per prompt; absent where the two sides are both forced (bundle against bundle).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub greedy: Vec<Greedy>,
}

/// Collects [`Comparison`]s prompt by prompt.
#[derive(Debug, Clone, Default)]
pub struct Comparer {
    logits: LogitStats,
    states: StateStats,
    greedy: Vec<Greedy>,
}

impl Comparer {
    /// Adds a prompt's run against its reference.
    ///
    /// # Errors
    /// Different vocabulary, layer count or hidden size: the two are of different models.
    pub fn add(&mut self, reference: &Trace, run: &Run) -> Result<()> {
        check_same_model(reference, &run.trace)?;
        let (logits, states) = compare(reference, &run.trace);
        self.logits.merge(&logits);
        self.states.merge(&states);
        let equal = reference
            .generated_ids
            .iter()
            .zip(&run.predicted)
            .take_while(|(a, b)| a == b)
            .count();
        self.greedy.push(Greedy {
            equal,
            of: reference.generated_ids.len(),
        });
        Ok(())
    }

    /// Adds a pair of runs of one bundle, without greedy figures.
    ///
    /// # Errors
    /// As [`Comparer::add`].
    pub fn add_pair(&mut self, one: &Trace, other: &Trace) -> Result<()> {
        check_same_model(one, other)?;
        let (logits, states) = compare(one, other);
        self.logits.merge(&logits);
        self.states.merge(&states);
        Ok(())
    }

    /// The figures so far.
    pub fn finish(&self) -> Comparison {
        Comparison {
            logits: self.logits.summary(),
            states: self.states.summary(),
            greedy: self.greedy.clone(),
        }
    }
}

fn check_same_model(reference: &Trace, got: &Trace) -> Result<()> {
    let differ = |what: &str, expected: usize, got: usize| {
        Err(Error::Mismatch {
            what: format!("{what} (reference against bundle)"),
            expected: expected.to_string(),
            got: got.to_string(),
        })
    };
    if reference.logits.width != got.logits.width {
        return differ("vocabulary size", reference.logits.width, got.logits.width);
    }
    if let (Some(r), Some(g)) = (&reference.hidden, &got.hidden) {
        if r.states != g.states {
            return differ("hidden states (layers + 2)", r.states, g.states);
        }
        if r.width != g.width {
            return differ("hidden size", r.width, g.width);
        }
    }
    Ok(())
}

/// Runs `subject` over a reference's ids.
///
/// # Errors
/// More ids than the context holds, or a failing step.
pub fn follow(
    subject: &mut dyn Subject,
    reference: &Trace,
    progress: &mut dyn FnMut(),
) -> Result<Run> {
    let positions = reference.hidden.as_ref().map_or(0, |h| h.positions);
    teacher_forced(
        subject,
        &reference.prompt_ids,
        &reference.generated_ids,
        positions,
        progress,
    )
}

/// Bounds that a comparison must keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gate {
    /// Least mean cosine of logits, and of hidden states where there are any.
    pub mean: f64,
    /// Least cosine of any step or state vector.
    pub min: f64,
}

/// Mean cosine that an unquantized graph with exact token rows keeps when activations are f32.
pub const F32_MEAN: f64 = 0.99999;
/// Worst cosine of the same.
pub const F32_MIN: f64 = 0.9995;
/// Mean cosine of an unquantized graph with exact token rows when every result is rounded to fp16.
pub const F16_MEAN: f64 = 0.999;
/// Worst cosine of the same.
pub const F16_MIN: f64 = 0.99;

impl Gate {
    /// What does not hold, as text; empty when all does. A NaN never holds.
    pub fn failures(&self, c: &Comparison) -> Vec<String> {
        let mut bad = Vec::new();
        let mut check = |what: &str, got: f64, least: f64| {
            if got.is_nan() || got < least {
                bad.push(format!("{what} {got:.7} is below {least}"));
            }
        };
        check("mean logits cosine", c.logits.cosine_mean, self.mean);
        check("worst logits cosine", c.logits.cosine_min, self.min);
        if let Some(s) = &c.states {
            check("mean hidden state cosine", s.cosine_mean, self.mean);
            let name = format!("worst hidden state cosine ({})", s.worst_state);
            check(&name, s.cosine_min, self.min);
        }
        bad
    }
}

#[cfg(test)]
mod tests {
    use super::super::subject::{fake::Sum, greedy};
    use super::*;

    fn reference() -> Trace {
        greedy(&mut Sum::new(11), &[2, 3], 5, 4, &mut || ()).unwrap()
    }

    #[test]
    fn a_model_agrees_with_itself() {
        let reference = reference();
        let run = follow(&mut Sum::new(11), &reference, &mut || ()).unwrap();
        let mut comparer = Comparer::default();
        comparer.add(&reference, &run).unwrap();
        let result = comparer.finish();
        assert_eq!(result.greedy, [Greedy { equal: 5, of: 5 }]);
        assert_eq!(result.logits.kl_mean, 0.0);
        assert_eq!(result.logits.top1_agreement, 1.0);
        let gate = Gate {
            mean: F32_MEAN,
            min: F32_MIN,
        };
        assert!(gate.failures(&result).is_empty());
    }

    #[test]
    fn a_wrong_model_fails_the_gate_and_leaves_the_greedy_path() {
        let reference = reference();
        let mut wrong = Sum::new(11);
        wrong.error = 5.0;
        let run = follow(&mut wrong, &reference, &mut || ()).unwrap();
        let mut comparer = Comparer::default();
        comparer.add(&reference, &run).unwrap();
        let result = comparer.finish();
        assert_eq!(result.greedy[0].equal, 0);
        assert_eq!(result.logits.top1_agreement, 0.0);
        let gate = Gate {
            mean: F32_MEAN,
            min: F32_MIN,
        };
        assert_eq!(gate.failures(&result).len(), 2);
    }

    #[test]
    fn nan_fails_the_gate() {
        let reference = reference();
        let mut broken = Sum::new(11);
        broken.error = f32::NAN;
        let run = follow(&mut broken, &reference, &mut || ()).unwrap();
        let mut comparer = Comparer::default();
        comparer.add(&reference, &run).unwrap();
        let gate = Gate {
            mean: -1.0,
            min: -1.0,
        };
        assert_eq!(gate.failures(&comparer.finish()).len(), 2);
    }

    #[test]
    fn another_models_reference_is_refused() {
        let reference = reference();
        let run = follow(&mut Sum::new(13), &reference, &mut || ()).unwrap();
        let result = Comparer::default().add(&reference, &run);
        assert!(matches!(result, Err(Error::Mismatch { .. })));
    }
}
