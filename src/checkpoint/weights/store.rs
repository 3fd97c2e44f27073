//! The weights of a snapshot: which file holds which tensor, memory-mapped through candle.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;

use crate::checkpoint::adapter::{self, Adapter, Changes, MergedAdapter};
use crate::checkpoint::config::{self, QuantizationConfig, TextConfig};
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::folder;
use crate::checkpoint::notice::Notice;
use crate::checkpoint::pointer::{check_file, or_explained};
use crate::checkpoint::stored::{Coded, Raw, StoredDType, header};
use crate::checkpoint::tensor::TensorView;

use super::coded::{self, Found, Part};
use super::files::{self, WeightFiles};
use super::head;
use super::located::{ActivationScales, Located};
use super::names::{self, Class, EMBED, HEAD};

/// Files beside config and weights that a converted model keeps.
const TOKEN_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
];

/// Tensors that are in the files and not part of the text decoder's arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassedOver {
    /// Vision tower and embedder.
    pub vision: usize,
    /// Audio tower and embedder.
    pub audio: usize,
    /// K and V weights of layers that share K and V.
    pub shared_kv: usize,
    /// A head that repeats the tied table, and constants that are computed from the config.
    pub other: usize,
}

/// A snapshot, opened: config read, headers checked, files mapped.
pub struct Checkpoint {
    pub(super) dir: PathBuf,
    pub(super) config: TextConfig,
    pub(super) files: Vec<(PathBuf, MmapedSafetensors)>,
    pub(super) tensors: BTreeMap<String, Located>,
    /// Full names that are none of a Gemma 4, with their files.
    pub(super) unknown: Vec<(String, usize)>,
    /// A head beside no embedding table.
    pub(super) lone_head: Option<String>,
    /// Names of weights in the folder that are not read.
    pub(super) unread: Vec<String>,
    /// Parts of weights, by the weight, until all are known.
    parts: BTreeMap<String, Vec<Found>>,
    /// By tensor of the linear layer's weight.
    pub(super) activations: BTreeMap<String, ActivationScales>,
    passed_over: PassedOver,
    pub(super) adapters: Vec<MergedAdapter>,
    changes: Changes,
    notices: Vec<Notice>,
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
    /// Opens a snapshot directory. Reads headers, sizes and steps of activations of weights in integers, and weights only where
    /// there is a head to compare with the embedding table.
    ///
    /// Which tensors the model needs is for the plan of the model to say: see [`check`](Self::check).
    pub fn open(dir: &Path) -> Result<Self> {
        let config = TextConfig::read(&config::path_in(dir)?)?;
        let WeightFiles {
            paths,
            index,
            unread,
        } = files::weight_files(dir)?;
        let mut checkpoint = Self {
            dir: dir.to_path_buf(),
            config,
            files: Vec::with_capacity(paths.len()),
            tensors: BTreeMap::new(),
            unknown: Vec::new(),
            lone_head: None,
            unread,
            parts: BTreeMap::new(),
            activations: BTreeMap::new(),
            passed_over: PassedOver::default(),
            adapters: Vec::new(),
            changes: Changes::new(),
            notices: Vec::new(),
        };
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (number, path) in paths.iter().enumerate() {
            let entries = header::read(path).map_err(|e| or_explained(path, e))?;
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
        for path in checkpoint.token_paths() {
            if folder::present(&path)? {
                check_file(&path)?;
            }
        }
        checkpoint.settle_codes()?;
        checkpoint.settle_head()?;
        checkpoint.look_around();
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
            shapes: shapes
                .map(|(n, t)| (n.as_str(), t.shape.as_slice()))
                .collect(),
        };
        let (changes, merged) = adapter::merge(adapters, &base)?;
        (self.changes, self.adapters) = (changes, merged);
        self.notices
            .retain(|n| !matches!(n, Notice::OffGrid { .. }));
        let rounded = self.config.quantization != QuantizationConfig::Absent;
        let on_grid = |name: &String| {
            let tensor = self.tensors.get(name);
            rounded && tensor.is_some_and(|t| t.codes.is_some() || t.shape.len() == 2)
        };
        let changed: Vec<String> = self
            .changes
            .keys()
            .filter(|n| on_grid(n))
            .cloned()
            .collect();
        if !changed.is_empty() {
            self.notices.push(Notice::OffGrid {
                tensors: folder::listed(&changed),
            });
        }
        let folder = |path: &Path| path.parent().and_then(|dir| dir.canonicalize().ok());
        let applied: Vec<_> = adapters.iter().map(|a| folder(a.path())).collect();
        self.notices.retain(|notice| match notice {
            Notice::AdapterNotApplied { path, .. } => !applied.contains(&folder(path)),
            _ => true,
        });
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

    /// Files a tensor under the text decoder, counts it as passed over, or keeps its name as unknown.
    fn place(
        &mut self,
        file: usize,
        path: &Path,
        paths: &[PathBuf],
        entry: header::Entry,
    ) -> Result<()> {
        let part = coded::split(&entry, &self.config.quantization);
        let weight = match &part {
            Some((weight, part)) if *part != Part::Cache => weight,
            _ => &entry.name,
        };
        let counted = &mut self.passed_over;
        let (name, counter) = match names::classify(weight, self.config.first_shared()) {
            Class::Text(_) if matches!(part, Some((_, Part::Cache))) => {
                (String::new(), Some(&mut counted.other))
            }
            Class::Text(name) => (name.to_string(), None),
            Class::Head => (HEAD.to_string(), None),
            Class::Vision => (String::new(), Some(&mut counted.vision)),
            Class::Audio => (String::new(), Some(&mut counted.audio)),
            Class::SharedKv => (String::new(), Some(&mut counted.shared_kv)),
            Class::Buffer => (String::new(), Some(&mut counted.other)),
            Class::Unknown => {
                self.unknown.push((entry.name, file));
                return Ok(());
            }
        };
        if let Some(counter) = counter {
            *counter += 1;
            return Ok(());
        }
        let twice = |first: usize, tensor: String| Error::DuplicateTensor {
            tensor,
            first: paths[first].clone(),
            second: path.to_path_buf(),
        };
        if let Some((_, part)) = part {
            let parts = self.parts.entry(name).or_default();
            if let Some(first) = parts
                .iter()
                .find(|f| f.part == part && part != Part::Unread)
            {
                return Err(twice(first.file, entry.name));
            }
            parts.push(Found { part, file, entry });
            return Ok(());
        }
        let dtype =
            StoredDType::from_name(&entry.dtype).ok_or_else(|| Error::UnsupportedDtype {
                path: path.to_path_buf(),
                tensor: entry.name.clone(),
                got: entry.dtype.clone(),
                hint: names::dtype_hint(&entry.dtype).map(str::to_string),
            })?;
        let located = Located {
            full_name: entry.name,
            file,
            dtype,
            shape: entry.shape,
            codes: None,
        };
        match self.tensors.insert(name.clone(), located) {
            None => Ok(()),
            Some(first) => Err(twice(first.file, name)),
        }
    }

    /// Puts the parts of weights together.
    fn settle_codes(&mut self) -> Result<()> {
        let files = coded::Files {
            dir: &self.dir,
            config: &self.config,
            files: &self.files,
        };
        for (name, numbers) in &self.tensors {
            files.numbers(name, numbers)?;
        }
        let mut made = Vec::new();
        for (name, parts) in std::mem::take(&mut self.parts) {
            let (located, scales) = files.weight(&name, parts, self.tensors.get(&name))?;
            made.push((name, located, scales));
        }
        for (name, located, scales) in made {
            if let Some(scales) = scales {
                self.activations.insert(name.clone(), scales);
            }
            self.tensors.insert(name, located);
        }
        Ok(())
    }

    /// Decides what the head is. One that repeats the embedding table is passed over, one with other values stays, whatever
    /// the config says: transformers ties neither when both are in the files and differ.
    fn settle_head(&mut self) -> Result<()> {
        let tied = self.config.tie_word_embeddings;
        let shape = vec![self.config.vocab_size, self.config.hidden_size];
        let Some(head) = self.tensors.get(HEAD) else {
            return match tied {
                true => Ok(()),
                false => Err(self.missing(HEAD, &shape)),
            };
        };
        let own = match self.tensors.get(EMBED) {
            None => {
                self.lone_head = Some(head.full_name.clone());
                false
            }
            Some(table) if table.shape == shape => {
                let head = self.tensor(HEAD, &shape)?;
                !head::same_values(&head, &self.view(EMBED, table)?)?
            }
            // Another shape is for `check` to tell.
            Some(_) => true,
        };
        self.config.tie_word_embeddings = !own;
        if own && tied {
            self.notices.push(Notice::OwnHead {
                tensor: head.full_name.clone(),
            });
        }
        if !own {
            self.tensors.remove(HEAD);
            self.passed_over.other += 1;
        }
        Ok(())
    }

    /// Notes what lies in the folder and is not read.
    fn look_around(&mut self) {
        if let Some(adapter) = folder::adapter(&self.dir) {
            self.notices.push(Notice::AdapterNotApplied {
                path: adapter.path,
                base: adapter.base,
            });
        }
        if let QuantizationConfig::CompressedTensors(config) = &self.config.quantization
            && config.rounds_cache
        {
            self.notices.push(Notice::CacheNotRounded {
                dir: self.dir.clone(),
            });
        }
        if !self.unread.is_empty() {
            self.notices.push(Notice::WeightsNotRead {
                dir: self.dir.clone(),
                read: self.read_names(),
                unread: folder::listed(&self.unread),
            });
        }
    }

    /// Names of the weight files that are read, for a message.
    pub(super) fn read_names(&self) -> String {
        let names = self.files.iter().filter_map(|(path, _)| path.file_name());
        let names: Vec<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
        folder::listed(&names)
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
            return Err(self.missing(name, expect));
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

    pub(super) fn view<'a>(
        &'a self,
        name: &'a str,
        located: &'a Located,
    ) -> Result<TensorView<'a>> {
        let [of_values, of_steps] = located.bytes();
        let bytes = self.bytes(located.file, &located.full_name, of_values)?;
        let raw = match &located.codes {
            None => Raw::Plain {
                dtype: located.dtype,
                bytes,
            },
            Some(codes) => Raw::Coded(Coded {
                grid: codes.layout.grid,
                biased: codes.layout.biased,
                columns: located.columns(),
                row_bytes: codes.layout.row_bytes,
                codes: bytes,
                step_dtype: located.dtype,
                steps: self.bytes(codes.steps_file, &codes.steps, of_steps)?,
            }),
        };
        Ok(TensorView {
            name,
            shape: located.shape.clone(),
            raw,
            change: self.changes.get(name),
        })
    }

