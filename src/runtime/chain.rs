//! What the decode loop needs of a bundle, and how its chunks feed each other.
//!
//! Which feature goes where is decided from the declared names: `X_in` with an output `X_out` of the same chunk is a cache
//! that comes back in the next step; a name of [`Host`] is filled by the loop; any other input is an output of an earlier
//! chunk, under its own name or with `_out` behind it.

use super::error::{Error, Result};
use super::model::Model;
use super::plan::Feature;
use crate::mil::{DType, TensorType};
use half::f16;
use std::path::PathBuf;

/// A table of cos or sin rows, as stored: `[rows, dim]` fp16, row = position.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Number of positions.
    pub rows: usize,
    /// Head dim.
    pub dim: usize,
    /// `rows * dim` values, row-major.
    pub values: Vec<f16>,
}

/// The four RoPE tables of a bundle.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTables {
    /// `cos_sliding.npy`, feature `cos_s`.
    pub cos_sliding: RopeTable,
    /// `sin_sliding.npy`, feature `sin_s`.
    pub sin_sliding: RopeTable,
    /// `cos_full.npy`, feature `cos_f`.
    pub cos_full: RopeTable,
    /// `sin_full.npy`, feature `sin_f`.
    pub sin_full: RopeTable,
}

/// The chunks of a decode chain.
#[derive(Clone, Debug)]
pub struct ChainSpec {
    /// `(name, package directory)` in execution order.
    pub chunks: Vec<(String, PathBuf)>,
    /// Positions of the full-attention caches.
    pub context: usize,
    /// Positions of the sliding caches, the current token included.
    pub window: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Length of a per-layer row, layers × per-layer dim; 0 without per-layer embeddings.
    pub per_layer: usize,
    /// RoPE rows.
    pub rope: RopeTables,
}

/// A feature that the decode loop fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// `hidden_states [1, 1, H]`: the embedding row.
    Hidden,
    /// `per_layer_raw [1, 1, L * D]`: the per-layer row.
    PerLayer,
    /// `causal_mask_full [1, 1, 1, context]`: 0 up to the position, -inf after it.
    FullMask,
    /// `causal_mask_sliding [1, 1, 1, window]`: the last min(position + 1, window) are 0, those before -inf.
    SlidingMask,
    /// `update_mask [1, 1, context, 1]`: 1 at the position, 0 elsewhere.
    UpdateMask,
    /// `cos_s [1, 1, 1, head_dim]`.
    CosSliding,
    /// `sin_s`.
    SinSliding,
    /// `cos_f [1, 1, 1, global_head_dim]`.
    CosFull,
    /// `sin_f`.
    SinFull,
}

impl Host {
    /// Every feature with its name.
    pub const ALL: [(Host, &'static str); 9] = [
        (Host::Hidden, "hidden_states"),
        (Host::PerLayer, "per_layer_raw"),
        (Host::FullMask, "causal_mask_full"),
        (Host::SlidingMask, "causal_mask_sliding"),
        (Host::UpdateMask, "update_mask"),
        (Host::CosSliding, "cos_s"),
        (Host::SinSliding, "sin_s"),
        (Host::CosFull, "cos_f"),
        (Host::SinFull, "sin_f"),
    ];

    fn named(name: &str) -> Option<Host> {
        let found = Host::ALL.iter().find(|(_, n)| *n == name);
        found.map(|(host, _)| *host)
    }

    /// The shape that the loop makes.
    pub fn shape(self, spec: &ChainSpec) -> Vec<usize> {
        match self {
            Host::Hidden => vec![1, 1, spec.hidden],
            Host::PerLayer => vec![1, 1, spec.per_layer],
            Host::FullMask => vec![1, 1, 1, spec.context],
            Host::SlidingMask => vec![1, 1, 1, spec.window],
            Host::UpdateMask => vec![1, 1, spec.context, 1],
            Host::CosSliding => vec![1, 1, 1, spec.rope.cos_sliding.dim],
            Host::SinSliding => vec![1, 1, 1, spec.rope.sin_sliding.dim],
            Host::CosFull => vec![1, 1, 1, spec.rope.cos_full.dim],
            Host::SinFull => vec![1, 1, 1, spec.rope.sin_full.dim],
        }
    }
}

/// Where an input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The decode loop.
    Host(Host),
    /// The cache of this index.
    Cache(usize),
    /// What an earlier chunk carried over, of this index; `last` if nothing reads it after.
    Carried { slot: usize, last: bool },
}

