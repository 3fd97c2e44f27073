//! Row tables of integers times steps: those of quantization-aware checkpoints, and computed ones.

use crate::helpers::*;
use gemma_coreml::bundle::provenance::{GridRecord, TensorRecord};
use gemma_coreml::bundle::{Bundle, RowTable};
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::convert::{Report, forecast};
use gemma_coreml::evaluate::{RowSource, open_decoder};
use gemma_coreml::recipe::Recipe;
use gemma_coreml::runtime::{DecodeOptions, Precision};
use half::{bf16, f16};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const EMBED: &str = "embed_tokens";
const PER_LAYER: &str = "embed_tokens_per_layer";

fn recipe(tables: &str, per_layer: Option<&str>) -> Recipe {
    // The quantization-aware fixtures have too few layers for four chunks.
    let mut recipe = Recipe::builtin("swa1").unwrap();
    recipe.quantize.default = "fp16".parse().unwrap();
    recipe.quantize.tables = tables.parse().unwrap();
    recipe.quantize.per_layer_tables = per_layer.map(|scheme| scheme.parse().unwrap());
    recipe
}

/// A copy of a quantization-aware checkpoint without the steps of its activations.
fn qat(name: &str, to: &Path) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/qat")
        .join(name);
    let model = to.join(name);
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let mut file = Safetensors::read(&model.join("model.safetensors"));
    let keys: Vec<String> = file.header.keys().cloned().collect();
    for key in keys.iter().filter(|key| key.ends_with("_activation_scale")) {
        file.set(key, 0, 0.0);
    }
    file.write();
    model
}

/// Converts and compares the tables' files with what was predicted.
fn converted(model: &Path, recipe: &Recipe, out: &Path) -> Report {
    let predicted = forecast(&Checkpoint::open(model).unwrap(), recipe, &options()).unwrap();
    let report = run_recipe(model, recipe, out, &options()).unwrap();
    let names = |mut names: Vec<&String>| {
        names.retain(|name| name.starts_with(EMBED));
        names.into_iter().cloned().collect::<Vec<_>>()
    };
    let files = names(report.files.keys().collect());
    assert_eq!(files, names(predicted.files.keys().collect()));
    for name in files {
        let (file, written) = (&predicted.files[&name], report.files[&name].bytes);
        assert!(file.exact && file.bytes == written, "{name}: {written}");
        assert_eq!(fs::metadata(out.join(&name)).unwrap().len(), written);
    }
    report
}

/// The record of a table: the head, in a package, has the name of the embedding too.
fn table<'a>(report: &'a Report, name: &str) -> &'a TensorRecord {
    let tensor = format!("{name}.weight");
    let mut tensors = report.tensors.iter();
    tensors
        .find(|t| t.tensor == tensor && t.reason == "table")
        .unwrap()
}

fn grid(report: &Report, name: &str) -> Option<GridRecord> {
    table(report, name).grid
}

fn rows(table: &RowTable, factor: f64) -> Vec<Vec<f32>> {
    let rows = (0..table.rows()).map(|row| {
        let mut out = vec![0.0; table.dim()];
        table.row(row, factor as f32, &mut out).unwrap();
        out
    });
    rows.collect()
}

/// Integers and steps of a table of a mobile checkpoint, as its file holds them: rows of codes, each with 2^(nbits-1) added, lowest bits
/// first, and the steps of a row.
fn stored(model: &Path, name: &str, nbits: usize) -> (Vec<Vec<i32>>, Vec<Vec<f32>>) {
    let file = Safetensors::read(&model.join("model.safetensors"));
    let part = |suffix: &str| {
        let entry = &file.header[&file.key(&format!(".{name}.{suffix}"))];
        let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
        let columns = entry["shape"][1].as_u64().unwrap() as usize;
        (file.data[at(0)..at(1)].to_vec(), columns)
    };
    let (codes, width) = part("embedding_quantized");
    let (steps, each) = part("embedding_scale");
    let codes = codes.chunks(width).map(|row| {
        let codes = row.iter().flat_map(|byte| {
            let fields = (0..8 / nbits).map(move |i| i32::from(*byte) >> (i * nbits));
            fields.map(|field| field % (1 << nbits) - (1 << (nbits - 1)))
        });
        codes.collect()
    });
    let steps = steps.chunks(each * 4).map(|row| {
        let row = row
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        row.collect()
    });
    (codes.collect(), steps.collect())
}

