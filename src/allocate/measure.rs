//! Errors at every width, and sensitivities.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use super::{Settings, Unit, io, save};
use crate::bundle::files;
use crate::checkpoint::Checkpoint;
use crate::convert::{
    self, Grids, Measured, Measurer, Resolved, ResolvedChunk, own_weights, resolve, scalar_group,
};
use crate::evaluate::metrics::log_sum_exp;
use crate::evaluate::text::windows;
use crate::gemma::ModelPlan;
use crate::gemma::names::EMBED;
use crate::gemma::reference::{Reference, RowResult, Table, WeightSource, checkpoint_row};
use crate::progress::Progress;
use crate::quantize::Scheme;
use crate::quantize::scheme::PALETTE_BITS;
use crate::recipe::QuantRules;
use crate::runtime::BoxError;
use crate::sweep::{self, Model, TOP, TopRow};

/// Most positions of a window of the text.
const WINDOW: usize = 1024;
/// Version of the file of measurements.
const FORMAT: &str = concat!("allocate ", env!("CARGO_PKG_VERSION"));

/// What is known of the tensors whose width is to be chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurements {
    /// A hash of all that decides them.
    pub key: String,
    /// What the sensitivities are measured in.
    pub unit: Unit,
    /// Tokens that they were measured over; 0 for relative errors.
    pub tokens: usize,
    /// Widths to choose from, ascending.
    pub widths: Vec<u8>,
    /// In the order of the packages.
    pub tensors: Vec<TensorMeasure>,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorMeasure {
    /// Checkpoint name without prefix.
    pub tensor: String,
    /// Sum of squared errors times importance, by width.
    pub errors: BTreeMap<u8, f64>,
    /// Sum of squares times importance.
    pub energy: f64,
    /// The width at which its sensitivity was measured; none where every width is exact.
    pub probe: Option<u8>,
    /// What its quantization at that width costs, in [`Measurements::unit`].
    pub sensitivity: f64,
}

impl TensorMeasure {
    /// What a width costs; `None` for one that was not measured.
    pub fn cost(&self, bits: u8) -> Option<f64> {
        let error = *self.errors.get(&bits)?;
        let Some(probe) = self.probe else {
            return Some(0.0);
        };
        Some(self.sensitivity * (error / self.errors.get(&probe)?))
    }
}

/// Measures a checkpoint's tensors; [`Measurements`] kept in `file` are read instead where they are of the same settings, and
/// written there else.
///
/// # Errors
/// As [`measure`]; a file that holds something else.
pub fn measure_or_read(
    checkpoint: &Checkpoint,
    settings: &Settings<'_>,
    file: &Path,
    progress: &dyn Progress,
) -> Result<Measurements> {
    let wrong = |message: String| Error::Measurements {
        path: file.to_path_buf(),
        message,
    };
    let parse = |text: &str| {
        let read: std::result::Result<Measurements, _> = serde_json::from_str(text);
        read.map_err(|e| wrong(format!("not measurements: {e}")))
    };
    if file.exists() {
        let text = std::fs::read_to_string(file).map_err(io(file))?;
        let read = parse(&text)?;
        let key = key(checkpoint, settings, progress)?;
        return match read.key == key {
            true => Ok(read),
            false => Err(wrong(
                "measurements of another checkpoint, recipe, calibration, text or width".to_owned(),
            )),
        };
    }
    let measured = measure(checkpoint, settings, progress)?;
    let text = serde_json::to_string_pretty(&measured).map_err(|source| sweep::Error::Json {
        what: file.display().to_string(),
        source,
    })?;
    save(file, text.as_bytes())?;
    // Read back, so that the last bits are those that another run reads.
    parse(&text)
}

