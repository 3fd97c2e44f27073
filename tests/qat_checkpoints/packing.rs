//! Integers in bytes and words: every width, rows that are filled up, ranges that begin anywhere.

use crate::helpers::*;

/// The least and the greatest integer, and what lies between, in no order.
fn integers(count: usize, bits: usize) -> Vec<i8> {
    let low = -(1i32 << (bits - 1));
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (low + (state >> 16) as i32 % (1 << bits)) as i8
    };
    let mut all: Vec<i8> = (0..count).map(|_| next()).collect();
    all[0] = low as i8;
    all[count - 1] = (-low - 1) as i8;
    all
}

fn tied(mut config: Value) -> Value {
    config["tie_word_embeddings"] = true.into();
    config
}

/// A checkpoint of one matrix, as compressed-tensors stores it: of whole rows a step, or of groups.
fn compressed(
    bits: usize,
    block: Option<usize>,
    shape: [usize; 2],
    words: Vec<u8>,
    steps: &[f32],
) -> TempDir {
    let mut config = tied(config_of("w4a16-ct"));
    let weights = &mut config["quantization_config"]["config_groups"]["group_0"]["weights"];
    weights["num_bits"] = bits.into();
    if block.is_none() {
        (weights["strategy"], weights["group_size"]) = ("channel".into(), Value::Null);
    } else {
        weights["group_size"] = block.into();
    }
    let name = |part: &str| format!("{PREFIX}layers.0.mlp.up_proj.{part}");
    let [rows, columns] = shape;
    let count = (columns * bits).div_ceil(32);
    let tensors = [
        Raw::new(&name("weight_packed"), "I32", &[rows, count], words),
        Raw::new(
            &name("weight_scale"),
            "F32",
            &[rows, columns / block.unwrap_or(columns)],
            floats(steps),
        ),
        Raw::new(
            &name("weight_shape"),
            "I64",
            &[2],
            sizes(&[rows as i64, columns as i64]),
        ),
    ];
    written(&config, &tensors)
}

/// The same as transformers' `gemma` method stores it.
fn gemma(bits: usize, shape: [usize; 2], bytes: Vec<u8>, steps: &[f32]) -> TempDir {
    let mut config = tied(config_of("mobile"));
    let [rows, columns] = shape;
    config["text_config"]["hidden_size"] = columns.into();
    config["quantization_config"]["module_quant_configs"] = json!({"up_proj": {"num_bits": bits}});
    let name = |part: &str| format!("{PREFIX}layers.0.mlp.up_proj.{part}");
    let dtype = if bits == 8 { "I8" } else { "U8" };
    let tensors = [
        Raw::new(
            &name("weight"),
            dtype,
            &[rows, (columns * bits).div_ceil(8)],
            bytes,
        ),
        Raw::new(&name("weight_scale"), "F32", &[rows, 1], floats(steps)),
        Raw::new(&name("input_activation_scale"), "F32", &[], floats(&[0.5])),
        Raw::new(&name("output_activation_scale"), "F32", &[], floats(&[0.0])),
    ];
    written(&config, &tensors)
}

/// Reads ranges of every beginning and length.
fn every_range(checkpoint: &Checkpoint, integers: &[i8], steps: &[f32], shape: [usize; 2]) {
    let view = checkpoint.tensor(UP, &shape).unwrap();
    let grid = view.grid().expect("a grid");
    let value = |i: usize| f32::from(integers[i]) * steps[i / grid.block];
    assert_eq!(view.len(), integers.len());
    for start in 0..integers.len() {
        for end in (start..=integers.len()).step_by(3) {
            let range = start..end;
            let (mut codes, mut values) = (vec![99; end - start], vec![f32::NAN; end - start]);
            view.read_codes(range.clone(), &mut codes).unwrap();
            assert_eq!(
                codes,
                integers[range.clone()],
                "{shape:?} {grid:?} {range:?}"
            );
            view.read_f32(range.clone(), &mut values).unwrap();
            assert!(
                range.clone().map(value).eq(values.iter().copied()),
                "{shape:?} {grid:?} {range:?}"
            );
            let mut halves = vec![half::f16::ZERO; end - start];
            view.read_f16(range.clone(), &mut halves).unwrap();
            assert!(
                halves
                    .iter()
                    .zip(&values)
                    .all(|(h, v)| *h == half::f16::from_f32(*v))
            );
        }
    }
    let beyond = integers.len()..integers.len() + 1;
    assert!(view.read_codes(beyond.clone(), &mut [0]).is_err());
    assert!(view.read_f32(beyond, &mut [0.0]).is_err());
    assert!(view.read_codes(0..1, &mut [0, 0]).is_err());
    assert!(
        view.read_steps(steps.len()..steps.len() + 1, &mut [0.0])
            .is_err()
    );
}

#[test]
fn every_width_and_every_number_of_columns() {
    for bits in [2, 4, 8] {
        for columns in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33] {
            let shape = [3, columns];
            let integers = integers(3 * columns, bits);
            let steps = [0.37, 0.0, 1.5];
            let dir = compressed(
                bits,
                None,
                shape,
                packed(&integers, columns, bits, true, 32),
                &steps,
            );
            every_range(
                &Checkpoint::open(dir.path()).unwrap(),
                &integers,
                &steps,
                shape,
            );
            let dir = gemma(
                bits,
                shape,
                packed(&integers, columns, bits, bits != 8, 8),
                &steps,
            );
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            assert_eq!(checkpoint.activation_scales(UP).unwrap().input, 0.5);
            every_range(&checkpoint, &integers, &steps, shape);
        }
        for (columns, block) in [(6, 3), (12, 4), (10, 1), (20, 5)] {
            let shape = [2, columns];
            let integers = integers(2 * columns, bits);
            let steps: Vec<f32> = (0..2 * columns / block).map(|i| 0.1 + i as f32).collect();
            let dir = compressed(
                bits,
                Some(block),
                shape,
                packed(&integers, columns, bits, true, 32),
                &steps,
            );
            every_range(
                &Checkpoint::open(dir.path()).unwrap(),
                &integers,
                &steps,
                shape,
            );
        }
    }
}

