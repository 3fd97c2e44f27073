//! Keys and values between steps, and between chunks.
//!
//! | file | functions |
//! |---|---|
//! | `decode.rs` | decode, every form of cache: where the slots are (`store.rs`) and how a row gets into one |
//! | `prefill.rs` | prefill: keys and values are those of the call |
//! | `verify.rs` | verify: old rows, then those of the call |

mod decode;
mod prefill;
mod store;
mod verify;

use std::collections::BTreeMap;

use super::emitter::Emitter;
use super::error::{Error, Result};
use super::forms::{CacheForm, FunctionKind, GraphOptions};
use super::inputs::{Inputs, Masks};
use super::split::ChunkSpec;
use crate::gemma::{LayerKind, LayerPlan, ModelPlan};
use crate::mil::{DType, Var};

/// What a layer attends to.
#[derive(Clone)]
pub(super) struct KeysValues {
    /// `(1, kv_heads, length, head_dim)`, after norm and RoPE.
    pub keys: Var,
    /// `(1, kv_heads, length, head_dim)`, after their norm.
    pub values: Var,
    /// Additive, `(1, 1, rows, length)`: one row for all queries, or one per query of a KV head.
    pub mask: Var,
}

/// A form of K/V cache.
pub(super) trait KvCache {
    /// Takes the new keys and values `(1, kv_heads, T, head_dim)` of an own-KV layer and gives what it attends to.
    /// Layers come in order.
    fn update(
        &mut self,
        e: &mut Emitter<'_>,
        layer: &LayerPlan,
        k: &Var,
        v: &Var,
    ) -> Result<KeysValues>;

    /// What the layers of the chunk have seen of each other's K/V.
    fn link(&self) -> &Link;

    /// What a layer attends to that shares the K/V of layer `from`.
    fn shared(&self, layer: &LayerPlan, from: usize) -> Result<KeysValues> {
        let seen = self.link().seen.get(&from).cloned();
        seen.ok_or(Error::SharedKvMissing {
            layer: layer.index,
            from,
        })
    }

