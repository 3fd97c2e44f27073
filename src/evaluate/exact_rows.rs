//! Token rows straight from a checkpoint: the tables a bundle would have without quantization.

use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::gemma::reference::{Table, checkpoint_row};
use crate::gemma::{ModelPlan, names};
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
    /// The checkpoint is not what its configuration says.
    pub fn new(checkpoint: Arc<Checkpoint>) -> Result<Self> {
        let plan = Arc::new(ModelPlan::new(checkpoint.config())?);
        let rows = ExactRows { checkpoint, plan };
        let (checkpoint, plan) = (&rows.checkpoint, &rows.plan);
        plan.check(checkpoint)?;
        Ok(rows)
    }

    /// What the checkpoint's model is.
    pub fn plan(&self) -> &ModelPlan {
        &self.plan
    }

    /// Values of a per-layer row.
    fn width(&self) -> usize {
        self.plan.layers.len() * self.plan.ple_dim
    }

    fn row(&self, table: Table, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        Ok(checkpoint_row(
            &self.checkpoint,
            &self.plan,
            table,
            token,
            out,
        )?)
    }
}

impl TokenRows for ExactRows {
    fn embed(&self, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        check_width(names::EMBED, self.plan.hidden, out.len())?;
        self.row(Table::Embedding, token, out)
    }

    fn per_layer(&self, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        check_width(names::PER_LAYER_EMBED, self.width(), out.len())?;
        self.row(Table::PerLayer, token, out)
    }
}

fn check_width(table: &str, width: usize, asked: usize) -> Result<(), BoxError> {
    if width == asked {
        return Ok(());
    }
    Err(format!("{table}: a row has {width} values, the bundle takes {asked}").into())
}