/// Measures a checkpoint's tensors: errors at every width, and where `settings` have ids one forward pass for each tensor.
///
/// Memory: the tables of every tensor at the probe's width, [`TOP`] logits for each token, and what [`Reference`] keeps.
///
/// # Errors
/// A recipe that does not fit or has no width to choose; statistics of another checkpoint; widths that palettes do not have;
/// fewer than two ids; whatever keeps the model from running.
pub fn measure(
    checkpoint: &Checkpoint,
    settings: &Settings<'_>,
    progress: &dyn Progress,
) -> Result<Measurements> {
    let plan = ModelPlan::new(checkpoint.config()).map_err(convert::Error::from)?;
    plan.check(checkpoint).map_err(convert::Error::from)?;
    let widths = widths(settings)?;
    if settings.recipe.quantize.given.is_some() {
        return Err(Error::WidthsGiven {
            recipe: settings.recipe.name.clone(),
        });
    }
    let chunks = resolve(&plan, settings.recipe, &Grids::default())?;
    let chosen = decided(&chunks);
    if chosen.is_empty() {
        return Err(Error::NothingToChoose {
            recipe: settings.recipe.name.clone(),
        });
    }
    let windows = match settings.ids {
        None => None,
        Some(ids) => {
            let length = WINDOW.min(plan.max_positions);
            Some(windows(ids, length).map_err(sweep::Error::from)?)
        }
    };
    let key = key(checkpoint, settings, progress)?;
    let pool = convert::thread_pool((settings.threads > 0).then_some(settings.threads))?;
    // The importance that the errors are weighted by counts in the palettes as well, whether or not the recipe asks for it.
    let rules = QuantRules {
        importance: true,
        compensate: None,
        ..settings.recipe.quantize.clone()
    };
    let tensors = pool.install(|| {
        let tables = errors(checkpoint, &plan, (settings, &rules), &chunks, progress)?;
        match &windows {
            None => Ok(relative(tables)),
            Some(windows) => {
                let run = Run {
                    checkpoint,
                    plan: &plan,
                    windows,
                    looks_up: settings.recipe.layout.takes_ids(),
                };
                run.sensitivities(tables, progress)
            }
        }
    });
    let fed = |w: &Vec<Vec<u32>>| w.iter().map(Vec::len).sum();
    Ok(Measurements {
        key,
        unit: match settings.ids {
            Some(_) => Unit::Kl,
            None => Unit::RelativeError,
        },
        tokens: windows.as_ref().map_or(0, fed),
        widths,
        tensors: tensors?,
    })
}

/// The widths to choose from, ascending, each once.
fn widths(settings: &Settings<'_>) -> Result<Vec<u8>> {
    let mut widths = settings.widths.to_vec();
    widths.sort_unstable();
    widths.dedup();
    let mut all = widths.iter().copied().chain([settings.probe]);
    match all.find(|b| !PALETTE_BITS.contains(b)) {
        Some(bits) => Err(Error::Width { bits }),
        None if widths.is_empty() => Err(Error::NoWidths),
        None => Ok(widths),
    }
}

/// Everything that decides [`Measurements`]. Checks that the statistics are of this checkpoint.
fn key(
    checkpoint: &Checkpoint,
    settings: &Settings<'_>,
    progress: &dyn Progress,
) -> Result<String> {
    let fingerprint = checkpoint
        .fingerprint(progress)
        .map_err(convert::Error::from)?;
    let stats = settings.calibration;
    if stats.checkpoint() != fingerprint {
        return Err(convert::Error::OtherCalibration {
            path: stats.path().to_path_buf(),
            expected: fingerprint,
            got: stats.checkpoint().to_string(),
        }
        .into());
    }
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(FORMAT.as_bytes());
    add(fingerprint.as_bytes());
    add(stats.sha256().as_bytes());
    add(settings.recipe.source.as_bytes());
    add(&widths(settings)?);
    add(&[settings.probe, u8::from(settings.ids.is_some())]);
    let ids = settings.ids.unwrap_or_default();
    add(&ids
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect::<Vec<u8>>());
    Ok(files::hex(&hash.finalize()))
}

