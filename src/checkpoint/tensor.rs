//! A text tensor in a memory-mapped file, read a range of elements at a time.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::adapter::Change;
use super::error::{AdapterError, Error, Result};
#[cfg(test)]
use super::stored::Coded;
use super::stored::{Grid, Raw, StoredDType, convert};

/// Merged elements that are rounded to fp16 at a time, unless a row has more.
const PIECE: usize = 1 << 16;

/// Elements that are converted at a time.
const BLOCK: usize = 512;

/// A tensor of the text decoder. Nothing is read until a range is asked for.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Name without prefix.
    pub name: &'a str,
    /// Shape in the file, row-major.
    pub shape: Vec<usize>,
    /// What the file holds; its length is checked against the shape when the file is opened.
    pub(super) raw: Raw<'a>,
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
            raw: Raw::Plain {
                dtype: StoredDType::F16,
                bytes,
            },
            change: None,
        }
    }

    /// Integers of 2, 4 or 8 bits with 2^(nbits-1) added, packed lowest bits first, and an f32 step for each `block` of a row.
    pub(crate) fn of_codes(
        name: &'a str,
        shape: &[usize],
        grid: Grid,
        codes: &'a [u8],
        steps: &'a [u8],
    ) -> Self {
        let columns = shape[1..].iter().product();
        TensorView {
            name,
            shape: shape.to_vec(),
            raw: Raw::Coded(Coded {
                grid,
                biased: true,
                columns,
                row_bytes: columns * usize::from(grid.nbits) / 8,
                codes,
                step_dtype: StoredDType::F32,
                steps,
            }),
            change: None,
        }
    }
}

impl<'a> TensorView<'a> {
    /// Number format in the file; of the steps where it holds integers.
    pub fn dtype(&self) -> StoredDType {
        match self.raw {
            Raw::Plain { dtype, .. } => dtype,
            Raw::Coded(coded) => coded.step_dtype,
        }
    }

    /// The form in the file: a number format, or what integers and steps there are and how they lie.
    pub(super) fn form(&self) -> String {
        match self.raw {
            Raw::Plain { dtype, .. } => dtype.name().to_string(),
            Raw::Coded(coded) => coded.form(),
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// True when a dim is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes in the checkpoint's file, without what adapters make of them: little-endian elements, or integers and then
    /// their steps.
    pub(super) fn file_bytes(&self) -> [&'a [u8]; 2] {
        match self.raw {
            Raw::Plain { bytes, .. } => [bytes, &[]],
            Raw::Coded(coded) => [coded.codes, coded.steps],
        }
    }

    /// Bytes of the tensor in the checkpoint's file.
    pub fn stored_bytes(&self) -> usize {
        self.file_bytes().iter().map(|bytes| bytes.len()).sum()
    }

    /// The grid of a tensor that the file holds as integers and steps; `None` for numbers, and where adapters change it.
    pub fn grid(&self) -> Option<Grid> {
        match (self.raw, self.change) {
            (Raw::Coded(coded), None) => Some(coded.grid),
            _ => None,
        }
    }

    /// Reads the integers of elements `range` of a tensor that has a [`grid`](Self::grid). `out` has the length of the range.
    pub fn read_codes(&self, range: Range<usize>, out: &mut [i8]) -> Result<()> {
        match self.raw {
            Raw::Coded(coded) if range.end <= coded.len() && range.len() == out.len() => {
                coded.codes(range.start, out);
                Ok(())
            }
            _ => Err(self.range_error(&range, out.len())),
        }
    }

    /// Reads steps `range`, row-major over `[rows, inputs / block]`, of a tensor that has a [`grid`](Self::grid). `out` has the
    /// length of the range. A NaN or an infinity is an error.
    pub fn read_steps(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        match self.raw {
            Raw::Coded(coded)
                if range.end <= coded.len() / coded.grid.block && range.len() == out.len() =>
            {
                coded.steps(range.start, out);
                match out.iter().position(|v| !v.is_finite()) {
                    None => Ok(()),
                    Some(at) => {
                        Err(self.not_finite((range.start + at) * coded.grid.block, out[at]))
                    }
                }
            }
            _ => Err(self.range_error(&range, out.len())),
        }
    }

    /// Reads elements `range` as f32: exactly, or merged with adapters in f32. `out` has the length of the range. A NaN or
    /// an infinity is an error.
    pub fn read_f32(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.check_range(&range, out.len())?;
        match self.change {
            Some(change) => change.read(self.raw, range.start, out),
            None => self.raw.read(range.start, out),
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
        self.check_range(&range, out.len())?;
        if let Some(change) = self.change {
            return self.merged_f16(change, range.start, out);
        }
        match self.raw {
            Raw::Plain { dtype, bytes } => {
                let bytes = &bytes[range.start * dtype.size()..range.end * dtype.size()];
                match dtype {
                    StoredDType::Bf16 => {
                        narrow(bytes, out, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32())
                    }
                    StoredDType::F16 => convert(bytes, out, f16::from_le_bytes),
                    StoredDType::F32 => narrow(bytes, out, f32::from_le_bytes),
                }
            }
            Raw::Coded(coded) => {
                let mut values = [0f32; BLOCK];
                for (start, out) in range.clone().step_by(BLOCK).zip(out.chunks_mut(BLOCK)) {
                    let values = &mut values[..out.len()];
                    coded.read(start, values);
                    out.convert_from_f32_slice(values);
                }
            }
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
        let [bytes, _] = self.file_bytes();
        let at = |element: usize| match self.raw {
            Raw::Plain { dtype, .. } => element.saturating_mul(dtype.size()),
            Raw::Coded(coded) => (element / coded.columns.max(1)).saturating_mul(coded.row_bytes),
        };
        let end = at(range.end).min(bytes.len());
        prefetch(&bytes[at(range.start).min(end)..end]);
    }

    fn check_range(&self, range: &Range<usize>, buffer: usize) -> Result<()> {
        match range.start <= range.end && range.end <= self.len() && range.len() == buffer {
            true => Ok(()),
            false => Err(self.range_error(range, buffer)),
        }
    }

    fn range_error(&self, range: &Range<usize>, buffer: usize) -> Error {
        Error::Range {
            tensor: self.name.to_string(),
            start: range.start,
            end: range.end,
            len: self.len(),
            buffer,
        }
    }

    fn not_finite(&self, index: usize, value: f32) -> Error {
        let tensor = self.name.to_string();
        if let Raw::Coded(coded) = self.raw
            && let Some(value) = coded.negative_step(index)
        {
            return Error::NegativeStep {
                tensor,
                index,
                value,
            };
        }
        match self.change {
            Some(change) if self.raw.get(index).is_finite() => AdapterError::NotFinite {
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
    let mut floats = [0f32; BLOCK];
    for (bytes, out) in bytes.chunks(N * BLOCK).zip(out.chunks_mut(BLOCK)) {
        let floats = &mut floats[..out.len()];
        convert(bytes, floats, &one);
        out.convert_from_f32_slice(floats);
    }
}
