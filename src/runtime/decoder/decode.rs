//! The decode loop over a chain of chunks: one token after another, a prompt at once, or several tokens to be verified.

use super::caches;
use super::chain::{Chain, Sink, Source};
use super::functions::{self, Functions, Runner};
use super::host::{Call, CallKind};
use super::spec::{ChainSpec, DecodeOptions, TokenRows};
use super::team;
use crate::runtime::interpreter::model::{Model, Overflow, zeros};
use crate::runtime::interpreter::profile::Profile;
use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::held::Held;
use crate::runtime::values::tensor::{Precision, Tensor};
use crate::runtime::weights::usage::WeightUse;
use std::collections::BTreeMap;

/// What one step gives.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The most probable next token.
    pub token_id: u32,
    /// Its logit, after the softcap.
    pub token_logit: f32,
    /// The values of [`DecodeOptions::keep`]. A name that several chunks have is the last chunk's.
    pub kept: BTreeMap<String, Tensor>,
}

/// What a verification gives, for each of the tokens fed.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The most probable token after each token fed.
    pub token_ids: Vec<u32>,
    /// As [`StepOutput::kept`], for all tokens at once.
    pub kept: BTreeMap<String, Tensor>,
}

/// A chain of chunks with its caches and position.
pub struct Decoder {
    spec: ChainSpec,
    rows: Box<dyn TokenRows>,
    decode: Runner,
    /// By width, ascending.
    prefill: Vec<Runner>,
    verify: Option<Runner>,
    caches: Vec<Held>,
    /// New rows of a verification that is not committed, by cache.
    pending: Vec<(usize, Tensor)>,
    threads: rayon::ThreadPool,
    position: usize,
    broken: bool,
}

/// What the chunks of a call gave.
struct Results {
    carried: Vec<Option<Held>>,
    kept: BTreeMap<String, Tensor>,
    new: Vec<(usize, Tensor)>,
}

impl Decoder {
    /// Opens and compiles every function of every chunk and checks that they agree with each other and with `spec`.
    ///
    /// Errors: a package that does not open or compile; a kept name that no chunk has; chunks or functions that disagree on
    /// context, window, widths or caches, both sides named; a RoPE table shorter than the context; a feature that the loop
    /// cannot fill.
    pub fn open(
        spec: ChainSpec,
        precision: Precision,
        rows: Box<dyn TokenRows>,
        options: DecodeOptions,
    ) -> Result<Self> {
        let Functions {
            decode,
            prefill,
            verify,
        } = functions::load(&spec, precision, &options)?;
        let types = decode.chain.caches.iter().map(|cache| &cache.ty);
        let caches = types.map(|ty| zeros(ty).map(Held::Dense));
        let caches = caches.collect::<Result<_>>()?;
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .build()
            .map_err(|source| Error::Threads {
                threads: options.threads,
                source,
            })?;
        Ok(Self {
            spec,
            rows,
            decode,
            prefill,
            verify,
            caches,
            pending: Vec::new(),
            threads,
            position: 0,
            broken: false,
        })
    }

    /// Feeds `token` at the current position. [`Error::ContextFull`] when every position is used: the last slot is never
    /// written twice.
    pub fn step(&mut self, token: u32) -> Result<StepOutput> {
        self.check_room(1)?;
        let mut results = self.run(CallKind::Decode, &[token])?;
        self.position += 1;
        self.step_output(&mut results, CallKind::Decode)
    }

    /// Widths of the prefill functions, ascending.
    pub fn prefill_widths(&self) -> impl Iterator<Item = usize> {
        self.prefill.iter().map(|r| r.chain.kind.width())
    }

