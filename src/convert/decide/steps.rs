//! The steps of activations that a checkpoint was trained with: what programs do with them, and what weights and norms take over.

use super::resolve::{Resolved, ResolvedChunk};
use crate::checkpoint::{ActivationScales, Checkpoint};
use crate::convert::error::{Error, Result};
use crate::gemma::ModelPlan;
use crate::graph::{LinearActivations, Rounding};
use crate::recipe::{ActivationForm, Activations, Recipe};
use half::f16;
use std::collections::BTreeMap;

/// That a recipe says what becomes of the steps of activations that the checkpoint has.
pub(super) fn check(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<()> {
    if !checkpoint.has_activation_scales() {
        return Ok(());
    }
    let error = |asked: Option<&'static str>| Error::ActivationsLeftOut {
        recipe: recipe.name.clone(),
        layers: rounded_layers(checkpoint),
        asked: asked.map_or(String::new(), |ranges| {
            format!(", which has `activations` with ranges = \"{ranges}\",")
        }),
    };
    match recipe.quantize.activations {
        Some(Activations::Checkpoint { .. } | Activations::None {}) => Ok(()),
        Some(Activations::Minmax {}) => Err(error(Some("minmax"))),
        Some(Activations::Percentile { .. }) => Err(error(Some("percentile"))),
        None => Err(error(None)),
    }
}

/// What a user should know of the steps and a recipe.
pub(super) fn note(checkpoint: &Checkpoint, recipe: &Recipe) -> Option<String> {
    let layers = rounded_layers(checkpoint);
    match (recipe.quantize.activations, layers) {
        (Some(Activations::Checkpoint { .. }), 0) => Some(format!(
            "recipe {}: the checkpoint has no steps of activations, so none are rounded",
            recipe.name
        )),
        (Some(Activations::None {}), 1..) => Some(format!(
            "recipe {} leaves out the int8 activations that the checkpoint was trained with ({layers} linear layers): the bundle \
             is another model, much worse on long answers (86 % against 48 % of GSM8K where it was measured)",
            recipe.name
        )),
        _ => None,
    }
}

/// Linear layers with a step.
fn rounded_layers(checkpoint: &Checkpoint) -> usize {
    let rounded = |name: &&str| {
        let scales = checkpoint.activation_scales(name);
        scales.is_some_and(|s| s.input != 0.0 || s.output != 0.0)
    };
    checkpoint.names().filter(rounded).count()
}

/// Gives a package the rounding of its linear layers, and its weights the factors that are folded into them.
pub(super) fn apply(
    checkpoint: &Checkpoint,
    plan: &ModelPlan,
    form: ActivationForm,
    chunk: &mut ResolvedChunk,
) -> Result<()> {
    let mut layers = Vec::new();
    for weight in chunk
        .weights
        .iter()
        .filter(|w| w.binding.kind.is_quantizable())
    {
        let scales = checkpoint.activation_scales(&weight.binding.tensor);
        layers.extend(scales.map(|scales| (weight.binding.tensor.clone(), scales)));
    }
    chunk.activations.clear();
    if form == ActivationForm::Quantize {
        for (tensor, scales) in layers {
            let around = LinearActivations {
                input: int8(&tensor, "input", scales.input)?,
                output: int8(&tensor, "output", scales.output)?,
            };
            chunk.activations.insert(tensor, around);
        }
        return Ok(());
    }
    let mut factors = norms(checkpoint, plan, chunk)?;
    let norms: Vec<String> = factors.keys().cloned().collect();
    for (tensor, scales) in layers {
        let weight = chunk.weights.iter().find(|w| w.binding.tensor == tensor);
        let folded = match weight {
            Some(weight) => weight_factor(checkpoint, weight, scales)?,
            None => None,
        };
        let fed = plan.layers.iter().any(|layer| {
            let mut folds = plan.folds(layer).into_iter();
            folds.any(|f| norms.contains(&f.source) && f.consumers.contains(&tensor))
        });
        let around = arithmetic(&tensor, scales, fed, folded.is_some())?;
        factors.extend(folded.map(|factor| (tensor.clone(), factor)));
        chunk.activations.insert(tensor, around);
    }
    for weight in &mut chunk.weights {
        weight.factor = factors.get(&weight.binding.tensor).copied().unwrap_or(1.0);
    }
    Ok(())
}

/// One scale for both ways.
fn int8(tensor: &str, of: &'static str, step: f32) -> Result<Option<Rounding>> {
    match step {
        0.0 => Ok(None),
        _ => Ok(Some(Rounding::Int8(constant(tensor, of, step, step)?))),
    }
}

/// `fed`: the norm before the layer gives counts. `folded`: the weight takes counts and gives counts.
fn arithmetic(
    tensor: &str,
    scales: ActivationScales,
    fed: bool,
    folded: bool,
) -> Result<LinearActivations> {
    let counts = |of, step: f32, [before, after]: [bool; 2]| -> Result<Option<Rounding>> {
        if step == 0.0 {
            return Ok(None);
        }
        let unless = |elsewhere: bool, factor: f32| match elsewhere {
            true => Ok(f16::ONE),
            false => constant(tensor, of, step, factor),
        };
        Ok(Some(Rounding::Counts {
            before: unless(before, 1.0 / step)?,
            after: unless(after, step)?,
        }))
    };
    Ok(LinearActivations {
        input: counts("input", scales.input, [fed, folded])?,
        output: counts("output", scales.output, [folded, false])?,
    })
}

