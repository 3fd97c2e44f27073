//! The decoder in f32 through candle: the reference for parity where there is no transformers output.
//!
//! Every activation and weight is f32, with stored weights at their stored values, as transformers computes with
//! `dtype=float32` and eager attention. Layers are kept in memory when they fit [`RESIDENT_BYTES`], and are read from the
//! checkpoint on every pass otherwise; the head is read a block of rows at a time.
//!
//! Where a checkpoint has steps of activations, inputs and outputs of its linear layers are rounded to them.

mod layerwise;

use candle_core::Tensor;

use crate::checkpoint::{Checkpoint, LayerKind};

use super::error::{Error, Result};
use super::layer::{self, KvPair, LayerInput, Rotary};
use super::math::{linear, rms_norm};
use super::names::{self, EMBED};
use super::observe::{Linears, Observer};
use super::plan::{KvRole, LayerPlan, ModelPlan};
use super::rope;
use super::weights::{self, LayerWeights, Weights};

pub use super::weights::WeightSource;

pub use layerwise::Layerwise;

/// Layers (or a head) up to so many bytes in f32 stay in memory.
pub const RESIDENT_BYTES: usize = 2 << 30;
/// Values of the head that are read at a time when it does not stay in memory.
const HEAD_BLOCK: usize = 16 << 20;

/// Which table a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// `embed_tokens`: `hidden` values.
    Embedding,
    /// `embed_tokens_per_layer`: `layers * ple_dim` values.
    PerLayer,
}

/// Fills in a token's row, scaled by sqrt(hidden) or sqrt(ple_dim), in place of the checkpoint's: the dequantized row of an
/// int8 table, say. The head keeps the checkpoint's values.
pub type RowSource<'a> = Box<dyn Fn(Table, u32, &mut [f32]) -> RowResult + Sync + 'a>;
/// Fills in cos and sin of a position, `head_dim` values each, in place of the exact ones: the rows of fp16 tables, say.
pub type RotarySource<'a> =
    Box<dyn Fn(LayerKind, usize, &mut [f32], &mut [f32]) -> RowResult + Sync + 'a>;
/// What a [`RowSource`] and a [`RotarySource`] return.
pub type RowResult = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// What a forward pass should return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// Logits of every position instead of the last one only.
    pub all_logits: bool,
    /// The stream after the embedding, after each layer and after the final norm.
    pub hidden: bool,
}

/// K and V of every owning layer for the positions seen so far; sliding layers keep what their window can still see.
#[derive(Debug, Clone)]
pub struct Cache {
    position: usize,
    layers: Vec<Option<KvPair>>,
}

impl Cache {
    /// Positions seen so far.
    pub fn position(&self) -> usize {
        self.position
    }
}

/// Result of a forward pass over S positions.
#[derive(Debug, Clone)]
pub struct ReferenceOutput {
    /// Rows of `vocab` logits after the softcap: one for each position, or one for the last position.
    pub logits: Vec<Vec<f32>>,
    /// `layers + 2` states of `[S, hidden]` row-major: scaled embedding, each layer's output, final norm. Empty unless kept.
    pub hidden: Vec<Vec<f32>>,
}

/// A model in f32.
pub struct Reference<'a> {
    weights: Weights<'a>,
    plan: ModelPlan,
    /// Empty when layers are read on every pass.
    layers: Vec<LayerWeights>,
    head: Option<Tensor>,
    final_norm: Tensor,
    per_layer: Option<PerLayerProjection>,
    rows: Option<RowSource<'a>>,
    angles: Option<RotarySource<'a>>,
    /// Whether the checkpoint's steps of activations count.
    rounds: bool,
}

struct PerLayerProjection {
    projection: Tensor,
    norm: Tensor,
}

/// What the layers of a pass over some positions share.
struct Pass {
    /// The first position.
    start: usize,
    /// `[S, L, D]`, where there are per-layer embeddings.
    per_layer: Option<Tensor>,
    /// Of sliding and of full layers.
    rotary: [Rotary; 2],
}

