//! Rows of integers, of numbers on a grid, and of others, read back through the bundle's reader.

use super::*;
use crate::bundle::{RowTable, layout};
use half::bf16;

const ROWS: usize = 2;

fn spec(scheme: &str, dim: usize, factor: f64) -> TableSpec {
    TableSpec {
        tensor: "t",
        stem: "t",
        rows: ROWS,
        dim,
        scheme: scheme.parse().unwrap(),
        factor,
    }
}

/// What was encoded, the bytes of data and the scales, and the rows that a reader makes of them.
struct Written {
    encoded: Encoded,
    data: Vec<u8>,
    scales: Vec<f32>,
    read: Vec<Vec<f32>>,
}

fn written(view: &TensorView<'_>, spec: &TableSpec) -> Result<Written> {
    let rows = Rows::new(view, spec);
    let (width, each) = (
        spec.scheme.row_bytes(spec.dim),
        spec.scheme.row_scales(spec.dim),
    );
    let (mut data, mut scales) = (vec![0; ROWS * width], vec![f16::ZERO; ROWS * each]);
    let (mut buffers, mut encoded) = (Buffers::default(), Encoded::default());
    for row in 0..ROWS {
        let scales = &mut scales[row * each..(row + 1) * each];
        let out = &mut data[row * width..(row + 1) * width];
        encoded.merge(&rows.encode(row, &mut buffers, out, scales)?);
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(layout::table_data("t", spec.scheme)), &data).unwrap();
    if let Some(file) = layout::table_scales("t", spec.scheme) {
        let bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        std::fs::write(dir.path().join(file), bytes).unwrap();
    }
    let table = RowTable::open(dir.path(), "t", spec.scheme, ROWS, spec.dim).unwrap();
    let read = (0..ROWS).map(|row| {
        let mut out = vec![0.0; spec.dim];
        table.row(row, spec.factor as f32, &mut out).unwrap();
        out
    });
    Ok(Written {
        encoded,
        data,
        scales: scales.into_iter().map(f16::to_f32).collect(),
        read: read.collect(),
    })
}

fn counts(written: &Written) -> (u64, u64, u64) {
    let blocks = written.encoded.blocks;
    (blocks.on, blocks.off, blocks.inexact)
}

/// Bytes of integers with 2^(nbits-1) added, lowest bits first, and of f32 steps.
fn stored(codes: &[i8], nbits: u8, steps: &[f32]) -> (Vec<u8>, Vec<u8>) {
    let biased: Vec<u8> = codes
        .iter()
        .map(|q| (i16::from(*q) + (1 << (nbits - 1))) as u8)
        .collect();
    let mut bytes = Vec::new();
    crate::quantize::pack(&biased, nbits, &mut bytes).unwrap();
    (bytes, steps.iter().flat_map(|s| s.to_le_bytes()).collect())
}

fn coded<'a>(bytes: &'a (Vec<u8>, Vec<u8>), dim: usize, nbits: u8, block: usize) -> TensorView<'a> {
    TensorView::of_codes("t", &[ROWS, dim], Grid { nbits, block }, &bytes.0, &bytes.1)
}

/// A view of these numbers as fp16.
fn halves(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&v| f16::from_f32(v).to_le_bytes())
        .collect()
}

/// Every integer of a width, over and over.
fn all_codes(n: usize, nbits: u8) -> Vec<i8> {
    let low = -(1i16 << (nbits - 1));
    let codes = (0..n as i16).map(|i| low + i % (1 << nbits));
    codes.map(|q| q as i8).collect()
}

#[test]
fn given_integers_and_steps_are_kept() {
    for (nbits, block, scheme, own_block) in [
        (2u8, 256, "rows-int2-row", 256),
        (2, 64, "rows-int2-block64", 64),
        (2, 64, "rows-int4-block32", 32),
        (4, 32, "rows-int4-block32", 32),
        (4, 256, "rows-int8-block128", 128),
        (8, 64, "rows-int8-block64", 64),
        (8, 256, "rows-int8-row", 256),
    ] {
        let dim = 256;
        let codes = all_codes(ROWS * dim, nbits);
        // Steps of fp16.
        let steps: Vec<f32> = (0..ROWS * dim / block)
            .map(|i| 0.25 + 0.5 * i as f32)
            .collect();
        let bytes = stored(&codes, nbits, &steps);
        let spec = spec(scheme, dim, 1.5);
        let view = coded(&bytes, dim, nbits, block);
        assert!(Rows::new(&view, &spec).given.is_some());
        let got = written(&view, &spec).unwrap();
        assert_eq!(
            counts(&got),
            ((ROWS * dim / own_block) as u64, 0, 0),
            "{scheme}"
        );
        assert_eq!(got.encoded.stats.sse, 0.0);
        let repeated: Vec<f32> = (0..ROWS * dim / own_block)
            .map(|i| steps[i * own_block / block])
            .collect();
        assert_eq!(got.scales, repeated, "{scheme}");
        for (at, q) in codes.iter().enumerate() {
            let value = f32::from(*q) * steps[at / block] * 1.5;
            assert_eq!(
                got.read[at / dim][at % dim],
                f16::from_f32(value).to_f32(),
                "{scheme} {at}"
            );
        }
    }
}

