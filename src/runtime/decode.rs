//! The decode loop over a chain of chunks.

use super::chain::{Chain, ChainSpec, Host, RopeTable, Sink, Source};
use super::error::{BoxError, Error, Result};
use super::model::{Model, Overflow, zeros};
use super::tensor::{Precision, Tensor};
use crate::package::Package;
use std::collections::BTreeMap;

/// Where the rows of a token come from: a bundle's tables, or a checkpoint's exact rows.
pub trait TokenRows: Send {
    /// The embedding row of `token`, scaled by `sqrt(hidden)`, into `out` (`hidden` values).
    fn embed(&self, token: u32, out: &mut [f32]) -> std::result::Result<(), BoxError>;
    /// The per-layer row of `token`, scaled by `sqrt(per_layer_dim)`, into `out` (layers × per-layer dim values).
    fn per_layer(&self, token: u32, out: &mut [f32]) -> std::result::Result<(), BoxError>;
}

/// How a [`Decoder`] runs.
#[derive(Clone, Debug, Default)]
pub struct DecodeOptions {
    /// Worker threads; 0 means one per core. Results do not depend on it.
    pub threads: usize,
    /// Names of intermediate values to return with every step, e.g. `logits`, `layer_7_out`.
    pub keep: Vec<String>,
}

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

/// A chain of chunks with its caches and position.
pub struct Decoder {
    spec: ChainSpec,
    rows: Box<dyn TokenRows>,
    chunks: Vec<(String, Model)>,
    chain: Chain,
    caches: Vec<Tensor>,
    threads: rayon::ThreadPool,
    position: usize,
    broken: bool,
}

impl Decoder {
    /// Opens and compiles the default function of every chunk and checks that they agree with each other and with `spec`.
    ///
    /// Errors: a package that does not open or compile; a kept name that no chunk has; chunks that disagree on context,
    /// window, widths or caches, both sides named; a RoPE table shorter than the context; a feature that the loop cannot
    /// fill.
    pub fn open(
        spec: ChainSpec,
        precision: Precision,
        rows: Box<dyn TokenRows>,
        options: DecodeOptions,
    ) -> Result<Self> {
        let chunks = load(&spec, precision, &options.keep)?;
        let chain = Chain::new(&spec, &chunks)?;
        let caches = chain.caches.iter().map(zeros).collect::<Result<_>>()?;
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
            chunks,
            chain,
            caches,
            threads,
            position: 0,
            broken: false,
        })
    }

    /// Feeds `token` at the current position. [`Error::ContextFull`] when every position is used: the last slot is never
    /// written twice.
    pub fn step(&mut self, token: u32) -> Result<StepOutput> {
        if self.broken {
            return Err(Error::NeedsReset);
        }
        if self.position >= self.spec.context {
            return Err(Error::ContextFull {
                context: self.spec.context,
            });
        }
        let host = HostValues::new(&self.spec, self.rows.as_ref(), token, self.position)?;
        // What goes wrong from here on leaves caches of two positions.
        self.broken = true;
        let step = self.run_chunks(&host)?;
        self.broken = false;
        self.position += 1;
        Ok(step)
    }

    fn run_chunks(&mut self, host: &HostValues) -> Result<StepOutput> {
        let Self {
            chunks,
            chain,
            caches,
            threads,
            position,
            ..
        } = self;
        let mut carried: Vec<Option<Tensor>> = vec![None; chain.carried];
        let mut kept = BTreeMap::new();
        for ((name, model), wiring) in chunks.iter_mut().zip(&chain.wirings) {
            let mut inputs = Vec::with_capacity(wiring.sources.len());
            for source in &wiring.sources {
                let value = match *source {
                    Source::Host(feature) => host.get(feature),
                    Source::Cache(cache) => Some(take(&mut caches[cache])),
                    Source::Carried { slot, last: true } => carried[slot].take(),
                    Source::Carried { slot, last: false } => carried[slot].clone(),
                };
                inputs.push(value.ok_or_else(|| Error::Chain {
                    chunk: name.clone(),
                    what: "an input has no value".to_owned(),
                })?);
            }
            let results = threads.install(|| model.run_in_order(inputs));
            let results = results.map_err(|source| Error::InChunk {
                chunk: name.clone(),
                position: *position,
                source: Box::new(source),
            })?;
            let mut results = results.into_iter();
            for (sink, value) in wiring.sinks.iter().zip(results.by_ref()) {
                match *sink {
                    Sink::Cache(cache) => caches[cache] = value,
                    Sink::Carried(slot) => carried[slot] = Some(value),
                }
            }
            let names = model.kept().map(|(name, _)| name.to_owned());
            kept.extend(names.zip(results));
        }
        let scalar = |slot: usize| carried[slot].as_ref();
        let token_id = scalar(chain.token_id).map(|t| t.as_i32()).transpose()?;
        let token_logit = scalar(chain.token_logit).map(|t| t.as_f32()).transpose()?;
        match (token_id, token_logit) {
            (Some(&[id]), Some(&[token_logit])) if id >= 0 => Ok(StepOutput {
                token_id: id as u32,
                token_logit,
                kept,
            }),
            _ => Err(Error::Chain {
                chunk: "the last chunk".to_owned(),
                what: "no token".to_owned(),
            }),
        }
    }

    /// Forgets every token: position 0, caches zero, no overflows.
    pub fn reset(&mut self) {
        for (cache, ty) in self.caches.iter_mut().zip(&self.chain.caches) {
            if let Ok(zero) = zeros(ty) {
                *cache = zero;
            }
        }
        self.chunks.iter_mut().for_each(|(_, model)| model.reset());
        self.position = 0;
        self.broken = false;
    }

    /// Number of tokens fed so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Number of positions of the context.
    pub fn context(&self) -> usize {
        self.spec.context
    }

    /// Finite values that became infinite in fp16 since the last reset, with the chunk they belong to;
    /// [`Overflow::first_run`] is the position. Always empty in f32.
    pub fn overflows(&self) -> impl Iterator<Item = (&str, &Overflow)> {
        self.chunks
            .iter()
            .flat_map(|(name, model)| model.overflows().map(move |o| (name.as_str(), o)))
    }
}

