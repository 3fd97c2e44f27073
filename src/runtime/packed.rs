//! Weights as they are stored: fp16, palette indices with their LUTs, block-scaled integers, or the elements of a
//! sparse weight with their mask.
//!
//! A weight of shape `[n0, n1, ...]` is seen as `n0` rows of `n1 * n2 * ...` columns. A row is decoded when it is needed;
//! 4-bit palettes are multiplied without being decoded.

use super::kernels::dot::{LANES, accumulate, dot, reduce};
use super::kernels::math::round_f16;
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

/// Palette indices and their LUTs.
#[derive(Debug)]
pub(crate) struct Palette {
    /// Bits per index: 1, 2, 3, 4, 6 or 8.
    pub bits: u32,
    /// Shape of the indices.
    pub index_shape: Vec<usize>,
    /// `[g0, ..., 2^bits, vector]`: one LUT per group, each of the first dims dividing that of the indices.
    pub lut_shape: Vec<usize>,
    /// The LUT values, row-major.
    pub lut: Vec<f32>,
    /// The dim along which the vectors of the LUT lie; ignored for vectors of one.
    pub vector_axis: usize,
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

/// Memory for decoding, one per thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    row: Vec<f32>,
    /// For each byte of two 4-bit indices its two values.
    pairs: Vec<[f32; 2]>,
    /// Start in the LUT of what `pairs` was made of.
    pairs_of: Option<usize>,
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
        let form = Form::Palette { palette, columns };
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
            Form::Palette { palette, columns } => {
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

    /// The inner products of row `row` with the rows of `x` (`cols` values each) into `out`.
    ///
    /// Equal to the bit to [`dot`] with the decoded row.
    pub fn dot_row(&self, row: usize, x: &[f32], out: &mut [f32], scratch: &mut Scratch) {
        if let ([one], Some((indices, lut))) = (&mut *out, self.nibbles(row)) {
            *one = scratch.dot_nibbles(indices, lut, &self.form, x);
            return;
        }
        scratch.row.resize(self.cols, 0.0);
        self.decode_row(row, &mut scratch.row);
        for (o, x) in out.iter_mut().zip(x.chunks_exact(self.cols.max(1))) {
            *o = dot(&scratch.row, x);
        }
    }

    /// The bytes of the indices of a row and the start of its LUT, for 4-bit scalar palettes whose rows are whole bytes.
    fn nibbles(&self, row: usize) -> Option<(&[u8], usize)> {
        let Form::Palette { palette, columns } = &self.form else {
            return None;
        };
        if palette.bits != 4
            || !columns.is_empty()
            || palette.vector() != 1
            || !self.cols.is_multiple_of(2)
        {
            return None;
        }
        let (index_row, lut) = palette.row(row);
        let width = self.cols / 2;
        let bytes: &[u8] = self.bytes.as_ref().as_ref();
        Some((&bytes[index_row * width..(index_row + 1) * width], lut))
    }
}

impl Palette {
    /// The shape of what is looked up. `None` if the shapes and the LUT do not fit together.
    pub fn shape(&self) -> Option<Vec<usize>> {
        let rank = self.index_shape.len();
        let (groups, rest) = self.lut_shape.split_at_checked(rank)?;
        let &[entries, vector] = rest else {
            return None;
        };
        let fits = groups
            .iter()
            .zip(&self.index_shape)
            .all(|(&g, &n)| g > 0 && n % g == 0);
        let full = super::tensor::elements(&self.lut_shape) == Some(self.lut.len());
        let bits = self.bits;
        let valid = fits && full && (1..=8).contains(&bits) && entries == 1 << bits && vector > 0;
        if !valid || rank == 0 || (vector > 1 && self.vector_axis >= rank) {
            return None;
        }
        let mut shape = self.index_shape.clone();
        if vector > 1 {
            let dim = &mut shape[self.vector_axis];
            *dim = dim.checked_mul(vector)?;
        }
        Some(shape)
    }

    pub fn vector(&self) -> usize {
        self.lut_shape[self.lut_shape.len() - 1]
    }

