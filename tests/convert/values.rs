//! What was written, read back and unpacked by code of this file alone, against the checkpoint.

use crate::helpers::*;
use gemma_coreml::bundle::{Bundle, npy::NpyTable};
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::evaluate::{RowSource, open_decoder};
use gemma_coreml::gemma::{ModelPlan, rope};
use gemma_coreml::package::{Binding, Package, ReadFunction, ReadOp, ReadValue};
use gemma_coreml::quantize::{Scratch, palettize_group, palettize_vectors};
use gemma_coreml::runtime::{DecodeOptions, Precision};
use half::f16;
use std::path::Path;

/// Elements of an n-bit little-endian stream, one bit after the other.
fn bits(bytes: &[u8], nbits: usize, count: usize) -> Vec<u8> {
    let bit = |i: usize| bytes[i / 8] >> (i % 8) & 1;
    (0..count)
        .map(|e| (0..nbits).map(|b| bit(e * nbits + b) << b).sum())
        .collect()
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks(2)
        .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
        .collect()
}

fn argument<'a>(op: &'a ReadOp, name: &str) -> &'a ReadValue {
    match op.input(name) {
        Some(Binding::Value(value)) => value,
        other => panic!("{}: {name}: {other:?}", op.name),
    }
}

/// The weight that an op of a package makes, unpacked: one value per element, row-major.
pub fn unpacked(function: &ReadFunction, op: &ReadOp) -> Vec<f32> {
    let shape = &op.outputs[0].1.shape;
    let count: usize = shape.iter().product();
    let per_row = count / shape[0];
    let made = |arg: &str| match op.input(arg) {
        Some(Binding::Name(value)) => {
            let makes = |op: &&ReadOp| op.outputs.iter().any(|(name, _)| name == value);
            Some(function.ops.iter().find(makes).unwrap())
        }
        _ => None,
    };
    match op.op_type.name() {
        "const" => halves(&op.value.as_ref().unwrap().bytes()),
        "constexpr_lut_to_dense" => {
            let indices = argument(op, "indices");
            let (lut_shape, lut) = match made("lut") {
                Some(lut) => (lut.outputs[0].1.shape.clone(), unpacked(function, lut)),
                None => {
                    let lut = argument(op, "lut");
                    (lut.ty().shape, halves(&lut.bytes()))
                }
            };
            let [entries, vector] = lut_shape[lut_shape.len() - 2..] else {
                panic!("{lut_shape:?}");
            };
            let nbits = entries.trailing_zeros() as usize;
            let group = count / lut_shape[0];
            let indices = bits(&indices.bytes(), nbits, count / vector);
            // Vectors lie along the output channels.
            let value = |i: usize| {
                let (row, column) = (i / per_row, i % per_row);
                let index = indices[row / vector * per_row + column];
                lut[(i / group * entries + usize::from(index)) * vector + row % vector]
            };
            (0..count).map(value).collect()
        }
        "constexpr_sparse_to_dense" => {
            let sparse = made("nonzero_data").unwrap();
            let (mask, data) = (
                argument(sparse, "indices_mask"),
                argument(sparse, "indices_nonzero_data"),
            );
            let lut = argument(sparse, "lut");
            let (lut_shape, lut) = (lut.ty().shape, halves(&lut.bytes()));
            let entries = lut_shape[lut_shape.len() - 2];
            let nonzero = data.ty().elements().unwrap();
            let nbits = entries.trailing_zeros() as usize;
            let mut indices = bits(&data.bytes(), nbits, nonzero).into_iter();
            let group = count / lut_shape[0];
            let mask = bits(&mask.bytes(), 1, count);
            let value = |(i, keep): (usize, &u8)| match keep {
                0 => 0.0,
                _ => lut[i / group * entries + usize::from(indices.next().unwrap())],
            };
            let values = mask.iter().enumerate().map(value).collect();
            assert!(indices.next().is_none());
            values
        }
        "constexpr_blockwise_shift_scale" => {
            let (data, scale) = (argument(op, "data"), argument(op, "scale"));
            let scales = halves(&scale.bytes());
            let block = count / scales.len();
            assert!(per_row.is_multiple_of(block) || scales.len() == 1);
            let four = data.ty().dtype.name() == "int4";
            let codes = bits(&data.bytes(), if four { 4 } else { 8 }, count);
            let value = |q: u8| {
                if four {
                    ((q << 4) as i8 >> 4) as f32
                } else {
                    f32::from(q as i8)
                }
            };
            let product =
                |(i, &q): (usize, &u8)| f16::from_f32(value(q) * scales[i / block]).to_f32();
            codes.iter().enumerate().map(product).collect()
        }
        other => panic!("{other}"),
    }
}