/// A layer's weights, kept in memory or read for one use.
enum Held<'w> {
    Resident(&'w LayerWeights),
    Read(Box<LayerWeights>),
}

impl std::ops::Deref for Held<'_> {
    type Target = LayerWeights;

    fn deref(&self) -> &LayerWeights {
        match self {
            Self::Resident(weights) => weights,
            Self::Read(weights) => weights,
        }
    }
}

impl<'a> Reference<'a> {
    /// Checks the checkpoint against its plan and loads what stays in memory. A NaN or infinity in a weight that is loaded
    /// here or later is an error.
    pub fn load(checkpoint: &'a Checkpoint) -> Result<Self> {
        Self::with_budget(checkpoint, RESIDENT_BYTES)
    }

    /// [`load`](Self::load) with another budget for the layers and for the head, in bytes. 0 keeps neither in memory.
    pub fn with_budget(checkpoint: &'a Checkpoint, bytes: usize) -> Result<Self> {
        Self::build(checkpoint.into(), bytes)
    }

    /// [`load`](Self::load) with weights from `source` instead of the checkpoint, head, norms and scalars included. Rows of
    /// tables are the checkpoint's unless [`with_rows`](Self::with_rows) says otherwise.
    pub fn load_from(checkpoint: &'a Checkpoint, source: &'a dyn WeightSource) -> Result<Self> {
        let source = Some(source);
        Self::build(Weights { checkpoint, source }, RESIDENT_BYTES)
    }

    fn build(weights: Weights<'a>, bytes: usize) -> Result<Self> {
        let checkpoint = weights.checkpoint;
        let plan = ModelPlan::new(checkpoint.config())?;
        plan.check(checkpoint)?;
        let size = |shape: &[usize]| shape.iter().product::<usize>() * size_of::<f32>();
        let of_layers = plan.layers.iter().flat_map(|l| plan.layer_tensors(l));
        let layers = match of_layers.map(|(_, shape)| size(&shape)).sum::<usize>() <= bytes {
            true => plan
                .layers
                .iter()
                .map(|l| LayerWeights::load(weights, &plan, l))
                .collect::<Result<_>>()?,
            false => Vec::new(),
        };
        let head_shape = [plan.vocab, plan.hidden];
        let head = match size(&head_shape) <= bytes {
            true => Some(weights::load(weights, plan.head, &head_shape)?),
            false => None,
        };
        let width = plan.layers.len() * plan.ple_dim;
        let per_layer = match plan.ple_dim {
            0 => None,
            dim => Some(PerLayerProjection {
                projection: weights::load(
                    weights,
                    names::PER_LAYER_PROJECTION,
                    &[width, plan.hidden],
                )?,
                norm: weights::load(weights, names::PER_LAYER_NORM, &[dim])?,
            }),
        };
        let final_norm = weights::load(weights, names::FINAL_NORM, &[plan.hidden])?;
        Ok(Self {
            weights,
            plan,
            layers,
            head,
            final_norm,
            per_layer,
            rows: None,
            angles: None,
            rounds: true,
        })
    }

    /// Takes embedding and per-layer rows from `source` instead of the checkpoint.
    pub fn with_rows(mut self, source: RowSource<'a>) -> Self {
        self.rows = Some(source);
        self
    }

    /// Takes cos and sin of positions from `source` instead of computing them.
    pub fn with_rotary(mut self, source: RotarySource<'a>) -> Self {
        self.angles = Some(source);
        self
    }

    /// Leaves activations as they are, also where the checkpoint has
    /// [steps](crate::checkpoint::ActivationScales) that it was trained to round them to.
    pub fn without_activation_scales(mut self) -> Self {
        self.rounds = false;
        self
    }

