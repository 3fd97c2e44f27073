//! Fixtures, damaged copies of them, and directories as maps.

use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::convert::{Error, Options, Report, convert};
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::Recipe;
use half::{bf16, f16};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub use crate::common::fixtures::fixture;

/// Names of the checkpoints of `fixtures/` that have references.
pub fn fixtures() -> Vec<String> {
    crate::common::fixtures::fixtures("reference.safetensors")
        .iter()
        .map(|dir| dir.file_name().unwrap().to_string_lossy().into_owned())
        .collect()
}

/// Every built-in way of storing weights that needs no statistics, in four chunks; `tests/recipes` has the other layouts
/// and functions.
pub fn swa4_recipes() -> Vec<Recipe> {
    let form = |r: &Recipe| format!("{:?}", r.graph_options(64));
    let plain = form(&Recipe::load("swa4-int4").unwrap());
    let mut recipes = Recipe::list().unwrap();
    recipes.retain(|r| form(r) == plain && r.quantize.calibrated_by().is_none());
    assert!(recipes.len() >= 14, "{}", recipes.len());
    recipes
}

/// Converts with a built-in recipe.
pub fn run(model: &Path, recipe: &str, out: &Path, options: &Options) -> Result<Report, Error> {
    run_recipe(model, &Recipe::load(recipe).unwrap(), out, options)
}

/// Converts with any recipe.
pub fn run_recipe(
    model: &Path,
    recipe: &Recipe,
    out: &Path,
    options: &Options,
) -> Result<Report, Error> {
    let checkpoint = Checkpoint::open(model)?;
    convert(&checkpoint, recipe, out, options, &NoProgress)
}

/// Two threads and a small context, so that tests are quick.
pub fn options() -> Options {
    Options {
        threads: Some(2),
        context: Some(64),
        ..Options::default()
    }
}

/// Every file below `dir` with its bytes.
pub fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let list = gemma_coreml::bundle::files::list(dir).unwrap();
    list.into_iter()
        .map(|f| (f.clone(), fs::read(dir.join(&f)).unwrap()))
        .collect()
}

/// Asserts that two directories hold the same files, naming the first that differs.
pub fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (contents(a), contents(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(bytes == &b[name], "{name} differs");
    }
}

/// Names in a directory, sorted.
pub fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Copies a checkpoint so that it can be damaged.
pub fn copy_model(name: &str, to: &Path) -> PathBuf {
    let target = to.join(name);
    fs::create_dir_all(&target).unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().starts_with("reference") {
            fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
        }
    }
    target
}

/// A safetensors file taken apart: u64 LE header length, JSON header, data.
pub struct Safetensors {
    pub header: Map<String, Value>,
    pub data: Vec<u8>,
    path: PathBuf,
}

impl Safetensors {
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        Self {
            header,
            data: bytes[8 + length..].to_vec(),
            path: path.to_path_buf(),
        }
    }

    pub fn write(&self) {
        let header = serde_json::to_vec(&self.header).unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(&self.data);
        fs::write(&self.path, bytes).unwrap();
    }

    /// The header's key of a tensor whose name ends so.
    pub fn key(&self, suffix: &str) -> String {
        self.header
            .keys()
            .find(|k| k.ends_with(suffix))
            .unwrap()
            .clone()
    }

    /// Overwrites element `index` of a tensor, rounded to the tensor's format.
    pub fn set(&mut self, suffix: &str, index: usize, value: f32) {
        let entry = &self.header[&self.key(suffix)];
        let start = entry["data_offsets"][0].as_u64().unwrap() as usize;
        let bytes = match entry["dtype"].as_str().unwrap() {
            "BF16" => bf16::from_f32(value).to_le_bytes().to_vec(),
            "F16" => f16::from_f32(value).to_le_bytes().to_vec(),
            "F32" => value.to_le_bytes().to_vec(),
            other => panic!("{other}"),
        };
        let at = start + index * bytes.len();
        self.data[at..at + bytes.len()].copy_from_slice(&bytes);
    }
}

/// Copies `name`, lets `change` edit its only weight file, and gives the copy's path.
pub fn damaged(name: &str, to: &Path, change: impl FnOnce(&mut Safetensors)) -> PathBuf {
    let model = copy_model(name, to);
    let mut file = Safetensors::read(&model.join("model.safetensors"));
    change(&mut file);
    file.write();
    model
}
