//! How a query attends to its keys.

use super::cache::KeysValues;
use super::emitter::Emitter;
use super::error::{Error, Result};
use super::{AttentionForm, GraphOptions};
use crate::gemma::LayerPlan;
use crate::mil::Var;

/// Attention of one layer: `q` `(1, q_heads, 1, head_dim)` after norm and RoPE, result as a stream
/// `(1, q_heads * head_dim, 1, 1)`. The scale is 1.
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
        &[1, layer.kv_heads, heads / layer.kv_heads, layer.head_dim],
    )?;
    let out = match options.attention {
        AttentionForm::Standard => standard(e, &grouped, kv)?,
    };
    e.as_stream(&out, heads * layer.head_dim)
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