    /// Row of the indices that holds `row`, and where its LUTs start (the place in the vector included).
    pub fn row(&self, row: usize) -> (usize, usize) {
        let vector = self.vector();
        let (index_row, lane) = match vector > 1 && self.vector_axis == 0 {
            true => (row / vector, row % vector),
            false => (row, 0),
        };
        let group = index_row / (self.index_shape[0] / self.lut_shape[0]);
        let stride: usize = self.lut_shape[1..].iter().product();
        (index_row, group * stride + lane)
    }
}

impl Scratch {
    /// [`dot`] of a row of 4-bit indices, two values per byte looked up at once.
    fn dot_nibbles(&mut self, indices: &[u8], lut: usize, form: &Form, x: &[f32]) -> f32 {
        if self.pairs_of != Some(lut)
            && let Form::Palette { palette, .. } = form
        {
            let lut_values = &palette.lut[lut..lut + 16];
            self.pairs.clear();
            self.pairs
                .extend((0..256).map(|byte| [lut_values[byte & 15], lut_values[byte >> 4]]));
            self.pairs_of = Some(lut);
        }
        let Some(pairs) = self.pairs.first_chunk::<256>() else {
            return 0.0;
        };
        let mut lanes = [0.0; LANES];
        let (blocks, rest) = indices.as_chunks::<{ LANES / 2 }>();
        let (x_blocks, x_rest) = x.as_chunks::<LANES>();
        for (bytes, x) in blocks.iter().zip(x_blocks) {
            let mut w = [0.0; LANES];
            for (pair, &byte) in w.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                *pair = pairs[usize::from(byte)];
            }
            accumulate(&mut lanes, &w, x);
        }
        let values = rest.iter().flat_map(|&byte| pairs[usize::from(byte)]);
        for (lane, (w, x)) in lanes.iter_mut().zip(values.zip(x_rest)) {
            *lane += w * x;
        }
        reduce(lanes)
    }
}

/// The coordinates of every column of a weight of `shape`, in order.
fn column_coordinates(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let dims = shape[1..].to_vec();
    let columns = dims.iter().product();
    (0..columns).map(move |mut column: usize| {
        let mut at = vec![0; dims.len()];
        for (c, &n) in at.iter_mut().zip(&dims).rev() {
            *c = column % n;
            column /= n;
        }
        at
    })
}

/// Flat index of the group that an element at `at` of a tensor of `shape` belongs to, with `groups` groups per dim.
fn group_of(at: &[usize], shape: &[usize], groups: &[usize]) -> usize {
    let dims = at.iter().zip(shape).zip(groups);
    dims.fold(0, |flat, ((&i, &n), &g)| flat * g + i / (n / g))
}

/// Where each column finds its index and its LUT. `None` if it does not fit in `u32`.
pub(super) fn palette_columns(palette: &Palette, shape: &[usize]) -> Option<Vec<(u32, u32)>> {
    let rank = shape.len();
    let vector = palette.vector();
    let groups = &palette.lut_shape[1..rank];
    let index_dims = &palette.index_shape[1..];
    let in_columns = vector > 1 && palette.vector_axis > 0;
    if !in_columns && groups.iter().all(|&g| g == 1) {
        return Some(Vec::new());
    }
    let lut_size = (1 << palette.bits) * vector;
    column_coordinates(shape)
        .map(|mut at| {
            let mut lane = 0;
            if in_columns {
                let coordinate = &mut at[palette.vector_axis - 1];
                lane = *coordinate % vector;
                *coordinate /= vector;
            }
            let column = at
                .iter()
                .zip(index_dims)
                .fold(0, |flat, (&i, &n)| flat * n + i);
            let place = group_of(&at, index_dims, groups) * lut_size + lane;
            Some((u32::try_from(column).ok()?, u32::try_from(place).ok()?))
        })
        .collect()
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

    #[test]
    fn packed_products_equal_products_of_the_decoded_row_to_the_bit() {
        for bits in [1, 2, 3, 4, 6, 8] {
            for cols in [2, 15, 16, 40, 95, 96] {
                let p = palette(bits, &[6, cols], &[3, 1], 1, 0);
                let bytes = noise((6 * cols * bits as usize).div_ceil(8));
                let weight = PackedWeight::palette(p, Arc::new(bytes)).unwrap();
                let dense = weight.decode();
                let mut scratch = Scratch::default();
                for columns in [1, 2] {
                    let x = ramp(cols * columns);
                    for row in 0..6 {
                        let mut got = vec![0.0; columns];
                        weight.dot_row(row, &x, &mut got, &mut scratch);
                        let w = &dense[row * cols..(row + 1) * cols];
                        let want: Vec<f32> = x.chunks(cols).map(|x| dot(w, x)).collect();
                        assert_eq!(got, want);
                    }
                }
            }
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
