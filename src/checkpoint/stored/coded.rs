//! Weights that are stored as integers and the steps they count.

use super::dtype::StoredDType;

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

    /// Steps of a row.
    fn steps_per_row(&self) -> usize {
        self.columns / self.grid.block.max(1)
    }

    /// What the bytes are, as text that no other form has.
    pub fn form(&self) -> String {
        let Self { grid, biased, .. } = self;
        let kind = if *biased { "U" } else { "I" };
        format!(
            "{kind}{} x {} in {} bytes, {}",
            grid.nbits,
            grid.block,
            self.row_bytes,
            self.step_dtype.name()
        )
    }

    /// Integers from element `start` on; those beyond the end are 0.
    pub fn codes(&self, start: usize, out: &mut [i8]) {
        for (row, column, out) in pieces(self.columns, start, out) {
            self.codes_of_row(row, column, out);
        }
    }

    /// Integers of a row from `column` on.
    fn codes_of_row(&self, row: usize, column: usize, out: &mut [i8]) {
        let begin = row.saturating_mul(self.row_bytes).min(self.codes.len());
        let end = begin.saturating_add(self.row_bytes).min(self.codes.len());
        let bytes = &self.codes[begin..end];
        match (self.grid.nbits, self.biased) {
            (2, true) => unpack::<2, 4>(bytes, column, out, |code| code as i8 - 2),
            (2, false) => unpack::<2, 4>(bytes, column, out, |code| ((code << 6) as i8) >> 6),
            (4, true) => unpack::<4, 2>(bytes, column, out, |code| code as i8 - 8),
            (4, false) => unpack::<4, 2>(bytes, column, out, |code| ((code << 4) as i8) >> 4),
            (_, true) => unpack::<8, 1>(bytes, column, out, |code| (code ^ 0x80) as i8),
            (_, false) => unpack::<8, 1>(bytes, column, out, |code| code as i8),
        }
    }

    /// Steps from step `start` on as f32; those beyond the end are 0, and negative ones, which mean nothing, a NaN.
    pub fn steps(&self, start: usize, out: &mut [f32]) {
        self.step_dtype.read(self.steps, start, out);
        for step in out {
            *step = if *step < 0.0 { f32::NAN } else { *step };
        }
    }

    /// The step of an element, where it is negative.
    pub fn negative_step(&self, element: usize) -> Option<f32> {
        let (row, column) = (element / self.columns.max(1), element % self.columns.max(1));
        let at = row * self.steps_per_row() + column / self.grid.block.max(1);
        let mut step = [0.0];
        self.step_dtype.read(self.steps, at, &mut step);
        (step[0] < 0.0).then_some(step[0])
    }

    /// Elements from `start` on: the integer times its step, in f32.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        const PIECE: usize = 512;
        let (mut codes, mut steps) = ([0i8; PIECE], [0f32; PIECE]);
        let block = self.grid.block.max(1);
        for (row, column, out) in pieces(self.columns, start, out) {
            for (i, out) in out.chunks_mut(PIECE).enumerate() {
                let column = column + i * PIECE;
                let codes = &mut codes[..out.len()];
                self.codes_of_row(row, column, codes);
                let first = column / block;
                let steps = &mut steps[..(column + out.len()).div_ceil(block) - first];
                self.steps(row * self.steps_per_row() + first, steps);
                let (mut out, mut codes, mut left) = (out, &*codes, block - column % block);
                for step in &*steps {
                    let count = left.min(out.len());
                    let (now, then) = out.split_at_mut(count);
                    let (of_now, of_then) = codes.split_at(count);
                    for (value, code) in now.iter_mut().zip(of_now) {
                        *value = f32::from(*code) * step;
                    }
                    (out, codes, left) = (then, of_then, block);
                }
            }
        }
    }
}

/// The parts of `out`, elements from `start` on, that lie in one row each: row, first column, slots.
fn pieces<T>(
    columns: usize,
    start: usize,
    out: &mut [T],
) -> impl Iterator<Item = (usize, usize, &mut [T])> {
    let columns = columns.max(1);
    let (mut at, mut rest) = (start, out);
    std::iter::from_fn(move || {
        let count = (columns - at % columns).min(rest.len());
        let (piece, later) = std::mem::take(&mut rest).split_at_mut(count);
        rest = later;
        let place = (at / columns, at % columns);
        at += count;
        (!piece.is_empty()).then_some((place.0, place.1, piece))
    })
}

/// Integers of `BITS`, `PER` to a byte, lowest bits first, from `column` on. What lies beyond the bytes is 0.
fn unpack<const BITS: usize, const PER: usize>(
    bytes: &[u8],
    column: usize,
    out: &mut [i8],
    signed: impl Fn(u8) -> i8,
) {
    let mask = (0xffu16 >> (8 - BITS)) as u8;
    let bytes = bytes.get(column / PER..).unwrap_or_default();
    let head = (column % PER).min(bytes.len() * PER);
    // The first integers may begin inside a byte.
    let inside = match head {
        0 => 0,
        _ => (PER - head).min(out.len()),
    };
    let (first, rest) = out.split_at_mut(inside);
    for (i, code) in first.iter_mut().enumerate() {
        *code = signed(bytes[0] >> ((head + i) * BITS) & mask);
    }
    let bytes = &bytes[usize::from(inside > 0)..];
    let whole = (rest.len() / PER).min(bytes.len());
    let (body, tail) = rest.split_at_mut(whole * PER);
    let (chunks, _) = body.as_chunks_mut::<PER>();
    for (codes, byte) in chunks.iter_mut().zip(bytes) {
        for (i, code) in codes.iter_mut().enumerate() {
            *code = signed(byte >> (i * BITS) & mask);
        }
    }
    let last = bytes.get(whole).copied();
    for (i, code) in tail.iter_mut().enumerate() {
        *code = match last {
            Some(byte) if i < PER => signed(byte >> (i * BITS) & mask),
            _ => 0,
        };
    }
}
