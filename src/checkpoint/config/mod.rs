//! `config.json` of the Gemma 4 family, normalized.
//!
//! One [`TextConfig`] comes out of multimodal files (`text_config` nested), text-only files (fields at the top), and files
//! written by newer transformers, which drop `global_head_dim` and write `per_layer_config` instead. Defaults of absent
//! fields are those of transformers 5.23 (`models/gemma4/configuration_gemma4.py`), except for sizes that no published
//! model leaves out: those must be there. A field that would change the arithmetic in a way that is not implemented is an
//! error.

mod moe;
mod quantization;

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::fields::{Fields, parse_json, read_json, shorten};
use crate::checkpoint::folder::{not_a_snapshot, present};
pub use moe::MoeConfig;
pub(super) use quantization::{CompressedTensors, GemmaBits, Group, QuantizationConfig, Targeted};

/// Attention of a layer. `layer_types` of the config is authoritative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerKind {
    /// `sliding_attention`: the last `sliding_window` positions, self included.
    Sliding,
    /// `full_attention`: every position up to the own one.
    Full,
}

impl LayerKind {
    /// The name in `layer_types` and `rope_parameters`.
    pub fn hf_name(self) -> &'static str {
        match self {
            Self::Sliding => "sliding_attention",
            Self::Full => "full_attention",
        }
    }
}

/// How the inverse frequencies are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeType {
    /// Every pair of dims rotates.
    Default,
    /// The first `int(partial_rotary_factor * head_dim / 2)` pairs rotate; exponents are over the whole head dim.
    Proportional {
        /// Fraction of the head dim, above 0 and at most 1.
        partial_rotary_factor: f64,
    },
}

/// `rope_parameters` of one layer kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeParameters {
    /// Which frequencies.
    pub rope_type: RopeType,
    /// Base of the frequencies.
    pub theta: f64,
    /// Divides the frequencies; 1 in published files. transformers reads it for `proportional` only.
    pub factor: f64,
}

/// Head geometry of one layer kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadConfig {
    /// Dims of a head, even.
    pub head_dim: usize,
    /// Key/value heads; divides the query heads.
    pub kv_heads: usize,
    /// Rotary embedding.
    pub rope: RopeParameters,
}

/// The text decoder's configuration with every default filled in and every quirk resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// `model_type` at the top of the file (`gemma4`, `gemma4_text`, `gemma4_unified`, `gemma4_unified_text`).
    pub model_type: String,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the stream.
    pub hidden_size: usize,
    /// Width of the MLP on layers that are not double-wide.
    pub intermediate_size: usize,
    /// Experts, where every layer has them beside its MLP.
    pub moe: Option<MoeConfig>,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads, on every layer.
    pub num_attention_heads: usize,
    /// Kind of each layer; the last one is `Full`.
    pub layer_types: Vec<LayerKind>,
    /// Heads of sliding layers.
    pub sliding: HeadConfig,
    /// Heads of full layers.
    pub full: HeadConfig,
    /// Positions visible to a sliding layer, self included.
    pub sliding_window: usize,
    /// The last so many layers own no K and V.
    pub num_kv_shared_layers: usize,
    /// KV-shared layers have twice the intermediate size.
    pub use_double_wide_mlp: bool,
    /// Full layers have no `v_proj`: the value is the normed output of `k_proj`.
    pub attention_k_eq_v: bool,
    /// Width of a layer's per-layer embedding; 0 means there are none.
    pub hidden_size_per_layer_input: usize,
    /// Rows of the per-layer embedding table; at least `vocab_size` when there is one.
    pub vocab_size_per_layer_input: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f64,
    /// `c` of `tanh(logits / c) * c`.
    pub final_logit_softcapping: Option<f64>,
    /// Positions the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding table. As `config.json` says; in an opened
    /// [`Checkpoint`](crate::checkpoint::Checkpoint), as its files have it.
    pub tie_word_embeddings: bool,
    /// How the weights are stored.
    pub(super) quantization: QuantizationConfig,
    /// `dtype` (or `torch_dtype`) as written.
    pub dtype: Option<String>,
    /// First token of a text.
    pub bos_token_id: Option<u32>,
    /// Padding; placeholder positions use its per-layer row.
    pub pad_token_id: u32,
    /// End tokens as config.json has them (outer value first); generation_config.json takes precedence.
    pub eos_token_ids: Vec<u32>,
}

