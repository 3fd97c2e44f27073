use super::*;
use crate::checkpoint::TensorView;
use crate::convert::weights::input::Factors;
use crate::convert::weights::tuning::Tuning;
use crate::progress::NoProgress;
use crate::quantize::{IntRange, packed_len, unpack};
use std::sync::Arc;

const ROWS: usize = 3;
const INPUTS: usize = 64;

/// Integers of every value that a width has.
fn integers(nbits: u8) -> Vec<i8> {
    let half = 1i32 << (nbits - 1);
    let value = |i: usize| ((i * 37 + i / 7) as i32 % (2 * half) - half) as i8;
    (0..ROWS * INPUTS).map(value).collect()
}

/// As files have them: with half the range added, lowest bits first.
fn packed(integers: &[i8], nbits: u8) -> Vec<u8> {
    let half = 1i16 << (nbits - 1);
    let biased = integers.iter().map(|q| (i16::from(*q) + half) as u8);
    let mut out = Vec::new();
    crate::quantize::pack(&biased.collect::<Vec<_>>(), nbits, &mut out).unwrap();
    out
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// What is written of a tensor: data, scales or tables, what became of its groups, the largest error.
struct Written {
    data: Vec<u8>,
    values: Vec<f16>,
    grid: Option<GridRecord>,
    error: f64,
}

impl Written {
    fn integers(&self, nbits: u8) -> Vec<i8> {
        assert_eq!(self.data.len(), packed_len(ROWS * INPUTS, nbits));
        let mut out = vec![0; ROWS * INPUTS];
        unpack(&self.data, nbits, &mut out).unwrap();
        let sign = 8 - nbits;
        out.iter().map(|q| ((q << sign) as i8) >> sign).collect()
    }
}

fn written(view: TensorView<'_>, scheme: &str, factors: Factors) -> Result<Written> {
    let scheme: Scheme = scheme.parse().unwrap();
    let input = Input::new(view, INPUTS, factors);
    let (mut data, mut values) = (Vec::new(), Vec::new());
    let (tuning, mut buffers) = (Tuning::default(), Buffers::default());
    let sink = &mut |part, bytes: &[u8]| {
        match part {
            Part::Data => data.extend(bytes),
            _ => values.extend(bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]))),
        }
        Ok(())
    };
    let mut tiler = Tiler {
        input: &input,
        tuning: &tuning,
        buffers: &mut buffers,
        progress: &NoProgress,
        sink,
    };
    let streamed = match scheme {
        Scheme::Linear {
            nbits,
            block,
            range: IntRange::Full,
        } => tiler.full(scheme, nbits, block),
        Scheme::Palette { nbits, .. } => {
            let grid = tiler.given(scheme).expect("a grid that the palette keeps");
            tiler.given_palettes(scheme, nbits, grid)
        }
        _ => unreachable!("{scheme}"),
    };
    match streamed {
        Ok((stats, grid)) => Ok(Written {
            data,
            values,
            grid,
            error: stats.max_abs,
        }),
        Err(stopped) => Err(*stopped.downcast::<Error>().unwrap()),
    }
}

/// Steps that fp16 has, and one in three that it has not.
fn steps(count: usize) -> Vec<f32> {
    let step = |i: usize| (1.0 + i as f32 / 16.0) / 512.0;
    let off = |i: usize| if i % 3 == 2 { 1e-6 } else { 0.0 };
    (0..count).map(|i| step(i) + off(i)).collect()
}

fn given(
    nbits: u8,
    block: usize,
    steps: &[f32],
    scheme: &str,
    factors: Factors,
) -> Result<Written> {
    let integers = packed(&integers(nbits), nbits);
    let (grid, steps) = (Grid { nbits, block }, f32s(steps));
    let view = TensorView::of_codes("w", &[ROWS, INPUTS], grid, &integers, &steps);
    written(view, scheme, factors)
}

