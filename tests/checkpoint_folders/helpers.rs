//! What the tests of folders share: folders made from fixtures, what a checkpoint goes on with, what an error says.

pub use std::path::Path;

pub use gemma_coreml::checkpoint::{Checkpoint, Error, Notice};
use gemma_coreml::gemma::reference::{Keep, Reference};
pub use gemma_coreml::gemma::{self, ModelPlan};
pub use gemma_coreml::progress::NoProgress;
pub use serde_json::{Value, json};
pub use tempfile::TempDir;

pub use crate::snapshots::{INDEX, Raw, SINGLE, find, fixture, read_raw, serialize, snapshot};

/// `Once there was`, as nano's tokenizer has it.
pub const PROMPT: [u32; 3] = [704, 671, 628];
/// What nano goes on with.
pub const NANO: [u32; 4] = [462, 663, 688, 659];
/// What it goes on with when every row of the head is shifted by one.
pub const SHIFTED: [u32; 4] = [463, 131, 448, 114];
pub const EMBED: &str = "model.language_model.embed_tokens.weight";

pub fn checked(dir: &Path) -> Result<Checkpoint, gemma::Error> {
    let checkpoint = Checkpoint::open(dir)?;
    ModelPlan::new(checkpoint.config())?.check(&checkpoint)?;
    Ok(checkpoint)
}

/// The first greedy ids after [`PROMPT`].
pub fn goes_on(dir: &Path) -> Vec<u32> {
    let checkpoint = checked(dir).unwrap_or_else(|e| panic!("{e}"));
    greedy(&checkpoint, &PROMPT)
}

pub fn greedy(checkpoint: &Checkpoint, prompt: &[u32]) -> Vec<u32> {
    let model = Reference::load(checkpoint).unwrap();
    let mut cache = model.cache();
    let (mut next, mut ids) = (prompt.to_vec(), Vec::new());
    for _ in 0..NANO.len() {
        let out = model.forward(&next, &mut cache, Keep::default()).unwrap();
        let logits = &out.logits[0];
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        next = vec![best.unwrap() as u32];
        ids.extend(&next);
    }
    ids
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

pub fn nano() -> Vec<Raw> {
    read_raw(&fixture("nano").join(SINGLE))
}

pub fn edited(edit: impl FnOnce(&mut Vec<Raw>)) -> TempDir {
    let mut tensors = nano();
    edit(&mut tensors);
    snapshot("nano", &[(SINGLE, serialize(&tensors))])
}

pub fn renamed(of: &str, name: impl Fn(&str) -> String) -> TempDir {
    let mut tensors = read_raw(&fixture(of).join(SINGLE));
    tensors.iter_mut().for_each(|t| t.name = name(&t.name));
    snapshot(of, &[(SINGLE, serialize(&tensors))])
}

pub fn with_config(edit: impl FnOnce(&mut Value)) -> TempDir {
    let dir = snapshot("nano", &[]);
    std::fs::copy(fixture("nano").join(SINGLE), dir.path().join(SINGLE)).unwrap();
    set_config(dir.path(), edit);
    dir
}

pub fn set_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

pub fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}
