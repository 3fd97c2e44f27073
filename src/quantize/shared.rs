//! Palettes of several widths from one histogram, for conversions that differ in width alone.

use std::collections::HashMap;
use std::sync::Mutex;

use half::f16;

use super::error::{Error, Result};
use super::palette::{GroupResult, Scratch};

/// A group: its tensor, the first of its rows, its length.
type Group = (String, usize, usize);

/// Unweighted palettes of every group that was asked for, for each of some widths. The first one who asks for a group counts
/// its values; who asks for another width of it finds the table. Takes the tables' bytes for each group: no histogram is kept.
#[derive(Debug)]
pub struct SharedPalettes {
    widths: Vec<u8>,
    known: Mutex<HashMap<Group, Vec<GroupResult>>>,
}

impl SharedPalettes {
    /// For these widths.
    pub fn new(widths: impl IntoIterator<Item = u8>) -> Self {
        SharedPalettes {
            widths: widths.into_iter().collect(),
            known: Mutex::default(),
        }
    }

    /// Groups whose values were counted so far.
    pub fn groups(&self) -> usize {
        self.known.lock().map_or(0, |known| known.len())
    }

    /// As [`palettize_group`](super::palettize_group) without importance, for the group of `tensor` that begins with row
    /// `first`. `None` for a width that is not among those given.
    pub fn palettize(
        &self,
        (tensor, first): (&str, usize),
        group: &[f16],
        nbits: u8,
        scratch: &mut Scratch,
        indices: &mut [u8],
    ) -> Option<Result<GroupResult>> {
        let place = self.widths.iter().position(|n| *n == nbits)?;
        let key = (tensor.to_owned(), first, group.len());
        let known =
            |known: &HashMap<Group, Vec<GroupResult>>| Some(known.get(&key)?[place].clone());
        let there = self.known.lock().ok().and_then(|all| known(&all));
        Some(match there {
            Some(result) => assign(&result, group, indices).map(|()| result),
            None => self.fit(key, group, place, scratch, indices),
        })
    }

    fn fit(
        &self,
        key: Group,
        group: &[f16],
        place: usize,
        scratch: &mut Scratch,
        indices: &mut [u8],
    ) -> Result<GroupResult> {
        scratch.histogram.clear();
        scratch.histogram.add(group)?;
        let all = scratch.fit_each(&self.widths)?;
        let result = all[place].clone();
        assign(&result, group, indices)?;
        if let Ok(mut known) = self.known.lock() {
            known.insert(key, all);
        }
        Ok(result)
    }
}

/// Each value to its nearest entry, at a tie to the lower one. Halfway between two fp16 values is exact in f64.
fn assign(result: &GroupResult, group: &[f16], indices: &mut [u8]) -> Result<()> {
    if indices.len() != group.len() {
        return Err(Error::Length {
            what: "indices",
            expected: group.len(),
            got: indices.len(),
        });
    }
    let entries = &result.lut.entries()[..result.lut.used()];
    let halfway = |pair: &[f16]| (pair[0].to_f64() + pair[1].to_f64()) / 2.0;
    let middles: Vec<f64> = entries.windows(2).map(halfway).collect();
    for (index, value) in indices.iter_mut().zip(group) {
        let value = value.to_f64();
        *index = middles.partition_point(|middle| *middle < value) as u8;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::palette::palettize_group;
    use super::super::scheme::PALETTE_BITS;
    use super::*;

    #[test]
    fn every_width_is_as_if_it_were_alone() {
        let group = |seed: u32| -> Vec<f16> {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f16::from_f32(((state >> 20) as f32 - 2048.0) / 1024.0)
            };
            (0..3000).map(|_| next()).collect()
        };
        let shared = SharedPalettes::new(PALETTE_BITS);
        let mut scratch = Scratch::new();
        // Two groups of a tensor and one of another; small palettes tie often, since values are few.
        for nbits in PALETTE_BITS {
            for (i, place) in [("a", 0), ("a", 32), ("b", 0)].into_iter().enumerate() {
                let values = group(i as u32 + 1);
                let (mut got, mut alone) = (vec![0; 3000], vec![0; 3000]);
                let result = shared.palettize(place, &values, nbits, &mut scratch, &mut got);
                let expected = palettize_group(&values, nbits, None, &mut scratch, &mut alone);
                assert_eq!(result.unwrap().unwrap(), expected.unwrap());
                assert_eq!(got, alone, "{nbits} bits");
            }
        }
        assert_eq!(shared.groups(), 3);
        let few = SharedPalettes::new([4]);
        assert!(
            few.palettize(("a", 0), &group(1), 3, &mut scratch, &mut [0; 3000])
                .is_none()
        );
        let broken = few.palettize(("a", 0), &[f16::NAN], 4, &mut scratch, &mut [0]);
        assert!(matches!(broken, Some(Err(Error::NotFinite { .. }))));
        assert_eq!(few.groups(), 0);
    }
}
