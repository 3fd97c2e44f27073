//! Weights as they are stored: fp16, palette indices with their LUTs, block-scaled integers, or the elements of a
//! sparse weight with their mask.
//!
//! A weight of shape `[n0, n1, ...]` is seen as `n0` rows of `n1 * n2 * ...` columns. Palettes with one LUT per row, fp16 and
//! int8 with one scale per row are multiplied as they are stored; rows of other forms are decoded when they are needed.

use super::kernels::codec::RowCoding;
use super::kernels::kernel::Kernel;
use super::kernels::math::round_f16;
use super::kernels::matvec::{CodedRows, Vectors, multiply_decoded};
use super::palette::{Palette, column_coordinates, group_of, palette_columns};
use super::roofline::WeightUse;
use super::sparse::Sparse;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::sync::Arc;

/// The bytes of a stored value, owned or in a mapped file.
pub(crate) type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// How the bits of one stored element are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Unsigned, 1 to 8 bits.
    Unsigned(u32),
    /// Two's complement, 1 to 8 bits.
    Signed(u32),
    /// fp16.
    F16,
    /// fp32.
    F32,
}

impl Coding {
    fn bits(self) -> usize {
        match self {
            Coding::Unsigned(bits) | Coding::Signed(bits) => bits as usize,
            Coding::F16 => 16,
            Coding::F32 => 32,
        }
    }

    /// Bytes of `elements` elements; `None` beyond `usize`.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        Some(elements.checked_mul(self.bits())?.div_ceil(8))
    }

    /// Reads `out.len()` elements from element `first` on.
    pub fn read(self, bytes: &[u8], first: usize, out: &mut [f32]) {
        match self {
            Coding::Unsigned(bits) => {
                each_code(bytes, bits, first, out, f32::from);
            }
            Coding::Signed(bits) => {
                let shift = 8 - bits;
                each_code(bytes, bits, first, out, |code| {
                    f32::from(((code << shift) as i8) >> shift)
                });
            }
            Coding::F16 => read_f16(&bytes[first * 2..(first + out.len()) * 2], out),
            Coding::F32 => {
                let (values, _) = bytes[first * 4..].as_chunks::<4>();
                for (o, &v) in out.iter_mut().zip(values) {
                    *o = f32::from_le_bytes(v);
                }
            }
        }
    }
}

/// Maps the `bits`-wide codes from element `first` on; the stream is little-endian, lowest bits first.
pub(super) fn each_code<T>(
    bytes: &[u8],
    bits: u32,
    first: usize,
    out: &mut [T],
    f: impl Fn(u8) -> T,
) {
    let mask = ((1u32 << bits) - 1) as u16;
    let mut bit = first * bits as usize;
    for o in out {
        let byte = bit / 8;
        let low = u16::from(bytes[byte]);
        let high = bytes.get(byte + 1).map_or(0, |&b| u16::from(b));
        *o = f((((high << 8) | low) >> (bit % 8) & mask) as u8);
        bit += bits as usize;
    }
}

fn read_f16(bytes: &[u8], out: &mut [f32]) {
    if let Ok(values) = bytemuck::try_cast_slice::<u8, f16>(bytes) {
        return values.convert_to_f32_slice(out);
    }
    for (o, &v) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *o = f16::from_le_bytes(v).to_f32();
    }
}

/// Integers (or floats) with one scale and offset per block.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Coding of the data.
    pub coding: Coding,
    /// Shape of the scales, each dim dividing that of the data.
    pub scale_shape: Vec<usize>,
    /// The scales, row-major.
    pub scale: Vec<f32>,
    /// Offsets of the same shape, subtracted before the scaling.
    pub offset: Option<Vec<f32>>,
    /// Whether the results are rounded to fp16.
    pub rounded: bool,
}

#[derive(Debug)]
enum Form {
    Plain(Coding),
    Palette {
        palette: Palette,
        /// Per column: index column and place in the LUTs of the row's group; empty when it is the column itself and 0.
        columns: Vec<(u32, u32)>,
        /// Whether all LUT values are: then padding with index 0 adds nothing to a product.
        finite: bool,
    },
    Blocks {
        blocks: Blocks,
        /// Per column: scale within the row's group.
        columns: Vec<u32>,
    },
    Sparse(Sparse),
}

