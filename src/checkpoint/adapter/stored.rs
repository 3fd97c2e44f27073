//! The tensors of an adapter's weights, memory-mapped.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::super::error::{AdapterError as Error, Error as CheckpointError, Result};
use super::super::pointer::check_file;
use super::super::stored::{MapError, MappedSafetensors, Raw, StoredDType, header};

/// Elements that are looked at a time.
const PIECE: usize = 1 << 14;

/// A tensor of an adapter.
#[derive(Clone)]
pub(super) struct Stored {
    /// Name in the file.
    pub name: String,
    pub shape: Vec<usize>,
    dtype: StoredDType,
    map: Arc<Mmap>,
    begin: usize,
    end: usize,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.dtype.name(), self.shape)
    }
}

impl Stored {
    /// The elements in the file.
    pub fn raw(&self) -> Raw<'_> {
        Raw::Plain {
            dtype: self.dtype,
            // Checked when the file was opened.
            bytes: self.map.get(self.begin..self.end).unwrap_or_default(),
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        (self.end - self.begin) / self.dtype.size()
    }

    /// Whether both have the same elements, in whatever format and shape.
    pub fn equals(&self, other: &Self) -> bool {
        self.len() == other.len() && {
            let (mut a, mut b) = (vec![0f32; PIECE], vec![0f32; PIECE]);
            (0..self.len()).step_by(PIECE).all(|start| {
                self.raw().read(start, &mut a);
                other.raw().read(start, &mut b);
                a == b
            })
        }
    }

    /// The first element for which `bad` holds.
    pub fn find(&self, bad: impl Fn(f32) -> bool) -> Option<(usize, f32)> {
        let mut values = vec![0f32; PIECE.min(self.len())];
        for start in (0..self.len()).step_by(PIECE) {
            let values = &mut values[..PIECE.min(self.len() - start)];
            self.raw().read(start, values);
            if let Some(at) = values.iter().position(|v| bad(*v)) {
                return Some((start + at, values[at]));
            }
        }
        None
    }
}

/// The weights of an adapter.
#[derive(Debug)]
pub(super) struct Weights {
    /// In the order of the file.
    pub tensors: Vec<Stored>,
    /// Of the file's content, in hex.
    pub sha256: String,
}

impl Weights {
    /// Opens the file and reads it once.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| CheckpointError::Io {
            path: path.to_path_buf(),
            source,
        };
        check_file(path)?;
        // Our own reader says which tensor is wrong, and how.
        let entries = header::read(path)?;
        let file = MappedSafetensors::open(path).map_err(|e| match e {
            MapError::Open(source) | MapError::Map(source) => io(source),
            MapError::Header(e) => CheckpointError::BadFile {
                path: path.to_path_buf(),
                what: "file",
                expected: "a safetensors file".into(),
                got: e.to_string(),
            },
        })?;
        let (map, data) = (Arc::new(file.map), file.data);
        let tensors = entries
            .into_iter()
            .map(|entry| stored(path, entry, &map, data))
            .collect::<Result<_>>()?;
        Ok(Self {
            tensors,
            sha256: hex(&Sha256::digest(&map[..])),
        })
    }
}

fn stored(path: &Path, entry: header::Entry, map: &Arc<Mmap>, data: usize) -> Result<Stored> {
    let dtype =
        StoredDType::from_name(&entry.dtype).ok_or_else(|| CheckpointError::UnsupportedDtype {
            path: path.to_path_buf(),
            tensor: entry.name.clone(),
            got: entry.dtype.clone(),
            hint: None,
        })?;
    let at = |offset: u64| usize::try_from(offset).ok()?.checked_add(data);
    // The header was read and checked apart from the map: a file replaced in between is seen here.
    let there = at(entry.offsets.0).zip(at(entry.offsets.1));
    let there = there.filter(|(begin, end)| map.get(*begin..*end).is_some());
    let (begin, end) = there.ok_or_else(|| Error::Tensor {
        path: path.to_path_buf(),
        tensor: entry.name.clone(),
        what: "data",
        expected: "bytes within the file".into(),
        got: "another file than a moment ago".into(),
    })?;
    Ok(Stored {
        name: entry.name,
        shape: entry.shape,
        dtype,
        map: map.clone(),
        begin,
        end,
    })
}

/// Bytes as lower-case hex.
pub(in crate::checkpoint) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The error of a tensor of the file at `path`.
pub(super) fn wrong(
    path: &Path,
    tensor: &Stored,
    what: &'static str,
    expected: impl Into<String>,
    got: impl Into<String>,
) -> Error {
    Error::Tensor {
        path: PathBuf::from(path),
        tensor: tensor.name.clone(),
        what,
        expected: expected.into(),
        got: got.into(),
    }
}