/// What the weight should be, from the checkpoint's values and the scheme's definition.
fn expected(values: &[f16], outputs: usize, scheme: &str) -> Vec<f32> {
    let inputs = values.len() / outputs;
    let exact: Vec<f32> = values.iter().map(|v| v.to_f32()).collect();
    // Of the checkpoints here none lies on a grid.
    let integer = |levels: f32, block: usize, full: bool| -> Vec<f32> {
        let (divisor, least) = match full {
            true => (levels + 0.5, -levels - 1.0),
            false => (levels, -levels),
        };
        exact
            .chunks(block)
            .flat_map(|b| {
                let max = b.iter().fold(0f32, |m, w| m.max(w.abs()));
                let scale = f16::from_f32(max / divisor).to_f32();
                b.iter().map(move |w| {
                    let quotient = match full {
                        true => w / scale,
                        false => f16::from_f32(w / scale).to_f32(),
                    };
                    let q = quotient.round_ties_even().clamp(least, levels);
                    f16::from_f32(q * scale).to_f32()
                })
            })
            .collect()
    };
    if scheme == "fp16" {
        return exact;
    }
    if let Some((bits, rest)) = scheme.strip_prefix("int").and_then(|s| s.split_once('-')) {
        let levels = if bits == "4" { 7.0 } else { 127.0 };
        let (shared, full) = match rest.strip_suffix("-full") {
            Some(shared) => (shared, true),
            None => (rest, false),
        };
        let block = shared.strip_prefix("block");
        return integer(levels, block.map_or(inputs, |b| b.parse().unwrap()), full);
    }
    let mut fields = scheme.strip_prefix("palette").unwrap().split('-');
    let nbits: u8 = fields.next().unwrap().parse().unwrap();
    let group = match fields.next().unwrap() {
        "tensor" => values.len(),
        g => g.strip_prefix('g').unwrap().parse::<usize>().unwrap() * inputs,
    };
    let form = fields.next();
    if form == Some("lut8") {
        return expected_int8(values, group, nbits);
    }
    if let Some(form) = form {
        return values
            .chunks(group)
            .flat_map(|group| expected_form(group, inputs, nbits, form))
            .collect();
    }
    let (mut scratch, mut indices) = (Scratch::new(), vec![0; group]);
    let mut out = Vec::new();
    for group in values.chunks(group) {
        let result = palettize_group(group, nbits, None, &mut scratch, &mut indices).unwrap();
        let lut = result.lut.entries();
        out.extend(indices.iter().map(|&i| lut[usize::from(i)].to_f32()));
    }
    out
}

/// Palettes over groups of `group` values, their tables rounded to int8 with one scale: every weight at the nearest
/// entry, as the reader computes it.
fn expected_int8(values: &[f16], group: usize, nbits: u8) -> Vec<f32> {
    let mut scratch = Scratch::new();
    let mut indices = vec![0; group];
    let luts: Vec<Vec<f32>> = values
        .chunks(group)
        .map(|group| {
            let result = palettize_group(group, nbits, None, &mut scratch, &mut indices).unwrap();
            let entries = result.lut.entries()[..result.lut.used()].iter();
            entries.map(|e| e.to_f32()).collect()
        })
        .collect();
    let max = luts.iter().flatten().fold(0f32, |m, e| m.max(e.abs()));
    let scale = f16::from_f32(max / 127.0).to_f32();
    let code = |e: f32| {
        f16::from_f32(e / scale)
            .to_f32()
            .round_ties_even()
            .clamp(-127.0, 127.0)
    };
    let pairs = values.chunks(group).zip(&luts);
    pairs
        .flat_map(|(group, lut)| {
            let stored = lut.iter().map(|e| f16::from_f32(code(*e) * scale).to_f32());
            let stored: Vec<f32> = stored.collect();
            group.iter().map(move |w| {
                let mut best = stored[0];
                for &entry in &stored {
                    if (w.to_f32() - entry).abs() < (w.to_f32() - best).abs() {
                        best = entry;
                    }
                }
                best
            })
        })
        .collect()
}