    /// Declares the outputs that carry the cache to the next step.
    fn outputs(&mut self, e: &mut Emitter<'_>) -> Result<()>;

    /// Declares the outputs that later chunks read, if this chunk hands K/V on.
    fn handed_over(&mut self, e: &mut Emitter<'_>) -> Result<()>;
}

/// Declares the cache inputs of a function.
///
/// # Errors
/// A model whose layers a form cannot hold.
pub(super) fn declare(
    e: &mut Emitter<'_>,
    spec: &ChunkSpec,
    options: &GraphOptions,
    function: FunctionKind,
    inputs: &Inputs,
) -> Result<Box<dyn KvCache>> {
    let link = Link::new(e, spec, &inputs.masks)?;
    Ok(match function {
        FunctionKind::Decode => Box::new(decode::DecodeCache::declare(
            e, spec, options, inputs, link,
        )?),
        FunctionKind::Prefill(n) => Box::new(prefill::PrefillCache::declare(e, n, link)?),
        FunctionKind::Verify(k) => Box::new(verify::VerifyCache::declare(
            e, spec, options, k, inputs, link,
        )?),
    })
}

/// The names under which the K/V of the last own sliding layer and of the last own full layer pass between chunks,
/// whatever the indices of these layers are.
const SHARED_FEATURES: [(LayerKind, &str, &str); 2] = [
    (LayerKind::Sliding, "kv13_k", "kv13_v"),
    (LayerKind::Full, "kv14_k", "kv14_v"),
];

/// What the layers of a chunk have seen of each other's K/V, and of earlier chunks'.
pub(super) struct Link {
    /// By layer index.
    seen: BTreeMap<usize, KeysValues>,
    mask_sliding: Var,
    mask_full: Var,
    /// Whether the chunk has layers with their own K/V.
    owns: bool,
    /// Whether shared K/V leave this chunk.
    hands_over: bool,
}

impl Link {
    fn new(e: &mut Emitter<'_>, spec: &ChunkSpec, masks: &Masks) -> Result<Self> {
        let plan = e.plan;
        let sharing = plan.first_shared < plan.layers.len();
        let owns = spec.layers.start < plan.first_shared;
        Ok(Self {
            seen: BTreeMap::new(),
            mask_sliding: for_all_queries(e, &masks.sliding, LayerKind::Sliding)?,
            mask_full: for_all_queries(e, &masks.full, LayerKind::Full)?,
            owns,
            hands_over: sharing && owns && spec.layers.end >= plan.first_shared && !spec.last,
        })
    }

    fn mask(&self, kind: LayerKind) -> Var {
        match kind {
            LayerKind::Sliding => self.mask_sliding.clone(),
            LayerKind::Full => self.mask_full.clone(),
        }
    }

    /// Declares the shared K/V of earlier chunks, `(1, kv_heads, length, head_dim)`.
    fn declare_shared(
        &mut self,
        e: &mut Emitter<'_>,
        length: impl Fn(LayerKind) -> usize,
    ) -> Result<()> {
        for (kind, k_name, v_name) in SHARED_FEATURES {
            let geom = e.plan.geom(kind);
            let shape = [1, geom.kv_heads, length(kind), geom.head_dim];
            let keys = e.fb.input(k_name, DType::Fp16, &shape)?;
            let values = e.fb.input(v_name, DType::Fp16, &shape)?;
            if let Some(producer) = producer(e.plan, kind) {
                self.see(producer, kind, keys, values);
            }
        }
        Ok(())
    }

    /// Remembers what a layer attends to.
    fn see(&mut self, layer: usize, kind: LayerKind, keys: Var, values: Var) -> KeysValues {
        let mask = self.mask(kind);
        let seen = KeysValues { keys, values, mask };
        self.seen.insert(layer, seen.clone());
        seen
    }

    /// K/V of the last own layer of a kind, where there is one.
    fn produced(&self, plan: &ModelPlan, kind: LayerKind) -> Option<(Var, Var)> {
        let seen = self.seen.get(&producer(plan, kind)?)?;
        Some((seen.keys.clone(), seen.values.clone()))
    }

    /// Declares the outputs that later chunks read. `instead` gives the slot of a kind without own layers, which no layer
    /// reads; `copied` makes each output a value of its own.
    fn hand_over(
        &self,
        e: &mut Emitter<'_>,
        copied: bool,
        mut instead: impl FnMut(&mut Emitter<'_>, LayerKind) -> Result<(Var, Var)>,
    ) -> Result<()> {
        if !self.hands_over {
            return Ok(());
        }
        for (kind, k_name, v_name) in SHARED_FEATURES {
            let (keys, values) = match self.produced(e.plan, kind) {
                Some(found) => found,
                None => instead(e, kind)?,
            };
            for (name, value) in [(k_name, keys), (v_name, values)] {
                let value = if copied {
                    e.fb.identity(&value)?
                } else {
                    value
                };
                e.fb.output(name, &value)?;
            }
        }
        Ok(())
    }
}

/// A mask `(1, 1, T, length)` for the queries of a KV head: those of its `g` query heads, head after head. One token has one
/// row for all of them.
fn for_all_queries(e: &mut Emitter<'_>, mask: &Var, kind: LayerKind) -> Result<Var> {
    let group = e.plan.q_heads / e.plan.geom(kind).kv_heads.max(1);
    if e.tokens == 1 || group <= 1 {
        return Ok(mask.clone());
    }
    let reps = i32::try_from(group).map_err(|_| Error::TooLarge { size: group })?;
    Ok(e.fb.tile(mask, &[1, 1, reps, 1])?)
}

/// Rows of a cache of shift's form: the window, or the context (or what full layers keep of it).
fn cache_length(plan: &ModelPlan, kind: LayerKind, options: &GraphOptions) -> usize {
    match (kind, options.cache) {
        (_, CacheForm::Full | CacheForm::StateFull) => options.context,
        (LayerKind::Sliding, _) => plan.window,
        (LayerKind::Full, CacheForm::Window(positions)) => positions,
        (LayerKind::Full, _) => options.context,
    }
}

/// Width of a cached row: the larger of the two head sizes.
fn max_head_dim(plan: &ModelPlan) -> usize {
    plan.sliding.head_dim.max(plan.full.head_dim)
}

/// The layer whose K/V the sharing layers of a kind read.
fn producer(plan: &ModelPlan, kind: LayerKind) -> Option<usize> {
    let producers = plan.producers.as_ref()?;
    match kind {
        LayerKind::Sliding => producers.sliding,
        LayerKind::Full => producers.full,
    }
}

/// Layers of a chunk with their own K/V of a kind.
fn owners(plan: &ModelPlan, spec: &ChunkSpec, kind: LayerKind) -> usize {
    let own = |l: &&LayerPlan| l.kind == kind && l.owns_kv();
    plan.layers[spec.layers.clone()].iter().filter(own).count()
}