/// Largest value accepted for any size in a config: far beyond the family, small enough that products of two fit in 64 bits.
const MAX_SIZE: usize = 1 << 28;
/// Most layers accepted.
const MAX_LAYERS: usize = 4096;
/// Largest head dim accepted.
const MAX_HEAD_DIM: usize = 1 << 16;

impl TextConfig {
    /// Reads `config.json`. Errors name the file and the field.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_value(path, &read_json(path)?)
    }

    /// Parses the bytes of a `config.json`; `path` is for messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::from_value(path, &parse_json(path, bytes)?)
    }

    fn from_value(path: &Path, root: &Value) -> Result<Self> {
        let top = Fields::top(path, root)?;
        let model_type = model_type(&top)?;
        let text = top.object("text_config")?.unwrap_or_else(|| top.clone());
        let unified = model_type.starts_with("gemma4_unified");
        let quantization = QuantizationConfig::parse([&top, &text])?;
        reject_unsupported(&top)?;
        reject_unsupported(&text)?;

        let num_hidden_layers = text.count("num_hidden_layers", MAX_LAYERS)?;
        let layer_types = layer_types(&text, num_hidden_layers)?;
        let num_attention_heads = text.count("num_attention_heads", MAX_SIZE)?;
        let attention_k_eq_v = text.flag("attention_k_eq_v", false)?;
        let (sliding, full) = heads(&text, &layer_types, attention_k_eq_v)?;
        let num_kv_shared_layers = kv_shared(&text, &layer_types)?;
        let vocab_size = text.count("vocab_size", MAX_SIZE)?;
        let (ple_dim, ple_vocab) = per_layer_input(&text, vocab_size, unified)?;
        let config = Self {
            vocab_size,
            hidden_size: text.count("hidden_size", MAX_SIZE)?,
            intermediate_size: text.count("intermediate_size", MAX_SIZE)?,
            moe: MoeConfig::parse(&text, unified)?,
            num_hidden_layers,
            num_attention_heads,
            layer_types,
            sliding,
            full,
            sliding_window: text
                .count_opt("sliding_window", MAX_SIZE)?
                .unwrap_or(if unified { 1024 } else { 512 }),
            num_kv_shared_layers,
            use_double_wide_mlp: text.flag("use_double_wide_mlp", false)?,
            attention_k_eq_v,
            hidden_size_per_layer_input: ple_dim,
            vocab_size_per_layer_input: ple_vocab,
            rms_norm_eps: text.positive_opt("rms_norm_eps")?.unwrap_or(1e-6),
            final_logit_softcapping: text.positive_opt("final_logit_softcapping")?,
            max_position_embeddings: text
                .count_opt("max_position_embeddings", MAX_SIZE)?
                .unwrap_or(if unified { 262_144 } else { 131_072 }),
            // transformers looks at the value at the top alone.
            tie_word_embeddings: top.flag("tie_word_embeddings", true)?,
            quantization,
            dtype: dtype(&text, &top)?,
            bos_token_id: text.token_ids("bos_token_id")?.first().copied().or(Some(2)),
            pad_token_id: text
                .token_ids("pad_token_id")?
                .first()
                .copied()
                .unwrap_or(0),
            eos_token_ids: eos(&top, &text)?,
            model_type,
        };
        config.check_heads(&text)?;
        Ok(config)
    }

    fn check_heads(&self, text: &Fields) -> Result<()> {
        for heads in [&self.sliding, &self.full] {
            if !self.num_attention_heads.is_multiple_of(heads.kv_heads) {
                return Err(text.invalid(
                    "num_attention_heads",
                    format!("a multiple of the {} key/value heads", heads.kv_heads),
                    self.num_attention_heads,
                ));
            }
        }
        Ok(())
    }

    /// Heads of the given kind.
    pub fn heads(&self, kind: LayerKind) -> &HeadConfig {
        match kind {
            LayerKind::Sliding => &self.sliding,
            LayerKind::Full => &self.full,
        }
    }

    /// Index of the first layer that owns no K and V; the number of layers when every layer owns them.
    pub fn first_shared(&self) -> usize {
        self.num_hidden_layers - self.num_kv_shared_layers
    }
}