/// Where an output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sink {
    /// The cache of this index.
    Cache(usize),
    /// To later chunks.
    Carried(usize),
}

/// The wiring of one chunk.
#[derive(Debug, Default)]
pub(crate) struct Wiring {
    /// One per input, in order.
    pub sources: Vec<Source>,
    /// One per output, in order.
    pub sinks: Vec<Sink>,
}

/// The wiring of a chain.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// One per chunk.
    pub wirings: Vec<Wiring>,
    /// Types of the caches.
    pub caches: Vec<TensorType>,
    /// Number of values carried over.
    pub carried: usize,
    /// Carried slot of `token_id`.
    pub token_id: usize,
    /// Carried slot of `token_logit`.
    pub token_logit: usize,
}

/// An output seen so far.
struct Offered {
    chunk: String,
    name: String,
    ty: TensorType,
    slot: usize,
}

impl Chain {
    /// Wires compiled chunks and checks that they agree with each other and with `spec`.
    pub fn new(spec: &ChainSpec, chunks: &[(String, Model)]) -> Result<Self> {
        check_rope(spec)?;
        let mut chain = Chain::default();
        let mut offered: Vec<Offered> = Vec::new();
        for (chunk, model) in chunks {
            let wiring = chain.wire(spec, chunk, model, &mut offered)?;
            chain.wirings.push(wiring);
        }
        chain.carried = offered.len();
        let result = |name: &str, dtype: DType| {
            let found = offered.iter().rev().find(|o| o.name == name);
            match found {
                Some(o)
                    if o.ty.elements() == Some(1)
                        && (o.ty.dtype == DType::Int32) == (dtype == DType::Int32) =>
                {
                    Ok(o.slot)
                }
                Some(o) => Err(Error::Chain {
                    chunk: o.chunk.clone(),
                    what: format!("output `{name}`: expected one {dtype}, got {}", o.ty),
                }),
                None => Err(Error::Chain {
                    chunk: chunks
                        .last()
                        .map_or_else(String::new, |(name, _)| name.clone()),
                    what: format!("no output `{name}` here nor in an earlier chunk"),
                }),
            }
        };
        chain.token_id = result("token_id", DType::Int32)?;
        chain.token_logit = result("token_logit", DType::Fp16)?;
        chain.mark_last();
        Ok(chain)
    }

    fn wire(
        &mut self,
        spec: &ChainSpec,
        chunk: &str,
        model: &Model,
        offered: &mut Vec<Offered>,
    ) -> Result<Wiring> {
        let mut wiring = Wiring::default();
        if let Some(state) = model.states().first() {
            return Err(Error::Chain {
                chunk: chunk.to_owned(),
                what: format!(
                    "state `{}`: stateful chunks are not decoded yet",
                    state.name
                ),
            });
        }
        let first_cache = self.caches.len();
        let mut cache_names = Vec::new();
        for input in model.inputs() {
            let source = if let Some(returned) = returned_as(&input.name, model) {
                self.check_cache(spec, chunk, input, &returned)?;
                cache_names.push(returned.name);
                self.caches.push(input.ty.clone());
                Source::Cache(self.caches.len() - 1)
            } else {
                source_of(spec, chunk, input, offered)?
            };
            wiring.sources.push(source);
        }
        for (name, ty) in model.outputs() {
            let cache = cache_names.iter().position(|cache| cache == name);
            wiring.sinks.push(match cache {
                Some(i) => Sink::Cache(first_cache + i),
                None => {
                    offered.push(Offered {
                        chunk: chunk.to_owned(),
                        name: name.to_owned(),
                        ty: ty.clone(),
                        slot: offered.len(),
                    });
                    Sink::Carried(offered.len() - 1)
                }
            });
        }
        Ok(wiring)
    }

