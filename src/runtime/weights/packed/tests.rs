//! Decoding by definition; products of every kernel against f64.

use super::*;
use crate::runtime::weights::sparse;
use half::f16;
use std::sync::Arc;

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

/// Bytes that end where memory does: to read behind them ends the process.
#[cfg(unix)]
struct Fenced {
    map: *mut u8,
    size: usize,
    /// Offset and length of the bytes.
    at: usize,
    len: usize,
}

// SAFETY: nothing writes to the map after it was made.
#[cfg(unix)]
unsafe impl Send for Fenced {}
// SAFETY: as above.
#[cfg(unix)]
unsafe impl Sync for Fenced {}

#[cfg(unix)]
impl AsRef<[u8]> for Fenced {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the map has as many bytes from there on.
        unsafe { std::slice::from_raw_parts(self.map.add(self.at), self.len) }
    }
}

#[cfg(unix)]
impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: the whole of a map, of which no reference is left.
        unsafe { libc::munmap(self.map.cast(), self.size) };
    }
}

/// The bytes with nothing readable behind them, at an address as their number makes it.
#[cfg(unix)]
fn fenced(bytes: &[u8]) -> SharedBytes {
    // SAFETY: sysconf reads a constant.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
    let used = bytes.len().next_multiple_of(page);
    let size = used + page;
    let (access, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANON,
    );
    // SAFETY: a new map; its last page is made unreadable before anything else knows it, the others are written within it.
    let map = unsafe {
        let map = libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0).cast::<u8>();
        assert!(map.cast() != libc::MAP_FAILED);
        assert_eq!(
            libc::mprotect(map.add(used).cast(), page, libc::PROT_NONE),
            0
        );
        let at = map.add(used - bytes.len());
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
        map
    };
    Arc::new(Fenced {
        map,
        size,
        at: used - bytes.len(),
        len: bytes.len(),
    })
}

#[cfg(not(unix))]
fn fenced(bytes: &[u8]) -> SharedBytes {
    Arc::new(bytes.to_vec())
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
            let weight = PackedWeight::palette(p, fenced(&bytes)).unwrap();
            let whole = (cols * bits as usize).is_multiple_of(8);
            assert_eq!(weight.coded().is_some(), whole, "{bits} {cols}");
            check_products(&weight, &format!("palette{bits}"));
        }
    }
}

