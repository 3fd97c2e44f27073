//! Scales of quantized activations, from the statistics that a conversion is given.

use std::collections::BTreeMap;

use half::f16;

use super::resolve::ResolvedChunk;
use super::task::Task;
use crate::convert::error::{Error, Result};
use crate::quantize::Scheme;
use crate::recipe::Recipe;

/// Largest int8 value of a symmetric range, as coremltools' `linear_symmetric` has it: -128 is not used.
const LARGEST: f32 = 127.0;

/// The scale of the input of every linear layer of a package whose weight is quantized, by tensor; none where the recipe
/// leaves activations as they are.
pub(in crate::convert) fn scales(
    task: &Task,
    chunk: &ResolvedChunk,
) -> Result<BTreeMap<String, f16>> {
    let recipe: &Recipe = task.recipe_of(&chunk.spec.name);
    let Some(activations) = &recipe.quantize.activations else {
        return Ok(BTreeMap::new());
    };
    let Some(stats) = &task.calibration else {
        return Err(Error::NoCalibration {
            recipe: recipe.name.clone(),
            key: "activations",
        });
    };
    let record = task.record_of(&chunk.spec.name);
    if let (Some(base), Some(sha256)) = (&task.base, &record.calibration)
        && sha256 != stats.sha256()
    {
        let given = stats.sha256().to_string();
        return Err(base.other("calibration", given, sha256.clone()));
    }
    let quantized = chunk
        .weights
        .iter()
        .filter(|w| w.binding.kind.is_quantizable() && !matches!(w.scheme, Scheme::Fp16));
    quantized
        .map(|w| {
            let tensor = &w.binding.tensor;
            let largest = stats.input(tensor)?.percentile(activations.percentile());
            Ok((tensor.clone(), scale(tensor, largest)?))
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
