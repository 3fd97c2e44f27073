//! `provenance.json`: what a bundle was made from and what was lost on the way. It holds no time, no path of the machine
//! and no user name, so that the same conversion writes the same bytes.

use super::error::{Error, Result, at};
use super::layout;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of this file's form.
pub const FORMAT: u32 = 1;

/// Content of `provenance.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// [`FORMAT`].
    pub format: u32,
    /// Name and version of the converter.
    pub tool: Tool,
    /// The recipe as it was applied.
    pub recipe: RecipeRecord,
    /// The recipes of packages that were rebuilt with another one, by package (`chunk4`). Their names are those that
    /// `recipe` would give them, and so is all that packages must agree on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub packages: BTreeMap<String, RecipeRecord>,
    /// The checkpoint.
    pub checkpoint: CheckpointRecord,
    /// The adapters that were merged into it, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterRecord>,
    /// Positions of the full-attention cache.
    pub context: usize,
    /// `proportional` or `all-pairs`.
    pub full_rope: String,
    /// Every weight of every package and table, in file order.
    pub tensors: Vec<TensorRecord>,
    /// Every file of the bundle except this one, by relative path with `/`.
    pub files: BTreeMap<String, FileRecord>,
}

/// The program that wrote the bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// Crate name.
    pub name: String,
    /// Crate version.
    pub version: String,
}

/// The recipe, overrides included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecipeRecord {
    /// Its name.
    pub name: String,
    /// Its text in TOML.
    pub text: String,
    /// SHA-256 of the statistics of a calibration, where the recipe asks for some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
}

/// What was converted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// SHA-256 over config, headers and tensor bytes, and over the adapters (see `checkpoint`).
    pub sha256: String,
    /// Tensors of the vision tower, passed over.
    pub vision_tensors: usize,
    /// Tensors of the audio tower, passed over.
    pub audio_tensors: usize,
    /// Other tensors, passed over.
    pub other_tensors: usize,
}

/// An adapter that was merged into the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterRecord {
    /// `PEFT` or `mlx-lm`.
    pub format: String,
    /// `LoRA`, `rsLoRA`, `DoRA` or `whole tensors`.
    pub method: String,
    /// Ranks of its factors, each once.
    pub ranks: Vec<usize>,
    /// `lora_alpha` of PEFT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// `scale` of mlx-lm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// The model that its config names, without the folders of a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// Tensors of the model that it changes.
    pub tensors: usize,
    /// SHA-256 of its weights.
    pub weights_sha256: String,
    /// SHA-256 of its config.
    pub config_sha256: String,
}

/// One weight as it was stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Checkpoint name without prefix.
    pub tensor: String,
    /// The package, or the table's data file.
    pub file: String,
    /// `fp16`, `palette4-g32`, `rows-int8` ...
    pub scheme: String,
    /// What chose the scheme: `default`, `rule REGEX`, `otherwise`, `below threshold`, `rank`, `table`.
    pub reason: String,
    /// Number of values.
    pub elements: u64,
    /// Bytes of data, LUT and scales, before sharing.
    pub bytes: u64,
    /// 8 * bytes / elements.
    pub bits_per_weight: f64,
    /// 10 log10(sum w^2 / sum (w - w')^2) against the checkpoint's values; absent when nothing was lost.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sqnr_db: Option<f64>,
    /// Largest |w - w'|.
    pub max_abs_error: f64,
    /// Integers and steps that the scheme was to keep; absent where it keeps none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grid: Option<GridRecord>,
}

/// What became of the integers and steps of a tensor, in groups of weights that are stored with one step or table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GridRecord {
    /// Bits of the integers.
    pub nbits: u8,
    /// Inputs that share a step; absent where all inputs of an output channel do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub block: Option<usize>,
    /// Whether the checkpoint holds the integers. Otherwise they were looked for in its numbers.
    pub given: bool,
    /// Groups.
    pub groups: u64,
    /// Those whose integers were kept.
    pub on: u64,
    /// Those that lie on no such grid, or whose grid the scheme does not hold: their integers were computed anew.
    pub off: u64,
    /// Of those that were kept, the groups whose step has no exact fp16 value: none for which the products round to the
    /// checkpoint's numbers, or, for given integers, none that is the step (in a table, that gives every product).
    pub inexact: u64,
}

impl GridRecord {
    /// Whether all integers were kept.
    pub fn is_kept(&self) -> bool {
        self.off == 0
    }

    /// `int4 grid of 32`, `int2 grid per channel`.
    pub fn name(&self) -> String {
        match self.block {
            Some(block) => format!("int{} grid of {block}", self.nbits),
            None => format!("int{} grid per channel", self.nbits),
        }
    }
}

/// One file as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Size.
    pub bytes: u64,
    /// SHA-256 of the content, lower-case hex.
    pub sha256: String,
}

impl Provenance {
    /// Reads `provenance.json` of bundle `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(layout::PROVENANCE);
        let text = std::fs::read(&path).map_err(at(&path))?;
        serde_json::from_slice(&text).map_err(|e| Error::Json {
            path,
            reason: e.to_string(),
        })
    }

    /// The file's text: pretty JSON with a trailing newline.
    pub fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self).map_err(|e| Error::Json {
            path: layout::PROVENANCE.into(),
            reason: e.to_string(),
        })?;
        text.push('\n');
        Ok(text)
    }
}
