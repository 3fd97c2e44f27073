//! Every op of the interpreter against coremltools' value inference (numpy for what that lacks), from packages on disk.

mod op_reference;

use gemma_coreml::mil::{DType, OpType};
use gemma_coreml::runtime::{Model, Precision, Tensor};
use half::f16;
use op_reference::{Arg, Case, OneOp, Stored, Variant, load, numbers};
use std::collections::{BTreeMap, BTreeSet};

/// Allowed difference of an f32 result, relative to 1 + its size: the order of sums and the last bits of exp and the like.
const F32_TOLERANCE: f32 = 1e-5;

/// Allowed difference of an fp16 result from the rounded reference: one unit in the last place.
const F16_RELATIVE: f32 = 1.0 / 1024.0;
/// The same among subnormals.
const F16_ABSOLUTE: f32 = 1.0 / 16_777_216.0;

const AS_INPUTS: Variant = Variant {
    float: DType::Fp32,
    inputs: true,
    spell_defaults: false,
};

/// Runs the op of a case in a program read from disk; the shapes of its results are those of the case.
fn run(case: &Case, variant: Variant, precision: Precision) -> Result<Vec<Tensor>, String> {
    let dir = tempfile::tempdir().unwrap();
    let mut one = OneOp::new();
    let results = one.op(case, variant)?;
    assert_eq!(results.len(), case.outputs.len(), "{}", case.name);
    for (i, (var, want)) in results.iter().zip(&case.outputs).enumerate() {
        if var.shape() != want.shape {
            return Err(format!(
                "shape {:?}, expected {:?}",
                var.shape(),
                want.shape
            ));
        }
        one.output(&format!("out_{i}"), var);
    }
    let feeds = std::mem::take(&mut one.feeds);
    let package = one.write(&dir.path().join("case.mlpackage"));
    let mut model = Model::load(&package, "main", precision, &[]).map_err(|e| e.to_string())?;
    let feeds: BTreeMap<&str, Tensor> = feeds
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    let out = model.run(&feeds).map_err(|e| e.to_string())?;
    Ok(out.outputs.into_values().collect())
}

fn close(got: f32, want: f32) -> bool {
    got == want || (got - want).abs() <= F32_TOLERANCE * (1.0 + want.abs())
}

fn close_in_f16(got: f32, want: f32) -> bool {
    let want = f16::from_f32(want).to_f32();
    got == want || (got - want).abs() <= F16_RELATIVE * want.abs() + F16_ABSOLUTE
}

fn compare(case: &Case, got: &[Tensor], close: fn(f32, f32) -> bool) -> Result<(), String> {
    for (got, want) in got.iter().zip(&case.outputs) {
        let (got, float) = (numbers(got), want.dtype.is_float());
        let want = numbers(&want.tensor());
        if got.len() != want.len() {
            return Err(format!("{} elements, expected {}", got.len(), want.len()));
        }
        for (i, (&g, &w)) in got.iter().zip(&want).enumerate() {
            let equal = if float { close(g, w) } else { g == w };
            if !equal {
                return Err(format!("element {i}: {g}, expected {w}"));
            }
        }
    }
    Ok(())
}

/// Runs a check on every case and reports all that fail.
fn check_all(check: impl Fn(&Case) -> Result<(), String>) {
    let failures: Vec<String> = cases()
        .filter_map(|case| check(&case).err().map(|e| format!("{}: {e}", case.name)))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn cases() -> impl Iterator<Item = Case> {
    let states = [OpType::ReadState, OpType::WriteState];
    load()
        .into_iter()
        .filter(move |case| !states.contains(&case.op))
}

#[test]
fn every_op_has_a_case() {
    let covered: BTreeSet<&str> = load().iter().map(|case| case.op.name()).collect();
    let missing: Vec<&str> = OpType::ALL
        .iter()
        .map(|op| op.name())
        .filter(|name| !covered.contains(name))
        .collect();
    assert!(missing.is_empty(), "no reference case for {missing:?}");
}

#[test]
fn fp32_programs_in_f32() {
    for inputs in [true, false] {
        let variant = Variant {
            inputs,
            ..AS_INPUTS
        };
        check_all(|case| compare(case, &run(case, variant, Precision::F32)?, close));
    }
}

#[test]
fn fp16_programs_keep_f32_activations_in_f32() {
    let variant = Variant {
        float: DType::Fp16,
        ..AS_INPUTS
    };
    check_all(|case| match case.only_fp32 {
        true => Ok(()),
        false => compare(case, &run(case, variant, Precision::F32)?, close),
    });
}

#[test]
fn fp16_programs_in_f16_round_once() {
    for inputs in [true, false] {
        let variant = Variant {
            float: DType::Fp16,
            inputs,
            spell_defaults: false,
        };
        check_all(|case| match case.only_fp32 {
            true => Ok(()),
            false => compare(case, &run(case, variant, Precision::F16)?, close_in_f16),
        });
    }
}

#[test]
fn f16_results_are_fp16_values() {
    let variant = Variant {
        float: DType::Fp16,
        ..AS_INPUTS
    };
    check_all(|case| {
        // These two may have fp32 results.
        if case.only_fp32 || matches!(case.op, OpType::Cast | OpType::Const) {
            return Ok(());
        }
        let got = run(case, variant, Precision::F16)?;
        let floats = got
            .iter()
            .zip(&case.outputs)
            .filter(|(_, want)| want.dtype.is_float());
        let mut values = floats.flat_map(|(got, _)| numbers(got));
        match values.find(|&v| f16::from_f32(v).to_f32() != v) {
            None => Ok(()),
            Some(value) => Err(format!("{value} is no fp16 value")),
        }
    });
}

#[test]
fn defaults_left_out_and_given_are_the_same() {
    check_all(|case| {
        let variant = Variant {
            spell_defaults: true,
            ..AS_INPUTS
        };
        let given = run(case, variant, Precision::F32)?;
        let left_out = run(case, AS_INPUTS, Precision::F32)?;
        match given == left_out {
            true => Ok(()),
            false => Err(format!("given {given:?}, left out {left_out:?}")),
        }
    });
}

#[test]
fn states_keep_what_was_written_until_they_are_reset() {
    for case in load() {
        let [("data", Arg::Tensors(steps))] = &case.args[..] else {
            continue;
        };
        let dir = tempfile::tempdir().unwrap();
        let mut one = OneOp::new();
        let b = &mut one.builder;
        let x = b.input("x", DType::Fp16, &steps[0].shape).unwrap();
        let state = b.state("sum", &steps[0].shape).unwrap();
        let before = b.read_state(&state).unwrap();
        let sum = b.add(&before, &x).unwrap();
        b.write_state(&state, &sum).unwrap();
        let after = b.read_state(&state).unwrap();
        b.output("out", &after).unwrap();
        let package = one.write(&dir.path().join("state.mlpackage"));
        let mut model = Model::load(&package, "main", Precision::F32, &[]).unwrap();
        let mut feed = |x: &Stored| {
            let feeds = BTreeMap::from([("x", x.tensor())]);
            model.run(&feeds).unwrap().outputs["out"].clone()
        };
        let got: Vec<Tensor> = steps.iter().map(&mut feed).collect();
        compare(&case, &got, close).unwrap();
        model.reset();
        let feeds = BTreeMap::from([("x", steps[1].tensor())]);
        assert_eq!(model.run(&feeds).unwrap().outputs["out"], steps[1].tensor());
    }
}
