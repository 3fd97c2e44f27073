//! Rows of a weight times vectors, without unpacking the weight in memory.
//!
//! One vector: a few rows side by side are decoded in registers and multiplied. Several vectors: a tile of rows is decoded
//! once and multiplied with all of them. Either way the product of a row and a vector has 16 partial sums, each in order,
//! added pairwise at the end: it depends neither on the other rows and vectors nor on the number of threads.

use super::codec::{
    Codec, Codes16, Codes64, Codes256, Halves, Int4, Int4Blocks, Int8, Int8Blocks, RowCoding,
};
use super::kernel::{Kernel, Set};
use super::lanes::{LANES, Lanes, Portable};
use super::vectors::Vectors;
use super::wide::LINE;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use std::marker::PhantomData;

/// Bytes of decoded rows that are multiplied with all vectors before the next are decoded: half of a small L2.
const TILE_BYTES: usize = 1 << 18;

/// Most rows of a tile.
const TILE_ROWS: usize = 16;

/// The body for every `$r` below `$n`, at most 8: unrolled, so that arrays indexed by it stay in registers.
macro_rules! up_to_8 {
    ($r:ident < $n:expr => $body:block) => {
        up_to_8!(@ $r, $n, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $r:ident, $n:expr, $body:block, $($i:literal)*) => {
        $(if $i < $n {
            let $r = $i;
            $body
        })*
    };
}

/// Rows that a kernel multiplies as they are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodedRows<'a> {
    coding: RowCoding,
    bytes: &'a [u8],
    cols: usize,
    row_bytes: usize,
    /// LUTs of palettes; scales of integers.
    parameters: &'a [f32],
    /// Parameters of a row.
    each: usize,
    /// Rows that share parameters.
    group: usize,
}

