//! Where the time of a run goes.

use std::collections::BTreeMap;
use std::time::Duration;

/// Time spent in ops, by type.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    ops: BTreeMap<String, OpTime>,
}

/// Time spent in the ops of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpTime {
    /// How many ran.
    pub count: u64,
    /// How long they took together.
    pub time: Duration,
}

impl Profile {
    /// Counts one op.
    pub(crate) fn add(&mut self, name: &str, time: Duration) {
        let of = self.ops.entry(name.to_owned()).or_default();
        of.count += 1;
        of.time += time;
    }

    /// Adds what another profile counted.
    pub(crate) fn merge(&mut self, other: &Profile) {
        for (name, more) in &other.ops {
            let of = self.ops.entry(name.clone()).or_default();
            of.count += more.count;
            of.time += more.time;
        }
    }

    /// Op types as MIL names them, `attention` and `cache update` where the planner fused several, with their times, the longest first.
    pub fn ops(&self) -> Vec<(&str, OpTime)> {
        let mut ops: Vec<_> = self.ops.iter().map(|(n, &t)| (n.as_str(), t)).collect();
        ops.sort_by_key(|(_, of)| std::cmp::Reverse(of.time));
        ops
    }

    /// Time of all ops.
    pub fn total(&self) -> Duration {
        self.ops.values().map(|of| of.time).sum()
    }
}
