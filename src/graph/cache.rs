//! Keys and values between steps.

use std::collections::BTreeMap;

use super::emitter::{Emitter, dims};
use super::error::{Error, Result};
use super::inputs::Inputs;
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
    /// Additive, `(1, 1, 1, length)`.
    pub mask: Var,
}

/// A form of K/V cache.
pub(super) trait KvCache {
    /// Takes the new key and value `(1, kv_heads, 1, head_dim)` of an own-KV layer and gives what it attends to.
    /// Layers come in order.
    fn update(
        &mut self,
        e: &mut Emitter<'_>,
        layer: &LayerPlan,
        k: &Var,
        v: &Var,
    ) -> Result<KeysValues>;

    /// What a layer attends to that shares the K/V of layer `from`.
    fn shared(&self, layer: &LayerPlan, from: usize) -> Result<KeysValues>;

    /// Declares the outputs that carry the cache to the next step, and to the chunks that share it.
    fn outputs(&self, e: &mut Emitter<'_>) -> Result<()>;
}

/// The names under which the K/V of the last own sliding layer and of the last own full layer pass between chunks,
/// whatever the indices of these layers are.
const SHARED_FEATURES: [(LayerKind, &str, &str); 2] = [
    (LayerKind::Sliding, "kv13_k", "kv13_v"),
    (LayerKind::Full, "kv14_k", "kv14_v"),
];

/// Explicit caches: one tensor of slots per kind, passed in and out. A sliding slot drops its oldest row and appends the
/// new one, so that the newest is always last; a full slot is `old * (1 - update_mask) + new * update_mask`. Rows are
/// padded with zeros to the larger head size. A kind without layers in the chunk has one slot, passed through.
pub(super) struct ShiftCache {
    /// Sliding and full slots, or none when the chunk only shares.
    slots: Vec<Slots>,
    /// What each own layer so far attends to, and what other chunks hand over, by layer index.
    seen: BTreeMap<usize, KeysValues>,
    mask_sliding: Var,
    mask_full: Var,
    update_mask: Var,
    /// `1 - update_mask`, once needed.
    keep_mask: Option<Var>,
    /// Whether shared K/V leave this chunk.
    hands_over: bool,
}

impl ShiftCache {
    /// Declares the cache inputs of a chunk: its own slots if it has own-KV layers, else the shared K/V.
    pub fn from_features(
        e: &mut Emitter<'_>,
        spec: &ChunkSpec,
        inputs: &Inputs,
        context: usize,
    ) -> Result<Self> {
        let plan = e.plan;
        let sharing = plan.first_shared < plan.layers.len();
        let owns = spec.layers.start < plan.first_shared;
        let mut cache = Self {
            slots: Vec::new(),
            seen: BTreeMap::new(),
            mask_sliding: inputs.mask_sliding.clone(),
            mask_full: inputs.mask_full.clone(),
            update_mask: inputs.update_mask.clone(),
            keep_mask: None,
            hands_over: sharing && owns && spec.layers.end >= plan.first_shared && !spec.last,
        };
        if owns {
            for (kind, name) in [(LayerKind::Sliding, "sliding"), (LayerKind::Full, "full")] {
                let slots =
                    Slots::from_features(e, spec, kind, name, cache_length(plan, kind, context))?;
                cache.slots.push(slots);
            }
        } else {
            cache.shared_features(e, context)?;
        }
        Ok(cache)
    }

    fn shared_features(&mut self, e: &mut Emitter<'_>, context: usize) -> Result<()> {
        for (kind, k_name, v_name) in SHARED_FEATURES {
            let geom = e.plan.geom(kind);
            let shape = [
                1,
                geom.kv_heads,
                cache_length(e.plan, kind, context),
                geom.head_dim,
            ];
            let keys = e.fb.input(k_name, DType::Fp16, &shape)?;
            let values = e.fb.input(v_name, DType::Fp16, &shape)?;
            if let Some(producer) = producer(e.plan, kind) {
                self.seen.insert(
                    producer,
                    KeysValues {
                        keys,
                        values,
                        mask: self.mask(kind),
                    },
                );
            }
        }
        Ok(())
    }

    fn mask(&self, kind: LayerKind) -> Var {
        match kind {
            LayerKind::Sliding => self.mask_sliding.clone(),
            LayerKind::Full => self.mask_full.clone(),
        }
    }

    fn keep_mask(&mut self, e: &mut Emitter<'_>) -> Result<Var> {
        if let Some(keep) = &self.keep_mask {
            return Ok(keep.clone());
        }
        let one = e.fb.scalar_f16(1.0)?;
        let keep = e.fb.sub(&one, &self.update_mask)?;
        self.keep_mask = Some(keep.clone());
        Ok(keep)
    }

