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
    /// int4, the products scaled per row.
    Int4,
    /// int4 or int8 with scales along the row.
    Blocks(Blocks),
}

/// Integers with a scale for each block of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// 4 or 8.
    bits: u32,
    /// Two to this power is the length of a block; `None` where a row has one scale.
    log: Option<u32>,
    /// Whether the product of integer and scale is rounded to fp16 before anything is multiplied with it.
    rounded: bool,
}

impl Blocks {
    /// 4 or 8.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Whether products of integer and scale are rounded.
    pub fn is_rounded(self) -> bool {
        self.rounded
    }

    /// For rows of `cols` columns with a scale for every `block` of them. `None` where no kernel unpacks such blocks: they are to be the
    /// whole row, or a power of two, at least 8 int4 or 32 int8.
    pub fn new(bits: u32, block: usize, cols: usize, rounded: bool) -> Option<Self> {
        let least = match bits {
            4 => WORD_STEPS,
            8 => 2 * LANES,
            _ => return None,
        };
        let log = match block {
            _ if block == cols => None,
            _ if block >= least && block.is_power_of_two() => Some(block.ilog2()),
            _ => return None,
        };
        Some(Self { bits, log, rounded })
    }

    /// Scales of a row of `cols` columns.
    fn scales(self, cols: usize) -> usize {
        self.log.map_or(1, |log| cols >> log)
    }

    /// Whether two steps of an int8 block have another scale than the other two.
    pub fn is_short(self) -> bool {
        self.log == Some(5)
    }
}

/// Columns in a word of int4.
const WORD_STEPS: usize = 8;

/// Steps of a block of a coding whose values are in order.
const PLAIN_STEPS: usize = 4;

impl RowCoding {
    /// Bits of a column.
    pub fn bits(self) -> usize {
        match self {
            RowCoding::Palette(bits) => bits as usize,
            RowCoding::Half => 16,
            RowCoding::Int8 => 8,
            RowCoding::Int4 => 4,
            RowCoding::Blocks(blocks) => blocks.bits as usize,
        }
    }

    /// f32 parameters of a row of `cols` columns, or of the rows that share them: the entries of a LUT, scales.
    pub fn parameters(self, cols: usize) -> usize {
        match self {
            RowCoding::Palette(bits) => 1 << bits,
            RowCoding::Half => 0,
            RowCoding::Int8 | RowCoding::Int4 => 1,
            RowCoding::Blocks(blocks) => blocks.scales(cols),
        }
    }

    /// f32 that must lie behind the parameters of the last row, whatever they are.
    pub fn behind(self) -> usize {
        match self {
            RowCoding::Blocks(_) => LANES,
            _ => 0,
        }
    }

    /// What a user calls it.
    pub fn name(self) -> String {
        match self {
            RowCoding::Palette(bits) => format!("palette{bits}"),
            RowCoding::Half => "fp16".to_owned(),
            RowCoding::Int8 => "int8".to_owned(),
            RowCoding::Int4 => "int4".to_owned(),
            RowCoding::Blocks(Blocks { bits, log, .. }) => match log {
                None => format!("int{bits}"),
                Some(log) => format!("int{bits} blocks of {}", 1usize << log),
            },
        }
    }

    /// Whether columns of a block are in words, see [`RowCoding::column`].
    fn in_words(self) -> bool {
        match self {
            RowCoding::Palette(bits) => bits < 8,
            RowCoding::Int4 => true,
            RowCoding::Blocks(blocks) => blocks.bits == 4,
            RowCoding::Half | RowCoding::Int8 => false,
        }
    }

    /// Vectors of 16 values that a block decodes to.
    pub fn steps(self) -> usize {
        match self {
            RowCoding::Palette(1) => 32,
            RowCoding::Palette(2) => 16,
            RowCoding::Palette(3 | 4) | RowCoding::Int4 => 8,
            RowCoding::Blocks(Blocks { bits: 4, .. }) => 8,
            RowCoding::Palette(6) => 4,
            _ => PLAIN_STEPS,
        }
    }

