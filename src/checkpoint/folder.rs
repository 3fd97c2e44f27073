//! What a folder holds that is no snapshot, or beside one.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::adapter::{CONFIG as ADAPTER_CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS, PICKLED};
use super::error::{Error, Result};
use super::fields::read_json;

/// Names of an adapter's weights: PEFT's, PEFT's older ones, and those of mlx.
const ADAPTER_WEIGHTS: [&str; 3] = [PEFT_WEIGHTS, PICKLED, MLX_WEIGHTS];
/// Where the 4-bit values are that a GGUF file of them rounds once more.
pub(super) const QAT: &str =
    "Google's `-qat-q4_0-gguf` is a rounding of google/gemma-4-...-it-qat-q4_0-unquantized";
/// Entries of a folder that are named in a message.
const NAMED: usize = 4;

/// Whether there is a file. A link without a target, a directory or a device under the name is an error, as is a path that
/// cannot be looked at.
pub(super) fn present(path: &Path) -> Result<bool> {
    let wrong = |what: String, hint: &str| Error::NotTheFile {
        path: path.to_path_buf(),
        what,
        hint: hint.into(),
    };
    match std::fs::metadata(path) {
        Ok(m) if m.is_file() => Ok(true),
        Ok(m) if m.is_dir() => {
            let what = "a directory, where a file is expected";
            Err(wrong(what.into(), "give the folder that holds the files"))
        }
        Ok(_) => {
            let what = "neither a file nor a directory";
            Err(wrong(what.into(), "put a file in its place"))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => match std::fs::read_link(path) {
            Err(_) => Ok(false),
            Ok(target) => Err(wrong(
                format!("a link to {}, which is not there", target.display()),
                "fetch the file again: the place that the link leads to was deleted or moved",
            )),
        },
        Err(source) => Err(Error::Io {
            path: path.to_path_buf(),
            source,
        }),
    }
}

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

/// Names of the entries of a folder, sorted; none where it cannot be listed.
pub(super) fn entries(dir: &Path) -> Vec<String> {
    let list = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = list
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Names for a message, the last of many left out.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMED)].join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// What a folder is that has no config or no weights of its own; `None` when nothing is known.
pub(super) fn not_a_snapshot(dir: &Path) -> Option<Error> {
    let error = |what: String, hint: String| Error::NotASnapshot {
        dir: dir.to_path_buf(),
        what,
        hint,
    };
    if let Some(Adapter { base, .. }) = adapter(dir) {
        let of = base.as_ref().map_or(String::new(), |b| format!(" for {b}"));
        let base = base.as_deref().unwrap_or("BASE");
        return Some(error(
            format!("an adapter{of}, not a whole model"),
            format!(
                "merge it into its base first, or convert the base with it: `gemma-coreml convert {base} --adapter {}`",
                dir.display()
            ),
        ));
    }
    let names = entries(dir);
    let give = |name: &str| format!("give {}", dir.join(name).display());
    let with = |suffix: &str| -> Vec<String> {
        let of = names.iter().filter(|n| n.ends_with(suffix));
        of.cloned().collect()
    };
    if names.iter().any(|n| n == "model_config.json") {
        return Some(error(
            "a bundle, not a checkpoint".into(),
            "give the checkpoint that the bundle was made of".into(),
        ));
    }
    if names.iter().any(|n| n == "Manifest.json") || !with(".mlpackage").is_empty() {
        return Some(error(
            "Core ML packages, not a checkpoint".into(),
            "give the checkpoint that they were made of".into(),
        ));
    }
    if let Some(newest) = newest_checkpoint(dir, &names) {
        return Some(error(
            format!("a trainer's output folder; its newest checkpoint is {newest}"),
            give(&newest),
        ));
    }
    if let Some(snapshot) = cached_snapshot(dir) {
        return Some(error(
            "a model's folder in the hub's cache, not a snapshot".into(),
            give(&snapshot),
        ));
    }
    if let Some(model) = names.iter().find_map(|n| n.strip_prefix("models--")) {
        return Some(error(
            "the hub's cache, not a snapshot".into(),
            format!("give a hub id, such as {}", model.replacen("--", "/", 1)),
        ));
    }
    let inside: Vec<String> = names
        .iter()
        .filter(|n| has_model(&dir.join(n)))
        .cloned()
        .collect();
    if let Some(first) = inside.first() {
        return Some(error(
            format!("no model of its own, but in {}", listed(&inside)),
            give(first),
        ));
    }
    let gguf = with(".gguf");
    if !gguf.is_empty() {
        return Some(error(
            format!("GGUF files, not a checkpoint: {}", listed(&gguf)),
            format!(
                "give the checkpoint that they were made of: config.json and safetensors. {QAT}"
            ),
        ));
    }
    None
}

/// Whether a model or an adapter lies directly in a folder.
fn has_model(dir: &Path) -> bool {
    ["config.json", ADAPTER_CONFIG]
        .iter()
        .any(|name| dir.join(name).is_file())
}

/// The `checkpoint-N` of a trainer with the largest N that holds a model.
fn newest_checkpoint(dir: &Path, names: &[String]) -> Option<String> {
    let steps = names.iter().filter_map(|name| {
        let step: u64 = name.strip_prefix("checkpoint-")?.parse().ok()?;
        Some((step, name))
    });
    let steps = steps.filter(|(_, name)| has_model(&dir.join(name)));
    steps.max().map(|(_, name)| name.clone())
}

/// The snapshot in a folder `models--ORG--NAME` of the hub's cache: that of `main`, or any.
fn cached_snapshot(dir: &Path) -> Option<String> {
    let snapshots = dir.join("snapshots");
    let main = std::fs::read_to_string(dir.join("refs/main")).unwrap_or_default();
    let mut commits = entries(&snapshots);
    commits.retain(|commit| has_model(&snapshots.join(commit)));
    let commit = commits
        .iter()
        .find(|c| *c == main.trim())
        .or(commits.last())?;
    Some(format!("snapshots/{commit}"))
}
