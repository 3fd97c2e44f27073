//! A model that is evaluated: the f32 reference, a bundle's weights in the reference's forward, or a bundle op by op.

use super::error::Result;
use super::recall::RecallContext;
use crate::evaluate::{BundleSubject, Subject, argmax};
use crate::gemma::reference::{Keep, Reference};

/// Logits that are held at a time, in values.
const LOGITS: usize = 64 << 20;

/// See the module.
pub(crate) enum Model<'a> {
    /// Many tokens at once.
    Batched(Box<Reference<'a>>),
    /// Token by token.
    Interpreted(Box<BundleSubject>),
}

impl Model<'_> {
    /// Feeds a window from position 0 and hands out the logits after each of its tokens.
    pub fn over(
        &mut self,
        window: &[u32],
        each: &mut dyn FnMut(usize, Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        match self {
            Model::Batched(reference) => {
                let piece = (LOGITS / reference.plan().vocab).max(1);
                let keep = Keep {
                    all_logits: true,
                    hidden: false,
                };
                let mut cache = reference.cache();
                for ids in window.chunks(piece) {
                    let first = cache.position();
                    let out = reference.forward(ids, &mut cache, keep)?;
                    for (i, row) in out.logits.into_iter().enumerate() {
                        each(first + i, row)?;
                    }
                }
            }
            Model::Interpreted(subject) => {
                subject.reset()?;
                for (i, id) in window.iter().enumerate() {
                    each(i, subject.step(*id, false)?.logits)?;
                }
            }
        }
        Ok(())
    }

    /// The most likely id after the context and the key of each of its questions.
    pub fn answers(&mut self, context: &RecallContext) -> Result<Vec<u32>> {
        let keys = context.asks.iter().map(|ask| ask.key);
        let mut answers = Vec::with_capacity(context.asks.len());
        match self {
            Model::Batched(reference) => {
                let mut cache = reference.cache();
                reference.forward(&context.ids, &mut cache, Keep::default())?;
                for key in keys {
                    let mut cache = cache.clone();
                    let out = reference.forward(&[key], &mut cache, Keep::default())?;
                    answers.push(argmax(out.logits.last().map_or(&[], Vec::as_slice)) as u32);
                }
            }
            Model::Interpreted(subject) => {
                for key in keys {
                    subject.reset()?;
                    for id in &context.ids {
                        subject.step(*id, false)?;
                    }
                    answers.push(subject.step(key, false)?.token_id);
                }
            }
        }
        Ok(answers)
    }
}

/// Up to `count` tokens of the reference's own choice after `prompt`; a stop token is the last.
pub(super) fn greedy(
    reference: &Reference<'_>,
    prompt: &[u32],
    count: usize,
    stop: &[u32],
    step: &mut dyn FnMut(),
) -> Result<Vec<u32>> {
    let mut cache = reference.cache();
    let mut next = prompt.to_vec();
    let mut tokens = Vec::new();
    while tokens.len() < count {
        let out = reference.forward(&next, &mut cache, Keep::default())?;
        let token = argmax(out.logits.last().map_or(&[], Vec::as_slice)) as u32;
        tokens.push(token);
        step();
        if stop.contains(&token) {
            break;
        }
        next = vec![token];
    }
    Ok(tokens)
}