#[test]
fn integers_and_steps_of_the_checkpoint_are_kept() {
    for (scheme, own, shared, nbits, block) in [
        ("int4-block32-full", 4, 32, 4, 32),
        ("int4-block32-full", 4, 32, 2, 32),
        ("int4-block32-full", 4, 32, 4, INPUTS),
        ("int4-block16-full", 4, 16, 4, 32),
        ("int4-channel-full", 4, INPUTS, 4, INPUTS),
        ("int4-channel-full", 4, INPUTS, 2, INPUTS),
        ("int8-channel-full", 8, INPUTS, 8, INPUTS),
        ("int8-channel-full", 8, INPUTS, 4, INPUTS),
        ("int8-block32-full", 8, 32, 8, 32),
    ] {
        let what = format!("{scheme} of {nbits} bits by {block}");
        let steps = steps(ROWS * INPUTS / block);
        let got = given(nbits, block, &steps, scheme, Factors::default()).unwrap();
        assert_eq!(got.integers(own), integers(nbits), "{what}");
        let scale = |i: usize| f16::from_f32(steps[i * shared / block]);
        let groups = ROWS * INPUTS / shared;
        assert_eq!(
            got.values,
            (0..groups).map(scale).collect::<Vec<_>>(),
            "{what}"
        );
        let inexact = (0..groups).filter(|i| i * shared / block % 3 == 2).count();
        let expected = GridRecord {
            nbits,
            block: (block < INPUTS).then_some(block),
            given: true,
            groups: groups as u64,
            on: groups as u64,
            off: 0,
            inexact: inexact as u64,
        };
        assert_eq!(got.grid, Some(expected), "{what}");
    }
}

#[test]
fn tables_of_rows_are_the_products() {
    for (scheme, own, nbits) in [
        ("palette2-g1", 2, 2),
        ("palette4-g1", 4, 4),
        ("palette4-g1", 4, 2),
        ("palette6-g1", 6, 4),
        ("palette8-g1", 8, 8),
    ] {
        // An integer times a step of 24 digits is rounded once.
        let steps = [0.013_456_789_f32, 0.5, 1.0 / 3.0];
        let got = given(nbits, INPUTS, &steps, scheme, Factors::default()).unwrap();
        let half = 1i16 << (nbits - 1);
        let mut indices = vec![0; ROWS * INPUTS];
        unpack(&got.data, own, &mut indices).unwrap();
        for (i, q) in integers(nbits).into_iter().enumerate() {
            assert_eq!(i16::from(indices[i]), i16::from(q) + half, "{scheme}");
            let entry = got.values[((i / INPUTS) << own) + usize::from(indices[i])];
            let exact = f64::from(q) * f64::from(steps[i / INPUTS]);
            assert_eq!(entry, f16::from_f64(exact), "{scheme} {q}");
        }
        // Entries beyond the integers are zeros, as in every table.
        for table in got.values.chunks(1 << own) {
            assert!(table[2 * half as usize..].iter().all(|e| *e == f16::ZERO));
        }
        let grid = got.grid.unwrap();
        let found = (grid.nbits, grid.block, grid.given, grid.groups, grid.on);
        assert_eq!(found, (nbits, None, true, 3, 3));
        assert_eq!((grid.off, grid.inexact), (0, 2));
    }
}

#[test]
fn factors_of_rows_scale_the_steps_and_those_of_columns_leave_the_grid() {
    let rows: Arc<[f32]> = vec![0.5, 2.0, 1.5].into();
    let factors = Factors {
        rows: Some(rows.clone()),
        columns: None,
    };
    let steps = [0.01, 0.02, 0.03];
    let got = given(4, INPUTS, &steps, "int4-channel-full", factors.clone()).unwrap();
    assert_eq!(got.integers(4), integers(4));
    let scales = steps.iter().zip(&*rows).map(|(s, f)| f16::from_f32(s * f));
    assert_eq!(got.values, scales.collect::<Vec<_>>());
    let got = given(4, INPUTS, &steps, "palette4-g1", factors).unwrap();
    let entry = |row: usize, q: f32| f16::from_f32(q * steps[row] * rows[row]);
    assert_eq!(got.values[0], entry(0, -8.0));
    assert_eq!(got.values[16 + 15], entry(1, 7.0));
    let columns = Factors {
        rows: None,
        columns: Some(vec![2.0; INPUTS].into()),
    };
    let got = given(4, INPUTS, &steps, "int4-channel-full", columns).unwrap();
    let grid = got.grid.unwrap();
    assert_eq!((grid.on, grid.off, grid.is_kept()), (0, 3, false));
}

