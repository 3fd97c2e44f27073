//! The experts beside the MLP of a layer, and the router that chooses among them.
//!
//! Every expert is computed for the token, as two convolutions over all of them, and the chosen ones are picked from the
//! results: Core ML cannot skip weights by an index that it computes. [`ModelPlan::moe_cost`](crate::gemma::ModelPlan::moe_cost)
//! says what that costs.

use super::emitter::{Emitter, NormAxis, dim};
use super::error::{Error, Result};
use super::weights::tensor_name;
use crate::gemma::Moe;
use crate::mil::{GeluMode, TopkParams, Var};

/// The experts that a token is given to.
struct Chosen {
    /// Their indices, `(k,)` int32.
    index: Var,
    /// The factor on the output of each, `(1, k)`.
    weights: Var,
}

/// What stands in for the MLP's output `mlp` in a layer with experts: its norm plus the norm of the experts' output on
/// the stream `hidden` that the MLP was given before its norm.
pub(super) fn beside_mlp(
    e: &mut Emitter<'_>,
    layer: usize,
    moe: Moe,
    mlp: &Var,
    hidden: &Var,
) -> Result<Var> {
    if hidden.shape() != [1, e.plan.hidden, 1, 1] {
        return Err(Error::ExpertTokens {
            layer,
            shape: hidden.shape().to_vec(),
        });
    }
    let dense = e.layer_norm(mlp, layer, "post_feedforward_layernorm_1.weight")?;
    let chosen = route(e, layer, moe, hidden)?;
    let x = e.layer_norm(hidden, layer, "pre_feedforward_layernorm_2.weight")?;
    let x = experts(e, layer, moe, &x, &chosen)?;
    let x = e.layer_norm(&x, layer, "post_feedforward_layernorm_2.weight")?;
    Ok(e.fb.add(&dense, &x)?)
}

/// The router: a softmax over all experts whose largest values are then made to sum to one. That is the softmax over the
/// largest scores alone, which is what is written, in its parts.
fn route(e: &mut Emitter<'_>, layer: usize, moe: Moe, hidden: &Var) -> Result<Chosen> {
    let z = e.rms(hidden, NormAxis::Channels)?;
    let scale = e.layer_weight(layer, "router.scale")?;
    let z = e.fb.mul(&z, &scale)?;
    let root = e.fb.scalar_f16((e.plan.hidden as f32).powf(-0.5))?;
    let z = e.fb.mul(&z, &root)?;
    let scores = e.layer_linear(&z, layer, "router.proj.weight")?;
    let scores = e.reshape(&scores, &[moe.experts])?;
    let (top, index) = e.fb.topk(&scores, dim(moe.top_k)?, TopkParams::default())?;

    let max = e.fb.reduce_max(&top, &[0], true)?;
    let shifted = e.fb.sub(&top, &max)?;
    let exp = e.fb.exp(&shifted)?;
    let sum = e.fb.reduce_sum(&exp, &[0], true)?;
    let weights = e.fb.real_div(&exp, &sum)?;

    let factors = e.layer_weight(layer, "router.per_expert_scale")?;
    let factors = e.fb.gather(&factors, &index, 1, 0)?;
    let factors = e.reshape(&factors, &[1, moe.top_k])?;
    let weights = e.reshape(&weights, &[1, moe.top_k])?;
    let weights = e.fb.mul(&weights, &factors)?;
    Ok(Chosen { index, weights })
}

/// `sum of weight * down(gelu(gate(x)) * up(x))` over the chosen experts, on a normed stream.
fn experts(e: &mut Emitter<'_>, layer: usize, moe: Moe, x: &Var, chosen: &Chosen) -> Result<Var> {
    let (count, width, hidden) = (moe.experts, moe.intermediate, e.plan.hidden);
    let both = e.layer_linear(x, layer, "experts.gate_up_proj")?;
    // The rows of an expert: its gate, then its up.
    let both = e.reshape(&both, &[1, count, 2, width])?;
    let half = [1, count, 1, width];
    let gate = e.slice(&both, &[0, 0, 0, 0], &half)?;
    let up = e.slice(&both, &[0, 0, 1, 0], &half)?;
    let gate = e.fb.gelu(&gate, GeluMode::Tanh)?;
    let product = e.fb.mul(&gate, &up)?;
    let product = e.as_stream(&product, count * width)?;
    let down = tensor_name(layer, "experts.down_proj");
    let all = e.grouped_linear(&product, &down, count)?;
    let all = e.reshape(&all, &[count, hidden])?;
    let picked = e.fb.gather(&all, &chosen.index, 0, 0)?;
    let sum = e.fb.matmul(&chosen.weights, &picked, false, false)?;
    e.as_stream(&sum, hidden)
}
