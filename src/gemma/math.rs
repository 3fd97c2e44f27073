//! Norm, product and int8 activations, as `modeling_gemma4.py` of transformers 5.23 computes them.

use candle_core::{D, Result, Tensor};

/// Root mean square norm over the last dim; the weight multiplies as it is.
pub(super) fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = x.broadcast_div(&(mean_square + eps)?.sqrt()?)?;
    match weight {
        Some(weight) => normed.broadcast_mul(weight),
        None => Ok(normed),
    }
}

/// `x @ weight^T`: `x` is `[S, in]`, `weight` is `[out, in]`.
pub(super) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)
}

/// The multiple of `step` that is nearest to each value, of those from -128 to 127; a half goes to the even one. As `apply_srq` of
/// transformers 5.23 computes it.
pub(super) fn through_int8(x: &Tensor, step: f32) -> Result<Tensor> {
    let mut values: Vec<f32> = x.flatten_all()?.to_vec1()?;
    for value in &mut values {
        *value = (*value / step).round_ties_even().clamp(-128.0, 127.0) * step;
    }
    Tensor::from_vec(values, x.shape(), x.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn rounded(values: &[f32], step: f32) -> Vec<f32> {
        let x = Tensor::from_slice(values, (1, values.len()), &Device::Cpu).unwrap();
        let y = through_int8(&x, step).unwrap();
        assert_eq!(y.dims(), x.dims());
        y.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn halves_go_to_the_even_integer_and_both_ends_are_reached() {
        let got = rounded(&[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -127.5], 1.0);
        assert_eq!(got, [0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 126.0, -128.0]);
        let got = rounded(&[128.4, 127.5, -128.5, -129.0, f32::INFINITY, -1e30], 1.0);
        assert_eq!(got, [127.0, 127.0, -128.0, -128.0, 127.0, -128.0]);
        assert_eq!(rounded(&[0.125, 0.375, -0.375], 0.25), [0.0, 0.5, -0.5]);
    }

    #[test]
    fn what_is_on_the_grid_stays() {
        for step in [0.25f32, 0.038_878, 3.0, 1e-4] {
            let grid: Vec<f32> = (-128..=127).map(|q| q as f32 * step).collect();
            assert_eq!(rounded(&grid, step), grid, "{step}");
            let off: Vec<f32> = (-2000..2000).map(|i| i as f32 * step / 11.0).collect();
            let once = rounded(&off, step);
            assert_eq!(rounded(&once, step), once, "{step}");
        }
    }
}
