//! The linear layers of the reference forward: who sees what goes into them, and what a checkpoint rounds around them.

use candle_core::{Result, Tensor, TensorId};

use crate::checkpoint::{ActivationScales, Checkpoint};

use super::math::{linear, through_int8};

/// Sees the inputs of the linear layers of a pass.
pub trait Observer {
    /// `x`, `[rows, in]` in f32, is about to be multiplied with `tensor` (name without prefix), rounded where the checkpoint
    /// has [`ActivationScales`]. Called for every linear layer in the order of the computation; those that share an input (q, k
    /// and v; gate and up) are handed the same tensor, by its [`Tensor::id`]. An expert's layers see the rows that the router
    /// gave it, once for each expert. An error stops the pass.
    fn input(&mut self, tensor: &str, x: &Tensor) -> Result<()>;
}

/// The linear layers of one part of a model, each by its tensor's name.
pub(super) struct Linears<'o, 'c> {
    prefix: String,
    observer: Option<&'o mut dyn Observer>,
    /// What has the steps of activations, if they count.
    scales: Option<&'c Checkpoint>,
    /// The input rounded last: what it was, its step, and what it is.
    rounded: Option<(TensorId, f32, Tensor)>,
}

impl<'o, 'c> Linears<'o, 'c> {
    /// Names are put after `prefix`. Activations are rounded as `scales` says.
    pub fn new(
        prefix: impl Into<String>,
        observer: Option<&'o mut dyn Observer>,
        scales: Option<&'c Checkpoint>,
    ) -> Self {
        Self {
            prefix: prefix.into(),
            observer,
            scales,
            rounded: None,
        }
    }

    /// Shows `x` to the observer without multiplying.
    pub fn show(&mut self, tensor: &str, x: &Tensor) -> Result<()> {
        match &mut self.observer {
            Some(observer) => observer.input(&format!("{}{tensor}", self.prefix), x),
            None => Ok(()),
        }
    }

    /// `x @ weight^T`, shown to the observer under the tensor's name. The one place where activations are rounded: the input
    /// once for all layers that share it and its step, the output with a step of its own.
    pub fn apply(&mut self, tensor: &str, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let scales = self.scales(tensor);
        let x = self.input(x, scales.input)?;
        self.show(tensor, &x)?;
        let y = linear(&x, weight)?;
        match scales.output {
            0.0 => Ok(y),
            step => through_int8(&y, step),
        }
    }

    fn scales(&self, tensor: &str) -> ActivationScales {
        let none = ActivationScales {
            input: 0.0,
            output: 0.0,
        };
        self.scales
            .and_then(|c| c.activation_scales(&format!("{}{tensor}", self.prefix)))
            .unwrap_or(none)
    }

    fn input(&mut self, x: &Tensor, step: f32) -> Result<Tensor> {
        if step == 0.0 {
            return Ok(x.clone());
        }
        if let Some((of, with, rounded)) = &self.rounded
            && *of == x.id()
            && *with == step
        {
            return Ok(rounded.clone());
        }
        let rounded = through_int8(x, step)?;
        self.rounded = Some((x.id(), step, rounded.clone()));
        Ok(rounded)
    }
}