/// A group of a palette whose scheme ends in `form`.
fn expected_form(group: &[f16], inputs: usize, nbits: u8, form: &str) -> Vec<f32> {
    if let Some(percent) = form.strip_prefix("sparse") {
        // The smallest by magnitude, the earlier of equal ones first.
        let percent: usize = percent.parse().unwrap();
        let mut order: Vec<usize> = (0..group.len()).collect();
        order.sort_by(|&a, &b| {
            let magnitude = |i: usize| group[i].to_f32().abs();
            magnitude(a).total_cmp(&magnitude(b)).then(a.cmp(&b))
        });
        let mut keep = vec![true; group.len()];
        for &i in &order[..group.len() * percent / 100] {
            keep[i] = false;
        }
        let stays: Vec<f16> = (0..group.len())
            .filter(|&i| keep[i])
            .map(|i| group[i])
            .collect();
        let (mut scratch, mut indices) = (Scratch::new(), vec![0; stays.len()]);
        let result = palettize_group(&stays, nbits, None, &mut scratch, &mut indices).unwrap();
        let mut indices = indices.into_iter();
        let mut value = |keep: bool| match keep {
            false => 0.0,
            true => result.lut.entries()[usize::from(indices.next().unwrap())].to_f32(),
        };
        return keep.into_iter().map(&mut value).collect();
    }
    let vector: usize = form.strip_prefix('v').unwrap().parse().unwrap();
    let (mut scratch, mut indices) = (Scratch::new(), vec![0; group.len() / vector]);
    let shape = (nbits, vector);
    let result = palettize_vectors(group, inputs, shape, None, &mut scratch, &mut indices);
    let result = result.unwrap();
    let value = |i: usize| {
        let (row, column) = (i / inputs, i % inputs);
        let index = usize::from(indices[row / vector * inputs + column]);
        result.lut.entries()[index * vector + row % vector].to_f32()
    };
    (0..group.len()).map(value).collect()
}

pub fn op<'a>(package: &'a Package, tensor: &str) -> (&'a ReadFunction, &'a ReadOp) {
    let id = tensor.replace('.', "_");
    let function = &package.functions()[package.default_function()];
    let found: Vec<&ReadOp> = function
        .ops
        .iter()
        .filter(|op| op.outputs.iter().any(|(n, _)| *n == id))
        .collect();
    assert_eq!(found.len(), 1, "{tensor}");
    (function, found[0])
}

