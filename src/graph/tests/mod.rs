//! Graphs against the bundle contract, literally.

mod contract;
mod experts;
mod family;
mod structure;
mod variants;

use std::path::Path;

use serde_json::{Value, json};

use super::{ChunkGraph, GraphOptions, Layout, build_chunk, split};
use crate::checkpoint::TextConfig;
use crate::gemma::ModelPlan;
use crate::mil::{Function, TensorType};

/// A model of the family from its config.json; `kinds` holds one letter per layer, `s` or `f`.
fn plan(kinds: &str, fields: Value) -> ModelPlan {
    try_plan(kinds, fields).unwrap()
}

/// As [`plan`]; nothing when a layer shares K/V that no layer of its kind has.
fn try_plan(kinds: &str, fields: Value) -> Option<ModelPlan> {
    let types: Vec<_> = kinds
        .chars()
        .map(|c| {
            if c == 's' {
                "sliding_attention"
            } else {
                "full_attention"
            }
        })
        .collect();
    let rope = json!({
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
    });
    let mut config = json!({
        "model_type": "gemma4_text", "vocab_size": 262144, "num_hidden_layers": types.len(), "layer_types": types,
        "rope_parameters": rope, "rms_norm_eps": 1e-6, "final_logit_softcapping": 30.0,
        "max_position_embeddings": 131072, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true,
        "vocab_size_per_layer_input": 262144, "head_dim": 256, "global_head_dim": 512, "sliding_window": 512,
        "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "use_double_wide_mlp": false,
    });
    for (key, value) in fields.as_object().expect("fields are an object") {
        config[key] = value.clone();
    }
    let bytes = serde_json::to_vec(&config).unwrap();
    let config = TextConfig::parse(Path::new("config.json"), &bytes).ok()?;
    ModelPlan::new(&config).ok()
}

fn e2b() -> ModelPlan {
    plan(
        &"ssssf".repeat(7),
        json!({
            "hidden_size": 1536, "intermediate_size": 6144, "num_attention_heads": 8, "num_key_value_heads": 1,
            "num_kv_shared_layers": 20, "use_double_wide_mlp": true, "hidden_size_per_layer_input": 256,
        }),
    )
}

fn e4b() -> ModelPlan {
    plan(
        &"sssssf".repeat(7),
        json!({
            "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 8, "num_key_value_heads": 2,
            "num_kv_shared_layers": 18, "hidden_size_per_layer_input": 256,
        }),
    )
}

fn dense_12b() -> ModelPlan {
    plan(
        &"sssssf".repeat(8),
        json!({
            "hidden_size": 3840, "intermediate_size": 15360, "num_attention_heads": 16, "num_key_value_heads": 8,
            "num_global_key_value_heads": 1, "attention_k_eq_v": true, "sliding_window": 1024,
        }),
    )
}

fn a4b() -> ModelPlan {
    plan(
        &"sssssf".repeat(5),
        json!({
            "hidden_size": 2816, "intermediate_size": 2112, "num_attention_heads": 16, "num_key_value_heads": 8,
            "num_global_key_value_heads": 2, "attention_k_eq_v": true, "sliding_window": 1024,
            "enable_moe_block": true, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704,
        }),
    )
}

/// A small model; `kinds` and the number of sharing layers decide what its chunks hold.
fn small(kinds: &str, shared: usize) -> ModelPlan {
    try_small(kinds, shared).unwrap()
}

fn try_small(kinds: &str, shared: usize) -> Option<ModelPlan> {
    try_plan(
        kinds,
        json!({
            "vocab_size": 96, "vocab_size_per_layer_input": 96, "hidden_size": 64, "intermediate_size": 128,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32,
            "sliding_window": 8, "num_kv_shared_layers": shared, "hidden_size_per_layer_input": 8,
            "max_position_embeddings": 64,
        }),
    )
}

fn swa4(plan: &ModelPlan, context: usize) -> Vec<ChunkGraph> {
    let specs = split::chunks(plan, Layout::Swa4).unwrap();
    specs
        .iter()
        .map(|s| build_chunk(plan, s, &GraphOptions::decode(context)).unwrap())
        .collect()
}

fn main_of(graph: &ChunkGraph) -> &Function {
    &graph.program.functions["main"]
}

/// `name dtype[d, d, d]`, in order.
fn inputs(f: &Function) -> Vec<String> {
    f.inputs.iter().map(|i| feature(&i.name, &i.ty)).collect()
}

fn outputs(f: &Function) -> Vec<String> {
    f.outputs
        .iter()
        .map(|name| feature(name, type_of(f, name)))
        .collect()
}

fn feature(name: &str, ty: &TensorType) -> String {
    format!("{name} {}{:?}", ty.dtype, ty.shape)
}

fn type_of<'a>(f: &'a Function, name: &str) -> &'a TensorType {
    let values = f.ops.iter().flat_map(|op| &op.outputs);
    values
        .filter(|(n, _)| n == name)
        .map(|(_, ty)| ty)
        .next()
        .unwrap_or_else(|| panic!("no value `{name}`"))
}
