//! Where a function gets the embedding, the per-layer input, RoPE and masks from.

use half::f16;

use super::emitter::{Emitter, NormAxis, dims};
use super::error::Result;
use super::forms::{CacheForm, FunctionKind, GraphOptions};
use super::split::ChunkSpec;
use super::weights::{EMBED, PLE_NORM, PLE_PROJECTION};
use crate::gemma::rope::{RopeSpec, table};
use crate::gemma::{LayerKind, ModelPlan};
use crate::mil::{ConvParams, DType, Immediate, Var};

/// RoPE of the tokens: `(1, 1, T, head_dim)` each.
pub(super) struct Rope {
    pub cos: Var,
    pub sin: Var,
}

/// Additive masks `(1, 1, T, length)` over the keys of each kind of layer.
pub(super) struct Masks {
    pub sliding: Var,
    pub full: Var,
}

/// What the layers of a function read, beside the stream and the caches.
pub(super) struct Inputs {
    /// The stream before the first layer, `(1, H, 1, T)`.
    pub hidden: Var,
    /// The combined per-layer inputs of all layers, layer after layer, `(1, L * D, 1, T)`.
    pub per_layer: Option<Var>,
    /// The masks.
    pub masks: Masks,
    /// Decode: one-hot over the row of the context that the token takes, `(1, 1, context, 1)`. Verify: one column per
    /// token, `(1, 1, context, K)`. Absent where nothing is scattered.
    pub update: Option<Var>,
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

    /// Declares the features of a function in the order of the package, and makes of them what the layers read. The host
    /// computes embedding (scaled by `sqrt(H)`), per-layer row (by `sqrt(D)`), masks and RoPE rows; or it gives ids, and
    /// embedding and RoPE are looked up here. In the first chunk the per-layer row is combined with the projected
    /// embedding, unless the host has done so.
    pub fn declare(
        e: &mut Emitter<'_>,
        spec: &ChunkSpec,
        options: &GraphOptions,
        function: FunctionKind,
    ) -> Result<Self> {
        let plan = e.plan;
        let ids = options.layout.takes_ids();
        let stream = match (ids, spec.first) {
            (true, true) => Stream::Ids(e.fb.input("input_ids", DType::Int32, &[1, 1])?),
            _ => Stream::Hidden(feature(e, "hidden_states", &[1, e.tokens, plan.hidden])?),
        };
        let position = match ids {
            true => Some(e.fb.input("position_ids", DType::Int32, &[1])?),
            false => None,
        };
        let (mask_full, mask_sliding) = declare_masks(e, options, function)?;
        let update = declare_update(e, spec, options, function)?;
        let raw = spec.first && !options.cache.keeps_context();
        let name = if raw {
            "per_layer_raw"
        } else {
            "per_layer_combined"
        };
        let width = plan.layers.len() * plan.ple_dim;
        let per_layer = match plan.ple_dim {
            0 => None,
            _ => Some(feature(e, name, &[1, e.tokens, width])?),
        };
        let image = match (&stream, spec.last) {
            (Stream::Ids(_), false) => Some(feature(e, "image_embedding", &[1, 1, plan.hidden])?),
            _ => None,
        };
        let (rope_sliding, rope_full) = match &position {
            None => (
                rope_features(e, "s", plan.sliding.head_dim)?,
                rope_features(e, "f", plan.full.head_dim)?,
            ),
            Some(position) => rope_lookup(e, options, position)?,
        };

        let hidden = match &stream {
            Stream::Hidden(hidden) => e.as_stream(hidden, plan.hidden)?,
            Stream::Ids(ids) => embed(e, ids, image.as_ref())?,
        };
        let per_layer = match per_layer {
            Some(row) if raw => Some(combine_per_layer(e, &hidden, &row)?),
            Some(combined) => Some(e.as_stream(&combined, width)?),
            None => None,
        };
        let mask_sliding = match mask_sliding {
            Some(mask) => mask,
            None => window_mask(e, options, function, &mask_full, update.as_ref())?,
        };
        Ok(Self {
            hidden,
            per_layer,
            masks: Masks {
                sliding: mask_sliding,
                full: mask_full,
            },
            update,
            rope_sliding,
            rope_full,
        })
    }
}

/// What the stream comes from.
enum Stream {
    Hidden(Var),
    Ids(Var),
}

fn feature(e: &mut Emitter<'_>, name: &str, shape: &[usize]) -> Result<Var> {
    Ok(e.fb.input(name, DType::Fp16, shape)?)
}

