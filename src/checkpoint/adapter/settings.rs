//! What of an adapter's config decides a merge, whoever wrote it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::error::{AdapterError as Error, Result};
use super::super::fields::{Fields, shorten};
use super::notice::AdapterNotice;
use super::patterns::{Modules, Overrides};

/// Highest rank that is read. What a merge holds in memory grows with the rank.
pub(super) const MAX_RANK: usize = 65_536;

/// Who wrote an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterFormat {
    /// PEFT, and what trains with it: TRL, unsloth.
    Peft,
    /// mlx-lm.
    MlxLm,
}

impl AdapterFormat {
    /// The project's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "PEFT",
            Self::MlxLm => "mlx-lm",
        }
    }
}

/// What an adapter does to a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterMethod {
    /// A product of two narrow matrices is added.
    Lora,
    /// The same, scaled by the root of the rank.
    RsLora,
    /// Rows then get a trained length.
    Dora,
    /// Whole tensors.
    Full,
}

impl AdapterMethod {
    /// The method's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "LoRA",
            Self::RsLora => "rsLoRA",
            Self::Dora => "DoRA",
            Self::Full => "whole tensors",
        }
    }
}

/// The factor on the product of the two matrices, and their rank.
#[derive(Debug)]
pub(super) enum Scaling {
    /// alpha over the rank or its root.
    Peft {
        rank: usize,
        alpha: f64,
        root: bool,
        ranks: Overrides<usize>,
        alphas: Overrides<f64>,
    },
    /// A factor.
    Plain { rank: usize, scale: f64 },
}

impl Scaling {
    /// Rank and factor of a module.
    pub fn of(&self, module: &str) -> (usize, f64) {
        match self {
            Self::Plain { rank, scale } => (*rank, *scale),
            Self::Peft {
                rank,
                alpha,
                root,
                ranks,
                alphas,
            } => {
                let rank = ranks.of(module).unwrap_or(*rank);
                let alpha = alphas.of(module).unwrap_or(*alpha);
                let r = rank as f64;
                (rank, alpha / if *root { r.sqrt() } else { r })
            }
        }
    }
}

/// Tokens whose rows are replaced, of the tables whose path ends so; of `embed_tokens` where there is no name.
#[derive(Debug)]
pub(super) struct Tokens {
    pub module: Option<String>,
    pub rows: Vec<usize>,
}

/// Which modules an adapter is for.
#[derive(Debug, Default)]
pub(super) struct Targets {
    /// All, where there is none.
    pub modules: Option<Modules>,
    pub exclude: Option<Modules>,
    /// All, where there is none.
    pub layers: Option<Vec<usize>>,
    /// Modules that are replaced.
    pub saved: Vec<String>,
}

/// The settings that decide a merge.
#[derive(Debug)]
pub(super) struct Config {
    pub path: PathBuf,
    /// Of the file's content, in hex.
    pub sha256: String,
    pub format: AdapterFormat,
    pub method: AdapterMethod,
    pub base_model: Option<String>,
    pub scaling: Scaling,
    pub targets: Targets,
    pub tokens: Vec<Tokens>,
    /// The head was trained as the same tensor as the embedding table.
    pub tied: bool,
    /// What the config itself gives reason for.
    pub notices: Vec<AdapterNotice>,
}

/// A finite number, `None` when absent.
pub(super) fn number(fields: &Fields<'_>, name: &str) -> Result<Option<f64>> {
    let Some(value) = fields.get(name) else {
        return Ok(None);
    };
    let number = value.as_f64().filter(|v| v.is_finite());
    let invalid = || fields.invalid(name, "a number", shorten(value));
    number.ok_or_else(invalid).map(Some)
}

/// A string or a list of them; empty when absent.
pub(super) fn strings(fields: &Fields<'_>, name: &str) -> Result<Vec<String>> {
    let invalid = |value: &Value| {
        let expected = "a string or a list of strings";
        fields.invalid(name, expected, shorten(value))
    };
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(invalid(other)),
    };
    match fields.get(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

/// The error for a setting that is not merged.
pub(super) fn setting(path: &Path, field: &str, got: impl ToString, why: &str) -> Error {
    Error::Setting {
        path: path.to_path_buf(),
        field: field.to_string(),
        got: got.to_string(),
        why: why.to_string(),
    }
}
