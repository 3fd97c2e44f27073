//! The feed-forward part of a layer.

use super::emitter::Emitter;
use super::error::Result;
use crate::gemma::LayerPlan;
use crate::mil::{GeluMode, Var};

/// `down(gelu(gate(x)) * up(x))` on a normed stream; the width is the layer's own (double on some sharing layers).
pub(super) fn feed_forward(e: &mut Emitter<'_>, layer: &LayerPlan, x: &Var) -> Result<Var> {
    let gate = e.layer_linear(x, layer.index, "mlp.gate_proj.weight")?;
    let up = e.layer_linear(x, layer.index, "mlp.up_proj.weight")?;
    let gate = e.fb.gelu(&gate, GeluMode::Tanh)?;
    let product = e.fb.mul(&gate, &up)?;
    e.layer_linear(&product, layer.index, "mlp.down_proj.weight")
}
