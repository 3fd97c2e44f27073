//! [`Lanes`] in AVX-512 and in AVX2 with FMA and F16C.

use super::lanes::{Lanes, entries};
use std::arch::x86_64::*;

/// AVX-512 F, BW and VBMI, with FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// AVX2 with FMA and F16C: a vector is two registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// For each word of three bytes its place in 16 bytes; the fourth byte is zero.
const SPREAD: [i8; 16] = [0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1];

/// What 4 bits are in two's complement.
const INT4: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0,
];

/// A table of 256 fp16 as their low and their high bytes.
#[derive(Clone, Copy)]
pub(crate) struct Planes {
    low: [__m512i; 4],
    high: [__m512i; 4],
    /// Whether every entry is an fp16 value; otherwise it is looked up in `lut`.
    exact: bool,
    lut: *const f32,
}

/// 64 looked up fp16, the next first; or where their codes are.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    halves: [__m512i; 2],
    from: *const u8,
}

/// 32 f32 as fp16, and whether they are the same.
///
/// # Safety
/// Needs AVX-512 F, and 32 f32 at `from`.
#[inline(always)]
unsafe fn halves_of(from: *const f32) -> (__m512i, bool) {
    // SAFETY: the caller's.
    unsafe {
        let (a, b) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
        let (half_a, half_b) = (_mm512_cvtps_ph::<0>(a), _mm512_cvtps_ph::<0>(b));
        let (back_a, back_b) = (_mm512_cvtph_ps(half_a), _mm512_cvtph_ps(half_b));
        let same_a = _mm512_cmpeq_epi32_mask(_mm512_castps_si512(a), _mm512_castps_si512(back_a));
        let same_b = _mm512_cmpeq_epi32_mask(_mm512_castps_si512(b), _mm512_castps_si512(back_b));
        let halves = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half_a), half_b);
        (halves, (same_a & same_b) == u16::MAX)
    }
}

/// Indices of the low (0) or high (1) bytes of 64 words of two registers.
///
/// # Safety
/// Needs AVX-512 F.
#[inline(always)]
unsafe fn bytes_of(which: u8) -> __m512i {
    let mut indices = [0u8; 64];
    for (i, index) in indices.iter_mut().enumerate() {
        *index = 2 * i as u8 + which;
    }
    // SAFETY: 64 bytes; the caller has the instruction.
    unsafe { _mm512_loadu_si512(indices.as_ptr().cast()) }
}

/// Looks up 64 bytes in 256.
///
/// # Safety
/// Needs AVX-512 BW and VBMI.
#[inline(always)]
unsafe fn look_up_bytes(table: [__m512i; 4], codes: __m512i) -> __m512i {
    // SAFETY: the caller has the instructions. A permutation of two registers looks at the low 7 bits of an index.
    unsafe {
        let low = _mm512_permutex2var_epi8(table[0], codes, table[1]);
        let high = _mm512_permutex2var_epi8(table[2], codes, table[3]);
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high)
    }
}

// SAFETY of all methods: the caller has AVX-512 F, BW and VBMI and F16C, and vouches for the memory behind pointers; every load
// and store used is of the kind that needs no alignment.
impl Lanes for Avx512 {
    type Floats = __m512;
    type Words = __m512i;
    type Table16 = __m512;
    type Table64 = [__m512; 4];
    type Table256 = Planes;
    type Found = Found;

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
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn spread(from: *const f32, by: u32) -> __m512 {
        unsafe {
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let numbers = _mm512_srlv_epi32(lanes, _mm512_set1_epi32(by as i32));
            _mm512_permutexvar_ps(numbers, _mm512_loadu_ps(from))
        }
    }

