//! What one rendering may take: steps, bytes, levels.

use std::cell::Cell;

use super::super::error::{Result, TemplateError};

/// Steps: seconds of work, and far beyond what a chat of any length needs.
const MAX_STEPS: u64 = 50_000_000;
/// Bytes of all texts and lists that are made on the way.
const MAX_BYTES: u64 = 256 << 20;
/// Statements and expressions within each other, macros that call macros included.
const MAX_LEVELS: u32 = 2500;

/// Counts what a rendering takes.
#[derive(Debug, Default)]
pub struct Budget {
    steps: Cell<u64>,
    bytes: Cell<u64>,
    levels: Cell<u32>,
}

impl Budget {
    /// Takes steps.
    pub fn steps(&self, n: usize) -> Result<()> {
        self.steps.set(self.steps.get().saturating_add(n as u64));
        match self.steps.get() <= MAX_STEPS {
            true => Ok(()),
            false => Err(TemplateError::new("the template takes too many steps")),
        }
    }

    /// Takes the bytes of a text or list, before it is made.
    pub fn bytes(&self, n: usize) -> Result<()> {
        self.bytes.set(self.bytes.get().saturating_add(n as u64));
        match self.bytes.get() <= MAX_BYTES {
            true => self.steps(n / 64),
            false => Err(TemplateError::new(format!(
                "the template makes more than {} MiB of text",
                MAX_BYTES >> 20
            ))),
        }
    }

    /// Does something one level further in.
    pub fn level<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.levels.get() >= MAX_LEVELS {
            return Err(TemplateError::new("maximum recursion depth exceeded"));
        }
        self.levels.set(self.levels.get() + 1);
        let done = work();
        self.levels.set(self.levels.get() - 1);
        done
    }
}
