//! A package among those of a bundle.

use crate::package::Package;
use std::path::PathBuf;

/// One package of a bundle.
#[derive(Debug)]
pub struct Chunk {
    /// Name without suffix, `chunk1`.
    pub name: String,
    /// The `.mlpackage` directory.
    pub path: PathBuf,
    /// The opened package.
    pub package: Package,
}
