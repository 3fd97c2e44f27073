//! Adapters of a model: LoRA, rsLoRA and DoRA as PEFT (TRL, unsloth) and mlx-lm write them, merged while weights are read.
//!
//! An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors` (PEFT) or `adapters.safetensors`
//! (mlx-lm). [`Adapter::open`] reads and checks both by themselves. `Checkpoint::with_adapters` then finds the tensor of the
//! model that each of the adapter's belongs to; from then on every read of that tensor gives merged values, computed for the
//! range that is asked for. `docs/adapters.md` has the formulas and what is refused.

mod bind;
mod config;
mod error;
mod files;
mod merge;
mod names;
mod notice;
mod parts;
mod patterns;
mod peft;
mod stored;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::Result;
use config::{Config, Scaling};
use parts::{Module, Parts};
use stored::{Stored, Weights};

pub(in crate::checkpoint) use bind::{Base, Changes};
pub use config::{AdapterFormat, AdapterMethod};
pub use error::Error as AdapterError;
pub(in crate::checkpoint) use files::{CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS, PICKLED};
pub(in crate::checkpoint) use merge::Change;
pub use notice::AdapterNotice;
pub(in crate::checkpoint) use stored::hex;

/// An adapter, opened: its config read, its tensors named, checked to be finite, and hashed.
#[derive(Debug)]
pub struct Adapter {
    /// Its weights.
    path: PathBuf,
    config: Config,
    sha256: String,
    /// Tensors in the file.
    tensors: usize,
    modules: BTreeMap<String, Module>,
    whole: BTreeMap<String, Stored>,
}

impl Adapter {
    /// Opens the adapter at `path`: its folder, a folder that holds one adapter, or its weights.
    ///
    /// # Errors
    /// What keeps it from being one that can be merged, whatever the model.
    pub fn open(path: &Path) -> Result<Self> {
        let place = files::Place::find(path)?;
        let config = Config::read(&place.config)?;
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

/// An adapter that is merged into a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedAdapter {
    /// The file of its weights.
    pub path: PathBuf,
    /// What it is.
    pub about: AboutAdapter,
    /// Tensors of the model that it changes, sorted.
    pub changed: Vec<String>,
    /// What a user should know.
    pub notices: Vec<AdapterNotice>,
}

/// Binds adapters to a model, each to what those before it made of it.
pub(in crate::checkpoint) fn merge(
    adapters: &[Adapter],
    base: &Base<'_>,
) -> Result<(Changes, Vec<MergedAdapter>)> {
    let mut changes = Changes::new();
    let mut merged = Vec::new();
    for adapter in adapters {
        let (changed, found) = bind::bind(adapter, base, &mut changes)?;
        let mut notices = adapter.config.notices.clone();
        notices.extend(other_base(&adapter.config, base.dir));
        notices.extend(without_tensors(adapter));
        notices.extend(found);
        merged.push(MergedAdapter {
            path: adapter.path.clone(),
            about: adapter.about(),
            changed,
            notices,
        });
    }
    Ok((changes, merged))
}

/// Whether the config names another model than the one in `dir`, as far as names tell.
fn other_base(config: &Config, dir: &Path) -> Option<AdapterNotice> {
    let base = config.base_model.as_deref().filter(|b| !b.is_empty())?;
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let mut given = dir.file_name()?.to_string_lossy().into_owned();
    // A snapshot in the hub's cache: models--ORG--NAME/snapshots/REVISION.
    if let Some(snapshots) = dir.parent().filter(|p| p.ends_with("snapshots"))
        && let Some(repo) = snapshots.parent().and_then(Path::file_name)
        && let Some(id) = repo.to_string_lossy().strip_prefix("models--")
    {
        given = id.replacen("--", "/", 1);
    }
    let last = |name: &str| {
        let name = name.trim_end_matches(['/', '\\']);
        let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
        last.to_lowercase()
    };
    (last(base) != last(&given)).then(|| AdapterNotice::OtherBase {
        path: config.path.clone(),
        base: base.to_string(),
        given,
    })
}

/// Modules that the config names by their ends and that have no tensors.
fn without_tensors(adapter: &Adapter) -> Vec<AdapterNotice> {
    let Some(patterns::Modules::Ends(ends)) = &adapter.config.targets.modules else {
        return Vec::new();
    };
    let has = |end: &String| {
        let mut modules = adapter.modules.keys();
        // PEFT's names of the towers' modules have one part more.
        modules.any(|path| {
            let bare = path.strip_suffix(".linear").unwrap_or(path);
            [path, bare]
                .iter()
                .any(|p| patterns::ends_with(p, names::inner(p), end))
        })
    };
    let without = ends.iter().filter(|end| !has(end));
    let notice = |module: &String| AdapterNotice::NoTensors {
        path: adapter.config.path.clone(),
        module: module.clone(),
    };
    without.map(notice).collect()
}
