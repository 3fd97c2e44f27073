//! The pipeline: recipe × checkpoint → bundle.
//!
//! [`resolve()`] decides a scheme for every weight without reading one. [`convert()`] then builds the bundle beside its
//! output, one unit (a package, a table, ...) after another: a tensor goes from the memory map through the quantizer to the
//! file in tiles of whole groups, so that memory does not grow with the model. Finished units are recorded in a journal
//! keyed by checkpoint, recipe, context and tool version; running again after a crash keeps them. At the end the bundle is
//! opened and checked, and renamed into place. A unit may also be taken from the bundle that is replaced: as it is, or, for a
//! package, its weights under another program.
//!
//! `decide` says what will be made and `forecast` what that takes, `weights` makes one weight, `assemble` the whole. Each uses
//! those before it; `forecast` and `weights` do not know each other.
//!
//! The same input gives the same bytes, whatever the number of threads and however often it was interrupted.

mod assemble;
mod decide;
mod error;
mod forecast;
mod limits;
mod options;
mod room;
mod weights;

pub(crate) use assemble::thread_pool;
pub use assemble::{Conversion, Report, StageTime, convert};
pub use decide::{
    Grids, Resolved, ResolvedChunk, bundle_recipe, own_weights, resolve, weight_bytes,
};
pub use error::{Error, Fault, Result};
pub use forecast::{
    FileForecast, Forecast, PackageForecast, SchemeForecast, SchemeTotal, TableForecast, Time,
    forecast,
};
pub use options::Options;
pub use room::Room;
pub(crate) use weights::{Measured, Measurer, scalar_group};