impl<'a> CodedRows<'a> {
    /// `rows` rows of `cols` columns. `parameters` are the LUTs or scales, those of [`RowCoding::parameters`] for each `group` rows
    /// and [`RowCoding::behind`] more at the end.
    ///
    /// `None` if rows are not whole bytes, there are fewer bytes or parameters than the rows need, or a width is none that
    /// palettes have.
    pub fn new(
        coding: RowCoding,
        bytes: &'a [u8],
        (rows, cols): (usize, usize),
        (parameters, group): (&'a [f32], usize),
    ) -> Option<Self> {
        let bits = cols.checked_mul(coding.bits())?;
        let row_bytes = bits / 8;
        if matches!(coding, RowCoding::Palette(bits) if !matches!(bits, 1 | 2 | 3 | 4 | 6 | 8)) {
            return None;
        }
        let each = coding.parameters(cols);
        if group == 0 {
            return None;
        }
        let needed = rows.div_ceil(group).checked_mul(each)?;
        let fits = bits.is_multiple_of(8)
            && bytes.len() >= rows.checked_mul(row_bytes)?
            && parameters.len() >= needed.checked_add(coding.behind())?;
        fits.then(|| Self {
            coding,
            bytes: &bytes[..rows * row_bytes],
            cols,
            row_bytes,
            parameters,
            each,
            group,
        })
    }

    /// How rows are coded.
    pub fn coding(&self) -> RowCoding {
        self.coding
    }

    /// `out[r][v] = rows[first + r] · x[v]`; `out` is `[rows, vectors]`, `x` was made for this coding.
    pub fn multiply(&self, kernel: Kernel, first: usize, x: &Vectors, out: &mut [f32]) {
        if x.count == 0 || out.is_empty() {
            return;
        }
        let rows = out.len() / x.count;
        assert!(
            x.cols == self.cols
                && x.padded == self.cols.next_multiple_of(self.coding.steps() * LANES)
                && out.len() == rows * x.count
                && (first + rows) * self.row_bytes <= self.bytes.len(),
            "rows and vectors that fit"
        );
        // SAFETY: a `Kernel` of a set exists only where the CPU has it.
        match kernel.set() {
            Set::Portable => unsafe { self.run::<Portable>(first, x, out) },
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { coded_avx2(self, first, x, out) },
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { coded_avx512(self, first, x, out) },
        }
    }

    /// The codec of a row.
    ///
    /// # Safety
    /// Needs the instructions of `V`.
    #[inline(always)]
    unsafe fn codec<V: Lanes, C: Codec<V>>(&self, row: usize) -> C {
        let at = row / self.group * self.each;
        // SAFETY: the caller's. The codec is used while `self.parameters` is borrowed.
        unsafe { C::new(self.coding, &self.parameters[at..at + self.each]) }
    }

    /// # Safety
    /// Needs the instructions of `V`; rows and vectors must fit.
    #[inline(always)]
    unsafe fn run<V: Lanes>(&self, first: usize, x: &Vectors, out: &mut [f32]) {
        // SAFETY: the caller's.
        unsafe {
            match self.coding {
                RowCoding::Palette(1) => self.rows::<V, Codes16<V, 1>>(first, x, out),
                RowCoding::Palette(2) => self.rows::<V, Codes16<V, 2>>(first, x, out),
                RowCoding::Palette(3) => self.rows::<V, Codes16<V, 3>>(first, x, out),
                RowCoding::Palette(4) => self.rows::<V, Codes16<V, 4>>(first, x, out),
                RowCoding::Palette(6) => self.rows::<V, Codes64<V>>(first, x, out),
                RowCoding::Palette(_) => self.rows::<V, Codes256<V>>(first, x, out),
                RowCoding::Half => self.rows::<V, Halves>(first, x, out),
                RowCoding::Int8 => {
                    self.rows::<V, Int8>(first, x, out);
                    self.scale(first, x.count, out);
                }
                RowCoding::Int4 => {
                    self.rows::<V, Int4>(first, x, out);
                    self.scale(first, x.count, out);
                }
                RowCoding::Blocks(blocks) => {
                    match (blocks.bits(), blocks.is_short(), blocks.is_rounded()) {
                        (4, _, false) => self.rows::<V, Int4Blocks<false>>(first, x, out),
                        (4, _, true) => self.rows::<V, Int4Blocks<true>>(first, x, out),
                        (_, true, false) => self.rows::<V, Int8Blocks<2, false>>(first, x, out),
                        (_, true, true) => self.rows::<V, Int8Blocks<2, true>>(first, x, out),
                        (_, false, false) => self.rows::<V, Int8Blocks<4, false>>(first, x, out),
                        (_, false, true) => self.rows::<V, Int8Blocks<4, true>>(first, x, out),
                    }
                }
            }
        }
    }

    /// Products with integers times the scale of their row.
    fn scale(&self, first: usize, vectors: usize, out: &mut [f32]) {
        for (i, out) in out.chunks_exact_mut(vectors).enumerate() {
            let scale = self.parameters[(first + i) / self.group];
            out.iter_mut().for_each(|o| *o *= scale);
        }
    }

    /// The rows as `C` decodes them.
    ///
    /// # Safety
    /// As [`CodedRows::run`].
    #[inline(always)]
    unsafe fn rows<V: Lanes, C: Codec<V>>(&self, first: usize, x: &Vectors, out: &mut [f32]) {
        let bytes = self.row_bytes;
        if x.count > 1 {
            let mut source = CodedTile {
                rows: self,
                first,
                codec: PhantomData::<C>,
            };
            // SAFETY: the caller's.
            return unsafe { tiles::<V>(x, out, &mut source) };
        }
        let mut done = 0;
        while done < out.len() {
            let row = first + done;
            // Few rows that share parameters lie side by side with others.
            let mixed = C::SMALL && self.group < 8;
            let run = match mixed {
                true => out.len() - done,
                false => (self.group - row % self.group).min(out.len() - done),
            };
            // SAFETY: the caller's.
            let codec = unsafe { self.codec::<V, C>(row) };
            let (out, from) = (&mut out[done..done + run], &self.bytes[row * bytes..]);
            let x = x.values.as_ptr();
            let mut at = 0;
            macro_rules! side_by_side {
                ($rows:literal) => {
                    while run - at >= $rows {
                        let mut codecs = [codec; $rows];
                        if mixed {
                            up_to_8!(r < $rows => {
                                codecs[r] = self.codec::<V, C>(row + at + r);
                            });
                        }
                        let (from, out) = (&from[at * bytes..], &mut out[at..]);
                        products::<V, C, $rows>(codecs, from, bytes, x, out);
                        at += $rows;
                    }
                };
            }
            // SAFETY: `from` has `run` rows, `x` the columns of whole blocks.
            unsafe {
                if V::ROWS >= 8 && C::ROWS >= 8 {
                    side_by_side!(8);
                }
                if V::ROWS >= 8 && C::ROWS < 8 {
                    side_by_side!(4);
                }
                if V::ROWS >= 2 {
                    side_by_side!(2);
                }
                side_by_side!(1);
            }
            done += run;
        }
    }
}

/// Bytes of the largest block, 64 fp16, and what reads behind it take.
const LARGEST_BLOCK: usize = 128 + 3;

/// Least distance, in bytes, of what is asked of the memory ahead of its use: the time that the memory takes.
pub(crate) const AHEAD: usize = 24 << 10;

/// `R` rows of `row_bytes` bytes times one vector.
///
/// # Safety
/// Needs the instructions of `V`, `R` rows in `rows`, and in `x` as many values as their blocks have.
#[inline(always)]
unsafe fn products<V: Lanes, C: Codec<V>, const R: usize>(
    codecs: [C; R],
    rows: &[u8],
    row_bytes: usize,
    x: *const f32,
    out: &mut [f32],
) {
    assert!(rows.len() >= R * row_bytes);
    let blocks = whole_blocks::<V, C>(&rows[(R - 1) * row_bytes..], row_bytes);
    // SAFETY: all reads of block `b` of row `r` lie in `rows`; what is left of a row is copied to whole blocks.
    unsafe {
        let mut sums = [V::zero(); R];
        let ahead = (R * row_bytes).max(AHEAD);
        for b in 0..blocks {
            let block = rows.as_ptr().add(b * C::BYTES);
            up_to_8!(r < R => {
                // Rows that come later lie behind these.
                let later = block.wrapping_add(r * row_bytes + ahead);
                V::prefetch(later);
                if C::BYTES > LINE {
                    V::prefetch(later.wrapping_add(LINE));
                }
            });
            add_block::<V, C, R>(codecs, (block, row_bytes), b, x, &mut sums);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let rest = &rows[r * row_bytes + blocks * C::BYTES..(r + 1) * row_bytes];
            let whole = whole_blocks::<V, C>(rest, rest.len());
            for (b, from) in rest.chunks(C::BYTES).enumerate() {
                let mut padded = [0u8; LARGEST_BLOCK];
                let block = whole_block(from, b < whole, &mut padded);
                let mut sum = [*sums];
                add_block::<V, C, 1>([codecs[r]], (block, 0), blocks + b, x, &mut sum);
                [*sums] = sum;
            }
        }
        for r in 0..R {
            out[r] = V::total(sums[r]);
        }
    }
}

/// Adds the products of block `b` of `R` rows, which lie `stride` bytes apart, to their sums.
///
/// # Safety
/// As [`products`]; the blocks must be readable, with what is read behind them.
#[inline(always)]
unsafe fn add_block<V: Lanes, C: Codec<V>, const R: usize>(
    codecs: [C; R],
    (block, stride): (*const u8, usize),
    b: usize,
    x: *const f32,
    sums: &mut [V::Floats; R],
) {
    // SAFETY: the caller's.
    unsafe {
        let x = x.add(b * C::STEPS * LANES);
        let (mut scales, mut partial) = ([V::zero(); R], [V::zero(); R]);
        for read in 0..C::READS {
            let mut parts = [codecs[0].block(block); R];
            up_to_8!(r < R => {
                parts[r] = codecs[r].block(block.add(r * stride + read));
            });
            for step in 0..C::STEPS / C::READS {
                let step = read * (C::STEPS / C::READS) + step;
                let x = V::load(x.add(step * LANES));
                if C::SCALED > 0 && step % C::SCALED == 0 {
                    up_to_8!(r < R => {
                        scales[r] = codecs[r].scale(b, step / C::SCALED);
                        partial[r] = V::zero();
                    });
                }
                up_to_8!(r < R => {
                    let values = codecs[r].next(&mut parts[r]);
                    if C::SCALED == 0 {
                        sums[r] = V::multiply_add(values, x, sums[r]);
                    } else if C::ROUNDED {
                        sums[r] = V::multiply_add(V::multiply_half(values, scales[r]), x, sums[r]);
                    } else {
                        partial[r] = V::multiply_add(values, x, partial[r]);
                    }
                });
                if C::SCALED > 0 && !C::ROUNDED && step % C::SCALED == C::SCALED - 1 {
                    up_to_8!(r < R => {
                        sums[r] = V::multiply_add(partial[r], scales[r], sums[r]);
                    });
                }
            }
        }
    }
}

/// Blocks of a row of `row_bytes` bytes that can be read where they lie, when `readable` begins with that row.
#[inline(always)]
fn whole_blocks<V: Lanes, C: Codec<V>>(readable: &[u8], row_bytes: usize) -> usize {
    let here = (readable.len() + 1).saturating_sub(C::READS) / C::BYTES;
    here.min(row_bytes / C::BYTES)
}

/// The beginning of a block: where it lies if it can be read there, else of a copy in `padded`, code 0 behind it.
#[inline(always)]
fn whole_block(from: &[u8], whole: bool, padded: &mut [u8; LARGEST_BLOCK]) -> *const u8 {
    if whole {
        return from.as_ptr();
    }
    padded[..from.len()].copy_from_slice(from);
    padded.as_ptr()
}

/// Calls `f` for the decoded values of a row, 16 at a time, up to the end of its last block, which is padded with code 0.
/// Integers with one scale a row are left without it.
///
/// # Safety
/// Needs the instructions of `V`.
#[inline(always)]
unsafe fn each_vector<V: Lanes, C: Codec<V>>(codec: C, row: &[u8], mut f: impl FnMut(V::Floats)) {
    let whole = whole_blocks::<V, C>(row, row.len());
    for (b, from) in row.chunks(C::BYTES).enumerate() {
        let mut padded = [0u8; LARGEST_BLOCK];
        let block = whole_block(from, b < whole, &mut padded);
        for read in 0..C::READS {
            // SAFETY: a whole block and what is read behind it; the caller has the instructions.
            unsafe {
                let mut part = codec.block(block.add(read));
                for step in 0..C::STEPS / C::READS {
                    let mut values = codec.next(&mut part);
                    let step = read * (C::STEPS / C::READS) + step;
                    if let Some(part) = step.checked_div(C::SCALED) {
                        let scale = codec.scale(b, part);
                        values = match C::ROUNDED {
                            true => V::multiply_half(values, scale),
                            false => V::multiply(values, scale),
                        };
                    }
                    f(values);
                }
            }
        }
    }
}

/// Where tiles of decoded rows come from.
trait Source<V: Lanes> {
    /// Decodes row `row` into `to`: whole blocks.
    ///
    /// # Safety
    /// Needs the instructions of `V`.
    unsafe fn decode(&mut self, row: usize, to: &mut [f32]);
}

/// Rows of a coding.
struct CodedTile<'a, C> {
    rows: &'a CodedRows<'a>,
    first: usize,
    codec: PhantomData<C>,
}

