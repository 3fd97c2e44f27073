//! What a conversion takes: disk, memory, time. Disk is counted; memory and time are models with measured constants.

use super::facts::Job;
use super::forecast::FileForecast;
use super::lanes::LANES;
use super::resolve::{Resolved, matrix};
use super::tile::TILE;
use super::units::{Origin, Unit};
use crate::package::{MODEL_PATH, Part};
use crate::quantize::{Grouping, PaletteForm, Scheme, TableScheme};
use serde::Serialize;
use std::collections::BTreeMap;

/// Files take whole blocks of this many bytes on common file systems.
const BLOCK: u64 = 4096;
/// Directories, the lock and the journal of the staging directory beside the files of the bundle.
const STAGING: u64 = 1 << 20;

/// Anonymous bytes of the process before anything large is read (measured 5 MB), and of freed buffers that the allocator keeps
/// (measured up to 12 MB).
const PROCESS: u64 = 20 << 20;
/// Anonymous bytes for each byte of `tokenizer.json` while it is read to check that it opens: measured 23 with 262,144
/// entries.
const TOKENIZER_PEAK: u64 = 24;
/// The same after it is dropped, as the allocator keeps what lies between other allocations: measured 10.
const TOKENIZER_KEPT: u64 = 11;
/// Bytes of buffers for each value of a tile: f32, fp16, index, packed.
const TILE_VALUE: u64 = 4 + 2 + 1 + 2;
/// Bytes of a thread: palettizer buffers (two histograms of all fp16 patterns, tables of the solver), its stack and arena.
const THREAD: u64 = 2 << 20;
/// More of it where importance is summed for every pattern.
const THREAD_IMPORTANCE: u64 = 1 << 20;
/// Bytes for each weight of the group that a thread works on, where groups are fitted as a whole (vectors, importance).
const GROUP_VALUE: u64 = 16;
/// The same where errors are compensated.
const COMPENSATED_VALUE: u64 = 32;
/// Bytes for each element of a matrix of second moments: as stored, its factor, and f64 copies while it is inverted.
const MOMENT: u64 = 20;
/// Anonymous bytes for each byte of a `model.mlmodel` while it is built: program, message, text.
const MODEL_BUILT: u64 = 16;
/// The same while all packages are open for the check at the end.
const MODEL_OPEN: u64 = 12;

/// Time that a conversion is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Time {
    /// Seconds.
    pub seconds: f64,
    /// Threads that they are counted for.
    pub threads: usize,
    /// Values of weights and tables that are quantized.
    pub values: u64,
}

/// Bytes a second and thread of the checkpoint that are hashed.
const HASHED: f64 = 1.2e9;
/// Bytes a second and thread that are written, and hashed for `provenance.json`.
const WRITTEN: f64 = 0.5e9;
/// Bytes a second that the disk takes.
const STORED: f64 = 0.45e9;

/// Threads of a conversion: one per core when `None`.
pub(super) fn threads(asked: Option<usize>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    asked.filter(|n| *n > 0).unwrap_or_else(cores)
}

/// Free bytes that files of these sizes need, in whole blocks, and the staging directory beside them.
pub(super) fn disk(sizes: impl Iterator<Item = u64>) -> u64 {
    let blocks = |bytes: u64| bytes.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
    sizes.fold(STAGING, |sum, bytes| sum.saturating_add(blocks(bytes)))
}