/// A row of a real model's width, in pieces and at once.
#[test]
fn long_rows() {
    for (bits, block) in [(2, 256), (4, 32), (8, 8960)] {
        let shape = [2, 8960];
        let integers = integers(2 * 8960, bits);
        let steps: Vec<f32> = (0..2 * 8960 / block)
            .map(|i| 0.01 + i as f32 / 7.0)
            .collect();
        let words = packed(&integers, 8960, bits, true, 32);
        let dir = compressed(bits, Some(block), shape, words, &steps);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let all: Vec<f32> = integers
            .iter()
            .enumerate()
            .map(|(i, q)| f32::from(*q) * steps[i / block])
            .collect();
        assert_eq!(values(&checkpoint, UP), all);
        let view = checkpoint.tensor(UP, &shape).unwrap();
        let mut out = vec![0.0; 2000];
        for start in [1, 511, 8001, 8959, 15920] {
            view.read_f32(start..start + 2000, &mut out).unwrap();
            assert_eq!(out, all[start..start + 2000]);
        }
    }
}

/// What compressed-tensors itself packed.
#[test]
fn the_words_of_compressed_tensors() {
    let tensors = read_raw(&qat("packing.safetensors"));
    let mut read = 0;
    for t in tensors.iter().filter(|t| t.name.ends_with(".packed")) {
        let case = t.name.trim_end_matches(".packed");
        let bits: usize = case[1..2].parse().unwrap();
        let theirs = tensors
            .iter()
            .find(|c| c.name == format!("{case}.codes"))
            .unwrap();
        let shape = [theirs.shape[0], theirs.shape[1]];
        let integers: Vec<i8> = theirs.bytes.iter().map(|b| *b as i8).collect();
        let dir = compressed(bits, None, shape, t.bytes.clone(), &[1.0; 3]);
        if bits == 3 {
            says(&refused(dir.path()), &["weights.num_bits", "3", "2, 4, 8"]);
            continue;
        }
        assert_eq!(
            packed(&integers, shape[1], bits, true, 32),
            t.bytes,
            "{case}: the packer of these tests"
        );
        assert_eq!(
            codes(&Checkpoint::open(dir.path()).unwrap(), UP),
            integers,
            "{case}"
        );
        read += 1;
    }
    assert_eq!(read, 12);
}

/// What fills a row up may be anything, and steps of any number format.
#[test]
fn what_fills_a_row_up_has_no_part() {
    let integers = [7, -8, 3, -1, 0];
    let steps = [0.5f32, 0.25];
    let all = [&integers[..], &integers[..]].concat();
    let mut words = packed(&all, 5, 4, true, 32);
    // Columns 5 to 7 of each row.
    for row in words.chunks_mut(4) {
        row[2] |= 0xf0;
        row[3] = 0xab;
    }
    let dir = compressed(4, None, [2, 5], words, &steps);
    for dtype in ["F32", "F16", "BF16"] {
        let mut tensors = read_raw(&dir.path().join(SINGLE));
        let scale = find(&mut tensors, "weight_scale");
        (scale.dtype, scale.bytes) = match dtype {
            "F16" => (
                dtype.into(),
                steps.map(|s| half::f16::from_f32(s).to_le_bytes()).concat(),
            ),
            "BF16" => (
                dtype.into(),
                steps
                    .map(|s| half::bf16::from_f32(s).to_le_bytes())
                    .concat(),
            ),
            _ => (dtype.into(), floats(&steps)),
        };
        std::fs::write(dir.path().join(SINGLE), serialize(&tensors)).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        every_range(&checkpoint, &all, &steps, [2, 5]);
    }
}

/// Steps that mean nothing are found where they are read.
#[test]
fn steps_that_are_none() {
    for (bad, says_what) in [
        (-0.5, "the step of element 5 is -0.5"),
        (f32::NAN, "NaN"),
        (f32::INFINITY, "is "),
        (f32::NEG_INFINITY, "-inf"),
    ] {
        let integers = [0, 0, 0, 0, 0, 1, 0, 1, 1, 1];
        let dir = compressed(
            4,
            None,
            [2, 5],
            packed(&integers, 5, 4, true, 32),
            &[1.0, bad],
        );
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let view = checkpoint.tensor(UP, &[2, 5]).unwrap();
        let mut out = [0.0; 10];
        view.read_f32(0..5, &mut out[..5]).unwrap();
        says(
            &view.read_f32(0..10, &mut out).unwrap_err().to_string(),
            &[UP, says_what],
        );
        assert!(view.read_f16(0..10, &mut [half::f16::ZERO; 10]).is_err());
        says(
            &view
                .read_steps(0..2, &mut out[..2])
                .unwrap_err()
                .to_string(),
            &[UP, says_what],
        );
        view.read_steps(0..1, &mut out[..1]).unwrap();
    }
    // -0 is 0.
    let dir = compressed(4, None, [1, 1], packed(&[1], 1, 4, true, 32), &[-0.0]);
    assert_eq!(values(&Checkpoint::open(dir.path()).unwrap(), UP), [0.0]);
}