fn model_type(top: &Fields) -> Result<String> {
    const KNOWN: [&str; 4] = [
        "gemma4",
        "gemma4_text",
        "gemma4_unified",
        "gemma4_unified_text",
    ];
    let name = top
        .string_opt("model_type")?
        .ok_or_else(|| top.missing("model_type", &KNOWN.join(", ")))?;
    if KNOWN.contains(&name) {
        Ok(name.to_string())
    } else {
        Err(top.unsupported("model_type", &KNOWN.join(", ")))
    }
}

/// Fields that change the arithmetic in ways that are not implemented, at the top or in `text_config`.
fn reject_unsupported(fields: &Fields) -> Result<()> {
    if fields.flag("attention_bias", false)? {
        return Err(fields.unsupported("attention_bias", "false"));
    }
    match fields.string_opt("hidden_activation")? {
        None | Some("gelu_pytorch_tanh") => {}
        Some(_) => return Err(fields.unsupported("hidden_activation", "\"gelu_pytorch_tanh\"")),
    }
    match fields.string_opt("use_bidirectional_attention")? {
        None | Some("vision") => {}
        Some(_) => {
            return Err(fields.unsupported("use_bidirectional_attention", "null, \"vision\""));
        }
    }
    // Fields of other Gemma generations: a file that has them means arithmetic that Gemma 4 does not have.
    for name in [
        "attn_logit_softcapping",
        "query_pre_attn_scalar",
        "rope_scaling",
    ] {
        if fields.get(name).is_some() {
            return Err(fields.unsupported(name, "null"));
        }
    }
    Ok(())
}

fn layer_types(text: &Fields, layers: usize) -> Result<Vec<LayerKind>> {
    const KINDS: &str = "\"sliding_attention\" or \"full_attention\"";
    /// transformers' default when `layer_types` is absent: every sixth layer is full.
    const DEFAULT_PERIOD: usize = 6;
    let mut kinds = match text.get("layer_types") {
        None => (1..=layers)
            .map(|n| match n.is_multiple_of(DEFAULT_PERIOD) {
                true => LayerKind::Full,
                false => LayerKind::Sliding,
            })
            .collect(),
        Some(Value::Array(list)) => {
            if list.len() != layers {
                return Err(text.invalid(
                    "layer_types",
                    format!("{layers} entries (num_hidden_layers)"),
                    format!("{} entries", list.len()),
                ));
            }
            let kind = |v: &Value| match v.as_str() {
                Some("sliding_attention") => Ok(LayerKind::Sliding),
                Some("full_attention") => Ok(LayerKind::Full),
                _ => Err(text.invalid("layer_types", KINDS, shorten(v))),
            };
            list.iter().map(kind).collect::<Result<Vec<_>>>()?
        }
        Some(other) => {
            return Err(text.invalid("layer_types", format!("a list of {KINDS}"), shorten(other)));
        }
    };
    // transformers forces the last layer, whatever the list says.
    if let Some(last) = kinds.last_mut() {
        *last = LayerKind::Full;
    }
    Ok(kinds)
}

