//! The checkpoints of `fixtures/`.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};

/// Fixtures that must be there for a test over all of them to mean anything.
const LEAST_FIXTURES: usize = 6;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The fixture of that name.
pub fn fixture(name: &str) -> PathBuf {
    root().join(name)
}

/// Fixtures that carry the reference file of that name, in name order; at least [`LEAST_FIXTURES`].
pub fn fixtures(reference: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(root())
        .expect("fixtures/ is in the repository")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|dir| dir.join(reference).is_file())
        .collect();
    found.sort();
    assert!(
        found.len() >= LEAST_FIXTURES,
        "{reference} in {} folders, expected at least {LEAST_FIXTURES}",
        found.len()
    );
    found
}
