//! One function of one package: from its ops to a plan, and the plan run.
//!
//! May use `weights`, `values` and `kernels`. Knows no bundle and no token.

pub(crate) mod args;
mod fuse;
pub(crate) mod model;
pub(crate) mod note;
pub(crate) mod ops;
pub(crate) mod places;
pub(crate) mod plan;
mod planner;
pub(crate) mod profile;
pub(crate) mod steps;
pub(crate) mod stored;
pub(crate) mod value;
