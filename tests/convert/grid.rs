//! Weights that lie on an int4 grid of 32 inputs (`tests/data/qat/q4_0`): their integers and steps against those found in exact
//! fractions by other code (`q4_0_grid.safetensors`, written by `fixtures/qat_grid.py`).

use crate::coremltools::equal_to_coremltools;
use crate::helpers::*;
use crate::values::{op, unpacked};
use gemma_coreml::bundle::Bundle;
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::convert::forecast;
use gemma_coreml::evaluate::{RowSource, open_decoder};
use gemma_coreml::package::{Binding, ReadOp};
use gemma_coreml::quantize::scheme::Scheme;
use gemma_coreml::recipe::{Recipe, Rule};
use gemma_coreml::runtime::{DecodeOptions, Precision};
use half::{bf16, f16};
use safetensors::SafeTensors;
use std::fs;
use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/qat")
        .join(name)
}

/// A copy of the checkpoint whose config says nothing of a quantization.
fn q4_0(to: &Path, change: impl FnOnce(&mut Safetensors)) -> PathBuf {
    let model = to.join("q4_0");
    fs::create_dir_all(&model).unwrap();
    for entry in fs::read_dir(data("q4_0")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let config = model.join("config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json.as_object_mut().unwrap().remove("quantization_config");
    fs::write(&config, json.to_string()).unwrap();
    let mut file = Safetensors::read(&model.join("model.safetensors"));
    change(&mut file);
    file.write();
    model
}

/// A built-in recipe in one chunk, as the model has few layers, that leaves no matrix dense.
fn recipe(name: &str) -> Recipe {
    let mut recipe = Recipe::builtin(name).unwrap();
    recipe.layout = Recipe::builtin("swa1").unwrap().layout;
    recipe.quantize.threshold = 0;
    recipe
}

/// Integers, steps, and groups without an exact step, of a tensor.
struct Truth {
    codes: Vec<i8>,
    steps: Vec<f32>,
    inexact: Vec<bool>,
}

fn truth(tensor: &str) -> Truth {
    let bytes = fs::read(data("q4_0_grid.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let name = format!("model.language_model.{tensor}");
    let part = |suffix: &str| file.tensor(&format!("{name}{suffix}")).unwrap();
    let steps = part(".step").data().chunks(4);
    Truth {
        codes: part("").data().iter().map(|b| *b as i8).collect(),
        steps: steps
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        inexact: part(".inexact").data().iter().map(|b| *b != 0).collect(),
    }
}

fn bytes(op: &ReadOp, argument: &str) -> Vec<u8> {
    match op.input(argument) {
        Some(Binding::Value(value)) => value.bytes().to_vec(),
        other => panic!("{}: {argument}: {other:?}", op.name),
    }
}

/// Data and scales of the blobs of a weight.
fn blobs(bundle: &Bundle, file: &str, tensor: &str) -> (Vec<u8>, Vec<u8>) {
    let chunk = bundle.chunks();
    let package = chunk
        .iter()
        .find(|c| format!("{}.mlpackage", c.name) == file);
    let (_, op) = op(&package.unwrap().package, tensor);
    (bytes(op, "data"), bytes(op, "scale"))
}

fn nibbles(codes: &[i8]) -> Vec<u8> {
    let pair = |pair: &[i8]| (pair[0] as u8 & 15) | (pair[1] as u8 & 15) << 4;
    codes.chunks(2).map(pair).collect()
}

#[test]
fn integers_and_steps_of_a_grid_are_in_the_packages() {
    let dir = tempfile::tempdir().unwrap();
    let model = data("q4_0");
    let out = dir.path().join("b");
    let report = run_recipe(&model, &recipe("qat-int4"), &out, &options()).unwrap();
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    let (checkpoint, bundle) = (
        Checkpoint::open(&model).unwrap(),
        Bundle::open(&out).unwrap(),
    );
    let (mut compared, mut eights, mut below, mut rounded) = (0, 0, 0, 0);
    // Tables are in `super::tables`.
    let weights = report.tensors.iter().filter(|t| t.reason != "table");
    for record in weights {
        let Some(grid) = record.grid else {
            assert!(!record.scheme.starts_with("int4"), "{}", record.tensor);
            continue;
        };
        let truth = truth(&record.tensor);
        let (data, scales) = blobs(&bundle, &record.file, &record.tensor);
        assert!(data == nibbles(&truth.codes), "{}", record.tensor);
        let expected = truth.steps.iter().map(|s| f16::from_f32(*s));
        let expected: Vec<u8> = expected.flat_map(|s| s.to_le_bytes()).collect();
        assert!(scales == expected, "{}", record.tensor);
        let groups = truth.steps.len() as u64;
        let inexact = truth.inexact.iter().filter(|i| **i).count() as u64;
        let counts = (
            grid.nbits,
            grid.block,
            grid.given,
            grid.groups,
            grid.on,
            grid.off,
        );
        assert_eq!(counts, (4, Some(32), false, groups, groups, 0));
        assert_eq!(grid.inexact, inexact);
        // The products round to the checkpoint's bits.
        let shape = checkpoint.shape(&record.tensor).unwrap().to_vec();
        let view = checkpoint.tensor(&record.tensor, &shape).unwrap();
        let mut values = vec![0f32; truth.codes.len()];
        view.read_f32(0..values.len(), &mut values).unwrap();
        for (i, (q, w)) in truth.codes.iter().zip(&values).enumerate() {
            let product = bf16::from_f32(f32::from(*q) * truth.steps[i / 32]);
            assert!(truth.inexact[i / 32] || product.to_f32() == *w);
        }
        compared += 1;
        eights += truth.codes.iter().filter(|q| **q == -8).count();
        below += truth.steps.iter().filter(|s| **s < 0.0).count();
        rounded += inexact;
    }
    println!("{compared} tensors, {eights} of -8, {below} steps below zero, {rounded} inexact");
    assert!(compared >= 30 && eights > 100 && below > 0 && rounded > 0);
}

#[test]
fn integers_scaled_to_the_largest_are_not_those_of_the_grid() {
    let dir = tempfile::tempdir().unwrap();
    let model = q4_0(dir.path(), |_| ());
    let out = dir.path().join("b");
    let recipe = recipe("w4-linear");
    let report = run_recipe(&model, &recipe, &out, &options()).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    let (mut groups, mut same) = (0, 0);
    for record in report.tensors.iter().filter(|t| t.scheme == "int4-block32") {
        assert_eq!(record.grid, None);
        let truth = truth(&record.tensor);
        let (data, _) = blobs(&bundle, &record.file, &record.tensor);
        let pairs = data.chunks(16).zip(truth.codes.chunks(32));
        same += pairs.clone().filter(|(d, q)| **d == nibbles(q)).count();
        groups += pairs.count();
    }
    println!("{same} of {groups} groups keep their integers");
    assert!(same > groups / 2 && same < groups * 9 / 10);
    // Plan and report say what would keep them; the report of a checkpoint on no grid does not.
    let checkpoint = Checkpoint::open(&model).unwrap();
    let planned = forecast(&checkpoint, &recipe, &options()).unwrap().notes;
    assert_eq!(planned, report.notes);
    let [note] = report.notes.as_slice() else {
        panic!("{:?}", report.notes);
    };
    for part in ["int4 grid of 32", "int4-block32", "qat-int4"] {
        assert!(note.contains(part), "{note}");
    }
    for other in ["nano", "e2b35-tiny"] {
        let checkpoint = Checkpoint::open(&fixture(other)).unwrap();
        let planned = forecast(&checkpoint, &recipe, &options()).unwrap().notes;
        assert!(planned.is_empty(), "{other}: {planned:?}");
    }
}

#[test]
fn a_moved_value_is_reported_and_changes_its_group_alone() {
    let dir = tempfile::tempdir().unwrap();
    const TENSOR: &str = "layers.2.mlp.up_proj.weight";
    let truth = truth(TENSOR);
    let at = truth.codes.iter().position(|q| *q == 7).unwrap();
    let step = truth.steps[at / 32];
    // Two places of bf16: no step rounds to it any more, whatever the other numbers allow.
    let moved = bf16::from_f32(7.0 * step).to_f32().to_bits() + 0x2_0000;
    let model = q4_0(dir.path(), |file| {
        file.set(TENSOR, at, f32::from_bits(moved));
    });
    let out = dir.path().join("b");
    let report = run_recipe(&model, &recipe("qat-int4"), &out, &options()).unwrap();
    let off: Vec<_> = report
        .tensors
        .iter()
        .filter_map(|t| t.grid.filter(|g| !g.is_kept()).map(|g| (&t.tensor, g)))
        .collect();
    let [(tensor, grid)] = off.as_slice() else {
        panic!("{off:?}");
    };
    assert_eq!(*tensor, TENSOR);
    assert_eq!((grid.on, grid.off), (grid.groups - 1, 1));
    let record = report.tensors.iter().find(|t| t.tensor == TENSOR).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    let (data, scales) = blobs(&bundle, &record.file, TENSOR);
    let expected = nibbles(&truth.codes);
    for (group, (data, expected)) in data.chunks(16).zip(expected.chunks(16)).enumerate() {
        let scale = f16::from_le_bytes([scales[2 * group], scales[2 * group + 1]]);
        if group != at / 32 {
            assert_eq!(data, expected);
            assert_eq!(scale.to_f32(), truth.steps[group]);
        }
    }
}

/// Integers that a checkpoint holds (`tests/data/qat/w4a16-ct`), unpacked here: the packages have them with the same steps, which are
/// bf16, so that nothing at all is lost.
#[test]
fn integers_that_the_checkpoint_holds_are_in_the_packages() {
    let dir = tempfile::tempdir().unwrap();
    let model = data("w4a16-ct");
    let file = fs::read(model.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let out = dir.path().join("b");
    let report = run_recipe(&model, &recipe("qat-int4"), &out, &options()).unwrap();
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    let bundle = Bundle::open(&out).unwrap();
    let mut given = 0;
    for record in &report.tensors {
        let Some(grid) = record.grid.filter(|grid| grid.given) else {
            continue;
        };
        let module = record.tensor.trim_end_matches(".weight");
        let name = format!("model.language_model.{module}");
        let packed = file.tensor(&format!("{name}.weight_packed")).unwrap();
        let scales = file.tensor(&format!("{name}.weight_scale")).unwrap();
        // Whole words, as all rows here have multiples of eight inputs; 8 was added.
        let expected: Vec<u8> = packed.data().iter().map(|b| b ^ 0x88).collect();
        let steps = scales.data().chunks(2);
        let steps = steps.map(|b| f16::from_f32(bf16::from_le_bytes([b[0], b[1]]).to_f32()));
        let steps: Vec<u8> = steps.flat_map(f16::to_le_bytes).collect();
        let (data, scale) = blobs(&bundle, &record.file, &record.tensor);
        assert!(data == expected && scale == steps, "{}", record.tensor);
        let groups = (steps.len() / 2) as u64;
        let counts = (grid.nbits, grid.block, grid.groups, grid.on, grid.off);
        assert_eq!(counts, (4, Some(32), groups, groups, 0));
        assert_eq!(
            (grid.inexact, record.sqnr_db),
            (0, None),
            "{}",
            record.tensor
        );
        given += 1;
    }
    assert!(given >= 25, "{given}");
    assert!(equal_to_coremltools(std::slice::from_ref(&out), dir.path()) > 30);
    // Steps of 32 inputs are not those of a row.
    let out = dir.path().join("rows");
    let report = run_recipe(&model, &recipe("qat-int8"), &out, &options()).unwrap();
    let [note] = report.notes.as_slice() else {
        panic!("{:?}", report.notes);
    };
    for part in ["int4", "32 inputs", "int8-channel-full", "qat-int4"] {
        assert!(note.contains(part), "{note}");
    }
    let lost = report.tensors.iter().filter_map(|t| t.grid);
    assert!(
        lost.clone()
            .any(|grid| grid.given && grid.on == 0 && grid.off > 0)
    );
}

/// Every linear scheme in one bundle: as coremltools decompresses it, and decoded.
#[test]
fn linear_schemes_of_every_kind_are_what_coremltools_reads() {
    let dir = tempfile::tempdir().unwrap();
    let model = q4_0(dir.path(), |_| ());
    let rules = [
        ("q_proj", "int4-block32-full"),
        ("k_proj", "int4-channel"),
        ("v_proj", "int8-block32"),
        ("o_proj", "int4-channel-full"),
        ("gate_proj", "int8-channel-full"),
        ("up_proj", "int8-block32-full"),
        ("down_proj", "int4-block16-full"),
        ("per_layer_input_gate", "int8-block16"),
    ];
    let mut mixed = recipe("qat-int4");
    for (pattern, scheme) in rules {
        let scheme: Scheme = scheme.parse().unwrap();
        mixed
            .quantize
            .rules
            .push(Rule::new(pattern, scheme).unwrap());
    }
    let out = dir.path().join("b");
    let report = run_recipe(&model, &mixed, &out, &options()).unwrap();
    for (_, scheme) in rules {
        assert!(report.schemes[scheme].tensors > 0, "{scheme}");
    }
    let bundle = Bundle::open(&out).unwrap();
    for record in report
        .tensors
        .iter()
        .filter(|t| t.scheme.ends_with("-full"))
    {
        let chunk = bundle.chunks();
        let file = |name: &str| format!("{name}.mlpackage") == record.file;
        let package = &chunk.iter().find(|c| file(&c.name)).unwrap().package;
        let (function, op) = op(package, &record.tensor);
        let values = unpacked(function, op);
        if record.scheme == "int4-block32-full" {
            let truth = truth(&record.tensor);
            for (i, w) in values.iter().enumerate() {
                let product = f32::from(truth.codes[i]) * truth.steps[i / 32];
                assert_eq!(f16::from_f32(product).to_f32(), *w, "{}", record.tensor);
            }
        }
    }
    assert!(equal_to_coremltools(std::slice::from_ref(&out), dir.path()) > 30);
    let bundle = std::sync::Arc::new(bundle);
    let options = DecodeOptions::default();
    let decoder = open_decoder(&bundle, Precision::F16, &RowSource::Bundle, options);
    let mut decoder = decoder.unwrap();
    for token in [2, 5, 7] {
        assert!(decoder.step(token).unwrap().token_logit.is_finite());
    }
}

/// The same numbers as integers with steps of five digits, and as bf16 that the products fit in: the steps that are found are
/// those that were given, and every file but the config and the record of the conversion is the same.
#[test]
fn integers_and_their_products_in_bf16_give_the_same_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = |name: &str| {
        let out = dir.path().join(name);
        let report = run_recipe(&data(name), &recipe("qat-int4"), &out, &options()).unwrap();
        let kept = report.tensors.iter().filter_map(|t| t.grid);
        let kept = kept.filter(|grid| grid.is_kept() && grid.given == (name == "w4a16-ct"));
        assert!(kept.count() >= 30, "{name}");
        let mut files = contents(&out);
        files.retain(|file, _| {
            !file.ends_with("provenance.json") && !file.ends_with("/config.json")
        });
        files
    };
    let (packed, dense) = (bundle("w4a16-ct"), bundle("w4a16-dense"));
    assert!(packed.keys().any(|file| file.ends_with("weight.bin")));
    assert_eq!(Vec::from_iter(packed.keys()), Vec::from_iter(dense.keys()));
    let differs = packed.iter().find(|(file, bytes)| dense[*file] != **bytes);
    assert!(differs.is_none(), "{:?}", differs.map(|(file, _)| file));
}

/// Integers of 2, 4 and 8 bits with a step a row (`tests/data/qat/mobile`, where rows are whole bytes): the bytes of the packages'
/// indices are the checkpoint's own, tables are the integers times the step, rounded once, and coremltools reads the same.
#[test]
fn integers_of_single_rows_are_the_indices_of_palettes() {
    let dir = tempfile::tempdir().unwrap();
    let model = data("mobile");
    let file = fs::read(model.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let text = Recipe::builtin("qat-mobile").unwrap().source;
    let text = text.replace("ranges = \"checkpoint\"", "ranges = \"none\"");
    let text = text.replace("layout = \"swa4\"", "layout = \"swa2\"");
    let recipe = Recipe::parse("mobile", &text).unwrap();
    let out = dir.path().join("b");
    let report = run_recipe(&model, &recipe, &out, &options()).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    let mut widths = [0; 9];
    for record in report.tensors.iter().filter(|t| t.reason != "table") {
        let Some(grid) = record.grid else { continue };
        assert!(grid.given && grid.is_kept(), "{}", record.tensor);
        let module = record.tensor.trim_end_matches(".weight");
        let (codes, steps) = match module {
            "embed_tokens" => ("embedding_quantized", "embedding_scale"),
            _ => ("weight", "weight_scale"),
        };
        let part = |name: &str| {
            let name = format!("model.language_model.{module}.{name}");
            file.tensor(&name).unwrap()
        };
        let (codes, steps) = (part(codes), part(steps));
        let steps = steps.data().chunks(4);
        let steps: Vec<f32> = steps
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        let chunk = bundle.chunks();
        let mut packages = chunk.iter();
        let found = packages.find(|c| format!("{}.mlpackage", c.name) == record.file);
        let (_, op) = op(&found.unwrap().package, &record.tensor);
        let fp16 = |values: &mut dyn Iterator<Item = f32>| -> Vec<u8> {
            values
                .flat_map(|v| f16::from_f32(v).to_le_bytes())
                .collect()
        };
        let (stored, table, expected) = match grid.nbits {
            8 => ("data", "scale", fp16(&mut steps.iter().copied())),
            bits => {
                let low = 1i32 << (bits - 1);
                let entries = |step: &f32| {
                    let step = *step;
                    (-low..low).map(move |q| q as f32 * step)
                };
                let mut all = steps.iter().flat_map(entries);
                ("indices", "lut", fp16(&mut all))
            }
        };
        assert!(bytes(op, stored) == codes.data(), "{}", record.tensor);
        assert!(bytes(op, table) == expected, "{}", record.tensor);
        widths[usize::from(grid.nbits)] += 1;
    }
    println!(
        "{} of 2 bits, {} of 4, {} of 8",
        widths[2], widths[4], widths[8]
    );
    assert!(widths[2] >= 5 && widths[4] >= 10 && widths[8] >= 6);
    assert!(equal_to_coremltools(std::slice::from_ref(&out), dir.path()) > 30);
}