#[test]
fn a_step_that_fp16_does_not_have_is_rounded_and_counted() {
    let dim = 32;
    let codes = all_codes(ROWS * dim, 4);
    let bytes = stored(&codes, 4, &[0.1, 0.5]);
    let got = written(
        &coded(&bytes, dim, 4, dim),
        &spec("rows-int4-row", dim, 1.0),
    )
    .unwrap();
    assert_eq!(counts(&got), (2, 0, 1));
    assert_eq!(got.scales, [f16::from_f32(0.1).to_f32(), 0.5]);
    assert!(got.encoded.stats.max_abs > 0.0 && got.encoded.stats.max_abs < 8.0 * 0.1 / 2048.0);
}

#[test]
fn steps_that_readers_flush_are_computed_anew_unless_all_is_zero() {
    let dim = 32;
    // Integers other than 0 with a step of 1e-5; zeros with one of 1e-6.
    let mut codes = all_codes(ROWS * dim, 4);
    codes[dim..].fill(0);
    let bytes = stored(&codes, 4, &[1e-5, 1e-6]);
    let got = written(
        &coded(&bytes, dim, 4, dim),
        &spec("rows-int4-row", dim, 1.0),
    )
    .unwrap();
    assert_eq!(counts(&got), (1, 1, 1));
    assert_eq!(got.scales[0], f16::MIN_POSITIVE.to_f32());
    assert!(
        got.read[0]
            .iter()
            .zip(&codes)
            .all(|(v, q)| (v - f32::from(*q) * 1e-5).abs() < 3.2e-5)
    );
    assert!(got.read[1].iter().all(|v| *v == 0.0));
    // A step of 0 makes zeros of any integers.
    let bytes = stored(&all_codes(ROWS * dim, 4), 4, &[0.0, 1.0]);
    let got = written(
        &coded(&bytes, dim, 4, dim),
        &spec("rows-int4-row", dim, 1.0),
    )
    .unwrap();
    assert_eq!((counts(&got), got.scales[0]), ((2, 0, 0), 0.0));
}

#[test]
fn integers_that_a_form_does_not_hold_are_computed_and_counted() {
    let dim = 64;
    for (nbits, block, scheme, blocks) in [
        // Too few bits, blocks larger than those of the steps, blocks that cut across them.
        (8u8, 64, "rows-int4-row", 2),
        (4, 16, "rows-int4-block32", 4),
        (4, 16, "rows-int8-row", 2),
        (4, 32, "rows-int8", 2),
    ] {
        let codes = all_codes(ROWS * dim, nbits);
        let steps = vec![0.3; ROWS * dim / block];
        let bytes = stored(&codes, nbits, &steps);
        let view = coded(&bytes, dim, nbits, block);
        let spec = spec(scheme, dim, 1.0);
        assert!(Rows::new(&view, &spec).given.is_none());
        let got = written(&view, &spec).unwrap();
        assert_eq!(counts(&got), (0, blocks, 0), "{scheme}");
        let levels = if nbits > 4 { 7.5 } else { 3.75 };
        let largest = 0.3 * f64::from(1u32 << (nbits - 1));
        assert!(
            got.encoded.stats.max_abs <= largest / levels / 2.0 + 0.02,
            "{scheme}"
        );
    }
}

#[test]
fn the_published_form_keeps_integers_of_one_step_a_row() {
    let dim = 64;
    for nbits in [2u8, 4, 8] {
        // 127 steps are exact in fp16 for the first, not for the second.
        let steps = [0.03125, 0.1];
        let codes = all_codes(ROWS * dim, nbits);
        let bytes = stored(&codes, nbits, &steps);
        let got = written(
            &coded(&bytes, dim, nbits, dim),
            &spec("rows-int8", dim, 1.0),
        )
        .unwrap();
        assert_eq!(counts(&got), (2, 0, 1));
        let bytes: Vec<i8> = got.data.iter().map(|b| *b as i8).collect();
        assert_eq!(bytes, codes);
        assert_eq!(got.scales, [3.96875, f16::from_f32(12.7).to_f32()]);
        // Half a place of fp16 each for the scale and the value.
        for (at, q) in codes.iter().enumerate() {
            let value = f32::from(*q) * steps[at / dim];
            let off = (got.read[at / dim][at % dim] - value).abs();
            assert!(off <= value.abs() * 2f32.powi(-10), "{nbits} {at}");
        }
        if nbits > 4 {
            continue;
        }
        let given = stored(&codes, nbits, &steps);
        let got = written(
            &coded(&given, dim, nbits, dim),
            &spec("rows-int4", dim, 1.0),
        )
        .unwrap();
        assert_eq!(counts(&got), (2, 0, 1));
        assert_eq!(got.scales, [0.21875, f16::from_f32(0.7).to_f32()]);
    }
    // A scale below the smallest normal fp16, or beyond the largest.
    let codes = all_codes(ROWS * dim, 2);
    let bytes = stored(&codes, 2, &[4e-7, 600.0]);
    let got = written(&coded(&bytes, dim, 2, dim), &spec("rows-int8", dim, 1.0)).unwrap();
    assert_eq!(counts(&got), (0, 2, 0));
}