    /// The data of a tensor by its full name.
    fn bytes(&self, file: usize, full_name: &str, size: usize) -> Result<&[u8]> {
        let (path, file) = &self.files[file];
        let bytes = file.get(full_name).map(|v| v.data()).ok();
        // The header was read twice, once by us and once by candle: a file replaced in between is seen here.
        let bytes = bytes.filter(|b| b.len() == size);
        bytes.ok_or_else(|| Error::BadTensor {
            path: path.clone(),
            tensor: full_name.to_string(),
            what: "size",
            expected: format!("{size} bytes, as when the file was opened"),
            got: "another".into(),
        })
    }

    /// How many tensors of the files are not used.
    pub fn passed_over(&self) -> &PassedOver {
        &self.passed_over
    }

    /// What a user should know about the folder, though it is read all the same.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// Bytes of all text tensors.
    pub fn text_bytes(&self) -> u64 {
        let bytes = self.tensors.values().flat_map(Located::bytes);
        bytes.map(|bytes| bytes as u64).sum()
    }

    /// The weight files, in name order.
    pub fn weight_files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Paths of the tokenizer, chat template, generation and model configuration files that exist.
    pub fn token_files(&self) -> Vec<PathBuf> {
        let paths = self.token_paths();
        paths.into_iter().filter(|path| path.is_file()).collect()
    }

    fn token_paths(&self) -> Vec<PathBuf> {
        TOKEN_FILES.iter().map(|name| self.dir.join(name)).collect()
    }
}
