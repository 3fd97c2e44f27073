//! An adapter by itself, whatever the model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::error::Result;
use super::config;
use super::files;
use super::parts::{Module, Parts};
use super::settings::{AdapterFormat, AdapterMethod, Config, Scaling};
use super::stored::{Stored, Weights};

/// An adapter, opened: its config read, its tensors named, checked to be finite, and hashed.
#[derive(Debug)]
pub struct Adapter {
    /// Its weights.
    pub(super) path: PathBuf,
    pub(super) config: Config,
    sha256: String,
    /// Tensors in the file.
    pub(super) tensors: usize,
    pub(super) modules: BTreeMap<String, Module>,
    pub(super) whole: BTreeMap<String, Stored>,
}

impl Adapter {
    /// Opens the adapter at `path`: its folder, a folder that holds one adapter, or its weights.
    ///
    /// # Errors
    /// What keeps it from being one that can be merged, whatever the model.
    pub fn open(path: &Path) -> Result<Self> {
        let place = files::Place::find(path)?;
        let config = config::read(&place.config)?;
        let path = place.weights(match config.format {
            AdapterFormat::Peft => files::PEFT_WEIGHTS,
            AdapterFormat::MlxLm => files::MLX_WEIGHTS,
        })?;
        let weights = Weights::open(&path)?;
        let tensors = weights.tensors.len();
        let Parts { modules, whole } = Parts::sort(&path, &config, weights.tensors)?;
        Ok(Self {
            path,
            config,
            sha256: weights.sha256,
            tensors,
            modules,
            whole,
        })
    }

    /// The file of its weights.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn about(&self) -> AboutAdapter {
        let mut ranks: Vec<usize> = Vec::new();
        let mut factors = self
            .modules
            .iter()
            .filter(|(_, m)| m.a.is_some())
            .peekable();
        let low_rank = factors.peek().is_some();
        for (path, _) in factors {
            ranks.push(self.config.scaling.of(path).0);
        }
        ranks.sort_unstable();
        ranks.dedup();
        AboutAdapter {
            format: self.config.format,
            method: self.config.method,
            ranks,
            factor: match &self.config.scaling {
                _ if !low_rank => None,
                Scaling::Plain { scale, .. } => Some(*scale),
                Scaling::Peft { alpha, .. } => Some(*alpha),
            },
            base_model: self.config.base_model.clone(),
            tensors: self.tensors,
            weights_sha256: self.sha256.clone(),
            config_sha256: self.config.sha256.clone(),
        }
    }
}

/// What an adapter is, without its place.
#[derive(Debug, Clone, PartialEq)]
pub struct AboutAdapter {
    /// Who wrote it.
    pub format: AdapterFormat,
    /// What it does to weights.
    pub method: AdapterMethod,
    /// Ranks of its factors, sorted, each once.
    pub ranks: Vec<usize>,
    /// `lora_alpha` of PEFT, `scale` of mlx-lm, where there are factors.
    pub factor: Option<f64>,
    /// The model it was trained on, as its config has it.
    pub base_model: Option<String>,
    /// Tensors in its file.
    pub tensors: usize,
    /// SHA-256 of its weights' file, in hex.
    pub weights_sha256: String,
    /// SHA-256 of its config, in hex.
    pub config_sha256: String,
}

impl AboutAdapter {
    /// The model that it was trained on: a hub id, or the last part of a path.
    pub fn base_name(&self) -> Option<String> {
        let base = self.base_model.as_deref().filter(|b| !b.is_empty())?;
        let is_path = base.starts_with(['/', '.', '\\', '~']) || base.matches('/').count() > 1;
        let last = base
            .trim_end_matches(['/', '\\'])
            .rsplit(['/', '\\'])
            .next();
        Some(match is_path || base.contains('\\') {
            true => last.unwrap_or(base).to_string(),
            false => base.to_string(),
        })
    }
}

impl std::fmt::Display for AboutAdapter {
    /// One line: method, ranks, factor, base.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.method.name(), self.format.name())?;
        let ranks: Vec<String> = self.ranks.iter().map(usize::to_string).collect();
        if !ranks.is_empty() {
            write!(f, ", rank {}", ranks.join("/"))?;
        }
        match (self.factor, self.format) {
            (Some(alpha), AdapterFormat::Peft) => write!(f, ", alpha {alpha}")?,
            (Some(scale), AdapterFormat::MlxLm) => write!(f, ", scale {scale}")?,
            (None, _) => {}
        }
        match self.base_name() {
            Some(base) => write!(f, ", for {base}"),
            None => Ok(()),
        }
    }
}
