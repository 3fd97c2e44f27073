//! What every part of a layer is written with: weights by tensor name, projections, norms, head views.

use std::collections::BTreeMap;

use super::error::{Error, Result};
use super::weights::{WeightBinding, tensor_name};
use crate::gemma::ModelPlan;
use crate::mil::{ConvParams, DeferredConst, FunctionBuilder, SliceParams, Var};

/// A function under construction: the builder, the model, and the weights of the chunk.
pub(super) struct Emitter<'a> {
    pub plan: &'a ModelPlan,
    pub fb: FunctionBuilder,
    chunk: &'a str,
    weights: BTreeMap<&'a str, &'a DeferredConst>,
}

/// The axis that a norm runs over.
#[derive(Clone, Copy)]
pub(super) enum NormAxis {
    /// The channels of a stream `(1, C, 1, 1)`.
    Channels = 1,
    /// The last axis of heads `(1, heads, 1, head_dim)`.
    Last = 3,
}

impl<'a> Emitter<'a> {
    pub fn new(plan: &'a ModelPlan, chunk: &'a str, weights: &'a [WeightBinding]) -> Self {
        Self {
            plan,
            fb: FunctionBuilder::new(chunk),
            chunk,
            weights: weights
                .iter()
                .map(|w| (w.tensor.as_str(), &w.konst))
                .collect(),
        }
    }

    /// The weight filled by a tensor.
    pub fn weight(&mut self, tensor: &str) -> Result<Var> {
        match self.weights.get(tensor) {
            Some(konst) => Ok(self.fb.weight((*konst).clone())?),
            None => Err(Error::NoWeight {
                chunk: self.chunk.to_owned(),
                tensor: tensor.to_owned(),
            }),
        }
    }

    /// A weight of one layer.
    pub fn layer_weight(&mut self, layer: usize, suffix: &str) -> Result<Var> {
        self.weight(&tensor_name(layer, suffix))
    }

    /// A bias-free linear map of a stream `(1, in, 1, 1)` to `(1, out, 1, 1)`, as a 1x1 convolution. The one place where
    /// projections are written.
    pub fn linear(&mut self, x: &Var, tensor: &str) -> Result<Var> {
        self.grouped_linear(x, tensor, 1)
    }

    /// As [`Self::linear`], for `groups` maps side by side: map `g` takes the g-th part of the channels to the g-th part of
    /// the result.
    pub fn grouped_linear(&mut self, x: &Var, tensor: &str, groups: usize) -> Result<Var> {
        let weight = self.weight(tensor)?;
        let params = ConvParams {
            groups: dim(groups)?,
            ..ConvParams::default()
        };
        Ok(self.fb.conv(x, &weight, None, &params)?)
    }

    /// A linear map of one layer.
    pub fn layer_linear(&mut self, x: &Var, layer: usize, suffix: &str) -> Result<Var> {
        self.linear(x, &tensor_name(layer, suffix))
    }

    /// `x / sqrt(mean(x^2) + eps)` over one axis, without gain.
    ///
    /// Written as the layer_norm of `[x, -x]`, whose mean is zero and whose variance is `mean(x^2)`: the ANE has no RMS
    /// norm, and squares taken one op at a time overflow fp16.
    pub fn rms(&mut self, x: &Var, axis: NormAxis) -> Result<Var> {
        let axis = axis as i32;
        let minus_one = self.fb.scalar_f16(-1.0)?;
        let negated = self.fb.mul(x, &minus_one)?;
        let both = self.fb.concat(&[x.clone(), negated], axis)?;
        let normed = self
            .fb
            .layer_norm(&both, &[axis], None, None, self.plan.eps as f32)?;
        self.slice(&normed, &[0; 4], x.shape())
    }

    /// [`Self::rms`] times a gain.
    pub fn rms_norm(&mut self, x: &Var, axis: NormAxis, tensor: &str) -> Result<Var> {
        let normed = self.rms(x, axis)?;
        let gain = self.weight(tensor)?;
        Ok(self.fb.mul(&normed, &gain)?)
    }

    /// The norm of one layer over its channels.
    pub fn layer_norm(&mut self, x: &Var, layer: usize, suffix: &str) -> Result<Var> {
        self.rms_norm(x, NormAxis::Channels, &tensor_name(layer, suffix))
    }

    /// The part of `x` from `begin` on with shape `size`; `x` itself when that is all of it.
    pub fn slice(&mut self, x: &Var, begin: &[usize], size: &[usize]) -> Result<Var> {
        if x.shape() == size {
            return Ok(x.clone());
        }
        let end: Vec<usize> = begin.iter().zip(size).map(|(b, s)| b + s).collect();
        let (begin, end) = (dims(begin)?, dims(&end)?);
        Ok(self
            .fb
            .slice_by_index(x, &begin, &end, &SliceParams::default())?)
    }

    /// The same elements in another shape.
    pub fn reshape(&mut self, x: &Var, shape: &[usize]) -> Result<Var> {
        Ok(self.fb.reshape(x, &dims(shape)?)?)
    }

    /// A stream of one token `(1, heads * head_dim, 1, 1)` as heads `(1, heads, 1, head_dim)`.
    pub fn as_heads(&mut self, x: &Var, heads: usize, head_dim: usize) -> Result<Var> {
        self.reshape(x, &[1, heads, 1, head_dim])
    }

    /// The elements of one token, in whatever shape, as a stream `(1, channels, 1, 1)`.
    pub fn as_stream(&mut self, x: &Var, channels: usize) -> Result<Var> {
        self.reshape(x, &[1, channels, 1, 1])
    }

    /// A feature `(1, 1, channels)` of the package from a stream.
    pub fn as_feature(&mut self, x: &Var, channels: usize) -> Result<Var> {
        self.reshape(x, &[1, 1, channels])
    }
}

/// Sizes as MIL writes them.
pub(super) fn dims(sizes: &[usize]) -> Result<Vec<i32>> {
    sizes.iter().map(|&n| dim(n)).collect()
}

/// A size as MIL writes it.
pub(super) fn dim(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| Error::TooLarge { size })
}