    /// Feeds the beginning of a prompt at once, at position 0: as much as the smallest prefill function that holds all of it
    /// takes, or the largest. Returns the number of tokens fed, and what follows the last of them.
    ///
    /// # Errors
    /// There is no prefill function, tokens were fed before, or there are none to feed.
    pub fn prefill(&mut self, prompt: &[u32]) -> Result<(usize, StepOutput)> {
        if self.position > 0 || prompt.is_empty() {
            return Err(Error::Prefill {
                position: self.position,
                tokens: prompt.len(),
            });
        }
        let widths: Vec<usize> = self.prefill_widths().collect();
        let fitting = widths.iter().find(|&&w| w >= prompt.len());
        let Some(&width) = fitting.or(widths.last()) else {
            return Err(Error::NoFunction { what: "prefill" });
        };
        let count = width.min(prompt.len());
        self.check_room(count)?;
        let kind = CallKind::Prefill(width);
        let mut results = self.run(kind, &prompt[..count])?;
        self.broken = true;
        self.fill_caches(kind, count, &mut results)?;
        let step = self.step_output(&mut results, kind)?;
        self.broken = false;
        self.position = count;
        Ok((count, step))
    }

    /// Tokens that [`Decoder::verify`] takes, if the bundle has that function.
    pub fn verify_width(&self) -> Option<usize> {
        self.verify.as_ref().map(|r| r.chain.kind.width())
    }

    /// Feeds as many tokens as [`Decoder::verify_width`] says at the current position, without keeping them: the position and
    /// the caches are as before, until [`Decoder::commit`] takes the first few of them over.
    ///
    /// # Errors
    /// There is no such function, another number of tokens, or no room for them.
    pub fn verify(&mut self, tokens: &[u32]) -> Result<Verified> {
        let width = self.verify_width();
        let width = width.ok_or(Error::NoFunction { what: "verify" })?;
        if tokens.len() != width {
            return Err(Error::VerifyWidth {
                expected: width,
                got: tokens.len(),
            });
        }
        self.check_room(width)?;
        let Results { carried, kept, new } = self.run(CallKind::Verify(width), tokens)?;
        let slot = self.verify.as_ref().map_or(0, |r| r.chain.token_id);
        let ids = dense(&carried, slot).map(Tensor::as_i32).transpose()?;
        let ids = ids.unwrap_or_default();
        let token_ids: Vec<u32> = ids.iter().flat_map(|&id| u32::try_from(id)).collect();
        if token_ids.len() != width {
            return Err(Error::Chain {
                chunk: "the last chunk".to_owned(),
                what: format!("token_ids {ids:?}: expected {width} tokens"),
            });
        }
        self.pending = new;
        Ok(Verified { token_ids, kept })
    }

    /// Keeps the first `count` tokens of the last verification, as if they had been fed one after another. 0 forgets them all.
    ///
    /// # Errors
    /// More tokens than were verified, or none were.
    pub fn commit(&mut self, count: usize) -> Result<()> {
        let width = self.verify_width().unwrap_or(0);
        if self.pending.is_empty() || count > width {
            return Err(Error::VerifyWidth {
                expected: if self.pending.is_empty() { 0 } else { width },
                got: count,
            });
        }
        self.broken = true;
        for (cache, new) in std::mem::take(&mut self.pending) {
            let sliding = self.decode.chain.caches[cache].name.ends_with("_sliding");
            let at = (!sliding).then_some(self.position);
            caches::append(&mut self.caches[cache], &new, count, at)?;
        }
        self.broken = false;
        self.position += count;
        Ok(())
    }

    fn check_room(&mut self, tokens: usize) -> Result<()> {
        if self.broken {
            return Err(Error::NeedsReset);
        }
        self.pending.clear();
        if self.position + tokens > self.spec.context {
            return Err(Error::ContextFull {
                context: self.spec.context,
            });
        }
        Ok(())
    }

