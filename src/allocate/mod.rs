//! Widths per tensor under a byte budget.
//!
//! For each tensor with a palette of single weights:
//!
//! 1. `E(b)`, the sum of squared errors times importance with `b` bits, for every width: exact k-means over the tensor's groups,
//!    with the recipe's folds. One histogram of a group serves all widths.
//! 2. Its sensitivity: the mean KL divergence of the next-token distributions from the f32 model with this tensor alone
//!    quantized, at one width, the probe; one forward pass per tensor. Divergence is quadratic in a small error, so with other
//!    widths it is taken as `KL(probe) * E(b) / E(probe)`, and that of all tensors together as the sum. Without forward passes
//!    the cost is the relative error of the output, `E(b)` over the sum of squares times importance, times the tensor's share
//!    of the weights.
//! 3. [`crate::quantize::budget`] chooses one width for each.
//!
//! The choice is a recipe: the one that was given, with a rule for each tensor that differs from the most common width.

mod choose;
mod error;
mod measure;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use choose::{Allocation, Chosen, Size, choose};
pub use error::{Error, Result};
pub use measure::{Measurements, TensorMeasure, measure, measure_or_read};

use crate::calibrate::Stats;
use crate::recipe::Recipe;

/// Widths to choose from when nothing is said.
pub const WIDTHS: [u8; 5] = [2, 3, 4, 6, 8];
/// Width at which sensitivities are measured when nothing is said.
pub const PROBE: u8 = 3;
/// Tokens that they are measured over when nothing is said.
pub const TOKENS: usize = 1024;

/// How much there is to spend.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Bytes of all weight files of the packages, each counted once where packages share it.
    Bytes(u64),
    /// Bits for each value of the packages' weights, as a sweep reports it: tables of palettes counted, padding and the tables
    /// of embeddings left out.
    BitsPerWeight(f64),
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Budget::BitsPerWeight(bits) => write!(f, "{bits} bits per weight"),
        }
    }
}

/// What costs are measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// KL divergence in nats, mean over the tokens.
    Kl,
    /// Squared error of a tensor's output over the square of the output itself, times the tensor's share of all weights with a
    /// choice.
    RelativeError,
}

/// What decides the measurements, beside the checkpoint.
#[derive(Debug, Clone)]
pub struct Settings<'a> {
    /// The recipe whose widths are to be chosen.
    pub recipe: &'a Recipe,
    /// Statistics of the inputs of the checkpoint's projections.
    pub calibration: &'a Stats,
    /// Token ids that sensitivities are measured over: the first of them begins each window. `None` to measure relative errors
    /// only, without a forward pass.
    pub ids: Option<&'a [u32]>,
    /// Widths to choose from.
    pub widths: &'a [u8],
    /// Width at which sensitivities are measured.
    pub probe: u8,
    /// Worker threads; 0 means one per core. Nothing depends on it.
    pub threads: usize,
}

/// Writes a recipe's text beside its place and renames it. Folders are made.
///
/// # Errors
/// [`Error::Exists`] unless `replace`; the system's.
pub fn write(recipe: &Recipe, path: &Path, replace: bool) -> Result<()> {
    check_free(path, replace)?;
    save(path, recipe.source.as_bytes())
}

/// Writes a file beside its place and renames it. Folders are made.
fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    // The parent of a bare file name is empty, which is no folder.
    let path = std::path::absolute(path).map_err(io(path))?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io(parent))?;
    }
    Ok(crate::sweep::write_atomically(&path, bytes)?)
}

/// Refuses a file that is there, unless it may be replaced. A folder never is.
///
/// # Errors
/// [`Error::Exists`].
pub fn check_free(path: &Path, replace: bool) -> Result<()> {
    match path.exists() && !(replace && path.is_file()) {
        true => Err(Error::Exists {
            path: path.to_path_buf(),
        }),
        false => Ok(()),
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| {
        let path = path.to_path_buf();
        crate::sweep::Error::Io { path, source }.into()
    }
}