    /// A slot `(1, kv_heads, length, max_head_dim)` with the row of this token.
    fn advance(
        &mut self,
        e: &mut Emitter<'_>,
        kind: LayerKind,
        old: &Var,
        row: &Var,
    ) -> Result<Var> {
        let row = pad_last(e, row, max_head_dim(e.plan))?;
        match kind {
            LayerKind::Sliding => shift(e, old, &row),
            LayerKind::Full => {
                let keep = self.keep_mask(e)?;
                let kept = e.fb.mul(old, &keep)?;
                let written = e.fb.mul(&row, &self.update_mask)?;
                Ok(e.fb.add(&kept, &written)?)
            }
        }
    }
}

impl KvCache for ShiftCache {
    fn update(
        &mut self,
        e: &mut Emitter<'_>,
        layer: &LayerPlan,
        k: &Var,
        v: &Var,
    ) -> Result<KeysValues> {
        let missing = Error::SharedKvMissing {
            layer: layer.index,
            from: layer.index,
        };
        let Some(at) = self.slots.iter().position(|s| s.kind == layer.kind) else {
            return Err(missing);
        };
        let (k_old, v_old) = self.slots[at].next(e)?;
        let keys = self.advance(e, layer.kind, &k_old, k)?;
        let values = self.advance(e, layer.kind, &v_old, v)?;
        let seen = KeysValues {
            keys: narrow_last(e, &keys, layer.head_dim)?,
            values: narrow_last(e, &values, layer.head_dim)?,
            mask: self.mask(layer.kind),
        };
        self.slots[at].keys.push(keys);
        self.slots[at].values.push(values);
        self.seen.insert(layer.index, seen.clone());
        Ok(seen)
    }

    fn shared(&self, layer: &LayerPlan, from: usize) -> Result<KeysValues> {
        self.seen.get(&from).cloned().ok_or(Error::SharedKvMissing {
            layer: layer.index,
            from,
        })
    }

    fn outputs(&self, e: &mut Emitter<'_>) -> Result<()> {
        for slots in &self.slots {
            slots.outputs(e)?;
        }
        if !self.hands_over {
            return Ok(());
        }
        for ((kind, k_name, v_name), slots) in SHARED_FEATURES.iter().zip(&self.slots) {
            let (keys, values) = match producer(e.plan, *kind).and_then(|p| self.seen.get(&p)) {
                Some(seen) => (seen.keys.clone(), seen.values.clone()),
                // No own layer of this kind, so no layer shares it: the one slot passes through.
                None => {
                    let d = e.plan.geom(*kind).head_dim;
                    (
                        narrow_last(e, &slots.keys_in, d)?,
                        narrow_last(e, &slots.values_in, d)?,
                    )
                }
            };
            e.fb.output(k_name, &keys)?;
            e.fb.output(v_name, &values)?;
        }
        Ok(())
    }
}

/// The slots of one kind: the inputs `(slots, kv_heads, length, max_head_dim)`, and the updated slots so far.
struct Slots {
    kind: LayerKind,
    name: &'static str,
    keys_in: Var,
    values_in: Var,
    keys: Vec<Var>,
    values: Vec<Var>,
}

impl Slots {
    fn from_features(
        e: &mut Emitter<'_>,
        spec: &ChunkSpec,
        kind: LayerKind,
        name: &'static str,
        length: usize,
    ) -> Result<Self> {
        let own = |l: &&LayerPlan| l.kind == kind && l.owns_kv();
        let slots = e.plan.layers[spec.layers.clone()]
            .iter()
            .filter(own)
            .count()
            .max(1);
        let shape = [
            slots,
            e.plan.geom(kind).kv_heads,
            length,
            max_head_dim(e.plan),
        ];
        Ok(Self {
            kind,
            name,
            keys_in: e.fb.input(&format!("K_{name}_in"), DType::Fp16, &shape)?,
            values_in: e.fb.input(&format!("V_{name}_in"), DType::Fp16, &shape)?,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    /// The old slot of the next layer of this kind.
    fn next(&self, e: &mut Emitter<'_>) -> Result<(Var, Var)> {
        let mut size = self.keys_in.shape().to_vec();
        size[0] = 1;
        let begin = [self.keys.len(), 0, 0, 0];
        Ok((
            e.slice(&self.keys_in, &begin, &size)?,
            e.slice(&self.values_in, &begin, &size)?,
        ))
    }

    fn outputs(&self, e: &mut Emitter<'_>) -> Result<()> {
        for (prefix, slots, input) in [
            ("K", &self.keys, &self.keys_in),
            ("V", &self.values, &self.values_in),
        ] {
            let all = match slots.as_slice() {
                [] => input.clone(),
                [one] => one.clone(),
                several => e.fb.concat(several, 0)?,
            };
            e.fb.output(&format!("{prefix}_{}_out", self.name), &all)?;
        }
        Ok(())
    }
}

/// Drops the oldest row of a slot and appends one.
fn shift(e: &mut Emitter<'_>, old: &Var, row: &Var) -> Result<Var> {
    let mut size = old.shape().to_vec();
    if size[2] == 1 {
        return Ok(row.clone());
    }
    size[2] -= 1;
    let rest = e.slice(old, &[0, 0, 1, 0], &size)?;
    Ok(e.fb.concat(&[rest, row.clone()], 2)?)
}

/// Pads the last axis with zeros up to `width`.
fn pad_last(e: &mut Emitter<'_>, x: &Var, width: usize) -> Result<Var> {
    match x.shape() {
        &[.., d] if d < width => Ok(e.fb.pad(x, &dims(&[0, width - d])?, 0.0)?),
        _ => Ok(x.clone()),
    }
}

/// The first `width` elements of the last axis.
fn narrow_last(e: &mut Emitter<'_>, x: &Var, width: usize) -> Result<Var> {
    let mut size = x.shape().to_vec();
    if let Some(last) = size.last_mut() {
        *last = width;
    }
    e.slice(x, &[0, 0, 0, 0], &size)
}

/// Rows of a cache: the window, or the context.
fn cache_length(plan: &ModelPlan, kind: LayerKind, context: usize) -> usize {
    match kind {
        LayerKind::Sliding => plan.window,
        LayerKind::Full => context,
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
