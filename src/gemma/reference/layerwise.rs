//! The same forward, layer after layer over many sequences: every layer's weights are read once.

use candle_core::Tensor;

use crate::gemma::error::Result;
use crate::gemma::layer::{KvPair, Rotary};
use crate::gemma::math::rms_norm;
use crate::gemma::observe::{Linears, Observer};
use crate::gemma::plan::KvRole;

use super::{Error, Pass, Reference, compute, to_vec};

/// Sequences on their way through a model, each from position 0, without logits.
///
/// In memory are, for every token, its stream (`hidden` values), its per-layer inputs (`layers * ple_dim`), and K and V of the
/// layers that later ones share; and the weights of one layer at a time (unless the [`Reference`] keeps them).
pub struct Layerwise<'r, 'a> {
    reference: &'r Reference<'a>,
    rotary: [Rotary; 2],
    sequences: Vec<Sequence>,
    next: usize,
}

struct Sequence {
    h: Tensor,
    per_layer: Option<Tensor>,
    /// K and V by layer, of layers that others share.
    shared: Vec<(usize, KvPair)>,
}

impl<'r, 'a> Layerwise<'r, 'a> {
    /// Puts the sequences' embeddings and per-layer inputs together. The projection of the embedding is seen by `observer`.
    pub fn new(
        reference: &'r Reference<'a>,
        sequences: &[Vec<u32>],
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
        if longest == 0 {
            return Err(Error::NoTokens);
        }
        let mut ready = Vec::with_capacity(sequences.len());
        for ids in sequences {
            reference.check_ids(ids, 0)?;
            let (h, per_layer) = reference.embed(ids, Some(&mut *observer))?;
            ready.push(Sequence {
                h,
                per_layer,
                shared: Vec::new(),
            });
        }
        Ok(Self {
            reference,
            rotary: reference.rotaries(0, longest)?,
            sequences: ready,
            next: 0,
        })
    }

    /// Runs every sequence through the next layer and gives its index, `None` when all are done.
    pub fn advance(&mut self, observer: &mut dyn Observer) -> Result<Option<usize>> {
        let plan = &self.reference.plan;
        let Some(layer) = plan.layers.get(self.next) else {
            return Ok(None);
        };
        let weights = self.reference.weights(layer)?;
        let is_shared = plan
            .layers
            .iter()
            .any(|l| matches!(l.kv, KvRole::Shared { source } if source == layer.index));
        for sequence in &mut self.sequences {
            let rows = sequence.h.dims()[0];
            let cut = |r: &Rotary| r.first(rows).map_err(compute("rotary embedding"));
            let [sliding, full] = &self.rotary;
            let pass = Pass {
                start: 0,
                per_layer: sequence.per_layer.clone(),
                rotary: [cut(sliding)?, cut(full)?],
            };
            let kv = match layer.kv {
                KvRole::Own { .. } => None,
                KvRole::Shared { source } => {
                    let mut shared = sequence.shared.iter();
                    shared.find(|(of, _)| *of == source).map(|(_, kv)| kv)
                }
            };
            let (h, own) = self.reference.layer(
                layer,
                &weights,
                &pass,
                &sequence.h,
                kv,
                Some(&mut *observer),
            )?;
            sequence.h = h;
            if let Some(own) = own.filter(|_| is_shared) {
                sequence.shared.push((layer.index, own));
            }
        }
        self.next += 1;
        Ok(Some(layer.index))
    }

    /// The stream of a sequence after the layers run so far, `[tokens, hidden]` row-major.
    pub fn stream(&self, sequence: usize) -> Result<Vec<f32>> {
        to_vec(&self.sequences[sequence].h)
    }

    /// The final norm of every sequence, seen by `observer` as the head's input, under the name of its tensor.
    pub fn finish(self, observer: &mut dyn Observer) -> Result<()> {
        let reference = self.reference;
        for sequence in &self.sequences {
            let norm = Some(&reference.final_norm);
            rms_norm(&sequence.h, norm, reference.plan.eps)
                .and_then(|x| {
                    Linears::new("", Some(&mut *observer), None).show(reference.plan.head, &x)
                })
                .map_err(compute("final norm"))?;
        }
        Ok(())
    }
}
