//! `model_config.json` and `provenance.json` of a conversion.

use super::job::Job;
use crate::bundle::provenance::{
    AdapterRecord, CheckpointRecord, FORMAT, FileRecord, TensorRecord, Tool,
};
use crate::bundle::{BundleConfig, Provenance};
use crate::checkpoint::{AdapterFormat, MergedAdapter};
use crate::graph::{CacheForm, ChunkSpec, FunctionKind};
use crate::quantize::ErrorStats;
use std::collections::BTreeMap;

/// First token of a prompt when the checkpoint's config does not say; the family's.
const BOS: u32 = 2;
/// End of sequence when the checkpoint's config does not say; the family's.
const EOS: u32 = 1;

impl Job<'_> {
    /// Which RoPE tables the full layers get.
    pub fn full_rope(&self) -> &'static str {
        if self.task.recipe.compat {
            "all-pairs"
        } else {
            "proportional"
        }
    }

    /// `model_config.json`.
    pub fn config(&self) -> BundleConfig {
        let (plan, text) = (self.plan, self.checkpoint.config());
        let recipe = &self.task.recipe;
        let per_layer = plan.ple_dim > 0;
        let decodes = |spec: &&ChunkSpec| spec.functions.contains(&FunctionKind::Decode);
        let specs = self.task.chunks.iter().map(|chunk| &chunk.spec);
        let (decode, prefill): (Vec<_>, Vec<_>) = specs.partition(decodes);
        let names = |specs: &[&ChunkSpec]| specs.iter().map(|s| s.name.clone()).collect();
        BundleConfig {
            model_name: self.task.model_id.to_string(),
            architecture: "gemma4".into(),
            hidden_size: plan.hidden,
            context_length: self.task.context,
            vocab_size: plan.vocab,
            bos_token_id: text.bos_token_id.unwrap_or(BOS),
            eos_token_id: text.eos_token_ids.first().copied().unwrap_or(EOS),
            per_layer_dim: plan.ple_dim,
            num_layers: plan.layers.len(),
            num_hidden_layers: Some(plan.layers.len()),
            sliding_window: plan.window,
            embed_scale: plan.embed_scale,
            per_layer_model_projection_scale: per_layer.then_some(plan.ple_projection_scale),
            per_layer_input_scale: per_layer.then_some(plan.ple_combine_scale),
            per_layer_embed_scale: per_layer.then_some(plan.ple_embed_scale),
            layer_types: plan
                .layers
                .iter()
                .map(|l| l.kind.hf_name().to_string())
                .collect(),
            num_kv_shared_layers: plan.layers.len() - plan.first_shared,
            num_attention_heads: plan.q_heads,
            num_key_value_heads: plan.sliding.kv_heads,
            head_dim: plan.sliding.head_dim,
            global_head_dim: plan.full.head_dim,
            rms_norm_eps: plan.eps,
            final_logit_softcapping: plan.softcap,
            quantization: self.task.recipe.quantize.default.to_string(),
            compute_units: "CPU_AND_NE".into(),
            tokenizer_repo: self.task.model_id.to_string(),
            num_global_key_value_heads: Some(plan.full.kv_heads),
            vocab_size_per_layer_input: per_layer.then_some(plan.ple_vocab),
            layout: recipe.layout.name().to_string(),
            chunks: names(&decode),
            prefill_chunks: names(&prefill),
            chunk_ends: decode.iter().map(|s| s.layers.end).collect(),
            full_attention_window: match recipe.cache {
                CacheForm::Window(positions) => Some(positions),
                _ => None,
            },
            pad_kv_heads: recipe.pad_kv_heads,
            table_format: recipe.quantize.tables,
            per_layer_table_format: (recipe.quantize.per_layer_tables)
                .filter(|scheme| per_layer && *scheme != recipe.quantize.tables),
            full_rope: self.full_rope().to_string(),
        }
    }

    /// `provenance.json` of a bundle of these tensors and files.
    pub fn provenance(
        &self,
        fingerprint: &str,
        tensors: Vec<TensorRecord>,
        files: BTreeMap<String, FileRecord>,
    ) -> Provenance {
        let passed = self.checkpoint.passed_over();
        Provenance {
            format: FORMAT,
            tool: Tool {
                name: env!("CARGO_PKG_NAME").to_string(),
                version: env!("CARGO_PKG_VERSION").to_string(),
            },
            recipe: self.task.record.clone(),
            packages: self.task.records.clone(),
            checkpoint: CheckpointRecord {
                sha256: fingerprint.to_string(),
                vision_tensors: passed.vision,
                audio_tensors: passed.audio,
                other_tensors: passed.other,
            },
            adapters: self
                .checkpoint
                .adapters()
                .iter()
                .map(adapter_record)
                .collect(),
            context: self.task.context,
            full_rope: self.full_rope().to_string(),
            tensors,
            files,
        }
    }
}

/// An adapter as `provenance.json` keeps it.
fn adapter_record(adapter: &MergedAdapter) -> AdapterRecord {
    let about = &adapter.about;
    let of = |format| about.factor.filter(|_| about.format == format);
    AdapterRecord {
        format: about.format.name().to_string(),
        method: about.method.name().to_string(),
        ranks: about.ranks.clone(),
        alpha: of(AdapterFormat::Peft),
        scale: of(AdapterFormat::MlxLm),
        base_model: about.base_name(),
        tensors: adapter.changed.len(),
        weights_sha256: about.weights_sha256.clone(),
        config_sha256: about.config_sha256.clone(),
    }
}

/// A record for provenance.json; `chosen` is scheme and reason, `size` elements and bytes.
pub(in crate::convert) fn tensor_record(
    tensor: &str,
    file: &str,
    chosen: (String, String),
    size: (u64, u64),
    stats: &ErrorStats,
) -> TensorRecord {
    let sqnr = stats.sqnr_db();
    TensorRecord {
        tensor: tensor.to_string(),
        file: file.to_string(),
        scheme: chosen.0,
        reason: chosen.1,
        elements: size.0,
        bytes: size.1,
        bits_per_weight: rounded(8.0 * size.1 as f64 / size.0.max(1) as f64),
        sqnr_db: sqnr.is_finite().then(|| rounded(sqnr)),
        max_abs_error: rounded(stats.max_abs),
        grid: None,
    }
}

/// Six significant digits: enough to read, and the same after a trip through the journal's JSON.
fn rounded(x: f64) -> f64 {
    format!("{x:.5e}").parse().unwrap_or(x)
}
