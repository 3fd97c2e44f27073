//! What a forecast says.

use crate::package::{LARGE_WEIGHT_FILE, WEIGHTS_DIR};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a conversion will make and take.
///
/// Bytes of weight files, programs, tables and all files that are copied are exact, with two exceptions that make weight files
/// smaller: matrices of the checkpoint, or their look-up tables, that have the same bytes, and norms that folds of a
/// calibrated recipe leave as they are and that equal another. `provenance.json` holds errors that are not known yet.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    /// Name of the recipe.
    pub recipe: String,
    /// Positions of the full-attention cache.
    pub context: usize,
    /// The packages in the order they are built.
    pub packages: Vec<PackageForecast>,
    /// Weights of the packages that are written, by scheme and by what chose it.
    pub schemes: Vec<SchemeForecast>,
    /// Row tables.
    pub tables: Vec<TableForecast>,
    /// Every file of the bundle by relative path.
    pub files: BTreeMap<String, FileForecast>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Free bytes that the disk of the output must have before, beside what an earlier run left: all files that are written, in
    /// whole blocks. A bundle that is replaced stays until the new one is complete.
    pub disk: u64,
    /// Most anonymous memory of the process at any time, bytes. Mapped files are not part of it.
    pub memory: u64,
    /// How long it will take.
    pub time: Time,
    /// What may not work as hoped: weight files that are large for the Neural Engine, integers that are not kept.
    pub notes: Vec<String>,
}

/// A package.
#[derive(Debug, Clone, Serialize)]
pub struct PackageForecast {
    /// `chunk1`.
    pub name: String,
    /// First layer.
    pub first_layer: usize,
    /// One past the last layer.
    pub end_layer: usize,
    /// Names of its functions.
    pub functions: Vec<String>,
    /// Weights.
    pub weights: usize,
    /// Their values.
    pub values: u64,
    /// Weights by scheme.
    pub schemes: BTreeMap<String, SchemeTotal>,
    /// Bytes of its weight files.
    pub weight_bytes: u64,
    /// Bytes of all its files.
    pub bytes: u64,
    /// The package (`chunk1`) whose weight files this one has too; they take room once.
    pub weights_of: Option<String>,
    /// Whether its weights are those of the bundle that is there.
    pub kept: bool,
}

/// Weights of one scheme that were chosen in one way.
#[derive(Debug, Clone, Serialize)]
pub struct SchemeForecast {
    /// The scheme.
    pub scheme: String,
    /// What chose it: `default`, `rule ...`, `otherwise (...)`.
    pub reason: String,
    /// The tensor, where its scheme did not fit and another was taken.
    pub tensor: Option<String>,
    /// Weights.
    pub weights: usize,
    /// Their values.
    pub values: u64,
    /// Their bytes, before sharing.
    pub bytes: u64,
}

/// A row table.
#[derive(Debug, Clone, Serialize)]
pub struct TableForecast {
    /// HF tensor name without prefix.
    pub tensor: String,
    /// Rows.
    pub rows: usize,
    /// Values of a row.
    pub dim: usize,
    /// `rows-int8`, `fp16`, ...
    pub scheme: String,
    /// Bytes of data and scales.
    pub bytes: u64,
}

/// A file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FileForecast {
    /// Bytes.
    pub bytes: u64,
    /// Whether they are known to the byte.
    pub exact: bool,
    /// Whether it is written anew; otherwise it is another name of a file that is there.
    pub written: bool,
}

/// Tensors stored in one scheme.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SchemeTotal {
    /// Tensors.
    pub tensors: usize,
    /// Values.
    pub elements: u64,
    /// Bytes, before sharing.
    pub bytes: u64,
}

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

/// What there is to say of a file of so many bytes.
pub(in crate::convert) fn note(file: &str, bytes: u64) -> Option<String> {
    let weights = file.contains(WEIGHTS_DIR);
    (weights && bytes > LARGE_WEIGHT_FILE).then(|| {
        format!(
            "{file}: {bytes} bytes: over {LARGE_WEIGHT_FILE} some devices leave the Neural Engine; more chunks or fewer bits \
             make it smaller"
        )
    })
}
