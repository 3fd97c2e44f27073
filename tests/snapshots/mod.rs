//! Snapshots made from the fixtures by editing their safetensors files.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

#[path = "../common/fixtures.rs"]
pub mod fixtures;
pub use fixtures::fixture;

pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";

/// A tensor of a safetensors file: full name, dtype, shape, bytes.
#[derive(Clone)]
pub struct Raw {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Raw {
    pub fn new(name: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            dtype: dtype.into(),
            shape: shape.to_vec(),
            bytes,
        }
    }
}

pub fn read_raw(path: &Path) -> Vec<Raw> {
    let bytes = std::fs::read(path).expect("a readable file");
    let (header, data) = split(&bytes);
    let entries = header.as_object().expect("an object");
    let of = |value: &Value| -> Vec<usize> {
        let list = value.as_array().expect("a list");
        list.iter()
            .map(|n| n.as_u64().expect("a number") as usize)
            .collect()
    };
    let tensors = entries.iter().filter(|(name, _)| *name != "__metadata__");
    tensors
        .map(|(name, e)| {
            let offsets = of(&e["data_offsets"]);
            Raw {
                name: name.clone(),
                dtype: e["dtype"].as_str().expect("a dtype").into(),
                shape: of(&e["shape"]),
                bytes: data[offsets[0]..offsets[1]].to_vec(),
            }
        })
        .collect()
}

pub fn split(bytes: &[u8]) -> (Value, &[u8]) {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    (header, &bytes[8 + length..])
}

pub fn assemble(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

pub fn serialize(tensors: &[Raw]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for t in tensors {
        let begin = data.len();
        data.extend(&t.bytes);
        let entry =
            json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [begin, data.len()]});
        header.insert(t.name.clone(), entry);
    }
    assemble(&Value::Object(header).to_string(), &data)
}

/// A snapshot with a fixture's config and the given weight files.
pub fn snapshot(config: &str, files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    std::fs::copy(
        fixture(config).join("config.json"),
        dir.path().join("config.json"),
    )
    .expect("a copy");
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).expect("a written file");
    }
    dir
}

/// e4b-tiny with its one file edited.
pub fn edited(edit: impl FnOnce(&mut Vec<Raw>)) -> TempDir {
    let mut tensors = read_raw(&fixture("e4b-tiny").join(SINGLE));
    edit(&mut tensors);
    snapshot("e4b-tiny", &[(SINGLE, serialize(&tensors))])
}

pub fn find<'a>(tensors: &'a mut [Raw], suffix: &str) -> &'a mut Raw {
    let found = tensors.iter_mut().find(|t| t.name.ends_with(suffix));
    found.unwrap_or_else(|| panic!("no {suffix}"))
}