#[test]
fn a_grid_that_the_scheme_does_not_hold_is_computed_anew() {
    for (nbits, block, scheme, groups) in [
        (8, 32, "int4-block32-full", 6),
        (4, 16, "int4-block32-full", 6),
        (4, 32, "int8-channel-full", 3),
    ] {
        let steps = steps(ROWS * INPUTS / block);
        let got = given(nbits, block, &steps, scheme, Factors::default()).unwrap();
        let grid = got.grid.unwrap();
        let counts = (grid.given, grid.groups, grid.on, grid.off);
        assert_eq!(counts, (true, groups, 0, groups), "{scheme}");
        assert!(got.error > 0.0);
    }
}

/// A step of fp16, integers of at most 11 bits times it: nothing is lost, the ends of the ranges included, whatever the sign.
#[test]
fn nothing_is_lost_with_steps_of_bf16() {
    for (nbits, scheme) in [(4, "int4-channel-full"), (8, "int8-channel-full")] {
        let steps = [0.25, -0.5, 2f32.powi(-7) * 1.5];
        let got = given(nbits, INPUTS, &steps, scheme, Factors::default()).unwrap();
        assert_eq!(got.error, 0.0);
        assert!(got.integers(nbits).contains(&(-128i8 >> (8 - nbits))));
        assert_eq!(got.values[1].to_f32(), -0.5);
    }
}

#[test]
fn steps_beyond_fp16_are_named() {
    for (scheme, steps) in [
        ("int4-channel-full", [0.5, 0.5, 9000.0]),
        ("palette4-g1", [0.5, 1e30, 0.5]),
    ] {
        let error = given(4, INPUTS, &steps, scheme, Factors::default());
        let Err(error) = error else {
            panic!("{scheme}: no error");
        };
        assert!(error.to_string().contains('w'), "{error}");
    }
    // A step that only zeros have, and entries that no weight has.
    let (grid, codes) = (
        Grid {
            nbits: 4,
            block: INPUTS,
        },
        packed(&[0; ROWS * INPUTS], 4),
    );
    let steps = f32s(&[1e30, 0.5, 9000.0]);
    for scheme in ["int4-channel-full", "palette4-g1"] {
        let view = TensorView::of_codes("w", &[ROWS, INPUTS], grid, &codes, &steps);
        let got = written(view, scheme, Factors::default()).unwrap();
        assert!(got.values.iter().all(|v| v.is_finite()), "{scheme}");
        assert_eq!(got.error, 0.0);
    }
}

#[test]
fn groups_off_the_grid_are_computed_and_counted() {
    let step = f16::from_f32(0.02).to_f32();
    let codes = integers(4);
    let mut values: Vec<f32> = codes.iter().map(|q| f32::from(*q) * step).collect();
    // bf16 as fp16 holds it.
    for value in &mut values {
        *value = half::bf16::from_f32(*value).to_f32();
    }
    let halves = |values: &[f32]| -> Vec<u8> {
        let halves = values.iter().map(|v| f16::from_f32(*v));
        halves.flat_map(|v| v.to_le_bytes()).collect()
    };
    let bytes = halves(&values);
    let of = |bytes, scheme| {
        let view = TensorView::of_f16("w", &[ROWS, INPUTS], bytes);
        written(view, scheme, Factors::default()).unwrap()
    };
    for (scheme, groups) in [("int4-block32-full", 6), ("int4-channel-full", 3)] {
        let got = of(&bytes, scheme);
        assert_eq!(got.integers(4), codes);
        assert!(got.values.iter().all(|v| v.to_f32() == step));
        let grid = got.grid.unwrap();
        let counts = (grid.given, grid.groups, grid.on, grid.off, grid.inexact);
        assert_eq!(counts, (false, groups, groups, 0, 0));
    }
    values[70] = half::bf16::from_f32(0.45 * step).to_f32();
    let bytes = halves(&values);
    let got = of(&bytes, "int4-block32-full");
    let grid = got.grid.unwrap();
    assert_eq!((grid.on, grid.off, grid.is_kept()), (5, 1, false));
    let integers = got.integers(4);
    assert_eq!(integers[..64], codes[..64]);
    assert_eq!(integers[96..], codes[96..]);
    let max = values[64..96].iter().fold(0f32, |m, v| m.max(v.abs()));
    assert_eq!(got.values[2], f16::from_f32(max / 7.5));
    // Of 8 bits nothing is looked for.
    assert_eq!(of(&bytes, "int8-channel-full").grid, None);
}
