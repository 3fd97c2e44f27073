//! The decoder in f32.

use crate::checkpoint::{Checkpoint, Result};

use super::plan::ModelPlan;

/// Which table a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// `embed_tokens`: `hidden` values, before the factor sqrt(hidden).
    Embedding,
    /// `embed_tokens_per_layer`: `layers * ple_dim` values, before the factor sqrt(ple_dim).
    PerLayer,
}

/// Changes a table row in place after it is read: quantize and dequantize it, say.
pub type RowMap<'a> = Box<dyn Fn(Table, u32, &mut [f32]) + Sync + 'a>;

/// What a forward pass should return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Logits of every position instead of the last one only.
    pub all_logits: bool,
    /// The stream after the embedding, after each layer and after the final norm.
    pub hidden: bool,
}

/// K and V of every owning layer, for the positions seen so far.
#[derive(Debug, Default)]
pub struct Cache {}

/// Result of a forward pass over S positions.
#[derive(Debug, Clone)]
pub struct ReferenceOutput {
    /// One row of `vocab` logits per position, or one row for the last position.
    pub logits: Vec<Vec<f32>>,
    /// `layers + 2` states of `[S, hidden]` row-major: scaled embedding, each layer's output, final norm. Empty unless kept.
    pub hidden: Vec<Vec<f32>>,
}

/// A model in f32.
pub struct Reference {
    plan: ModelPlan,
}

impl Reference {
    /// Loads every tensor as f32.
    pub fn load(_checkpoint: &Checkpoint) -> Result<Self> {
        todo!()
    }
    /// The plan.
    pub fn plan(&self) -> &ModelPlan {
        &self.plan
    }
    /// Replaces table rows.
    pub fn set_row_map(&mut self, _map: RowMap<'static>) {
        todo!()
    }
    /// Runs `ids` after the positions in `cache`.
    pub fn forward(
        &self,
        _ids: &[u32],
        _cache: &mut Cache,
        _keep: Keep,
    ) -> Result<ReferenceOutput> {
        todo!()
    }
}