/// A weight in its stored form.
pub(crate) struct PackedWeight {
    shape: Vec<usize>,
    rows: usize,
    cols: usize,
    bytes: SharedBytes,
    form: Form,
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeight({:?}, {:?})", self.shape, self.form)
    }
}

impl PackedWeight {
    /// A plain weight. `None` if the bytes are fewer than the shape needs, or the shape is a scalar.
    pub fn plain(shape: &[usize], coding: Coding, bytes: SharedBytes) -> Option<Self> {
        Self::new(shape, coding, bytes, Form::Plain(coding))
    }

    /// A palettized weight. `None` if shapes, LUT and bytes do not fit together.
    pub fn palette(palette: Palette, bytes: SharedBytes) -> Option<Self> {
        let shape = palette.shape()?;
        let index_elements = super::tensor::elements(&palette.index_shape)?;
        let coding = Coding::Unsigned(palette.bits);
        if bytes.as_ref().as_ref().len() < coding.bytes(index_elements)? {
            return None;
        }
        let columns = palette_columns(&palette, &shape)?;
        let finite = palette.lut.iter().all(|v| v.is_finite());
        let form = Form::Palette {
            palette,
            columns,
            finite,
        };
        // The number of bytes is that of the indices, checked above.
        Self::new(&shape, Coding::Unsigned(0), bytes, form)
    }

    /// A block-scaled weight of `shape`. `None` if shapes, scales and bytes do not fit together.
    pub fn blocks(shape: &[usize], blocks: Blocks, bytes: SharedBytes) -> Option<Self> {
        let scales = super::tensor::elements(&blocks.scale_shape)?;
        let fits = blocks.scale_shape.len() == shape.len()
            && blocks
                .scale_shape
                .iter()
                .zip(shape)
                .all(|(&g, &n)| g > 0 && n % g == 0);
        let full = blocks.scale.len() == scales
            && blocks.offset.as_ref().is_none_or(|o| o.len() == scales);
        if !fits || !full {
            return None;
        }
        let columns = column_coordinates(shape)
            .map(|at| u32::try_from(group_of(&at, &shape[1..], &blocks.scale_shape[1..])).ok())
            .collect::<Option<Vec<u32>>>()?;
        let coding = blocks.coding;
        Self::new(shape, coding, bytes, Form::Blocks { blocks, columns })
    }

    /// A sparse weight of `shape` from its elements other than zero, and a mask with one bit per element. `None` if
    /// the mask has another number of ones than there are elements, or the bytes are too few.
    pub fn sparse(
        shape: &[usize],
        coding: Coding,
        (bytes, elements): (SharedBytes, usize),
        mask: SharedBytes,
    ) -> Option<Self> {
        let sparse = Sparse::new(shape, coding, elements, mask)?;
        if bytes.as_ref().as_ref().len() < coding.bytes(elements)? {
            return None;
        }
        Self::new(shape, Coding::Unsigned(0), bytes, Form::Sparse(sparse))
    }

    fn new(shape: &[usize], coding: Coding, bytes: SharedBytes, form: Form) -> Option<Self> {
        let elements = super::tensor::elements(shape)?;
        let rows = *shape.first()?;
        if bytes.as_ref().as_ref().len() < coding.bytes(elements)? {
            return None;
        }
        Some(Self {
            shape: shape.to_vec(),
            rows,
            cols: elements.checked_div(rows).unwrap_or(0),
            bytes,
            form,
        })
    }

