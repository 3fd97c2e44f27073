//! Which files of a folder hold the weights.
//!
//! As in transformers: `model.safetensors` where there is one, otherwise the shards of the index. A whole set
//! `model-0000i-of-0000n.safetensors` without an index is read as well.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::fields::{Fields, read_json, shorten};
use crate::checkpoint::folder::{self, listed, present};

/// Name of unsharded weights.
pub(in crate::checkpoint) const SINGLE: &str = "model.safetensors";
/// Name of the shard index.
pub(in crate::checkpoint) const INDEX: &str = "model.safetensors.index.json";
/// Endings of the names of weight files that are not read.
const OTHERS: [&str; 12] = [
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".ggml",
    ".npz",
    ".h5",
    ".msgpack",
    ".onnx",
    ".tflite",
    ".litertlm",
];

/// The weight files of a folder.
pub(super) struct WeightFiles {
    /// Files to read, in name order.
    pub paths: Vec<PathBuf>,
    /// The index that names them, where there is one.
    pub index: Option<Index>,
    /// Names of model weights and of an index that lie beside them and are not read.
    pub unread: Vec<String>,
}

/// Whether a folder has all the weight files that it should have.
pub(in crate::checkpoint) fn has_weights(dir: &Path) -> bool {
    weight_files(dir).is_ok()
}

/// Finds the weight files of a snapshot.
pub(super) fn weight_files(dir: &Path) -> Result<WeightFiles> {
    let single = present(&dir.join(SINGLE))?;
    let index = present(&dir.join(INDEX))?;
    let names = folder::entries(dir);
    let unread = |read: &[String]| {
        let others = names.iter().filter(|name| {
            let weights = name.starts_with("model") && name.ends_with(".safetensors");
            weights && !read.contains(name)
        });
        others.cloned().collect::<Vec<_>>()
    };
    if single {
        let index = index.then(|| INDEX.to_string()).into_iter();
        let unread = index.chain(unread(&[SINGLE.to_string()])).collect();
        return Ok(WeightFiles {
            paths: vec![dir.join(SINGLE)],
            index: None,
            unread,
        });
    }
    let (shards, index) = match index {
        true => {
            let index = Index::read(dir.join(INDEX))?;
            (index.shards(), Some(index))
        }
        false => (whole_set(dir, &names)?, None),
    };
    let mut missing = Vec::new();
    for shard in &shards {
        if !present(&dir.join(shard))? {
            missing.push(shard.clone());
        }
    }
    if !missing.is_empty() {
        return Err(Error::MissingFile {
            dir: dir.to_path_buf(),
            file: listed(&missing),
            hint: format!("{INDEX} names it; fetch the whole snapshot"),
        });
    }
    Ok(WeightFiles {
        unread: unread(&shards),
        paths: shards.iter().map(|s| dir.join(s)).collect(),
        index,
    })
}

/// The names of a set of shards without an index.
fn whole_set(dir: &Path, names: &[String]) -> Result<Vec<String>> {
    let mut sets: BTreeMap<usize, BTreeMap<usize, &String>> = BTreeMap::new();
    for name in names {
        if let Some((number, of)) = shard_number(name) {
            sets.entry(of).or_default().insert(number, name);
        }
    }
    let Some((&of, set)) = sets.first_key_value().filter(|_| sets.len() == 1) else {
        return Err(no_weights(dir, names));
    };
    if set.len() == of {
        return Ok(set.values().map(|name| (*name).clone()).collect());
    }
    let absent = (1..=of).filter(|number| !set.contains_key(number));
    let first: Vec<String> = absent.take(1).map(|n| shard_name(n, of)).collect();
    let more = of - set.len() - 1;
    Err(Error::MissingFile {
        dir: dir.to_path_buf(),
        file: match more {
            0 => listed(&first),
            more => format!("{} and {more} more of its set", listed(&first)),
        },
        hint: format!(
            "the folder has {} of {of} shards; fetch the whole snapshot",
            set.len()
        ),
    })
}

/// The name of shard `number` of `of`, counted from 1.
pub(in crate::checkpoint) fn shard_name(number: usize, of: usize) -> String {
    format!("model-{number:05}-of-{of:05}.safetensors")
}

