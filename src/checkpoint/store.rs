//! The weights of a snapshot: which file holds which tensor, memory-mapped through candle.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::progress::Progress;

use super::adapter::{self, Adapter, Changes, MergedAdapter};
use super::config::{self, TextConfig};
use super::dtype::StoredDType;
use super::error::{Error, Result};
use super::fields::{Fields, read_json, shorten};
use super::header;
use super::tensor::{TensorView, prefetch};

/// Name of unsharded weights.
pub(super) const SINGLE: &str = "model.safetensors";
/// Name of the shard index.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Files beside config and weights that a converted model keeps.
const TOKEN_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
];

/// Bytes of a tensor that are hashed at a time for [`Checkpoint::fingerprint`].
pub const HASHED: usize = 4 << 20;

/// Tensors that are in the files and not part of the text decoder's arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassedOver {
    /// Vision tower and embedder.
    pub vision: usize,
    /// Audio tower and embedder.
    pub audio: usize,
    /// K and V weights of layers that share K and V.
    pub shared_kv: usize,
    /// A head that repeats the tied table, rotary buffers, and tensors outside the model.
    pub other: usize,
}

struct Located {
    /// Name in the file, prefix included.
    full_name: String,
    file: usize,
    dtype: StoredDType,
    shape: Vec<usize>,
}