impl<V: Lanes, C: Codec<V>> Source<V> for CodedTile<'_, C> {
    #[inline(always)]
    unsafe fn decode(&mut self, row: usize, to: &mut [f32]) {
        let (row, bytes) = (self.first + row, self.rows.row_bytes);
        let from = &self.rows.bytes[row * bytes..(row + 1) * bytes];
        // SAFETY: the caller's; `to` has whole blocks.
        unsafe { decode::<V, C>(self.rows.codec::<V, C>(row), from, to) };
    }
}

/// Rows decoded by plain Rust.
struct Decoded<F>(F);

impl<V: Lanes, F: FnMut(usize, &mut [f32])> Source<V> for Decoded<F> {
    #[inline(always)]
    unsafe fn decode(&mut self, row: usize, to: &mut [f32]) {
        (self.0)(row, to);
    }
}

/// Decodes a row, its last block padded with code 0.
///
/// # Safety
/// Needs the instructions of `V`; `to` has whole blocks, as many as the row begins.
#[inline(always)]
unsafe fn decode<V: Lanes, C: Codec<V>>(codec: C, row: &[u8], to: &mut [f32]) {
    let mut to = to.chunks_exact_mut(LANES);
    // SAFETY: the caller has the instructions; a chunk has room for 16 values.
    unsafe {
        each_vector::<V, C>(codec, row, |values| {
            if let Some(to) = to.next() {
                V::store(values, to.as_mut_ptr());
            }
        });
    }
}

