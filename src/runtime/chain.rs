//! What the decode loop needs of a bundle: its decode packages in order, sizes and RoPE tables.

use half::f16;
use std::path::PathBuf;

/// A table of cos or sin rows, as stored: `[rows, dim]` fp16, row = position.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Number of positions.
    pub rows: usize,
    /// Head dim.
    pub dim: usize,
    /// `rows * dim` values, row-major.
    pub values: Vec<f16>,
}

/// The four RoPE tables of a bundle.
#[derive(Clone, Debug, PartialEq)]
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

/// The chunks of a decode chain.
#[derive(Clone, Debug)]
pub struct ChainSpec {
    /// `(name, package directory)` in execution order.
    pub chunks: Vec<(String, PathBuf)>,
    /// Positions of the full-attention caches.
    pub context: usize,
    /// Positions of the sliding caches, the current token included.
    pub window: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Length of a per-layer row, layers × per-layer dim; 0 without per-layer embeddings.
    pub per_layer: usize,
    /// RoPE rows.
    pub rope: RopeTables,
}