    /// Runs the chunks of a function on `tokens` at the current position. Decode leaves its rows in the caches.
    fn run(&mut self, kind: CallKind, tokens: &[u32]) -> Result<Results> {
        let Self {
            spec,
            rows,
            decode,
            prefill,
            verify,
            caches,
            threads,
            position,
            broken,
            ..
        } = self;
        let others = prefill.iter_mut().chain(verify.as_mut());
        let runner = std::iter::once(decode)
            .chain(others)
            .find(|r| r.chain.kind == kind);
        let Some(Runner { chunks, chain }) = runner else {
            return Err(Error::NoFunction { what: "such" });
        };
        let call = Call {
            spec,
            rows: rows.as_ref(),
            kind,
            how: chain.how,
            tokens,
            position: *position,
            threads: Some(threads),
        };
        let host = host_values(&call, chunks, chain)?;
        // What goes wrong from here on leaves caches of two positions.
        *broken = kind == CallKind::Decode;
        let mut out = Results {
            carried: vec![None; chain.carried],
            kept: BTreeMap::new(),
            new: Vec::new(),
        };
        for ((name, model), wiring) in chunks.iter_mut().zip(&chain.wirings) {
            let mut inputs = Vec::with_capacity(wiring.sources.len());
            for (source, feature) in wiring.sources.iter().zip(model.inputs()) {
                let value = match *source {
                    Source::Host(_) => host.get(&feature.name).cloned().map(Held::Dense),
                    Source::Cache(cache) if kind == CallKind::Decode => {
                        let taken = Held::Dense(Tensor::empty());
                        Some(std::mem::replace(&mut caches[cache], taken))
                    }
                    Source::Cache(cache) => Some(caches[cache].clone()),
                    Source::Carried { slot, last: true } => out.carried[slot].take(),
                    Source::Carried { slot, last: false } => out.carried[slot].clone(),
                };
                inputs.push(value.ok_or_else(|| Error::Chain {
                    chunk: name.clone(),
                    what: format!("input `{}` has no value", feature.name),
                })?);
            }
            let results = match model.is_shared() {
                true => team::run(threads, || model.run_held(inputs)),
                false => threads.install(|| model.run_held(inputs)),
            };
            let results = results.map_err(|source| Error::InChunk {
                chunk: name.clone(),
                position: *position,
                source: Box::new(source),
            })?;
            let mut results = results.into_iter();
            for (sink, value) in wiring.sinks.iter().zip(results.by_ref()) {
                match *sink {
                    Sink::Cache(cache) => caches[cache] = value,
                    Sink::New(cache) => out.new.push((cache, value.into_tensor()?)),
                    Sink::Carried(slot) => out.carried[slot] = Some(value),
                }
            }
            for ((name, _), value) in model.kept().zip(results) {
                out.kept.insert(name.to_owned(), value.into_tensor()?);
            }
        }
        *broken = false;
        Ok(out)
    }

    /// The token of a call that gives one.
    fn step_output(&mut self, results: &mut Results, kind: CallKind) -> Result<StepOutput> {
        let runner = match kind {
            CallKind::Decode => Some(&self.decode),
            _ => self.prefill.iter().find(|r| r.chain.kind == kind),
        };
        let slots = runner.and_then(|r| Some((r.chain.token_id, r.chain.token_logit?)));
        let (id, logit) = slots.unwrap_or_default();
        let scalar = |slot: usize| dense(&results.carried, slot);
        let token_id = scalar(id).map(Tensor::as_i32).transpose()?;
        let token_logit = scalar(logit).map(Tensor::as_f32).transpose()?;
        match (token_id, token_logit) {
            (Some(&[id]), Some(&[token_logit])) if id >= 0 => Ok(StepOutput {
                token_id: id as u32,
                token_logit,
                kept: std::mem::take(&mut results.kept),
            }),
            _ => {
                self.broken = true;
                Err(Error::Chain {
                    chunk: "the last chunk".to_owned(),
                    what: "no token".to_owned(),
                })
            }
        }
    }

    /// Puts the first `count` rows of prefill's K and V into the caches of decode.
    fn fill_caches(&mut self, kind: CallKind, count: usize, results: &mut Results) -> Result<()> {
        let runner = self.prefill.iter().find(|r| r.chain.kind == kind);
        let given = runner.map(|r| r.chain.rows.as_slice()).unwrap_or_default();
        let mut used: BTreeMap<usize, usize> = BTreeMap::new();
        for (owner, &(k, v)) in self.spec.owners.iter().zip(given) {
            let kind = if owner.sliding { "sliding" } else { "full" };
            for (prefix, slot) in [("K", k), ("V", v)] {
                let name = format!("{prefix}_{kind}");
                let mut caches = self.decode.chain.caches.iter();
                let cache = caches.position(|c| c.chunk == owner.chunk && c.name == name);
                let rows = results.carried[slot].take();
                let (Some(cache), Some(rows)) = (cache, rows) else {
                    return Err(Error::Chain {
                        chunk: format!("chunk {} of decode", owner.chunk + 1),
                        what: format!("no cache `{name}` for the rows of prefill"),
                    });
                };
                let next = used.entry(cache).or_default();
                let rows = rows.into_tensor()?;
                caches::fill(&mut self.caches[cache], *next, &rows, count, owner.sliding)?;
                *next += 1;
            }
        }
        Ok(())
    }