/// Products of rows of `source`, each decoded once and in the order of the vectors' columns, with all vectors.
///
/// # Safety
/// Needs the instructions of `V`.
#[inline(always)]
unsafe fn tiles<V: Lanes>(x: &Vectors, out: &mut [f32], source: &mut impl Source<V>) {
    let padded = x.padded.max(1);
    let rows = (TILE_BYTES / 4 / padded).clamp(4, TILE_ROWS) / 4 * 4;
    let mut tile = vec![0.0; rows * padded];
    for (i, out) in out.chunks_mut(rows * x.count).enumerate() {
        let here = out.len() / x.count;
        for (r, row) in tile.chunks_exact_mut(padded).take(here).enumerate() {
            // SAFETY: the caller's.
            unsafe { source.decode(i * rows + r, row) };
        }
        let mut v = 0;
        // SAFETY: the tile has `here` rows, and `x` its vectors, of `padded` values.
        unsafe {
            while x.count - v >= 4 {
                columns::<V, 4>(&tile, here, x, v, out);
                v += 4;
            }
            while x.count - v >= 2 {
                columns::<V, 2>(&tile, here, x, v, out);
                v += 2;
            }
            while v < x.count {
                columns::<V, 1>(&tile, here, x, v, out);
                v += 1;
            }
        }
    }
}

