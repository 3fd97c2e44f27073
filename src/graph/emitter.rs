//! What every part of a layer is written with: weights by tensor name, projections, norms, head views.

use std::collections::BTreeMap;

use half::f16;

use super::error::{Error, Result};
use super::forms::{LinearActivations, Rounding};
use super::weights::{WeightBinding, tensor_name};
use crate::gemma::ModelPlan;
use crate::mil::{ConvParams, DType, DeferredConst, FunctionBuilder, Immediate, SliceParams, Var};

/// A function under construction: the builder, the model, and the weights of the chunk.
pub(super) struct Emitter<'a> {
    pub plan: &'a ModelPlan,
    pub fb: FunctionBuilder,
    /// Tokens of a call.
    pub tokens: usize,
    chunk: &'a str,
    weights: BTreeMap<&'a str, &'a DeferredConst>,
    /// As [`GraphOptions::activations`](super::GraphOptions::activations).
    activations: Option<&'a BTreeMap<String, LinearActivations>>,
    /// Inputs that were rounded: the value, how, what came out.
    rounded: Vec<(Var, Rounding, Var)>,
}

/// The axis that a norm runs over.
#[derive(Clone, Copy)]
pub(super) enum NormAxis {
    /// The channels of a stream `(1, C, 1, T)`.
    Channels = 1,
    /// The last axis of heads `(1, heads, T, head_dim)`.
    Last = 3,
}

impl<'a> Emitter<'a> {
    pub fn new(
        plan: &'a ModelPlan,
        chunk: &'a str,
        weights: &'a [WeightBinding],
        tokens: usize,
    ) -> Self {
        Self {
            plan,
            fb: FunctionBuilder::new(chunk),
            tokens,
            chunk,
            weights: weights
                .iter()
                .map(|w| (w.tensor.as_str(), &w.konst))
                .collect(),
            activations: None,
            rounded: Vec::new(),
        }
    }

