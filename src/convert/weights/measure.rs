//! What palettes of several widths would make of a tensor, without writing anything.

use super::input::Input;
use super::levers::Levers;
use super::tile::{Pool, failed, within};
use super::tuning::Tuning;
use crate::calibrate::Stats;
use crate::checkpoint::Checkpoint;
use crate::convert::decide::{Resolved, ResolvedChunk, matrix};
use crate::convert::error::{Error, Result};
use crate::convert::limits::TILE;
use crate::gemma::ModelPlan;
use crate::progress::Progress;
use crate::quantize::{GroupResult, Grouping, Lut, PaletteForm, Scheme, Scratch};
use crate::recipe::QuantRules;
use half::f16;
use rayon::prelude::*;
use std::ops::Range;

/// Measures the weights of one package, in their order.
pub(crate) struct Measurer<'a> {
    checkpoint: &'a Checkpoint,
    levers: Levers<'a>,
    pool: Pool,
}

/// Palettes of one tensor.
pub(crate) struct Measured<'a> {
    /// Sum of squared errors times importance, for each width asked for.
    pub errors: Vec<f64>,
    /// Sum of squares times importance of the tensor itself.
    pub energy: f64,
    /// For each width the tables of the groups.
    luts: Vec<Vec<Lut>>,
    input: Input<'a>,
    /// Weights that share a table.
    length: usize,
}

impl<'a> Measurer<'a> {
    /// `rules` say whether there are folds and importance. Errors are those before compensation, which takes long: rules
    /// without it spare its preparation.
    pub fn new(
        checkpoint: &'a Checkpoint,
        plan: &'a ModelPlan,
        rules: &'a QuantRules,
        stats: &'a Stats,
        chunk: &'a ResolvedChunk,
    ) -> Self {
        Self {
            checkpoint,
            levers: Levers::new(checkpoint, plan, rules, stats, &chunk.weights),
            pool: Pool::default(),
        }
    }

    /// The errors of a weight with scalar palettes, in its own groups, at each of `widths`. Reads it once.
    ///
    /// # Errors
    /// As a conversion: statistics that lack the tensor, values that are not finite or leave fp16 by their fold.
    pub fn measure(
        &mut self,
        weight: &Resolved,
        widths: &[u8],
        progress: &dyn Progress,
    ) -> Result<Measured<'a>> {
        let binding = &weight.binding;
        let [outputs, inputs] = matrix(binding);
        let length = match scalar_group(weight.scheme) {
            Some(Grouping::Channels(channels)) => channels * inputs,
            _ => outputs * inputs,
        };
        let view = self
            .checkpoint
            .tensor(&binding.tensor, &binding.source_shape)?;
        let (factors, tuning) = self.levers.of(weight)?;
        let mut measured = Measured {
            errors: vec![0.0; widths.len()],
            energy: 0.0,
            luts: vec![Vec::new(); widths.len()],
            input: Input::new(view, inputs, factors),
            length,
        };
        progress.item(&binding.tensor);
        match length > TILE {
            true => measured.large_groups(&tuning, widths, &self.pool, progress)?,
            false => measured.groups(&tuning, widths, &self.pool, progress)?,
        }
        Ok(measured)
    }
}

/// The grouping of a scalar palette.
pub(crate) fn scalar_group(scheme: Scheme) -> Option<Grouping> {
    match scheme {
        Scheme::Palette {
            group,
            form: PaletteForm::Scalar,
            ..
        } => Some(group),
        _ => None,
    }
}

