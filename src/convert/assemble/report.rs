//! What a conversion did.

use super::journal::Done;
use crate::bundle::provenance::{FileRecord, TensorRecord};
use crate::convert::forecast::{SchemeTotal, note};
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
    /// What may not work as hoped: weight files that are large for the Neural Engine, integers that were not kept.
    pub notes: Vec<String>,
    /// Largest resident size of the process so far, memory-mapped pages included, where the system says.
    pub peak_rss: Option<u64>,
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

/// A note for each weight file of more than [`crate::package::LARGE_WEIGHT_FILE`] bytes.
pub(super) fn notes(files: &BTreeMap<String, FileRecord>) -> Vec<String> {
    let sizes = files.iter().map(|(name, file)| (name.as_str(), file.bytes));
    sizes
        .filter_map(|(name, bytes)| note(name, bytes))
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::{LARGE_WEIGHT_FILE, WEIGHTS_DIR};

    #[test]
    fn large_weight_files_are_noted() {
        let file = |name: &str, bytes: u64| {
            let sha256 = String::new();
            (name.to_string(), FileRecord { bytes, sha256 })
        };
        let second = format!("chunk1.mlpackage/{WEIGHTS_DIR}/weight_1.bin");
        let files = [
            file(
                &format!("chunk1.mlpackage/{WEIGHTS_DIR}/weight.bin"),
                LARGE_WEIGHT_FILE,
            ),
            file(&second, LARGE_WEIGHT_FILE + 1),
            file("embed_tokens_per_layer_q8.bin", 2_300_000_000),
        ];
        let notes = notes(&files.into());
        let [note] = notes.as_slice() else {
            panic!("{notes:?}");
        };
        assert!(note.starts_with(&second), "{note}");
        assert!(note.contains("950000001 bytes"), "{note}");
    }
}