/// Takes a tensor out of its place, which is filled again by the end of the step.
fn take(tensor: &mut Tensor) -> Tensor {
    std::mem::replace(tensor, Tensor::empty())
}

/// Compiles every chunk. A kept value is kept by the last chunk that has it.
fn load(spec: &ChainSpec, precision: Precision, keep: &[String]) -> Result<Vec<(String, Model)>> {
    let mut packages = Vec::with_capacity(spec.chunks.len());
    for (name, path) in &spec.chunks {
        packages.push((name, Package::open(path)?));
    }
    let mut keep_in: Vec<Vec<&str>> = vec![Vec::new(); packages.len()];
    for name in keep {
        let has = |package: &Package| {
            let function = package.functions().get(package.default_function());
            function.is_some_and(|f| f.type_of(name).is_some())
        };
        match packages.iter().rposition(|(_, package)| has(package)) {
            Some(chunk) => keep_in[chunk].push(name),
            None => return Err(Error::UnknownValue(name.clone())),
        }
    }
    let mut chunks = Vec::with_capacity(packages.len());
    for ((name, package), keep) in packages.iter().zip(&keep_in) {
        let function = package.default_function();
        chunks.push((
            (*name).clone(),
            Model::load(package, function, precision, keep)?,
        ));
    }
    Ok(chunks)
}

/// The features that the loop fills, for one step.
struct HostValues(Vec<(Host, Tensor)>);

impl HostValues {
    fn new(spec: &ChainSpec, rows: &dyn TokenRows, token: u32, position: usize) -> Result<Self> {
        let mut values = Vec::with_capacity(Host::ALL.len());
        for (host, _) in Host::ALL {
            let shape = host.shape(spec);
            let mut out = vec![0.0; shape.iter().product()];
            fill(host, spec, rows, (token, position), &mut out)?;
            values.push((host, Tensor::f32(&shape, out)?));
        }
        Ok(Self(values))
    }

    fn get(&self, host: Host) -> Option<Tensor> {
        let found = self.0.iter().find(|(h, _)| *h == host);
        found.map(|(_, tensor)| tensor.clone())
    }
}

/// Fills a feature (zeros so far) for a token at a position.
fn fill(
    host: Host,
    spec: &ChainSpec,
    rows: &dyn TokenRows,
    (token, position): (u32, usize),
    out: &mut [f32],
) -> Result<()> {
    let row = |result: std::result::Result<(), BoxError>| {
        result.map_err(|source| Error::TokenRow { token, source })
    };
    match host {
        Host::Hidden => row(rows.embed(token, out))?,
        Host::PerLayer if spec.per_layer > 0 => row(rows.per_layer(token, out))?,
        Host::PerLayer => {}
        Host::FullMask => out[position + 1..].fill(f32::NEG_INFINITY),
        Host::SlidingMask => {
            let hidden = spec.window - spec.window.min(position + 1);
            out[..hidden].fill(f32::NEG_INFINITY);
        }
        Host::UpdateMask => out[position] = 1.0,
        Host::CosSliding => rope_row(&spec.rope.cos_sliding, position, out),
        Host::SinSliding => rope_row(&spec.rope.sin_sliding, position, out),
        Host::CosFull => rope_row(&spec.rope.cos_full, position, out),
        Host::SinFull => rope_row(&spec.rope.sin_full, position, out),
    }
    Ok(())
}

fn rope_row(table: &RopeTable, position: usize, out: &mut [f32]) {
    let values = &table.values[position * table.dim..(position + 1) * table.dim];
    for (o, v) in out.iter_mut().zip(values) {
        *o = v.to_f32();
    }
}