/// Heads of sliding and of full layers. `per_layer_config` decides where it is present, otherwise the `global_*` fields.
fn heads(text: &Fields, kinds: &[LayerKind], k_eq_v: bool) -> Result<(HeadConfig, HeadConfig)> {
    let head_dim = text.count_opt("head_dim", MAX_HEAD_DIM)?.unwrap_or(256);
    let kv_heads = text.count("num_key_value_heads", MAX_SIZE)?;
    let global_dim = text
        .count_opt("global_head_dim", MAX_HEAD_DIM)?
        .unwrap_or(512);
    let global_kv = text.count_opt("num_global_key_value_heads", MAX_SIZE)?;
    let mut sliding = (head_dim, kv_heads);
    let mut full = (
        global_dim,
        if k_eq_v {
            global_kv.unwrap_or(kv_heads)
        } else {
            kv_heads
        },
    );
    if let Some(overrides) = text.object("per_layer_config")? {
        let per_layer = per_layer_heads(text, &overrides, kinds.len(), (head_dim, kv_heads))?;
        for (kind, slot) in [
            (LayerKind::Sliding, &mut sliding),
            (LayerKind::Full, &mut full),
        ] {
            let mut of_kind = kinds
                .iter()
                .zip(&per_layer)
                .filter(|(k, _)| **k == kind)
                .map(|(_, h)| *h);
            let Some(first) = of_kind.next() else {
                continue;
            };
            if of_kind.any(|h| h != first) {
                return Err(text.invalid(
                    "per_layer_config",
                    format!(
                        "the same head_dim and num_key_value_heads on every {} layer",
                        kind.hf_name()
                    ),
                    "different ones",
                ));
            }
            *slot = first;
        }
    }
    let config = |(head_dim, kv_heads): (usize, usize), kind, name| {
        if head_dim % 2 != 0 {
            return Err(text.invalid(name, "an even number", head_dim));
        }
        Ok(HeadConfig {
            head_dim,
            kv_heads,
            rope: rope(text, kind, kinds.contains(&kind), head_dim)?,
        })
    };
    Ok((
        config(sliding, LayerKind::Sliding, "head_dim")?,
        config(full, LayerKind::Full, "global_head_dim")?,
    ))
}

/// `(head_dim, kv_heads)` of each layer. Keys are layer numbers, zero-padded when transformers wrote them; an entry has only
/// the values that differ from the top level.
fn per_layer_heads(
    text: &Fields,
    overrides: &Fields,
    layers: usize,
    top: (usize, usize),
) -> Result<Vec<(usize, usize)>> {
    let mut result = vec![top; layers];
    let mut seen = vec![false; layers];
    for (key, _) in overrides.iter() {
        let layer = key
            .parse::<usize>()
            .ok()
            .filter(|l| *l < layers && !seen[*l]);
        let Some(layer) = layer else {
            return Err(text.invalid(
                "per_layer_config",
                format!("layer numbers below {layers} as keys, each once"),
                format!("{key:?}"),
            ));
        };
        seen[layer] = true;
        let Some(entry) = overrides.object(key)? else {
            continue;
        };
        for (name, value) in entry.iter().filter(|(_, v)| !v.is_null()) {
            match name.as_str() {
                "head_dim" => result[layer].0 = entry.count(name, MAX_HEAD_DIM)?,
                "num_key_value_heads" => result[layer].1 = entry.count(name, MAX_SIZE)?,
                // Any other attribute may be written too; it is harmless while it repeats the top level.
                _ if text.get(name) == Some(value) => {}
                _ => return Err(entry.unsupported(name, "head_dim, num_key_value_heads")),
            }
        }
    }
    Ok(result)
}

fn rope(text: &Fields, kind: LayerKind, used: bool, head_dim: usize) -> Result<RopeParameters> {
    let published = match kind {
        LayerKind::Sliding => RopeParameters {
            rope_type: RopeType::Default,
            theta: 10_000.0,
            factor: 1.0,
        },
        LayerKind::Full => RopeParameters {
            rope_type: RopeType::Proportional {
                partial_rotary_factor: 0.25,
            },
            theta: 1_000_000.0,
            factor: 1.0,
        },
    };
    let Some(all) = text.object("rope_parameters")? else {
        return Ok(published);
    };
    let Some(own) = all.object(kind.hf_name())? else {
        return match used {
            true => Err(all.missing(kind.hf_name(), "an object with rope_type and rope_theta")),
            false => Ok(published),
        };
    };
    let key = if own.get("rope_type").is_none() && own.get("type").is_some() {
        "type"
    } else {
        "rope_type"
    };
    let rope_type = match own.string_opt(key)? {
        None | Some("default") => RopeType::Default,
        Some("proportional") => RopeType::Proportional {
            partial_rotary_factor: partial_rotary_factor(&own, head_dim)?,
        },
        Some(_) => return Err(own.unsupported(key, "\"default\", \"proportional\"")),
    };
    let factor = match rope_type {
        RopeType::Default => 1.0,
        RopeType::Proportional { .. } => own.positive_opt("factor")?.unwrap_or(1.0),
    };
    let theta = own
        .positive_opt("rope_theta")?
        .ok_or_else(|| own.missing("rope_theta", "a number above 0"))?;
    Ok(RopeParameters {
        rope_type,
        theta,
        factor,
    })
}

