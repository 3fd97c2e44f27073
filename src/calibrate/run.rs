//! The measuring itself.

use std::collections::BTreeMap;
use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::collect::Collector;
use super::error::{Error, Result};
use super::sites::{Site, stages};
use super::stats::Stats;
use super::write::{self, Writer};
use super::{FORMAT, hex};
use crate::checkpoint::Checkpoint;
use crate::gemma;
use crate::gemma::ModelPlan;
use crate::gemma::reference::{Layerwise, Reference, RowSource, Table};
use crate::progress::Progress;

/// Standard deviation of the values of [`Source::Noise`].
pub const NOISE_SCALE: f32 = 0.1;
/// Samples of noise when none are asked for.
pub const DEFAULT_NOISE: usize = 5;
/// The noise of a table's row comes from this, the table and the position.
const SEED: u64 = 0x006e_6f69_7365;

/// What the model is run over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Sequences of token ids, each from position 0.
    Text(Vec<Vec<u32>>),
    /// No text: so many positions of normal noise, scaled by [`NOISE_SCALE`], in place of scaled embedding and per-layer rows.
    /// A model never sees such inputs, so the ranges are not those of its use. It is here to measure what that costs.
    Noise(usize),
}

impl Source {
    fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Noise(_) => "noise",
        }
    }

    /// The sequences; noise is one sequence of ids that stand for their positions.
    fn sequences(&self, plan: &ModelPlan) -> Result<Vec<Vec<u32>>> {
        let most = plan.vocab.min(plan.max_positions);
        match self {
            Self::Text(sequences) => {
                match sequences
                    .iter()
                    .map(Vec::len)
                    .find(|&n| n == 0 || n > plan.max_positions)
                {
                    Some(got) => Err(Error::Length {
                        least: 1,
                        most: plan.max_positions,
                        got,
                    }),
                    None if sequences.is_empty() => Err(Error::NoText),
                    None => Ok(sequences.clone()),
                }
            }
            Self::Noise(n) if (1..=most).contains(n) => Ok(vec![(0..*n as u32).collect()]),
            Self::Noise(got) => Err(Error::Noise { most, got: *got }),
        }
    }
}

/// How to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Store the matrices of second moments too. One layer's are in memory at a time.
    pub full: bool,
    /// Replace an output that is there already.
    pub replace: bool,
}

/// Runs the checkpoint over `source` and writes the statistics to `output`, which is complete or not there.
///
/// Layer by layer: a layer's weights are read once, and no more than one layer is in memory (see [`Layerwise`] for what is
/// held for each token, and [`Options::full`]).
///
/// # Errors
/// A checkpoint that cannot be run, no tokens, an input that is not finite, an output that cannot be written.
pub fn calibrate(
    checkpoint: &Checkpoint,
    source: &Source,
    options: &Options,
    output: &Path,
    progress: &dyn Progress,
) -> Result<Stats> {
    write::check_free(output, options.replace)?;
    let mut reference = Reference::with_budget(checkpoint, 0)?;
    if matches!(source, Source::Noise(_)) {
        reference = reference.with_rows(noise());
    }
    let plan = reference.plan();
    let sequences = source.sequences(plan)?;
    let fingerprint = checkpoint.fingerprint(progress)?;
    let stages = stages(plan);
    let metadata = metadata(&stages, &sequences, source, options, fingerprint);
    let sites: Vec<&Site> = stages.iter().flatten().collect();
    let header = write::header(&sites, options.full, &metadata);
    let mut writer = Writer::create(output, options.replace, &header)?;
    progress.begin("calibrate", layer_bytes(checkpoint, plan)?);
    let done = measure(
        checkpoint,
        &reference,
        &sequences,
        stages,
        options,
        &mut writer,
        progress,
    );
    progress.end();
    done?;
    writer.finish()?;
    Stats::open(output)
}

