//! Broken files: an error or a package, never a panic.

use super::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Cuts of a file that are tried.
const CUTS: usize = 50;

/// Seeded changes of one file that are tried.
const FLIPS: usize = 400;

/// Opens what may be broken, and uses it as far as it opens.
fn try_open(sample: &Sample) -> bool {
    match sample.open() {
        Ok(package) => {
            assert!(!package.mil_text().is_empty());
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

fn files(sample: &Sample) -> [PathBuf; 3] {
    [
        sample.file(MODEL_PATH),
        sample.weights(),
        sample.file("Manifest.json"),
    ]
}

#[test]
fn truncated_files_are_refused() {
    let sample = Sample::new();
    for path in files(&sample) {
        let whole = fs::read(&path).unwrap();
        for cut in 0..CUTS {
            fs::write(&path, &whole[..whole.len() * cut / CUTS]).unwrap();
            assert!(!try_open(&sample), "{} cut at {cut}/{CUTS}", path.display());
        }
        fs::write(&path, whole).unwrap();
    }
    assert!(try_open(&sample));
}

#[test]
fn flipped_bytes_never_panic() {
    let sample = Sample::new();
    let mut rng = ChaCha8Rng::seed_from_u64(20);
    for path in files(&sample) {
        let whole = fs::read(&path).unwrap();
        for _ in 0..FLIPS {
            let mut bytes = whole.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= rng.random_range(1..=255u8);
            }
            fs::write(&path, bytes).unwrap();
            try_open(&sample);
        }
        fs::write(&path, whole).unwrap();
    }
    assert!(try_open(&sample));
}

/// Every single byte of the metadata in weight.bin matters: no change of it goes unseen.
#[test]
fn any_change_of_a_blob_header_is_refused() {
    let sample = Sample::new();
    let path = sample.weights();
    let whole = fs::read(&path).unwrap();
    for header in [0, 64, 192, 320, 448] {
        for at in header..header + 64 {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                fs::write(&path, bytes).unwrap();
                assert!(sample.open().is_err(), "byte {at} flipped by {flip:#x}");
            }
        }
    }
}

#[test]
fn huge_numbers_in_a_model_are_refused_without_allocating() {
    use pb::mil_spec::{dimension, value_type};
    let sample = Sample::new();
    for size in [u64::MAX, 1 << 62, 1 << 40] {
        let mut model = sample.model();
        mutations::main(&mut model).inputs[0].r#type = Some(pb::mil_spec::ValueType {
            r#type: Some(value_type::Type::TensorType(pb::mil_spec::TensorType {
                data_type: DType::Fp16.proto_number(),
                rank: 4,
                dimensions: vec![
                    pb::mil_spec::Dimension {
                        dimension: Some(dimension::Dimension::Constant(
                            dimension::ConstantDimension { size },
                        )),
                    };
                    4
                ],
            })),
        });
        sample.set_model(&model);
        assert!(sample.open().is_err());
    }
}
