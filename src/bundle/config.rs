//! `model_config.json` (bundle contract, 4.3).

use super::error::{Error, Result, at};
use super::layout;
use crate::quantize::TableScheme;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Model facts of a bundle. Keys up to `tokenizer_repo` are the published runtime's; the rest are ours and have defaults,
/// so that a published bundle's file reads as well. Unknown keys are passed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BundleConfig {
    /// Free text.
    pub model_name: String,
    /// Always `gemma4`.
    pub architecture: String,
    /// H, the width of the stream.
    pub hidden_size: usize,
    /// Positions of the full-attention cache.
    pub context_length: usize,
    /// V, rows of the embedding table and of the head.
    pub vocab_size: usize,
    /// First token of a prompt.
    pub bos_token_id: u32,
    /// The end-of-sequence token; further stop ids are in `hf_model/generation_config.json`.
    pub eos_token_id: u32,
    /// D, the width of one layer's per-layer embedding; 0 when the model has none.
    pub per_layer_dim: usize,
    /// L.
    pub num_layers: usize,
    /// L again: runtimes read either key.
    #[serde(default)]
    pub num_hidden_layers: Option<usize>,
    /// Positions a sliding layer sees, itself included.
    pub sliding_window: usize,
    /// sqrt(H): embedding rows are multiplied by it.
    pub embed_scale: f64,
    /// H^-0.5; absent without per-layer embeddings, like the next two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_layer_model_projection_scale: Option<f64>,
    /// 2^-0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_layer_input_scale: Option<f64>,
    /// sqrt(D): per-layer rows are multiplied by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_layer_embed_scale: Option<f64>,
    /// `sliding_attention` or `full_attention`, one per layer.
    pub layer_types: Vec<String>,
    /// Upper layers that read another layer's K and V.
    pub num_kv_shared_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// KV heads of sliding layers.
    pub num_key_value_heads: usize,
    /// Head dimension of sliding layers.
    pub head_dim: usize,
    /// Head dimension of full layers.
    pub global_head_dim: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f64,
    /// Logits are c * tanh(x / c); none when null.
    pub final_logit_softcapping: Option<f64>,
    /// Scheme of the weights, free text: the recipe's default.
    pub quantization: String,
    /// Where the runtime should run it, `CPU_AND_NE`.
    pub compute_units: String,
    /// Where the tokenizer came from, free text.
    pub tokenizer_repo: String,

    /// KV heads of full layers; the sliding layers' when absent.
    #[serde(default)]
    pub num_global_key_value_heads: Option<usize>,
    /// Rows of the per-layer table; `vocab_size` when absent.
    #[serde(default)]
    pub vocab_size_per_layer_input: Option<usize>,
    /// Chunk split, `swa4`.
    #[serde(default = "default_layout")]
    pub layout: String,
    /// Packages of decode without suffix, in the order they run. Where they are not named, the files tell (`layout::find`).
    #[serde(default)]
    pub chunks: Vec<String>,
    /// Packages of prefill without suffix, in the order they run.
    #[serde(default)]
    pub prefill_chunks: Vec<String>,
    /// The layer behind the last of each chunk of decode.
    #[serde(default)]
    pub chunk_ends: Vec<usize>,
    /// Positions that full layers keep, where that is fewer than the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_attention_window: Option<usize>,
    /// KV heads of the caches are padded to a multiple of this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_kv_heads: Option<usize>,
    /// Format of the row tables.
    #[serde(default)]
    pub table_format: TableScheme,
    /// Format of the per-layer table, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_layer_table_format: Option<TableScheme>,
    /// `proportional`, or `all-pairs` (full-layer RoPE tables as published, which rotate every pair).
    #[serde(default = "default_rope")]
    pub full_rope: String,
}

fn default_layout() -> String {
    "swa4".into()
}

fn default_rope() -> String {
    "proportional".into()
}

