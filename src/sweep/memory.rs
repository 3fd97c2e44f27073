//! Peak memory of one piece of work in a process that does several.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Time between two looks at the process.
const INTERVAL: Duration = Duration::from_millis(5);

/// Memory of the process while some work went on. What the process held before counts too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peak {
    /// Largest anonymous memory seen (`RssAnon`, looked at every few milliseconds): what the program itself allocated.
    pub anonymous: Option<u64>,
    /// Anonymous memory when the work began.
    pub anonymous_before: Option<u64>,
    /// Largest resident size (`VmHWM`), pages of mapped files included; absent where the system does not let a process reset
    /// it.
    pub resident: Option<u64>,
}

impl Peak {
    /// Anonymous memory that the work added to what the process held.
    pub fn added(&self) -> Option<u64> {
        Some(self.anonymous?.saturating_sub(self.anonymous_before?))
    }
}

/// Runs `work` and watches the memory of the process meanwhile (Linux only; elsewhere the figures are absent).
pub fn watch<T>(work: impl FnOnce() -> T) -> (T, Peak) {
    let before = status("RssAnon:");
    let reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let (done, largest) = (AtomicBool::new(false), AtomicU64::new(before.unwrap_or(0)));
    let result = std::thread::scope(|scope| {
        if before.is_some() {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    largest.fetch_max(status("RssAnon:").unwrap_or(0), Ordering::Relaxed);
                    std::thread::sleep(INTERVAL);
                }
            });
        }
        // The watcher ends also when the work panics, so that the scope can be left.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&done);
        work()
    });
    let peak = Peak {
        anonymous: before.map(|_| largest.load(Ordering::Relaxed)),
        anonymous_before: before,
        resident: reset.then(|| status("VmHWM:")).flatten(),
    };
    (result, peak)
}

/// Bytes of a line of `/proc/self/status`, `RssAnon:` say; `None` where the system has none.
pub fn status(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_is_seen() {
        const BYTES: usize = 64 << 20;
        let (sum, peak) = watch(|| {
            let block = vec![1u8; BYTES];
            std::thread::sleep(INTERVAL * 10);
            block.iter().map(|b| u64::from(*b)).sum::<u64>()
        });
        assert_eq!(sum, BYTES as u64);
        let (most, before) = (peak.anonymous.unwrap(), peak.anonymous_before.unwrap());
        assert!(most >= before + BYTES as u64 / 2, "{peak:?}");
    }
}