/// Every weight of every package; the record's error against the one measured here.
fn check_packages(fixture_name: &str, out: &Path) {
    let checkpoint = Checkpoint::open(&fixture(fixture_name)).unwrap();
    let bundle = Bundle::open(out).unwrap();
    let mut seen = 0;
    for chunk in bundle.chunks() {
        let file = format!("{}.mlpackage", chunk.name);
        for record in bundle
            .provenance()
            .tensors
            .iter()
            .filter(|r| r.file == file)
        {
            let shape = checkpoint.shape(&record.tensor).unwrap().to_vec();
            let view = checkpoint.tensor(&record.tensor, &shape).unwrap();
            let mut values = vec![f16::ZERO; view.len()];
            view.read_f16(0..view.len(), &mut values).unwrap();
            let (function, op) = op(&chunk.package, &record.tensor);
            let got = unpacked(function, op);
            // All axes but the last make the output channels of a projection, those of a stack of matrices too.
            let outputs = shape[..shape.len().max(2) - 1].iter().product();
            let want = expected(&values, outputs, &record.scheme);
            assert!(
                got == want,
                "{fixture_name} {} {}",
                record.tensor,
                record.scheme
            );
            let worst = got
                .iter()
                .zip(&values)
                .map(|(g, w)| (g - w.to_f32()).abs())
                .fold(0f32, f32::max);
            if record.scheme != "fp16" {
                // The record is rounded to six digits.
                assert!(
                    (f64::from(worst) - record.max_abs_error).abs() <= 1e-5 * record.max_abs_error
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen}");
}

#[test]
fn packages_hold_the_quantized_checkpoint() {
    for recipe in crate::helpers::swa4_recipes() {
        for name in ["nano", "dense-tiny", "moe-tiny"] {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("b");
            run_recipe(&fixture(name), &recipe, &out, &options()).unwrap();
            check_packages(name, &out);
        }
    }
}

/// Widths and groupings that no built-in recipe has, one bit among them: what is in the packages, and that they decode.
#[test]
fn other_palettes_are_in_the_packages_and_decode() {
    let model = fixture("nano");
    for scheme in [
        "palette1-g32",
        "palette1-tensor",
        "palette3-g8",
        "palette4-g8-v4",
        "palette3-tensor-v2",
        "palette3-g8-sparse33",
        "palette2-tensor-sparse90",
        "palette3-g8-lut8",
        "palette6-tensor-lut8",
    ] {
        let mut recipe = gemma_coreml::recipe::Recipe::builtin("swa4-int4").unwrap();
        recipe.quantize.default = scheme.parse().unwrap();
        recipe.quantize.otherwise = None;
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("b");
        let report = run_recipe(&model, &recipe, &out, &options()).unwrap();
        assert!(report.schemes[scheme].tensors > 0);
        check_packages("nano", &out);
        let bundle = std::sync::Arc::new(Bundle::open(&out).unwrap());
        let mut decoder = open_decoder(
            &bundle,
            Precision::F16,
            &RowSource::Bundle,
            DecodeOptions::default(),
        )
        .unwrap();
        for token in [2, 5, 7] {
            let step = decoder.step(token).unwrap();
            assert!(step.token_logit.is_finite(), "{scheme}");
        }
    }
}

/// Linear schemes of numbers on no grid, with and without the whole range.
#[test]
fn other_linear_schemes_are_in_the_packages() {
    for (name, schemes) in [
        ("nano", ["int4-block32-full", "int8-channel-full"]),
        ("nano", ["int4-channel", "int8-block32-full"]),
        ("dense-tiny", ["int8-block32", "int4-channel-full"]),
        ("moe-tiny", ["int4-block16-full", "int8-channel-full"]),
    ] {
        for scheme in schemes {
            let mut recipe = gemma_coreml::recipe::Recipe::builtin("w4-linear").unwrap();
            recipe.quantize.default = scheme.parse().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("b");
            let report = run_recipe(&fixture(name), &recipe, &out, &options()).unwrap();
            assert!(report.schemes[scheme].tensors > 0);
            check_packages(name, &out);
        }
    }
}

#[test]
fn int8_rows_are_the_published_formula() {
    for name in ["nano", "e4b-tiny"] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("b");
        run(&fixture(name), "swa4-int4", &out, &options()).unwrap();
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let plan = ModelPlan::new(checkpoint.config()).unwrap();
        let bundle = Bundle::open(&out).unwrap();
        let width = plan.layers.len() * plan.ple_dim;
        let tables = [
            (
                "embed_tokens.weight",
                plan.vocab,
                plan.hidden,
                (plan.hidden as f64).sqrt() as f32,
            ),
            (
                "embed_tokens_per_layer.weight",
                plan.ple_vocab,
                width,
                (plan.ple_dim as f64).sqrt() as f32,
            ),
        ];
        for (i, (tensor, rows, dim, factor)) in tables.into_iter().enumerate() {
            let view = checkpoint.tensor(tensor, &[rows, dim]).unwrap();
            let (mut row, mut got) = (vec![0f32; dim], vec![0f32; dim]);
            for token in 0..rows {
                view.read_f32(token * dim..(token + 1) * dim, &mut row)
                    .unwrap();
                let max = row.iter().fold(0f32, |m, w| m.max(w.abs()));
                let scale = f16::from_f32(max).max(f16::MIN_POSITIVE).to_f32();
                let want: Vec<f32> = row
                    .iter()
                    .map(|w| (w * 127.0 / scale).round_ties_even().clamp(-127.0, 127.0))
                    .map(|q| f16::from_f32(q * (scale / 127.0) * factor).to_f32())
                    .collect();
                match i {
                    0 => bundle.embed_row(token as u32, &mut got).unwrap(),
                    _ => bundle.per_layer_row(token as u32, &mut got).unwrap(),
                }
                assert!(got == want, "{name} {tensor} row {token}");
            }
            assert!(
                bundle
                    .embed_row(rows as u32, &mut vec![0.0; plan.hidden])
                    .is_err()
            );
        }
    }
}

#[test]
fn other_table_formats_stay_within_their_step() {
    for (scheme, file, levels) in [
        ("rows-int4", "embed_tokens_q4.bin", 7.0),
        ("rows-fp16", "embed_tokens_fp16.bin", 2048.0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("b");
        let mut recipe = gemma_coreml::recipe::Recipe::builtin("swa4-int4").unwrap();
        recipe.quantize.tables = scheme.parse().unwrap();
        run_recipe(&fixture("e4b-tiny"), &recipe, &out, &options()).unwrap();
        assert!(out.join(file).exists());
        let checkpoint = Checkpoint::open(&fixture("e4b-tiny")).unwrap();
        let bundle = Bundle::open(&out).unwrap();
        let (rows, dim) = (bundle.embed_table().rows(), bundle.embed_table().dim());
        let view = checkpoint
            .tensor("embed_tokens.weight", &[rows, dim])
            .unwrap();
        let (mut row, mut got) = (vec![0f32; dim], vec![0f32; dim]);
        for token in 0..rows {
            view.read_f32(token * dim..(token + 1) * dim, &mut row)
                .unwrap();
            bundle.embed_row(token as u32, &mut got).unwrap();
            let max = row.iter().fold(0f32, |m, w| m.max(w.abs()));
            let factor = (dim as f32).sqrt();
            // Half a step, and one rounding to fp16 at the end.
            let allowed = factor * max * (0.5 / levels + 1.0 / 1024.0);
            for (g, w) in got.iter().zip(&row) {
                assert!(
                    (g - w * factor).abs() <= allowed,
                    "{scheme} {token}: {g} {}",
                    w * factor
                );
            }
        }
    }
}

#[test]
fn per_layer_files_and_rope_tables_are_the_checkpoint_s() {
    let dir = tempfile::tempdir().unwrap();
    let (out, compat_out) = (dir.path().join("b"), dir.path().join("c"));
    run(&fixture("nano"), "swa4-int4", &out, &options()).unwrap();
    let mut compat = gemma_coreml::recipe::Recipe::builtin("swa4-int4").unwrap();
    compat.compat = true;
    run_recipe(&fixture("nano"), &compat, &compat_out, &options()).unwrap();
    let checkpoint = Checkpoint::open(&fixture("nano")).unwrap();
    let plan = ModelPlan::new(checkpoint.config()).unwrap();
    let bundle = Bundle::open(&out).unwrap();

    let read = |name: &str, shape: &[usize]| {
        let view = checkpoint.tensor(name, shape).unwrap();
        let mut values = vec![0f32; view.len()];
        view.read_f32(0..view.len(), &mut values).unwrap();
        values
    };
    let projection = read(
        "per_layer_model_projection.weight",
        &[plan.layers.len() * plan.ple_dim, plan.hidden],
    );
    let rounded: Vec<f32> = projection
        .iter()
        .map(|w| f16::from_f32(*w).to_f32())
        .collect();
    assert_eq!(halves(bundle.per_layer_projection().unwrap()), rounded);
    let norm: Vec<u8> = read("per_layer_projection_norm.weight", &[plan.ple_dim])
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    assert_eq!(bundle.per_layer_norm().unwrap(), norm);

    let same = |table: &NpyTable, want: &[f32]| {
        assert_eq!(table.rows(), 4096);
        let mut row = vec![0f32; table.cols()];
        for (p, want) in want.chunks(table.cols()).enumerate() {
            table.row(p, &mut row).unwrap();
            let want: Vec<f32> = want.iter().map(|w| f16::from_f32(*w).to_f32()).collect();
            assert!(row == want, "position {p}");
        }
    };
    let (cos, sin) = rope::table(&plan.sliding.rope, 4096);
    same(&bundle.rope().cos_sliding, &cos);
    same(&bundle.rope().sin_sliding, &sin);
    let (cos, sin) = rope::table(&plan.full.rope, 4096);
    same(&bundle.rope().cos_full, &cos);
    same(&bundle.rope().sin_full, &sin);
    let (cos, sin) = rope::table(&plan.full.rope.all_pairs(), 4096);
    let compat = Bundle::open(&compat_out).unwrap();
    same(&compat.rope().cos_full, &cos);
    same(&compat.rope().sin_full, &sin);
    assert_eq!(compat.config().full_rope, "all-pairs");
}
