//! Scales of quantized activations from the statistics that a conversion is given.

use super::resolve::ResolvedChunk;
use crate::calibrate::Stats;
use crate::convert::error::{Error, Result};
use crate::graph::{LinearActivations, Rounding};
use crate::quantize::Scheme;
use half::f16;
use std::collections::BTreeMap;

/// Largest int8 value of a symmetric range, as coremltools' `linear_symmetric` has it: -128 is not used.
const LARGEST: f32 = 127.0;

/// The rounding of the input of every linear layer of a package whose weight is quantized, by tensor. The range reaches to
/// `percentile` of the magnitudes.
pub(super) fn measured(
    chunk: &ResolvedChunk,
    percentile: f64,
    stats: &Stats,
) -> Result<BTreeMap<String, LinearActivations>> {
    let quantized = chunk
        .weights
        .iter()
        .filter(|w| w.binding.kind.is_quantizable() && !matches!(w.scheme, Scheme::Fp16));
    quantized
        .map(|w| {
            let tensor = &w.binding.tensor;
            let largest = stats.input(tensor)?.percentile(percentile);
            let around = LinearActivations {
                input: Some(Rounding::Int8(scale(tensor, largest)?)),
                output: None,
            };
            Ok((tensor.clone(), around))
        })
        .collect()
}

/// `largest / 127` in fp16, at least the smallest normal number: what is smaller may be flushed to zero.
fn scale(tensor: &str, largest: f32) -> Result<f16> {
    let scale = f16::from_f32(largest / LARGEST).max(f16::MIN_POSITIVE);
    match scale.is_finite() {
        true => Ok(scale),
        false => Err(Error::ActivationRange {
            tensor: tensor.to_string(),
            largest,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_fp16_and_never_zero() {
        assert_eq!(scale("t", 127.0).unwrap(), f16::ONE);
        assert_eq!(scale("t", 1.0).unwrap(), f16::from_f32(1.0 / 127.0));
        for small in [0.0, 1e-30, 1e-5] {
            assert_eq!(scale("t", small).unwrap(), f16::MIN_POSITIVE);
        }
        let error = scale("t", 1e7).unwrap_err();
        assert!(matches!(error, Error::ActivationRange { .. }), "{error}");
    }
}