    /// The shape that ops see.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Extent of the first dim.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Product of the other dims.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Decodes row `row` into `out` (`cols` values).
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let bytes: &[u8] = self.bytes.as_ref().as_ref();
        match &self.form {
            Form::Plain(coding) => coding.read(bytes, row * self.cols, out),
            Form::Sparse(sparse) => sparse.decode_row(bytes, row, out),
            Form::Palette {
                palette, columns, ..
            } => {
                let (index_row, lut) = palette.row(row);
                let lut = &palette.lut[lut..];
                let vector = palette.vector();
                if columns.is_empty() {
                    let first = index_row * self.cols;
                    each_code(bytes, palette.bits, first, out, |code| {
                        lut[usize::from(code) * vector]
                    });
                } else {
                    let index_cols: usize = palette.index_shape[1..].iter().product();
                    for (o, &(column, place)) in out.iter_mut().zip(columns) {
                        let at = index_row * index_cols + column as usize;
                        each_code(bytes, palette.bits, at, std::slice::from_mut(o), |code| {
                            lut[place as usize + usize::from(code) * vector]
                        });
                    }
                }
            }
            Form::Blocks { blocks, columns } => {
                blocks.coding.read(bytes, row * self.cols, out);
                let scales_per_row: usize = blocks.scale_shape[1..].iter().product();
                let base = row / (self.rows / blocks.scale_shape[0]) * scales_per_row;
                for (o, &column) in out.iter_mut().zip(columns) {
                    let at = base + column as usize;
                    let offset = blocks.offset.as_ref().map_or(0.0, |offset| offset[at]);
                    *o = blocks.scale[at] * (*o - offset);
                }
                if blocks.rounded {
                    round_f16(out);
                }
            }
        }
    }

    /// Every value, row-major.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        if self.cols > 0 {
            for (row, out) in out.chunks_exact_mut(self.cols).enumerate() {
                self.decode_row(row, out);
            }
        }
        out
    }

    /// The rows as a kernel multiplies them; `None` if they have to be decoded first.
    fn coded(&self) -> Option<CodedRows<'_>> {
        let bytes: &[u8] = self.bytes.as_ref().as_ref();
        let size = (self.rows, self.cols);
        match &self.form {
            Form::Plain(Coding::F16) => CodedRows::new(RowCoding::Half, bytes, size, (&[], 1)),
            Form::Palette {
                palette,
                columns,
                finite: true,
            } if columns.is_empty() && palette.vector() == 1 => {
                let group = palette.index_shape[0] / palette.lut_shape[0];
                let coding = RowCoding::Palette(palette.bits);
                CodedRows::new(coding, bytes, size, (&palette.lut, group))
            }
            Form::Blocks { blocks, .. }
                if blocks.coding == Coding::Signed(8)
                    && blocks.offset.is_none()
                    && !blocks.rounded
                    && blocks.scale_shape[1..].iter().all(|&n| n == 1) =>
            {
                let group = self.rows / blocks.scale_shape[0];
                CodedRows::new(RowCoding::Int8, bytes, size, (&blocks.scale, group))
            }
            _ => None,
        }
    }

    /// What a product with all rows reads.
    pub fn usage(&self) -> WeightUse {
        let elements = self.rows * self.cols;
        let size = |coding: Coding, elements: usize| coding.bytes(elements).unwrap_or(0);
        // LUTs and scales are stored in fp16.
        let (coding, bytes) = match &self.form {
            Form::Plain(coding) => (format!("fp{}", coding.bits()), size(*coding, elements)),
            Form::Palette { palette, .. } => {
                let indices: usize = palette.index_shape.iter().product();
                let bytes = size(Coding::Unsigned(palette.bits), indices);
                let vector = match palette.vector() {
                    1 => String::new(),
                    n => format!(" vectors of {n}"),
                };
                (
                    format!("palette{}{vector}", palette.bits),
                    bytes + palette.lut.len() * 2,
                )
            }
            Form::Blocks { blocks, .. } => {
                let offsets = blocks.offset.as_ref().map_or(0, Vec::len);
                let bytes = size(blocks.coding, elements) + blocks.scale.len() * 2 + offsets;
                let coding = match self.coded() {
                    Some(_) => "int8".to_owned(),
                    None => format!("blocks of int{}", blocks.coding.bits()),
                };
                (coding, bytes)
            }
            Form::Sparse(sparse) => ("sparse".to_owned(), sparse.bytes()),
        };
        WeightUse {
            coding,
            elements: elements as u64,
            bytes: bytes as u64,
            direct: self.coded().map(|rows| rows.coding()),
        }
    }

    /// `vectors` vectors of `cols` values, ready for [`PackedWeight::multiply`].
    pub fn vectors(&self, x: &[f32], vectors: usize) -> Vectors {
        let coding = self.coded().map(|rows| rows.coding());
        Vectors::new(coding, x, self.cols, vectors)
    }

    /// The inner products of rows from `first` on with vectors that were made for this weight into `out`,
    /// `[rows, vectors]`. A product depends on nothing but its row, its vector, the kernel and whether there is one vector
    /// or more; it differs from that in f64 by rounding of f32 sums.
    pub fn multiply(&self, kernel: Kernel, first: usize, x: &Vectors, out: &mut [f32]) {
        match self.coded() {
            Some(rows) => rows.multiply(kernel, first, x, out),
            None => multiply_decoded(kernel, x, out, |row, to| {
                self.decode_row(first + row, &mut to[..self.cols]);
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repeatable stream of bytes.
    fn noise(n: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9u32;
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state >> 11) as u8
            })
            .collect()
    }

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.731).sin()).collect()
    }

    fn code(bytes: &[u8], bits: usize, i: usize) -> usize {
        (0..bits)
            .map(|b| {
                let at = i * bits + b;
                usize::from(bytes[at / 8] >> (at % 8) & 1) << b
            })
            .sum()
    }

    /// Decodes element by element from the definition in the MIL op's documentation.
    fn by_definition(p: &Palette, bytes: &[u8]) -> Vec<f32> {
        let rank = p.index_shape.len();
        let vector = p.lut_shape[rank + 1];
        let mut shape = p.index_shape.clone();
        if vector > 1 {
            shape[p.vector_axis] *= vector;
        }
        let total: usize = shape.iter().product();
        (0..total)
            .map(|mut flat| {
                let mut at = vec![0; rank];
                for d in (0..rank).rev() {
                    at[d] = flat % shape[d];
                    flat /= shape[d];
                }
                let mut lane = 0;
                if vector > 1 {
                    lane = at[p.vector_axis] % vector;
                    at[p.vector_axis] /= vector;
                }
                let mut index = 0;
                let mut group = 0;
                let dims = at.iter().zip(&p.index_shape).zip(&p.lut_shape);
                for ((&i, &n), &g) in dims {
                    index = index * n + i;
                    group = group * g + i * g / n;
                }
                let entry = code(bytes, p.bits as usize, index);
                p.lut[(group * (1 << p.bits) + entry) * vector + lane]
            })
            .collect()
    }

    fn palette(
        bits: u32,
        index_shape: &[usize],
        groups: &[usize],
        vector: usize,
        axis: usize,
    ) -> Palette {
        let mut lut_shape = groups.to_vec();
        lut_shape.extend([1 << bits, vector]);
        Palette {
            bits,
            index_shape: index_shape.to_vec(),
            lut: ramp(lut_shape.iter().product()),
            lut_shape,
            vector_axis: axis,
        }
    }

    #[test]
    fn palettes_of_every_width_grouping_and_vector_decode_as_defined() {
        for bits in [1, 2, 3, 4, 6, 8] {
            for (index_shape, groups, vector, axis) in [
                (vec![8, 6], vec![1, 1], 1, 0),
                (vec![8, 6], vec![4, 1], 1, 0),
                (vec![8, 7], vec![2, 1], 1, 0),
                (vec![8, 6], vec![2, 3], 1, 0),
                (vec![4, 6, 1, 1], vec![2, 1, 1, 1], 2, 0),
                (vec![4, 6, 1, 1], vec![2, 3, 1, 1], 2, 1),
                (vec![4, 3, 2], vec![1, 1, 2], 3, 2),
                (vec![9], vec![3], 1, 0),
            ] {
                let p = palette(bits, &index_shape, &groups, vector, axis);
                let elements: usize = index_shape.iter().product();
                let bytes = noise((elements * bits as usize).div_ceil(8));
                let want = by_definition(&p, &bytes);
                let weight = PackedWeight::palette(p, Arc::new(bytes)).unwrap();
                assert_eq!(weight.decode(), want, "{bits} {index_shape:?} {groups:?}");
            }
        }
    }

    /// Allowed difference of a product from that in f64, in f32 roundings of the sum of the terms' sizes: each of 16 partial
    /// sums has a 16th of the terms.
    const SUM_ROUNDINGS: f64 = 16.0;

    /// Checks the products of all rows of a weight with 1 to 9 vectors, by every kernel, against f64 sums over decoded rows;
    /// against runs that start elsewhere, to the bit; and AVX2 against AVX-512, to the bit.
    fn check_products(weight: &PackedWeight, what: &str) {
        let (rows, cols) = (weight.rows(), weight.cols());
        let dense = weight.decode();
        for vectors in [1, 2, 9] {
            let x = ramp(cols * vectors);
            let prepared = weight.vectors(&x, vectors);
            let mut fused: Option<Vec<f32>> = None;
            for kernel in Kernel::available() {
                let what = format!("{what}: {rows} x {cols} x {vectors}, {}", kernel.name());
                let mut got = vec![f32::NAN; rows * vectors];
                weight.multiply(kernel, 0, &prepared, &mut got);
                for (i, &got) in got.iter().enumerate() {
                    let w = &dense[i / vectors * cols..][..cols];
                    let x = &x[i % vectors * cols..][..cols];
                    let terms = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                    let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                    let allowed = SUM_ROUNDINGS * size * f64::from(f32::EPSILON);
                    let off = (f64::from(got) - sum).abs();
                    assert!(off <= allowed, "{what}, at {i}: {got} for {sum}");
                }
                for first in 0..rows {
                    let some = (rows - first).min(1 + first % 3);
                    let mut part = vec![f32::NAN; some * vectors];
                    weight.multiply(kernel, first, &prepared, &mut part);
                    assert_eq!(part, got[first * vectors..][..some * vectors], "{what}");
                }
                if kernel.name() != "portable" {
                    let fused = fused.get_or_insert_with(|| got.clone());
                    assert_eq!(*fused, got, "{what}");
                }
            }
        }
    }

    /// Bytes that start at every offset from an aligned address, with nothing behind them.
    fn misaligned(bytes: &[u8], offset: usize) -> SharedBytes {
        struct Behind(Vec<u8>, usize);
        impl AsRef<[u8]> for Behind {
            fn as_ref(&self) -> &[u8] {
                &self.0[self.1..]
            }
        }
        let mut all = vec![0xa5; offset];
        all.extend_from_slice(bytes);
        Arc::new(Behind(all, offset))
    }

    #[test]
    fn products_of_palettes_of_every_width_length_and_group() {
        for bits in [1, 2, 3, 4, 6, 8] {
            for cols in (1..=300).step_by(7).chain([
                8, 16, 24, 32, 40, 48, 64, 96, 128, 192, 256, 264, 272, 512, 520, 1024,
            ]) {
                let (rows, groups) = match cols % 3 {
                    0 => (6, 3),
                    1 => (21, 1),
                    _ => (20, 2),
                };
                let p = palette(bits, &[rows, cols], &[groups, 1], 1, 0);
                let bytes = noise((rows * cols * bits as usize).div_ceil(8));
                let bytes = misaligned(&bytes, cols % 67);
                let weight = PackedWeight::palette(p, bytes).unwrap();
                let whole = (cols * bits as usize).is_multiple_of(8);
                assert_eq!(weight.coded().is_some(), whole, "{bits} {cols}");
                check_products(&weight, &format!("palette{bits}"));
            }
        }
    }

    #[test]
    fn products_of_other_forms() {
        for cols in [1, 5, 16, 63, 64, 65, 128, 200] {
            let size = 11 * cols;
            let halves: Vec<u8> = ramp(size)
                .iter()
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect();
            let plain = PackedWeight::plain(&[11, cols], Coding::F16, misaligned(&halves, 3));
            check_products(&plain.unwrap(), "fp16");
            for (coding, scale_shape, offset, direct) in [
                (Coding::Signed(8), vec![11, 1], false, true),
                (Coding::Signed(8), vec![1, 1], false, true),
                (Coding::Signed(8), vec![11, 1], true, false),
                (Coding::Unsigned(8), vec![11, 1], false, false),
                (Coding::Signed(4), vec![11, cols], false, false),
            ] {
                let scales: usize = scale_shape.iter().product();
                let blocks = Blocks {
                    coding,
                    scale_shape: scale_shape.clone(),
                    scale: ramp(scales),
                    offset: offset.then(|| vec![3.0; scales]),
                    rounded: false,
                };
                let bytes = misaligned(&noise(size), cols);
                let weight = PackedWeight::blocks(&[11, cols], blocks, bytes).unwrap();
                assert_eq!(weight.coded().is_some(), direct);
                check_products(&weight, &format!("{coding:?} {scale_shape:?}"));
            }
        }
        let vectors = palette(4, &[4, 6, 1, 1], &[2, 1, 1, 1], 2, 0);
        let weight = PackedWeight::palette(vectors, Arc::new(noise(12))).unwrap();
        assert!(weight.coded().is_none());
        check_products(&weight, "vectors");
    }

    #[test]
    fn an_infinite_entry_of_a_lut_stays_out_of_rows_that_do_not_use_it() {
        let mut p = palette(4, &[2, 2], &[1, 1], 1, 0);
        p.lut[0] = f32::INFINITY;
        let (one, two) = (p.lut[1], p.lut[2]);
        let weight = PackedWeight::palette(p, Arc::new(vec![0x21, 0x01])).unwrap();
        for kernel in Kernel::available() {
            let mut out = [0.0; 2];
            weight.multiply(kernel, 0, &weight.vectors(&[1.0, 2.0], 1), &mut out);
            assert_eq!(out, [one + 2.0 * two, f32::INFINITY]);
        }
    }

    #[test]
    fn blocks_scale_and_shift() {
        // int4 -8 -1 7 1 -2 3, packed as weight.bin packs them.
        let bytes = vec![0xf8, 0x17, 0x3e];
        let blocks = Blocks {
            coding: Coding::Signed(4),
            scale_shape: vec![2, 1],
            scale: vec![0.5, 2.0],
            offset: Some(vec![1.0, -1.0]),
            rounded: false,
        };
        let weight = PackedWeight::blocks(&[2, 3], blocks, Arc::new(bytes)).unwrap();
        assert_eq!(weight.decode(), [-4.5, -1.0, 3.0, 4.0, -2.0, 8.0]);
        let blocks = Blocks {
            coding: Coding::Unsigned(8),
            scale_shape: vec![1, 2],
            scale: vec![1.0, 10.0],
            offset: None,
            rounded: false,
        };
        let weight = PackedWeight::blocks(&[2, 4], blocks, Arc::new((1..9).collect::<Vec<u8>>()));
        assert_eq!(
            weight.unwrap().decode(),
            [1.0, 2.0, 30.0, 40.0, 5.0, 6.0, 70.0, 80.0]
        );
    }

    #[test]
    fn too_few_bytes_and_shapes_that_do_not_fit_are_refused() {
        let bytes: SharedBytes = Arc::new(vec![0u8; 11]);
        assert!(PackedWeight::palette(palette(4, &[4, 6], &[1, 1], 1, 0), bytes.clone()).is_none());
        assert!(PackedWeight::palette(palette(3, &[4, 6], &[1, 1], 1, 0), bytes.clone()).is_some());
        assert!(PackedWeight::palette(palette(3, &[4, 6], &[3, 1], 1, 0), bytes.clone()).is_none());
        assert!(PackedWeight::palette(palette(3, &[4, 6], &[1, 1], 2, 2), bytes.clone()).is_none());
        assert!(PackedWeight::plain(&[2, 3], Coding::F16, bytes.clone()).is_none());
        assert!(PackedWeight::plain(&[1, 5], Coding::F16, bytes.clone()).is_some());
        assert!(PackedWeight::plain(&[], Coding::F16, bytes).is_none());
    }
}
