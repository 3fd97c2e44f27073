//! What is predicted of a conversion against what it makes, and what is refused for want of room.

use crate::calibrated::statistics;
use crate::helpers::*;
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::convert::{Conversion, Error, Fault, Forecast, Options, Report, Room, forecast};
use gemma_coreml::package::WEIGHTS_DIR;
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::Recipe;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How far the files whose bytes are not exact may be from what was predicted, of the sum of all files but weights, programs and
/// tables.
const OTHERS: f64 = 0.01;

/// Recipes of every layout, cache, function and kind of scheme that need no statistics.
const RECIPES: [&str; 14] = [
    "swa4-int4",
    "swa4-fp16",
    "w2",
    "w8-linear",
    "qat-int4",
    "sparse50",
    "lut8",
    "rows-int4",
    "rows-fp16",
    "stateful",
    "prefill-16",
    "verify-4",
    "lite2",
    "monolithic",
];

fn predicted(model: &Path, recipe: &Recipe, options: &Options) -> Result<Forecast, Error> {
    forecast(&Checkpoint::open(model).unwrap(), recipe, options)
}

/// Compares a forecast with the files of the report, and with the disk.
fn compare(label: &str, forecast: &Forecast, report: &Report) {
    let names: Vec<&String> = report.files.keys().collect();
    assert_eq!(forecast.files.keys().collect::<Vec<_>>(), names, "{label}");
    let large = |name: &str| {
        name.contains(WEIGHTS_DIR) || name.ends_with(".mlmodel") || name.starts_with("embed_")
    };
    let (mut others, mut off) = (0, 0);
    for (name, file) in &forecast.files {
        let written = report.files[name].bytes;
        assert_eq!(
            fs::metadata(report.output.join(name)).unwrap().len(),
            written
        );
        if file.exact {
            assert_eq!(file.bytes, written, "{label}: {name}");
        }
        if !large(name) {
            others += written;
            off += file.bytes.abs_diff(written);
        }
    }
    let inexact: Vec<&String> = forecast
        .files
        .iter()
        .filter(|(_, f)| !f.exact)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(inexact, ["provenance.json"], "{label}");
    let share = off as f64 / others as f64;
    println!("{label}: {off} of {others} bytes off");
    assert!(share <= OTHERS, "{label}: {off} of {others} bytes");
    assert!(forecast.bytes.abs_diff(report.bytes) <= off, "{label}");
    for package in &forecast.packages {
        let dir = format!("{}.mlpackage/", package.name);
        let own = report
            .files
            .iter()
            .filter(|(name, _)| name.starts_with(&dir));
        let own: Vec<_> = own.collect();
        let bytes: u64 = own.iter().map(|(_, f)| f.bytes).sum();
        assert_eq!(package.bytes, bytes, "{label}: {dir}");
        let weights = own.iter().filter(|(name, _)| name.contains(WEIGHTS_DIR));
        let bytes: u64 = weights.map(|(_, f)| f.bytes).sum();
        assert_eq!(package.weight_bytes, bytes, "{label}: {dir}");
    }
}

#[test]
fn plan_and_bundle_agree_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (mut compared, mut shared) = (0, false);
    for model in fixtures() {
        for name in RECIPES {
            let recipe = Recipe::load(name).unwrap();
            let model_dir = fixture(&model);
            let label = format!("{model} {name}");
            let forecast = match predicted(&model_dir, &recipe, &options()) {
                Ok(forecast) => forecast,
                // Prefill does not exist for models with experts.
                Err(Error::Graph(_)) if model.starts_with("moe") => continue,
                Err(e) => panic!("{label}: {e}"),
            };
            let out = dir.path().join("b");
            let report = run_recipe(&model_dir, &recipe, &out, &options()).unwrap();
            compare(&label, &forecast, &report);
            let blobs: u64 = forecast.schemes.iter().map(|s| s.weights as u64).sum();
            let package = gemma_coreml::bundle::Bundle::open(&out).unwrap();
            let stored: usize = package
                .packages()
                .flat_map(|p| p.package.weight_files().map(|f| f.2).collect::<Vec<_>>())
                .sum();
            shared |= (stored as u64) < blobs;
            fs::remove_dir_all(&out).unwrap();
            compared += 1;
        }
    }
    assert!(compared >= 5 * RECIPES.len(), "{compared}");
    assert!(shared, "no package has fewer blobs than weights");
}