#[test]
fn mobile_tables_are_the_checkpoint_s_integers_and_steps() {
    let dir = tempfile::tempdir().unwrap();
    let model = qat("mobile", dir.path());
    let out = dir.path().join("b");
    let recipe = recipe("rows-int2-row", Some("rows-int4-block32"));
    let report = converted(&model, &recipe, &out);
    let bundle = Bundle::open(&out).unwrap();
    let config = bundle.config();
    assert_eq!(config.table_format.to_string(), "rows-int2-row");
    assert_eq!(
        config.per_layer_table_format().to_string(),
        "rows-int4-block32"
    );
    for (name, nbits, table, factor) in [
        (EMBED, 2, bundle.embed_table(), config.embed_scale),
        (
            PER_LAYER,
            4,
            bundle.per_layer_table().unwrap(),
            config.per_layer_embed_scale.unwrap(),
        ),
    ] {
        let (codes, steps) = stored(&model, name, nbits);
        let (mut least, mut most, mut inexact) = (0, 0, 0);
        for ((row, codes), steps) in rows(table, factor).iter().zip(&codes).zip(&steps) {
            let block = codes.len() / steps.len();
            for (i, (value, q)) in row.iter().zip(codes).enumerate() {
                let step = f16::from_f32(steps[i / block]).to_f32();
                let exact = *q as f32 * step * factor as f32;
                assert_eq!(*value, f16::from_f32(exact).to_f32(), "{name}");
                (least, most) = (least.min(*q), most.max(*q));
            }
            inexact += steps
                .iter()
                .filter(|s| f16::from_f32(**s).to_f32() != **s)
                .count();
        }
        // The fixture has every corner.
        assert_eq!((least, most), (-(1 << (nbits - 1)), (1 << (nbits - 1)) - 1));
        let grid = grid(&report, name).unwrap();
        let groups = codes.len() * steps[0].len();
        assert!(grid.given && grid.is_kept());
        assert_eq!((grid.nbits, grid.on), (nbits as u8, groups as u64));
        assert_eq!(grid.inexact, inexact as u64, "{name}");
    }
}

#[test]
fn the_published_form_keeps_a_table_with_a_step_a_row_and_rounds_others() {
    let dir = tempfile::tempdir().unwrap();
    let model = qat("mobile", dir.path());
    let out = dir.path().join("b");
    let report = converted(&model, &recipe("rows-int8", None), &out);
    let (codes, steps) = stored(&model, EMBED, 2);
    let bytes = fs::read(out.join("embed_tokens_q8.bin")).unwrap();
    let kept: Vec<i32> = bytes.iter().map(|b| i32::from(*b as i8)).collect();
    assert_eq!(kept, codes.concat());
    let scales = fs::read(out.join("embed_tokens_scales.bin")).unwrap();
    for (bytes, step) in scales.chunks(2).zip(&steps) {
        let scale = f16::from_le_bytes(bytes.try_into().unwrap());
        assert_eq!(scale, f16::from_f64(f64::from(step[0]) * 127.0));
    }
    assert!(grid(&report, EMBED).unwrap().is_kept());
    // Several steps a row: rounded anew, which is measured and said.
    let per_layer = grid(&report, PER_LAYER).unwrap();
    assert_eq!((per_layer.on, per_layer.off), (0, per_layer.groups));
    assert!(
        table(&report, PER_LAYER)
            .sqnr_db
            .is_some_and(|db| db < 60.0)
    );
    let config = fs::read_to_string(out.join("model_config.json")).unwrap();
    assert!(config.contains("\"table_format\": \"rows-int8\""));
    assert!(!config.contains("per_layer_table_format"));
}

#[test]
fn numbers_on_a_grid_of_32_keep_it_in_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let model = qat("q4_0", dir.path());
    let out = dir.path().join("b");
    let report = converted(&model, &recipe("rows-int4-block32", None), &out);
    let bundle = Bundle::open(&out).unwrap();
    let checkpoint = Checkpoint::open(&model).unwrap();
    for (name, table) in [
        (EMBED, bundle.embed_table()),
        (PER_LAYER, bundle.per_layer_table().unwrap()),
    ] {
        let found = grid(&report, name).unwrap();
        assert!(!found.given && found.is_kept(), "{name}: {found:?}");
        let (dim, inexact) = (table.dim(), found.inexact);
        let view = checkpoint
            .tensor(&format!("{name}.weight"), &[table.rows(), dim])
            .unwrap();
        let mut exact = vec![0.0; view.len()];
        view.read_f32(0..view.len(), &mut exact).unwrap();
        let codes = fs::read(out.join(format!("{name}_q4.bin"))).unwrap();
        let nibbles = codes
            .iter()
            .flat_map(|byte| [(byte << 4) as i8 >> 4, *byte as i8 >> 4]);
        let steps = fs::read(out.join(format!("{name}_steps.bin"))).unwrap();
        let steps: Vec<f32> = steps
            .chunks(2)
            .map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32())
            .collect();
        let mut off = vec![false; steps.len()];
        let read = rows(table, 1.0).concat();
        for (i, q) in nibbles.enumerate() {
            let value = f32::from(q) * steps[i / 32];
            assert_eq!(f16::from_f32(value).to_f32(), read[i]);
            off[i / 32] |= bf16::from_f32(value).to_f32() != exact[i];
        }
        let off = off.iter().filter(|off| **off).count();
        assert_eq!(off as u64, inexact, "{name}: {found:?}");
    }
}

