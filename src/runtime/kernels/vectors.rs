//! Vectors in the order in which kernels decode rows.

use super::codec::RowCoding;
use super::lanes::LANES;

/// Vectors as the rows of a weight want them: columns in the order in which blocks are decoded, padded with zeros to
/// whole blocks.
#[derive(Debug)]
pub(crate) struct Vectors {
    pub(super) count: usize,
    pub(super) cols: usize,
    pub(super) padded: usize,
    pub(super) values: Vec<f32>,
}

impl Vectors {
    /// `count` vectors of `cols` values, one after another, for rows of a coding; `None` for rows that are decoded in order.
    pub fn new(coding: Option<RowCoding>, x: &[f32], cols: usize, count: usize) -> Self {
        assert_eq!(x.len(), cols * count, "values of the vectors");
        let width = coding.map_or(LANES, |c| c.steps() * LANES);
        let padded = cols.next_multiple_of(width);
        let mut values = vec![0.0; padded * count];
        for v in 0..count {
            let x = &x[v * cols..(v + 1) * cols];
            let out = &mut values[v * padded..(v + 1) * padded];
            match coding {
                Some(coding) if coding.column(1) != 1 => order(coding.steps(), x, out),
                _ => out[..cols].copy_from_slice(x),
            }
        }
        Self {
            count,
            cols,
            padded,
            values,
        }
    }
}

/// Column `i * steps + j` of each block to place `j * 16 + i`.
fn order(steps: usize, x: &[f32], out: &mut [f32]) {
    let block = steps * LANES;
    for (x, out) in x.chunks(block).zip(out.chunks_exact_mut(block)) {
        for (i, word) in x.chunks(steps).enumerate() {
            for (j, &value) in word.iter().enumerate() {
                out[j * LANES + i] = value;
            }
        }
    }
}
