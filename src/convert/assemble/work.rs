//! What all of a bundle is built with.

use super::report::Stages;
use crate::bundle::staging::Staging;
use crate::convert::decide::Job;
use crate::progress::Progress;

/// A bundle being built.
pub(super) struct Build<'a> {
    pub job: Job<'a>,
    pub staging: Staging,
    /// Where tensors are computed.
    pub pool: &'a rayon::ThreadPool,
    pub progress: &'a dyn Progress,
    pub stages: Stages,
}
