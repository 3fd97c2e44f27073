//! Prefill: a call attends to its own keys only. K and V of own layers leave under their number in the chunk, those that
//! others share under their shared names.

use super::{KeysValues, KvCache, Link, producer};
use crate::gemma::LayerPlan;
use crate::graph::emitter::Emitter;
use crate::graph::error::Result;
use crate::mil::Var;

/// See the module.
pub(super) struct PrefillCache {
    link: Link,
    /// K and V of own layers that no feature of their own hands on, in layer order.
    rows: Vec<(Var, Var)>,
}

impl PrefillCache {
    /// Declares the K/V of earlier chunks where this one only shares, `(1, kv_heads, N, head_dim)`.
    pub fn declare(e: &mut Emitter<'_>, tokens: usize, mut link: Link) -> Result<Self> {
        if !link.owns {
            link.declare_shared(e, |_| tokens)?;
        }
        Ok(Self {
            link,
            rows: Vec::new(),
        })
    }
}

impl KvCache for PrefillCache {
    fn update(
        &mut self,
        e: &mut Emitter<'_>,
        layer: &LayerPlan,
        k: &Var,
        v: &Var,
    ) -> Result<KeysValues> {
        let shared = producer(e.plan, layer.kind) == Some(layer.index);
        if !(shared && self.link.hands_over) {
            self.rows.push((k.clone(), v.clone()));
        }
        Ok(self.link.see(layer.index, layer.kind, k.clone(), v.clone()))
    }

    fn link(&self) -> &Link {
        &self.link
    }

    fn outputs(&mut self, e: &mut Emitter<'_>) -> Result<()> {
        for (i, (k, v)) in self.rows.iter().enumerate() {
            e.fb.output(&format!("K{i}"), k)?;
            e.fb.output(&format!("V{i}"), v)?;
        }
        Ok(())
    }

    fn handed_over(&mut self, e: &mut Emitter<'_>) -> Result<()> {
        let tokens = e.tokens;
        self.link.hand_over(e, false, |e, kind| {
            let geom = e.plan.geom(kind);
            let none = e.zeros(&[1, geom.kv_heads, tokens, geom.head_dim])?;
            Ok((none.clone(), none))
        })
    }
}