/// The masks that the host gives: over the keys of full layers, and over those of sliding layers unless the window is made
/// here.
fn declare_masks(
    e: &mut Emitter<'_>,
    options: &GraphOptions,
    function: FunctionKind,
) -> Result<(Var, Option<Var>)> {
    let (rows, window, context) = (e.tokens, e.plan.window, options.context);
    let mut mask = |name: &str, length: usize| feature(e, name, &[1, 1, rows, length]);
    if let FunctionKind::Prefill(n) = function {
        return Ok((mask("causal_mask", n)?, None));
    }
    if options.cache.keeps_context() {
        return Ok((mask("causal_mask", context)?, None));
    }
    let full = match options.cache {
        CacheForm::Window(positions) => positions,
        _ => context,
    };
    let sliding = match function {
        FunctionKind::Verify(k) if !options.compat => window + k,
        _ => window,
    };
    Ok((
        mask("causal_mask_full", full)?,
        Some(mask("causal_mask_sliding", sliding)?),
    ))
}

/// Where new rows of the context go. Decode declares it in every chunk, verify where the chunk owns K/V.
fn declare_update(
    e: &mut Emitter<'_>,
    spec: &ChunkSpec,
    options: &GraphOptions,
    function: FunctionKind,
) -> Result<Option<Var>> {
    let context = options.context;
    Ok(match (function, options.cache) {
        (FunctionKind::Prefill(_), _) | (_, CacheForm::Window(_) | CacheForm::State) => None,
        (FunctionKind::Decode, _) => Some(feature(e, "update_mask", &[1, 1, context, 1])?),
        (FunctionKind::Verify(k), _) => match spec.layers.start < e.plan.first_shared {
            true => Some(feature(e, "update_indicator", &[1, 1, context, k])?),
            false => None,
        },
    })
}

fn rope_features(e: &mut Emitter<'_>, kind: &str, head_dim: usize) -> Result<Rope> {
    let shape = [1, 1, e.tokens, head_dim];
    Ok(Rope {
        cos: feature(e, &format!("cos_{kind}"), &shape)?,
        sin: feature(e, &format!("sin_{kind}"), &shape)?,
    })
}

/// RoPE rows of a position from tables in the program. Both halves of a row are the same, so one is kept.
fn rope_lookup(
    e: &mut Emitter<'_>,
    options: &GraphOptions,
    position: &Var,
) -> Result<(Rope, Rope)> {
    let full = e.plan.full.rope;
    let full = if options.compat {
        full.all_pairs()
    } else {
        full
    };
    e.fb.push_scope("rope");
    let sliding = rope_rows(e, &e.plan.sliding.rope.clone(), options.context, position)?;
    let full = rope_rows(e, &full, options.context, position)?;
    e.fb.pop_scope();
    Ok((sliding, full))
}

fn rope_rows(e: &mut Emitter<'_>, rope: &RopeSpec, rows: usize, position: &Var) -> Result<Rope> {
    let half = rope.head_dim / 2;
    let (cos, sin) = table(rope, rows);
    let mut row = |full: &[f32]| -> Result<Var> {
        let kept = full
            .chunks_exact(rope.head_dim)
            .flat_map(|row| &row[..half]);
        let kept = kept.map(|&v| f16::from_f32(v)).collect();
        let values = e.fb.immediate(Immediate::fp16s(&[rows, half], kept)?)?;
        let row = e.fb.gather(&values, position, 0, 0)?;
        let row = e.reshape(&row, &[1, 1, 1, half])?;
        Ok(e.fb.concat(&[row.clone(), row], 3)?)
    };
    Ok(Rope {
        cos: row(&cos)?,
        sin: row(&sin)?,
    })
}

/// The scaled embedding of a token, `(1, H, 1, 1)`; the image's in its place where that is not all zero.
fn embed(e: &mut Emitter<'_>, ids: &Var, image: Option<&Var>) -> Result<Var> {
    e.fb.push_scope("embed");
    let index = e.reshape(ids, &[1])?;
    let weight = e.weight(EMBED)?;
    let row = e.fb.gather(&weight, &index, 0, 0)?;
    let scale = e.fb.scalar_f16(e.plan.embed_scale as f32)?;
    let mut hidden = e.fb.mul(&row, &scale)?;
    if let Some(image) = image {
        let image = e.as_stream(image, e.plan.hidden)?;
        let minus_one = e.fb.scalar_f16(-1.0)?;
        let negated = e.fb.mul(&image, &minus_one)?;
        let size = e.fb.maximum(&image, &negated)?;
        let largest = e.fb.reduce_max(&size, &[1], true)?;
        let there = e.fb.cast(&largest, DType::Bool)?;
        let there = e.fb.cast(&there, DType::Fp16)?;
        let one = e.fb.scalar_f16(1.0)?;
        let absent = e.fb.sub(&one, &there)?;
        let kept = e.fb.mul(&hidden, &absent)?;
        let shown = e.fb.mul(&image, &there)?;
        hidden = e.fb.add(&kept, &shown)?;
    }
    e.fb.pop_scope();
    Ok(hidden)
}