/// `C` vectors from vector `v` on with `rows` decoded rows.
///
/// # Safety
/// As [`tiles`].
#[inline(always)]
unsafe fn columns<V: Lanes, const C: usize>(
    tile: &[f32],
    rows: usize,
    x: &Vectors,
    v: usize,
    out: &mut [f32],
) {
    let mut r = 0;
    // SAFETY: the caller's.
    unsafe {
        if V::ROWS >= 8 {
            while rows - r >= 4 {
                square::<V, 4, C>(tile, r, x, v, out);
                r += 4;
            }
        }
        while rows - r >= 2 {
            square::<V, 2, C>(tile, r, x, v, out);
            r += 2;
        }
        while r < rows {
            square::<V, 1, C>(tile, r, x, v, out);
            r += 1;
        }
    }
}

/// `R` decoded rows from row `r` on with `C` vectors from vector `v` on.
///
/// # Safety
/// As [`tiles`].
#[inline(always)]
unsafe fn square<V: Lanes, const R: usize, const C: usize>(
    tile: &[f32],
    r: usize,
    x: &Vectors,
    v: usize,
    out: &mut [f32],
) {
    let n = x.padded;
    let rows = &tile[r * n..(r + R) * n];
    let vectors = &x.values[v * n..(v + C) * n];
    // SAFETY: 16 values at `at` lie in each of the rows and vectors, whose length is a multiple of 16.
    unsafe {
        let mut sums = [[V::zero(); C]; R];
        for at in (0..n).step_by(LANES) {
            let mut b = [V::zero(); C];
            for (c, b) in b.iter_mut().enumerate() {
                *b = V::load(vectors.as_ptr().add(c * n + at));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = V::load(rows.as_ptr().add(r * n + at));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = V::multiply_add(a, b, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (c, &sums) in sums.iter().enumerate() {
                out[(r + i) * x.count + v + c] = V::total(sums);
            }
        }
    }
}

/// Products of rows that `decode` gives in order, zeros up to a multiple of 16 behind them, with vectors that are in order.
pub(crate) fn multiply_decoded(
    kernel: Kernel,
    x: &Vectors,
    out: &mut [f32],
    decode: impl FnMut(usize, &mut [f32]),
) {
    if x.count == 0 {
        return;
    }
    // SAFETY: a `Kernel` of a set exists only where the CPU has it.
    match kernel.set() {
        Set::Portable => unsafe { tiles::<Portable>(x, out, &mut Decoded(decode)) },
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => unsafe { decoded_avx2(x, out, decode) },
        #[cfg(target_arch = "x86_64")]
        Set::Avx512 => unsafe { decoded_avx512(x, out, decode) },
    }
}

/// # Safety
/// Needs the instructions it is compiled for; rows and vectors must fit.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx2,fma,f16c")]
unsafe fn coded_avx512(rows: &CodedRows<'_>, first: usize, x: &Vectors, out: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { rows.run::<Avx512>(first, x, out) }
}

/// # Safety
/// As [`coded_avx512`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn coded_avx2(rows: &CodedRows<'_>, first: usize, x: &Vectors, out: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { rows.run::<Avx2>(first, x, out) }
}

/// # Safety
/// Needs the instructions it is compiled for.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx2,fma,f16c")]
unsafe fn decoded_avx512(x: &Vectors, out: &mut [f32], decode: impl FnMut(usize, &mut [f32])) {
    // SAFETY: the caller's.
    unsafe { tiles::<Avx512>(x, out, &mut Decoded(decode)) }
}

/// # Safety
/// As [`decoded_avx512`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decoded_avx2(x: &Vectors, out: &mut [f32], decode: impl FnMut(usize, &mut [f32])) {
    // SAFETY: the caller's.
    unsafe { tiles::<Avx2>(x, out, &mut Decoded(decode)) }
}
