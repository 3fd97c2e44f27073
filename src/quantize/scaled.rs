//! Tables in int8: one fp16 scale for all tables of a tensor, as coremltools' joint compression with
//! `per_tensor` granularity writes them. The reader computes `fp16(code * scale)`.

use half::f16;

use super::error::Result;
use super::linear::quantize_symmetric;
use super::palette::Lut;

/// The tables of a tensor in int8.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaledLuts {
    /// The entries of every table, one table after the other; what a table does not use is 0.
    pub codes: Vec<i8>,
    /// What a code is multiplied with.
    pub scale: f16,
    /// The tables as the reader computes them. Entries that became equal are one.
    pub luts: Vec<Lut>,
}

/// Quantizes tables of single weights, symmetric, by their largest magnitude.
pub fn scale_luts(luts: &[Lut]) -> Result<ScaledLuts> {
    let entries: Vec<f16> = luts.iter().flat_map(Lut::entries).copied().collect();
    let mut all = vec![0i8; entries.len()];
    let scale = quantize_symmetric(&entries, 8, &mut all)?;
    let stored = |code: i8| f16::from_f32(f32::from(code) * scale.to_f32());
    let mut out = ScaledLuts {
        codes: Vec::with_capacity(all.len()),
        scale,
        luts: Vec::with_capacity(luts.len()),
    };
    let mut rest = all.as_slice();
    for lut in luts {
        let (codes, after) = rest.split_at(lut.entries().len());
        rest = after;
        let mut kept: Vec<i8> = codes[..lut.used()].to_vec();
        // Entries ascend, and so do their codes.
        kept.dedup_by(|a, b| stored(*a) == stored(*b));
        let used = kept.len();
        let mut values: Vec<f16> = kept.iter().map(|&code| stored(code)).collect();
        values.resize(codes.len(), f16::ZERO);
        out.luts.push(Lut::new(values, used));
        kept.resize(codes.len(), 0);
        out.codes.extend(kept);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{Histogram, Scratch};

    fn lut(values: &[f32], size: usize) -> Lut {
        let mut entries: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
        entries.resize(size, f16::ZERO);
        Lut::new(entries, values.len())
    }

    fn values(lut: &Lut) -> Vec<f32> {
        lut.entries().iter().map(|v| v.to_f32()).collect()
    }

    #[test]
    fn one_scale_and_equal_entries_are_one() {
        let luts = [lut(&[-12.7, -0.26, -0.24], 4), lut(&[0.1, 3.0], 4)];
        let scaled = scale_luts(&luts).unwrap();
        assert_eq!(
            scaled.scale,
            f16::from_f32(f16::from_f32(12.7).to_f32() / 127.0)
        );
        // -0.26 and -0.24 are -3 and -2 (their quotients are -2.6 and -2.4 of 0.1).
        assert_eq!(scaled.codes, [-127, -3, -2, 0, 1, 30, 0, 0]);
        let close = lut(&[-12.7, -0.32, -0.28, 5.0], 4);
        let scaled = scale_luts(&[close]).unwrap();
        assert_eq!(scaled.codes, [-127, -3, 50, 0]);
        assert_eq!(scaled.luts[0].used(), 3);
        assert_eq!(values(&scaled.luts[0])[3], 0.0);
    }

    #[test]
    fn a_scale_that_underflows_leaves_one_zero() {
        let scaled = scale_luts(&[lut(&[-1e-7, 1e-7], 2)]).unwrap();
        assert_eq!((scaled.scale.to_f32(), scaled.luts[0].used()), (0.0, 1));
        assert_eq!(values(&scaled.luts[0]), [0.0, 0.0]);
    }

    #[test]
    fn weights_go_to_the_nearest_entry_as_stored() {
        let weights: Vec<f16> = (0..500)
            .map(|i| f16::from_f32(((i * i) % 997) as f32 / 500.0 - 1.0))
            .collect();
        let mut scratch = Scratch::new();
        scratch.histogram = Histogram::from_f16(&weights).unwrap();
        let exact = scratch.fit(4).unwrap();
        let scaled = scale_luts(std::slice::from_ref(&exact.lut)).unwrap();
        scratch.histogram.add(&weights).unwrap();
        let stored = scratch.assign_to(scaled.luts[0].clone()).unwrap();
        let mut indices = vec![0; weights.len()];
        scratch.assign(&weights, &mut indices).unwrap();
        let table = &stored.lut.entries()[..stored.lut.used()];
        let mut sse = 0.0;
        for (w, &index) in weights.iter().zip(&indices) {
            let distance = |e: &f16| (w.to_f64() - e.to_f64()).abs();
            let own = distance(&table[usize::from(index)]);
            let nearest = table.iter().position(|e| distance(e) <= own);
            assert_eq!(nearest, Some(usize::from(index)));
            sse += own * own;
        }
        assert!((stored.stats.sse - sse).abs() <= 1e-9 * sse);
        assert!(stored.stats.sse >= exact.stats.sse);
    }
}
