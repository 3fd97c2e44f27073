//! The end of the last chunk: final norm, logits, the winning token.

use super::emitter::{Emitter, NormAxis};
use super::error::Result;
use super::weights::FINAL_NORM;
use crate::mil::Var;

/// What the head hands out.
pub(super) struct Head {
    /// Index of the largest logit, `(1,)` int32; the lowest one on a tie.
    pub token_id: Var,
    /// That logit, `(1,)`, after the softcap.
    pub token_logit: Var,
    /// The stream after the final norm, `(1, H, 1, 1)`; kept as `final_norm_out`.
    pub hidden: Var,
}

/// Final norm, head (the raw embedding where they are tied), `tanh(x / c) * c` where the model has a softcap; the result is kept as
/// `logits`, `(1, V, 1, 1)`.
pub(super) fn head(e: &mut Emitter<'_>, hidden: &Var) -> Result<Head> {
    e.fb.push_scope("head");
    let (normed, logits) = norm_and_logits(e, hidden)?;
    let row = e.reshape(&logits, &[e.plan.vocab])?;
    let token_id = e.fb.reduce_argmax(&row, 0, true)?;
    let token_logit = e.fb.gather(&row, &token_id, 0, 0)?;
    e.fb.pop_scope();
    Ok(Head {
        token_id,
        token_logit,
        hidden: normed,
    })
}

/// The head for every token of the stream: `(1, T)` int32, the lowest index on a tie. `logits` is `(1, V, 1, T)`.
pub(super) fn head_of_all(e: &mut Emitter<'_>, hidden: &Var) -> Result<Var> {
    e.fb.push_scope("head");
    let (_, logits) = norm_and_logits(e, hidden)?;
    let ids = e.fb.reduce_argmax(&logits, 1, true)?;
    let ids = e.reshape(&ids, &[1, e.tokens])?;
    e.fb.pop_scope();
    Ok(ids)
}

/// The token of a stream `(1, H, 1, T)` that `mask` `(1, T, 1)` marks with 1 (0 elsewhere): `(1, H, 1, 1)`.
pub(super) fn pick_token(e: &mut Emitter<'_>, hidden: &Var, mask: &Var) -> Result<Var> {
    let mask = e.reshape(mask, &[1, 1, 1, e.tokens])?;
    let marked = e.fb.mul(hidden, &mask)?;
    Ok(e.fb.reduce_sum(&marked, &[3], true)?)
}

fn norm_and_logits(e: &mut Emitter<'_>, hidden: &Var) -> Result<(Var, Var)> {
    let normed = e.rms_norm(hidden, NormAxis::Channels, FINAL_NORM)?;
    let normed = e.fb.name_value(&normed, "final_norm_out")?;
    let mut logits = e.linear(&normed, e.plan.head)?;
    if let Some(cap) = e.plan.softcap {
        let cap = e.fb.scalar_f16(cap as f32)?;
        let scaled = e.fb.real_div(&logits, &cap)?;
        let squashed = e.fb.tanh(&scaled)?;
        logits = e.fb.mul(&squashed, &cap)?;
    }
    let logits = e.fb.name_value(&logits, "logits")?;
    Ok((normed, logits))
}