    /// Which column of a block is at place `at` of what it decodes to: a block of words gives the first code of all 16
    /// words, then the second of all.
    pub fn column(self, at: usize) -> usize {
        match self.in_words() {
            true => at % LANES * self.steps() + at / LANES,
            false => at,
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
    /// Whether a row's parameters are few enough for rows with different ones to lie side by side.
    const SMALL: bool = true;
    /// Steps of a block that a scale of [`Codec::scale`] is for; 0 where values need none.
    const SCALED: usize = 0;
    /// Whether a value is scaled and rounded to fp16 by itself. Otherwise the products of those steps are added up and
    /// then scaled.
    const ROUNDED: bool = false;
    /// Most rows side by side: as many as leave registers for the LUT.
    const ROWS: usize = 8;
    /// What is read of a block.
    type Block: Copy;

    /// For the parameters of a row, which must stay while the codec is used.
    unsafe fn new(coding: RowCoding, parameters: &[f32]) -> Self;
    /// Reads a block: [`Codec::BYTES`] bytes, which must stay while the block is used.
    unsafe fn block(self, from: *const u8) -> Self::Block;
    /// The next 16 values of what was read, [`Codec::STEPS`] by [`Codec::READS`] times.
    unsafe fn next(self, block: &mut Self::Block) -> V::Floats;
    /// What the values of [`Codec::SCALED`] steps, the `part`-th of block `block`, are multiplied with, by lanes.
    unsafe fn scale(self, _block: usize, _part: usize) -> V::Floats {
        unsafe { V::zero() }
    }
}

/// Indices of 1, 2 or 4 bits in words of 4 bytes, or of 3 bits in words of 3 bytes.
#[derive(Clone, Copy)]
pub(super) struct Codes16<V: Lanes, const BITS: u32>(V::Table16);

// SAFETY of the methods of all codecs: the caller has the instructions of `V` and gives blocks of `BYTES` bytes.
impl<V: Lanes, const BITS: u32> Codec<V> for Codes16<V, BITS> {
    const STEPS: usize = if BITS == 3 { 8 } else { 32 / BITS as usize };
    const BYTES: usize = if BITS == 3 { 48 } else { 64 };
    const READS: usize = if BITS == 3 { 1 } else { 4 };
    type Block = V::Words;

    #[inline(always)]
    unsafe fn new(_: RowCoding, lut: &[f32]) -> Self {
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
    const SMALL: bool = false;
    type Block = V::Words;

    #[inline(always)]
    unsafe fn new(_: RowCoding, lut: &[f32]) -> Self {
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
    const ROWS: usize = 4;
    const SMALL: bool = false;
    type Block = V::Found;

    #[inline(always)]
    unsafe fn new(_: RowCoding, lut: &[f32]) -> Self {
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
    type Block = *const u8;

    #[inline(always)]
    unsafe fn new(_: RowCoding, _: &[f32]) -> Self {
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
    type Block = *const u8;

    #[inline(always)]
    unsafe fn new(_: RowCoding, _: &[f32]) -> Self {
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

/// int4 values in words of 4 bytes.
#[derive(Clone, Copy)]
pub(super) struct Int4;

impl<V: Lanes> Codec<V> for Int4 {
    const STEPS: usize = WORD_STEPS;
    const BYTES: usize = 64;
    const READS: usize = 4;
    type Block = V::Words;

    #[inline(always)]
    unsafe fn new(_: RowCoding, _: &[f32]) -> Self {
        Self
    }

    #[inline(always)]
    unsafe fn block(self, from: *const u8) -> V::Words {
        unsafe { V::words32(from) }
    }

    #[inline(always)]
    unsafe fn next(self, block: &mut V::Words) -> V::Floats {
        unsafe {
            let values = V::int4(*block);
            *block = V::shift_right(*block, 4);
            values
        }
    }
}

/// Scales of blocks of a row, behind which others may be read.
#[derive(Clone, Copy)]
struct Scales {
    first: *const f32,
    /// As [`Blocks::log`]; of a row with one scale it is a shift to 0.
    log: u32,
}

impl Scales {
    #[inline(always)]
    fn new(coding: RowCoding, parameters: &[f32]) -> Self {
        let log = match coding {
            RowCoding::Blocks(blocks) => blocks.log,
            _ => None,
        };
        Self {
            first: parameters.as_ptr(),
            log: log.unwrap_or(usize::BITS - 1),
        }
    }

    /// The scale of a column.
    #[inline(always)]
    fn of(self, column: usize) -> *const f32 {
        self.first.wrapping_add(column >> self.log)
    }
}

/// int4 values in words of 4 bytes, each of which has one scale.
#[derive(Clone, Copy)]
pub(super) struct Int4Blocks<const ROUNDED: bool>(Scales);

impl<V: Lanes, const ROUNDED: bool> Codec<V> for Int4Blocks<ROUNDED> {
    const STEPS: usize = WORD_STEPS;
    const BYTES: usize = 64;
    const READS: usize = 4;
    const SCALED: usize = WORD_STEPS;
    const ROUNDED: bool = ROUNDED;
    type Block = V::Words;

    #[inline(always)]
    unsafe fn new(coding: RowCoding, parameters: &[f32]) -> Self {
        Self(Scales::new(coding, parameters))
    }

    #[inline(always)]
    unsafe fn block(self, from: *const u8) -> V::Words {
        unsafe { V::words32(from) }
    }

    #[inline(always)]
    unsafe fn next(self, block: &mut V::Words) -> V::Floats {
        unsafe { Codec::<V>::next(Int4, block) }
    }

    #[inline(always)]
    unsafe fn scale(self, block: usize, _: usize) -> V::Floats {
        // Word `i` has columns `8i` and up.
        let first = self.0.of(block * WORD_STEPS * LANES);
        unsafe { V::spread(first, self.0.log - WORD_STEPS.ilog2()) }
    }
}

/// int8 values, so many steps of which have one scale.
#[derive(Clone, Copy)]
pub(super) struct Int8Blocks<const SCALED: usize, const ROUNDED: bool>(Scales);

impl<V: Lanes, const SCALED: usize, const ROUNDED: bool> Codec<V> for Int8Blocks<SCALED, ROUNDED> {
    const STEPS: usize = PLAIN_STEPS;
    const BYTES: usize = PLAIN_STEPS * LANES;
    const SCALED: usize = SCALED;
    const ROUNDED: bool = ROUNDED;
    type Block = *const u8;

    #[inline(always)]
    unsafe fn new(coding: RowCoding, parameters: &[f32]) -> Self {
        Self(Scales::new(coding, parameters))
    }

    #[inline(always)]
    unsafe fn block(self, from: *const u8) -> *const u8 {
        from
    }

    #[inline(always)]
    unsafe fn next(self, block: &mut *const u8) -> V::Floats {
        unsafe { Codec::<V>::next(Int8, block) }
    }

    #[inline(always)]
    unsafe fn scale(self, block: usize, part: usize) -> V::Floats {
        let at = self.0.of((block * PLAIN_STEPS + part * SCALED) * LANES);
        unsafe { V::splat(*at) }
    }
}