    /// What has the steps of activations, if they count.
    fn scales(&self) -> Option<&'a Checkpoint> {
        let checkpoint = self.weights.checkpoint;
        (self.rounds && checkpoint.has_activation_scales()).then_some(checkpoint)
    }

    /// The plan of the model.
    pub fn plan(&self) -> &ModelPlan {
        &self.plan
    }

    /// A cache with no positions.
    pub fn cache(&self) -> Cache {
        Cache {
            position: 0,
            layers: vec![None; self.plan.layers.len()],
        }
    }

    /// Runs `ids` at the positions after those in `cache`, which then holds them too. After an error the cache is as before.
    pub fn forward(&self, ids: &[u32], cache: &mut Cache, keep: Keep) -> Result<ReferenceOutput> {
        self.check_input(ids, cache)?;
        let (plan, start) = (&self.plan, cache.position);
        let (mut h, per_layer) = self.embed(ids, None)?;
        let pass = Pass {
            start,
            per_layer,
            rotary: self.rotaries(start, ids.len())?,
        };
        let mut hidden = Vec::new();
        let mut keep_state = |h: &Tensor| -> Result<()> {
            if keep.hidden {
                hidden.push(to_vec(h)?);
            }
            Ok(())
        };
        keep_state(&h)?;
        let mut pairs: Vec<Option<KvPair>> = vec![None; plan.layers.len()];
        for layer in &plan.layers {
            let kv = match layer.kv {
                KvRole::Own { .. } => cache.layers[layer.index].as_ref(),
                KvRole::Shared { source } => pairs[source].as_ref(),
            };
            let weights = self.weights(layer)?;
            let (next, own) = self.layer(layer, &weights, &pass, &h, kv, None)?;
            pairs[layer.index] = own;
            h = next;
            keep_state(&h)?;
        }
        let x = rms_norm(&h, Some(&self.final_norm), plan.eps).map_err(compute("final norm"))?;
        keep_state(&x)?;
        let x = match keep.all_logits {
            true => x,
            false => x
                .narrow(0, ids.len() - 1, 1)
                .map_err(compute("final norm"))?,
        };
        let logits = self.logits(&x)?;
        let kept = self.trim(pairs)?;
        cache.layers = kept;
        cache.position += ids.len();
        Ok(ReferenceOutput { logits, hidden })
    }

    fn check_input(&self, ids: &[u32], cache: &Cache) -> Result<()> {
        if cache.layers.len() != self.plan.layers.len() {
            return Err(Error::WrongCache {
                expected: self.plan.layers.len(),
                got: cache.layers.len(),
            });
        }
        self.check_ids(ids, cache.position)
    }

    /// At least one id, all in the vocabulary; `start` is the position of the first.
    fn check_ids(&self, ids: &[u32], start: usize) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::NoTokens);
        }
        match ids.iter().position(|id| *id as usize >= self.plan.vocab) {
            Some(position) => Err(Error::TokenId {
                id: ids[position],
                position: start + position,
                vocab: self.plan.vocab,
            }),
            None => Ok(()),
        }
    }

    /// The scaled embedding `[S, hidden]`, and the per-layer inputs `[S, L, D]` where there are any.
    fn embed(
        &self,
        ids: &[u32],
        observer: Option<&mut dyn Observer>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let h = self.rows(Table::Embedding, ids, self.plan.hidden)?;
        let per_layer =
            self.per_layer_input(ids, &h, &mut Linears::new("", observer, self.scales()))?;
        Ok((h, per_layer))
    }

    /// A layer's weights, from memory or from the checkpoint.
    fn weights(&self, layer: &LayerPlan) -> Result<Held<'_>> {
        match self.layers.get(layer.index) {
            Some(weights) => Ok(Held::Resident(weights)),
            None => LayerWeights::load(self.weights, &self.plan, layer)
                .map(|weights| Held::Read(Box::new(weights))),
        }
    }

    /// One layer of a pass over the stream `h`. `kv` as in [`LayerInput`].
    fn layer(
        &self,
        layer: &LayerPlan,
        weights: &LayerWeights,
        pass: &Pass,
        h: &Tensor,
        kv: Option<&KvPair>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(Tensor, Option<KvPair>)> {
        let [sliding, full] = &pass.rotary;
        let input = LayerInput {
            plan: layer,
            q_heads: self.plan.q_heads,
            eps: self.plan.eps,
            rotary: match layer.kind {
                LayerKind::Sliding => sliding,
                LayerKind::Full => full,
            },
            kv,
            per_layer: per_layer_of(&pass.per_layer, layer)?,
            start: pass.start,
            window: self.plan.window,
        };
        let mut linears = Linears::new(layer.prefix(), observer, self.scales());
        layer::forward(h, weights, &input, &mut linears).map_err(in_layer(layer))
    }

    /// Scaled rows of a table, `[S, width]`.
    fn rows(&self, table: Table, ids: &[u32], width: usize) -> Result<Tensor> {
        let mut values = vec![0f32; ids.len() * width];
        for (row, &id) in values.chunks_exact_mut(width).zip(ids) {
            self.row(table, id, row)?;
        }
        weights::tensor(values, &[ids.len(), width], "rows")
    }

    /// A token's scaled row, from the source set by [`with_rows`](Self::with_rows) or from the checkpoint.
    pub fn row(&self, table: Table, token: u32, out: &mut [f32]) -> Result<()> {
        match &self.rows {
            Some(rows) => rows(table, token, out).map_err(|source| Error::Row { token, source }),
            None => checkpoint_row(self.weights.checkpoint, &self.plan, table, token, out),
        }
    }

    /// `[S, L, D]`: projection of the embedding and the token's own rows, or `None` without per-layer embeddings.
    fn per_layer_input(
        &self,
        ids: &[u32],
        h: &Tensor,
        linears: &mut Linears,
    ) -> Result<Option<Tensor>> {
        let Some(weights) = &self.per_layer else {
            return Ok(None);
        };
        let plan = &self.plan;
        let shape = (ids.len(), plan.layers.len(), plan.ple_dim);
        let tokens = self.rows(Table::PerLayer, ids, plan.layers.len() * plan.ple_dim)?;
        let mut sum = || {
            let projected = linears.apply(names::PER_LAYER_PROJECTION, h, &weights.projection)?;
            let projected = (projected * plan.ple_projection_scale)?;
            let context = rms_norm(&projected.reshape(shape)?, Some(&weights.norm), plan.eps)?;
            (context + tokens.reshape(shape)?)? * plan.ple_combine_scale
        };
        sum().map(Some).map_err(compute("per-layer input"))
    }

    /// Of sliding and of full layers.
    fn rotaries(&self, start: usize, rows: usize) -> Result<[Rotary; 2]> {
        Ok([
            self.rotary(LayerKind::Sliding, start, rows)?,
            self.rotary(LayerKind::Full, start, rows)?,
        ])
    }

    fn rotary(&self, kind: LayerKind, start: usize, rows: usize) -> Result<Rotary> {
        let spec = &self.plan.geom(kind).rope;
        let (cos, sin) = match &self.angles {
            None => rope::rows_of(spec, start..start + rows),
            Some(angles) => {
                let [mut cos, mut sin] = [(); 2].map(|()| vec![0f32; rows * spec.head_dim]);
                let pairs = cos.chunks_exact_mut(spec.head_dim);
                let pairs = pairs.zip(sin.chunks_exact_mut(spec.head_dim));
                for (position, (cos, sin)) in (start..).zip(pairs) {
                    angles(kind, position, cos, sin)
                        .map_err(|source| Error::Rotary { position, source })?;
                }
                (cos, sin)
            }
        };
        let shape = [rows, 1, spec.head_dim];
        Ok(Rotary {
            cos: weights::tensor(cos, &shape, "cos")?,
            sin: weights::tensor(sin, &shape, "sin")?,
        })
    }

    /// Logits after the softcap of every row of `x`.
    fn logits(&self, x: &Tensor) -> Result<Vec<Vec<f32>>> {
        let plan = &self.plan;
        let mut logits = vec![Vec::with_capacity(plan.vocab); x.dims()[0]];
        let mut push = |weight: &Tensor| -> Result<()> {
            let part = linear(x, weight).and_then(|z| softcap(z, plan.softcap));
            let part = part
                .and_then(|z| z.to_vec2::<f32>())
                .map_err(compute("head"))?;
            for (row, values) in logits.iter_mut().zip(part) {
                row.extend(values);
            }
            Ok(())
        };
        match &self.head {
            Some(head) => push(head)?,
            None => {
                let block = (HEAD_BLOCK / plan.hidden).max(1);
                for first in (0..plan.vocab).step_by(block) {
                    let rows = block.min(plan.vocab - first);
                    let shape = [plan.vocab, plan.hidden];
                    push(&self.weights.rows(plan.head, shape, first, rows)?)?;
                }
            }
        }
        Ok(logits)
    }

    /// What later positions can still see: all of a full layer, `window - 1` positions of a sliding one.
    fn trim(&self, pairs: Vec<Option<KvPair>>) -> Result<Vec<Option<KvPair>>> {
        let one = |(pair, layer): (Option<KvPair>, &LayerPlan)| match (pair, layer.kind) {
            (Some(pair), LayerKind::Sliding) => match self.plan.window - 1 {
                0 => Ok(None),
                keep => pair.tail(keep).map(Some),
            },
            (pair, _) => Ok(pair),
        };
        let kept: candle_core::Result<Vec<_>> =
            pairs.into_iter().zip(&self.plan.layers).map(one).collect();
        kept.map_err(compute("cache"))
    }
}

