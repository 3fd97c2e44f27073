//! One decoder layer, for every layout, function, cache and attention form.

use super::GraphOptions;
use super::attention::attend;
use super::cache::{KeysValues, KvCache};
use super::emitter::{Emitter, NormAxis};
use super::error::Result;
use super::experts::beside_mlp;
use super::ffn::feed_forward;
use super::inputs::{Inputs, Rope};
use super::weights::tensor_name;
use crate::gemma::{KvRole, LayerPlan};
use crate::mil::Var;

/// The stream after a layer. Its last value is kept under the name `layer_{i}_out`.
pub(super) fn decoder_layer(
    e: &mut Emitter<'_>,
    options: &GraphOptions,
    layer: &LayerPlan,
    inputs: &Inputs,
    cache: &mut dyn KvCache,
    hidden: &Var,
) -> Result<Var> {
    let i = layer.index;
    e.fb.push_scope(&format!("layer_{i}"));
    let attention = attention_block(e, options, layer, inputs, cache, hidden)?;
    let hidden = e.fb.add(hidden, &attention)?;

    let x = e.layer_norm(&hidden, i, "pre_feedforward_layernorm.weight")?;
    let mut x = feed_forward(e, layer, &x)?;
    if let Some(moe) = e.plan.moe {
        x = beside_mlp(e, i, moe, &x, &hidden)?;
    }
    let x = e.layer_norm(&x, i, "post_feedforward_layernorm.weight")?;
    let mut hidden = e.fb.add(&hidden, &x)?;

    if let Some(per_layer) = &inputs.per_layer {
        let x = per_layer_block(e, i, &hidden, per_layer)?;
        hidden = e.fb.add(&hidden, &x)?;
    }
    let scalar = e.layer_weight(i, "layer_scalar")?;
    let hidden = e.fb.mul(&hidden, &scalar)?;
    e.fb.pop_scope();
    Ok(e.fb.name_value(&hidden, &format!("layer_{i}_out"))?)
}

/// Norm, attention, output projection, norm.
fn attention_block(
    e: &mut Emitter<'_>,
    options: &GraphOptions,
    layer: &LayerPlan,
    inputs: &Inputs,
    cache: &mut dyn KvCache,
    hidden: &Var,
) -> Result<Var> {
    let i = layer.index;
    let x = e.layer_norm(hidden, i, "input_layernorm.weight")?;
    let rope_row = inputs.rope(layer.kind);

    let q = e.layer_linear(&x, i, "self_attn.q_proj.weight")?;
    let q = e.as_heads(&q, e.plan.q_heads, layer.head_dim)?;
    let q = e.rms_norm(
        &q,
        NormAxis::Last,
        &tensor_name(i, "self_attn.q_norm.weight"),
    )?;
    let q = rope(e, &q, rope_row)?;

    let kv = match layer.kv {
        KvRole::Own { .. } => own_kv(e, layer, &x, rope_row, cache)?,
        KvRole::Shared { source } => cache.shared(layer, source)?,
    };
    let out = attend(e, options, layer, &q, &kv)?;
    let out = e.layer_linear(&out, i, "self_attn.o_proj.weight")?;
    e.layer_norm(&out, i, "post_attention_layernorm.weight")
}

/// The key and value of this token, into the cache. The value has a norm without gain and no RoPE; with `k_eq_v` it is
/// made from the raw key.
fn own_kv(
    e: &mut Emitter<'_>,
    layer: &LayerPlan,
    x: &Var,
    rope_row: &Rope,
    cache: &mut dyn KvCache,
) -> Result<KeysValues> {
    let i = layer.index;
    let k = e.layer_linear(x, i, "self_attn.k_proj.weight")?;
    let k = e.as_heads(&k, layer.kv_heads, layer.head_dim)?;
    let v = if layer.k_eq_v {
        k.clone()
    } else {
        let v = e.layer_linear(x, i, "self_attn.v_proj.weight")?;
        e.as_heads(&v, layer.kv_heads, layer.head_dim)?
    };
    let k = e.rms_norm(
        &k,
        NormAxis::Last,
        &tensor_name(i, "self_attn.k_norm.weight"),
    )?;
    let k = rope(e, &k, rope_row)?;
    let v = e.rms(&v, NormAxis::Last)?;
    cache.update(e, layer, &k, &v)
}

/// `x * cos + rotate_half(x) * sin` over the whole last axis, with `rotate_half([a, b]) = [-b, a]`.
fn rope(e: &mut Emitter<'_>, x: &Var, rope_row: &Rope) -> Result<Var> {
    let mut half = x.shape().to_vec();
    let d = half[3];
    half[3] = d / 2;
    let a = e.slice(x, &[0, 0, 0, 0], &half)?;
    let b = e.slice(x, &[0, 0, 0, d / 2], &half)?;
    let minus_one = e.fb.scalar_f16(-1.0)?;
    let b = e.fb.mul(&b, &minus_one)?;
    let rotated = e.fb.concat(&[b, a], 3)?;
    let straight = e.fb.mul(x, &rope_row.cos)?;
    let turned = e.fb.mul(&rotated, &rope_row.sin)?;
    Ok(e.fb.add(&straight, &turned)?)
}

/// The per-layer input of this layer, gated by the stream (not normed) and projected back.
fn per_layer_block(e: &mut Emitter<'_>, i: usize, hidden: &Var, per_layer: &Var) -> Result<Var> {
    let d = e.plan.ple_dim;
    let slice = e.slice(per_layer, &[0, i * d, 0, 0], &[1, d, 1, e.tokens])?;
    let gate = e.layer_linear(hidden, i, "per_layer_input_gate.weight")?;
    let gate = e.fb.gelu(&gate, crate::mil::GeluMode::Tanh)?;
    let gated = e.fb.mul(&gate, &slice)?;
    let out = e.layer_linear(&gated, i, "per_layer_projection.weight")?;
    e.layer_norm(&out, i, "post_per_layer_input_norm.weight")
}