/// Most anonymous bytes at any time.
pub(super) fn memory(
    job: &Job<'_>,
    units: &[(String, Unit<'_>)],
    files: &BTreeMap<String, FileForecast>,
    threads: usize,
) -> u64 {
    let tokenizer = job.checkpoint.dir().join("tokenizer.json");
    let tokenizer = std::fs::metadata(tokenizer).map_or(0, |m| m.len());
    let model = |dir: &str| {
        files
            .get(&format!("{dir}/{MODEL_PATH}"))
            .map_or(0, |f| f.bytes)
    };
    let one = |(name, unit): &(String, Unit<'_>)| {
        let anew = job.origin(name, unit) == Origin::Anew;
        match unit {
            Unit::Package(p) => {
                let weights = match anew && p.weights_of.is_none() {
                    true => package(job, &p.chunk.spec.name, &p.chunk.weights, threads),
                    false => 0,
                };
                weights + MODEL_BUILT * model(name)
            }
            Unit::Table(spec) if anew => TILE as u64 * TILE_VALUE + 4 * spec.rows as u64,
            Unit::PerLayer if anew => TILE as u64 * TILE_VALUE,
            _ => 0,
        }
    };
    // The largest of them side by side.
    let mut each: Vec<u64> = units.iter().map(one).collect();
    each.sort_unstable_by(|a, b| b.cmp(a));
    let most: u64 = each.iter().take(LANES).sum();
    let models = units.iter().map(|(name, _)| model(name));
    let check = MODEL_OPEN * models.sum::<u64>();
    let threads = threads as u64 * THREAD;
    let begin = PROCESS + TOKENIZER_PEAK * tokenizer;
    let rest = PROCESS + TOKENIZER_KEPT * tokenizer + threads + most.max(check);
    begin.max(rest)
}

/// What the weights of a package take while they are written.
fn package(job: &Job<'_>, name: &str, weights: &[Resolved], threads: usize) -> u64 {
    let rules = &job.task.recipe_of(name).quantize;
    let calibrated = rules.calibrated_by().is_some();
    let of_weight = |weight: &Resolved| {
        let [outputs, inputs] = matrix(&weight.binding);
        let values = (weight.elements).min(TILE as u64);
        // Tables and scales wait until all data is written, and a mask of one bit a weight too.
        let parts = weight.storage.parts(&weight.binding.konst);
        let tables = parts
            .iter()
            .flatten()
            .filter(|part| part.part != Part::Data);
        let mut bytes = values * TILE_VALUE + 2 * tables.map(|part| part.bytes).sum::<u64>();
        let Scheme::Palette { group, form, .. } = weight.scheme else {
            return bytes;
        };
        let length = match group {
            Grouping::Tensor => outputs * inputs,
            Grouping::Channels(n) => n * inputs,
        };
        let group = length.min(TILE) as u64;
        // The groups of a tile are worked on at a time.
        let at_work = (threads as u64).min(values.div_ceil(group.max(1)));
        if matches!(form, PaletteForm::Vector(_)) || calibrated {
            bytes += at_work * group * GROUP_VALUE;
        }
        if calibrated {
            bytes += at_work * THREAD_IMPORTANCE;
        }
        if rules.compensate.is_some() {
            let columns = inputs as u64;
            bytes += at_work * group * COMPENSATED_VALUE + MOMENT * columns * columns;
        }
        bytes
    };
    weights.iter().map(of_weight).max().unwrap_or(0)
}

/// An estimate of the time, from values by scheme and bytes.
pub(super) fn time(
    job: &Job<'_>,
    units: &[(String, Unit<'_>)],
    written: u64,
    threads: usize,
) -> Time {
    let (mut values, mut seconds) = (0u64, 0.0);
    let mut add = |count: u64, rate: f64| {
        values += count;
        seconds += count as f64 / rate;
    };
    for (name, unit) in units {
        if job.origin(name, unit) != Origin::Anew {
            continue;
        }
        match unit {
            Unit::Package(p) if p.weights_of.is_none() => {
                let rules = &job.task.recipe_of(&p.chunk.spec.name).quantize;
                for weight in &p.chunk.weights {
                    let slower = match rules.calibrated_by() {
                        Some(_) if weight.binding.kind.is_quantizable() => CALIBRATED,
                        _ => 1.0,
                    };
                    add(weight.elements, rate(weight.scheme) / slower);
                }
            }
            Unit::Table(spec) => {
                let rate = match spec.scheme {
                    TableScheme::RowsFp16 => FP16,
                    _ => ROWS,
                };
                add(spec.rows as u64 * spec.dim as u64, rate);
            }
            Unit::PerLayer => add(job.elements(name, unit), FP16),
            _ => {}
        }
    }
    let (input, written) = (job.checkpoint.text_bytes() as f64, written as f64);
    let seconds = (seconds + input / HASHED + written / WRITTEN) / threads.max(1) as f64;
    // Two units are built at a time, so that the disk works meanwhile.
    let seconds = seconds.max(written / STORED);
    Time {
        seconds,
        threads,
        values,
    }
}

/// Values a second and thread, measured with a made-up E2B (2 cores of an AMD EPYC 9004 at 2.x GHz, input in the page cache).
const FP16: f64 = 300e6;
/// The same for rows of int8 and int4.
const ROWS: f64 = 400e6;
/// How many times longer a palette takes with importance, folds and compensation: measured on nano.
const CALIBRATED: f64 = 20.0;

/// Values a second and thread of a scheme.
fn rate(scheme: Scheme) -> f64 {
    match scheme {
        Scheme::Fp16 => FP16,
        Scheme::Int8Channel | Scheme::Int4Block(_) => 120e6,
        Scheme::Palette { nbits, form, .. } => match form {
            PaletteForm::Vector(_) => 0.16e6,
            _ if nbits > 6 => 5e6,
            _ if nbits > 4 => 20e6,
            PaletteForm::Lut8 => 30e6,
            PaletteForm::Sparse(_) => 40e6,
            PaletteForm::Scalar => 110e6,
        },
    }
}
