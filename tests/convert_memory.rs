//! Memory of a conversion does not grow with the model. Alone in its process, since it watches the whole of it.
#![cfg(target_os = "linux")]

use gemma_coreml::checkpoint::{Adapter, Checkpoint, TextConfig};
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

/// What a conversion with adapters may need beside, in bytes: the adapters' files hold several times as much.
const MERGING: u64 = 8 << 20;

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
    let tensors = plan.tensors().into_iter();
    let tensors = tensors.map(|(name, shape)| (format!("model.language_model.{name}"), shape));
    write(&dir.join("model.safetensors"), &tensors.collect::<Vec<_>>());
    dir.to_path_buf()
}

/// DoRA of both tables and LoRA of every matrix that is one of a layer's, of rank `rank`, in bf16.
fn synthetic_adapter(dir: &Path, model: &Path, rank: usize) -> PathBuf {
    fs::create_dir(dir).unwrap();
    let plan = ModelPlan::new(&TextConfig::read(&model.join("config.json")).unwrap()).unwrap();
    let mut tensors = Vec::new();
    for (name, shape) in plan.tensors() {
        let &[rows, columns] = shape.as_slice() else {
            continue;
        };
        let module = format!(
            "base_model.model.model.{}",
            name.trim_end_matches(".weight")
        );
        let (a, b) = match name.starts_with("embed") {
            true => (
                ("lora_embedding_A", [rank, rows]),
                ("lora_embedding_B", [columns, rank]),
            ),
            false => (
                ("lora_A.weight", [rank, columns]),
                ("lora_B.weight", [rows, rank]),
            ),
        };
        for (part, shape) in [a, b] {
            tensors.push((format!("{module}.{part}"), shape.to_vec()));
        }
        let lengths = if name.starts_with("embed") {
            columns
        } else {
            rows
        };
        tensors.push((format!("{module}.lora_magnitude_vector"), vec![lengths]));
    }
    write(&dir.join("adapter_model.safetensors"), &tensors);
    let config = json!({"peft_type": "LORA", "r": rank, "lora_alpha": 1, "use_dora": true});
    fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    dir.to_path_buf()
}

/// A safetensors file of made-up values in bf16.
fn write(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + shape.iter().product::<usize>() * 2;
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), entry);
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut out = BufWriter::new(File::create(path).unwrap());
    out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    out.write_all(&header).unwrap();
    let mut state = 1u32;
    for _ in 0..at / 2 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Never 0, which no length of a row may be.
        let value = (f64::from(state >> 8) + 0.5) as f32 / (1 << 24) as f32 - 0.5;
        out.write_all(&bf16::from_f32(value).to_le_bytes()).unwrap();
    }
    out.flush().unwrap();
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
    adapters_are_merged_without_more_memory();
}

/// Not a test of its own, as it would then run beside the other.
fn adapters_are_merged_without_more_memory() {
    let recipe = Recipe::builtin("swa4-fp16").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let model = synthetic(&dir.path().join("model"), LARGE);
    let adapter = synthetic_adapter(&dir.path().join("adapter"), &model, 128);
    let size = fs::metadata(adapter.join("adapter_model.safetensors"))
        .unwrap()
        .len();
    assert!(size > 4 * MERGING, "{size}");
    let peaks = [0, 1].map(|count| {
        let out = dir.path().join(format!("b{count}"));
        peak(|| {
            let adapters: Vec<Adapter> = (0..count)
                .map(|_| Adapter::open(&adapter).unwrap())
                .collect();
            let checkpoint = Checkpoint::open(&model)
                .unwrap()
                .with_adapters(&adapters)
                .unwrap();
            convert(&checkpoint, &recipe, &out, &options(), &NoProgress).unwrap();
        })
    });
    println!(
        "peak {} and {} MB, an adapter of {} MB",
        peaks[0] >> 20,
        peaks[1] >> 20,
        size >> 20
    );
    assert!(peaks[1] <= peaks[0] + MERGING, "{peaks:?}");
}
