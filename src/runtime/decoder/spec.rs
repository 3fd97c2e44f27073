//! What a decoder is handed: the packages of a bundle, what else the bundle holds of it, and how to run.

use crate::runtime::values::error::BoxError;
use crate::runtime::weights::coding::Coding;
use crate::runtime::weights::packed::PackedWeight;
use crate::runtime::weights::rows::Rows;
use half::f16;
use std::path::PathBuf;
use std::sync::Arc;

/// A table of cos or sin rows, as stored: `[rows, dim]` fp16, row = position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RopeTable {
    /// Number of positions.
    pub rows: usize,
    /// Head dim.
    pub dim: usize,
    /// `rows * dim` values, row-major.
    pub values: Vec<f16>,
}

/// The four RoPE tables of a bundle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RopeTables {
    /// `cos_sliding.npy`, feature `cos_s`.
    pub cos_sliding: RopeTable,
    /// `sin_sliding.npy`, feature `sin_s`.
    pub sin_sliding: RopeTable,
    /// `cos_full.npy`, feature `cos_f`.
    pub cos_full: RopeTable,
    /// `sin_full.npy`, feature `sin_f`.
    pub sin_full: RopeTable,
}

/// What a bundle's chunks are and hold.
#[derive(Clone, Debug, Default)]
pub struct ChainSpec {
    /// `(name, package directory)` of decode in execution order.
    pub chunks: Vec<(String, PathBuf)>,
    /// The same for prefill, where it has packages of its own.
    pub prefill: Vec<(String, PathBuf)>,
    /// Positions of the caches that keep every position.
    pub context: usize,
    /// Positions of the sliding caches, the current token included.
    pub window: usize,
    /// Positions that full layers keep, where that is fewer than the context.
    pub full_window: Option<usize>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Length of a per-layer row, layers × per-layer dim; 0 without per-layer embeddings.
    pub per_layer: usize,
    /// RoPE rows.
    pub rope: RopeTables,
    /// What combines per-layer rows where no chunk does.
    pub per_layer_mix: Option<PerLayerMix>,
    /// The layers that own K/V, in order, with the index of their chunk of decode: where prefill's rows go.
    pub owners: Vec<Owner>,
}

/// A layer that owns K/V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Index of its chunk of decode.
    pub chunk: usize,
    /// Sliding or full attention.
    pub sliding: bool,
}

/// Combines a per-layer row with the projected embedding: `(rms(P h * scale) * gain + row) * combine_scale`, the norm over
/// each layer's own values.
#[derive(Clone, Debug)]
pub struct PerLayerMix {
    projection: Arc<PackedWeight>,
    norm: Vec<f32>,
    scales: MixScales,
}

/// The numbers of a [`PerLayerMix`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MixScales {
    /// `hidden^-0.5`.
    pub projection: f32,
    /// `2^-0.5`.
    pub combine: f32,
    /// Epsilon of the norm.
    pub eps: f32,
}

impl PerLayerMix {
    /// From the bytes of P, fp16 `[layers * dim, hidden]` row-major, which stay where they are, and the gain `[dim]`. None if
    /// the bytes are no whole number of rows of `hidden` for each layer.
    pub fn new(
        projection: Arc<dyn AsRef<[u8]> + Send + Sync>,
        hidden: usize,
        norm: Vec<f32>,
        scales: MixScales,
    ) -> Option<Self> {
        let bytes = projection.as_ref().as_ref().len();
        let rows = bytes.checked_div(2 * hidden)?;
        if rows * hidden * 2 != bytes || rows.checked_rem(norm.len()) != Some(0) {
            return None;
        }
        let projection = PackedWeight::plain(&[rows, hidden], Coding::F16, projection)?;
        Some(Self {
            projection: Arc::new(projection),
            norm,
            scales,
        })
    }

    /// Combines in place: `row` holds the per-layer row of the token, `hidden` its embedding, both scaled.
    ///
    /// # Errors
    /// Other lengths than the projection has.
    pub fn combine(&self, hidden: &[f32], row: &mut [f32]) -> std::result::Result<(), BoxError> {
        let (rows, cols) = (self.projection.rows(), self.projection.cols());
        if (row.len(), hidden.len()) != (rows, cols) {
            let got = format!(
                "a row of {} and an embedding of {}",
                row.len(),
                hidden.len()
            );
            return Err(
                format!("the per-layer projection has {rows} rows of {cols}, got {got}").into(),
            );
        }
        let mut projected = vec![0.0; rows];
        Rows::Packed(&self.projection).multiply(0, hidden, 1, None, &mut projected);
        let (dim, scales) = (self.norm.len(), self.scales);
        let layers = row
            .chunks_exact_mut(dim)
            .zip(projected.chunks_exact_mut(dim));
        for (row, projected) in layers {
            projected.iter_mut().for_each(|x| *x *= scales.projection);
            let square: f32 = projected.iter().map(|x| x * x).sum::<f32>() / dim as f32;
            let inverse = (square + scales.eps).sqrt().recip();
            for ((value, x), gain) in row.iter_mut().zip(projected).zip(&self.norm) {
                *value = (*x * inverse * gain + *value) * scales.combine;
            }
        }
        Ok(())
    }
}

/// Where the rows of a token come from: a bundle's tables, or a checkpoint's exact rows.
pub trait TokenRows: Send {
    /// The embedding row of `token`, scaled by `sqrt(hidden)`, into `out` (`hidden` values).
    fn embed(&self, token: u32, out: &mut [f32]) -> std::result::Result<(), BoxError>;
    /// The per-layer row of `token`, scaled by `sqrt(per_layer_dim)`, into `out` (layers × per-layer dim values).
    fn per_layer(&self, token: u32, out: &mut [f32]) -> std::result::Result<(), BoxError>;
}

/// How a [`Decoder`](crate::runtime::Decoder) runs.
#[derive(Clone, Debug, Default)]
pub struct DecodeOptions {
    /// Worker threads; 0 means one per core. Results do not depend on it.
    pub threads: usize,
    /// Names of intermediate values to return with every step, e.g. `logits`, `layer_7_out`.
    pub keep: Vec<String>,
    /// Runs every op by itself, as [`Model::load_plain`](crate::runtime::Model::load_plain): slower, to compare with.
    pub plain: bool,
}