    /// Forgets every token: position 0, caches zero, no overflows.
    pub fn reset(&mut self) {
        for (cache, known) in self.caches.iter_mut().zip(&self.decode.chain.caches) {
            if let Ok(zero) = zeros(&known.ty) {
                *cache = Held::Dense(zero);
            }
        }
        self.runners_mut()
            .flat_map(|r| &mut r.chunks)
            .for_each(|(_, model)| model.reset());
        self.pending.clear();
        self.position = 0;
        self.broken = false;
    }

    fn runners_mut(&mut self) -> impl Iterator<Item = &mut Runner> {
        let others = self.prefill.iter_mut().chain(self.verify.as_mut());
        std::iter::once(&mut self.decode).chain(others)
    }

    /// Number of positions fed so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Number of positions of the context.
    pub fn context(&self) -> usize {
        self.spec.context
    }

    /// Copies of the caches of decode as they are: chunk, name without `_in`, `(slots, kv_heads, length, width)`. States are
    /// not among them.
    pub fn caches(&self) -> impl Iterator<Item = (&str, &str, Tensor)> {
        let known = self.decode.chain.caches.iter().zip(&self.caches);
        known.filter_map(|(cache, held)| {
            let chunk = self.decode.chunks[cache.chunk].0.as_str();
            let tensor = held.clone().into_tensor().ok()?;
            Some((chunk, cache.name.as_str(), tensor))
        })
    }

    /// Begins to time the ops of decode anew, or stops. Timing costs a little time itself.
    pub fn set_profiling(&mut self, on: bool) {
        let chunks = self.decode.chunks.iter_mut();
        chunks.for_each(|(_, model)| model.set_profiling(on));
    }

    /// The times of the ops of decode since [`Decoder::set_profiling`], all chunks together.
    pub fn profile(&self) -> Profile {
        let mut all = Profile::default();
        let profiles = self.decode.chunks.iter().flat_map(|(_, m)| m.profile());
        profiles.for_each(|profile| all.merge(profile));
        all
    }

    /// The weights that every token is multiplied with.
    pub fn weights(&self) -> Vec<WeightUse> {
        let chunks = self.decode.chunks.iter();
        chunks.flat_map(|(_, model)| model.weights()).collect()
    }

    /// Finite values that became infinite in fp16 since the last reset, with the chunk they belong to;
    /// [`Overflow::first_run`] is the position. Always empty in f32.
    pub fn overflows(&self) -> impl Iterator<Item = (&str, &Overflow)> {
        let others = self.prefill.iter().chain(self.verify.as_ref());
        let runners = std::iter::once(&self.decode).chain(others);
        runners
            .flat_map(|r| &r.chunks)
            .flat_map(|(name, model)| model.overflows().map(move |o| (name.as_str(), o)))
    }
}

/// What was carried over in a slot, if it is on its own.
fn dense(carried: &[Option<Held>], slot: usize) -> Option<&Tensor> {
    match carried.get(slot)?.as_ref()? {
        Held::Dense(tensor) => Some(tensor),
        Held::Strided(_) => None,
    }
}

/// The features that the loop fills, each once for all chunks.
fn host_values(
    call: &Call<'_>,
    chunks: &[(String, Model)],
    chain: &Chain,
) -> Result<BTreeMap<String, Tensor>> {
    let mut values = BTreeMap::new();
    for ((_, model), wiring) in chunks.iter().zip(&chain.wirings) {
        for (source, feature) in wiring.sources.iter().zip(model.inputs()) {
            if let Source::Host(host) = source
                && !values.contains_key(&feature.name)
            {
                let value = call.value(*host, &feature.ty.shape)?;
                values.insert(feature.name.clone(), value);
            }
        }
    }
    Ok(values)
}
