//! The caches of decode.
//!
//! | form | stores | a sliding layer's row | a full layer's row |
//! |---|---|---|---|
//! | `shift` | `K_sliding`, `V_sliding`, `K_full`, `V_full`, in and out | shift | scatter |
//! | `window-FW` | the same, full ones of FW rows | shift | shift |
//! | `full` | `K`, `V`, in and out | scatter | scatter |
//! | `state` | states `kv_cache_sliding`, `kv_cache_full`, K at 2i, V at 2i + 1 | in place, at `ring_pos` | in place, at `current_pos` |
//! | | of one chunk: state `kv_cache_unified`, K at 2i, V at 2i + 1 | the same, in the first W rows | the same |
//! | `state-mask` | states `kv_sliding`, `kv_full`, K at 2i, V at 2i + 1 | shift | scatter |
//! | `state-full` | state `kv_cache_0`, K at i, V at slots + i | scatter | scatter |
//!
//! Rows are padded with zeros to the larger head size, and heads to the larger number of KV heads where one tensor holds
//! both kinds, or as `pad_kv_heads` asks; a layer reads its own part. A kind without layers in a chunk has one slot that
//! passes through, or no state.

use super::store::{Rule, Slots};
use super::{KeysValues, KvCache, Link, cache_length, max_head_dim, owners};
use crate::gemma::{LayerKind, LayerPlan};
use crate::graph::emitter::Emitter;
use crate::graph::error::{Error, Result};
use crate::graph::forms::{CacheForm, GraphOptions};
use crate::graph::inputs::Inputs;
use crate::graph::split::ChunkSpec;
use crate::mil::{DType, Var};

const KINDS: [LayerKind; 2] = [LayerKind::Sliding, LayerKind::Full];

/// See the module.
pub(super) struct DecodeCache {
    stores: Vec<Store>,
    rules: Rules,
    link: Link,
    /// Rows of sliding and of full layers.
    lengths: [usize; 2],
    /// Whether sliding layers keep a ring, in the first rows of a slot that is longer.
    ring: bool,
    /// Whether K/V handed on are copies: a slice of a state may not be an output and be used inside.
    copied: bool,
}

/// Slots of one kind of layer, or of both.
struct Store {
    kinds: &'static [LayerKind],
    slots: Slots,
    /// Layers so far.
    used: usize,
    heads: usize,
}

/// One rule per kind of layer.
struct Rules {
    sliding: Rule,
    full: Rule,
}

impl DecodeCache {
    /// Declares the slots of a chunk that owns K/V, else the K/V that it reads.
    pub fn declare(
        e: &mut Emitter<'_>,
        spec: &ChunkSpec,
        options: &GraphOptions,
        inputs: &Inputs,
        link: Link,
    ) -> Result<Self> {
        let cache = options.cache;
        let mut out = Self {
            stores: Vec::new(),
            rules: Rules {
                sliding: Rule::Shift,
                full: Rule::Shift,
            },
            link,
            lengths: KINDS.map(|kind| cache_length(e.plan, kind, options)),
            ring: cache == CacheForm::State,
            copied: matches!(
                cache,
                CacheForm::State | CacheForm::StateMask | CacheForm::StateFull
            ),
        };
        if !out.link.owns {
            let plan = e.plan;
            out.link
                .declare_shared(e, |kind| cache_length(plan, kind, options))?;
            return Ok(out);
        }
        out.rules = Rules::declare(e, cache, inputs)?;
        let one_store = cache.keeps_context() || options.one_state();
        let parts: &[(&'static [LayerKind], &str)] = match one_store {
            true => &[(&KINDS, "unified")],
            false => &[(&KINDS[..1], "sliding"), (&KINDS[1..], "full")],
        };
        for (kinds, name) in parts {
            out.stores
                .extend(Store::declare(e, spec, options, kinds, name)?);
        }
        Ok(out)
    }
}

impl Rules {
    /// The rules of a form, with the positions that it takes as features.
    fn declare(e: &mut Emitter<'_>, cache: CacheForm, inputs: &Inputs) -> Result<Self> {
        let full = match (cache, &inputs.update) {
            (CacheForm::State, _) => {
                let (full, sliding) = (place(e, "current_pos")?, place(e, "ring_pos")?);
                return Ok(Self { sliding, full });
            }
            (CacheForm::Window(_), _) | (_, None) => Rule::Shift,
            (_, Some(update)) => {
                let one = e.fb.scalar_f16(1.0)?;
                let keep = e.fb.sub(&one, update)?;
                let update = update.clone();
                Rule::Scatter { keep, update }
            }
        };
        let sliding = match (cache.keeps_context(), &full) {
            (true, Rule::Scatter { keep, update }) => Rule::Scatter {
                keep: keep.clone(),
                update: update.clone(),
            },
            _ => Rule::Shift,
        };
        Ok(Self { sliding, full })
    }
}

fn place(e: &mut Emitter<'_>, name: &str) -> Result<Rule> {
    let at = e.fb.input(name, DType::Int32, &[1])?;
    let one = e.int32s(&[1])?;
    let after = e.fb.add(&at, &one)?;
    Ok(Rule::Place { at, after })
}

impl KvCache for DecodeCache {
    fn update(
        &mut self,
        e: &mut Emitter<'_>,
        layer: &LayerPlan,
        k: &Var,
        v: &Var,
    ) -> Result<KeysValues> {
        let mut stores = self.stores.iter_mut();
        let Some(store) = stores.find(|s| s.kinds.contains(&layer.kind)) else {
            return Err(Error::SharedKvMissing {
                layer: layer.index,
                from: layer.index,
            });
        };
        let (heads, width) = (store.heads, max_head_dim(e.plan));
        let mut row = |x: &Var| {
            let x = e.pad_to(x, 3, width)?;
            e.pad_to(&x, 1, heads)
        };
        let (k, v) = (row(k)?, row(v)?);
        let rule = match layer.kind {
            LayerKind::Sliding => &self.rules.sliding,
            LayerKind::Full => &self.rules.full,
        };
        let (keys, values) = store.slots.advance(e, rule, store.used, &k, &v)?;
        store.used += 1;
        let length = match (layer.kind, store.kinds.len()) {
            (LayerKind::Sliding, 2..) if self.ring => e.plan.window,
            _ => keys.shape()[2],
        };
        let mut part = |slot: &Var| {
            let rows = e.first(slot, 2, length)?;
            own_part(e, &rows, layer.kind)
        };
        let (keys, values) = (part(&keys)?, part(&values)?);
        Ok(self.link.see(layer.index, layer.kind, keys, values))
    }

