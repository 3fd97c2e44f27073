//! What became of the integers of a quantization-aware checkpoint, in words.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::bundle::provenance::{GridRecord, TensorRecord};

/// Tensors that are named, at most.
const NAMED: usize = 8;

/// A line for each grid that integers were kept of or looked for, and the tensors that do not lie on it; empty where there is
/// no such grid.
pub(super) fn summary(tensors: &[TensorRecord]) -> String {
    let mut grids: BTreeMap<(String, bool), Vec<(&str, GridRecord)>> = BTreeMap::new();
    for tensor in tensors {
        if let Some(grid) = tensor.grid {
            let of_grid = grids.entry((grid.name(), grid.given)).or_default();
            of_grid.push((&tensor.tensor, grid));
        }
    }
    let mut text = String::new();
    for ((name, given), tensors) in grids {
        let kept = tensors.iter().filter(|(_, grid)| grid.is_kept()).count();
        let (where_, off) = match given {
            true => ("of the checkpoint kept", "computed anew"),
            false => ("found", "off the grid"),
        };
        let _ = write!(
            text,
            "{kept} of {} tensors on the {name}, integers {where_}",
            tensors.len()
        );
        let inexact: u64 = tensors.iter().map(|(_, grid)| grid.inexact).sum();
        let groups: u64 = tensors.iter().map(|(_, grid)| grid.on).sum();
        if inexact > 0 {
            let _ = write!(
                text,
                "; {inexact} of {groups} groups without an exact fp16 step"
            );
        }
        text.push('\n');
        let lost = tensors.iter().filter(|(_, grid)| !grid.is_kept());
        for (tensor, grid) in lost.clone().take(NAMED) {
            let _ = writeln!(
                text,
                "  {tensor}: {} of {} groups {off}",
                grid.off, grid.groups
            );
        }
        let more = lost.count().saturating_sub(NAMED);
        if more > 0 {
            let _ = writeln!(text, "  and {more} more");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_off_the_grid_are_named() {
        let record = |i: usize, grid| TensorRecord {
            tensor: format!("layers.{i}.w"),
            file: String::new(),
            scheme: "int4-block32-full".to_string(),
            reason: "default".to_string(),
            elements: 64,
            bytes: 36,
            bits_per_weight: 4.5,
            sqnr_db: None,
            max_abs_error: 0.0,
            grid,
        };
        let found = |off, inexact| GridRecord {
            nbits: 4,
            block: Some(32),
            given: false,
            groups: 20,
            on: 20 - off,
            off,
            inexact,
        };
        let held = GridRecord {
            nbits: 2,
            block: None,
            given: true,
            ..found(0, 0)
        };
        let mut tensors = vec![
            record(0, Some(found(0, 3))),
            record(1, Some(found(5, 0))),
            record(2, None),
            record(3, Some(held)),
        ];
        assert_eq!(
            summary(&tensors),
            "1 of 1 tensors on the int2 grid per channel, integers of the checkpoint kept\n\
             1 of 2 tensors on the int4 grid of 32, integers found; 3 of 35 groups without an exact fp16 step\n  \
             layers.1.w: 5 of 20 groups off the grid\n"
        );
        tensors.extend((4..20).map(|i| record(i, Some(found(20, 0)))));
        let text = summary(&tensors);
        assert!(text.ends_with("  and 9 more\n"), "{text}");
        assert_eq!(summary(&tensors[2..3]), "");
    }
}
