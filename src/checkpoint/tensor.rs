//! A text tensor in a memory-mapped file, read a range of elements at a time.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::adapter::Change;
use super::error::{AdapterError, Error, Result};
use super::stored::{Raw, StoredDType, convert};

/// Merged elements that are rounded to fp16 at a time, unless a row has more.
const PIECE: usize = 1 << 16;

/// A tensor of the text decoder. Nothing is read until a range is asked for.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Name without prefix.
    pub name: &'a str,
    /// Shape in the file, row-major.
    pub shape: Vec<usize>,
    pub(super) dtype: StoredDType,
    /// Little-endian elements; the length is checked against shape and dtype when the file is opened.
    pub(super) bytes: &'a [u8],
    /// What adapters make of it.
    pub(super) change: Option<&'a Change>,
}

#[cfg(test)]
impl<'a> TensorView<'a> {
    /// fp16 elements that are in no file.
    pub(crate) fn of_f16(name: &'a str, shape: &[usize], bytes: &'a [u8]) -> Self {
        TensorView {
            name,
            shape: shape.to_vec(),
            dtype: StoredDType::F16,
            bytes,
            change: None,
        }
    }
}

impl<'a> TensorView<'a> {
    /// Number format in the file.
    pub fn dtype(&self) -> StoredDType {
        self.dtype
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// True when a dim is 0.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes in the checkpoint's file: little-endian elements, without what adapters make of them.
    pub(super) fn file_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of the tensor in the checkpoint's file.
    pub fn stored_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Reads elements `range` as f32: exactly, or merged with adapters in f32. `out` has the length of the range. A NaN or
    /// an infinity is an error.
    pub fn read_f32(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let bytes = self.slice(&range, out.len())?;
        match self.change {
            Some(change) => change.read(self.raw(), range.start, out),
            None => self.dtype.decode(bytes, out),
        }
        // A fold without an exit vectorizes; the search follows only where it must.
        if !out.iter().fold(false, |bad, v| bad | !v.is_finite()) {
            return Ok(());
        }
        let at = out.iter().position(|v| !v.is_finite()).unwrap_or(0);
        Err(self.not_finite(range.start + at, out[at]))
    }

    /// Reads elements `range` as fp16, rounded once, to nearest even. `out` has the length of the range. A NaN, an infinity, or a
    /// value that rounds beyond 65504 is an error.
    pub fn read_f16(&self, range: Range<usize>, out: &mut [f16]) -> Result<()> {
        let bytes = self.slice(&range, out.len())?;
        if let Some(change) = self.change {
            return self.merged_f16(change, range.start, out);
        }
        match self.dtype {
            StoredDType::Bf16 => narrow(bytes, out, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
            StoredDType::F16 => convert(bytes, out, f16::from_le_bytes),
            StoredDType::F32 => narrow(bytes, out, f32::from_le_bytes),
        }
        if !out.iter().fold(false, |bad, v| bad | !v.is_finite()) {
            return Ok(());
        }
        let at = out.iter().position(|v| !v.is_finite()).unwrap_or(0);
        let index = range.start + at;
        let mut value = [0.0];
        self.read_f32(index..index + 1, &mut value)?;
        Err(Error::Fp16Range {
            tensor: self.name.to_string(),
            index,
            value: value[0],
        })
    }

    /// Merged elements from `start` on, rounded.
    fn merged_f16(&self, change: &Change, start: usize, out: &mut [f16]) -> Result<()> {
        // Whole rows, where `start` begins one.
        let piece = (PIECE / change.columns()).max(1) * change.columns();
        let mut values = vec![0f32; piece.min(out.len())];
        for (start, out) in (start..).step_by(piece).zip(out.chunks_mut(piece)) {
            let values = &mut values[..out.len()];
            self.read_f32(start..start + out.len(), values)?;
            out.convert_from_f32_slice(values);
            if let Some(at) = out.iter().position(|v| !v.is_finite()) {
                let error = AdapterError::Fp16Range {
                    tensor: self.name.to_string(),
                    index: start + at,
                    value: values[at],
                    adapter: change.adapters().to_string(),
                };
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Asks the system to read elements `range` into its cache meanwhile; what is beyond the tensor is left out.
    pub fn prefetch(&self, range: Range<usize>) {
        let size = self.dtype.size();
        let end = range.end.saturating_mul(size).min(self.bytes.len());
        let start = range.start.saturating_mul(size).min(end);
        prefetch(&self.bytes[start..end]);
    }

    fn slice(&self, range: &Range<usize>, buffer: usize) -> Result<&'a [u8]> {
        let size = self.dtype.size();
        let bytes = (|| {
            let start = range.start.checked_mul(size)?;
            let end = range.end.checked_mul(size)?;
            self.bytes.get(start..end)
        })();
        bytes
            .filter(|b| b.len() / size == buffer)
            .ok_or_else(|| Error::Range {
                tensor: self.name.to_string(),
                start: range.start,
                end: range.end,
                len: self.len(),
                buffer,
            })
    }

    fn raw(&self) -> Raw<'a> {
        Raw {
            dtype: self.dtype,
            bytes: self.bytes,
        }
    }

    fn not_finite(&self, index: usize, value: f32) -> Error {
        let tensor = self.name.to_string();
        match self.change {
            Some(change) if self.raw().get(index).is_finite() => AdapterError::NotFinite {
                tensor,
                index,
                value,
                adapter: change.adapters().to_string(),
            }
            .into(),
            _ => Error::NotFinite {
                tensor,
                index,
                value,
            },
        }
    }
}

/// Asks the system to read these bytes of a mapped file into its cache meanwhile.
pub(super) fn prefetch(bytes: &[u8]) {
    #[cfg(unix)]
    if !bytes.is_empty() {
        // SAFETY: sysconf only reads a constant of the system.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).unwrap_or(0).max(1);
        let start = bytes.as_ptr() as usize / page * page;
        let len = bytes.as_ptr() as usize + bytes.len() - start;
        // SAFETY: the range covers the pages of a live slice; the advice changes neither them nor what they hold.
        // It is advice alone, so that a refusal does not matter.
        unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_WILLNEED) };
    }
    #[cfg(not(unix))]
    let _ = bytes;
}

/// Converts little-endian elements of `N` bytes to fp16 by way of f32, which holds all of them exactly.
fn narrow<const N: usize>(bytes: &[u8], out: &mut [f16], one: impl Fn([u8; N]) -> f32) {
    const BLOCK: usize = 512;
    let mut floats = [0f32; BLOCK];
    for (bytes, out) in bytes.chunks(N * BLOCK).zip(out.chunks_mut(BLOCK)) {
        let floats = &mut floats[..out.len()];
        convert(bytes, floats, &one);
        out.convert_from_f32_slice(floats);
    }
}
