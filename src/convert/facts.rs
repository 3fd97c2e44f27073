//! `model_config.json` and `provenance.json` of a conversion.

use super::journal::Done;
use super::tables::row_format;
use super::task::Task;
use crate::bundle::provenance::{AdapterRecord, CheckpointRecord, FORMAT, RecipeRecord, Tool};
use crate::bundle::{BundleConfig, Provenance};
use crate::calibrate::Stats;
use crate::checkpoint::{AdapterFormat, Checkpoint, MergedAdapter};
use crate::gemma::ModelPlan;
use crate::graph::{CacheForm, ChunkSpec, FunctionKind};
use crate::recipe::Recipe;

/// First token of a prompt when the checkpoint's config does not say; the family's.
const BOS: u32 = 2;
/// End of sequence when the checkpoint's config does not say; the family's.
const EOS: u32 = 1;

/// Everything that decides a bundle.
pub(super) struct Job<'a> {
    pub checkpoint: &'a Checkpoint,
    pub plan: &'a ModelPlan,
    /// Recipe, context, packages, and what is kept of an earlier bundle.
    pub task: &'a Task,
}

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
            table_format: row_format(recipe.quantize.tables),
            full_rope: self.full_rope().to_string(),
        }
    }

    /// `provenance.json` of these units.
    pub fn provenance(&self, fingerprint: &str, done: &[&Done]) -> Provenance {
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
            adapters: self.checkpoint.adapters().iter().map(adapter_record).collect(),
            context: self.task.context,
            full_rope: self.full_rope().to_string(),
            tensors: done
                .iter()
                .flat_map(|d| d.tensors.iter().cloned())
                .collect(),
            files: done
                .iter()
                .flat_map(|d| d.files.iter().map(|(k, v)| (k.clone(), v.clone())))
                .collect(),
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

/// A recipe as `provenance.json` keeps it, with the statistics that it is applied with.
pub(super) fn recipe_record(recipe: &Recipe, calibration: Option<&Stats>) -> RecipeRecord {
    let used = calibration.filter(|_| recipe.quantize.calibrated_by().is_some());
    RecipeRecord {
        name: recipe.name.clone(),
        text: recipe.source.clone(),
        calibration: used.map(|stats| stats.sha256().to_string()),
    }
}
