//! Where the weights of a written package are.

use super::storage::{PartSpec, Storage};

/// Where a weight is.
#[derive(Debug, Clone)]
pub struct ConstPlace {
    /// How it is stored.
    pub storage: Storage,
    /// Its parts in order.
    pub parts: Vec<(PartSpec, PartPlace)>,
}

/// Where a part is.
#[derive(Debug, Clone)]
pub enum PartPlace {
    /// In the model ([`PartSpec::is_immediate`]): its packed bytes.
    Immediate(Vec<u8>),
    /// In a weight file.
    Blob(BlobPlace),
}

/// A blob in a weight file.
#[derive(Debug, Clone)]
pub struct BlobPlace {
    /// File name in the weights directory.
    pub file: String,
    /// Offset of the blob's metadata.
    pub offset: u64,
    /// The weight whose blob this is, when it was there before with the same content.
    pub shared_with: Option<String>,
}
