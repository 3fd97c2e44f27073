//! `adapter_config.json`: what an adapter says about itself. PEFT's settings are read in `peft`, mlx-lm's here.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::error::{Error as CheckpointError, Result};
use super::super::fields::{Fields, parse_json, shorten};
use super::super::pointer::check_file;
use super::error::Error;
use super::notice::AdapterNotice;
use super::patterns::{Modules, Overrides};
use super::peft;
use super::stored::hex;

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

impl Config {
    /// Reads and checks the file.
    pub fn read(path: &Path) -> Result<Self> {
        check_file(path)?;
        let bytes = std::fs::read(path).map_err(|source| CheckpointError::Io {
            path: path.to_path_buf(),
            source,
        })?;
        let root = parse_json(path, &bytes)?;
        let top = Fields::top(path, &root)?;
        let sha256 = hex(&Sha256::digest(&bytes));
        if top.get("peft_type").is_some() {
            return peft::read(path, &top, sha256);
        }
        let mlx = ["fine_tune_type", "lora_parameters"];
        if mlx.iter().any(|name| top.get(name).is_some()) {
            return mlx_lm(path, &top, sha256);
        }
        let expected = "\"LORA\" (PEFT), or `fine_tune_type` or `lora_parameters` (mlx-lm)";
        Err(top.missing("peft_type", expected))
    }
}

/// Settings of mlx-lm, which keeps all those of the training beside those of the adapter.
fn mlx_lm(path: &Path, top: &Fields<'_>, sha256: String) -> Result<Config> {
    let method = match top.string_opt("fine_tune_type")? {
        None | Some("lora") => AdapterMethod::Lora,
        Some("dora") => AdapterMethod::Dora,
        Some("full") => AdapterMethod::Full,
        Some(other) => {
            return Err(setting(path, "fine_tune_type", other, "lora, dora and full are").into());
        }
    };
    let mut notices = Vec::new();
    let mut modules = None;
    let scaling = match (method, top.object("lora_parameters")?) {
        (AdapterMethod::Full, _) => Scaling::Plain {
            rank: 0,
            scale: 0.0,
        },
        (_, None) => return Err(top.missing("lora_parameters", "an object with rank and scale")),
        (_, Some(parameters)) => {
            if let Some(alpha) = parameters.get("alpha") {
                notices.push(AdapterNotice::Setting {
                    path: path.to_path_buf(),
                    field: "lora_parameters.alpha".into(),
                    got: shorten(alpha),
                    meaning: "not used, as in mlx-lm: `scale` alone is the factor",
                });
            }
            if parameters.get("keys").is_some() {
                modules = Some(Modules::Ends(strings(&parameters, "keys")?));
            }
            Scaling::Plain {
                rank: parameters.count("rank", MAX_RANK)?,
                scale: number(&parameters, "scale")?
                    .ok_or_else(|| parameters.missing("scale", "a number"))?,
            }
        }
    };
    Ok(Config {
        path: path.to_path_buf(),
        sha256,
        format: AdapterFormat::MlxLm,
        method,
        base_model: top.string_opt("model")?.map(str::to_string),
        scaling,
        targets: Targets {
            modules,
            ..Targets::default()
        },
        tokens: Vec::new(),
        tied: true,
        notices,
    })
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
