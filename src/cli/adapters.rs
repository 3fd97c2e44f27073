//! `--adapter`, for the verbs that open a checkpoint.

use std::path::Path;

use serde_json::{Value, json};

use super::console::Console;
use super::failure::{Code, Failure, OrFail, Result};
use crate::checkpoint::{self, Adapter, Checkpoint, MergedAdapter};

/// Adapters of a model.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Adapters {
    /// A LoRA, rsLoRA or DoRA adapter of PEFT or mlx-lm, merged into MODEL's weights: its folder, its .safetensors file, or a
    /// hub id. May be repeated; each is merged into what those before it made
    #[arg(long = "adapter", value_name = "ADAPTER")]
    list: Vec<String>,
}

impl Adapters {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Merges them, and says what they are and what else there is to know.
    pub fn merge_into(&self, checkpoint: Checkpoint, console: &Console) -> Result<Checkpoint> {
        if self.is_empty() {
            return Ok(checkpoint);
        }
        let opened = self.list.iter().map(|adapter| open(adapter, console));
        let opened = opened.collect::<Result<Vec<_>>>()?;
        let checkpoint = checkpoint.with_adapters(&opened).or_invalid()?;
        for adapter in checkpoint.adapters() {
            console.note(&line(adapter));
            for notice in &adapter.notices {
                console.warn(&notice.to_string());
            }
        }
        Ok(checkpoint)
    }
}

/// Opens a folder, a file or a hub id, which is downloaded where needed.
fn open(adapter: &str, console: &Console) -> Result<Adapter> {
    let path = Path::new(adapter);
    if path.exists() {
        return Adapter::open(path).or_invalid();
    }
    match checkpoint::resolve_adapter(adapter, console) {
        Ok(dir) => Adapter::open(&dir).or_invalid(),
        // Neither: says that it is not there.
        Err(checkpoint::Error::BadModelId { .. }) => Adapter::open(path).or_invalid(),
        Err(e) => {
            let mut failure = Failure::from_error(Code::Invalid, &e);
            failure.causes.insert(0, failure.message);
            failure.message =
                format!("{adapter}: no such adapter here, so it was taken for a hub id");
            Err(failure)
        }
    }
}

/// The adapters of a checkpoint as JSON.
pub fn adapters_json(checkpoint: &Checkpoint) -> Value {
    let one = |adapter: &MergedAdapter| {
        let about = &adapter.about;
        json!({
            "path": adapter.path,
            "format": about.format.name(),
            "method": about.method.name(),
            "ranks": about.ranks,
            "factor": about.factor,
            "changed": adapter.changed,
            "notices": adapter.notices.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    };
    checkpoint.adapters().iter().map(one).collect()
}

/// What an adapter is and does, in a line.
fn line(adapter: &MergedAdapter) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for name in &adapter.changed {
        let name = name.trim_end_matches(".weight");
        let module = name.rsplit('.').next().unwrap_or(name);
        match counts.iter_mut().find(|(m, _)| *m == module) {
            Some((_, count)) => *count += 1,
            None => counts.push((module, 1)),
        }
    }
    let counts: Vec<String> = counts.iter().map(|(m, n)| format!("{n} {m}")).collect();
    format!(
        "adapter {}: {}; changes {} tensors ({})",
        adapter.path.display(),
        adapter.about,
        adapter.changed.len(),
        counts.join(", ")
    )
}
