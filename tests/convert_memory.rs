//! Memory of a conversion does not grow with the model. Alone in its process, since it watches the whole of it.
#![cfg(target_os = "linux")]

use gemma_coreml::checkpoint::{Checkpoint, TextConfig};
use gemma_coreml::convert::{Options, convert, forecast};
use gemma_coreml::gemma::ModelPlan;
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::Recipe;
use half::bf16;
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Vocabulary of the small model: its largest tensor is one tile.
const SMALL: usize = 8192;
/// Vocabulary of the large one: its tables and its head are 16.8 and 25.2 million values.
const LARGE: usize = 65536;
/// What the peak may grow by, in bytes: far less than any large tensor (33 MB as fp16), more than the allocator's mood
/// and the LUTs and scales (0.3 MB), which do grow.
const ALLOWED: u64 = 16 << 20;

/// What the predicted peak may exceed the measured one by, in bytes.
const SURPLUS: u64 = 48 << 20;

/// A checkpoint with the geometry of a fixture, another vocabulary and wider rows, in bf16.
fn synthetic(dir: &Path, vocab: usize) -> PathBuf {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/e4b-tiny");
    fs::create_dir(dir).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture.join(file), dir.join(file)).unwrap();
    }
    let text = fs::read(fixture.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    let text = &mut config["text_config"];
    text["vocab_size"] = vocab.into();
    text["vocab_size_per_layer_input"] = vocab.into();
    text["hidden_size"] = 256.into();
    text["hidden_size_per_layer_input"] = 32.into();
    let path = dir.join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    let plan = ModelPlan::new(&TextConfig::read(&path).unwrap()).unwrap();

    let (mut header, mut at) = (Map::new(), 0);
    let tensors = plan.tensors();
    for (name, shape) in &tensors {
        let end = at + shape.iter().product::<usize>() * 2;
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]});
        header.insert(format!("model.language_model.{name}"), entry);
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut out = BufWriter::new(File::create(dir.join("model.safetensors")).unwrap());
    out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    out.write_all(&header).unwrap();
    let mut state = 1u32;
    for _ in 0..at / 2 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
        out.write_all(&bf16::from_f32(value).to_le_bytes()).unwrap();
    }
    out.flush().unwrap();
    dir.to_path_buf()
}

fn options() -> Options {
    Options {
        threads: Some(2),
        context: Some(64),
        ..Options::default()
    }
}

/// Anonymous resident memory of this process, bytes.
fn anonymous() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:"))
        .unwrap();
    line.trim()
        .trim_end_matches("kB")
        .trim()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// The most anonymous memory there was while `work` ran, sampled every millisecond.
fn peak(work: impl FnOnce()) -> u64 {
    let (most, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                most.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        work();
        stop.store(true, Ordering::Relaxed);
    });
    most.load(Ordering::Relaxed)
}

#[test]
fn peak_does_not_grow_with_the_model() {
    for recipe in ["swa4-int4", "swa4-fp16", "w8-linear"] {
        let recipe = Recipe::builtin(recipe).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let peaks = [SMALL, LARGE].map(|vocab| {
            let model = synthetic(&dir.path().join(format!("m{vocab}")), vocab);
            let out = dir.path().join(format!("b{vocab}"));
            let options = options();
            peak(|| {
                let checkpoint = Checkpoint::open(&model).unwrap();
                convert(&checkpoint, &recipe, &out, &options, &NoProgress).unwrap();
            })
        });
        println!(
            "{}: peak {} and {} MB",
            recipe.name,
            peaks[0] >> 20,
            peaks[1] >> 20
        );
        assert!(peaks[1] <= peaks[0] + ALLOWED, "{}: {peaks:?}", recipe.name);
        let checkpoint = Checkpoint::open(&dir.path().join(format!("m{LARGE}"))).unwrap();
        let predicted = forecast(&checkpoint, &recipe, &options()).unwrap().memory;
        println!("predicted {} MB", predicted >> 20);
        assert!(
            (peaks[1]..peaks[1] + SURPLUS).contains(&predicted),
            "{}: {} measured, {predicted} predicted",
            recipe.name,
            peaks[1]
        );
    }
}
