//! The mixture of experts of a layer in f32, as `modeling_gemma4.py` of transformers 5.23 computes it.

use candle_core::{D, Result, Tensor};

use super::math::rms_norm;
use super::observe::Linears;

/// Router, experts and their norms.
pub(super) struct Experts {
    pub top_k: usize,
    /// Gain on the dense MLP's output.
    pub post_mlp_norm: Tensor,
    /// Factor on the channels that the router sees, `[H]`.
    pub scale: Tensor,
    /// `[E, H]`.
    pub router: Tensor,
    /// Factor on an expert's weight after the chosen ones are made to sum to one, `[E]`.
    pub per_expert_scale: Tensor,
    pub pre_norm: Tensor,
    /// `[E, 2 * I, H]`, gate before up.
    pub gate_up: Tensor,
    /// `[E, H, I]`.
    pub down: Tensor,
    pub post_norm: Tensor,
}

/// One expert's tokens: their rows in the pass and the expert's weight for each.
#[derive(Clone, Default)]
struct Share {
    rows: Vec<u32>,
    weights: Vec<f32>,
}

impl Experts {
    /// The sum of both branches before the last norm: `mlp`, the output of the dense MLP, and the experts' on the stream
    /// `h` that the MLP was given before its norm. All `[S, hidden]`.
    pub fn beside(
        &self,
        mlp: &Tensor,
        h: &Tensor,
        eps: f64,
        linears: &mut Linears,
    ) -> Result<Tensor> {
        let dense = rms_norm(mlp, Some(&self.post_mlp_norm), eps)?;
        let x = rms_norm(h, Some(&self.pre_norm), eps)?;
        let shares = self.route(h, eps, linears)?;
        let chosen = self.mix(&x, &shares, linears)?;
        dense + rms_norm(&chosen, Some(&self.post_norm), eps)?
    }

    /// Which tokens each expert is given. Of equally likely experts the lower one is chosen first.
    fn route(&self, h: &Tensor, eps: f64, linears: &mut Linears) -> Result<Vec<Share>> {
        let z = rms_norm(h, None, eps)?.broadcast_mul(&self.scale)?;
        let z = (z * (h.dim(D::Minus1)? as f64).powf(-0.5))?;
        let scores = linears.apply("router.proj.weight", &z, &self.router)?;
        let likely = candle_nn::ops::softmax_last_dim(&scores)?;
        let scale = self.per_expert_scale.to_vec1::<f32>()?;
        let mut shares = vec![Share::default(); scale.len()];
        for (row, likely) in (0u32..).zip(likely.to_vec2::<f32>()?) {
            let mut order: Vec<usize> = (0..likely.len()).collect();
            order.sort_by(|&a, &b| likely[b].total_cmp(&likely[a]));
            order.truncate(self.top_k);
            let sum: f32 = order.iter().map(|&e| likely[e]).sum();
            for e in order {
                shares[e].rows.push(row);
                shares[e].weights.push(likely[e] / sum * scale[e]);
            }
        }
        Ok(shares)
    }

    /// The weighted sum of the chosen experts' outputs.
    fn mix(&self, x: &Tensor, shares: &[Share], linears: &mut Linears) -> Result<Tensor> {
        let width = self.down.dim(D::Minus1)?;
        let mut sum = x.zeros_like()?;
        for (e, share) in shares.iter().enumerate() {
            let count = share.rows.len();
            if count == 0 {
                continue;
            }
            let rows = Tensor::from_slice(&share.rows, count, x.device())?;
            let weights = Tensor::from_slice(&share.weights, (count, 1), x.device())?;
            let chosen = x.index_select(&rows, 0)?;
            let both = linears.apply("experts.gate_up_proj", &chosen, &self.gate_up.get(e)?)?;
            let gate = both.narrow(1, 0, width)?.gelu()?;
            let gated = (gate * both.narrow(1, width, width)?)?;
            let y = linears.apply("experts.down_proj", &gated, &self.down.get(e)?)?;
            sum = sum.index_add(&rows, &y.broadcast_mul(&weights)?, 0)?;
        }
        Ok(sum)
    }
}
