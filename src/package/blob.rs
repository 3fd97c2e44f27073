//! Layout of a weight file, and the file being written. The module doc of [`super`] has the layout.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::WEIGHT_FILE;
use super::error::{Error, Result};
use super::steady::SteadyFile;
use crate::failpoint;

/// Bytes of the file header, of a blob's metadata, and the alignment of everything.
pub const HEADER_BYTES: u64 = 64;

/// First field of a blob's metadata.
const SENTINEL: u32 = 0xDEAD_BEEF;

/// Version of the format.
const VERSION: u32 = 2;

/// Bytes that go to the file at once, from a multiple of them on: a large page, so that the system keeps the file in large
/// pages and whoever maps it reads it through few entries of the translation cache.
pub(super) const BUFFER_BYTES: usize = 2 << 20;

/// The next multiple of 64; none if it overflows.
pub fn align(offset: u64) -> Option<u64> {
    offset.checked_next_multiple_of(HEADER_BYTES)
}

/// Length of a weight file of `end` bytes with one more blob of so many bytes; none if it overflows.
pub fn end_of_blob(end: u64, bytes: u64) -> Option<u64> {
    align(end)?.checked_add(HEADER_BYTES)?.checked_add(bytes)
}

/// Name of weight file number `index`: `weight.bin`, `weight_1.bin`, `weight_2.bin`, ...
pub fn weight_file_name(index: usize) -> String {
    match index {
        0 => WEIGHT_FILE.to_owned(),
        _ => format!("weight_{index}.bin"),
    }
}

/// Whether a weight whose blobs have so many bytes begins a new file: the last one has `end` bytes, and with this weight
/// would not be smaller than `limit`.
///
/// # Errors
/// [`Error::WeightTooLarge`] when a file of the weight alone is not smaller than `limit`.
pub(super) fn begins_file(weight: &str, end: u64, blobs: &[u64], limit: u64) -> Result<bool> {
    let with = |end: u64| {
        let mut blobs = blobs.iter();
        blobs.try_fold(end, |end, bytes| end_of_blob(end, *bytes))
    };
    let fits = |end: Option<u64>| blobs.is_empty() || end.is_some_and(|end| end < limit);
    if fits(with(end)) {
        return Ok(false);
    }
    match fits(with(HEADER_BYTES)) {
        true => Ok(true),
        false => Err(Error::WeightTooLarge {
            weight: weight.to_owned(),
            bytes: blobs.iter().fold(0, |sum: u64, n| sum.saturating_add(*n)),
            limit,
        }),
    }
}

/// The first 64 bytes of a file with `count` blobs.
pub(super) fn file_header(count: u32) -> [u8; 64] {
    let mut out = [0; 64];
    out[..4].copy_from_slice(&count.to_le_bytes());
    out[4..8].copy_from_slice(&VERSION.to_le_bytes());
    out
}

/// Reads the file header: the count, or what is wrong with it.
pub(super) fn parse_file_header(bytes: &[u8; 64]) -> std::result::Result<u32, String> {
    let version = u32_at(bytes, 4);
    if version != VERSION {
        return Err(format!("blob format version {version}, expected {VERSION}"));
    }
    if bytes[8..].iter().any(|&b| b != 0) {
        return Err("reserved bytes of the file header are not zero".to_owned());
    }
    Ok(u32_at(bytes, 0))
}

fn u32_at(bytes: &[u8; 64], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8; 64], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

/// Metadata of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobHeader {
    /// Element type, [`crate::mil::DType::blob_number`].
    pub dtype: u32,
    /// Bytes of data, the last partial byte included.
    pub bytes: u64,
    /// Offset of the data in the file.
    pub data_offset: u64,
    /// Unused bits in the last byte.
    pub padding_bits: u64,
}

impl BlobHeader {
    /// The 64 bytes in the file.
    pub fn encode(&self) -> [u8; 64] {
        let mut out = [0; 64];
        out[..4].copy_from_slice(&SENTINEL.to_le_bytes());
        out[4..8].copy_from_slice(&self.dtype.to_le_bytes());
        out[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.data_offset.to_le_bytes());
        out[24..32].copy_from_slice(&self.padding_bits.to_le_bytes());
        out
    }

    /// Reads the 64 bytes.
    ///
    /// # Errors
    /// A wrong sentinel or reserved bytes that are not zero, in words.
    pub fn decode(bytes: &[u8; 64]) -> std::result::Result<Self, String> {
        let sentinel = u32_at(bytes, 0);
        if sentinel != SENTINEL {
            return Err(format!(
                "blob sentinel {sentinel:#010x}, expected {SENTINEL:#010x}"
            ));
        }
        if bytes[32..].iter().any(|&b| b != 0) {
            return Err("reserved bytes of the blob metadata are not zero".to_owned());
        }
        Ok(BlobHeader {
            dtype: u32_at(bytes, 4),
            bytes: u64_at(bytes, 8),
            data_offset: u64_at(bytes, 16),
            padding_bits: u64_at(bytes, 24),
        })
    }
}

/// What a finished blob is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct BlobKey {
    pub dtype: u32,
    pub bytes: u64,
    pub sha256: [u8; 32],
}

/// A weight file while it is written. Errors carry its path.
pub(super) struct BlobFile {
    file: SteadyFile,
    path: PathBuf,
    /// Bytes not in the file yet; they begin at `flushed`.
    buffer: Vec<u8>,
    flushed: u64,
    count: u32,
    open: Option<OpenBlob>,
}