/// A token's row of the checkpoint in f32, scaled by sqrt(hidden) or sqrt(ple_dim).
pub fn checkpoint_row(
    checkpoint: &Checkpoint,
    plan: &ModelPlan,
    table: Table,
    token: u32,
    out: &mut [f32],
) -> Result<()> {
    let (name, rows, width, scale) = match table {
        Table::Embedding => (EMBED, plan.vocab, plan.hidden, plan.embed_scale),
        Table::PerLayer => {
            let width = plan.layers.len() * plan.ple_dim;
            (
                names::PER_LAYER_EMBED,
                plan.ple_vocab,
                width,
                plan.ple_embed_scale,
            )
        }
    };
    let start = (token as usize).saturating_mul(width);
    checkpoint
        .tensor(name, &[rows, width])?
        .read_f32(start..start.saturating_add(width), out)?;
    out.iter_mut().for_each(|v| *v *= scale as f32);
    Ok(())
}

fn softcap(logits: Tensor, cap: Option<f64>) -> candle_core::Result<Tensor> {
    match cap {
        Some(c) => (logits / c)?.tanh()? * c,
        None => Ok(logits),
    }
}

fn per_layer_of(all: &Option<Tensor>, layer: &LayerPlan) -> Result<Option<Tensor>> {
    let slice = |t: &Tensor| t.narrow(1, layer.index, 1)?.squeeze(1)?.contiguous();
    all.as_ref().map(slice).transpose().map_err(in_layer(layer))
}

fn to_vec(h: &Tensor) -> Result<Vec<f32>> {
    h.flatten_all()
        .and_then(|t| t.to_vec1())
        .map_err(compute("hidden state"))
}

fn compute(what: &'static str) -> impl Fn(candle_core::Error) -> Error {
    move |source| Error::Compute {
        what: what.to_string(),
        source: Box::new(source),
    }
}

fn in_layer(layer: &LayerPlan) -> impl Fn(candle_core::Error) -> Error {
    let what = format!("layer {}", layer.index);
    move |source| Error::Compute {
        what: what.clone(),
        source: Box::new(source),
    }
}
