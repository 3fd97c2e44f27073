//! Verify: K tokens at once against the caches of decode, which stay as they are; the new rows leave by themselves, and the
//! host keeps those of the tokens it accepts.
//!
//! A sliding layer attends to its W cached rows and then the K new ones, and the mask gives each query its own window: no
//! row is dropped before every query has seen it. `compat` drops the K oldest rows first, as the published bundles do. Full
//! layers see the cache with the new rows scattered by `update_indicator` `(1, 1, context, K)`.

use super::store::shift;
use super::{KeysValues, KvCache, Link, max_head_dim, owners};
use crate::gemma::{LayerKind, LayerPlan};
use crate::graph::emitter::Emitter;
use crate::graph::error::{Error, Result};
use crate::graph::forms::GraphOptions;
use crate::graph::inputs::Inputs;
use crate::graph::split::ChunkSpec;
use crate::mil::{DType, Var};

/// See the module.
pub(super) struct VerifyCache {
    slots: Vec<Slots>,
    link: Link,
    compat: bool,
    /// `update_indicator`, and `1 - sum over its columns` `(1, 1, context, 1)`.
    scatter: Option<(Var, Var)>,
}

/// The cached slots of one kind, and the new rows so far.
struct Slots {
    kind: LayerKind,
    name: &'static str,
    keys_in: Var,
    values_in: Var,
    /// `(1, kv_heads, K, head_dim)` each.
    keys: Vec<Var>,
    values: Vec<Var>,
}

impl VerifyCache {
    /// Declares the caches as decode does.
    pub fn declare(
        e: &mut Emitter<'_>,
        spec: &ChunkSpec,
        options: &GraphOptions,
        tokens: usize,
        inputs: &Inputs,
        mut link: Link,
    ) -> Result<Self> {
        let plan = e.plan;
        let mut slots = Vec::new();
        if link.owns {
            for (kind, name, length) in [
                (LayerKind::Sliding, "sliding", plan.window),
                (LayerKind::Full, "full", options.context),
            ] {
                let count = owners(plan, spec, kind).max(1);
                let shape = [count, plan.geom(kind).kv_heads, length, max_head_dim(plan)];
                slots.push(Slots {
                    kind,
                    name,
                    keys_in: e.fb.input(&format!("K_{name}_in"), DType::Fp16, &shape)?,
                    values_in: e.fb.input(&format!("V_{name}_in"), DType::Fp16, &shape)?,
                    keys: Vec::new(),
                    values: Vec::new(),
                });
            }
        } else {
            let sliding = plan.window + if options.compat { 0 } else { tokens };
            link.declare_shared(e, |kind| match kind {
                LayerKind::Sliding => sliding,
                LayerKind::Full => options.context,
            })?;
        }
        let scatter = match &inputs.update {
            Some(indicator) => {
                let hit = e.fb.reduce_sum(indicator, &[3], true)?;
                let one = e.fb.scalar_f16(1.0)?;
                Some((indicator.clone(), e.fb.sub(&one, &hit)?))
            }
            None => None,
        };
        Ok(Self {
            slots,
            link,
            compat: options.compat,
            scatter,
        })
    }

    /// Cached rows and new ones, as a layer attends to them.
    fn joined(&self, e: &mut Emitter<'_>, kind: LayerKind, old: &Var, new: &Var) -> Result<Var> {
        let old = e.first(old, 3, e.plan.geom(kind).head_dim)?;
        match (kind, &self.scatter) {
            (LayerKind::Sliding, _) if self.compat => shift(e, &old, new),
            (LayerKind::Full, Some((indicator, keep))) => {
                let kept = e.fb.mul(&old, keep)?;
                let written = e.fb.matmul(indicator, new, false, false)?;
                Ok(e.fb.add(&kept, &written)?)
            }
            _ => Ok(e.fb.concat(&[old, new.clone()], 2)?),
        }
    }
}

impl KvCache for VerifyCache {
    fn update(
        &mut self,
        e: &mut Emitter<'_>,
        layer: &LayerPlan,
        k: &Var,
        v: &Var,
    ) -> Result<KeysValues> {
        let kind = layer.kind;
        let Some(at) = self.slots.iter().position(|s| s.kind == kind) else {
            return Err(Error::SharedKvMissing {
                layer: layer.index,
                from: layer.index,
            });
        };
        let slots = &self.slots[at];
        let mut size = slots.keys_in.shape().to_vec();
        size[0] = 1;
        let begin = [slots.keys.len(), 0, 0, 0];
        let k_old = e.slice(&slots.keys_in, &begin, &size)?;
        let v_old = e.slice(&slots.values_in, &begin, &size)?;
        let keys = self.joined(e, kind, &k_old, k)?;
        let values = self.joined(e, kind, &v_old, v)?;
        self.slots[at].keys.push(k.clone());
        self.slots[at].values.push(v.clone());
        Ok(self.link.see(layer.index, kind, keys, values))
    }

    fn link(&self) -> &Link {
        &self.link
    }

    fn outputs(&mut self, e: &mut Emitter<'_>) -> Result<()> {
        for slots in &self.slots {
            let geom = e.plan.geom(slots.kind);
            for (prefix, rows) in [("K", &slots.keys), ("V", &slots.values)] {
                let all = match rows.as_slice() {
                    // The one slot of a kind without layers holds zeros; so do the rows that go into it.
                    [] => e.zeros(&[1, geom.kv_heads, e.tokens, geom.head_dim])?,
                    [one] => one.clone(),
                    several => e.fb.concat(several, 0)?,
                };
                e.fb.output(&format!("new_{prefix}_{}", slots.name), &all)?;
            }
        }
        Ok(())
    }

    fn handed_over(&mut self, e: &mut Emitter<'_>) -> Result<()> {
        let this = &*self;
        this.link.hand_over(e, false, |e, kind| {
            let geom = e.plan.geom(kind);
            let new = e.zeros(&[1, geom.kv_heads, e.tokens, geom.head_dim])?;
            let slots = this.slots.iter().find(|s| s.kind == kind);
            let old = match slots {
                Some(slots) => e.first(&slots.keys_in, 0, 1)?,
                None => new.clone(),
            };
            let none = this.joined(e, kind, &old, &new)?;
            Ok((none.clone(), none))
        })
    }
}