/// A snapshot, opened: config read, headers checked, files mapped.
pub struct Checkpoint {
    dir: PathBuf,
    config: TextConfig,
    files: Vec<(PathBuf, MmapedSafetensors)>,
    tensors: BTreeMap<String, Located>,
    passed_over: PassedOver,
    adapters: Vec<MergedAdapter>,
    changes: Changes,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("dir", &self.dir)
            .field("tensors", &self.tensors.len())
            .field("passed_over", &self.passed_over)
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens a snapshot directory. Reads headers, no weights.
    ///
    /// Which tensors the model needs is for the plan of the model to say.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = TextConfig::read(&config::path_in(dir)?)?;
        let (paths, index) = weight_files(dir)?;
        let mut checkpoint = Self {
            dir: dir.to_path_buf(),
            config,
            files: Vec::with_capacity(paths.len()),
            tensors: BTreeMap::new(),
            passed_over: PassedOver::default(),
            adapters: Vec::new(),
            changes: Changes::new(),
        };
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (number, path) in paths.iter().enumerate() {
            let entries = header::read(path)?;
            for entry in entries {
                if let Some(first) = seen.insert(entry.name.clone(), number) {
                    return Err(Error::DuplicateTensor {
                        tensor: entry.name,
                        first: paths[first].clone(),
                        second: path.clone(),
                    });
                }
                checkpoint.place(number, path, &paths, entry)?;
            }
            // SAFETY: the mapping is read-only and its bounds come from the header that the safetensors crate checks
            // against the mapped length. Changing the file while it is mapped is outside the contract, as with every
            // memory-mapped reader.
            let mapped = unsafe { MmapedSafetensors::new(path) }.map_err(|e| Error::BadFile {
                path: path.clone(),
                what: "file",
                expected: "a safetensors file".into(),
                got: e.to_string(),
            })?;
            checkpoint.files.push((path.clone(), mapped));
        }
        if let Some(index) = index {
            index.check(&seen, &paths)?;
        }
        Ok(checkpoint)
    }

    /// The same checkpoint with these adapters merged, each into what those before it made: every tensor is then read as
    /// merged. Adapters of an earlier call are no longer. Reads no weights of the checkpoint.
    pub fn with_adapters(mut self, adapters: &[Adapter]) -> Result<Self> {
        let shapes = self.tensors.iter();
        let base = adapter::Base {
            dir: &self.dir,
            layers: self.config.num_hidden_layers,
            first_shared: self.config.first_shared(),
            shapes: shapes.map(|(n, t)| (n.as_str(), t.shape.as_slice())).collect(),
        };
        let (changes, merged) = adapter::merge(adapters, &base)?;
        (self.changes, self.adapters) = (changes, merged);
        Ok(self)
    }

    /// The adapters that are merged, in their order.
    pub fn adapters(&self) -> &[MergedAdapter] {
        &self.adapters
    }

    /// Whether adapters change a text tensor.
    pub fn is_adapted(&self, name: &str) -> bool {
        self.changes.contains_key(name)
    }

    /// Files a tensor under the text decoder or counts it as passed over.
    fn place(
        &mut self,
        file: usize,
        path: &Path,
        paths: &[PathBuf],
        entry: header::Entry,
    ) -> Result<()> {
        let name = match classify(&entry.name, self.config.first_shared()) {
            Class::Text(name) => name.to_string(),
            Class::Vision => return count(&mut self.passed_over.vision),
            Class::Audio => return count(&mut self.passed_over.audio),
            Class::SharedKv => return count(&mut self.passed_over.shared_kv),
            Class::Other => return count(&mut self.passed_over.other),
        };
        let dtype =
            StoredDType::from_name(&entry.dtype).ok_or_else(|| Error::UnsupportedDtype {
                path: path.to_path_buf(),
                tensor: entry.name.clone(),
                got: entry.dtype.clone(),
            })?;
        let located = Located {
            full_name: entry.name,
            file,
            dtype,
            shape: entry.shape,
        };
        match self.tensors.insert(name.clone(), located) {
            None => Ok(()),
            Some(first) => Err(Error::DuplicateTensor {
                tensor: name,
                first: paths[first.file].clone(),
                second: path.to_path_buf(),
            }),
        }
    }

    /// The snapshot directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The text decoder's configuration.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// Whether there is a text tensor of that name (without prefix).
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of the text tensors without prefix, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a text tensor as the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// A text tensor by its name without prefix. An absent one, or another shape than `expect`, is an error.
    pub fn tensor(&self, name: &str, expect: &[usize]) -> Result<TensorView<'_>> {
        let Some((key, located)) = self.tensors.get_key_value(name) else {
            return Err(Error::MissingTensor {
                dir: self.dir.clone(),
                tensor: name.to_string(),
                expected: expect.to_vec(),
            });
        };
        if located.shape != expect {
            return Err(Error::WrongShape {
                path: self.files[located.file].0.clone(),
                tensor: located.full_name.clone(),
                expected: expect.to_vec(),
                got: located.shape.clone(),
            });
        }
        self.view(key, located)
    }

    fn view<'a>(&'a self, name: &'a str, located: &'a Located) -> Result<TensorView<'a>> {
        let (path, file) = &self.files[located.file];
        let elements = located.shape.iter().product::<usize>();
        let bytes = file.get(&located.full_name).map(|v| v.data()).ok();
        // The header was read twice, once by us and once by candle: a file replaced in between is seen here.
        let bytes = bytes.filter(|b| b.len() == elements * located.dtype.size());
        let bytes = bytes.ok_or_else(|| Error::BadTensor {
            path: path.clone(),
            tensor: located.full_name.clone(),
            what: "size",
            expected: format!(
                "{} bytes, as when the file was opened",
                elements * located.dtype.size()
            ),
            got: "another".into(),
        })?;
        Ok(TensorView {
            name,
            shape: located.shape.clone(),
            dtype: located.dtype,
            bytes,
            change: self.changes.get(name),
        })
    }

    /// How many tensors of the files are not used.
    pub fn passed_over(&self) -> &PassedOver {
        &self.passed_over
    }

    /// Bytes of all text tensors.
    pub fn text_bytes(&self) -> u64 {
        let bytes = |t: &Located| (t.shape.iter().product::<usize>() * t.dtype.size()) as u64;
        self.tensors.values().map(bytes).sum()
    }

    /// The weight files, in name order.
    pub fn weight_files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Paths of the tokenizer, chat template, generation and model configuration files that exist.
    pub fn token_files(&self) -> Vec<PathBuf> {
        let paths = TOKEN_FILES.iter().map(|name| self.dir.join(name));
        paths.filter(|path| path.is_file()).collect()
    }

    /// SHA-256, in hex, of config.json and of every text tensor's name, dtype, shape and bytes in name order: the same
    /// however the tensors are sharded and prefixed. The bytes of a tensor enter as the SHA-256 of each [`HASHED`] bytes of it,
    /// so that all threads can work. Reads every weight once. With adapters, the SHA-256 of that and of each adapter's weights
    /// and config in their order.
    pub fn fingerprint(&self, progress: &dyn Progress) -> Result<String> {
        let path = config::path_in(&self.dir)?;
        let config = std::fs::read(&path).map_err(|source| Error::Io { path, source })?;
        let mut hash = Sha256::new();
        hash.update((config.len() as u64).to_le_bytes());
        hash.update(&config);
        progress.begin("hash", self.text_bytes());
        let views = self.tensors.iter();
        let views: Vec<TensorView<'_>> = views
            .map(|(name, located)| self.view(name, located))
            .collect::<Result<_>>()?;
        let parts = views.iter().flat_map(|v| {
            let parts = v.file_bytes().chunks(HASHED).enumerate();
            parts.map(|(i, part)| (v.name, i, part))
        });
        let parts: Vec<(&str, usize, &[u8])> = parts.collect();
        let digests: Vec<[u8; 32]> = parts
            .into_par_iter()
            .map(|(name, i, part)| {
                if i == 0 {
                    progress.item(name);
                }
                prefetch(part);
                let digest = Sha256::digest(part).into();
                progress.advance(part.len() as u64);
                digest
            })
            .collect();
        let mut digests = digests.iter();
        for view in &views {
            let head = format!("{}\0{}\0{:?}\0", view.name, view.dtype().name(), view.shape);
            hash.update((head.len() as u64).to_le_bytes());
            hash.update(head);
            let count = view.stored_bytes().div_ceil(HASHED);
            digests.by_ref().take(count).for_each(|d| hash.update(d));
        }
        progress.end();
        let base = adapter::hex(&hash.finalize());
        if self.adapters.is_empty() {
            return Ok(base);
        }
        let mut hash = Sha256::new_with_prefix(base);
        for merged in &self.adapters {
            hash.update(&merged.about.weights_sha256);
            hash.update(&merged.about.config_sha256);
        }
        Ok(adapter::hex(&hash.finalize()))
    }
}

