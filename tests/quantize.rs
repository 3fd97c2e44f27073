//! The number formats against what coremltools 9.0 made of the same matrices
//! (`data/quantize/coremltools.safetensors`, written by `data/quantize/make.py`).

use gemma_coreml::quantize::linear::quantize_symmetric;
use gemma_coreml::quantize::scheme::PALETTE_BITS;
use gemma_coreml::quantize::{
    Scratch, palettize_group, palettize_sparse, palettize_vectors, scale_luts,
};
use half::f16;
use safetensors::SafeTensors;

/// How far our error may be above coremltools', relative.
const MSE_TOLERANCE: f64 = 1e-6;

struct Golden(Vec<u8>);

impl Golden {
    fn read() -> Self {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/quantize/coremltools.safetensors"
        );
        Golden(std::fs::read(path).unwrap())
    }

    fn bytes(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        (tensor.shape().to_vec(), tensor.data().to_vec())
    }

    fn f16s(&self, name: &str) -> (Vec<usize>, Vec<f16>) {
        let (shape, bytes) = self.bytes(name);
        let (words, _) = bytes.as_chunks::<2>();
        (
            shape,
            words.iter().map(|w| f16::from_le_bytes(*w)).collect(),
        )
    }

    fn f64s(&self, name: &str) -> Vec<f64> {
        let (_, bytes) = self.bytes(name);
        let (words, _) = bytes.as_chunks::<8>();
        words.iter().map(|w| f64::from_le_bytes(*w)).collect()
    }

    fn i8s(&self, name: &str) -> Vec<i8> {
        self.bytes(name).1.iter().map(|b| *b as i8).collect()
    }
}

/// Mean squared error of the tables and indices themselves, over groups of `channels` rows.
fn palette_mse(weights: &[f16], group_len: usize, nbits: u8) -> f64 {
    let mut scratch = Scratch::new();
    let mut indices = vec![0; group_len];
    let mut sse = 0.0;
    for group in weights.chunks_exact(group_len) {
        let result = palettize_group(group, nbits, None, &mut scratch, &mut indices).unwrap();
        for (w, &index) in group.iter().zip(&indices) {
            let error = w.to_f64() - result.lut.entries()[usize::from(index)].to_f64();
            sse += error * error;
        }
    }
    sse / weights.len() as f64
}

#[test]
fn exact_palettes_are_those_of_coremltools() {
    let golden = Golden::read();
    for name in ["bf16", "full"] {
        let (_, weights) = golden.f16s(name);
        let errors = golden.f64s(&format!("{name}.mse"));
        let mut scratch = Scratch::new();
        let mut indices = vec![0; weights.len()];
        for (nbits, theirs) in PALETTE_BITS.into_iter().zip(errors) {
            let ours = palette_mse(&weights, weights.len(), nbits);
            assert!(
                ours <= theirs * (1.0 + MSE_TOLERANCE),
                "{name}, {nbits} bits: {ours:e} above {theirs:e}"
            );
            let result =
                palettize_group(&weights, nbits, None, &mut scratch, &mut indices).unwrap();
            let (_, lut) = golden.f16s(&format!("{name}.lut{nbits}"));
            assert_eq!(result.lut.entries(), lut, "{name}, {nbits} bits");
        }
    }
}

#[test]
fn indices_are_those_of_coremltools_but_for_ties() {
    let golden = Golden::read();
    let (_, weights) = golden.f16s("bf16");
    let mut indices = vec![0; weights.len()];
    let mut scratch = Scratch::new();
    let result = palettize_group(&weights, 4, None, &mut scratch, &mut indices).unwrap();
    let (_, theirs) = golden.bytes("bf16.indices4");
    for ((w, &ours), &theirs) in weights.iter().zip(&indices).zip(&theirs) {
        // coremltools assigns before it rounds the table, so that a value near a boundary may be
        // one entry off.
        let distance = |i: u8| (w.to_f64() - result.lut.entries()[usize::from(i)].to_f64()).abs();
        assert!(ours == theirs || distance(ours) <= distance(theirs));
    }
    let moved = indices.iter().zip(&theirs).filter(|(a, b)| a != b).count();
    assert!(moved * 1000 < weights.len(), "{moved} indices differ");
}

