//! The weight files of a package, walked blob by blob.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::value::ReadValue;
use crate::mil::{DType, TensorType};
use crate::package::WEIGHTS_PREFIX;
use crate::package::blob::{BlobHeader, HEADER_BYTES, align, parse_file_header};
use crate::package::error::{Error, Result};

/// All weight files by name.
#[derive(Debug, Default)]
pub(super) struct WeightFiles {
    files: BTreeMap<String, WeightFile>,
}

#[derive(Debug)]
struct WeightFile {
    name: Arc<str>,
    map: Arc<Mmap>,
    /// Blobs by the offset of their metadata.
    blobs: BTreeMap<u64, BlobHeader>,
}

impl WeightFiles {
    /// Maps and checks every `.bin` file in the directory.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let entries = fs::read_dir(dir).map_err(Error::io("cannot read", dir))?;
        for entry in entries {
            let path = entry.map_err(Error::io("cannot read", dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(name) = name
                && path.extension().is_some_and(|ext| ext == "bin")
            {
                files.insert(name.to_owned(), WeightFile::open(&path, name)?);
            }
        }
        Ok(WeightFiles { files })
    }

    /// Names, bytes and number of blobs.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64, usize)> {
        self.files
            .iter()
            .map(|(name, file)| (name.as_str(), file.map.len() as u64, file.blobs.len()))
    }

    /// The value of a constant of type `ty` that refers to a blob, or what is wrong with the
    /// reference, in words.
    pub fn find(
        &self,
        reference: &str,
        offset: u64,
        ty: TensorType,
    ) -> std::result::Result<ReadValue, String> {
        let name = reference
            .strip_prefix(WEIGHTS_PREFIX)
            .ok_or_else(|| format!("blob file `{reference}` is not `{WEIGHTS_PREFIX}...`"))?;
        let file = self.files.get(name).ok_or_else(|| {
            format!("there is no weight file `{name}` (or no weights item in the manifest)")
        })?;
        let header = file
            .blobs
            .get(&offset)
            .ok_or_else(|| format!("no blob begins at byte {offset} of `{name}`"))?;
        if ty.dtype.blob_number() != Some(header.dtype) {
            let got = DType::from_blob_number(header.dtype);
            return Err(format!(
                "the blob at {offset} of `{name}` is {}, expected {}",
                got.map_or("of no known type", DType::name),
                ty.dtype
            ));
        }
        if ty.bytes() != Some(header.bytes) {
            return Err(format!(
                "the blob at {offset} of `{name}` has {} bytes, {ty} needs {}",
                header.bytes,
                ty.bytes().unwrap_or(u64::MAX)
            ));
        }
        let used = u64::from(ty.dtype.bits()) * (ty.elements().unwrap_or(0) as u64 % 8);
        let padding = (8 - used % 8) % 8;
        if header.padding_bits != padding {
            return Err(format!(
                "the blob at {offset} of `{name}` says {} padding bits, {ty} has {padding}",
                header.padding_bits
            ));
        }
        // The walk has checked that the range lies in the map, so both fit a usize.
        Ok(ReadValue::Blob {
            ty,
            name: file.name.clone(),
            file: file.map.clone(),
            offset: header.data_offset as usize,
            len: header.bytes as usize,
        })
    }
}

impl WeightFile {
    fn open(path: &Path, name: &str) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("cannot open", path))?;
        let len = file
            .metadata()
            .map_err(Error::io("cannot read", path))?
            .len();
        let fault = |(offset, message)| Error::Blob {
            path: path.to_owned(),
            offset,
            message,
        };
        if len < HEADER_BYTES {
            return Err(fault((
                0,
                format!("the file has {len} bytes, a header {HEADER_BYTES}"),
            )));
        }
        // SAFETY: the map is read only, and the file is one that nobody changes while a model of it
        // is loaded; every access goes through bounds that were checked against the map's length.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("cannot map", path))?;
        // Weights are read from one end to the other. It is advice alone, so that a refusal does not matter.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let blobs = walk(&map).map_err(fault)?;
        Ok(WeightFile {
            name: name.into(),
            map: Arc::new(map),
            blobs,
        })
    }
}

fn header_at(bytes: &[u8], at: u64) -> Option<&[u8; 64]> {
    let start = usize::try_from(at).ok()?;
    bytes.get(start..start.checked_add(64)?)?.try_into().ok()
}

/// Every blob of a file by the offset of its metadata, or the offset of a fault and what it is.
/// Blobs follow each other without gaps but alignment, so nothing can overlap.
fn walk(bytes: &[u8]) -> std::result::Result<BTreeMap<u64, BlobHeader>, (u64, String)> {
    let len = bytes.len() as u64;
    let first = header_at(bytes, 0).ok_or((0, "no header".to_owned()))?;
    let count = parse_file_header(first).map_err(|message| (0, message))?;
    let mut blobs = BTreeMap::new();
    let mut end = HEADER_BYTES;
    for i in 0..count {
        let at = align(end).ok_or((end, "the offset overflows".to_owned()))?;
        let fault = |message: String| (at, format!("blob {i} of {count}: {message}"));
        let metadata = header_at(bytes, at)
            .ok_or_else(|| fault(format!("the file ends at {len}, before its metadata")))?;
        let gap = &bytes[end as usize..at as usize];
        if gap.iter().any(|&b| b != 0) {
            return Err(fault("the bytes before it are not zero".to_owned()));
        }
        let header = BlobHeader::decode(metadata).map_err(fault)?;
        check_header(&header, at).map_err(fault)?;
        end = match header.data_offset.checked_add(header.bytes) {
            Some(end) if end <= len => end,
            _ => {
                return Err(fault(format!(
                    "{} bytes of data pass the end of the file at {len}",
                    header.bytes
                )));
            }
        };
        blobs.insert(at, header);
    }
    if end != len {
        return Err((end, format!("{} bytes after the last blob", len - end)));
    }
    Ok(blobs)
}

fn check_header(header: &BlobHeader, at: u64) -> std::result::Result<(), String> {
    if Some(header.data_offset) != at.checked_add(HEADER_BYTES) {
        return Err(format!(
            "the data is said to be at {}, expected {}",
            header.data_offset,
            at.saturating_add(HEADER_BYTES)
        ));
    }
    let Some(dtype) = DType::from_blob_number(header.dtype) else {
        return Err(format!("unknown element type {}", header.dtype));
    };
    if header.bytes == 0 {
        return Err("it is empty".to_owned());
    }
    let bits = u64::from(dtype.bits());
    let padding = header.padding_bits;
    let whole = match bits {
        0..8 => {
            padding < 8
                && header
                    .bytes
                    .checked_mul(8)
                    .is_some_and(|all| (all - padding).is_multiple_of(bits))
        }
        _ => padding == 0 && (header.bytes.is_multiple_of(bits / 8)),
    };
    if !whole {
        return Err(format!(
            "{} bytes less {padding} bits are not whole elements of {dtype}",
            header.bytes
        ));
    }
    Ok(())
}
