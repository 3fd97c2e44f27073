//! The pipeline: recipe × checkpoint → bundle.
//!
//! [`resolve()`] decides a scheme for every weight without reading one. [`convert()`] then builds the bundle beside its
//! output, one unit (a package, a table, ...) after another: a tensor goes from the memory map through the quantizer to the
//! file in tiles of whole groups, so that memory does not grow with the model. Finished units are recorded in a journal
//! keyed by checkpoint, recipe, context and tool version; running again after a crash keeps them. At the end the bundle is
//! opened and checked, and renamed into place. A unit may also be taken from the bundle that is replaced: as it is, or, for a
//! package, its weights under another program.
//!
//! The same input gives the same bytes, whatever the number of threads and however often it was interrupted.

mod build;
mod decide;
mod error;
mod weights;

pub(crate) use build::pipeline::thread_pool;
pub use build::pipeline::{Conversion, convert};
pub use build::report::{Report, SchemeTotal, StageTime};
pub use decide::estimate::Time;
pub use decide::forecast::{
    FileForecast, Forecast, PackageForecast, SchemeForecast, TableForecast, forecast,
};
pub use decide::resolve::{Resolved, ResolvedChunk, own_weights, resolve, weight_bytes};
pub use decide::room::Room;
pub use decide::task::bundle_recipe;
pub use error::{Error, Fault, Result};
pub(crate) use weights::measure::{Measured, Measurer, scalar_group};

/// Name and version of this converter: what decides the bytes beside checkpoint and recipe.
const TOOL: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// What a caller may choose beside the recipe.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Worker threads; all cores when `None`.
    pub threads: Option<usize>,
    /// Replace an existing bundle at the output by a whole conversion.
    pub force: bool,
    /// Positions of the full-attention cache; the recipe's when `None`. With an existing bundle of the same checkpoint,
    /// recipe and version at the output, and without `force`, that bundle is rewritten for this context: its weights and
    /// tables are kept. The result is the same, byte for byte, as that of a whole conversion.
    pub context: Option<usize>,
    /// Rebuild this package (`chunk4`) of the bundle at the output, with the recipe given, which may quantize in another way.
    /// All else is kept, tables and tokenizer included. `force` and `model_id` say nothing then.
    pub only: Option<String>,
    /// Statistics of the inputs of the model's projections, for recipes that ask for them. They decide the bundle's bytes.
    pub calibration: Option<std::sync::Arc<crate::calibrate::Stats>>,
    /// Palettes shared with other conversions of the same checkpoint that differ in width; they change no bytes.
    pub palettes: Option<std::sync::Arc<crate::quantize::SharedPalettes>>,
    /// Name of the model for `model_config.json` (a hub id, say); `gemma4` when `None`. It is part of the bundle's bytes.
    pub model_id: Option<String>,
    /// Every weight file has fewer bytes than this; [`crate::package::WEIGHT_FILE_LIMIT`] when `None`. It is part of the
    /// bundle's bytes. Packages whose weights are kept keep their files.
    pub weight_file_limit: Option<u64>,
    /// Room on disk and in memory; measured when `None`.
    pub room: Option<Room>,
}

impl Options {
    fn file_limit(&self) -> u64 {
        self.weight_file_limit
            .unwrap_or(crate::package::WEIGHT_FILE_LIMIT)
    }

    /// Whether a bundle at the output may be replaced.
    fn replaces(&self) -> bool {
        self.force || self.context.is_some() || self.only.is_some()
    }
}
