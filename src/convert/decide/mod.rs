//! What will be made and what it takes, before a matrix is read.

pub(super) mod activations;
pub(super) mod estimate;
pub(super) mod facts;
pub(super) mod forecast;
pub(super) mod resolve;
pub(super) mod room;
pub(super) mod task;
