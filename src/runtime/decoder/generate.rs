//! Generation: a prompt is fed, then chosen tokens, until a stop token, a count or the end of the context.

use std::ops::ControlFlow;
use std::time::Instant;

use super::decode::Decoder;
use super::sampling::Sampler;
use crate::runtime::values::error::{Error, Result};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// A stop token was chosen; it is the last of the tokens.
    Stop,
    /// The asked number of tokens is there.
    Length,
    /// The context is full: the last token was chosen, but there is no position to feed it at.
    Context,
}

/// When to end.
#[derive(Clone, Debug)]
pub struct Limits<'a> {
    /// Most new tokens.
    pub max_new: usize,
    /// Tokens that end the generation.
    pub stop_ids: &'a [u32],
}

/// What a generation gave.
#[derive(Clone, Debug)]
pub struct Generated {
    /// New tokens only, a stop token included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens fed, the prompt's included.
    pub steps: usize,
    /// Seconds that feeding them took.
    pub seconds: f64,
}

impl Generated {
    /// Tokens fed per second. Prompt tokens count: each takes a step of its own.
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            self.steps as f64 / self.seconds
        } else {
            0.0
        }
    }
}

/// Feeds `prompt` after what the decoder holds already (at once, as far as prefill functions take it), then generates. `on_token` sees each new token but a stop token
/// as it is chosen, and may break off; the result then says [`Finish::Length`].
///
/// # Errors
/// An empty prompt; one that the rest of the context does not hold, before anything is fed; a failing step; sampling
/// without `logits` among the kept values.
pub fn generate(
    decoder: &mut Decoder,
    prompt: &[u32],
    sampler: &mut Sampler,
    limits: &Limits,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generated> {
    let begun = Instant::now();
    let context = decoder.context();
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if decoder.position() + prompt.len() > context {
        return Err(Error::ContextFull { context });
    }
    let mut tokens: Vec<u32> = Vec::new();
    let mut steps = 0;
    let finish = loop {
        if tokens.len() >= limits.max_new {
            break Finish::Length;
        }
        let batched = steps == 0 && prompt.len() > 1 && decoder.position() == 0;
        let out = if batched && decoder.prefill_widths().next().is_some() {
            let (count, out) = decoder.prefill(prompt)?;
            steps = count;
            out
        } else {
            let feed = match prompt.get(steps) {
                Some(id) => *id,
                None if decoder.position() >= context => break Finish::Context,
                None => tokens[steps - prompt.len()],
            };
            steps += 1;
            decoder.step(feed)?
        };
        if steps < prompt.len() {
            continue;
        }
        let token = if sampler.is_greedy() {
            out.token_id
        } else {
            let logits = out
                .kept
                .get("logits")
                .ok_or_else(|| Error::UnknownValue("logits".into()))?;
            sampler.sample(logits.as_f32()?)?
        };
        tokens.push(token);
        if limits.stop_ids.contains(&token) {
            break Finish::Stop;
        }
        if on_token(token).is_break() {
            break Finish::Length;
        }
    };
    Ok(Generated {
        tokens,
        finish,
        steps,
        seconds: begun.elapsed().as_secs_f64(),
    })
}
