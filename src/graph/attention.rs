//! How a query attends to its keys.

use super::cache::KeysValues;
use super::emitter::Emitter;
use super::error::{Error, Result};
use super::{AttentionForm, GraphOptions};
use crate::gemma::{LayerKind, LayerPlan};
use crate::mil::Var;

/// Attention of one layer: `q` `(1, q_heads, T, head_dim)` after norm and RoPE, result as a stream
/// `(1, q_heads * head_dim, 1, T)`. The scale is 1.
pub(super) fn attend(
    e: &mut Emitter<'_>,
    options: &GraphOptions,
    layer: &LayerPlan,
    q: &Var,
    kv: &KeysValues,
) -> Result<Var> {
    let heads = e.plan.q_heads;
    if layer.kv_heads == 0 || !heads.is_multiple_of(layer.kv_heads) {
        return Err(Error::HeadGroups {
            layer: layer.index,
            query_heads: heads,
            kv_heads: layer.kv_heads,
        });
    }
    // KV head j serves query heads j*g .. (j+1)*g: with the group on the row axis nothing need be repeated.
    let grouped = e.reshape(
        q,
        &[
            1,
            layer.kv_heads,
            heads / layer.kv_heads * e.tokens,
            layer.head_dim,
        ],
    )?;
    let out = match (options.attention, layer.kind) {
        (AttentionForm::Flash(keys), LayerKind::Full) => flash(e, &grouped, kv, keys)?,
        (AttentionForm::Standard | AttentionForm::Flash(_), _) => standard(e, &grouped, kv)?,
    };
    e.heads_as_stream(&out, heads, layer.head_dim)
}

/// All keys at once. The softmax is written in its parts; a masked score is -inf and its weight exactly 0, and at least
/// one slot of each mask is valid.
fn standard(e: &mut Emitter<'_>, q: &Var, kv: &KeysValues) -> Result<Var> {
    let scores = e.fb.matmul(q, &kv.keys, false, true)?;
    let scores = e.fb.add(&scores, &kv.mask)?;
    let max = e.fb.reduce_max(&scores, &[3], true)?;
    let shifted = e.fb.sub(&scores, &max)?;
    let exp = e.fb.exp(&shifted)?;
    let sum = e.fb.reduce_sum(&exp, &[3], true)?;
    let weights = e.fb.real_div(&exp, &sum)?;
    Ok(e.fb.matmul(&weights, &kv.values, false, false)?)
}

/// The running maximum before any key, and what stands for the maximum of a slice without a valid key: fp16's lowest.
const LOWEST: f32 = -65504.0;

/// Slices of at most `width` keys with a running maximum m, sum l and result o: for each, with p = exp(s - m'),
/// l' = l * exp(m - m') + sum(p) and o' = o * exp(m - m') + p v; at the end o / l (Milakov and Gimelshein 2018; Dao et al.
/// 2022). The last slice takes what is left.
fn flash(e: &mut Emitter<'_>, q: &Var, kv: &KeysValues, width: usize) -> Result<Var> {
    let length = kv.keys.shape()[2];
    let lowest = e.fb.scalar_f16(LOWEST)?;
    let mut state: Option<(Var, Var, Var)> = None;
    for start in (0..length).step_by(width) {
        let count = width.min(length - start);
        let part = |e: &mut Emitter<'_>, x: &Var, axis: usize| {
            let mut size = x.shape().to_vec();
            let mut begin = vec![0; size.len()];
            (begin[axis], size[axis]) = (start, count);
            e.slice(x, &begin, &size)
        };
        let (keys, values) = (part(e, &kv.keys, 2)?, part(e, &kv.values, 2)?);
        let mask = part(e, &kv.mask, 3)?;
        let scores = e.fb.matmul(q, &keys, false, true)?;
        let scores = e.fb.add(&scores, &mask)?;
        let max = e.fb.reduce_max(&scores, &[3], true)?;
        // A slice may have no valid key at all.
        let before = state.as_ref().map_or(&lowest, |(max, _, _)| max);
        let max = e.fb.maximum(&max, before)?;
        let shifted = e.fb.sub(&scores, &max)?;
        let exp = e.fb.exp(&shifted)?;
        let mut sum = e.fb.reduce_sum(&exp, &[3], true)?;
        let mut out = e.fb.matmul(&exp, &values, false, false)?;
        if let Some((old_max, old_sum, old_out)) = &state {
            let drop = e.fb.sub(old_max, &max)?;
            let factor = e.fb.exp(&drop)?;
            let old_sum = e.fb.mul(old_sum, &factor)?;
            sum = e.fb.add(&old_sum, &sum)?;
            let old_out = e.fb.mul(old_out, &factor)?;
            out = e.fb.add(&old_out, &out)?;
        }
        state = Some((max, sum, out));
    }
    match state {
        Some((_, sum, out)) => Ok(e.fb.real_div(&out, &sum)?),
        None => standard(e, q, kv),
    }
}
