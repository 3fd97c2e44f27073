//! Rotary position embedding: inverse frequencies and tables, as transformers computes them.
//!
//! Dim `i` pairs with `i + head_dim / 2`. The angle is `position * inv_freq[i]` in f32; sine and cosine are taken of that f32
//! angle (`modeling_rope_utils.py`, `Gemma4TextRotaryEmbedding` in transformers 5.23).

use std::ops::Range;

use crate::checkpoint::{HeadConfig, RopeType};

/// Frequencies of one layer kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Dims of a head, even. Exponents are over this, also where only a part rotates.
    pub head_dim: usize,
    /// Pairs that rotate, at most `head_dim / 2`; the others have frequency 0.
    pub rotated_pairs: usize,
    /// Divides the frequencies.
    pub factor: f64,
}

impl RopeSpec {
    /// The frequencies that a configuration asks for.
    pub fn new(heads: &HeadConfig) -> Self {
        let half = heads.head_dim / 2;
        let rotated_pairs = match heads.rope.rope_type {
            RopeType::Default => half,
            // int(factor * head_dim // 2), in transformers' order of operations.
            RopeType::Proportional {
                partial_rotary_factor,
            } => ((partial_rotary_factor * heads.head_dim as f64 / 2.0).floor() as usize).min(half),
        };
        Self {
            theta: heads.rope.theta,
            head_dim: heads.head_dim,
            rotated_pairs,
            factor: heads.rope.factor,
        }
    }

    /// Every pair rotates, whatever the configuration says: the tables of a published runtime that rotates all pairs of full
    /// layers, kept for comparisons with it.
    pub fn all_pairs(self) -> Self {
        Self {
            rotated_pairs: self.head_dim / 2,
            ..self
        }
    }
}

/// `head_dim / 2` inverse frequencies: `theta^(-2i / head_dim) / factor`, 0 for pairs that do not rotate.
///
/// The exponent is rounded to f32 as in transformers. The power is taken in f64 and rounded to f32, so that the result
/// hardly depends on the machine's f32 library.
pub fn inv_freq(spec: &RopeSpec) -> Vec<f32> {
    let one = |i: usize| {
        if i >= spec.rotated_pairs {
            return 0.0;
        }
        let exponent = (2 * i) as f32 / spec.head_dim as f32;
        let power = spec.theta.powf(f64::from(exponent)) as f32;
        (1.0 / power) / spec.factor as f32
    };
    (0..spec.head_dim / 2).map(one).collect()
}

/// Cosines and sines of positions `0..rows`, each `[rows, head_dim]` row-major; the second half of a row repeats the first.
pub fn table(spec: &RopeSpec, rows: usize) -> (Vec<f32>, Vec<f32>) {
    rows_of(spec, 0..rows)
}

/// [`table`] for the given positions only.
pub fn rows_of(spec: &RopeSpec, positions: Range<usize>) -> (Vec<f32>, Vec<f32>) {
    let freqs = inv_freq(spec);
    let size = positions.len() * spec.head_dim;
    let (mut cos, mut sin) = (Vec::with_capacity(size), Vec::with_capacity(size));
    for position in positions {
        let angles = || freqs.iter().map(|f| f64::from(position as f32 * f));
        for _half in 0..2 {
            cos.extend(angles().map(|a| a.cos() as f32));
            sin.extend(angles().map(|a| a.sin() as f32));
        }
    }
    (cos, sin)
}