#[test]
fn small_groups_are_no_worse_than_scikit_learn() {
    let golden = Golden::read();
    let (shape, weights) = golden.f16s("small");
    let errors = golden.f64s("small.mse");
    for (nbits, theirs) in PALETTE_BITS.into_iter().zip(errors) {
        let ours = palette_mse(&weights, 8 * shape[1], nbits);
        assert!(
            ours <= theirs * (1.0 + MSE_TOLERANCE),
            "{nbits} bits: {ours:e} above {theirs:e}"
        );
    }
}

/// `VECTORS` of `make.py`: bits of an index, length of a vector.
const VECTORS: [(u8, usize); 4] = [(4, 2), (6, 2), (4, 4), (8, 4)];

#[test]
fn palettes_of_vectors_are_no_worse_than_those_of_coremltools() {
    let golden = Golden::read();
    for name in ["bf16", "full"] {
        let (shape, weights) = golden.f16s(name);
        let errors = golden.f64s(&format!("{name}.vector_mse"));
        for ((nbits, vector), theirs) in VECTORS.into_iter().zip(errors) {
            let mut indices = vec![0; weights.len() / vector];
            let form = (nbits, vector);
            let mut scratch = Scratch::new();
            let result =
                palettize_vectors(&weights, shape[1], form, None, &mut scratch, &mut indices)
                    .unwrap();
            let ours = result.stats.mse();
            println!("{name} {form:?}: {ours:e}, coremltools {theirs:e}");
            assert!(
                ours <= theirs * (1.0 + MSE_TOLERANCE),
                "{name}, {form:?}: {ours:e} above {theirs:e}"
            );
        }
    }
}

#[test]
fn int8_tables_and_sparse_palettes_are_no_worse_than_those_of_coremltools() {
    let golden = Golden::read();
    for name in ["bf16", "full"] {
        let (_, weights) = golden.f16s(name);
        let errors = golden.f64s(&format!("{name}.joint_mse"));
        let mut scratch = Scratch::new();
        scratch.histogram.add(&weights).unwrap();
        let exact = scratch.fit(4).unwrap();
        let scaled = scale_luts(&[exact.lut]).unwrap();
        scratch.histogram.add(&weights).unwrap();
        let int8 = scratch
            .assign_to(scaled.luts[0].clone())
            .unwrap()
            .stats
            .mse();
        let (mut mask, mut indices) = (vec![0; weights.len()], vec![0; weights.len() / 2]);
        let shape = (4, 50);
        let sparse = palettize_sparse(&weights, shape, None, &mut scratch, &mut mask, &mut indices);
        let sparse = sparse.unwrap().stats.mse();
        for (what, ours, theirs) in [("int8", int8, errors[0]), ("sparse", sparse, errors[1])] {
            println!("{name} {what}: {ours:e}, coremltools {theirs:e}");
            assert!(
                ours <= theirs * (1.0 + MSE_TOLERANCE),
                "{name} {what}: {ours:e} above {theirs:e}"
            );
        }
    }
}

#[test]
fn integers_are_those_of_coremltools() {
    let golden = Golden::read();
    for name in ["full", "edge"] {
        let (shape, weights) = golden.f16s(name);
        let forms = [
            ("int8", 8, shape[1]),
            ("int4", 4, 32),
            ("int4_channel", 4, shape[1]),
            ("int8_block", 8, 32),
        ];
        for (kind, nbits, len) in forms {
            let theirs = golden.i8s(&format!("{name}.{kind}"));
            let (_, scales) = golden.f16s(&format!("{name}.{kind}_scale"));
            let mut out = vec![0; len];
            for (i, block) in weights.chunks_exact(len).enumerate() {
                let scale = quantize_symmetric(block, nbits, &mut out).unwrap();
                assert_eq!(
                    scale.to_bits(),
                    scales[i].to_bits(),
                    "{name} {kind} block {i}"
                );
                assert_eq!(
                    out,
                    theirs[i * len..(i + 1) * len],
                    "{name} {kind} block {i}"
                );
            }
        }
    }
}
