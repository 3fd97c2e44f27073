//! From the statistics of a calibration to what is done with each tensor: folds, importance, compensation.

use super::input::{Factors, Input};
use super::tuning::Tuning;
use crate::calibrate::Stats;
use crate::checkpoint::Checkpoint;
use crate::convert::decide::{Resolved, matrix};
use crate::convert::error::{Error, Result};
use crate::convert::limits::TILE;
use crate::gemma::{Fold, LayerPlan, ModelPlan};
use crate::quantize::fold::{CANDIDATES, factors};
use crate::quantize::{Grouping, Moments, PaletteForm, Scheme, Scratch};
use crate::recipe::QuantRules;
use half::f16;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Groups of a tensor that a choice of factors is judged by, at most.
const JUDGED_GROUPS: usize = 16;

/// What a recipe asks of the statistics, for the tensors of a package in their order.
pub(in crate::convert) struct Levers<'a> {
    pub checkpoint: &'a Checkpoint,
    pub plan: &'a ModelPlan,
    pub rules: &'a QuantRules,
    pub stats: &'a Stats,
    /// Every weight of the package.
    weights: BTreeMap<&'a str, &'a Resolved>,
    /// The layer at work.
    layer: Option<LayerFacts>,
    /// Moments of the input last asked for, under the name of its site.
    moments: Option<(String, Arc<Moments>)>,
}

/// What is known of a layer, by tensor.
#[derive(Default)]
struct LayerFacts {
    index: usize,
    /// How much the error of each row weighs, without folds.
    rows: BTreeMap<String, Vec<f32>>,
    factors: BTreeMap<String, Factors>,
}

impl LayerFacts {
    fn factors(&self, tensor: &str) -> Factors {
        self.factors.get(tensor).cloned().unwrap_or_default()
    }

    /// Importance of the rows of a tensor as these factors leave them; `None` where nothing is known.
    fn rows(&self, tensor: &str, factors: &Factors) -> Option<Arc<[f32]>> {
        let mut importance = self.rows.get(tensor)?.clone();
        if let Some(divided) = &factors.rows {
            for (importance, factor) in importance.iter_mut().zip(divided.iter()) {
                *importance /= factor * factor;
            }
        }
        // Rows that do not matter at all would leave palettes undecided.
        let most = importance.iter().copied().fold(0f32, f32::max);
        let least = most * f32::EPSILON;
        importance.iter_mut().for_each(|v| *v = v.max(least));
        (most > 0.0).then(|| importance.into())
    }
}

impl<'a> Levers<'a> {
    pub fn new(
        checkpoint: &'a Checkpoint,
        plan: &'a ModelPlan,
        rules: &'a QuantRules,
        stats: &'a Stats,
        weights: &'a [Resolved],
    ) -> Self {
        let weights = weights.iter().map(|w| (w.binding.tensor.as_str(), w));
        Self {
            checkpoint,
            plan,
            rules,
            stats,
            weights: weights.collect(),
            layer: None,
            moments: None,
        }
    }

