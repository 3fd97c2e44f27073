//! Where a function gets the embedding, the per-layer input, RoPE and masks from.

use super::emitter::{Emitter, NormAxis};
use super::error::Result;
use super::split::ChunkSpec;
use super::weights::{PLE_NORM, PLE_PROJECTION};
use crate::gemma::LayerKind;
use crate::mil::{DType, Var};

/// RoPE of one token: `(1, 1, 1, head_dim)` each.
pub(super) struct Rope {
    pub cos: Var,
    pub sin: Var,
}

/// What the layers of a function read, beside the stream and the caches.
pub(super) struct Inputs {
    /// The stream before the first layer, `(1, H, 1, 1)`.
    pub hidden: Var,
    /// The combined per-layer inputs of all layers, layer after layer, `(1, L * D, 1, 1)`.
    pub per_layer: Option<Var>,
    /// Additive mask over the context, `(1, 1, 1, context)`.
    pub mask_full: Var,
    /// Additive mask over the window, right-aligned, `(1, 1, 1, W)`.
    pub mask_sliding: Var,
    /// One-hot over the row of the context that this token takes, `(1, 1, context, 1)`.
    pub update_mask: Var,
    rope_sliding: Rope,
    rope_full: Rope,
}

impl Inputs {
    /// RoPE for a kind of layer.
    pub fn rope(&self, kind: LayerKind) -> &Rope {
        match kind {
            LayerKind::Sliding => &self.rope_sliding,
            LayerKind::Full => &self.rope_full,
        }
    }

    /// Declares the features that the host computes (embedding scaled by `sqrt(H)`, per-layer row by `sqrt(D)`, masks,
    /// RoPE rows), in the order of the package. In the first chunk the per-layer row is combined with the projected
    /// embedding.
    pub fn from_features(e: &mut Emitter<'_>, spec: &ChunkSpec, context: usize) -> Result<Self> {
        let plan = e.plan;
        let (h, w) = (plan.hidden, plan.window);
        let (hd, ghd) = (plan.sliding.head_dim, plan.full.head_dim);
        let per_layer_width = plan.layers.len() * plan.ple_dim;
        let hidden = e.fb.input("hidden_states", DType::Fp16, &[1, 1, h])?;
        let mask_full =
            e.fb.input("causal_mask_full", DType::Fp16, &[1, 1, 1, context])?;
        let mask_sliding =
            e.fb.input("causal_mask_sliding", DType::Fp16, &[1, 1, 1, w])?;
        let update_mask =
            e.fb.input("update_mask", DType::Fp16, &[1, 1, context, 1])?;
        let per_layer = match (plan.ple_dim > 0, spec.first) {
            (false, _) => None,
            (true, first) => {
                let name = if first {
                    "per_layer_raw"
                } else {
                    "per_layer_combined"
                };
                Some(e.fb.input(name, DType::Fp16, &[1, 1, per_layer_width])?)
            }
        };
        let mut row = |name: &str, d: usize| e.fb.input(name, DType::Fp16, &[1, 1, 1, d]);
        let rope_sliding = Rope {
            cos: row("cos_s", hd)?,
            sin: row("sin_s", hd)?,
        };
        let rope_full = Rope {
            cos: row("cos_f", ghd)?,
            sin: row("sin_f", ghd)?,
        };

        let hidden = e.as_stream(&hidden, h)?;
        let per_layer = match per_layer {
            Some(raw) if spec.first => Some(combine_per_layer(e, &hidden, &raw)?),
            Some(combined) => Some(e.as_stream(&combined, per_layer_width)?),
            None => None,
        };
        Ok(Self {
            hidden,
            per_layer,
            mask_full,
            mask_sliding,
            update_mask,
            rope_sliding,
            rope_full,
        })
    }
}

/// The per-layer inputs of all layers: `(rms(projection(h) * H^-0.5) * gain + raw) * 2^-0.5`, the norm over each layer's
/// own D elements. Gives `(1, L * D, 1, 1)`.
fn combine_per_layer(e: &mut Emitter<'_>, hidden: &Var, raw: &Var) -> Result<Var> {
    let (layers, d) = (e.plan.layers.len(), e.plan.ple_dim);
    e.fb.push_scope("per_layer");
    let projected = e.linear(hidden, PLE_PROJECTION)?;
    let scale = e.fb.scalar_f16(e.plan.ple_projection_scale as f32)?;
    let scaled = e.fb.mul(&projected, &scale)?;
    let by_layer = e.as_heads(&scaled, layers, d)?;
    let normed = e.rms_norm(&by_layer, NormAxis::Last, PLE_NORM)?;
    let raw = e.as_heads(raw, layers, d)?;
    let sum = e.fb.add(&normed, &raw)?;
    let half = e.fb.scalar_f16(e.plan.ple_combine_scale as f32)?;
    let combined = e.fb.mul(&sum, &half)?;
    let combined = e.as_stream(&combined, layers * d)?;
    e.fb.pop_scope();
    Ok(combined)
}
