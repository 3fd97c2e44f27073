//! Adapters of a model: LoRA, rsLoRA and DoRA as PEFT (TRL, unsloth) and mlx-lm write them, merged while weights are read.
//!
//! An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors` (PEFT) or `adapters.safetensors`
//! (mlx-lm). [`Adapter::open`] reads and checks both by themselves. `Checkpoint::with_adapters` then finds the tensor of the
//! model that each of the adapter's belongs to; from then on every read of that tensor gives merged values, computed for the
//! range that is asked for. `docs/adapters.md` has the formulas and what is refused.

mod bind;
mod config;
mod files;
mod merge;
mod names;
mod notice;
mod opened;
mod parts;
mod patterns;
mod peft;
mod settings;
mod stored;

use std::path::{Path, PathBuf};

use super::error::Result;
use patterns::Modules;
use settings::Config;

pub(in crate::checkpoint) use bind::{Base, Changes};
pub(in crate::checkpoint) use files::{CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS, PICKLED};
pub(in crate::checkpoint) use merge::Change;
pub use notice::AdapterNotice;
pub use opened::{AboutAdapter, Adapter};
pub use settings::{AdapterFormat, AdapterMethod};
pub(in crate::checkpoint) use stored::hex;

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
    let Some(Modules::Ends(ends)) = &adapter.config.targets.modules else {
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