#[test]
fn computed_rows_go_through_the_decoder() {
    let dir = tempfile::tempdir().unwrap();
    let logits = |scheme: &str| {
        let out = dir.path().join(scheme);
        let report = converted(&fixture("e4b-tiny"), &recipe(scheme, None), &out);
        let bundle = Arc::new(Bundle::open(&out).unwrap());
        let options = DecodeOptions {
            threads: 2,
            keep: vec!["logits".to_string()],
            ..DecodeOptions::default()
        };
        let mut decoder =
            open_decoder(&bundle, Precision::F32, &RowSource::Bundle, options).unwrap();
        let mut all = Vec::new();
        for token in [2, 77, 130, 5] {
            let step = decoder.step(token).unwrap();
            all.extend_from_slice(step.kept["logits"].as_f32().unwrap());
        }
        (all, grid(&report, EMBED))
    };
    let (exact, none) = logits("rows-fp16");
    assert_eq!(none, None);
    let distance = |scheme: &str| {
        let (got, grid) = logits(scheme);
        let grid = grid.unwrap();
        // Numbers of a training without a grid: none of their blocks lies on one.
        assert_eq!((grid.on, grid.off), (0, grid.groups), "{scheme}");
        let pairs = got.iter().zip(&exact);
        let off: f32 = pairs.map(|(a, b)| (a - b) * (a - b)).sum();
        (off / exact.iter().map(|v| v * v).sum::<f32>()).sqrt()
    };
    let eight = distance("rows-int8-block32");
    let [block, row] = ["rows-int4-block32", "rows-int4-row"].map(distance);
    let two = distance("rows-int2-block32");
    println!("{eight} {block} {row} {two}");
    assert!(eight > 0.0 && eight < 0.02, "{eight}");
    assert!(
        2.0 * eight < block && block < row && row < two,
        "{eight} {block} {row} {two}"
    );
}

#[test]
fn tables_of_a_wrong_size_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let recipe = recipe("rows-int4-block32", Some("rows-int2-row"));
    converted(&fixture("e4b-tiny"), &recipe, &out);
    Bundle::open(&out).unwrap();
    for name in [
        "embed_tokens_q4.bin",
        "embed_tokens_steps.bin",
        "embed_tokens_per_layer_q2.bin",
        "embed_tokens_per_layer_steps.bin",
    ] {
        let path = out.join(name);
        let whole = fs::read(&path).unwrap();
        for bytes in [&whole[1..], &[&whole[..], &[0]].concat()] {
            fs::write(&path, bytes).unwrap();
            let error = Bundle::open(&out).unwrap_err().to_string();
            let expected = format!("expected {} bytes", whole.len());
            assert!(error.contains(name) && error.contains(&expected), "{error}");
        }
        fs::remove_file(&path).unwrap();
        let error = Bundle::open(&out).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("not there"),
            "{error}"
        );
        fs::write(&path, whole).unwrap();
    }
    let path = out.join("model_config.json");
    let config = fs::read_to_string(&path).unwrap();
    for (from, to, part) in [
        (
            "rows-int4-block32",
            "rows-int4-block48",
            "embed_tokens_steps.bin",
        ),
        ("rows-int4-block32", "rows-int8", "embed_tokens_q8.bin"),
        (
            "rows-int2-row",
            "rows-int2-block32",
            "embed_tokens_per_layer_steps.bin",
        ),
        ("rows-int2-row", "rows-int3-row", "2, 4 or 8 bits"),
        (
            "rows-int4-block32",
            "rows-int4-block0",
            "not a positive number",
        ),
    ] {
        assert!(config.contains(from));
        fs::write(&path, config.replace(from, to)).unwrap();
        let error = Bundle::open(&out).unwrap_err().to_string();
        assert!(error.contains(part), "{to}: {error}");
    }
}
