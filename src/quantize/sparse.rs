//! Pruned palettes: the smallest weights of a group become zero, the others share an exact palette.
//!
//! How many weights stay is known from the length of the group alone. Of equal magnitudes the earlier
//! ones go first.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::error::{Error, Result};
use super::fp16::first_not_finite;
use super::palette::{GroupResult, Scratch};
use super::stats::ErrorStats;

/// Magnitudes of finite fp16 values.
const MAGNITUDES: usize = 0x7c00;

/// Weights of a group of `len` that stay when `percent` of them, rounded down, become zero.
pub fn kept(len: usize, percent: u8) -> usize {
    len - (len as u128 * u128::from(percent.min(100)) / 100) as usize
}

/// Finds the smallest magnitudes of a group that may come in tiles: [`Pruner::add`] them all, then ask for a
/// [`Selection`] as often as needed.
#[derive(Debug, Clone)]
pub struct Pruner {
    counts: Vec<u64>,
}

impl Default for Pruner {
    fn default() -> Self {
        Self::new()
    }
}

impl Pruner {
    /// No weights yet.
    pub fn new() -> Self {
        Pruner {
            counts: vec![0; MAGNITUDES],
        }
    }

    /// Counts the magnitudes of `values`. Errors: one that is not finite.
    pub fn add(&mut self, values: &[f16]) -> Result<()> {
        if let Some(index) = first_not_finite(values) {
            let value = values[index].to_f32();
            return Err(Error::NotFinite { index, value });
        }
        let bits: &[u16] = values.reinterpret_cast();
        for b in bits {
            self.counts[usize::from(b & 0x7fff)] += 1;
        }
        Ok(())
    }

    /// The `percent` smallest of what was counted, from the first weight on.
    pub fn select(&self, percent: u8) -> Selection {
        let total = self.counts.iter().sum::<u64>() as usize;
        let mut left = (total - kept(total, percent)) as u64;
        for (magnitude, &count) in self.counts.iter().enumerate() {
            if left < count {
                return Selection {
                    magnitude: magnitude as u16,
                    equal: left,
                };
            }
            left -= count;
        }
        Selection {
            magnitude: MAGNITUDES as u16,
            equal: 0,
        }
    }
}

/// Which weights of a group become zero; goes through the group once, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    /// Magnitudes below this one, as fp16 bits, all go.
    magnitude: u16,
    /// How many of this magnitude still go.
    equal: u64,
}

impl Selection {
    /// Whether the next weight stays.
    pub fn keeps(&mut self, value: f16) -> bool {
        let magnitude = value.to_bits() & 0x7fff;
        if magnitude == self.magnitude && self.equal > 0 {
            self.equal -= 1;
            return false;
        }
        magnitude >= self.magnitude
    }
}

/// Adds weights that became zero to the errors of those that stay.
pub fn add_pruned(weight: f16, importance: f32, stats: &mut ErrorStats, weighted_sse: &mut f64) {
    let weight = weight.to_f64();
    stats.add(weight, 0.0, 1);
    *weighted_sse += f64::from(importance) * (weight * weight);
}