struct OpenBlob {
    /// Length of the file before the blob and its alignment.
    before: u64,
    header: BlobHeader,
    hash: Sha256,
}

impl BlobFile {
    /// A new file with a header of count 0.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(Error::io("cannot create", path))?;
        Ok(BlobFile {
            file: SteadyFile::new(file),
            path: path.to_owned(),
            buffer: file_header(0).to_vec(),
            flushed: 0,
            count: 0,
            open: None,
        })
    }

    fn len(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    /// Length of the file if it were finished now.
    pub fn bytes(&self) -> u64 {
        self.len()
    }

    /// Number of blobs.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Begins a blob: alignment and metadata.
    pub fn begin(&mut self, dtype: u32, bytes: u64, padding_bits: u64) -> Result<()> {
        let before = self.len();
        let header = align(before).and_then(|at| {
            let data_offset = at.checked_add(HEADER_BYTES)?;
            data_offset.checked_add(bytes)?;
            Some(BlobHeader {
                dtype,
                bytes,
                data_offset,
                padding_bits,
            })
        });
        let header = header.ok_or_else(|| Error::Blob {
            path: self.path.clone(),
            offset: before,
            message: format!("a blob of {bytes} bytes makes the file too large"),
        })?;
        let zeros = header.data_offset - HEADER_BYTES - before;
        self.push(&[0; 64][..zeros as usize])
            .and_then(|()| self.push(&header.encode()))
            .map_err(Error::io("cannot write", &self.path))?;
        self.open = Some(OpenBlob {
            before,
            header,
            hash: Sha256::new(),
        });
        failpoint::reach("blob.begun");
        Ok(())
    }

    /// Data of the blob that was begun.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(open) = &mut self.open {
            open.hash.update(bytes);
        }
        self.push(bytes)?;
        failpoint::reach("blob.data");
        Ok(())
    }

    /// Ends the blob. Answers its metadata offset and key.
    pub fn end(&mut self) -> Option<(u64, BlobKey)> {
        let open = self.open.as_ref()?;
        let key = BlobKey {
            dtype: open.header.dtype,
            bytes: open.header.bytes,
            sha256: open.hash.clone().finalize().into(),
        };
        self.count += 1;
        Some((open.header.data_offset - HEADER_BYTES, key))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Offset and number of the data bytes of the blob that just ended.
    pub fn last(&self) -> Option<(u64, u64)> {
        let header = self.open.as_ref()?.header;
        Some((header.data_offset, header.bytes))
    }

    /// Reads bytes of the file back.
    pub fn read_back(&mut self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.flush()
            .and_then(|()| self.file.seek(SeekFrom::Start(offset)))
            .and_then(|_| self.file.read_exact(out))
            .and_then(|()| self.file.seek(SeekFrom::Start(self.flushed)))
            .map(drop)
            .map_err(Error::io("cannot read back", &self.path))
    }

    /// Takes the blob that just ended out of the file again.
    pub fn drop_last(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        self.count -= 1;
        if let Some(keep) = open.before.checked_sub(self.flushed) {
            self.buffer.truncate(keep as usize);
            return Ok(());
        }
        self.buffer.clear();
        self.flushed = open.before;
        self.file
            .set_len(open.before)
            .and_then(|()| self.file.seek(SeekFrom::Start(open.before)))
            .map(drop)
            .map_err(Error::io("cannot truncate", &self.path))
    }

    /// Removes the file.
    pub fn remove(self) -> Result<()> {
        let path = self.path;
        drop(self.file);
        std::fs::remove_file(&path).map_err(Error::io("cannot remove", &path))
    }

    /// Writes the count into the header and brings everything to the disk.
    pub fn finish(mut self) -> Result<()> {
        let header = file_header(self.count);
        self.flush()
            .and_then(|()| {
                failpoint::reach("weights.unpatched");
                self.file.seek(SeekFrom::Start(0))
            })
            .and_then(|_| self.file.write_all(&header))
            .and_then(|()| self.file.finish())
            .map_err(Error::io("cannot write", &self.path))
    }

    fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            // Up to the next multiple.
            let room = BUFFER_BYTES - (self.len() % BUFFER_BYTES as u64) as usize;
            let whole = bytes.len() / BUFFER_BYTES * BUFFER_BYTES;
            if room == BUFFER_BYTES && self.buffer.is_empty() && whole > 0 {
                self.file.write_all(&bytes[..whole])?;
                self.flushed += whole as u64;
                bytes = &bytes[whole..];
                continue;
            }
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            if now.len() == room {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header as the format describes it, byte by byte.
    #[test]
    fn golden_blob_header() {
        let header = BlobHeader {
            dtype: 11,
            bytes: 3,
            data_offset: 128,
            padding_bits: 4,
        };
        let mut expected = vec![0xef, 0xbe, 0xad, 0xde, 11, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([128, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        expected.resize(64, 0);
        assert_eq!(header.encode().as_slice(), expected);
        assert_eq!(BlobHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn golden_file_header() {
        let mut expected = vec![2, 1, 0, 0, 2, 0, 0, 0];
        expected.resize(64, 0);
        assert_eq!(file_header(258).as_slice(), expected);
        assert_eq!(parse_file_header(&file_header(258)), Ok(258));
    }
}