/// The mask of sliding layers where the host gives only the causal one.
fn window_mask(
    e: &mut Emitter<'_>,
    options: &GraphOptions,
    function: FunctionKind,
    causal: &Var,
    update: Option<&Var>,
) -> Result<Var> {
    let window = e.plan.window;
    match (function, update) {
        (FunctionKind::Prefill(n), _) if n > window && !options.compat => {
            let band = prefill_band(e.plan, n)?;
            let band = e.fb.immediate(band)?;
            Ok(e.fb.add(causal, &band)?)
        }
        (FunctionKind::Decode, Some(update)) if options.context > window => {
            window_of_position(e, options.context, causal, update)
        }
        _ => Ok(causal.clone()),
    }
}

/// `(1, 1, N, N)`: 0 where the key is less than a window before the query, -inf where it is further back.
fn prefill_band(plan: &ModelPlan, n: usize) -> Result<Immediate> {
    let mut values = vec![f16::ZERO; n * n];
    for (row, keys) in values.chunks_exact_mut(n).enumerate() {
        let hidden = (row + 1).saturating_sub(plan.window);
        keys[..hidden].fill(f16::NEG_INFINITY);
    }
    Ok(Immediate::fp16s(&[1, 1, n, n], values)?)
}

/// The causal mask of one token, with the positions before its window hidden. A position is in the window when the one-hot
/// `update_mask` is hot at it or at one of the W - 1 after it: a sum over W places, exact in fp16.
fn window_of_position(
    e: &mut Emitter<'_>,
    context: usize,
    causal: &Var,
    update: &Var,
) -> Result<Var> {
    let window = e.plan.window;
    e.fb.push_scope("window");
    let row = e.reshape(update, &[1, 1, context])?;
    let row = e.fb.pad(&row, &dims(&[0, window - 1])?, 0.0)?;
    let ones = Immediate::fp16s(&[1, 1, window], vec![f16::ONE; window])?;
    let ones = e.fb.immediate(ones)?;
    let inside = e.fb.conv(&row, &ones, None, &ConvParams::default())?;
    let inside = e.reshape(&inside, &[1, 1, 1, context])?;
    let one = e.fb.scalar_f16(1.0)?;
    let outside = e.fb.sub(&one, &inside)?;
    let lowest = e.fb.scalar_f16(-65504.0)?;
    let hidden = e.fb.mul(&outside, &lowest)?;
    let mask = e.fb.add(causal, &hidden)?;
    e.fb.pop_scope();
    Ok(mask)
}

/// The per-layer inputs of all layers: `(rms(projection(h) * H^-0.5) * gain + raw) * 2^-0.5`, the norm over each layer's
/// own D elements. `raw` is `(1, T, L * D)`; gives `(1, L * D, 1, T)`.
fn combine_per_layer(e: &mut Emitter<'_>, hidden: &Var, raw: &Var) -> Result<Var> {
    let (layers, d) = (e.plan.layers.len(), e.plan.ple_dim);
    e.fb.push_scope("per_layer");
    let projected = e.linear(hidden, PLE_PROJECTION)?;
    let scale = e.fb.scalar_f16(e.plan.ple_projection_scale as f32)?;
    let scaled = e.fb.mul(&projected, &scale)?;
    let by_layer = e.as_heads(&scaled, layers, d)?;
    let normed = e.rms_norm(&by_layer, NormAxis::Last, PLE_NORM)?;
    let raw = match e.tokens {
        1 => e.reshape(raw, &[1, layers, 1, d])?,
        tokens => {
            let raw = e.reshape(raw, &[1, tokens, layers, d])?;
            e.fb.transpose(&raw, &[0, 2, 1, 3])?
        }
    };
    let sum = e.fb.add(&normed, &raw)?;
    let half = e.fb.scalar_f16(e.plan.ple_combine_scale as f32)?;
    let combined = e.fb.mul(&sum, &half)?;
    let combined = e.heads_as_stream(&combined, layers, d)?;
    e.fb.pop_scope();
    Ok(combined)
}
