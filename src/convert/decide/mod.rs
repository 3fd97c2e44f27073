//! What will be made: a scheme for every weight, the units of the bundle, what is kept of one that is there, and what the bundle
//! says of itself. Reads headers, and of weights a few groups.
//!
//! Uses [`super::options`] and [`super::error`], and no other room of `convert`.

mod activations;
mod base;
mod facts;
mod grid;
mod job;
mod program;
mod resolve;
mod steps;
mod task;

pub(super) use base::TOOL;
pub use base::bundle_recipe;
pub(super) use facts::tensor_record;
pub(super) use grid::{LOOKED_FOR, grid_record, table_grid_record};
pub(super) use job::{Job, Origin, PackageUnit, TableSpec, Unit};
pub(super) use resolve::{ByConst, matrix, package_error};
pub use resolve::{Grids, Resolved, ResolvedChunk, own_weights, resolve, weight_bytes};
pub(super) use task::{Task, checked_plan};
