//! The bundle: units built side by side, the journal of those that are done, from the lock on the output to the final rename.
//!
//! Uses all other rooms of `convert`; none of them uses it.

mod journal;
mod lanes;
mod pipeline;
mod report;
mod rows;
mod tables;
#[cfg(test)]
mod tests;
mod units;
mod work;

pub(crate) use pipeline::thread_pool;
pub use pipeline::{Conversion, convert};
pub use report::{Report, StageTime};