#[test]
fn products_of_a_large_lut_in_fp16_and_in_f32() {
    for cols in [1, 63, 64, 100, 192] {
        for half in [true, false] {
            let mut p = palette(8, &[24, cols], &[2, 1], 1, 0);
            if half {
                round_f16(&mut p.lut);
            }
            let weight = PackedWeight::palette(p, fenced(&noise(24 * cols))).unwrap();
            assert!(weight.coded().is_some());
            check_products(&weight, "palette8");
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
        let plain = PackedWeight::plain(&[11, cols], Coding::F16, fenced(&halves));
        check_products(&plain.unwrap(), "fp16");
        for (coding, scale_shape, offset, direct) in [
            (Coding::Signed(8), vec![11, 1], false, true),
            (Coding::Signed(8), vec![1, 1], false, true),
            (Coding::Signed(8), vec![11, 1], true, false),
            (Coding::Unsigned(8), vec![11, 1], false, false),
            (Coding::Signed(4), vec![11, cols], false, false),
            (Coding::Signed(4), vec![11, 1], true, false),
            (Coding::Unsigned(4), vec![11, 1], false, false),
        ] {
            let scales: usize = scale_shape.iter().product();
            let blocks = Blocks {
                coding,
                scale_shape: scale_shape.clone(),
                scale: ramp(scales),
                offset: offset.then(|| vec![3.0; scales]),
                rounded: false,
            };
            let bytes = fenced(&noise(size));
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

/// Scales of fp16, some of them below zero or subnormal.
fn scales(n: usize) -> Vec<f32> {
    let mut scales = ramp(n);
    scales.iter_mut().step_by(5).for_each(|s| *s *= 1e-6);
    round_f16(&mut scales);
    scales
}

fn integers(bits: u32, shape: &[usize], scale_shape: &[usize], rounded: bool) -> PackedWeight {
    let blocks = Blocks {
        coding: Coding::Signed(bits),
        scale_shape: scale_shape.to_vec(),
        scale: scales(scale_shape.iter().product()),
        offset: None,
        rounded,
    };
    let size: usize = shape.iter().product();
    let bytes = fenced(&noise((size * bits as usize).div_ceil(8)));
    PackedWeight::blocks(shape, blocks, bytes).unwrap()
}

#[test]
fn products_of_integers_with_scales_of_every_block_and_length() {
    for bits in [4, 8] {
        for rounded in [false, true] {
            for (cols, blocks) in [
                // A scale a row, any length; one of all lengths of a block and of what is left of it.
                (1, 1),
                (2, 1),
                (30, 1),
                (62, 1),
                (128, 1),
                (200, 1),
                (258, 1),
                // Blocks of 8, 16, 32, 64, 128, 256, 512.
                (8, 1),
                (24, 3),
                (136, 17),
                (48, 3),
                (272, 17),
                (32, 1),
                (64, 2),
                (96, 3),
                (160, 5),
                (288, 9),
                (64, 1),
                (128, 2),
                (192, 3),
                (320, 5),
                (256, 2),
                (384, 3),
                (640, 5),
                (512, 2),
                (768, 3),
                (1024, 2),
                // Blocks of 1, 4, 12, 24, 96, which no kernel takes.
                (6, 6),
                (16, 4),
                (36, 3),
                (48, 2),
                (192, 2),
            ] {
                let block = cols / blocks;
                let what = format!("int{bits} blocks of {block}");
                let shape = if cols % 3 == 0 {
                    vec![11, cols, 1, 1]
                } else {
                    vec![11, cols]
                };
                let mut scale_shape = vec![1; shape.len()];
                (scale_shape[0], scale_shape[1]) = (11, blocks);
                let weight = integers(bits, &shape, &scale_shape, rounded);
                let known = block.is_power_of_two() && block >= if bits == 4 { 8 } else { 32 };
                let whole = (cols * bits as usize).is_multiple_of(8);
                assert_eq!(
                    weight.coded().is_some(),
                    whole && (known || blocks == 1),
                    "{what}"
                );
                check_products(&weight, &what);
                assert_eq!(
                    weight.usage().bytes,
                    (11 * cols * bits as usize).div_ceil(8) as u64 + 22 * blocks as u64
                );
            }
        }
    }
}

#[test]
fn rows_share_scales_or_tables_in_groups_of_any_size() {
    for group in [1, 2, 3, 4, 6, 12, 24] {
        for (bits, blocks, rounded) in [(4, 1, false), (4, 5, false), (8, 1, true), (8, 5, false)] {
            let weight = integers(bits, &[24, 160], &[24 / group, blocks], rounded);
            assert!(weight.coded().is_some());
            check_products(&weight, &format!("int{bits} in groups of {group}"));
        }
        for bits in [1, 2, 3, 4, 6] {
            let p = palette(bits, &[24, 160], &[24 / group, 1], 1, 0);
            let weight = PackedWeight::palette(p, fenced(&noise(24 * 20 * bits as usize))).unwrap();
            assert!(weight.coded().is_some());
            check_products(&weight, &format!("palette{bits} in groups of {group}"));
        }
    }
}

#[test]
fn integers_are_multiplied_as_they_are_decoded() {
    // One column other than zero: the product is the weight itself, rounded to fp16 or not.
    for (bits, blocks) in [(4, 1), (4, 4), (8, 1), (8, 4)] {
        for rounded in [false, true] {
            let weight = integers(bits, &[9, 128], &[9, blocks], rounded);
            let dense = weight.decode();
            for column in [0, 7, 31, 32, 127] {
                let mut x = [0.0; 128];
                x[column] = 1.0;
                for kernel in Kernel::available() {
                    let mut out = [0.0; 9];
                    weight.multiply_all(kernel, &x, 1, &mut out).unwrap();
                    let column: Vec<f32> = dense.chunks(128).map(|row| row[column]).collect();
                    assert_eq!(
                        out.as_slice(),
                        column,
                        "int{bits} {blocks} {}",
                        kernel.name()
                    );
                }
            }
        }
    }
}

#[test]
fn a_scale_that_is_no_number_stays_out_of_other_rows() {
    let blocks = Blocks {
        coding: Coding::Signed(4),
        scale_shape: vec![2, 4],
        scale: vec![1.0, 1.0, 1.0, 1.0, f32::INFINITY, 1.0, 1.0, 1.0],
        offset: None,
        rounded: false,
    };
    let weight = PackedWeight::blocks(&[2, 128], blocks, Arc::new(vec![0x11; 128])).unwrap();
    for kernel in Kernel::available() {
        let mut out = [0.0; 2];
        weight
            .multiply_all(kernel, &[1.0; 128], 1, &mut out)
            .unwrap();
        assert_eq!(out, [128.0, f32::INFINITY]);
    }
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

#[test]
fn the_example_of_the_op_s_documentation() {
    // constexpr_lut_to_sparse of coremltools 9.0: a 4x6 mask, 9 indices of one bit.
    let rows = [0b000011u32, 0b100011, 0b010110, 0b001000];
    let bits = rows.iter().rev().fold(0u32, |all, row| all << 6 | row);
    let mask: SharedBytes = Arc::new(bits.to_le_bytes()[..3].to_vec());
    let indices = 0b1_0011_0110u16.to_le_bytes();
    let palette = |vector: usize, axis| Palette {
        bits: 1,
        index_shape: vec![4, 6],
        lut_shape: vec![1, 1, 2, vector],
        lut: [vec![2.0; vector], vec![3.0; vector]].concat(),
        vector_axis: axis,
    };
    let look_up = |palette: &Palette, count| {
        let mut values = Vec::new();
        let found = sparse::look_up(palette, &indices, count, mask.clone(), |x| values.push(x));
        found.map(|found| (found, values))
    };
    let (found, values) = look_up(&palette(1, 0), 9).unwrap();
    assert_eq!(values, [2.0, 3.0, 3.0, 2.0, 3.0, 3.0, 2.0, 2.0, 3.0]);
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let data: SharedBytes = Arc::new(bytes);
    let dense = |ones| {
        PackedWeight::sparse(
            &[4, 6],
            Coding::F32,
            (data.clone(), ones),
            found.mask.clone(),
        )
    };
    let z = 0.0;
    let expected = [
        [2.0, 3.0, z, z, z, z],
        [3.0, 2.0, z, z, z, 3.0],
        [z, 3.0, 2.0, z, 2.0, z],
        [z, z, z, 3.0, z, z],
    ];
    assert_eq!(dense(9).unwrap().decode(), expected.concat());
    assert!(dense(8).is_none());
    let (rows, values) = look_up(&palette(2, 0), 9).unwrap();
    assert_eq!(rows.shape, [8, 6]);
    let (mut from, ones) = (values.iter(), (*rows.mask).as_ref());
    for at in 0..48 {
        let expected = expected[at / 12][at % 6];
        let got = if sparse::bit(ones, at) {
            *from.next().unwrap()
        } else {
            0.0
        };
        assert_eq!(got, expected, "{at}");
    }
    assert!(from.next().is_none());
    for count in [8, 10] {
        assert!(look_up(&palette(1, 0), count).is_none());
    }
}