    /// A cache comes back as it went in; caches of K and V have the length of their kind.
    fn check_cache(
        &self,
        spec: &ChainSpec,
        chunk: &str,
        input: &Feature,
        output: &Feature,
    ) -> Result<()> {
        let of = |name: &str| format!("`{name}` of {chunk}");
        if input.ty != output.ty {
            return Err(Error::Disagreement {
                what: "type of a cache",
                left_name: of(&input.name),
                left: input.ty.to_string(),
                right_name: of(&output.name),
                right: output.ty.to_string(),
            });
        }
        let expected = match () {
            _ if input.name.contains("_sliding_") => ("sliding window", spec.window),
            _ if input.name.contains("_full_") => ("context", spec.context),
            _ => return Ok(()),
        };
        // [slots, kv_heads, positions, head_dim]
        let positions = match input.ty.shape[..] {
            [_, _, positions, _] => positions,
            _ => 0,
        };
        match positions == expected.1 {
            true => Ok(()),
            false => Err(Error::Disagreement {
                what: expected.0,
                left_name: of(&input.name),
                left: input.ty.to_string(),
                right_name: "the bundle".to_owned(),
                right: expected.1.to_string(),
            }),
        }
    }

    /// Marks the last reader of each carried value, which may take its memory.
    fn mark_last(&mut self) {
        let mut read = vec![false; self.carried];
        for slot in [self.token_id, self.token_logit] {
            read[slot] = true;
        }
        let wirings = self.wirings.iter_mut().rev();
        for source in wirings.flat_map(|w| w.sources.iter_mut().rev()) {
            if let Source::Carried { slot, last } = source {
                *last = !std::mem::replace(&mut read[*slot], true);
            }
        }
    }
}

/// The output that gives back the cache `name`, if it is one.
fn returned_as(name: &str, model: &Model) -> Option<Feature> {
    let output = format!("{}_out", name.strip_suffix("_in")?);
    let mut outputs = model.outputs();
    let found = outputs.find(|(name, _)| *name == output)?;
    Some(Feature {
        name: output.clone(),
        ty: found.1.clone(),
    })
}

/// An input that is no cache: from an earlier chunk, or from the loop.
fn source_of(
    spec: &ChainSpec,
    chunk: &str,
    input: &Feature,
    offered: &[Offered],
) -> Result<Source> {
    let with_out = format!("{}_out", input.name);
    let found = offered
        .iter()
        .rev()
        .find(|o| o.name == input.name || o.name == with_out);
    let name = || format!("`{}` of {chunk}", input.name);
    if let Some(offer) = found {
        if offer.ty != input.ty {
            return Err(Error::Disagreement {
                what: "type of a feature that one chunk gives and another takes",
                left_name: format!("`{}` of {}", offer.name, offer.chunk),
                left: offer.ty.to_string(),
                right_name: name(),
                right: input.ty.to_string(),
            });
        }
        return Ok(Source::Carried {
            slot: offer.slot,
            last: false,
        });
    }
    let Some(host) = Host::named(&input.name) else {
        return Err(Error::Chain {
            chunk: chunk.to_owned(),
            what: format!(
                "input `{}` is neither a cache, nor given by an earlier chunk, nor known",
                input.name
            ),
        });
    };
    let shape = host.shape(spec);
    if input.ty.shape != shape || !input.ty.dtype.is_float() {
        return Err(Error::Disagreement {
            what: "type of a feature",
            left_name: name(),
            left: input.ty.to_string(),
            right_name: "the bundle".to_owned(),
            right: TensorType::new(DType::Fp16, &shape).to_string(),
        });
    }
    Ok(Source::Host(host))
}

fn check_rope(spec: &ChainSpec) -> Result<()> {
    let rope = &spec.rope;
    for (name, table) in [
        ("cos_sliding", &rope.cos_sliding),
        ("sin_sliding", &rope.sin_sliding),
        ("cos_full", &rope.cos_full),
        ("sin_full", &rope.sin_full),
    ] {
        if table.rows < spec.context
            || table.rows.checked_mul(table.dim) != Some(table.values.len())
        {
            return Err(Error::Disagreement {
                what: "length of a RoPE table",
                left_name: name.to_owned(),
                left: format!(
                    "{} rows of {} ({} values)",
                    table.rows,
                    table.dim,
                    table.values.len()
                ),
                right_name: "the context".to_owned(),
                right: spec.context.to_string(),
            });
        }
    }
    Ok(())
}
