//! One decoder layer in f32, as `modeling_gemma4.py` of transformers 5.23 computes it.

use candle_core::{D, Result, Tensor};

use crate::checkpoint::LayerKind;

use super::math::rms_norm;
use super::observe::Linears;
use super::plan::LayerPlan;
use super::weights::{KeyValue, LayerWeights};

/// Cosines and sines of the positions of a pass, `[S, 1, head_dim]`.
pub(super) struct Rotary {
    pub cos: Tensor,
    pub sin: Tensor,
}

impl Rotary {
    /// The first `rows` positions.
    pub fn first(&self, rows: usize) -> Result<Self> {
        Ok(Self {
            cos: self.cos.narrow(0, 0, rows)?,
            sin: self.sin.narrow(0, 0, rows)?,
        })
    }

    /// Rotates `[S, heads, head_dim]`: dim `i` against dim `i + head_dim / 2`.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.dim(D::Minus1)? / 2;
        let (low, high) = (
            x.narrow(D::Minus1, 0, half)?,
            x.narrow(D::Minus1, half, half)?,
        );
        let turned = Tensor::cat(&[&high.neg()?, &low], D::Minus1)?;
        x.broadcast_mul(&self.cos)? + turned.broadcast_mul(&self.sin)?
    }
}

/// K and V of an owning layer, `[kv_heads, T, head_dim]` each.
#[derive(Debug, Clone)]
pub(super) struct KvPair {
    pub k: Tensor,
    pub v: Tensor,
}

impl KvPair {
    /// Number of positions held.
    pub fn len(&self) -> Result<usize> {
        self.k.dim(1)
    }

    fn append(&self, new: &Self) -> Result<Self> {
        Ok(Self {
            k: Tensor::cat(&[&self.k, &new.k], 1)?,
            v: Tensor::cat(&[&self.v, &new.v], 1)?,
        })
    }

    /// The last `keep` positions, or all of them when there are fewer.
    pub fn tail(&self, keep: usize) -> Result<Self> {
        let len = self.len()?;
        let keep = keep.min(len);
        Ok(Self {
            k: self.k.narrow(1, len - keep, keep)?.contiguous()?,
            v: self.v.narrow(1, len - keep, keep)?.contiguous()?,
        })
    }
}

/// What a layer needs besides its weights.
pub(super) struct LayerInput<'a> {
    pub plan: &'a LayerPlan,
    pub q_heads: usize,
    pub eps: f64,
    pub rotary: &'a Rotary,
    /// Earlier K and V of an owning layer; for a sharing layer, those of its source, this pass included.
    pub kv: Option<&'a KvPair>,
    /// `[S, D]` slice of the per-layer input, where there is one.
    pub per_layer: Option<Tensor>,
    /// Position of the first token of the pass.
    pub start: usize,
    pub window: usize,
}

/// Runs a layer on the stream `h`, `[S, hidden]`. Returns the new stream and, from an owning layer, K and V of every position
/// known to it, this pass included.
pub(super) fn forward(
    h: &Tensor,
    w: &LayerWeights,
    input: &LayerInput,
    linears: &mut Linears,
) -> Result<(Tensor, Option<KvPair>)> {
    let eps = input.eps;
    let a = rms_norm(h, Some(&w.input_norm), eps)?;
    let own = match &w.kv {
        Some(weights) => {
            let new = key_value(&a, weights, input, linears)?;
            Some(match input.kv {
                Some(past) => past.append(&new)?,
                None => new,
            })
        }
        None => None,
    };
    let attended = match own.as_ref().or(input.kv) {
        Some(kv) => attention(&a, kv, w, input, linears)?,
        None => candle_core::bail!("layer {} has no K and V", input.plan.index),
    };
    let o = linears.apply("self_attn.o_proj.weight", &attended, &w.o_proj)?;
    let mut h = (h + rms_norm(&o, Some(&w.post_attention_norm), eps)?)?;

    let x = rms_norm(&h, Some(&w.pre_feedforward_norm), eps)?;
    let gate = linears.apply("mlp.gate_proj.weight", &x, &w.gate_proj)?;
    let up = linears.apply("mlp.up_proj.weight", &x, &w.up_proj)?;
    let gated = (gate.gelu()? * up)?;
    let mut m = linears.apply("mlp.down_proj.weight", &gated, &w.down_proj)?;
    if let Some(experts) = &w.experts {
        m = experts.beside(&m, &h, eps, linears)?;
    }
    h = (h + rms_norm(&m, Some(&w.post_feedforward_norm), eps)?)?;

    if let (Some(ple), Some(row)) = (&w.per_layer, &input.per_layer) {
        let gate = linears.apply("per_layer_input_gate.weight", &h, &ple.gate)?;
        let gated = (gate.gelu()? * row)?;
        let projected = linears.apply("per_layer_projection.weight", &gated, &ple.projection)?;
        h = (h + rms_norm(&projected, Some(&ple.norm), eps)?)?;
    }
    Ok((h.broadcast_mul(&w.scalar)?, own))
}

