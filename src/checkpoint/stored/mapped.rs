//! Any safetensors file in the memory map: reference logits, statistics, what a user asks to see.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;
use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, SafeTensors};

/// A safetensors file, memory-mapped.
pub(crate) struct MappedSafetensors {
    /// The whole file.
    pub map: Mmap,
    /// Where the data begins, from which the header's offsets count.
    pub data: usize,
    /// The header, checked against the length of the file.
    pub metadata: Metadata,
}

/// Why a file is not mapped. Who opens it knows its path.
pub(crate) enum MapError {
    /// It cannot be opened.
    Open(io::Error),
    /// It cannot be mapped.
    Map(io::Error),
    /// It is not a safetensors file, or not a whole one.
    Header(SafeTensorError),
}

impl MappedSafetensors {
    /// Maps `path` and reads its header.
    pub fn open(path: &Path) -> Result<Self, MapError> {
        let file = File::open(path).map_err(MapError::Open)?;
        // SAFETY: the map is read-only and private to this value; a file that another process shortens meanwhile is outside
        // what this tool supports, as for every memory-mapped checkpoint.
        let map = unsafe { Mmap::map(&file) }.map_err(MapError::Map)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(MapError::Header)?;
        Ok(Self {
            map,
            data: header + size_of::<u64>(),
            metadata,
        })
    }
}