/// The weights whose width can be chosen, each tensor once, in the order of the packages: those with a palette of single weights,
/// the same one wherever the tensor is.
pub(super) fn decided(chunks: &[ResolvedChunk]) -> Vec<&Resolved> {
    let all = || own_weights(chunks).flat_map(|c| &c.weights);
    let mut schemes: BTreeMap<&str, BTreeSet<Scheme>> = BTreeMap::new();
    for weight in all() {
        let of_tensor = schemes.entry(&weight.binding.tensor).or_default();
        of_tensor.insert(weight.scheme);
    }
    let mut seen = BTreeSet::new();
    all()
        .filter(|w| scalar_group(w.scheme).is_some())
        .filter(|w| schemes[w.binding.tensor.as_str()].len() == 1)
        .filter(|w| seen.insert(w.binding.tensor.as_str()))
        .collect()
}

/// A tensor on its way: its errors, and its palettes of the width that it is run with.
struct Tables<'a> {
    tensor: String,
    elements: u64,
    errors: BTreeMap<u8, f64>,
    measured: Measured<'a>,
    /// Width and its place in `measured`.
    probe: Option<(u8, usize)>,
}

impl<'a> Tables<'a> {
    /// The probe is the largest width up to `probe` that changes the tensor at all.
    fn new(weight: &Resolved, widths: &[u8], mut measured: Measured<'a>, probe: u8) -> Self {
        let errors: BTreeMap<u8, f64> = widths
            .iter()
            .copied()
            .zip(measured.errors.clone())
            .collect();
        let changes = |b: &&u8| **b <= probe && errors[b] > 0.0;
        let bits = widths.iter().rfind(changes).copied();
        let index = bits.and_then(|bits| widths.iter().position(|b| *b == bits));
        measured.keep_tables(index);
        Self {
            tensor: weight.binding.tensor.clone(),
            elements: weight.elements,
            errors,
            measured,
            probe: bits.zip(index),
        }
    }

    fn finish(self, sensitivity: f64) -> TensorMeasure {
        TensorMeasure {
            tensor: self.tensor,
            errors: self.errors,
            energy: self.measured.energy,
            probe: self.probe.map(|(bits, _)| bits),
            sensitivity,
        }
    }
}

/// The palettes of every tensor at every width.
fn errors<'a>(
    checkpoint: &'a Checkpoint,
    plan: &'a ModelPlan,
    (settings, rules): (&Settings<'a>, &'a QuantRules),
    chunks: &'a [ResolvedChunk],
    progress: &dyn Progress,
) -> Result<Vec<Tables<'a>>> {
    let decided = decided(chunks);
    let elements = decided.iter().map(|w| w.elements).sum();
    progress.begin("palettes of every width", elements);
    let mut left: BTreeSet<&str> = decided.iter().map(|w| w.binding.tensor.as_str()).collect();
    let mut tables = Vec::new();
    for chunk in own_weights(chunks) {
        let stats = settings.calibration;
        let mut measurer = Measurer::new(checkpoint, plan, rules, stats, chunk);
        for weight in &chunk.weights {
            // Where a tensor is first.
            if !left.remove(weight.binding.tensor.as_str()) {
                continue;
            }
            let widths = measured_widths(settings, weight.scheme);
            let measured = measurer.measure(weight, &widths, progress)?;
            tables.push(Tables::new(weight, &widths, measured, settings.probe));
        }
    }
    progress.end();
    Ok(tables)
}

/// Widths to choose from, the probe and the recipe's own, ascending.
fn measured_widths(settings: &Settings<'_>, own: Scheme) -> Vec<u8> {
    let mut widths: BTreeSet<u8> = settings.widths.iter().copied().collect();
    widths.insert(settings.probe);
    if let Scheme::Palette { nbits, .. } = own {
        widths.insert(nbits);
    }
    widths.into_iter().collect()
}

/// Relative errors as sensitivities, each times the tensor's share of all weights.
fn relative(tables: Vec<Tables<'_>>) -> Vec<TensorMeasure> {
    let all: u64 = tables.iter().map(|t| t.elements).sum();
    let one = |t: Tables<'_>| {
        let error = t.probe.map_or(0.0, |(bits, _)| t.errors[&bits]);
        let (energy, share) = (t.measured.energy, t.elements as f64 / all as f64);
        t.finish(if energy > 0.0 {
            error / energy * share
        } else {
            0.0
        })
    };
    tables.into_iter().map(one).collect()
}