fn partial_rotary_factor(own: &Fields, head_dim: usize) -> Result<f64> {
    let name = "partial_rotary_factor";
    let factor = own.positive_opt(name)?.unwrap_or(1.0);
    if factor > 1.0 || factor * (head_dim as f64) < 2.0 {
        return Err(own.invalid(
            name,
            format!("at most 1 and at least one pair of the {head_dim} dims"),
            factor,
        ));
    }
    Ok(factor)
}

fn kv_shared(text: &Fields, kinds: &[LayerKind]) -> Result<usize> {
    let name = "num_kv_shared_layers";
    let shared = text.size_opt(name, MAX_LAYERS)?.unwrap_or(0);
    if shared >= kinds.len() {
        return Err(text.invalid(
            name,
            format!("less than the {} layers", kinds.len()),
            shared,
        ));
    }
    let (owners, sharing) = kinds.split_at(kinds.len() - shared);
    for kind in [LayerKind::Sliding, LayerKind::Full] {
        if sharing.contains(&kind) && !owners.contains(&kind) {
            return Err(text.invalid(
                name,
                format!(
                    "a {} layer below the shared ones to share from",
                    kind.hf_name()
                ),
                format!("{shared}, which leaves none"),
            ));
        }
    }
    Ok(shared)
}

/// Width and rows of the per-layer embedding table, `(0, 0)` when there is none.
fn per_layer_input(text: &Fields, vocab: usize, unified: bool) -> Result<(usize, usize)> {
    const DIM: &str = "hidden_size_per_layer_input";
    const ROWS: &str = "vocab_size_per_layer_input";
    // Absent: transformers' default is 256 in gemma4, and the unified class has no such field. Null is written for 0.
    let absent = text.iter().all(|(name, _)| name != DIM);
    let dim = match text.size_opt(DIM, MAX_SIZE)? {
        None if absent && !unified => 256,
        None => 0,
        Some(dim) => dim,
    };
    if dim == 0 {
        return Ok((0, 0));
    }
    if unified {
        return Err(text.unsupported(DIM, "0 or null in gemma4_unified"));
    }
    let rows = text.count_opt(ROWS, MAX_SIZE)?.unwrap_or(vocab);
    if rows < vocab {
        return Err(text.invalid(ROWS, format!("at least vocab_size, {vocab}"), rows));
    }
    Ok((dim, rows))
}

fn dtype(text: &Fields, top: &Fields) -> Result<Option<String>> {
    for fields in [text, top] {
        for name in ["dtype", "torch_dtype"] {
            if let Some(dtype) = fields.string_opt(name)? {
                return Ok(Some(dtype.to_string()));
            }
        }
    }
    Ok(None)
}

fn eos(top: &Fields, text: &Fields) -> Result<Vec<u32>> {
    let mut ids = top.token_ids("eos_token_id")?;
    if ids.is_empty() {
        ids = text.token_ids("eos_token_id")?;
    }
    Ok(if ids.is_empty() { vec![1] } else { ids })
}

/// The end tokens of a config that may be unusable otherwise (a bundle's copy); empty when the file does not say.
pub(super) fn eos_of_file(path: &Path) -> Result<Vec<u32>> {
    let root = read_json(path)?;
    let top = Fields::top(path, &root)?;
    let text = top.object("text_config")?.unwrap_or_else(|| top.clone());
    eos(&top, &text)
}

/// The path of a snapshot's config, checked to exist.
pub(super) fn path_in(dir: &Path) -> Result<std::path::PathBuf> {
    let path = dir.join("config.json");
    if present(&path)? {
        return Ok(path);
    }
    Err(not_a_snapshot(dir).unwrap_or_else(|| Error::MissingFile {
        dir: dir.to_path_buf(),
        file: "config.json".into(),
        hint: "give the directory of a Hugging Face snapshot, or a hub id".into(),
    }))
}

#[cfg(test)]
mod tests;
