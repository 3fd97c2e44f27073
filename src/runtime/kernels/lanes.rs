//! Sixteen lanes at a time: what a kernel needs of an instruction set, and the portable form of it.
//!
//! A kernel is written once over [`Lanes`] and compiled for each instruction set by a function with that target feature,
//! into which everything here is inlined. So the order of every sum is the same in all of them; they differ only in that
//! the portable form rounds a product before it is added.

use half::f16;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Sums the partial sums pairwise: each to the one half of them on, until one is left.
#[inline(always)]
pub(crate) fn reduce(lanes: [f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Operations on 16 f32 or 16 words of 32 bits.
///
/// # Safety
/// Every method needs the instructions of its implementation to be there, and pointers to as much memory as it says.
pub(crate) trait Lanes: Copy {
    /// 16 f32.
    type Floats: Copy;
    /// 16 u32.
    type Words: Copy;
    /// A table of 16 f32.
    type Table16: Copy;
    /// A table of 64 f32.
    type Table64: Copy;
    /// A table of 256 f32.
    type Table256: Copy;
    /// 64 bytes that are being looked up.
    type Found: Copy;

    /// Rows of palette indices that are multiplied side by side.
    const ROWS: usize;

    /// Zeros.
    unsafe fn zero() -> Self::Floats;
    /// 16 f32 from memory.
    unsafe fn load(from: *const f32) -> Self::Floats;
    /// 16 f32 to memory.
    unsafe fn store(values: Self::Floats, to: *mut f32);
    /// The same number 16 times.
    unsafe fn splat(value: f32) -> Self::Floats;
    /// Lane `i` is number `i >> by` of the 16 f32 in memory; `by` is below 64.
    unsafe fn spread(from: *const f32, by: u32) -> Self::Floats;
    /// `a * b`, rounded to fp16.
    unsafe fn multiply_half(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b`.
    unsafe fn multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`.
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The sum of the lanes, pairwise, as [`reduce`] adds them.
    unsafe fn total(values: Self::Floats) -> f32;
    /// 16 little-endian words of 4 bytes: 64 bytes.
    unsafe fn words32(from: *const u8) -> Self::Words;
    /// 16 little-endian words of 3 bytes: 48 bytes. The high byte of each word is unspecified.
    unsafe fn words24(from: *const u8) -> Self::Words;
    /// Every word shifted right by `by` bits.
    unsafe fn shift_right(words: Self::Words, by: u32) -> Self::Words;
    /// A table from 16 f32.
    unsafe fn table16(from: *const f32) -> Self::Table16;
    /// Looks up the low 4 bits of every word.
    unsafe fn look_up16(table: Self::Table16, words: Self::Words) -> Self::Floats;
    /// A table from 64 f32.
    unsafe fn table64(from: *const f32) -> Self::Table64;
    /// Looks up the low 6 bits of every word.
    unsafe fn look_up64(table: Self::Table64, words: Self::Words) -> Self::Floats;
    /// A table from 256 f32, which must stay.
    unsafe fn table256(from: *const f32) -> Self::Table256;
    /// Begins to look up 64 bytes, which must stay.
    unsafe fn look_up256(table: Self::Table256, from: *const u8) -> Self::Found;
    /// What the next 16 of the bytes stand for.
    unsafe fn found(table: Self::Table256, found: &mut Self::Found) -> Self::Floats;
    /// 16 fp16: 32 bytes.
    unsafe fn halves(from: *const u8) -> Self::Floats;
    /// 16 int8: 16 bytes.
    unsafe fn int8(from: *const u8) -> Self::Floats;
    /// The low 4 bits of every word as a two's complement number.
    unsafe fn int4(words: Self::Words) -> Self::Floats;
    /// Asks for the cache line at an address, which need not be valid.
    unsafe fn prefetch(at: *const u8);
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// `N` bytes from memory.
///
/// # Safety
/// `from` must point to `N` readable bytes.
#[inline(always)]
unsafe fn bytes<const N: usize>(from: *const u8) -> [u8; N] {
    // SAFETY: an array of bytes has no alignment; the caller vouches for the memory.
    unsafe { from.cast::<[u8; N]>().read() }
}

/// Entries of a table of 256 for the next 16 bytes.
///
/// # Safety
/// `table` must point to 256 f32, `from` to 16 bytes.
#[inline(always)]
pub(super) unsafe fn entries(table: *const f32, from: &mut *const u8) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    // SAFETY: the caller vouches for the memory; a byte is less than 256.
    unsafe {
        let codes = bytes::<LANES>(*from);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = *table.add(usize::from(code));
        }
    }
    *from = from.wrapping_add(LANES);
    values
}

// SAFETY of all methods: pure Rust, except for the reads and writes that the caller vouches for.
impl Lanes for Portable {
    type Floats = [f32; LANES];
    type Words = [u32; LANES];
    type Table16 = [f32; 16];
    type Table64 = [f32; 64];
    type Table256 = *const f32;
    type Found = *const u8;

    const ROWS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> Self::Floats {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Floats {
        unsafe { from.cast::<[f32; LANES]>().read() }
    }

    #[inline(always)]
    unsafe fn store(values: Self::Floats, to: *mut f32) {
        unsafe { to.cast::<[f32; LANES]>().write(values) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn spread(from: *const f32, by: u32) -> Self::Floats {
        let values = unsafe { Self::load(from) };
        std::array::from_fn(|i| values[i >> by])
    }

    #[inline(always)]
    unsafe fn multiply_half(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| f16::from_f32(a[i] * b[i]).to_f32())
    }

    #[inline(always)]
    unsafe fn multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn total(values: Self::Floats) -> f32 {
        reduce(values)
    }

    #[inline(always)]
    unsafe fn words32(from: *const u8) -> Self::Words {
        let bytes = unsafe { bytes::<64>(from) };
        std::array::from_fn(|i| {
            u32::from_le_bytes([
                bytes[4 * i],
                bytes[4 * i + 1],
                bytes[4 * i + 2],
                bytes[4 * i + 3],
            ])
        })
    }

    #[inline(always)]
    unsafe fn words24(from: *const u8) -> Self::Words {
        let bytes = unsafe { bytes::<48>(from) };
        std::array::from_fn(|i| {
            u32::from_le_bytes([bytes[3 * i], bytes[3 * i + 1], bytes[3 * i + 2], 0])
        })
    }

    #[inline(always)]
    unsafe fn shift_right(words: Self::Words, by: u32) -> Self::Words {
        words.map(|w| w >> by)
    }

    #[inline(always)]
    unsafe fn table16(from: *const f32) -> Self::Table16 {
        unsafe { from.cast::<[f32; 16]>().read() }
    }

    #[inline(always)]
    unsafe fn look_up16(table: Self::Table16, words: Self::Words) -> Self::Floats {
        words.map(|w| table[(w & 15) as usize])
    }

    #[inline(always)]
    unsafe fn table64(from: *const f32) -> Self::Table64 {
        unsafe { from.cast::<[f32; 64]>().read() }
    }

    #[inline(always)]
    unsafe fn look_up64(table: Self::Table64, words: Self::Words) -> Self::Floats {
        words.map(|w| table[(w & 63) as usize])
    }

    #[inline(always)]
    unsafe fn table256(from: *const f32) -> *const f32 {
        from
    }

    #[inline(always)]
    unsafe fn look_up256(_: *const f32, from: *const u8) -> *const u8 {
        from
    }

    #[inline(always)]
    unsafe fn found(table: *const f32, found: &mut *const u8) -> Self::Floats {
        unsafe { entries(table, found) }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> Self::Floats {
        let bytes = unsafe { bytes::<32>(from) };
        std::array::from_fn(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    unsafe fn int8(from: *const u8) -> Self::Floats {
        let bytes = unsafe { bytes::<LANES>(from) };
        bytes.map(|b| f32::from(b as i8))
    }

    #[inline(always)]
    unsafe fn int4(words: Self::Words) -> Self::Floats {
        words.map(|w| (((w << 28) as i32) >> 28) as f32)
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