/// A number of the program: one that fp16 holds with all its digits.
fn constant(tensor: &str, of: &'static str, step: f32, value: f32) -> Result<f16> {
    let rounded = f16::from_f32(value);
    match rounded.is_normal() {
        true => Ok(rounded),
        false => Err(Error::ActivationStep {
            tensor: tensor.to_string(),
            of,
            step,
        }),
    }
}

/// The factor of each norm whose gain takes over that inputs become counts: where every layer that it feeds has the same step, and
/// the gains stay normal numbers of fp16.
fn norms(
    checkpoint: &Checkpoint,
    plan: &ModelPlan,
    chunk: &ResolvedChunk,
) -> Result<BTreeMap<String, f32>> {
    let mut factors = BTreeMap::new();
    for layer in &plan.layers[chunk.spec.layers.clone()] {
        for fold in plan.folds(layer) {
            let here = |w: &&Resolved| w.binding.tensor == fold.source;
            let Some(norm) = chunk.weights.iter().find(here) else {
                continue;
            };
            let [width] = norm.binding.source_shape[..] else {
                continue;
            };
            let mut steps = fold.consumers.iter().map(|tensor| {
                let scales = checkpoint.activation_scales(tensor);
                scales.map_or(0.0, |s| s.input)
            });
            let step = steps.next().unwrap_or(0.0);
            if step == 0.0 || steps.any(|other| other != step) {
                continue;
            }
            let mut gains = vec![0f32; width];
            let view = checkpoint.tensor(&fold.source, &[width])?;
            view.read_f32(0..width, &mut gains)?;
            let factor = 1.0 / step;
            let holds = |gain: &f32| *gain == 0.0 || f16::from_f32(gain * factor).is_normal();
            if gains.iter().all(holds) {
                factors.insert(fold.source.clone(), factor);
            }
        }
    }
    Ok(factors)
}

/// The factor that makes a weight take counts and give counts, where the checkpoint gives it as integers whose steps, times the
/// factor, stay normal numbers of fp16 that reach the ends of the range.
fn weight_factor(
    checkpoint: &Checkpoint,
    weight: &Resolved,
    scales: ActivationScales,
) -> Result<Option<f32>> {
    let binding = &weight.binding;
    let view = checkpoint.tensor(&binding.tensor, &binding.source_shape)?;
    let Some(grid) = view.grid() else {
        return Ok(None);
    };
    let or_one = |step: f32| if step == 0.0 { 1.0 } else { step };
    let factor = or_one(scales.input) / or_one(scales.output);
    let mut steps = vec![0f32; view.len() / grid.block.max(1)];
    view.read_steps(0..steps.len(), &mut steps)?;
    let largest = (1u32 << (grid.nbits - 1)) as f32;
    let holds = |step: &f32| {
        let ends = [step * factor, step * factor * largest];
        *step == 0.0 || ends.iter().all(|end| f16::from_f32(*end).is_normal())
    };
    Ok(steps.iter().all(holds).then_some(factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALES: ActivationScales = ActivationScales {
        input: 0.5,
        output: 4.0,
    };

    fn counts(before: f32, after: f32) -> Option<Rounding> {
        Some(Rounding::Counts {
            before: f16::from_f32(before),
            after: f16::from_f32(after),
        })
    }

    #[test]
    fn what_is_folded_is_not_written() {
        let of = |fed, folded| arithmetic("t", SCALES, fed, folded).unwrap();
        let around = |input, output| LinearActivations { input, output };
        assert_eq!(
            of(false, false),
            around(counts(2.0, 0.5), counts(0.25, 4.0))
        );
        assert_eq!(of(true, false), around(counts(1.0, 0.5), counts(0.25, 4.0)));
        assert_eq!(of(false, true), around(counts(2.0, 1.0), counts(1.0, 4.0)));
        assert_eq!(of(true, true), around(counts(1.0, 1.0), counts(1.0, 4.0)));
        let none = ActivationScales {
            input: 0.0,
            output: 0.0,
        };
        let got = arithmetic("t", none, false, true).unwrap();
        assert_eq!(got, LinearActivations::default());
    }

    #[test]
    fn steps_beyond_fp16_are_errors_where_they_are_written() {
        for (input, output) in [(1e-5, 1.0), (1e5, 1.0), (1.0, 1e-5), (1.0, 20000.0)] {
            let scales = ActivationScales { input, output };
            let error = arithmetic("t", scales, false, false).unwrap_err();
            let of_step = matches!(error, Error::ActivationStep { step, .. } if step != 1.0);
            assert!(of_step, "{error}");
        }
        let small = ActivationScales {
            input: 1e-5,
            output: 1.0,
        };
        assert!(arithmetic("t", small, true, true).is_ok());
        assert!(int8("t", "input", 1e-5).is_err());
        assert_eq!(int8("t", "input", 0.0).unwrap(), None);
    }
}