    /// Inputs and outputs of the linear layers named here are rounded.
    pub fn with_activations(mut self, of: &'a BTreeMap<String, LinearActivations>) -> Self {
        self.activations = Some(of);
        self
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

    /// A bias-free linear map of a stream `(1, in, 1, T)` to `(1, out, 1, T)`, as a 1x1 convolution. The one place where
    /// projections are written.
    pub fn linear(&mut self, x: &Var, tensor: &str) -> Result<Var> {
        self.grouped_linear(x, tensor, 1)
    }

    /// As [`Self::linear`], for `groups` maps side by side: map `g` takes the g-th part of the channels to the g-th part of
    /// the result.
    pub fn grouped_linear(&mut self, x: &Var, tensor: &str, groups: usize) -> Result<Var> {
        let around = self.activations.and_then(|all| all.get(tensor));
        let around = around.copied().unwrap_or_default();
        let x = self.input(x, around.input)?;
        let weight = self.weight(tensor)?;
        let params = ConvParams {
            groups: dim(groups)?,
            ..ConvParams::default()
        };
        let y = self.fb.conv(&x, &weight, None, &params)?;
        match around.output {
            Some(rounding) => self.round(&y, rounding),
            None => Ok(y),
        }
    }

    /// The input of a linear layer, rounded once for all layers that share it and the way it is rounded.
    fn input(&mut self, x: &Var, rounding: Option<Rounding>) -> Result<Var> {
        let Some(rounding) = rounding else {
            return Ok(x.clone());
        };
        let done = self.rounded.iter();
        if let Some((.., out)) = done.rev().find(|(of, how, _)| of.is(x) && *how == rounding) {
            return Ok(out.clone());
        }
        let out = self.round(x, rounding)?;
        self.rounded.push((x.clone(), rounding, out.clone()));
        Ok(out)
    }

    /// A value as int8 counts of a step and back. `quantize` and `dequantize` are as coremltools' `linear_quantize_activations`
    /// writes them for `linear_symmetric`: a scalar scale in the input's dtype, no zero point.
    fn round(&mut self, x: &Var, rounding: Rounding) -> Result<Var> {
        let (before, after) = match rounding {
            Rounding::Counts { before, after } => (before, after),
            Rounding::Int8(scale) => {
                let int8 = self.fb.quantize(x, scale.to_f32(), DType::Int8)?;
                return Ok(self.fb.dequantize(&int8, scale.to_f32())?);
            }
        };
        let x = self.times(x, before)?;
        let x = self.fb.round(&x)?;
        let x = self.fb.clip(&x, -128.0, 127.0)?;
        self.times(&x, after)
    }

    /// A value times a number, which is not written where it is 1.
    fn times(&mut self, x: &Var, factor: f16) -> Result<Var> {
        if factor == f16::ONE {
            return Ok(x.clone());
        }
        let factor = self.fb.scalar_f16(factor.to_f32())?;
        Ok(self.fb.mul(x, &factor)?)
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

    /// A stream `(1, heads * head_dim, 1, T)` as heads `(1, heads, T, head_dim)`.
    pub fn as_heads(&mut self, x: &Var, heads: usize, head_dim: usize) -> Result<Var> {
        if self.tokens == 1 {
            return self.reshape(x, &[1, heads, 1, head_dim]);
        }
        let x = self.reshape(x, &[1, heads, head_dim, self.tokens])?;
        Ok(self.fb.transpose(&x, &[0, 1, 3, 2])?)
    }

    /// Heads `(1, kv_heads, heads / kv_heads * T, head_dim)`, however grouped, as a stream `(1, heads * head_dim, 1, T)`.
    pub fn heads_as_stream(&mut self, x: &Var, heads: usize, head_dim: usize) -> Result<Var> {
        let channels = heads * head_dim;
        if self.tokens == 1 {
            return self.reshape(x, &[1, channels, 1, 1]);
        }
        let x = self.reshape(x, &[1, heads, self.tokens, head_dim])?;
        let x = self.fb.transpose(&x, &[0, 1, 3, 2])?;
        self.reshape(&x, &[1, channels, 1, self.tokens])
    }

    /// A feature `(1, T, channels)` as a stream `(1, channels, 1, T)`.
    pub fn as_stream(&mut self, x: &Var, channels: usize) -> Result<Var> {
        if self.tokens == 1 {
            return self.reshape(x, &[1, channels, 1, 1]);
        }
        let x = self.fb.transpose(x, &[0, 2, 1])?;
        self.reshape(&x, &[1, channels, 1, self.tokens])
    }

    /// A feature `(1, T, channels)` of the package from a stream.
    pub fn as_feature(&mut self, x: &Var, channels: usize) -> Result<Var> {
        if self.tokens == 1 {
            return self.reshape(x, &[1, 1, channels]);
        }
        let x = self.reshape(x, &[1, channels, self.tokens])?;
        Ok(self.fb.transpose(&x, &[0, 2, 1])?)
    }

    /// Zeros behind the elements of an axis, up to `size`.
    pub fn pad_to(&mut self, x: &Var, axis: usize, size: usize) -> Result<Var> {
        let missing = match x.shape().get(axis) {
            Some(&n) if n < size => size - n,
            _ => return Ok(x.clone()),
        };
        // `pad` counts from the last axes: pairs for the axes from `axis` on.
        let mut pad = vec![0; 2 * (x.rank() - axis)];
        pad[1] = missing;
        Ok(self.fb.pad(x, &dims(&pad)?, 0.0)?)
    }

    /// The first elements of an axis.
    pub fn first(&mut self, x: &Var, axis: usize, count: usize) -> Result<Var> {
        let mut size = x.shape().to_vec();
        size[axis] = count;
        self.slice(x, &vec![0; size.len()], &size)
    }

    /// The last elements of an axis.
    pub fn last(&mut self, x: &Var, axis: usize, count: usize) -> Result<Var> {
        let mut size = x.shape().to_vec();
        let mut begin = vec![0; size.len()];
        begin[axis] = size[axis] - count;
        size[axis] = count;
        self.slice(x, &begin, &size)
    }

    /// Zeros that no input makes.
    pub fn zeros(&mut self, shape: &[usize]) -> Result<Var> {
        let zero = self.fb.immediate(Immediate::fp16s(
            &vec![1; shape.len()],
            vec![half::f16::ZERO],
        )?)?;
        let reps = dims(shape)?;
        Ok(self.fb.tile(&zero, &reps)?)
    }

    /// An int32 vector.
    pub fn int32s(&mut self, values: &[usize]) -> Result<Var> {
        Ok(self.fb.immediate(Immediate::int32s(&dims(values)?))?)
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
