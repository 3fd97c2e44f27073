//! Checkpoint tensors as f32 candle tensors, layer by layer.

use candle_core::{Device, Tensor};

use crate::checkpoint::Checkpoint;

use super::error::{Error, Result};
use super::experts::Experts;
use super::plan::{LayerPlan, ModelPlan};

/// Weights in the place of a checkpoint's: those of a written bundle, say.
pub trait WeightSource: Sync {
    /// Elements from `start` on of the tensor `name` (without prefix), row-major in its shape in the checkpoint, into `out`.
    ///
    /// # Errors
    /// Whatever keeps it from giving them.
    fn read(
        &self,
        name: &str,
        start: usize,
        out: &mut [f32],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// Where weights come from: a checkpoint, or a source in its place.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub checkpoint: &'a Checkpoint,
    pub source: Option<&'a dyn WeightSource>,
}

impl<'a> From<&'a Checkpoint> for Weights<'a> {
    fn from(checkpoint: &'a Checkpoint) -> Self {
        Self {
            checkpoint,
            source: None,
        }
    }
}

impl Weights<'_> {
    /// Reads `out.len()` elements of a tensor from `start` on.
    fn read(&self, name: &str, shape: &[usize], start: usize, out: &mut [f32]) -> Result<()> {
        let Some(source) = self.source else {
            let view = self.checkpoint.tensor(name, shape)?;
            return Ok(view.read_f32(start..start.saturating_add(out.len()), out)?);
        };
        let failed = |source| Error::Weight {
            tensor: name.to_string(),
            source,
        };
        source.read(name, start, out).map_err(failed)
    }

    /// Rows `first..first + rows` of a matrix of `shape`, `[rows, in]`.
    pub fn rows(&self, name: &str, shape: [usize; 2], first: usize, rows: usize) -> Result<Tensor> {
        let mut values = vec![0f32; rows * shape[1]];
        self.read(name, &shape, first * shape[1], &mut values)?;
        tensor(values, &[rows, shape[1]], name)
    }
}

/// Reads a whole tensor as f32.
pub(super) fn load<'w>(
    from: impl Into<Weights<'w>>,
    name: &str,
    shape: &[usize],
) -> Result<Tensor> {
    let mut values = vec![0f32; shape.iter().product()];
    from.into().read(name, shape, 0, &mut values)?;
    tensor(values, shape, name)
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
    pub fn load<'w>(
        from: impl Into<Weights<'w>>,
        plan: &ModelPlan,
        layer: &LayerPlan,
    ) -> Result<Self> {
        let from = from.into();
        let prefix = layer.prefix();
        let mut loaded = std::collections::BTreeMap::new();
        for (name, shape) in plan.layer_tensors(layer) {
            let short = name.strip_prefix(&prefix).unwrap_or(&name).to_string();
            loaded.insert(short, load(from, &name, &shape)?);
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
                dir: from.checkpoint.dir().to_path_buf(),
                tensor: format!("{prefix}{name}"),
                expected: Vec::new(),
                notes: String::new(),
                hint: None,
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
