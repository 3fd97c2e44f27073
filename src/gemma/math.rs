//! Norm and product, as `modeling_gemma4.py` of transformers 5.23 computes them.

use candle_core::{D, Result, Tensor};

/// Root mean square norm over the last dim; the weight multiplies as it is.
pub(super) fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = x.broadcast_div(&(mean_square + eps)?.sqrt()?)?;
    match weight {
        Some(weight) => normed.broadcast_mul(weight),
        None => Ok(normed),
    }
}

/// `x @ weight^T`: `x` is `[S, in]`, `weight` is `[out, in]`.
pub(super) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)
}