/// The pass, stage by stage.
fn measure(
    checkpoint: &Checkpoint,
    reference: &Reference,
    sequences: &[Vec<u32>],
    stages: Vec<Vec<Site>>,
    options: &Options,
    writer: &mut Writer,
    progress: &dyn Progress,
) -> Result<()> {
    let tokens: u64 = sequences.iter().map(|ids| ids.len() as u64).sum();
    let mut collector = Collector::new(options.full);
    let mut stages = stages.into_iter();
    let mut begin = |collector: &mut Collector| collector.begin(stages.next().unwrap_or_default());
    let mut end = |collector: &mut Collector| -> Result<()> {
        collector
            .end(tokens)?
            .iter()
            .try_for_each(|sums| writer.site(sums))
    };
    begin(&mut collector);
    let pass = Layerwise::new(reference, sequences, &mut collector);
    let mut pass = pass.map_err(|e| ours(&mut collector, e))?;
    end(&mut collector)?;
    for layer in &reference.plan().layers {
        progress.item(&format!("layer {}", layer.index));
        begin(&mut collector);
        pass.advance(&mut collector)
            .map_err(|e| ours(&mut collector, e))?;
        end(&mut collector)?;
        progress.advance(bytes_of(checkpoint, reference.plan(), layer.index)?);
    }
    begin(&mut collector);
    pass.finish(&mut collector)
        .map_err(|e| ours(&mut collector, e))?;
    end(&mut collector)
}

/// The collector's error, where that is what stopped the pass.
fn ours(collector: &mut Collector, error: gemma::Error) -> Error {
    collector.failed.take().unwrap_or(Error::Gemma(error))
}

fn metadata(
    stages: &[Vec<Site>],
    sequences: &[Vec<u32>],
    source: &Source,
    options: &Options,
    fingerprint: String,
) -> BTreeMap<&'static str, String> {
    let mut hash = Sha256::new();
    for ids in sequences {
        hash.update((ids.len() as u64).to_le_bytes());
        ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    let of_tensor = stages
        .iter()
        .flatten()
        .flat_map(|s| s.tensors.iter().map(|t| (t.as_str(), s.name.as_str())));
    let of_tensor: BTreeMap<&str, &str> = of_tensor.collect();
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    BTreeMap::from([
        ("format", FORMAT.to_string()),
        (
            "tool",
            format!("gemma-coreml {}", env!("CARGO_PKG_VERSION")),
        ),
        ("checkpoint", fingerprint),
        ("tokens", tokens.to_string()),
        ("sequences", sequences.len().to_string()),
        ("ids_sha256", hex(&hash.finalize())),
        ("source", source.name().to_string()),
        ("full", options.full.to_string()),
        ("sites", serde_json::json!(of_tensor).to_string()),
    ])
}

/// Bytes of a layer's weights as they are stored.
fn bytes_of(checkpoint: &Checkpoint, plan: &ModelPlan, layer: usize) -> Result<u64> {
    let tensors = plan.layer_tensors(&plan.layers[layer]);
    let mut sum = 0;
    for (name, shape) in &tensors {
        sum += checkpoint.tensor(name, shape)?.stored_bytes() as u64;
    }
    Ok(sum)
}

fn layer_bytes(checkpoint: &Checkpoint, plan: &ModelPlan) -> Result<u64> {
    (0..plan.layers.len())
        .map(|layer| bytes_of(checkpoint, plan, layer))
        .sum()
}

/// Rows of normal noise by table and token, by Box and Muller's method.
fn noise() -> RowSource<'static> {
    Box::new(|table, token, out| {
        let table = match table {
            Table::Embedding => 0,
            Table::PerLayer => 1,
        };
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        random.set_stream(u64::from(token) * 2 + table);
        for value in out {
            // In (0, 1], so that the logarithm is finite.
            let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
            let turn = std::f64::consts::TAU * random.random::<f64>();
            *value = NOISE_SCALE * (radius * turn.cos()) as f32;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_normal_and_repeats() {
        /// Four standard errors of the mean of 4096 values, and of their mean square, relative to their spread.
        const MEAN: f64 = 4.0 / 64.0;
        let rows = noise();
        let draw = |table, token| {
            let mut row = vec![0f32; 4096];
            rows(table, token, &mut row).unwrap();
            row
        };
        let row = draw(Table::Embedding, 0);
        assert_eq!(row, draw(Table::Embedding, 0));
        assert_ne!(row, draw(Table::Embedding, 1));
        assert_ne!(row, draw(Table::PerLayer, 0));
        let scaled = row.iter().map(|v| f64::from(v / NOISE_SCALE));
        let mean = scaled.clone().sum::<f64>() / 4096.0;
        let square = scaled.map(|v| v * v).sum::<f64>() / 4096.0;
        assert!(mean.abs() < MEAN, "{mean}");
        assert!((square - 1.0).abs() < MEAN * 2f64.sqrt(), "{square}");
    }
}