impl Measured<'_> {
    /// Groups of at most a tile, in parallel.
    fn groups(
        &mut self,
        tuning: &Tuning,
        widths: &[u8],
        pool: &Pool,
        progress: &dyn Progress,
    ) -> Result<()> {
        for tile in within(&(0..self.input.view.len()), self.length) {
            let (input, length) = (&self.input, self.length);
            let one = |start: usize| {
                let group = start..tile.end.min(start + length);
                pool.with(|scratch| {
                    scratch.histogram.clear();
                    collect(input, tuning, group.clone(), scratch)?;
                    fit(input, widths, start, scratch)
                })
            };
            let starts: Vec<usize> = tile.clone().step_by(length).collect();
            let fitted: Vec<Result<Fitted>> = starts.into_par_iter().map(one).collect();
            for group in fitted {
                self.add(group?);
            }
            progress.advance(tile.len() as u64);
        }
        Ok(())
    }

    /// Groups larger than a tile, collected tile by tile, each fitted to the widths in parallel.
    fn large_groups(
        &mut self,
        tuning: &Tuning,
        widths: &[u8],
        pool: &Pool,
        progress: &dyn Progress,
    ) -> Result<()> {
        for start in (0..self.input.view.len()).step_by(self.length) {
            let group = start..self.input.view.len().min(start + self.length);
            let fitted = pool.with(|scratch| {
                scratch.histogram.clear();
                for tile in within(&group, self.input.inputs) {
                    collect(&self.input, tuning, tile.clone(), scratch)?;
                    progress.advance(tile.len() as u64);
                }
                fit(&self.input, widths, start, scratch)
            });
            self.add(fitted?);
        }
        Ok(())
    }

    fn add(&mut self, (results, energy): Fitted) {
        self.energy += energy;
        for (i, result) in results.into_iter().enumerate() {
            self.errors[i] += result.weighted_sse;
            self.luts[i].push(result.lut);
        }
    }

    /// Forgets the tables of all widths but the one at `index`.
    pub fn keep_tables(&mut self, index: Option<usize>) {
        for (i, luts) in self.luts.iter_mut().enumerate() {
            if Some(i) != index {
                *luts = Vec::new();
            }
        }
    }

    /// Elements from `start` on as the palettes of width `index` make them, factors of folds taken off: what a model computes
    /// with when this tensor alone is quantized.
    ///
    /// # Errors
    /// The checkpoint cannot be read there, or the tables of that width were not kept.
    pub fn read(&self, index: usize, start: usize, out: &mut [f32]) -> Result<()> {
        let mut values = vec![f16::ZERO; out.len()];
        self.input.read_f16(start..start + out.len(), &mut values)?;
        let luts = &self.luts[index];
        let mut at = 0;
        while at < out.len() {
            let group = (start + at) / self.length;
            let end = out.len().min((group + 1) * self.length - start);
            let lut = luts.get(group).ok_or_else(|| Error::Quantize {
                tensor: self.input.view.name.to_string(),
                start: start + at,
                source: crate::quantize::Error::Empty,
            })?;
            let table: Vec<f64> = lut.entries()[..lut.used()]
                .iter()
                .map(|e| e.to_f64())
                .collect();
            for (o, v) in out[at..end].iter_mut().zip(&values[at..end]) {
                *o = nearest(&table, v.to_f64()) as f32;
            }
            at = end;
        }
        self.input.undo(start, out);
        Ok(())
    }
}

/// A group at each width, and its energy.
type Fitted = (Vec<GroupResult>, f64);

/// Adds values of whole rows, or of a part of a single group, to the histogram.
fn collect(
    input: &Input<'_>,
    tuning: &Tuning,
    range: Range<usize>,
    scratch: &mut Scratch,
) -> Result<()> {
    let mut values = vec![f16::ZERO; range.len()];
    input.read_f16(range.clone(), &mut values)?;
    let (row, rows) = (range.start / input.inputs, range.len() / input.inputs);
    let added = match tuning.importance(row, rows, input.inputs) {
        None => scratch.histogram.add(&values),
        Some(importance) => scratch.histogram.add_weighted(&values, &importance),
    };
    added.map_err(|e| failed(input, range.start, e))
}

fn fit(input: &Input<'_>, widths: &[u8], start: usize, scratch: &mut Scratch) -> Result<Fitted> {
    let results = scratch.fit_each(widths);
    let results = results.map_err(|e| failed(input, start, e))?;
    Ok((results, scratch.energy()))
}

