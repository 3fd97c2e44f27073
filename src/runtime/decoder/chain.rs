//! How the chunks of a bundle feed each other.
//!
//! Which feature goes where is decided from the declared names: `X_in` with an output `X_out` of the same chunk is a cache
//! that comes back in the next step (verify gives `new_X` instead, the rows to put into it); an output of an earlier chunk,
//! under its own name or with `_out` behind it, goes to the input of that name; any other name of [`Host`] is filled by
//! the loop. `K0`, `V0`, `K1`, ... of prefill are rows of the layers that own K/V, in order.

use super::host::{CallKind, Conventions, Host};
use super::spec::ChainSpec;
use crate::mil::{DType, TensorType};
use crate::runtime::interpreter::model::Model;
use crate::runtime::interpreter::plan::Feature;
use crate::runtime::values::error::{Error, Result};

/// Where an input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The decode loop.
    Host(Host),
    /// The cache of this index; verify reads it and leaves it.
    Cache(usize),
    /// What an earlier chunk carried over, of this index; `last` if nothing reads it after.
    Carried { slot: usize, last: bool },
}

/// Where an output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sink {
    /// The cache of this index.
    Cache(usize),
    /// Rows for the cache of this index.
    New(usize),
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
#[derive(Debug)]
pub(crate) struct Chain {
    /// What its functions are fed.
    pub kind: CallKind,
    /// One per chunk.
    pub wirings: Vec<Wiring>,
    /// The caches, as decode has them.
    pub caches: Vec<Cache>,
    /// How the caches are laid.
    pub how: Conventions,
    /// Number of values carried over.
    pub carried: usize,
    /// Carried slot of `token_id`, for verify of `token_ids`.
    pub token_id: usize,
    /// Carried slot of `token_logit`; verify has none.
    pub token_logit: Option<usize>,
    /// Carried slots of prefill's K and V, one pair per layer that owns K/V, in order.
    pub rows: Vec<(usize, usize)>,
}

/// A cache of a chunk of decode.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    /// Index of the chunk.
    pub chunk: usize,
    /// Name without `_in`.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
}

/// An output seen so far.
struct Offered {
    chunk: String,
    name: String,
    ty: TensorType,
    slot: usize,
}

impl Chain {
    /// Wires compiled chunks and checks that they agree with each other and with `spec`. `decode` is the chain whose caches
    /// verify reads and prefill fills; none for decode itself.
    pub fn new(
        spec: &ChainSpec,
        kind: CallKind,
        chunks: &[(String, Model)],
        decode: Option<&Chain>,
    ) -> Result<Self> {
        check_rope(spec)?;
        let takes = |name: &str| {
            let mut features = chunks.iter().flat_map(|(_, model)| model.inputs());
            features.any(|f| f.name == name)
        };
        let how = match decode {
            Some(decode) => decode.how,
            None => Conventions {
                ring: takes("ring_pos"),
                full_window: spec.full_window,
            },
        };
        let mut chain = Chain {
            kind,
            wirings: Vec::new(),
            caches: decode.map(|d| d.caches.clone()).unwrap_or_default(),
            how,
            carried: 0,
            token_id: 0,
            token_logit: None,
            rows: Vec::new(),
        };
        let mut offered: Vec<Offered> = Vec::new();
        for (index, (chunk, model)) in chunks.iter().enumerate() {
            let wiring = chain.wire(spec, (index, chunk), model, &mut offered)?;
            chain.wirings.push(wiring);
        }
        chain.carried = offered.len();
        chain.results(chunks, &offered)?;
        if let CallKind::Prefill(_) = kind {
            let names: Vec<&str> = chunks.iter().map(|(name, _)| name.as_str()).collect();
            chain.rows = prefill_rows(spec, &names, &offered)?;
        }
        chain.mark_last();
        Ok(chain)
    }

    /// Finds the tokens among what the chunks give.
    fn results(&mut self, chunks: &[(String, Model)], offered: &[Offered]) -> Result<()> {
        let result = |name: &str, dtype: DType, count: usize| {
            let found = offered.iter().rev().find(|o| o.name == name);
            match found {
                Some(o)
                    if o.ty.elements() == Some(count)
                        && (o.ty.dtype == DType::Int32) == (dtype == DType::Int32) =>
                {
                    Ok(o.slot)
                }
                Some(o) => Err(Error::Chain {
                    chunk: o.chunk.clone(),
                    what: format!("output `{name}`: expected {count} of {dtype}, got {}", o.ty),
                }),
                None => Err(Error::Chain {
                    chunk: chunks
                        .last()
                        .map_or_else(String::new, |(name, _)| name.clone()),
                    what: format!("no output `{name}` here nor in an earlier chunk"),
                }),
            }
        };
        if let CallKind::Verify(k) = self.kind {
            self.token_id = result("token_ids", DType::Int32, k)?;
            return Ok(());
        }
        self.token_id = result("token_id", DType::Int32, 1)?;
        self.token_logit = Some(result("token_logit", DType::Fp16, 1)?);
        Ok(())
    }