fn count(counter: &mut usize) -> Result<()> {
    *counter += 1;
    Ok(())
}

enum Class<'a> {
    Text(&'a str),
    Vision,
    Audio,
    SharedKv,
    Other,
}

/// What a full tensor name is. `first_shared` is the first layer without K and V of its own.
fn classify(full_name: &str, first_shared: usize) -> Class<'_> {
    let Some(inner) = full_name.strip_prefix("model.") else {
        return Class::Other;
    };
    let name = inner.strip_prefix("language_model.").unwrap_or(inner);
    let first = name.split('.').next().unwrap_or(name);
    if name.len() == inner.len() {
        if first.contains("vision") {
            return Class::Vision;
        }
        if first.contains("audio") {
            return Class::Audio;
        }
    }
    if name.ends_with("inv_freq") || name.ends_with(".embed_scale") {
        return Class::Other;
    }
    let layer = name
        .strip_prefix("layers.")
        .and_then(|rest| rest.split_once('.'));
    if let Some((
        number,
        "self_attn.k_proj.weight" | "self_attn.v_proj.weight" | "self_attn.k_norm.weight",
    )) = layer
        && number.parse::<usize>().is_ok_and(|n| n >= first_shared)
    {
        return Class::SharedKv;
    }
    Class::Text(name)
}

/// The shard index: which file should hold which tensor.
struct Index {
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
            let file = value.as_str().filter(|f| is_plain_name(f));
            let file = file.ok_or_else(|| {
                map.invalid(
                    tensor,
                    "the name of a file beside the index",
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

    /// Every tensor is where the index says. Tensors that the index does not list are accepted.
    fn check(&self, seen: &BTreeMap<String, usize>, paths: &[PathBuf]) -> Result<()> {
        for (tensor, shard) in &self.files {
            let at = seen.get(tensor).and_then(|file| paths[*file].file_name());
            if at.is_none_or(|name| name != shard.as_str()) {
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

/// A file name without directories.
fn is_plain_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|f| f == name)
}

/// Names of the shards that an index file lists, sorted, each once.
pub(super) fn shard_names(index: &Path) -> Result<Vec<String>> {
    let index = Index::read(index.to_path_buf())?;
    let names: std::collections::BTreeSet<String> = index.files.into_values().collect();
    Ok(names.into_iter().collect())
}

/// Whether every weight file of a snapshot is there.
pub(super) fn has_weights(dir: &Path) -> bool {
    weight_files(dir).is_ok()
}

/// The weight files of a snapshot: `model.safetensors`, or the shards of its index.
fn weight_files(dir: &Path) -> Result<(Vec<PathBuf>, Option<Index>)> {
    let single = dir.join(SINGLE);
    if single.is_file() {
        return Ok((vec![single], None));
    }
    let missing = |file: String, hint: &str| Error::MissingFile {
        dir: dir.to_path_buf(),
        file,
        hint: hint.into(),
    };
    let path = dir.join(INDEX);
    if !path.is_file() {
        let hint = "only safetensors weights are read";
        return Err(missing(format!("{SINGLE} and no {INDEX}"), hint));
    }
    let shards = shard_names(&path)?;
    for shard in &shards {
        if !dir.join(shard).is_file() {
            return Err(missing(
                shard.clone(),
                "the index names it; fetch the whole snapshot",
            ));
        }
    }
    let index = Index::read(path)?;
    Ok((shards.iter().map(|s| dir.join(s)).collect(), Some(index)))
}
