//! A seam in the reference forward: who sees what goes into its linear layers.

use candle_core::{Result, Tensor};

use super::math::linear;

/// Sees the inputs of the linear layers of a pass.
pub trait Observer {
    /// `x`, `[rows, in]` in f32, is about to be multiplied with `tensor` (name without prefix). Called for every linear layer
    /// in the order of the computation; those that share an input (q, k and v; gate and up) are handed the same tensor, by its
    /// [`Tensor::id`]. An expert's layers see the rows that the router gave it, once for each expert. An error stops the pass.
    fn input(&mut self, tensor: &str, x: &Tensor) -> Result<()>;
}

/// The linear layers of one part of a model, each by its tensor's name.
pub(super) struct Linears<'a> {
    prefix: String,
    observer: Option<&'a mut dyn Observer>,
}

impl<'a> Linears<'a> {
    /// Names are put after `prefix`.
    pub fn new(prefix: impl Into<String>, observer: Option<&'a mut dyn Observer>) -> Self {
        Self {
            prefix: prefix.into(),
            observer,
        }
    }

    /// Shows `x` to the observer without multiplying.
    pub fn show(&mut self, tensor: &str, x: &Tensor) -> Result<()> {
        match &mut self.observer {
            Some(observer) => observer.input(&format!("{}{tensor}", self.prefix), x),
            None => Ok(()),
        }
    }

    /// `x @ weight^T`, shown to the observer under the tensor's name.
    pub fn apply(&mut self, tensor: &str, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        self.show(tensor, x)?;
        linear(x, weight)
    }
}