/// K and V of the positions of this pass. Norm before rotation; the value has a norm without weight and no rotation.
fn key_value(
    a: &Tensor,
    w: &KeyValue,
    input: &LayerInput,
    linears: &mut Linears,
) -> Result<KvPair> {
    let heads = |x: Tensor| x.reshape((a.dim(0)?, input.plan.kv_heads, input.plan.head_dim));
    let raw_k = heads(linears.apply("self_attn.k_proj.weight", a, &w.k_proj)?)?;
    let raw_v = match &w.v_proj {
        Some(v_proj) => heads(linears.apply("self_attn.v_proj.weight", a, v_proj)?)?,
        None => raw_k.clone(),
    };
    let k = input
        .rotary
        .apply(&rms_norm(&raw_k, Some(&w.k_norm), input.eps)?)?;
    let v = rms_norm(&raw_v, None, input.eps)?;
    Ok(KvPair {
        k: k.transpose(0, 1)?.contiguous()?,
        v: v.transpose(0, 1)?.contiguous()?,
    })
}

/// Attention with scale 1, `[S, q_heads * head_dim]`. K/V head j serves the query heads `j * group..(j + 1) * group`.
fn attention(
    a: &Tensor,
    kv: &KvPair,
    w: &LayerWeights,
    input: &LayerInput,
    linears: &mut Linears,
) -> Result<Tensor> {
    let (rows, d, heads) = (a.dim(0)?, input.plan.head_dim, input.q_heads);
    let (kv_heads, keys) = (input.plan.kv_heads, kv.len()?);
    let group = heads / kv_heads;
    let q = linears.apply("self_attn.q_proj.weight", a, &w.q_proj)?;
    let q = q.reshape((rows, heads, d))?;
    let q = input
        .rotary
        .apply(&rms_norm(&q, Some(&w.q_norm), input.eps)?)?;
    let q = q
        .transpose(0, 1)?
        .contiguous()?
        .reshape((kv_heads, group * rows, d))?;
    let scores = q.matmul(&kv.k.transpose(1, 2)?)?;
    let mask = mask(rows, keys, input)?;
    let scores = scores.reshape((heads, rows, keys))?.broadcast_add(&mask)?;
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    let out = weights
        .reshape((kv_heads, group * rows, keys))?
        .matmul(&kv.v)?;
    let out = out.reshape((heads, rows, d))?.transpose(0, 1)?;
    out.reshape((rows, heads * d))
}

/// `[S, T]` of 0 and -infinity. The keys are those of the last T positions up to the end of this pass.
fn mask(rows: usize, keys: usize, input: &LayerInput) -> Result<Tensor> {
    let first_key = input.start + rows - keys;
    let mut values = Vec::with_capacity(rows * keys);
    for row in 0..rows {
        let position = input.start + row;
        values.extend((first_key..first_key + keys).map(|key| {
            let in_window = input.plan.kind == LayerKind::Full || key + input.window > position;
            if key <= position && in_window {
                0f32
            } else {
                f32::NEG_INFINITY
            }
        }));
    }
    Tensor::from_vec(values, (rows, keys), &candle_core::Device::Cpu)
}
