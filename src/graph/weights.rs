//! Which checkpoint tensor fills which constant of a chunk.

use super::error::{Error, Result};
use super::forms::GraphOptions;
use super::split::ChunkSpec;
use crate::gemma::ModelPlan;
use crate::mil::{DType, DeferredConst};

/// A constant of a chunk and the checkpoint tensor that fills it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightBinding {
    /// The constant, fp16, in its shape in the graph.
    pub konst: DeferredConst,
    /// HF tensor name without prefix.
    pub tensor: String,
    /// Shape of the tensor in the checkpoint.
    pub source_shape: Vec<usize>,
    /// How the shape in the graph follows from it.
    pub layout: WeightLayout,
    /// What the weight is.
    pub kind: WeightKind,
}

/// How a tensor is laid out in the graph. The order of elements never changes, only the shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[out, in]` to `[out, in, 1, 1]`: the kernel of a 1x1 convolution. Axis 0 holds the output channels.
    Conv1x1,
    /// `[groups, out, in]` to `[groups * out, in, 1, 1]`: the matrices of a stack below each other, as the kernel of one
    /// 1x1 convolution. Axis 0 holds the output channels of one after those of the other.
    StackedConv1x1,
    /// `[n]` to `[1, n, 1, 1]`: one value per channel of a stream.
    Vector4,
    /// `[n]` to `[1, 1, 1, n]`: one value per element of the last axis.
    LastAxis4,
}

impl WeightLayout {
    /// Shape in the graph of a tensor of this source shape; `None` when the rank is not the layout's.
    pub fn shape(self, source: &[usize]) -> Option<Vec<usize>> {
        match (self, source) {
            (Self::Conv1x1, &[o, i]) => Some(vec![o, i, 1, 1]),
            (Self::StackedConv1x1, &[g, o, i]) => Some(vec![g.checked_mul(o)?, i, 1, 1]),
            (Self::Vector4, &[n]) => Some(vec![1, n, 1, 1]),
            (Self::LastAxis4, &[n]) => Some(vec![1, 1, 1, n]),
            _ => None,
        }
    }
}

/// What a weight is, for the rules of quantization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightKind {
    /// A linear layer.
    Projection,
    /// The gain of an RMSNorm, or `router.scale`, which follows one.
    Norm,
    /// A single number (`layer_scalar`), or one for each expert (`router.per_expert_scale`).
    Scalar,
    /// The language-model head: the tied embedding, without its `sqrt(H)`, or a tensor of its own. The embedding as well
    /// where packages look it up.
    Head,
}

impl WeightKind {
    /// Whether quantization rules apply; norms and scalars stay fp16.
    pub fn is_quantizable(self) -> bool {
        matches!(self, Self::Projection | Self::Head)
    }
}

pub(super) use crate::gemma::names::{
    EMBED, FINAL_NORM, OWN_HEAD, PER_LAYER_NORM as PLE_NORM, PER_LAYER_PROJECTION as PLE_PROJECTION,
};

/// `layers.{index}.{suffix}`.
pub(super) fn tensor_name(index: usize, suffix: &str) -> String {
    format!("layers.{index}.{suffix}")
}

/// The weights of a chunk in canonical blob order: per-layer inputs, layers, final norm, head; the embedding, where only
/// the first chunk looks it up or the head is another tensor, comes first. It depends on the layers of the chunk and on where its inputs are made, not on
/// its functions, so that packages with other functions have the same weight file.
///
/// # Errors
/// [`Error::WeightRank`] for a tensor that is neither a vector, a matrix nor a stack of matrices.
pub fn chunk_weights(
    plan: &ModelPlan,
    spec: &ChunkSpec,
    options: &GraphOptions,
) -> Result<Vec<WeightBinding>> {
    let mut list = Vec::new();
    let table = vec![plan.vocab, plan.hidden];
    let looked_up = spec.first && options.layout.takes_ids();
    if looked_up && !(spec.last && plan.head == EMBED) {
        list.push(binding(EMBED.to_owned(), table.clone())?);
    }
    if spec.first && plan.ple_dim > 0 && !options.cache.keeps_context() {
        let width = plan.layers.len() * plan.ple_dim;
        list.push(binding(
            PLE_PROJECTION.to_owned(),
            vec![width, plan.hidden],
        )?);
        list.push(binding(PLE_NORM.to_owned(), vec![plan.ple_dim])?);
    }
    for layer in &plan.layers[spec.layers.clone()] {
        for (tensor, shape) in plan.layer_tensors(layer) {
            list.push(binding(tensor, shape)?);
        }
    }
    if spec.last {
        list.push(binding(FINAL_NORM.to_owned(), vec![plan.hidden])?);
        list.push(binding(plan.head.to_owned(), table)?);
    }
    Ok(list)
}

fn binding(tensor: String, source_shape: Vec<usize>) -> Result<WeightBinding> {
    let (layout, kind) = role(&tensor, source_shape.len());
    let Some(shape) = layout.shape(&source_shape) else {
        return Err(Error::WeightRank {
            tensor,
            shape: source_shape,
        });
    };
    let konst = DeferredConst {
        id: tensor.replace('.', "_"),
        dtype: DType::Fp16,
        shape,
    };
    Ok(WeightBinding {
        konst,
        tensor,
        source_shape,
        layout,
        kind,
    })
}

fn role(tensor: &str, rank: usize) -> (WeightLayout, WeightKind) {
    if [EMBED, OWN_HEAD].contains(&tensor) {
        (WeightLayout::Conv1x1, WeightKind::Head)
    } else if tensor.ends_with("layer_scalar") || tensor.ends_with("router.per_expert_scale") {
        (WeightLayout::Vector4, WeightKind::Scalar)
    } else if rank == 3 {
        (WeightLayout::StackedConv1x1, WeightKind::Projection)
    } else if rank > 1 {
        (WeightLayout::Conv1x1, WeightKind::Projection)
    } else if tensor.ends_with("q_norm.weight")
        || tensor.ends_with("k_norm.weight")
        || tensor == PLE_NORM
    {
        (WeightLayout::LastAxis4, WeightKind::Norm)
    } else {
        (WeightLayout::Vector4, WeightKind::Norm)
    }
}
