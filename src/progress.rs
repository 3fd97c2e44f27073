//! How long work tells its caller how far it is. The library never prints: the command line draws bars from this.

/// Receiver of progress, in bytes or steps of work. Implementations must accept calls from several threads.
pub trait Progress: Sync {
    /// A phase begins; `total_bytes` is 0 when the amount is not known.
    fn begin(&self, label: &str, total_bytes: u64);
    /// A phase of `total` steps begins; [`Progress::advance`] counts them.
    fn begin_steps(&self, label: &str, _total: usize) {
        self.begin(label, 0);
    }
    /// `bytes` more of the current phase are done.
    fn advance(&self, bytes: u64);
    /// What is being worked on within the phase (a tensor or file name).
    fn item(&self, _name: &str) {}
    /// The phase is over.
    fn end(&self);
}

/// Ignores everything.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&self, _label: &str, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
}
