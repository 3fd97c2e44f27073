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

#[cfg(test)]
mod tests {
    use super::*;

    /// Units in the last place that a frequency may be off: transformers takes the power in f32.
    const FREQ_ULPS: u32 = 1;
    /// Largest difference of a sine or cosine whose angle is the same f32.
    const SINE_TOLERANCE: f32 = 1e-6;

    fn spec(theta: f64, head_dim: usize, rotated_pairs: usize, factor: f64) -> RopeSpec {
        RopeSpec {
            theta,
            head_dim,
            rotated_pairs,
            factor,
        }
    }

    /// Bits of frequencies that transformers 5.23 gives (`Gemma4TextRotaryEmbedding`), by pair.
    #[test]
    fn frequencies_of_transformers() {
        let published_sliding: &[(usize, u32)] = &[
            (0, 0x3f800000),
            (1, 0x3f6e39f8),
            (2, 0x3f5dafd7),
            (5, 0x3f32a506),
            (17, 0x3e96aaea),
            (40, 0x3d6655c2),
        ];
        let published_full: &[(usize, u32)] = &[
            (0, 0x3f800000),
            (1, 0x3f728cf8),
            (3, 0x3f59bc10),
            (7, 0x3f2f75b1),
            (20, 0x3eadfcff),
            (60, 0x3d20bc1d),
            (64, 0),
            (255, 0),
        ];
        let odd_sliding: &[(usize, u32)] = &[
            (0, 0x3f800000),
            (1, 0x3eeda63c),
            (2, 0x3e5c9d35),
            (5, 0x3cb07dc6),
        ];
        let odd_full: &[(usize, u32)] = &[
            (0, 0x3e000000),
            (1, 0x3d804dce),
            (3, 0x3c80e9f9),
            (6, 0),
            (7, 0),
        ];
        for (spec, expected) in [
            (spec(1e4, 256, 128, 1.0), published_sliding),
            (spec(1e6, 512, 64, 1.0), published_full),
            (spec(1e4, 24, 12, 1.0), odd_sliding),
            (spec(1e6, 40, 6, 8.0), odd_full),
        ] {
            let freqs = inv_freq(&spec);
            assert_eq!(freqs.len(), spec.head_dim / 2);
            assert_eq!(
                freqs.iter().filter(|f| **f != 0.0).count(),
                spec.rotated_pairs
            );
            for (pair, bits) in expected {
                let off = freqs[*pair].to_bits().abs_diff(*bits);
                assert!(off <= FREQ_ULPS, "{spec:?} pair {pair}: {off} ulps");
            }
        }
    }

    /// Sines and cosines of transformers 5.23 at position 4999.
    #[test]
    fn tables_of_transformers() {
        const POSITION: usize = 4999;
        for (spec, expected) in [
            (
                spec(1e4, 256, 128, 1.0),
                &[
                    (1, -0.718_583_9, 0.695_440_3),
                    (17, 0.693_850_4, 0.720_119_2),
                ][..],
            ),
            (
                spec(1e6, 512, 64, 1.0),
                &[
                    (1, 0.407_022_45, -0.913_418_2),
                    (60, 0.178_324_39, 0.983_971_8),
                    (70, 1.0, 0.0),
                ][..],
            ),
            (
                spec(1e6, 40, 6, 8.0),
                &[(3, -0.991_910_5, -0.126_939_25)][..],
            ),
        ] {
            let (cos, sin) = rows_of(&spec, POSITION..POSITION + 2);
            for &(pair, c, s) in expected {
                for dim in [pair, pair + spec.head_dim / 2] {
                    assert!(
                        (cos[dim] - c).abs() <= SINE_TOLERANCE,
                        "{spec:?} cos {dim}: {}",
                        cos[dim]
                    );
                    assert!(
                        (sin[dim] - s).abs() <= SINE_TOLERANCE,
                        "{spec:?} sin {dim}: {}",
                        sin[dim]
                    );
                }
            }
            let whole = table(&spec, POSITION + 2);
            assert_eq!(whole.0[POSITION * spec.head_dim..], cos);
            assert_eq!(whole.1[POSITION * spec.head_dim..], sin);
        }
    }
}