    fn wire(
        &mut self,
        spec: &ChainSpec,
        (index, chunk): (usize, &str),
        model: &Model,
        offered: &mut Vec<Offered>,
    ) -> Result<Wiring> {
        let mut wiring = Wiring::default();
        for input in model.inputs() {
            let source = match self.cache_of(spec, (index, chunk), model, input)? {
                Some(cache) => Source::Cache(cache),
                None => source_of(spec, (chunk, self), input, offered)?,
            };
            wiring.sources.push(source);
        }
        for (name, ty) in model.outputs() {
            let of_cache = |cache: &str| {
                let mut caches = self.caches.iter();
                caches.position(|c| c.chunk == index && c.name == cache)
            };
            let sink = match self.kind {
                CallKind::Decode => name
                    .strip_suffix("_out")
                    .and_then(of_cache)
                    .map(Sink::Cache),
                CallKind::Verify(_) => name.strip_prefix("new_").and_then(of_cache).map(Sink::New),
                CallKind::Prefill(_) => None,
            };
            wiring.sinks.push(sink.unwrap_or_else(|| {
                offered.push(Offered {
                    chunk: chunk.to_owned(),
                    name: name.to_owned(),
                    ty: ty.clone(),
                    slot: offered.len(),
                });
                Sink::Carried(offered.len() - 1)
            }));
        }
        Ok(wiring)
    }

    /// The cache that an input is, if it is one.
    fn cache_of(
        &mut self,
        spec: &ChainSpec,
        (index, chunk): (usize, &str),
        model: &Model,
        input: &Feature,
    ) -> Result<Option<usize>> {
        let Some(name) = input.name.strip_suffix("_in") else {
            return Ok(None);
        };
        if let CallKind::Decode = self.kind {
            let output = format!("{name}_out");
            let Some((_, ty)) = model.outputs().find(|(name, _)| *name == output) else {
                return Ok(None);
            };
            let returned = Feature {
                name: output,
                ty: ty.clone(),
            };
            self.check_cache(spec, chunk, input, &returned)?;
            self.caches.push(Cache {
                chunk: index,
                name: name.to_owned(),
                ty: input.ty.clone(),
            });
            return Ok(Some(self.caches.len() - 1));
        }
        let mut caches = self.caches.iter();
        let Some(found) = caches.position(|c| c.chunk == index && c.name == name) else {
            return Ok(None);
        };
        let ty = &self.caches[found].ty;
        if *ty != input.ty {
            return Err(Error::Disagreement {
                what: "type of a cache",
                left_name: format!("`{}` of decode in {chunk}", input.name),
                left: ty.to_string(),
                right_name: format!("`{}` of another function", input.name),
                right: input.ty.to_string(),
            });
        }
        Ok(Some(found))
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
            _ if input.name.contains("_full_") => (
                "positions of full attention",
                spec.full_window.unwrap_or(spec.context),
            ),
            _ if matches!(input.name.as_str(), "K_in" | "V_in") => ("context", spec.context),
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
        let rows = self.rows.iter().flat_map(|&(k, v)| [k, v]);
        let results = [self.token_id].into_iter().chain(self.token_logit);
        for slot in results.chain(rows) {
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

/// Slots of K and V of the layers that own them, in order: `K0`, `V0`, ... of the chunks, and the shared names where the
/// last sliding or full one comes.
fn prefill_rows(
    spec: &ChainSpec,
    chunk_names: &[&str],
    offered: &[Offered],
) -> Result<Vec<(usize, usize)>> {
    let slot = |chunk: &str, name: &str| {
        let found = offered.iter().find(|o| o.chunk == chunk && o.name == name);
        found.map(|o| o.slot)
    };
    let mut own = Vec::new();
    for chunk in chunk_names {
        let numbered = (0..).map_while(|i| {
            let k = slot(chunk, &format!("K{i}"))?;
            Some((k, slot(chunk, &format!("V{i}"))?))
        });
        own.extend(numbered);
    }
    let mut own = own.into_iter();
    let shared = |k: &str, v: &str| {
        let named = |name: &str| offered.iter().find(|o| o.name == name).map(|o| o.slot);
        Some((named(k)?, named(v)?))
    };
    let last = |sliding: bool| spec.owners.iter().rposition(|o| o.sliding == sliding);
    let (last_sliding, last_full) = (last(true), last(false));
    let mut rows = Vec::with_capacity(spec.owners.len());
    for i in 0..spec.owners.len() {
        let handed_on = match Some(i) {
            i if i == last_sliding => shared("kv13_k", "kv13_v"),
            i if i == last_full => shared("kv14_k", "kv14_v"),
            _ => None,
        };
        let found = handed_on.or_else(|| own.next());
        rows.push(found.ok_or_else(|| Error::Chain {
            chunk: "prefill".to_owned(),
            what: format!("no K and V for own-KV layer {i} of {}", spec.owners.len()),
        })?);
    }
    match own.next() {
        None => Ok(rows),
        Some(_) => Err(Error::Chain {
            chunk: "prefill".to_owned(),
            what: format!("K and V of more than {} layers", spec.owners.len()),
        }),
    }
}

/// An input that is no cache: from an earlier chunk, or from the loop.
fn source_of(
    spec: &ChainSpec,
    (chunk, chain): (&str, &Chain),
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
    if let Err(expected) = host.accepts(&input.ty, spec, chain.kind, chain.how) {
        return Err(Error::Disagreement {
            what: "type of a feature",
            left_name: name(),
            left: input.ty.to_string(),
            right_name: "the bundle".to_owned(),
            right: expected.to_string(),
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
