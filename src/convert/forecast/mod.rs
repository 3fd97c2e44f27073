//! What a conversion will make and take: files, disk, memory, time. Reads headers and vectors, and of matrices a
//! few groups at most.
//!
//! Uses [`super::decide`], and the files beside it. No weight is quantized here, and nothing is written.

mod estimate;
mod predict;
mod types;

pub use predict::forecast;
pub(super) use types::note;
pub use types::{
    FileForecast, Forecast, PackageForecast, SchemeForecast, SchemeTotal, TableForecast, Time,
};