    #[inline(always)]
    unsafe fn multiply_half(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm512_cvtps_ph::<0>(_mm512_mul_ps(a, b))) }
    }

    #[inline(always)]
    unsafe fn multiply(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn total(values: __m512) -> f32 {
        unsafe {
            let low = _mm512_castps512_ps256(values);
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(values)));
            total([low, high])
        }
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
    unsafe fn table256(from: *const f32) -> Planes {
        unsafe {
            let mut low = [_mm512_setzero_si512(); 4];
            let mut high = low;
            let mut exact = true;
            let mut i = 0;
            while i < 4 {
                let (a, exact_a) = halves_of(from.add(64 * i));
                let (b, exact_b) = halves_of(from.add(64 * i + 32));
                exact &= exact_a && exact_b;
                low[i] = _mm512_permutex2var_epi8(a, bytes_of(0), b);
                high[i] = _mm512_permutex2var_epi8(a, bytes_of(1), b);
                i += 1;
            }
            Planes {
                low,
                high,
                exact,
                lut: from,
            }
        }
    }

    #[inline(always)]
    unsafe fn look_up256(table: Planes, from: *const u8) -> Found {
        unsafe {
            if !table.exact {
                let none = _mm512_setzero_si512();
                return Found {
                    halves: [none; 2],
                    from,
                };
            }
            let spread = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
            let codes = _mm512_permutexvar_epi64(spread, _mm512_loadu_si512(from.cast()));
            let low = look_up_bytes(table.low, codes);
            let high = look_up_bytes(table.high, codes);
            // The codes were spread so that interleaving within each quarter gives them in order.
            let halves = [
                _mm512_unpacklo_epi8(low, high),
                _mm512_unpackhi_epi8(low, high),
            ];
            Found { halves, from }
        }
    }

    #[inline(always)]
    unsafe fn found(table: Planes, found: &mut Found) -> __m512 {
        unsafe {
            if !table.exact {
                let values = entries(table.lut, &mut found.from);
                return _mm512_loadu_ps(values.as_ptr());
            }
            let [a, b] = found.halves;
            found.halves = [
                _mm512_alignr_epi64::<4>(b, a),
                _mm512_alignr_epi64::<4>(b, b),
            ];
            _mm512_cvtph_ps(_mm512_castsi512_si256(a))
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
    unsafe fn int4(words: __m512i) -> __m512 {
        unsafe { Self::look_up16(Self::table16(INT4.as_ptr()), words) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}

/// The lanes of two registers added: each to the one half of them on, until one is left.
///
/// # Safety
/// Needs AVX.
#[inline(always)]
unsafe fn total(values: [__m256; 2]) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        let eight = _mm256_add_ps(values[0], values[1]);
        let (low, high) = (
            _mm256_castps256_ps128(eight),
            _mm256_extractf128_ps::<1>(eight),
        );
        let four = _mm_add_ps(low, high);
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
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
    type Table256 = *const f32;
    type Found = *const u8;

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
    unsafe fn splat(value: f32) -> Self::Floats {
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn spread(from: *const f32, by: u32) -> Self::Floats {
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let numbers = _mm256_srlv_epi32(lanes, _mm256_set1_epi32(by as i32));
            let low = _mm256_loadu_ps(from);
            let high = _mm256_loadu_ps(from.add(8 >> by));
            [
                _mm256_permutevar8x32_ps(low, numbers),
                _mm256_permutevar8x32_ps(high, numbers),
            ]
        }
    }

    #[inline(always)]
    unsafe fn multiply_half(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        unsafe {
            [
                _mm256_cvtph_ps(_mm256_cvtps_ph::<0>(_mm256_mul_ps(a[0], b[0]))),
                _mm256_cvtph_ps(_mm256_cvtps_ph::<0>(_mm256_mul_ps(a[1], b[1]))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
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
    unsafe fn total(values: Self::Floats) -> f32 {
        unsafe { total(values) }
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
    unsafe fn table256(from: *const f32) -> *const f32 {
        from
    }

    #[inline(always)]
    unsafe fn look_up256(_: *const f32, from: *const u8) -> *const u8 {
        from
    }

    #[inline(always)]
    unsafe fn found(table: *const f32, found: &mut *const u8) -> Self::Floats {
        // Loads one by one are faster than gathers where those are microcode.
        unsafe { Self::load(entries(table, found).as_ptr()) }
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
    unsafe fn int4(words: Self::Words) -> Self::Floats {
        // The conversion is cheaper than the two permutations of a table.
        unsafe {
            let low = _mm256_srai_epi32::<28>(_mm256_slli_epi32::<28>(words[0]));
            let high = _mm256_srai_epi32::<28>(_mm256_slli_epi32::<28>(words[1]));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
