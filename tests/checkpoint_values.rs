//! Weights as they are read: every dtype, values that cannot be, ranges outside a tensor.

mod snapshots;

use gemma_coreml::checkpoint::{Checkpoint, Error};
use half::{bf16, f16};
use tempfile::TempDir;

use snapshots::{edited, find, fixture};

/// Values as one file of the given dtype, the norm weight of e4b-tiny (96 values).
fn with_norm(dtype: &str, values: &[f32]) -> TempDir {
    let mut values = values.to_vec();
    values.resize(96, 1.0);
    let bytes = |v: &f32| match dtype {
        "BF16" => bf16::from_f32(*v).to_le_bytes().to_vec(),
        "F16" => f16::from_f32(*v).to_le_bytes().to_vec(),
        _ => v.to_le_bytes().to_vec(),
    };
    edited(|t| {
        let norm = find(t, "language_model.norm.weight");
        norm.dtype = dtype.into();
        norm.bytes = values.iter().flat_map(bytes).collect();
    })
}

#[test]
fn values_of_each_dtype() {
    let values = [
        0.0, -0.0, 1.0, -2.5, 0.099_976, 6.1e-5, 1e-7, 65504.0, 3.0e-8, -1e-9,
    ];
    for dtype in ["BF16", "F16", "F32"] {
        let dir = with_norm(dtype, &values);
        let checkpoint = Checkpoint::open(dir.path()).expect(dtype);
        let view = checkpoint.tensor("norm.weight", &[96]).expect(dtype);
        let stored: Vec<f32> = values
            .iter()
            .map(|v| match dtype {
                "BF16" => bf16::from_f32(*v).to_f32(),
                "F16" => f16::from_f32(*v).to_f32(),
                _ => *v,
            })
            .collect();
        let stored = &stored[..if dtype == "BF16" { 7 } else { 10 }];
        let mut out = vec![0f32; stored.len()];
        view.read_f32(0..stored.len(), &mut out).expect(dtype);
        assert_eq!(out, stored, "{dtype}");
        let mut part = vec![0f32; 3];
        view.read_f32(2..5, &mut part).expect(dtype);
        assert_eq!(part, &stored[2..5], "{dtype}");
        let mut halves = vec![f16::ZERO; stored.len()];
        view.read_f16(0..stored.len(), &mut halves).expect(dtype);
        let expected: Vec<u16> = stored.iter().map(|v| f16::from_f32(*v).to_bits()).collect();
        assert_eq!(
            halves.iter().map(|h| h.to_bits()).collect::<Vec<_>>(),
            expected,
            "{dtype}"
        );
    }
}

#[test]
fn nan_and_infinity_name_tensor_and_index() {
    for dtype in ["BF16", "F16", "F32"] {
        for (index, bad) in [(0, f32::NAN), (41, f32::INFINITY), (95, f32::NEG_INFINITY)] {
            let mut values = vec![1.0; 96];
            values[index] = bad;
            let dir = with_norm(dtype, &values);
            let checkpoint = Checkpoint::open(dir.path()).expect(dtype);
            let view = checkpoint.tensor("norm.weight", &[96]).expect(dtype);
            let start = index.saturating_sub(5);
            let range = start..96;
            let found = |error: Error| match error {
                Error::NotFinite { tensor, index, .. } => (tensor, index),
                other => panic!("{dtype}: {other}"),
            };
            let error = view
                .read_f32(range.clone(), &mut vec![0.0; 96 - start])
                .expect_err("not finite");
            assert_eq!(found(error), ("norm.weight".into(), index), "{dtype}");
            let error = view
                .read_f16(range, &mut vec![f16::ZERO; 96 - start])
                .expect_err("not finite");
            assert_eq!(found(error), ("norm.weight".into(), index), "{dtype}");
            if index > 0 {
                view.read_f32(0..index, &mut vec![0.0; index])
                    .expect("the part before is fine");
            }
        }
    }
}

/// 65520 is the first value that rounds beyond fp16's range.
#[test]
fn beyond_fp16() {
    let dir = with_norm("F32", &[65519.9, 1.0, -65520.0, 1.0]);
    let checkpoint = Checkpoint::open(dir.path()).expect("a snapshot");
    let view = checkpoint.tensor("norm.weight", &[96]).expect("a norm");
    let mut out = [f16::ZERO; 2];
    view.read_f16(0..2, &mut out).expect("rounds down");
    assert_eq!(out[0], f16::MAX);
    let error = view.read_f16(1..3, &mut out).expect_err("beyond");
    match error {
        Error::Fp16Range {
            tensor,
            index,
            value,
        } => {
            assert_eq!(
                (tensor.as_str(), index, value),
                ("norm.weight", 2, -65520.0)
            );
        }
        other => panic!("{other}"),
    }
    let mut out = [0f32; 4];
    view.read_f32(0..4, &mut out).expect("f32 has room");
    let dir = with_norm("BF16", &[1e30]);
    let checkpoint = Checkpoint::open(dir.path()).expect("a snapshot");
    let view = checkpoint.tensor("norm.weight", &[96]).expect("a norm");
    let error = view.read_f16(0..1, &mut [f16::ZERO]).expect_err("beyond");
    assert!(
        matches!(error, Error::Fp16Range { index: 0, .. }),
        "{error}"
    );
}

#[test]
fn ranges_outside_a_tensor() {
    let checkpoint = Checkpoint::open(&fixture("e4b-tiny")).expect("a fixture");
    let view = checkpoint.tensor("norm.weight", &[96]).expect("a norm");
    #[expect(clippy::reversed_empty_ranges)]
    for (range, buffer) in [
        (0..97, 97),
        (96..97, 1),
        (usize::MAX - 1..usize::MAX, 1),
        (0..4, 3),
        (0..4, 5),
        (5..4, 0),
    ] {
        let error = view
            .read_f32(range.clone(), &mut vec![0.0; buffer])
            .expect_err("outside");
        assert!(
            matches!(&error, Error::Range { len: 96, .. }),
            "{range:?}: {error}"
        );
        view.read_f16(range, &mut vec![f16::ZERO; buffer])
            .expect_err("outside");
    }
    view.read_f32(96..96, &mut []).expect("nothing");
}
