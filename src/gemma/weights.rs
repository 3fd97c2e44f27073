//! Checkpoint tensors as f32 candle tensors, layer by layer.

use candle_core::{Device, Tensor};

use crate::checkpoint::{Checkpoint, TensorView};

use super::error::{Error, Result};
use super::experts::Experts;
use super::plan::{LayerPlan, ModelPlan};

/// Reads a whole tensor as f32.
pub(super) fn load(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Result<Tensor> {
    let view = checkpoint.tensor(name, shape)?;
    rows(&view, 0, view.len(), shape)
}

/// Reads `len` elements from `start` on as an f32 tensor of the given shape.
pub(super) fn rows(view: &TensorView, start: usize, len: usize, shape: &[usize]) -> Result<Tensor> {
    let mut values = vec![0f32; len];
    view.read_f32(start..start.saturating_add(len), &mut values)?;
    tensor(values, shape, view.name)
}

/// An f32 tensor on the CPU.
pub(super) fn tensor(values: Vec<f32>, shape: &[usize], what: &str) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu).map_err(|source| Error::Compute {
        what: what.to_string(),
        source: Box::new(source),
    })
}

/// Per-layer embedding weights of a layer.
pub(super) struct PerLayerInput {
    pub gate: Tensor,
    pub projection: Tensor,
    pub norm: Tensor,
}

/// K and V weights of an owning layer.
pub(super) struct KeyValue {
    pub k_proj: Tensor,
    pub k_norm: Tensor,
    /// Absent where the value is the raw output of `k_proj`.
    pub v_proj: Option<Tensor>,
}

/// The weights of one decoder layer.
pub(super) struct LayerWeights {
    pub input_norm: Tensor,
    pub q_proj: Tensor,
    pub q_norm: Tensor,
    pub kv: Option<KeyValue>,
    pub o_proj: Tensor,
    pub post_attention_norm: Tensor,
    pub pre_feedforward_norm: Tensor,
    pub gate_proj: Tensor,
    pub up_proj: Tensor,
    pub down_proj: Tensor,
    pub experts: Option<Experts>,
    pub post_feedforward_norm: Tensor,
    pub per_layer: Option<PerLayerInput>,
    pub scalar: Tensor,
}

impl LayerWeights {
    /// Reads the tensors of a layer.
    pub fn load(checkpoint: &Checkpoint, plan: &ModelPlan, layer: &LayerPlan) -> Result<Self> {
        let prefix = layer.prefix();
        let mut loaded = std::collections::BTreeMap::new();
        for (name, shape) in plan.layer_tensors(layer) {
            let short = name.strip_prefix(&prefix).unwrap_or(&name).to_string();
            loaded.insert(short, load(checkpoint, &name, &shape)?);
        }
        // `layer_tensors` lists exactly the tensors of the layer, so an absent one is a tensor that the layer lacks.
        let mut optional = |name: &str| loaded.remove(name);
        let kv = match (
            optional("self_attn.k_proj.weight"),
            optional("self_attn.k_norm.weight"),
        ) {
            (Some(k_proj), Some(k_norm)) => Some(KeyValue {
                k_proj,
                k_norm,
                v_proj: optional("self_attn.v_proj.weight"),
            }),
            _ => None,
        };
        let per_layer = match (
            optional("per_layer_input_gate.weight"),
            optional("per_layer_projection.weight"),
            optional("post_per_layer_input_norm.weight"),
        ) {
            (Some(gate), Some(projection), Some(norm)) => Some(PerLayerInput {
                gate,
                projection,
                norm,
            }),
            _ => None,
        };
        let mut take = |name: &str| {
            let missing = || crate::checkpoint::Error::MissingTensor {
                dir: checkpoint.dir().to_path_buf(),
                tensor: format!("{prefix}{name}"),
                expected: Vec::new(),
            };
            loaded.remove(name).ok_or_else(missing)
        };
        let experts = match plan.moe {
            Some(moe) => Some(Experts {
                top_k: moe.top_k,
                post_mlp_norm: take("post_feedforward_layernorm_1.weight")?,
                scale: take("router.scale")?,
                router: take("router.proj.weight")?,
                per_expert_scale: take("router.per_expert_scale")?,
                pre_norm: take("pre_feedforward_layernorm_2.weight")?,
                gate_up: take("experts.gate_up_proj")?,
                down: take("experts.down_proj")?,
                post_norm: take("post_feedforward_layernorm_2.weight")?,
            }),
            None => None,
        };
        Ok(Self {
            input_norm: take("input_layernorm.weight")?,
            q_proj: take("self_attn.q_proj.weight")?,
            q_norm: take("self_attn.q_norm.weight")?,
            kv,
            o_proj: take("self_attn.o_proj.weight")?,
            post_attention_norm: take("post_attention_layernorm.weight")?,
            pre_feedforward_norm: take("pre_feedforward_layernorm.weight")?,
            gate_proj: take("mlp.gate_proj.weight")?,
            up_proj: take("mlp.up_proj.weight")?,
            down_proj: take("mlp.down_proj.weight")?,
            experts,
            post_feedforward_norm: take("post_feedforward_layernorm.weight")?,
            per_layer,
            scalar: take("layer_scalar")?,
        })
    }
}