#[test]
fn vectors_verify_and_activations_agree_too() {
    let dir = tempfile::tempdir().unwrap();
    for (model, name) in [
        ("dense-tiny", "v2"),
        ("e4b-tiny", "v4"),
        ("e2b35-tiny", "verify-3"),
        ("textonly-tiny", "stateful-padded"),
        ("e4b-tiny", "flash-16"),
        ("dense-tiny", "w8a8"),
        ("e4b-tiny", "w3-calibrated"),
        ("dense-tiny", "w3-scale"),
        ("dense-tiny", "w3-compensate"),
    ] {
        let recipe = Recipe::load(name).unwrap();
        let with = Options {
            calibration: (recipe.quantize.calibrated_by().is_some())
                .then(|| statistics(model, dir.path(), true)),
            ..options()
        };
        // Only quantized activations need statistics to be planned.
        let without = predicted(&fixture(model), &recipe, &options());
        match without {
            Ok(without) => {
                let forecast = predicted(&fixture(model), &recipe, &with).unwrap();
                assert_eq!(without.files, forecast.files, "{model} {name}");
            }
            Err(e) => assert!(
                matches!(
                    &e,
                    Error::NoCalibration {
                        key: "activations",
                        ..
                    }
                ),
                "{name}: {e}"
            ),
        }
        let forecast = predicted(&fixture(model), &recipe, &with).unwrap();
        let out = dir.path().join("b");
        let report = run_recipe(&fixture(model), &recipe, &out, &with).unwrap();
        compare(&format!("{model} {name}"), &forecast, &report);
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn several_weight_files_and_bundles_that_are_kept_are_predicted() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let model = fixture("e4b-tiny");
    let checkpoint = Checkpoint::open(&model).unwrap();
    let convert = |recipe: &str, options: &Options| {
        let recipe = Recipe::load(recipe).unwrap();
        let conversion = Conversion::prepare(&checkpoint, &recipe, &out, options).unwrap();
        let forecast = conversion.forecast().clone();
        let report = conversion.run(&NoProgress).unwrap();
        (forecast, report)
    };
    let sharded = Options {
        weight_file_limit: Some(64 << 10),
        ..options()
    };
    let (forecast, report) = convert("swa4-int4", &sharded);
    compare("sharded", &forecast, &report);
    let files = forecast.files.keys().filter(|f| f.contains(WEIGHTS_DIR));
    assert!(files.count() > 4, "{:?}", forecast.files);
    let whole = forecast.disk;

    let context = Options {
        context: Some(96),
        ..sharded.clone()
    };
    let (forecast, report) = convert("swa4-int4", &context);
    compare("context", &forecast, &report);
    assert!(forecast.packages.iter().all(|p| p.kept));
    let kept = |f: &Forecast| f.files.iter().filter(|(_, f)| !f.written).count();
    assert!(kept(&forecast) > 8, "{:?}", forecast.files);
    assert!(forecast.disk < whole);

    let only = Options {
        only: Some("chunk2".to_string()),
        context: None,
        ..sharded
    };
    let (forecast, report) = convert("w8-linear", &only);
    compare("only", &forecast, &report);
    let written = forecast.packages.iter().filter(|p| !p.kept);
    assert_eq!(
        written.map(|p| p.name.as_str()).collect::<Vec<_>>(),
        ["chunk2"]
    );
}

/// Offsets of tensors that are no vectors, in the data of a safetensors file.
fn matrices(file: &Safetensors) -> Vec<(usize, usize)> {
    let entries = file.header.values().filter(|e| e["shape"].is_array());
    let matrices = entries.filter(|e| e["shape"].as_array().unwrap().len() > 1);
    matrices
        .map(|e| {
            let at = |i: usize| e["data_offsets"][i].as_u64().unwrap() as usize;
            (at(0), at(1))
        })
        .collect()
}

#[test]
fn only_headers_and_vectors_decide() {
    for name in ["nano", "e4b-tiny", "moe-tiny"] {
        let dir = tempfile::tempdir().unwrap();
        let spoiled = damaged(name, dir.path(), |file| {
            for (start, end) in matrices(file) {
                // Not a number in every format.
                file.data[start..end].fill(0xff);
            }
        });
        for recipe in ["swa4-int4", "sparse50", "lite2"] {
            let recipe = Recipe::load(recipe).unwrap();
            let text = |dir: &Path| {
                let forecast = predicted(dir, &recipe, &options()).unwrap();
                serde_json::to_string(&forecast).unwrap()
            };
            assert_eq!(text(&spoiled), text(&fixture(name)), "{name}");
        }
        let out = dir.path().join("b");
        let recipe = Recipe::load("swa4-int4").unwrap();
        assert!(run_recipe(&spoiled, &recipe, &out, &options()).is_err());
    }
}

/// A vocabulary whose tables and head are large beside the headers.
const VOCABULARY: usize = 1 << 20;
/// Most that may be resident of the mapped file: pages around its vectors.
const RESIDENT: u64 = 16 << 20;

/// A checkpoint of e4b-tiny's geometry with a large vocabulary: a sparse file, its vectors ones and its matrices holes.
fn sparse_model(dir: &Path) -> std::path::PathBuf {
    let model = copy_model("e4b-tiny", dir);
    let path = model.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for key in ["vocab_size", "vocab_size_per_layer_input"] {
        config["text_config"][key] = VOCABULARY.into();
    }
    fs::write(&path, config.to_string()).unwrap();
    let file = model.join("model.safetensors");
    let mut header = Safetensors::read(&file).header;
    let (mut at, mut vectors) = (0u64, Vec::new());
    for (name, entry) in &mut header {
        let Some(shape) = entry.get_mut("shape") else {
            continue;
        };
        let shape = shape.as_array_mut().unwrap();
        if name.contains("embed_tokens") {
            shape[0] = VOCABULARY.into();
        }
        let elements: u64 = shape.iter().map(|n| n.as_u64().unwrap()).product();
        let rank = shape.len();
        let size = match entry["dtype"].as_str().unwrap() {
            "F32" => 4,
            _ => 2,
        };
        entry["data_offsets"] = serde_json::json!([at, at + elements * size]);
        if rank == 1 {
            vectors.push((at, elements, entry["dtype"].clone()));
        }
        at += elements * size;
    }
    let text = serde_json::to_vec(&header).unwrap();
    fs::remove_file(&file).unwrap();
    let mut out = File::create(&file).unwrap();
    out.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    out.write_all(&text).unwrap();
    let data = 8 + text.len() as u64;
    for (start, elements, dtype) in vectors {
        let one: &[u8] = match dtype.as_str().unwrap() {
            "F32" => &[0, 0, 0x80, 0x3f],
            "F16" => &[0, 0x3c],
            _ => &[0x80, 0x3f],
        };
        out.seek(SeekFrom::Start(data + start)).unwrap();
        out.write_all(&one.repeat(elements as usize)).unwrap();
    }
    out.set_len(data + at).unwrap();
    model
}

/// Resident bytes of a file that this process has mapped.
#[cfg(target_os = "linux")]
fn resident(file: &Path) -> u64 {
    let name = file.to_str().unwrap();
    let text = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = text.lines();
    let mut sum = 0;
    while let Some(line) = lines.next() {
        if line.ends_with(name) {
            let rss = lines.find_map(|l| l.strip_prefix("Rss:")).unwrap();
            let kilobytes = rss.trim().trim_end_matches("kB").trim();
            sum += kilobytes.parse::<u64>().unwrap() << 10;
        }
    }
    sum
}

#[cfg(target_os = "linux")]
#[test]
fn no_matrix_is_paged_in() {
    let dir = tempfile::tempdir().unwrap();
    let model = sparse_model(dir.path());
    let file = model.join("model.safetensors");
    let bytes = fs::metadata(&file).unwrap().len();
    assert!(bytes > 10 * RESIDENT, "{bytes}");
    let checkpoint = Checkpoint::open(&model).unwrap();
    let recipe = Recipe::load("swa4-int4").unwrap();
    let forecast = forecast(&checkpoint, &recipe, &options()).unwrap();
    let found = resident(&file);
    println!("{found} of {bytes} bytes resident");
    assert!(found <= RESIDENT, "{found} of {bytes} bytes resident");
    let table = &forecast.files["embed_tokens_q8.bin"];
    let hidden = checkpoint.config().hidden_size as u64;
    assert_eq!(
        (table.bytes, table.exact),
        (VOCABULARY as u64 * hidden, true)
    );
}

#[test]
fn broken_checkpoints_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe::load("swa4-int4").unwrap();
    let gone = damaged("nano", &dir.path().join("gone"), |file| {
        let key = file.key("layers.1.mlp.up_proj.weight");
        let entry = file.header.remove(&key).unwrap();
        file.header.insert("model.vision_tower.x".into(), entry);
    });
    let infinite = damaged("nano", &dir.path().join("infinite"), |file| {
        file.set("layers.2.input_layernorm.weight", 3, f32::INFINITY);
    });
    let tokens = copy_model("nano", &dir.path().join("tokens"));
    fs::remove_file(tokens.join("tokenizer.json")).unwrap();
    for (model, name) in [
        (gone, "layers.1.mlp.up_proj.weight"),
        (infinite, "layers.2.input_layernorm.weight"),
        (tokens, "tokenizer.json"),
    ] {
        let error = predicted(&model, &recipe, &options()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(error.fault(), Fault::Input, "{error}");
        let out = dir.path().join("b");
        let error = run_recipe(&model, &recipe, &out, &options()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert!(!dir.path().join(".b.partial").exists());
    }
    let calm = Options {
        context: Some(1 << 30),
        ..options()
    };
    let error = predicted(&fixture("nano"), &recipe, &calm).unwrap_err();
    assert!(matches!(error, Error::Context { .. }), "{error}");
}

fn room(disk: u64, memory: u64) -> Options {
    Options {
        room: Some(Room {
            disk: Some(disk),
            memory: Some(memory),
        }),
        ..options()
    }
}

/// Bytes on the disk below a directory.
fn blocks(dir: &Path) -> u64 {
    let files = gemma_coreml::bundle::files::list(dir).unwrap();
    let sizes = files.iter().map(|f| fs::metadata(dir.join(f)).unwrap());
    sizes.map(|m| m.blocks() * 512).sum()
}

#[test]
fn what_has_no_room_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let recipe = Recipe::load("swa4-int4").unwrap();
    let model = fixture("e4b-tiny");
    let plan = predicted(&model, &recipe, &options()).unwrap();
    let refused = |disk: u64, memory: u64| {
        let error = run_recipe(&model, &recipe, &out, &room(disk, memory)).unwrap_err();
        assert_eq!(error.fault(), Fault::Space, "{error}");
        let text = error.to_string();
        assert!(text.contains("\nhint: ") && text.contains("/b: "), "{text}");
        error
    };
    let error = refused(plan.disk - 1, u64::MAX);
    let Error::Space { needed, free, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((needed, free), (plan.disk, plan.disk - 1));
    let error = refused(u64::MAX, plan.memory - 1);
    let Error::Memory { needed, free, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((needed, free), (plan.memory, plan.memory - 1));
    assert_eq!(entries(dir.path()), Vec::<String>::new());

    // What an earlier run left beside the output is used again, or makes room.
    let spoiled = damaged("e4b-tiny", dir.path(), |file| {
        file.set("embed_tokens_per_layer.weight", 0, f32::NAN);
    });
    run_recipe(&spoiled, &recipe, &out, &options()).unwrap_err();
    let staging = dir.path().join(".b.partial");
    let staged = blocks(&staging);
    assert!(staged > 100_000, "{staged}");
    let error = refused(plan.disk - staged - 1, u64::MAX);
    assert!(matches!(error, Error::Space { .. }), "{error}");
    assert_eq!(blocks(&staging), staged, "it stays for another run");
    let report = run_recipe(
        &model,
        &recipe,
        &out,
        &room(plan.disk - staged, plan.memory),
    );
    compare("after a failure", &plan, &report.unwrap());
    assert!(!staging.exists());
}

#[test]
fn disk_is_enough_for_all_that_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let recipe = Recipe::load("prefill-16").unwrap();
    let plan = predicted(&fixture("e4b-tiny"), &recipe, &options()).unwrap();
    run_recipe(&fixture("e4b-tiny"), &recipe, &out, &options()).unwrap();
    // Files of several names, the weights of prefill and decode, take room once.
    let mut once = BTreeMap::new();
    for file in gemma_coreml::bundle::files::list(&out).unwrap() {
        let meta = fs::metadata(out.join(file)).unwrap();
        once.insert(meta.ino(), meta.blocks() * 512);
    }
    let taken: u64 = once.values().sum();
    assert!(
        plan.disk >= taken && plan.disk < taken + (2 << 20),
        "{} {taken}",
        plan.disk
    );
    assert!(plan.bytes > taken);
}

#[test]
fn more_threads_take_more_memory_and_less_time() {
    let recipe = Recipe::load("w8-palette").unwrap();
    let on = |threads: usize| {
        let options = Options {
            threads: Some(threads),
            ..options()
        };
        predicted(&fixture("nano"), &recipe, &options).unwrap()
    };
    let (one, four) = (on(1), on(4));
    assert!(four.memory > one.memory);
    assert!(four.time.seconds < one.time.seconds);
    assert_eq!((one.time.threads, four.time.threads), (1, 4));
    assert_eq!((one.disk, one.files), (four.disk, four.files));
}
