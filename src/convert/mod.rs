//! The pipeline: recipe × checkpoint → bundle.
//!
//! [`resolve()`] decides a scheme for every weight without reading one. [`convert()`] then builds the bundle beside its
//! output, one unit (a package, a table, ...) after another: a tensor goes from the memory map through the quantizer to the
//! file in tiles of whole groups, so that memory does not grow with the model. Finished units are recorded in a journal
//! keyed by checkpoint, recipe, context and tool version; running again after a crash keeps them. At the end the bundle is
//! opened and checked, and renamed into place.
//!
//! The same input gives the same bytes, whatever the number of threads and however often it was interrupted.

mod error;
mod facts;
mod journal;
mod pipeline;
mod report;
mod resolve;
mod source;
mod tables;
mod tile;

pub use error::{Error, Fault, Result};
pub use pipeline::convert;
pub use report::{Report, SchemeTotal, StageTime};
pub use resolve::{Resolved, ResolvedChunk, resolve};

/// What a caller may choose beside the recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Worker threads; all cores when `None`.
    pub threads: Option<usize>,
    /// Replace an existing bundle at the output.
    pub force: bool,
    /// Positions of the full-attention cache; the recipe's when `None`.
    pub context: Option<usize>,
    /// Name of the model for `model_config.json` (a hub id, say); `gemma4` when `None`. It is part of the bundle's bytes.
    pub model_id: Option<String>,
}
