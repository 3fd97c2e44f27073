//! What else a folder holds: adapters.

use std::path::{Path, PathBuf};

use super::fields::read_json;
use super::notice::Notice;

/// Names of an adapter's weights: PEFT's, PEFT's older ones, and those of mlx.
const ADAPTER_WEIGHTS: [&str; 3] = [
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapters.safetensors",
];
/// Name of an adapter's config.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// An adapter in a folder.
pub(super) struct Adapter {
    /// Its weights, or its config where there are none.
    pub path: PathBuf,
    /// `base_model_name_or_path` of its config.
    pub base: Option<String>,
}

/// The adapter in a folder.
pub(super) fn adapter(dir: &Path) -> Option<Adapter> {
    let names = ADAPTER_WEIGHTS.iter().chain([&ADAPTER_CONFIG]);
    let path = names.map(|name| dir.join(name)).find(|p| p.is_file())?;
    // The file is not read for its own sake here: one that does not parse only leaves the base unnamed.
    let config = read_json(&dir.join(ADAPTER_CONFIG)).ok();
    let base = config
        .as_ref()
        .and_then(|c| c.get("base_model_name_or_path")?.as_str())
        .filter(|base| !base.is_empty())
        .map(str::to_string);
    Some(Adapter { path, base })
}

/// What lies beside the weights of a snapshot and is not read.
pub(super) fn notices(dir: &Path) -> Vec<Notice> {
    let adapter =
        adapter(dir).map(|Adapter { path, base }| Notice::AdapterNotApplied { path, base });
    adapter.into_iter().collect()
}