    /// The factors of a tensor and the tuning of its palettes.
    pub(super) fn of(&mut self, weight: &Resolved) -> Result<(Factors, Tuning)> {
        let tensor = &weight.binding.tensor;
        let plan = self.plan;
        let layer = plan.layers.iter().find(|l| tensor.starts_with(&l.prefix()));
        let facts = match layer {
            Some(layer) => self.facts(layer)?,
            None => &LayerFacts::default(),
        };
        let factors = facts.factors(tensor);
        let rows = facts.rows(tensor, &factors);
        let Scheme::Palette { form, .. } = weight.scheme else {
            return Ok((factors, Tuning::default()));
        };
        let does_not = |key: &'static str| Error::NotForScheme {
            tensor: tensor.clone(),
            scheme: weight.scheme,
            key,
        };
        let mut tuning = Tuning::default();
        if self.rules.importance {
            if form == PaletteForm::Lut8 {
                return Err(does_not("importance"));
            }
            tuning.inputs = Some(self.input_importance(tensor, &factors)?.into());
            tuning.rows = rows.filter(|_| form == PaletteForm::Scalar);
        }
        if self.rules.compensate.is_some() && form != PaletteForm::Scalar {
            return Err(does_not("compensate"));
        }
        if let Some(compensate) = self.rules.compensate {
            tuning.moments = Some(self.moments(tensor, &factors, compensate.damping)?);
            tuning.rounds = compensate.rounds;
        }
        Ok((factors, tuning))
    }

    /// Second moments of a tensor's inputs as the folds leave them.
    fn input_importance(&self, tensor: &str, factors: &Factors) -> Result<Vec<f32>> {
        let mut importance = self.stats.input(tensor)?.second_moment();
        if let Some(columns) = &factors.columns {
            for (importance, factor) in importance.iter_mut().zip(columns.iter()) {
                *importance /= factor * factor;
            }
        }
        Ok(importance)
    }

    /// What is known of a layer; computed when the first of its tensors is asked for.
    fn facts(&mut self, layer: &LayerPlan) -> Result<&LayerFacts> {
        if self
            .layer
            .as_ref()
            .is_none_or(|facts| facts.index != layer.index)
        {
            let mut facts = LayerFacts {
                index: layer.index,
                ..LayerFacts::default()
            };
            for (tensor, weight) in self.weights.range(layer.prefix().as_str()..) {
                if !tensor.starts_with(&layer.prefix()) {
                    break;
                }
                if let Some(rows) = self.row_importance(layer, weight)? {
                    facts.rows.insert(tensor.to_string(), rows);
                }
            }
            if self.rules.scale {
                for fold in self.plan.folds(layer) {
                    self.choose(&fold, &mut facts)?;
                }
            }
            self.layer = Some(facts);
        }
        Ok(self.layer.get_or_insert_default())
    }

    /// How much the error of each row of a projection weighs, from what its output goes through next: the weight of a norm,
    /// or for `up_proj` the gate and `down_proj`. `None` where nothing is known.
    fn row_importance(&self, layer: &LayerPlan, weight: &Resolved) -> Result<Option<Vec<f32>>> {
        let tensor = &weight.binding.tensor;
        if !matches!(weight.scheme, Scheme::Palette { .. }) {
            return Ok(None);
        }
        let rows = matrix(&weight.binding)[0];
        if let Some(norm) = self.plan.norm_behind(layer, tensor) {
            let mut gains = vec![0f32; rows];
            let view = self.checkpoint.tensor(&norm, &[rows])?;
            view.read_f32(0..rows, &mut gains)?;
            return Ok(Some(gains.iter().map(|g| g * g).collect()));
        }
        match tensor.ends_with("mlp.up_proj.weight") {
            true => Ok(Some(self.up_importance(layer, weight)?)),
            false => Ok(None),
        }
    }

    /// An error of one in channel `i` of `up_proj`'s output is multiplied by the gate and by column `i` of `down_proj`:
    /// mean square of `down_proj`'s input over that of `up_proj`'s output (its inputs taken as uncorrelated), times the
    /// column's sum of squares.
    fn up_importance(&self, layer: &LayerPlan, up: &Resolved) -> Result<Vec<f32>> {
        let [rows, inputs] = matrix(&up.binding);
        let down = format!("{}mlp.down_proj.weight", layer.prefix());
        let products = self.stats.input(&down)?.second_moment();
        let moments = self.stats.input(&up.binding.tensor)?.second_moment();
        let up = self.input(&up.binding.tensor, &[rows, inputs], Factors::default())?;
        let outputs = row_sums(&up, rows, |x, j| x * x * f64::from(moments[j]))?;
        let hidden = self.plan.hidden;
        let down = self.input(&down, &[hidden, rows], Factors::default())?;
        let columns = column_squares(&down, hidden)?;
        let one = |i: usize| {
            let gate = match outputs[i] > 0.0 {
                true => f64::from(products[i]) / outputs[i],
                false => 0.0,
            };
            (gate * columns[i]) as f32
        };
        Ok((0..rows).map(one).collect())
    }

    fn moments(&mut self, tensor: &str, factors: &Factors, damping: f64) -> Result<Arc<Moments>> {
        let site = self.stats.tensors().find(|(t, _)| *t == tensor);
        let site = site.map_or(tensor, |(_, site)| site).to_string();
        if let Some((known, moments)) = &self.moments
            && *known == site
        {
            return Ok(moments.clone());
        }
        // Not both at a time: they are the largest things here.
        self.moments = None;
        let input = self.stats.input(tensor)?;
        let Some(matrix) = input.moments() else {
            return Err(Error::NoMoments {
                path: self.stats.path().to_path_buf(),
                tensor: tensor.to_string(),
            });
        };
        let factor = |i: usize| factors.columns.as_ref().map_or(1.0, |f| f[i]);
        let element = |i: usize, j: usize| matrix.row(i)[j] / (factor(i) * factor(j));
        let moments = Moments::new(matrix.width(), element, damping);
        let moments = Arc::new(moments.map_err(|source| Error::Quantize {
            tensor: format!("{tensor} (moments of its inputs)"),
            start: 0,
            source,
        })?);
        self.moments = Some((site, moments.clone()));
        Ok(moments)
    }

    /// Chooses the factors of a fold: of the candidates, those with the least error over all tensors that they touch and that
    /// have palettes.
    fn choose(&self, fold: &Fold, facts: &mut LayerFacts) -> Result<()> {
        let find = |tensor: &String| self.weights.get(tensor.as_str()).copied();
        let consumers: Vec<&Resolved> = fold.consumers.iter().filter_map(find).collect();
        let palette = |w: &&Resolved| matches!(w.scheme, Scheme::Palette { .. });
        let (Some(first), Some(source)) =
            (consumers.iter().copied().find(palette), find(&fold.source))
        else {
            return Ok(());
        };
        let moments = self.stats.input(&first.binding.tensor)?.second_moment();
        let moments: Vec<f64> = moments.into_iter().map(f64::from).collect();
        let mut columns = vec![0f64; moments.len()];
        for consumer in &consumers {
            let [rows, _] = matrix(&consumer.binding);
            let before = facts.factors(&consumer.binding.tensor);
            let input = self.input_of(consumer, before)?;
            for (sum, more) in columns.iter_mut().zip(column_squares(&input, rows)?) {
                *sum += more;
            }
        }
        let mut tried: Vec<(Vec<f32>, f64)> = Vec::new();
        for exponents in CANDIDATES {
            let chosen = factors(&moments, &columns, exponents);
            if tried.iter().any(|(other, _)| *other == chosen) {
                continue;
            }
            let error = self.judge(source, &consumers, &chosen, facts)?;
            tried.push((chosen, error));
        }
        let best = tried.into_iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let Some((chosen, _)) = best.filter(|(f, _)| f.iter().any(|f| *f != 1.0)) else {
            return Ok(());
        };
        let divided: Arc<[f32]> = chosen.iter().map(|f| 1.0 / f).collect();
        let chosen: Arc<[f32]> = chosen.into();
        let source_factors = facts.factors.entry(fold.source.clone()).or_default();
        match source.binding.source_shape.len() {
            1 => source_factors.columns = Some(divided),
            _ => source_factors.rows = Some(divided),
        }
        for consumer in consumers {
            let factors = facts
                .factors
                .entry(consumer.binding.tensor.clone())
                .or_default();
            factors.columns = Some(chosen.clone());
        }
        Ok(())
    }

    /// The error of the tensors that a fold touches, with these factors: of the outputs of its consumers, and of its source
    /// where that is a projection.
    fn judge(
        &self,
        source: &Resolved,
        consumers: &[&Resolved],
        chosen: &[f32],
        facts: &LayerFacts,
    ) -> Result<f64> {
        let shared: Arc<[f32]> = chosen.into();
        let mut error = 0.0;
        for consumer in consumers {
            let mut factors = facts.factors(&consumer.binding.tensor);
            factors.columns = Some(shared.clone());
            error += self.palette_error(consumer, factors, facts)?;
        }
        if source.binding.source_shape.len() > 1 {
            let mut factors = facts.factors(&source.binding.tensor);
            factors.rows = Some(chosen.iter().map(|f| 1.0 / f).collect());
            error += self.palette_error(source, factors, facts)?;
        }
        Ok(error)
    }

    /// The weighted error of some groups of a tensor, scaled up to all; zero where it has no palettes.
    fn palette_error(
        &self,
        weight: &Resolved,
        factors: Factors,
        facts: &LayerFacts,
    ) -> Result<f64> {
        let Scheme::Palette {
            nbits,
            group,
            form: PaletteForm::Scalar,
        } = weight.scheme
        else {
            return Ok(0.0);
        };
        let [rows, inputs] = matrix(&weight.binding);
        let tensor = &weight.binding.tensor;
        let tuning = Tuning {
            inputs: Some(self.input_importance(tensor, &factors)?.into()),
            rows: facts.rows(tensor, &factors),
            ..Tuning::default()
        };
        let per_group = match group {
            Grouping::Channels(n) => n,
            Grouping::Tensor => rows.min(TILE.div_ceil(inputs)),
        };
        let groups = rows / per_group.max(1);
        let judged = groups.min(JUDGED_GROUPS);
        let input = self.input_of(weight, factors)?;
        let errors: Vec<Result<f64>> = (0..judged)
            .into_par_iter()
            .map(|i| {
                let first = i * groups / judged * per_group;
                let mut values = vec![f16::ZERO; per_group * inputs];
                let start = first * inputs;
                input.read_f16(start..start + values.len(), &mut values)?;
                let mut indices = vec![0; values.len()];
                let mut scratch = Scratch::new();
                let place = (first, inputs);
                let result = tuning.palettize(&values, place, nbits, &mut scratch, &mut indices);
                let result = result.map_err(|source| Error::Quantize {
                    tensor: tensor.clone(),
                    start,
                    source,
                })?;
                Ok(result.weighted_sse)
            })
            .collect();
        let sum = errors.into_iter().sum::<Result<f64>>()?;
        Ok(sum * groups as f64 / judged.max(1) as f64)
    }

    fn input_of(&self, weight: &Resolved, factors: Factors) -> Result<Input<'a>> {
        let binding = &weight.binding;
        self.input(&binding.tensor, &binding.source_shape, factors)
    }

    fn input(&self, tensor: &str, shape: &[usize], factors: Factors) -> Result<Input<'a>> {
        let view = self.checkpoint.tensor(tensor, shape)?;
        let inputs = shape.last().copied().unwrap_or(1);
        Ok(Input::new(view, inputs, factors))
    }
}

/// Sums of `term(weight, column)` over each row.
fn row_sums(
    input: &Input<'_>,
    rows: usize,
    term: impl Fn(f64, usize) -> f64 + Sync,
) -> Result<Vec<f64>> {
    let n = input.inputs;
    let one = |row: usize| {
        let mut values = vec![0f32; n];
        input.read_f32(row * n..(row + 1) * n, &mut values)?;
        let terms = values.iter().enumerate();
        Ok(terms.map(|(j, v)| term(f64::from(*v), j)).sum())
    };
    (0..rows).into_par_iter().map(one).collect()
}

/// Sums of squares of each column.
fn column_squares(input: &Input<'_>, rows: usize) -> Result<Vec<f64>> {
    let n = input.inputs;
    let mut values = vec![0f32; n];
    let mut sums = vec![0f64; n];
    for row in 0..rows {
        input.read_f32(row * n..(row + 1) * n, &mut values)?;
        for (sum, v) in sums.iter_mut().zip(&values) {
            *sum += f64::from(*v) * f64::from(*v);
        }
    }
    Ok(sums)
}
