//! Weights that are stored as integers and the steps they count.

use super::dtype::{Raw, StoredDType};

/// How the values of a tensor are stored: integers times steps, one step for each `block` consecutive inputs of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// 2, 4 or 8: the integers are `-2^(nbits-1) ..= 2^(nbits-1) - 1`.
    pub nbits: u8,
    /// Inputs of a row that share a step; the row's length where the whole row does.
    pub block: usize,
}

/// A matrix of integers in a file. Rows are bit streams, lowest bits first, each padded to `row_bytes`.
#[derive(Debug, Clone, Copy)]
pub(in crate::checkpoint) struct Coded<'a> {
    pub grid: Grid,
    /// Integers are stored with `2^(nbits-1)` added; as two's complement otherwise.
    pub biased: bool,
    /// Inputs of a row.
    pub columns: usize,
    pub row_bytes: usize,
    pub codes: &'a [u8],
    /// Number format of the steps, row-major over `[rows, columns / block]`.
    pub step_dtype: StoredDType,
    pub steps: &'a [u8],
}

impl Coded<'_> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.codes.len() / self.row_bytes.max(1) * self.columns
    }

    /// Integers from element `start` on; those beyond the end are 0.
    pub fn codes(&self, start: usize, out: &mut [i8]) {
        let bits = usize::from(self.grid.nbits);
        let (per_byte, mask) = (8 / bits.max(1), (0xffu16 >> (8 - bits)) as u8);
        let bias = 1i16 << (bits - 1);
        let (mut row, mut column) = (start / self.columns, start % self.columns);
        for out in out {
            let at = row * self.row_bytes + column / per_byte;
            let byte = self.codes.get(at).copied();
            let code = byte.map(|byte| byte >> (column % per_byte * bits) & mask);
            *out = match (code, self.biased) {
                (None, _) => 0,
                (Some(code), true) => (i16::from(code) - bias) as i8,
                (Some(code), false) => ((code << (8 - bits)) as i8) >> (8 - bits),
            };
            column += 1;
            if column == self.columns {
                (row, column) = (row + 1, 0);
            }
        }
    }

    /// Steps from step `start` on as f32; those beyond the end are 0.
    pub fn steps(&self, start: usize, out: &mut [f32]) {
        let raw = Raw::Plain {
            dtype: self.step_dtype,
            bytes: self.steps,
        };
        raw.read(start, out);
    }

    /// Elements from `start` on: the integer times its step, in f32.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        const BLOCK: usize = 256;
        let mut codes = [0i8; BLOCK];
        let mut step = [0f32];
        let per_row = self.columns / self.grid.block.max(1);
        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
            let first = start + i * BLOCK;
            let codes = &mut codes[..out.len()];
            self.codes(first, codes);
            let mut held = None;
            for (j, (out, code)) in out.iter_mut().zip(&*codes).enumerate() {
                let (row, column) = ((first + j) / self.columns, (first + j) % self.columns);
                let at = row * per_row + column / self.grid.block;
                if held != Some(at) {
                    self.steps(at, &mut step);
                    held = Some(at);
                }
                *out = f32::from(*code) * step[0];
            }
        }
    }
}