impl BundleConfig {
    /// Reads and checks `model_config.json` of bundle `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(layout::MODEL_CONFIG);
        let text = std::fs::read(&path).map_err(at(&path))?;
        let mut config: Self = serde_json::from_slice(&text).map_err(|e| Error::Json {
            path: path.clone(),
            reason: e.to_string(),
        })?;
        if config.chunks.is_empty() {
            (config.chunks, config.prefill_chunks) = layout::find(dir);
        }
        config.check()?;
        Ok(config)
    }

    /// The file's text: pretty JSON, keys in declaration order, trailing newline.
    pub fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self).map_err(|e| Error::Json {
            path: layout::MODEL_CONFIG.into(),
            reason: e.to_string(),
        })?;
        text.push('\n');
        Ok(text)
    }

    /// L * D, the width of a per-layer row; 0 without per-layer embeddings.
    pub fn per_layer_width(&self) -> usize {
        self.num_layers * self.per_layer_dim
    }

    /// KV heads of full layers.
    pub fn full_kv_heads(&self) -> usize {
        self.num_global_key_value_heads
            .unwrap_or(self.num_key_value_heads)
    }

    /// KV heads of a cache that holds layers of so many.
    pub fn cache_heads(&self, kv_heads: usize) -> usize {
        kv_heads.next_multiple_of(self.pad_kv_heads.unwrap_or(1).max(1))
    }

    /// Positions of the caches of full layers.
    pub fn full_positions(&self) -> usize {
        self.full_attention_window.unwrap_or(self.context_length)
    }

    /// The layer behind the last of each chunk of decode: as written, else the cuts of the published four or three chunks.
    pub fn chunk_ends(&self) -> Vec<usize> {
        let (layers, own) = (self.num_layers, self.num_layers - self.num_kv_shared_layers);
        let four = match own == layers {
            true => (1..=4).map(|i| (2 * i * layers + 4) / 8).collect(),
            false => vec![own.div_ceil(2), own, own + (layers - own) / 2, layers],
        };
        match self.chunks.len() {
            _ if !self.chunk_ends.is_empty() => self.chunk_ends.clone(),
            4 => four,
            3 => vec![four[0], four[2], four[3]],
            _ => Vec::new(),
        }
    }

    /// Rows of the per-layer table.
    pub fn per_layer_rows(&self) -> usize {
        self.vocab_size_per_layer_input.unwrap_or(self.vocab_size)
    }

    /// Format of the per-layer table.
    pub fn per_layer_table_format(&self) -> TableScheme {
        self.per_layer_table_format.unwrap_or(self.table_format)
    }

    /// Checks what can be checked without the other files.
    pub fn check(&self) -> Result<()> {
        if self.architecture != "gemma4" {
            return wrong("architecture", "\"gemma4\"", &self.architecture);
        }
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("context_length", self.context_length),
            ("vocab_size", self.vocab_size),
            ("num_layers", self.num_layers),
            ("sliding_window", self.sliding_window),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("num_global_key_value_heads", self.full_kv_heads()),
            ("head_dim", self.head_dim),
            ("global_head_dim", self.global_head_dim),
            ("vocab_size_per_layer_input", self.per_layer_rows()),
            ("full_attention_window", self.full_positions()),
            ("pad_kv_heads", self.pad_kv_heads.unwrap_or(1)),
        ];
        for (field, value) in sizes {
            // Every size is a count of something in memory: the bound keeps products of two from overflowing.
            if value == 0 || value > MAX_SIZE {
                return wrong(field, &format!("1 to {MAX_SIZE}"), &value.to_string());
            }
        }
        if self.per_layer_dim > MAX_SIZE {
            return wrong(
                "per_layer_dim",
                &format!("at most {MAX_SIZE}"),
                &self.per_layer_dim.to_string(),
            );
        }
        if self.num_hidden_layers.is_some_and(|n| n != self.num_layers) {
            return wrong(
                "num_hidden_layers",
                &self.num_layers.to_string(),
                &format!("{:?}", self.num_hidden_layers),
            );
        }
        if self.layer_types.len() != self.num_layers {
            return wrong(
                "layer_types",
                &format!("{} entries", self.num_layers),
                &self.layer_types.len().to_string(),
            );
        }
        if let Some(kind) = self
            .layer_types
            .iter()
            .find(|k| *k != "sliding_attention" && *k != "full_attention")
        {
            return wrong("layer_types", "sliding_attention or full_attention", kind);
        }
        if self.num_kv_shared_layers >= self.num_layers {
            return wrong(
                "num_kv_shared_layers",
                &format!("below {}", self.num_layers),
                &self.num_kv_shared_layers.to_string(),
            );
        }
        if !(self.embed_scale.is_finite() && self.embed_scale > 0.0) {
            return wrong(
                "embed_scale",
                "a positive number",
                &self.embed_scale.to_string(),
            );
        }
        if self.per_layer_dim > 0
            && !self
                .per_layer_embed_scale
                .is_some_and(|s| s.is_finite() && s > 0.0)
        {
            return wrong(
                "per_layer_embed_scale",
                "a positive number",
                &format!("{:?}", self.per_layer_embed_scale),
            );
        }
        self.check_chunks()
    }

    fn check_chunks(&self) -> Result<()> {
        if self.chunks.is_empty() {
            return wrong(
                "chunks",
                "at least one name, or packages of a known layout",
                "none",
            );
        }
        let all: Vec<&String> = self.chunks.iter().chain(&self.prefill_chunks).collect();
        for (i, name) in all.iter().enumerate() {
            let plain =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !plain {
                return wrong("chunks", "names of letters, digits and _", name);
            }
            if all[..i].contains(name) {
                return wrong("chunks", "distinct names", name);
            }
        }
        let ends = &self.chunk_ends;
        let rising = ends.windows(2).all(|w| w[0] < w[1]) && ends.first() != Some(&0);
        let whole = ends.len() == self.chunks.len() && ends.last() == Some(&self.num_layers);
        if !(ends.is_empty() || rising && whole) {
            let expected = format!(
                "{} rising ends up to {}",
                self.chunks.len(),
                self.num_layers
            );
            return wrong("chunk_ends", &expected, &format!("{ends:?}"));
        }
        Ok(())
    }
}

/// Largest plausible size of one dimension.
const MAX_SIZE: usize = 1 << 26;

fn wrong(field: &'static str, expected: &str, got: &str) -> Result<()> {
    Err(Error::Config {
        field,
        expected: expected.into(),
        got: got.into(),
    })
}
