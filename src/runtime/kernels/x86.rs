//! [`Lanes`] in AVX-512 and in AVX2 with FMA and F16C.

use super::lanes::Lanes;
use std::arch::x86_64::*;

/// AVX-512 F and BW, with FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// AVX2 with FMA and F16C: a vector is two registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// For each word of three bytes its place in 16 bytes; the fourth byte is zero.
const SPREAD: [i8; 16] = [0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1];

// SAFETY of all methods: the caller has AVX-512 F and BW and F16C, and vouches for the memory behind pointers; every load
// and store used is of the kind that needs no alignment.
impl Lanes for Avx512 {
    type Floats = __m512;
    type Words = __m512i;
    type Table16 = __m512;
    type Table64 = [__m512; 4];

    const ROWS: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(values: __m512, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, values) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn words32(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn words24(from: *const u8) -> __m512i {
        unsafe {
            let bytes = _mm512_maskz_loadu_epi8((1 << 48) - 1, from.cast());
            let thirds = _mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
            let spread = _mm512_broadcast_i32x4(_mm_loadu_si128(SPREAD.as_ptr().cast()));
            _mm512_shuffle_epi8(_mm512_permutexvar_epi32(thirds, bytes), spread)
        }
    }

    #[inline(always)]
    unsafe fn shift_right(words: __m512i, by: u32) -> __m512i {
        unsafe { _mm512_srlv_epi32(words, _mm512_set1_epi32(by as i32)) }
    }

    #[inline(always)]
    unsafe fn table16(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn look_up16(table: __m512, words: __m512i) -> __m512 {
        // The permutation looks at the low 4 bits of an index only.
        unsafe { _mm512_permutexvar_ps(words, table) }
    }

    #[inline(always)]
    unsafe fn table64(from: *const f32) -> [__m512; 4] {
        unsafe {
            [
                _mm512_loadu_ps(from),
                _mm512_loadu_ps(from.add(16)),
                _mm512_loadu_ps(from.add(32)),
                _mm512_loadu_ps(from.add(48)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn look_up64(table: [__m512; 4], words: __m512i) -> __m512 {
        // The permutation of two registers looks at the low 5 bits of an index.
        unsafe {
            let low = _mm512_permutex2var_ps(table[0], words, table[1]);
            let high = _mm512_permutex2var_ps(table[2], words, table[3]);
            let is_high = _mm512_test_epi32_mask(words, _mm512_set1_epi32(32));
            _mm512_mask_blend_ps(is_high, low, high)
        }
    }

    #[inline(always)]
    unsafe fn look_up256(table: *const f32, from: *const u8) -> __m512 {
        unsafe {
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            _mm512_i32gather_ps::<4>(codes, table)
        }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn int8(from: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}

/// Looks up the low 4 bits of 8 words.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn look_up16(table: [__m256; 2], words: __m256i) -> __m256 {
    // SAFETY: the caller has AVX2. The permutation looks at the low 3 bits of an index; bit 3 chooses the half.
    unsafe {
        let low = _mm256_permutevar8x32_ps(table[0], words);
        let high = _mm256_permutevar8x32_ps(table[1], words);
        let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(words));
        _mm256_blendv_ps(low, high, is_high)
    }
}

// SAFETY of all methods: the caller has AVX2, FMA and F16C, and vouches for the memory behind pointers; every load and
// store used is of the kind that needs no alignment.
impl Lanes for Avx2 {
    type Floats = [__m256; 2];
    type Words = [__m256i; 2];
    type Table16 = [__m256; 2];
    /// The address: gathered from.
    type Table64 = *const f32;

    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self::Floats {
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Floats {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(values: Self::Floats, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, values[0]);
            _mm256_storeu_ps(to.add(8), values[1]);
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn words32(from: *const u8) -> Self::Words {
        unsafe {
            [
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(32).cast()),
            ]
        }
    }

    #[inline(always)]
    unsafe fn words24(from: *const u8) -> Self::Words {
        unsafe {
            let spread = _mm_loadu_si128(SPREAD.as_ptr().cast());
            let first = _mm_loadu_si128(from.cast());
            let second = _mm_loadu_si128(from.add(12).cast());
            let third = _mm_loadu_si128(from.add(24).cast());
            // The last 12 bytes are read with the 4 before them, not with 4 behind the block.
            let last = _mm_srli_si128::<4>(_mm_loadu_si128(from.add(32).cast()));
            let spread = _mm256_set_m128i(spread, spread);
            [
                _mm256_shuffle_epi8(_mm256_set_m128i(second, first), spread),
                _mm256_shuffle_epi8(_mm256_set_m128i(last, third), spread),
            ]
        }
    }

    #[inline(always)]
    unsafe fn shift_right(words: Self::Words, by: u32) -> Self::Words {
        unsafe {
            let by = _mm256_set1_epi32(by as i32);
            [
                _mm256_srlv_epi32(words[0], by),
                _mm256_srlv_epi32(words[1], by),
            ]
        }
    }

    #[inline(always)]
    unsafe fn table16(from: *const f32) -> Self::Table16 {
        unsafe { Self::load(from) }
    }

    #[inline(always)]
    unsafe fn look_up16(table: Self::Table16, words: Self::Words) -> Self::Floats {
        unsafe { [look_up16(table, words[0]), look_up16(table, words[1])] }
    }

    #[inline(always)]
    unsafe fn table64(from: *const f32) -> *const f32 {
        from
    }

    #[inline(always)]
    unsafe fn look_up64(table: *const f32, words: Self::Words) -> Self::Floats {
        unsafe {
            let mask = _mm256_set1_epi32(63);
            [
                _mm256_i32gather_ps::<4>(table, _mm256_and_si256(words[0], mask)),
                _mm256_i32gather_ps::<4>(table, _mm256_and_si256(words[1], mask)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn look_up256(table: *const f32, from: *const u8) -> Self::Floats {
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast()));
            [
                _mm256_i32gather_ps::<4>(table, low),
                _mm256_i32gather_ps::<4>(table, high),
            ]
        }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> Self::Floats {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn int8(from: *const u8) -> Self::Floats {
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
