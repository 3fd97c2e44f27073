//! The bundle, from the start of a run to the final rename.

pub(super) mod journal;
pub(super) mod lanes;
pub(super) mod pipeline;
pub(super) mod report;
pub(super) mod tables;
#[cfg(test)]
mod tests;
pub(super) mod units;
