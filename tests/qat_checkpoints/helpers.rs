//! Fixtures, edited; what is read of them.

use std::path::{Path, PathBuf};

pub use gemma_coreml::checkpoint::{Checkpoint, Grid, Notice};
use gemma_coreml::gemma::reference::{Keep, Reference};
pub use gemma_coreml::gemma::{self, ModelPlan};
pub use gemma_coreml::progress::NoProgress;
pub use serde_json::{Value, json};
pub use tempfile::TempDir;

pub use crate::snapshots::{INDEX, Raw, SINGLE, find, read_raw, serialize};

pub const PREFIX: &str = "model.language_model.";
pub const UP: &str = "layers.0.mlp.up_proj.weight";

pub fn qat(name: &str) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/qat");
    data.join(name)
}

pub fn config_of(name: &str) -> Value {
    let bytes = std::fs::read(qat(name).join("config.json")).expect("a config");
    serde_json::from_slice(&bytes).expect("JSON")
}

pub fn written(config: &Value, tensors: &[Raw]) -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    let put =
        |name: &str, bytes: Vec<u8>| std::fs::write(dir.path().join(name), bytes).expect("written");
    put("config.json", config.to_string().into_bytes());
    put(SINGLE, serialize(tensors));
    dir
}

/// A fixture with its config and its tensors edited.
pub fn edited(of: &str, edit: impl FnOnce(&mut Value, &mut Vec<Raw>)) -> TempDir {
    let (mut config, mut tensors) = (config_of(of), read_raw(&qat(of).join(SINGLE)));
    edit(&mut config, &mut tensors);
    written(&config, &tensors)
}

pub fn checked(dir: &Path) -> Result<Checkpoint, gemma::Error> {
    let checkpoint = Checkpoint::open(dir)?;
    ModelPlan::new(checkpoint.config())?.check(&checkpoint)?;
    Ok(checkpoint)
}

pub fn opened(dir: &Path) -> Checkpoint {
    checked(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

pub fn refused(dir: &Path) -> String {
    match checked(dir) {
        Ok(_) => panic!("{} was read", dir.display()),
        Err(e) => e.to_string(),
    }
}

/// Asserts that a message has these parts.
#[track_caller]
pub fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

pub fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let shape = checkpoint.shape(name).expect(name).to_vec();
    let view = checkpoint.tensor(name, &shape).expect(name);
    let mut out = vec![0.0; view.len()];
    view.read_f32(0..view.len(), &mut out)
        .unwrap_or_else(|e| panic!("{e}"));
    out
}

pub fn grid(checkpoint: &Checkpoint, name: &str) -> Option<Grid> {
    let shape = checkpoint.shape(name).expect(name).to_vec();
    checkpoint.tensor(name, &shape).expect(name).grid()
}

pub fn codes(checkpoint: &Checkpoint, name: &str) -> Vec<i8> {
    let shape = checkpoint.shape(name).expect(name).to_vec();
    let view = checkpoint.tensor(name, &shape).expect(name);
    let mut out = vec![0; view.len()];
    view.read_codes(0..view.len(), &mut out)
        .unwrap_or_else(|e| panic!("{e}"));
    out
}

pub fn steps(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let shape = checkpoint.shape(name).expect(name).to_vec();
    let view = checkpoint.tensor(name, &shape).expect(name);
    let mut out = vec![0.0; view.len() / view.grid().expect("a grid").block];
    view.read_steps(0..out.len(), &mut out)
        .unwrap_or_else(|e| panic!("{e}"));
    out
}

/// Ids and the logits after the last so many of them, as a reference file has them.
pub fn stored(path: &Path) -> (Vec<u32>, Vec<f32>) {
    let tensors = read_raw(path);
    let words = |name: &str| {
        let found = tensors.iter().find(|t| t.name == name).expect(name);
        found.bytes.as_chunks::<4>().0.to_vec()
    };
    let ids = |name: &str| words(name).into_iter().map(u32::from_le_bytes);
    let generated: Vec<u32> = ids("p0.generated_ids").collect();
    let ids = ids("p0.prompt_ids").chain(generated[..generated.len() - 1].iter().copied());
    let logits = words("p0.logits").into_iter().map(f32::from_le_bytes);
    (ids.collect(), logits.collect())
}

/// Logits of the f32 forward for the last `count` of these ids.
pub fn logits(checkpoint: &Checkpoint, ids: &[u32], count: usize) -> Vec<f32> {
    let model = Reference::load(checkpoint).unwrap();
    let mut cache = model.cache();
    let (first, rest) = ids.split_at(ids.len() + 1 - count);
    let mut all = model
        .forward(first, &mut cache, Keep::default())
        .unwrap()
        .logits[0]
        .clone();
    for id in rest {
        let out = model.forward(&[*id], &mut cache, Keep::default()).unwrap();
        all.extend(&out.logits[0]);
    }
    all
}

/// `max |a - b| / max |b|`.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let difference = a
        .iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    difference / b.iter().fold(0.0, |m, v| v.abs().max(m))
}

/// Steps of activations, all 0: nothing is rounded.
pub fn without_activations(tensors: &mut [Raw]) {
    let scales = tensors
        .iter_mut()
        .filter(|t| t.name.ends_with("_activation_scale"));
    scales.for_each(|t| t.bytes.fill(0));
}

/// Integers as bits, lowest first, each row filled up to a multiple of `word` bits: one bit at a time.
pub fn packed(codes: &[i8], columns: usize, bits: usize, biased: bool, word: usize) -> Vec<u8> {
    let row = (columns * bits).div_ceil(word) * word / 8;
    let mut bytes = vec![0u8; codes.len() / columns * row];
    for (i, code) in codes.iter().enumerate() {
        let stored = i16::from(*code) + if biased { 1 << (bits - 1) } else { 0 };
        for bit in 0..bits {
            let at = (i % columns) * bits + bit;
            let value = (stored >> bit & 1) as u8;
            bytes[i / columns * row + at / 8] |= value << (at % 8);
        }
    }
    bytes
}

pub fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn sizes(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
