//! How the values of a row are decoded 16 at a time.

use super::lanes::{LANES, Lanes};

/// Codings of rows that are multiplied as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowCoding {
    /// Indices of 1, 2, 3, 4, 6 or 8 bits into one LUT per row.
    Palette(u32),
    /// fp16.
    Half,
    /// int8, the products scaled per row.
    Int8,
}

/// Steps of a block of a coding whose values are in order.
const PLAIN_STEPS: usize = 4;

impl RowCoding {
    /// Bits of a column.
    pub fn bits(self) -> usize {
        match self {
            RowCoding::Palette(bits) => bits as usize,
            RowCoding::Half => 16,
            RowCoding::Int8 => 8,
        }
    }

    /// Vectors of 16 values that a block decodes to.
    pub fn steps(self) -> usize {
        match self {
            RowCoding::Palette(1) => 32,
            RowCoding::Palette(2) => 16,
            RowCoding::Palette(3 | 4) => 8,
            RowCoding::Palette(6) => 4,
            _ => PLAIN_STEPS,
        }
    }

    /// Which column of a block is at place `at` of what it decodes to: a block of words gives the first code of all 16
    /// words, then the second of all.
    pub fn column(self, at: usize) -> usize {
        match self {
            RowCoding::Palette(bits) if bits < 8 => at % LANES * self.steps() + at / LANES,
            _ => at,
        }
    }
}

/// A coding over an instruction set.
pub(super) trait Codec<V: Lanes>: Copy {
    /// Vectors of 16 values per block.
    const STEPS: usize;
    /// Bytes per block.
    const BYTES: usize;
    /// Reads of a block, each a byte behind the one before it and for as many of the steps: one for every byte of a word,
    /// in place of shifts.
    const READS: usize = 1;
    /// Entries of a LUT.
    const ENTRIES: usize;
    /// Most rows side by side: as many as leave registers for the LUT.
    const ROWS: usize = 8;
    /// What is read of a block.
    type Block: Copy;

    /// For a LUT of [`Codec::ENTRIES`] entries, which must stay while the codec is used.
    unsafe fn new(lut: &[f32]) -> Self;
    /// Reads a block: [`Codec::BYTES`] bytes, which must stay while the block is used.
    unsafe fn block(self, from: *const u8) -> Self::Block;
    /// The next 16 values of what was read, [`Codec::STEPS`] by [`Codec::READS`] times.
    unsafe fn next(self, block: &mut Self::Block) -> V::Floats;
}

/// Indices of 1, 2 or 4 bits in words of 4 bytes, or of 3 bits in words of 3 bytes.
#[derive(Clone, Copy)]
pub(super) struct Codes16<V: Lanes, const BITS: u32>(V::Table16);

// SAFETY of the methods of all codecs: the caller has the instructions of `V` and gives blocks of `BYTES` bytes.
impl<V: Lanes, const BITS: u32> Codec<V> for Codes16<V, BITS> {
    const STEPS: usize = if BITS == 3 { 8 } else { 32 / BITS as usize };
    const BYTES: usize = if BITS == 3 { 48 } else { 64 };
    const READS: usize = if BITS == 3 { 1 } else { 4 };
    const ENTRIES: usize = 1 << BITS;
    type Block = V::Words;

    #[inline(always)]
    unsafe fn new(lut: &[f32]) -> Self {
        // Bits of the next code do not matter when the table repeats.
        let mut table = [0.0; 16];
        for (i, entry) in table.iter_mut().enumerate() {
            *entry = lut[i & ((1 << BITS) - 1)];
        }
        Self(unsafe { V::table16(table.as_ptr()) })
    }

    #[inline(always)]
    unsafe fn block(self, from: *const u8) -> V::Words {
        unsafe {
            match BITS {
                3 => V::words24(from),
                _ => V::words32(from),
            }
        }
    }

    #[inline(always)]
    unsafe fn next(self, block: &mut V::Words) -> V::Floats {
        unsafe {
            let values = V::look_up16(self.0, *block);
            *block = V::shift_right(*block, BITS);
            values
        }
    }
}

/// Indices of 6 bits in words of 3 bytes.
#[derive(Clone, Copy)]
pub(super) struct Codes64<V: Lanes>(V::Table64);

impl<V: Lanes> Codec<V> for Codes64<V> {
    const STEPS: usize = 4;
    const BYTES: usize = 48;
    const ENTRIES: usize = 64;
    type Block = V::Words;

    #[inline(always)]
    unsafe fn new(lut: &[f32]) -> Self {
        Self(unsafe { V::table64(lut[..64].as_ptr()) })
    }

    #[inline(always)]
    unsafe fn block(self, from: *const u8) -> V::Words {
        unsafe { V::words24(from) }
    }

    #[inline(always)]
    unsafe fn next(self, block: &mut V::Words) -> V::Floats {
        unsafe {
            let values = V::look_up64(self.0, *block);
            *block = V::shift_right(*block, 6);
            values
        }
    }
}

/// Indices of 8 bits.
#[derive(Clone, Copy)]
pub(super) struct Codes256<V: Lanes>(V::Table256);

impl<V: Lanes> Codec<V> for Codes256<V> {
    const STEPS: usize = PLAIN_STEPS;
    const BYTES: usize = PLAIN_STEPS * LANES;
    const ENTRIES: usize = 256;
    const ROWS: usize = 4;
    type Block = V::Found;

    #[inline(always)]
    unsafe fn new(lut: &[f32]) -> Self {
        Self(unsafe { V::table256(lut[..256].as_ptr()) })
    }

    #[inline(always)]
    unsafe fn block(self, from: *const u8) -> V::Found {
        unsafe { V::look_up256(self.0, from) }
    }

    #[inline(always)]
    unsafe fn next(self, block: &mut V::Found) -> V::Floats {
        unsafe { V::found(self.0, block) }
    }
}

/// fp16 values.
#[derive(Clone, Copy)]
pub(super) struct Halves;

impl<V: Lanes> Codec<V> for Halves {
    const STEPS: usize = PLAIN_STEPS;
    const BYTES: usize = PLAIN_STEPS * LANES * 2;
    const ENTRIES: usize = 0;
    type Block = *const u8;

    #[inline(always)]
    unsafe fn new(_: &[f32]) -> Self {
        Self
    }

    #[inline(always)]
    unsafe fn block(self, from: *const u8) -> *const u8 {
        from
    }

    #[inline(always)]
    unsafe fn next(self, block: &mut *const u8) -> V::Floats {
        unsafe {
            let values = V::halves(*block);
            *block = block.wrapping_add(LANES * 2);
            values
        }
    }
}

/// int8 values.
#[derive(Clone, Copy)]
pub(super) struct Int8;

impl<V: Lanes> Codec<V> for Int8 {
    const STEPS: usize = PLAIN_STEPS;
    const BYTES: usize = PLAIN_STEPS * LANES;
    const ENTRIES: usize = 0;
    type Block = *const u8;

    #[inline(always)]
    unsafe fn new(_: &[f32]) -> Self {
        Self
    }

    #[inline(always)]
    unsafe fn block(self, from: *const u8) -> *const u8 {
        from
    }

    #[inline(always)]
    unsafe fn next(self, block: &mut *const u8) -> V::Floats {
        unsafe {
            let values = V::int8(*block);
            *block = block.wrapping_add(LANES);
            values
        }
    }
}