/// The model over a text, with one tensor quantized at a time.
struct Run<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a ModelPlan,
    windows: &'a [Vec<u32>],
    /// Whether the packages look tokens up in the head's weight, so that its error is that of the embedding as well.
    looks_up: bool,
}

impl Run<'_> {
    fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }

    /// Mean KL from the f32 model with each tensor alone quantized.
    fn sensitivities(
        &self,
        tables: Vec<Tables<'_>>,
        progress: &dyn Progress,
    ) -> Result<Vec<TensorMeasure>> {
        let passes = tables.iter().filter(|t| t.probe.is_some()).count();
        progress.begin_steps("sensitivities", self.tokens() * (1 + passes));
        let mut base: Vec<TopRow> = Vec::with_capacity(self.tokens());
        let reference = Reference::load(self.checkpoint).map_err(sweep::Error::from)?;
        self.over(reference, progress, &mut |row| {
            base.push(TopRow::of(row, TOP.min(row.len()), None));
        })?;
        let mut measures = Vec::with_capacity(tables.len());
        for table in tables {
            let Some((bits, index)) = table.probe else {
                measures.push(table.finish(0.0));
                continue;
            };
            progress.item(&table.tensor);
            let kl = self.divergence(&table, index, &base, progress)?;
            if !kl.is_finite() {
                return Err(Error::NotFinite {
                    tensor: table.tensor,
                    bits,
                    kl,
                });
            }
            measures.push(table.finish(kl));
        }
        progress.end();
        Ok(measures)
    }

    /// Mean KL from the logits in `base` with one tensor as its palettes of width `index` make it.
    fn divergence(
        &self,
        table: &Tables<'_>,
        index: usize,
        base: &[TopRow],
        progress: &dyn Progress,
    ) -> Result<f64> {
        let source = OneQuantized {
            checkpoint: self.checkpoint,
            tensor: &table.tensor,
            measured: &table.measured,
            index,
        };
        let reference = Reference::load_from(self.checkpoint, &source);
        let mut reference = reference.map_err(sweep::Error::from)?;
        if self.looks_up && table.tensor == EMBED {
            let hidden = self.plan.hidden;
            let scale = self.plan.embed_scale as f32;
            let rows = move |kind, token: u32, out: &mut [f32]| -> RowResult {
                if kind != Table::Embedding {
                    return Ok(checkpoint_row(
                        self.checkpoint,
                        self.plan,
                        kind,
                        token,
                        out,
                    )?);
                }
                table.measured.read(index, token as usize * hidden, out)?;
                out.iter_mut().for_each(|v| *v *= scale);
                Ok(())
            };
            reference = reference.with_rows(Box::new(rows));
        }
        let (mut sum, mut rows) = (0.0, base.iter());
        self.over(reference, progress, &mut |row| {
            if let Some(expected) = rows.next() {
                let log_sum = log_sum_exp(row);
                sum += expected.kl_divergence(row, log_sum);
            }
        })?;
        Ok(sum / base.len() as f64)
    }

    /// Hands out the logits after every token of every window.
    fn over(
        &self,
        reference: Reference<'_>,
        progress: &dyn Progress,
        each: &mut dyn FnMut(&mut [f32]),
    ) -> Result<()> {
        let mut model = Model::Batched(Box::new(reference));
        for window in self.windows {
            model.over(window, &mut |_, mut row| {
                each(&mut row);
                progress.advance(1);
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// The checkpoint with one tensor as its palettes make it.
struct OneQuantized<'a> {
    checkpoint: &'a Checkpoint,
    tensor: &'a str,
    measured: &'a Measured<'a>,
    index: usize,
}

impl WeightSource for OneQuantized<'_> {
    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> std::result::Result<(), BoxError> {
        if name == self.tensor {
            return Ok(self.measured.read(self.index, start, out)?);
        }
        let shape = self.checkpoint.shape(name).unwrap_or_default();
        let view = self.checkpoint.tensor(name, shape)?;
        Ok(view.read_f32(start..start.saturating_add(out.len()), out)?)
    }
}