#[test]
fn numbers_on_a_grid_are_found_and_others_computed() {
    let dim = 32;
    let codes = all_codes(ROWS * dim, 4);
    let mut values: Vec<f32> = codes
        .iter()
        .map(|q| bf16::from_f32(f32::from(*q) * 0.1).to_f32())
        .collect();
    let bytes = halves(&values);
    let view = TensorView::of_f16("t", &[ROWS, dim], &bytes);
    for scheme in [
        "rows-int4-block32",
        "rows-int4-row",
        "rows-int4-block16",
        "rows-int8-block32",
    ] {
        let got = written(&view, &spec(scheme, dim, 1.0)).unwrap();
        let blocks = got.scales.len() as u64;
        assert_eq!(counts(&got), (blocks, 0, 0), "{scheme}");
        // The step explains the bf16 numbers.
        let step = |at: usize| got.scales[at / (ROWS * dim / got.scales.len())];
        let same = values.iter().zip(&codes).enumerate();
        for (at, (w, q)) in same {
            assert_eq!(
                bf16::from_f32(f32::from(*q) * step(at)).to_f32(),
                *w,
                "{scheme}"
            );
        }
    }
    // 2 bits: 2, 1, 0, -1 are -2, -1, 0, 1 with the other sign.
    let two: Vec<f32> = (0..ROWS * dim)
        .map(|i| 0.5 * (2 - (i % 4) as i32) as f32)
        .collect();
    let bytes = halves(&two);
    let view = TensorView::of_f16("t", &[ROWS, dim], &bytes);
    let got = written(&view, &spec("rows-int2-row", dim, 1.0)).unwrap();
    assert_eq!(
        (counts(&got), got.scales.as_slice()),
        ((2, 0, 0), [-0.5, -0.5].as_slice())
    );
    assert_eq!(got.read.concat(), two);
    // One number moved: its block is off the grid, and every value within half a step, or clipped by half of one.
    values[3] += values[3].abs() / 64.0;
    let bytes = halves(&values);
    let view = TensorView::of_f16("t", &[ROWS, dim], &bytes);
    let got = written(&view, &spec("rows-int4-block32", dim, 1.0)).unwrap();
    assert_eq!(counts(&got), (1, 1, 0));
    let max = values[..dim].iter().fold(0f32, |m, w| m.max(w.abs()));
    assert_eq!(got.scales[0], f16::from_f32(max / 7.5).to_f32());
    assert!(got.encoded.stats.max_abs <= 0.51 * 0.8 / 7.5);
}

#[test]
fn rows_of_any_length_are_padded_to_whole_bytes() {
    for (scheme, dim) in [
        ("rows-int2-row", 7),
        ("rows-int4-row", 7),
        ("rows-int4-block1", 3),
        ("rows-int8-block3", 9),
        ("rows-int2-block5", 5),
        ("rows-int4-block32", 40),
        ("rows-int8-block4", 3),
    ] {
        let values: Vec<f32> = (0..ROWS * dim)
            .map(|i| ((i * 7 + 1) as f32).sin())
            .collect();
        let bytes = halves(&values);
        let view = TensorView::of_f16("t", &[ROWS, dim], &bytes);
        let spec = spec(scheme, dim, 1.0);
        let got = written(&view, &spec).unwrap();
        let (block, each) = (spec.scheme.block(dim), spec.scheme.row_scales(dim));
        let step = |at: usize| got.scales[at / dim * each + at % dim / block];
        for (at, w) in values.iter().enumerate() {
            let off = (got.read[at / dim][at % dim] - w).abs();
            assert!(off <= 0.51 * step(at).abs() + 0.001, "{scheme} {at}: {off}");
        }
    }
}

#[test]
fn a_row_that_readers_scale_beyond_fp16_is_named() {
    let dim = 32;
    let bytes = stored(&all_codes(ROWS * dim, 4), 4, &[1.0, 1000.0]);
    let spec = spec("rows-int4-row", dim, 10.0);
    let error = written(&coded(&bytes, dim, 4, dim), &spec).err().unwrap();
    assert!(
        matches!(error, Error::RowRange { row: 1, value, .. } if value == 8000.0),
        "{error}"
    );
    let bytes = stored(&all_codes(ROWS * dim, 4), 4, &[1.0, f32::INFINITY]);
    assert!(written(&coded(&bytes, dim, 4, dim), &spec).is_err());
}
