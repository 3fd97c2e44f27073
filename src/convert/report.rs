//! What a conversion did.

use super::journal::Done;
use crate::bundle::provenance::{FileRecord, TensorRecord};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

/// What a conversion wrote and how long it took.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The bundle.
    pub output: PathBuf,
    /// Positions of the full-attention cache.
    pub context: usize,
    /// Every file by relative path, `provenance.json` included.
    pub files: BTreeMap<String, FileRecord>,
    /// Their bytes.
    pub bytes: u64,
    /// Every weight and table with its scheme and error.
    pub tensors: Vec<TensorRecord>,
    /// Totals per scheme.
    pub schemes: BTreeMap<String, SchemeTotal>,
    /// Seconds per stage, in the order in which they ended. Two units are built at a time, so that they overlap.
    pub stages: Vec<StageTime>,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Units that an interrupted run had finished.
    pub resumed: Vec<String>,
    /// Units taken over from the bundle that was there: tables as they were, packages with their weights at least.
    pub kept: Vec<String>,
    /// Largest resident size of the process so far, memory-mapped pages included, where the system says.
    pub peak_rss: Option<u64>,
}

/// Tensors stored in one scheme.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SchemeTotal {
    /// Tensors.
    pub tensors: usize,
    /// Values.
    pub elements: u64,
    /// Bytes, before sharing.
    pub bytes: u64,
}

/// How long a stage took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageTime {
    /// `hash`, a unit's name, the name with `to disk` behind it (synced, and hashed for `provenance.json`), `check`.
    pub stage: String,
    /// Seconds.
    pub seconds: f64,
}

/// Measures stages, several at a time.
#[derive(Debug, Default)]
pub(super) struct Stages(Mutex<Vec<StageTime>>);

impl Stages {
    /// Runs `work` and notes how long it took.
    pub fn time<T>(&self, stage: &str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        if let Ok(mut stages) = self.0.lock() {
            stages.push(StageTime {
                stage: stage.to_string(),
                seconds: start.elapsed().as_secs_f64(),
            });
        }
        result
    }

    /// What was noted, in the order in which the stages ended.
    pub fn into_inner(self) -> Vec<StageTime> {
        self.0.into_inner().unwrap_or_default()
    }
}

/// Totals per scheme over all units.
pub(super) fn totals(done: &[&Done]) -> BTreeMap<String, SchemeTotal> {
    let mut totals: BTreeMap<String, SchemeTotal> = BTreeMap::new();
    for t in done.iter().flat_map(|d| &d.tensors) {
        let total = totals.entry(t.scheme.clone()).or_default();
        total.tensors += 1;
        total.elements += t.elements;
        total.bytes += t.bytes;
    }
    totals
}

/// Peak resident size in bytes (`VmHWM`, Linux only).
pub(super) fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}