/// Prunes `percent` of a group and palettizes the rest. `importance`, where given, weighs errors as for
/// [`super::palettize_group`]; what is pruned depends on magnitudes alone. `mask` has the group's length and
/// gets a 1 for each weight that stays, `indices` has [`kept`] elements. Errors: as for a palette.
pub fn palettize_sparse(
    group: &[f16],
    (nbits, percent): (u8, u8),
    importance: Option<&[f32]>,
    scratch: &mut Scratch,
    mask: &mut [u8],
    indices: &mut [u8],
) -> Result<GroupResult> {
    let count = kept(group.len(), percent);
    for (what, expected, got) in [
        ("mask", group.len(), mask.len()),
        ("indices", count, indices.len()),
    ] {
        if expected != got {
            return Err(Error::Length {
                what,
                expected,
                got,
            });
        }
    }
    if let Some(importance) = importance
        && (importance.is_empty() || !group.len().is_multiple_of(importance.len()))
    {
        return Err(Error::Length {
            what: "importance",
            expected: group.len(),
            got: importance.len(),
        });
    }
    let mut pruner = Pruner::new();
    pruner.add(group)?;
    let mut selection = pruner.select(percent);
    let weight_of = |i: usize| importance.map_or(1.0, |w| w[i % w.len()]);
    let (mut values, mut weights) = (Vec::with_capacity(count), Vec::new());
    for (i, (&value, keep)) in group.iter().zip(mask.iter_mut()).enumerate() {
        *keep = u8::from(selection.keeps(value));
        if *keep == 1 {
            values.push(value);
            weights.extend(importance.map(|_| weight_of(i)));
        }
    }
    scratch.histogram.clear();
    match importance {
        None => scratch.histogram.add(&values)?,
        Some(_) => scratch.histogram.add_weighted(&values, &weights)?,
    }
    let mut result = scratch.fit(nbits)?;
    scratch.assign(&values, indices)?;
    for (i, (&value, keep)) in group.iter().zip(mask.iter()).enumerate() {
        if *keep == 0 {
            add_pruned(
                value,
                weight_of(i),
                &mut result.stats,
                &mut result.weighted_sse,
            );
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quantize::palettize_group;

    fn run(group: &[f16], nbits: u8, percent: u8) -> (GroupResult, Vec<u8>, Vec<u8>) {
        let (mut mask, mut indices) = (vec![9; group.len()], vec![9; kept(group.len(), percent)]);
        let mut scratch = Scratch::new();
        let shape = (nbits, percent);
        let result = palettize_sparse(group, shape, None, &mut scratch, &mut mask, &mut indices);
        (result.unwrap(), mask, indices)
    }

    #[test]
    fn the_smallest_go_and_of_equal_ones_the_first() {
        let group = [0.5, -0.25, 0.25, -0.0, 0.25, 8.0, -0.25, 1.0].map(f16::from_f32);
        for (percent, mask) in [
            (1, [1, 1, 1, 1, 1, 1, 1, 1]),
            (13, [1, 1, 1, 0, 1, 1, 1, 1]),
            (38, [1, 0, 0, 0, 1, 1, 1, 1]),
            (50, [1, 0, 0, 0, 0, 1, 1, 1]),
            (99, [0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let (result, got, indices) = run(&group, 2, percent);
            assert_eq!(got, mask, "{percent} percent");
            assert_eq!(indices.len(), mask.iter().sum::<u8>() as usize);
            assert_eq!(result.stats.n, 8);
        }
        let (result, _, indices) = run(&group, 2, 50);
        let entries: Vec<f32> = result.lut.entries().iter().map(|x| x.to_f32()).collect();
        assert_eq!(
            (entries, indices),
            (vec![-0.25, 0.5, 1.0, 8.0], vec![1, 3, 0, 2])
        );
        assert_eq!(result.stats.sse, 3.0 * 0.0625);
    }

    #[test]
    fn importance_weighs_errors_and_not_what_goes() {
        let group = [1.0, 2.0, 8.0, 9.0, 0.5, 0.25, 0.125, 0.0].map(f16::from_f32);
        let importance = [1.0, 3.0, 1.0, 1.0];
        let (mut mask, mut indices) = ([0; 8], [0; 4]);
        let mut scratch = Scratch::new();
        let weigh = Some(&importance[..]);
        let result = palettize_sparse(
            &group,
            (1, 50),
            weigh,
            &mut scratch,
            &mut mask,
            &mut indices,
        );
        let result = result.unwrap();
        assert_eq!(mask, [1, 1, 1, 1, 0, 0, 0, 0]);
        let entries: Vec<f32> = result.lut.entries().iter().map(|x| x.to_f32()).collect();
        assert_eq!(entries, [1.75, 8.5]);
        let pruned = 0.25 + 3.0 * 0.0625 + 0.015625;
        assert_eq!(
            result.weighted_sse,
            0.75 * 0.75 + 3.0 * 0.0625 + 0.5 + pruned
        );
    }

    #[test]
    fn bad_input_is_named() {
        let mut group = [1.0f32; 10].map(f16::from_f32);
        let run = |group: &[f16], percent, importance: Option<&[f32]>| {
            let (mut mask, mut indices) = ([0; 10], [0; 5]);
            let mut scratch = Scratch::new();
            let shape = (4, percent);
            palettize_sparse(
                group,
                shape,
                importance,
                &mut scratch,
                &mut mask,
                &mut indices,
            )
        };
        assert!(matches!(
            run(&group, 40, None),
            Err(Error::Length {
                what: "indices",
                ..
            })
        ));
        assert!(matches!(
            run(&group[..9], 50, None),
            Err(Error::Length { what: "mask", .. })
        ));
        assert!(matches!(
            run(&group, 50, Some(&[1.0; 3])),
            Err(Error::Length { .. })
        ));
        assert!(run(&group, 50, Some(&[1.0; 5])).is_ok());
        group[7] = f16::NAN;
        assert!(matches!(
            run(&group, 50, None),
            Err(Error::NotFinite { index: 7, .. })
        ));
    }

    proptest! {
        /// As many as asked for are zero, none of them larger than one that stays, the rest is the exact
        /// palette of what stays, and tiles give the same.
        #[test]
        fn what_stays_is_palettized_exactly(
            raw in prop::collection::vec(any::<u16>(), 1..300),
            coarse in 0u32..14,
            percent in 1u8..100,
        ) {
            let group: Vec<f16> = raw
                .iter()
                .map(|b| f16::from_bits(b >> coarse << coarse))
                .filter(|v| v.is_finite())
                .collect();
            prop_assume!(!group.is_empty());
            let (result, mask, indices) = run(&group, 3, percent);
            let zeros = group.len() * usize::from(percent) / 100;
            prop_assert_eq!(mask.iter().filter(|m| **m == 0).count(), zeros);
            let of = |keep: u8| group.iter().zip(&mask).filter(move |(_, m)| **m == keep);
            let magnitude = |v: &f16| v.to_f64().abs();
            let largest = of(0).map(|(v, _)| magnitude(v)).fold(0.0, f64::max);
            prop_assert!(of(1).all(|(v, _)| magnitude(v) >= largest));
            let stays: Vec<f16> = of(1).map(|(v, _)| *v).collect();
            let (mut scratch, mut expected) = (Scratch::new(), vec![0; stays.len()]);
            let alone = palettize_group(&stays, 3, None, &mut scratch, &mut expected).unwrap();
            prop_assert_eq!(&alone.lut, &result.lut);
            prop_assert_eq!(&expected, &indices);
            let lost: f64 = of(0).map(|(v, _)| v.to_f64() * v.to_f64()).sum();
            prop_assert!((result.stats.sse - alone.stats.sse - lost).abs() <= 1e-9 * result.stats.sse);
            let mut pruner = Pruner::new();
            for tile in group.chunks(7) {
                pruner.add(tile).unwrap();
            }
            let mut selection = pruner.select(percent);
            let again: Vec<u8> = group.iter().map(|v| u8::from(selection.keeps(*v))).collect();
            prop_assert_eq!(again, mask);
        }
    }
}
