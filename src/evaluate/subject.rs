//! Something that is fed one token after another: a bundle's decoder, or the f32 reference of a checkpoint.

use super::error::{Error, Result};
use super::trace::{Hidden, Rows, Trace, argmax};

/// What one step gives.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// Greedy choice, as the model itself makes it.
    pub token_id: u32,
    /// Logits after the softcap, `[vocab]`.
    pub logits: Vec<f32>,
    /// Scaled embedding, layer outputs, final norm's output; empty when not asked for.
    pub states: Vec<Vec<f32>>,
}

/// A model that takes one token per step and remembers the ones before.
pub trait Subject {
    /// Forgets every token.
    fn reset(&mut self) -> Result<()>;
    /// Feeds `token` at the next position.
    fn step(&mut self, token: u32, want_states: bool) -> Result<Step>;
    /// Most tokens that can be fed after a reset; `None` when unlimited.
    fn context(&self) -> Option<usize>;
}

/// A trace together with the model's own greedy choices, one per generated id.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Logits and states.
    pub trace: Trace,
    /// `predicted[n]` was chosen after the ids before `generated_ids[n]`.
    pub predicted: Vec<u32>,
}

fn check_length(subject: &dyn Subject, positions: usize) -> Result<()> {
    match subject.context() {
        Some(context) if positions > context => Err(Error::Mismatch {
            what: "tokens to run".into(),
            expected: format!("at most the bundle's context of {context}"),
            got: positions.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Feeds prompt and generated ids whatever the model would have chosen, and records what it makes of them. `progress` is
/// called once per token.
///
/// # Errors
/// More ids than the context holds, or a failing step.
pub fn teacher_forced(
    subject: &mut dyn Subject,
    prompt_ids: &[u32],
    generated_ids: &[u32],
    state_positions: usize,
    progress: &mut dyn FnMut(),
) -> Result<Run> {
    let positions = Trace::positions_to_run(prompt_ids.len(), generated_ids.len(), state_positions);
    check_length(subject, positions)?;
    subject.reset()?;
    let first_scored = prompt_ids.len().saturating_sub(1);
    let scored = first_scored..first_scored + generated_ids.len();
    let mut run = Run::default();
    let mut states = Vec::new();
    let ids = prompt_ids.iter().chain(generated_ids).take(positions);
    for (position, id) in ids.enumerate() {
        let step = subject.step(*id, position < state_positions)?;
        if scored.contains(&position) {
            let logits = &mut run.trace.logits;
            if logits.is_empty() {
                *logits = Rows::new(step.logits.len());
            }
            logits.push(&step.logits);
            run.predicted.push(step.token_id);
        }
        if position < state_positions {
            states.push(step.states);
        }
        progress();
    }
    run.trace.prompt_ids = prompt_ids.to_vec();
    run.trace.generated_ids = generated_ids.to_vec();
    run.trace.hidden = (!states.is_empty()).then(|| Hidden::from_positions(&states));
    Ok(run)
}

/// Feeds the prompt, then `count` tokens of the model's own greedy choice. States are those of the first
/// `state_positions` positions.
///
/// # Errors
/// As [`teacher_forced`].
pub fn greedy(
    subject: &mut dyn Subject,
    prompt_ids: &[u32],
    count: usize,
    state_positions: usize,
    progress: &mut dyn FnMut(),
) -> Result<Trace> {
    check_length(subject, (prompt_ids.len() + count).saturating_sub(1))?;
    subject.reset()?;
    let mut trace = Trace {
        prompt_ids: prompt_ids.to_vec(),
        ..Trace::default()
    };
    let mut states = Vec::new();
    let mut position = 0;
    while trace.generated_ids.len() < count {
        let next = prompt_ids
            .get(position)
            .or_else(|| trace.generated_ids.get(position - prompt_ids.len()));
        let Some(&id) = next else { break };
        let step = subject.step(id, position < state_positions)?;
        if position < state_positions {
            states.push(step.states);
        }
        position += 1;
        if position >= prompt_ids.len() {
            if trace.logits.is_empty() {
                trace.logits = Rows::new(step.logits.len());
            }
            trace.logits.push(&step.logits);
            trace.generated_ids.push(argmax(&step.logits) as u32);
        }
        progress();
    }
    trace.hidden = (!states.is_empty()).then(|| Hidden::from_positions(&states));
    Ok(trace)
}

#[cfg(test)]
pub(crate) mod fake {
    //! A model small enough to know its answers: the next token is the sum of all fed so far, modulo the vocabulary.

    use super::*;

    /// See the module.
    pub struct Sum {
        pub vocab: u32,
        pub fed: Vec<u32>,
        pub context: Option<usize>,
        /// Added to every logit row at its first element.
        pub error: f32,
    }

    impl Sum {
        pub fn new(vocab: u32) -> Self {
            Sum {
                vocab,
                fed: Vec::new(),
                context: None,
                error: 0.0,
            }
        }
    }

    impl Subject for Sum {
        fn reset(&mut self) -> Result<()> {
            self.fed.clear();
            Ok(())
        }

        fn step(&mut self, token: u32, want_states: bool) -> Result<Step> {
            self.fed.push(token);
            let sum = self.fed.iter().sum::<u32>() % self.vocab;
            let mut logits = vec![0.0; self.vocab as usize];
            logits[sum as usize] = 4.0;
            logits[0] += self.error;
            let states = match want_states {
                true => (0..3).map(|i| vec![sum as f32 + 1.0, i as f32]).collect(),
                false => Vec::new(),
            };
            Ok(Step {
                token_id: argmax(&logits) as u32,
                logits,
                states,
            })
        }

        fn context(&self) -> Option<usize> {
            self.context
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Sum;
    use super::*;

    #[test]
    fn greedy_then_teacher_forced_is_the_same_trace() {
        let mut model = Sum::new(11);
        let free = greedy(&mut model, &[2, 3], 5, 4, &mut || ()).unwrap();
        assert_eq!(free.generated_ids, [5, 10, 9, 7, 3]);
        assert_eq!(model.fed.len(), 6);
        let mut steps = 0;
        let forced = teacher_forced(&mut model, &[2, 3], &free.generated_ids, 4, &mut || {
            steps += 1;
        })
        .unwrap();
        assert_eq!(forced.trace, free);
        assert_eq!(forced.predicted, free.generated_ids);
        assert_eq!(steps, 6);
        assert_eq!(forced.trace.hidden.unwrap().positions, 4);
    }

    #[test]
    fn too_many_tokens_are_refused_before_the_first() {
        let mut model = Sum::new(11);
        model.context = Some(5);
        assert!(greedy(&mut model, &[2, 3], 4, 0, &mut || ()).is_ok());
        model.fed.clear();
        assert!(greedy(&mut model, &[2, 3], 5, 0, &mut || ()).is_err());
        assert!(model.fed.is_empty());
        assert!(teacher_forced(&mut model, &[2, 3], &[1, 1, 1, 1], 6, &mut || ()).is_err());
    }
}