/// `model-0000i-of-0000n.safetensors`: i and n, 1 <= i <= n.
pub(in crate::checkpoint) fn shard_number(name: &str) -> Option<(usize, usize)> {
    let numbers = name.strip_prefix("model-")?.strip_suffix(".safetensors")?;
    let (number, of) = numbers.split_once("-of-")?;
    let parse = |s: &str| -> Option<usize> {
        let digits = s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| s.parse().ok())?
    };
    let (number, of) = (parse(number)?, parse(of)?);
    (1..=of).contains(&number).then_some((number, of))
}

/// What a folder without readable weights has instead.
fn no_weights(dir: &Path, names: &[String]) -> Error {
    if let Some(error) = folder::not_a_snapshot(dir) {
        return error;
    }
    let ending = |endings: &[&str]| -> Vec<String> {
        let of = |name: &&String| endings.iter().any(|e| name.ends_with(e));
        let weights = names.iter().filter(of);
        let state = ["training_args.bin", "optimizer.", "scheduler.", "rng_state"];
        let weights = weights.filter(|n| !state.iter().any(|s| n.starts_with(s)));
        weights.cloned().collect()
    };
    let (mut there, safetensors) = (ending(&OTHERS), ending(&[".safetensors"]));
    let hint = match (there.is_empty(), safetensors.is_empty()) {
        (true, true) => "fetch the weights, or give the folder that holds them",
        (true, false) => {
            "name the weights model.safetensors, or model-00001-of-0000N.safetensors and so on, or fetch their index"
        }
        (false, _) if there.iter().any(|name| name.ends_with(".gguf")) => {
            "only safetensors weights are read: take the checkpoint that the GGUF file was made of, for Google's \
             -qat-q4_0-gguf google/gemma-4-...-it-qat-q4_0-unquantized"
        }
        (false, _) => {
            "only safetensors weights are read: save the model with `save_pretrained` of transformers"
        }
    };
    there.extend(safetensors);
    let beside = match there.is_empty() {
        true => "".into(),
        false => format!(" (there: {})", listed(&there)),
    };
    Error::MissingFile {
        dir: dir.to_path_buf(),
        file: format!("{SINGLE} and no {INDEX}{beside}"),
        hint: hint.into(),
    }
}

/// The shard index: which file should hold which tensor.
pub(super) struct Index {
    path: PathBuf,
    files: BTreeMap<String, String>,
}

impl Index {
    fn read(path: PathBuf) -> Result<Self> {
        let root = read_json(&path)?;
        let top = Fields::top(&path, &root)?;
        let map = top.object("weight_map")?.ok_or_else(|| {
            top.missing("weight_map", "an object from tensor names to file names")
        })?;
        let mut files = BTreeMap::new();
        for (tensor, value) in map.iter() {
            let file = value.as_str().filter(|f| is_below(f));
            let file = file.ok_or_else(|| {
                map.invalid(
                    tensor,
                    "the name of a file beside the index, or in a folder beside it",
                    shorten(value),
                )
            })?;
            files.insert(tensor.clone(), file.to_string());
        }
        if files.is_empty() {
            return Err(top.invalid("weight_map", "at least one tensor", "none"));
        }
        Ok(Self { path, files })
    }

    /// Names of the shards, sorted, each once.
    fn shards(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.files.values().collect();
        names.into_iter().cloned().collect()
    }

    /// Every tensor is where the index says. Tensors that the index does not list are accepted.
    pub fn check(&self, seen: &BTreeMap<String, usize>, paths: &[PathBuf]) -> Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new(""));
        for (tensor, shard) in &self.files {
            let at = seen.get(tensor).map(|file| &paths[*file]);
            if at.is_none_or(|path| *path != dir.join(shard)) {
                return Err(Error::IndexMismatch {
                    index: self.path.clone(),
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Names of the shards that an index file lists, sorted, each once.
pub(in crate::checkpoint) fn shard_names(index: &Path) -> Result<Vec<String>> {
    Index::read(index.to_path_buf()).map(|index| index.shards())
}

/// A relative path that leads nowhere but down, to a file.
fn is_below(name: &str) -> bool {
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
    let ends = name.is_empty() || name.ends_with('/') || name.contains(['\\', '\0']);
    !ends && Path::new(name).components().all(plain)
}
