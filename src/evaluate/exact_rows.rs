//! Token rows straight from a checkpoint: the tables a bundle would have without quantization.

use std::sync::Arc;

use crate::checkpoint::{Checkpoint, TensorView};
use crate::gemma::ModelPlan;
use crate::runtime::{BoxError, TokenRows};

use super::error::Result;

/// Embedding and per-layer rows of a checkpoint in f32, times the exact f32 roots of hidden size and per-layer width.
#[derive(Clone)]
pub struct ExactRows {
    checkpoint: Arc<Checkpoint>,
    plan: Arc<ModelPlan>,
}

impl ExactRows {
    /// Rows of an opened checkpoint.
    ///
    /// # Errors
    /// A table is missing or has another shape than the configuration says.
    pub fn new(checkpoint: Arc<Checkpoint>) -> Result<Self> {
        let plan = Arc::new(ModelPlan::new(checkpoint.config())?);
        let rows = ExactRows { checkpoint, plan };
        rows.embedding()?;
        if rows.plan.ple_dim > 0 {
            rows.per_layer_table()?;
        }
        Ok(rows)
    }

    /// What the checkpoint's model is.
    pub fn plan(&self) -> &ModelPlan {
        &self.plan
    }

    fn embedding(&self) -> Result<TensorView<'_>> {
        let shape = [self.plan.vocab, self.plan.hidden];
        Ok(self.checkpoint.tensor("embed_tokens.weight", &shape)?)
    }

    fn per_layer_table(&self) -> Result<TensorView<'_>> {
        let width = self.plan.layers.len() * self.plan.ple_dim;
        let shape = [self.plan.ple_vocab, width];
        Ok(self
            .checkpoint
            .tensor("embed_tokens_per_layer.weight", &shape)?)
    }
}

fn read_row(table: &TensorView, row: u32, scale: f64, out: &mut [f32]) -> Result<(), BoxError> {
    let start = row as usize * out.len();
    table.read_f32(start..start + out.len(), out)?;
    let scale = scale as f32;
    for value in out {
        *value *= scale;
    }
    Ok(())
}

impl TokenRows for ExactRows {
    fn embed(&self, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        let table = self.embedding()?;
        check_width("embed_tokens.weight", self.plan.hidden, out.len())?;
        read_row(&table, token, self.plan.embed_scale, out)
    }

    fn per_layer(&self, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        let table = self.per_layer_table()?;
        let width = self.plan.layers.len() * self.plan.ple_dim;
        check_width("embed_tokens_per_layer.weight", width, out.len())?;
        read_row(&table, token, self.plan.ple_embed_scale, out)
    }
}

fn check_width(table: &str, width: usize, asked: usize) -> Result<(), BoxError> {
    if width == asked {
        return Ok(());
    }
    Err(format!("{table}: a row has {width} values, the bundle takes {asked}").into())
}
