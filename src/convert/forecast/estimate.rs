//! What a conversion takes: disk, memory, time. Disk is counted; memory and time are models with measured constants.

use super::types::{FileForecast, Time};
use crate::convert::decide::{Job, Origin, Resolved, Unit, matrix};
use crate::convert::limits::{LANES, TILE};
use crate::package::{MODEL_PATH, Part};
use crate::quantize::{Grouping, PaletteForm, Scheme, TableScheme};
use crate::recipe::QuantRules;
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
/// Anonymous bytes for each op of a program, while the program is built and while its package is open.
const PROGRAM_OP: u64 = 4096;
/// The same for each byte of its `model.mlmodel`, which may hold large constants.
const PROGRAM_BYTE: u64 = 3;

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

/// Most anonymous bytes at any time; `ops` is the number of ops of each package that is written.
pub(super) fn memory(
    job: &Job<'_>,
    units: &[(String, Unit<'_>)],
    files: &BTreeMap<String, FileForecast>,
    ops: &BTreeMap<String, usize>,
    threads: usize,
) -> u64 {
    let tokenizer = job.checkpoint.dir().join("tokenizer.json");
    let tokenizer = std::fs::metadata(tokenizer).map_or(0, |m| m.len());
    let program = |dir: &str| {
        let bytes = files.get(&format!("{dir}/{MODEL_PATH}"));
        let ops = ops.get(dir).map_or(0, |ops| *ops as u64);
        PROGRAM_OP * ops + PROGRAM_BYTE * bytes.map_or(0, |f| f.bytes)
    };
    let one = |(name, unit): &(String, Unit<'_>)| {
        let anew = job.origin(name, unit) == Origin::Anew;
        match unit {
            Unit::Package(p) => {
                let weights = match anew && p.weights_of.is_none() {
                    true => package(job, &p.chunk.spec.name, &p.chunk.weights, threads),
                    false => 0,
                };
                weights + program(name)
            }
            Unit::Table(_) | Unit::PerLayer if anew => TILE as u64 * TILE_VALUE,
            _ => 0,
        }
    };
    // The largest of them side by side.
    let mut each: Vec<u64> = units.iter().map(one).collect();
    each.sort_unstable_by(|a, b| b.cmp(a));
    let most: u64 = each.iter().take(LANES).sum();
    // At the end all packages are opened.
    let check = units.iter().map(|(name, _)| program(name)).sum::<u64>();
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
    let mut add = |count: u64, each: f64| {
        values += count;
        seconds += count as f64 * each;
    };
    for (name, unit) in units {
        if job.origin(name, unit) != Origin::Anew {
            continue;
        }
        match unit {
            Unit::Package(p) if p.weights_of.is_none() => {
                let rules = &job.task.recipe_of(&p.chunk.spec.name).quantize;
                for weight in &p.chunk.weights {
                    add(weight.elements, seconds_of(weight, rules));
                }
            }
            Unit::Table(spec) => {
                let rate = match spec.scheme {
                    TableScheme::RowsFp16 => FP16,
                    TableScheme::RowsInt8 | TableScheme::RowsInt4 => ROWS,
                    TableScheme::RowsSteps { .. } => STEPS,
                };
                add(spec.rows as u64 * spec.dim as u64, 1.0 / rate);
            }
            Unit::PerLayer => add(job.elements(name, unit), 1.0 / FP16),
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

// Values a second and thread. Those of palettes, rows and fp16 were measured with a checkpoint of E2B's shapes on two cores of an
// AMD EPYC (Zen 4), those of more than 4 bits in proportion, the others on the shipped model of 3.2 million weights.

/// fp16 and nothing else.
const FP16: f64 = 300e6;
/// Rows of int8 and int4.
const ROWS: f64 = 400e6;
/// Rows with steps: a grid is looked for first. Measured on one core of an AMD EPYC without AVX-512, blocks of 32 on a grid.
const STEPS: f64 = 100e6;
/// Integers with scales.
const LINEAR: f64 = 100e6;
/// Vector palettes.
const VECTORS: f64 = 0.16e6;
/// Sparse palettes, and those with int8 tables.
const PRUNED: f64 = 30e6;
/// Palettes of up to 4, 6 and 8 bits.
const PALETTES: [(u8, f64); 3] = [(4, 110e6), (6, 90e6), (8, 70e6)];
/// How many times longer a palette takes with importance.
const IMPORTANCE: f64 = 1.5;
/// How many times longer it takes when folds are chosen first.
const FOLDS: f64 = 12.0;
/// Multiplications a second and thread of error compensation, one for each input of each weight.
const COMPENSATION: f64 = 1.6e9;

/// Seconds of one thread for one value of a weight.
fn seconds_of(weight: &Resolved, rules: &QuantRules) -> f64 {
    let Scheme::Palette { nbits, form, .. } = weight.scheme else {
        return match weight.scheme {
            Scheme::Fp16 => 1.0 / FP16,
            _ => 1.0 / LINEAR,
        };
    };
    let widths = PALETTES.iter().find(|(bits, _)| nbits <= *bits);
    let mut seconds = match form {
        PaletteForm::Vector(_) => 1.0 / VECTORS,
        PaletteForm::Sparse(_) | PaletteForm::Lut8 => 1.0 / PRUNED,
        PaletteForm::Scalar => 1.0 / widths.map_or(PRUNED, |(_, rate)| *rate),
    };
    if rules.importance {
        seconds *= IMPORTANCE;
    }
    if rules.scale {
        seconds *= FOLDS;
    }
    if rules.compensate.is_some() {
        seconds += matrix(&weight.binding)[1] as f64 / COMPENSATION;
    }
    seconds
}