    fn link(&self) -> &Link {
        &self.link
    }

    fn outputs(&mut self, e: &mut Emitter<'_>) -> Result<()> {
        self.stores.iter_mut().try_for_each(|s| s.slots.finish(e))
    }

    fn handed_over(&mut self, e: &mut Emitter<'_>) -> Result<()> {
        let (stores, [sliding, full]) = (&self.stores, self.lengths);
        self.link.hand_over(e, self.copied, |e, kind| {
            if let Some(store) = stores.iter().find(|s| s.kinds.contains(&kind)) {
                let (keys, values) = store.slots.untouched(e)?;
                return Ok((own_part(e, &keys, kind)?, own_part(e, &values, kind)?));
            }
            // No state holds this kind, and no layer reads it.
            let geom = e.plan.geom(kind);
            let length = if kind == LayerKind::Full {
                full
            } else {
                sliding
            };
            let none = e.zeros(&[1, geom.kv_heads, length, geom.head_dim])?;
            Ok((none.clone(), none))
        })
    }
}

/// The heads and columns of a slot that a layer of this kind has.
fn own_part(e: &mut Emitter<'_>, slot: &Var, kind: LayerKind) -> Result<Var> {
    let geom = e.plan.geom(kind);
    let x = e.first(slot, 1, geom.kv_heads)?;
    e.first(&x, 3, geom.head_dim)
}

impl Store {
    /// Declares the slots of `kinds` in this chunk; `name` tells the kind in feature names. None for a state without layers.
    fn declare(
        e: &mut Emitter<'_>,
        spec: &ChunkSpec,
        options: &GraphOptions,
        kinds: &'static [LayerKind],
        name: &str,
    ) -> Result<Option<Self>> {
        let plan = e.plan;
        let layers: usize = kinds.iter().map(|&kind| owners(plan, spec, kind)).sum();
        let heads = kinds.iter().map(|&kind| plan.geom(kind).kv_heads);
        let heads = heads.max().unwrap_or(1);
        let heads = match options.pad_kv_heads {
            Some(multiple) => heads.next_multiple_of(multiple.max(1)),
            None => heads,
        };
        let lengths = kinds.iter().map(|&kind| cache_length(plan, kind, options));
        let length = lengths.max().unwrap_or(options.context);
        let shape = |slots: usize| [slots, heads, length, max_head_dim(plan)];
        let slots = match (options.cache, layers) {
            (CacheForm::State | CacheForm::StateMask | CacheForm::StateFull, 0) => return Ok(None),
            (CacheForm::State, _) => {
                Slots::state(e, &format!("kv_cache_{name}"), &shape(2 * layers), true)?
            }
            (CacheForm::StateMask, _) => {
                Slots::state(e, &format!("kv_{name}"), &shape(2 * layers), true)?
            }
            (CacheForm::StateFull, _) => Slots::state(e, "kv_cache_0", &shape(2 * layers), false)?,
            (CacheForm::Full, _) => Slots::explicit(e, ["K", "V"], &shape(layers.max(1)))?,
            (CacheForm::Shift | CacheForm::Window(_), _) => {
                let names = [format!("K_{name}"), format!("V_{name}")];
                let names = names.each_ref().map(String::as_str);
                Slots::explicit(e, names, &shape(layers.max(1)))?
            }
        };
        Ok(Some(Self {
            kinds,
            slots,
            used: 0,
            heads,
        }))
    }
}