/// The entry nearest to `x` of ascending ones, the lower at a tie, as [`Scratch::fit`] assigns.
fn nearest(table: &[f64], x: f64) -> f64 {
    let above = table.partition_point(|entry| *entry < x);
    match (
        above.checked_sub(1).map(|below| table[below]),
        table.get(above),
    ) {
        (Some(below), Some(above)) if x - below <= above - x => below,
        (_, Some(above)) => *above,
        (Some(below), None) => below,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::{self, Source, calibrate};
    use crate::convert::decide::{Grids, own_weights, resolve};
    use crate::progress::NoProgress;
    use crate::recipe::Recipe;
    use std::path::Path;

    /// Sums in f64 of f32 products in another order, relative.
    const SUMS: f64 = 1e-5;

    /// The values that a forward pass is given have the error that was measured: what is folded in for the palettes is taken off
    /// again. So has a tensor with one palette for all.
    #[test]
    fn values_have_the_error_that_was_measured() {
        let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/nano");
        let checkpoint = Checkpoint::open(&nano).unwrap();
        let plan = ModelPlan::new(checkpoint.config()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ids = Source::Text(vec![(2..66).collect()]);
        let file = dir.path().join("stats");
        let options = calibrate::Options::default();
        let stats = calibrate(&checkpoint, &ids, &options, &file, &NoProgress).unwrap();
        let text = Recipe::builtin("w3").unwrap().source;
        let text = text.replace("threshold", "importance = true\nscale = true\nthreshold");
        let rule =
            "[[quantize.rules]]\npattern = 'layers.1.mlp.gate'\nscheme = \"palette4-tensor\"\n";
        let recipe = Recipe::parse("x", &(text + rule)).unwrap();
        let chunks = resolve(&plan, &recipe, &Grids::default()).unwrap();
        let widths = [2, 4, 8];
        // Of these no importance of rows is known.
        let (mut folded, mut compared) = (0, 0);
        for chunk in own_weights(&chunks) {
            let rules = &recipe.quantize;
            let mut measurer = Measurer::new(&checkpoint, &plan, rules, &stats, chunk);
            for weight in &chunk.weights {
                let name = &weight.binding.tensor;
                if !(name.ends_with("mlp.gate_proj.weight") || name.ends_with("q_proj.weight")) {
                    continue;
                }
                let measured = measurer.measure(weight, &widths, &NoProgress).unwrap();
                let [rows, inputs] = matrix(&weight.binding);
                let shape = &weight.binding.source_shape;
                let mut exact = vec![f16::ZERO; rows * inputs];
                let view = checkpoint.tensor(name, shape).unwrap();
                view.read_f16(0..exact.len(), &mut exact).unwrap();
                let importance = stats.input(name).unwrap().second_moment();
                let sum = |f: &dyn Fn(usize) -> f64| -> f64 {
                    let weight = |i: usize| f64::from(importance[i % inputs]);
                    (0..exact.len()).map(|i| weight(i) * f(i) * f(i)).sum()
                };
                let energy = sum(&|i| exact[i].to_f64());
                assert!((measured.energy - energy).abs() <= SUMS * energy, "{name}");
                for (index, bits) in widths.iter().enumerate() {
                    let mut values = vec![0f32; exact.len()];
                    // In pieces that cut through groups and rows.
                    for (i, piece) in values.chunks_mut(1009).enumerate() {
                        measured.read(index, i * 1009, piece).unwrap();
                    }
                    let error = sum(&|i| f64::from(values[i]) - exact[i].to_f64());
                    let expected = measured.errors[index];
                    assert!(
                        expected > 0.0 && (error - expected).abs() <= SUMS * expected,
                        "{name} at {bits}: {error:e} against {expected:e}"
                    );
                    compared += 1;
                }
                folded += usize::from(measured.input.factors.columns.is_some());
            }
        }
        assert_eq!(compared, 2 * plan.layers.len() * widths.len());
        assert!(folded > 0);
    }

    #[test]
    fn the_nearest_entry_is_the_lower_at_a_tie() {
        let table = [-1.0, 0.0, 2.0];
        for (x, expected) in [
            (-9.0, -1.0),
            (-0.5, -1.0),
            (-0.4, 0.0),
            (1.0, 0.0),
            (1.1, 2.0),
            (2.0, 2.0),
            (9.0, 2.0),
        ] {
            assert_eq!(nearest(&table, x), expected, "{x}");
        }
    }
}
