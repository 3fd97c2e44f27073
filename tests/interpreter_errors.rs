//! What the interpreter refuses, and what it reports: wrong inputs, wrong types, unknown ops, overflows; packed weights
//! against plain ones; threads.

mod op_reference;

use gemma_coreml::mil::{DType, OpType, TensorType};
use gemma_coreml::package::{self, Package, Part, ReadFunction, Storage};
use gemma_coreml::runtime::{Error, Model, Precision, Tensor};
use op_reference::OneOp;
use std::collections::BTreeMap;

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::f32(shape, values.to_vec()).unwrap()
}

/// A repeatable stream of values in -1..1.
fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x2545_f491u32;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect()
}

/// `out = (x + y) * y`, with the sum named `sum`.
fn small(float: DType) -> (tempfile::TempDir, Package) {
    let dir = tempfile::tempdir().unwrap();
    let mut one = OneOp::new();
    let b = &mut one.builder;
    let x = b.input("x", float, &[2, 2]).unwrap();
    let y = b.input("y", float, &[2]).unwrap();
    let sum = b.add(&x, &y).unwrap();
    let sum = b.name_value(&sum, "sum").unwrap();
    let out = b.mul(&sum, &y).unwrap();
    b.output("out", &out).unwrap();
    let package = one.write(&dir.path().join("small.mlpackage"));
    (dir, package)
}

fn run(model: &mut Model, x: Tensor, y: Tensor) -> Result<BTreeMap<String, Tensor>, Error> {
    Ok(model.run(&BTreeMap::from([("x", x), ("y", y)]))?.outputs)
}

#[test]
fn kept_values_come_with_the_outputs() {
    let (_dir, package) = small(DType::Fp32);
    let mut model = Model::load(&package, "main", Precision::F32, &["sum", "x"]).unwrap();
    let x = floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let y = floats(&[2], &[10.0, 20.0]);
    for _ in 0..2 {
        let feeds = BTreeMap::from([("x", x.clone()), ("y", y.clone())]);
        let out = model.run(&feeds).unwrap();
        assert_eq!(out.kept["sum"], floats(&[2, 2], &[11.0, 22.0, 13.0, 24.0]));
        assert_eq!(out.kept["x"], x);
        assert_eq!(
            out.outputs["out"],
            floats(&[2, 2], &[110.0, 440.0, 130.0, 480.0])
        );
    }
    let unknown = Model::load(&package, "main", Precision::F32, &["nothing"]);
    assert!(matches!(unknown, Err(Error::UnknownValue(name)) if name == "nothing"));
    let unknown = Model::load(&package, "other", Precision::F32, &[]);
    assert!(matches!(unknown, Err(Error::UnknownFunction { name, .. }) if name == "other"));
}

#[test]
fn wrong_inputs_are_named() {
    let (_dir, package) = small(DType::Fp32);
    let mut model = Model::load(&package, "main", Precision::F32, &[]).unwrap();
    let x = || floats(&[2, 2], &[0.0; 4]);
    let missing = model.run(&BTreeMap::from([("x", x())]));
    assert!(matches!(missing, Err(Error::MissingInput(name)) if name == "y"));
    let unknown = model.run(&BTreeMap::from([("z", x())]));
    assert!(matches!(unknown, Err(Error::UnknownInput { name, .. }) if name == "z"));
    let shape = run(&mut model, x(), floats(&[1, 2], &[0.0; 2]));
    assert!(matches!(shape, Err(Error::InputType { name, .. }) if name == "y"));
    let kind = run(
        &mut model,
        Tensor::i32(&[2, 2], vec![0; 4]).unwrap(),
        floats(&[2], &[0.0; 2]),
    );
    assert!(matches!(kind, Err(Error::InputType { name, .. }) if name == "x"));
    // And it still runs afterwards.
    assert!(run(&mut model, x(), floats(&[2], &[0.0; 2])).is_ok());
}

fn with_output_type(function: &ReadFunction, op_type: OpType, ty: TensorType) -> ReadFunction {
    let mut changed = function.clone();
    let op = changed.ops.iter_mut().find(|op| op.op_type == op_type);
    op.unwrap().outputs[0].1 = ty;
    changed
}

#[test]
fn a_declared_type_other_than_the_derived_one_is_an_error_with_op_and_value() {
    let (_dir, package) = small(DType::Fp32);
    let function = &package.functions()["main"];
    for ty in [
        TensorType::new(DType::Fp32, &[4]),
        TensorType::new(DType::Fp32, &[2, 3]),
        TensorType::new(DType::Fp16, &[2, 2]),
    ] {
        let changed = with_output_type(function, OpType::Add, ty.clone());
        match Model::from_function(&changed, Precision::F32, &[]) {
            Err(Error::DeclaredType {
                op,
                value,
                declared,
                ..
            }) => {
                assert_eq!((op.as_str(), value.as_str()), ("sum", "sum"));
                assert_eq!(declared, ty.to_string());
            }
            other => panic!("{:?}", other.err()),
        }
    }
}

#[test]
fn an_undefined_value_is_an_error() {
    let (_dir, package) = small(DType::Fp32);
    let mut function = package.functions()["main"].clone();
    function.ops.retain(|op| op.op_type != OpType::Add);
    let result = Model::from_function(&function, Precision::F32, &[]);
    assert!(matches!(result, Err(Error::UndefinedValue { value, .. }) if value == "sum"));
}

#[test]
fn an_unknown_op_type_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tanh.mlpackage");
    let mut one = OneOp::new();
    let x = one.builder.input("x", DType::Fp16, &[2]).unwrap();
    let y = one.builder.tanh(&x).unwrap();
    one.builder.output("y", &y).unwrap();
    one.write(&path);
    let model = path.join(package::MODEL_PATH);
    let mut bytes = std::fs::read(&model).unwrap();
    let at = bytes.windows(4).position(|w| w == b"tanh").unwrap();
    bytes[at..at + 4].copy_from_slice(b"tang");
    std::fs::write(&model, bytes).unwrap();
    match Package::open(&path) {
        Err(package::Error::UnknownOp { op_type, .. }) => assert_eq!(op_type, "tang"),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn an_unsupported_attribute_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = OneOp::new();
    let b = &mut one.builder;
    let x = b.input("x", DType::Fp32, &[1, 2, 5, 5]).unwrap();
    let values = gemma_coreml::mil::ImmediateData::Fp32(vec![0.5; 8]);
    let w = b.immediate(gemma_coreml::mil::Immediate::new(&[1, 2, 2, 2], values).unwrap());
    let w = w.unwrap();
    let same = b
        .immediate(gemma_coreml::mil::Immediate::string("same"))
        .unwrap();
    let args: [(&'static str, &[_]); 3] = [("x", &[x]), ("weight", &[w]), ("pad_type", &[same])];
    let y = b.op(OpType::Conv, &args).unwrap().remove(0);
    b.output("y", &y).unwrap();
    let package = one.write(&dir.path().join("same.mlpackage"));
    match Model::load(&package, "main", Precision::F32, &[]) {
        Err(Error::Unsupported { op, what, .. }) => {
            assert_eq!(op, "y");
            assert!(what.contains("same"), "{what}");
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn an_index_out_of_range_is_an_error_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = OneOp::new();
    let b = &mut one.builder;
    let x = b.input("x", DType::Fp32, &[4, 3]).unwrap();
    let i = b.input("i", DType::Int32, &[2]).unwrap();
    let rows = b.gather(&x, &i, 0, 0).unwrap();
    b.output("rows", &rows).unwrap();
    let package = one.write(&dir.path().join("gather.mlpackage"));
    let mut model = Model::load(&package, "main", Precision::F32, &[]).unwrap();
    let x = floats(&[4, 3], &noise(12));
    for bad in [4, -1] {
        let i = Tensor::i32(&[2], vec![0, bad]).unwrap();
        let result = model.run(&BTreeMap::from([("x", x.clone()), ("i", i)]));
        assert!(
            matches!(result, Err(Error::IndexRange { index, len: 4, .. }) if index == i64::from(bad))
        );
    }
}

#[test]
fn f16_counts_what_overflows_and_f32_does_not() {
    let (_dir, package) = small(DType::Fp16);
    let x = || floats(&[2, 2], &[300.0, 1.0, 300.0, f32::NEG_INFINITY]);
    let y = || floats(&[2], &[300.0, 1.0]);
    let mut model = Model::load(&package, "main", Precision::F16, &[]).unwrap();
    for _ in 0..2 {
        let out = run(&mut model, x(), y()).unwrap();
        let out = out["out"].as_f32().unwrap();
        assert_eq!(out, [f32::INFINITY, 2.0, f32::INFINITY, f32::NEG_INFINITY]);
    }
    // -inf came in with x: only the two products count, twice.
    let overflows: Vec<_> = model.overflows().cloned().collect();
    assert_eq!(overflows.len(), 1);
    assert_eq!(
        (overflows[0].value.as_str(), overflows[0].count),
        ("out", 4)
    );
    assert_eq!(overflows[0].first_run, 0);
    model.reset();
    assert_eq!(model.overflows().count(), 0);
    run(&mut model, floats(&[2, 2], &[70000.0, 0.0, 0.0, 0.0]), y()).unwrap();
    assert!(model.overflows().any(|o| o.op == "input" && o.value == "x"));

    let mut model = Model::load(&package, "main", Precision::F32, &[]).unwrap();
    let out = run(&mut model, x(), y()).unwrap();
    assert_eq!(out["out"].as_f32().unwrap()[0], 180_000.0);
    assert_eq!(model.overflows().count(), 0);
}

#[test]
fn f16_counts_an_overflow_of_constants() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = OneOp::new();
    let b = &mut one.builder;
    let x = b.input("x", DType::Fp16, &[1]).unwrap();
    let c = b.scalar_f16(300.0).unwrap();
    let square = b.mul(&c, &c).unwrap();
    let y = b.add(&x, &square).unwrap();
    b.output("y", &y).unwrap();
    let package = one.write(&dir.path().join("constants.mlpackage"));
    for (precision, expected, values) in [
        (Precision::F16, f32::INFINITY, 1),
        (Precision::F32, 90_001.0, 0),
    ] {
        let mut model = Model::load(&package, "main", precision, &[]).unwrap();
        let x = floats(&[1], &[1.0]);
        let out = model.run(&BTreeMap::from([("x", x)])).unwrap();
        assert_eq!(out.outputs["y"].as_f32().unwrap(), [expected]);
        assert_eq!(model.overflows().count(), values);
    }
}

/// `conv(x, w)` and `linear(x, w)` with a palettized weight, and the same through `identity(w)`, which decodes it first.
fn packed_and_plain(nbits: u8, rows: usize, cols: usize) -> (tempfile::TempDir, Package) {
    let dir = tempfile::tempdir().unwrap();
    let entries = 1usize << nbits;
    let groups = 4;
    let parts = |seed: usize| {
        let bytes = (rows * cols * usize::from(nbits)).div_ceil(8);
        let codes = noise(bytes + seed);
        let indices = codes[seed..]
            .iter()
            .map(|v| (v * 1e6) as i32 as u8)
            .collect();
        let lut = noise(groups * entries + seed)[seed..]
            .iter()
            .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
            .collect();
        vec![(Part::Data, indices), (Part::Lut, lut)]
    };
    let storage = |rank: usize| {
        let mut lut_shape = vec![groups];
        lut_shape.extend(vec![1; rank - 1]);
        lut_shape.extend([entries, 1]);
        Storage::Palette {
            nbits,
            lut_shape,
            vector_axis: None,
        }
    };
    let mut one = OneOp::new();
    let conv_w = one.weight("c", DType::Fp16, &[rows, cols, 1, 1], storage(4), parts(0));
    let linear_w = one.weight("l", DType::Fp16, &[rows, cols], storage(2), parts(5));
    let b = &mut one.builder;
    let x = b.input("x", DType::Fp16, &[1, cols, 1, 1]).unwrap();
    let rows_in = b.input("rows", DType::Fp16, &[3, cols]).unwrap();
    let params = gemma_coreml::mil::ConvParams::default();
    let packed = b.conv(&x, &conv_w, None, &params).unwrap();
    let plain = b.identity(&conv_w).unwrap();
    let plain = b.conv(&x, &plain, None, &params).unwrap();
    b.output("conv_packed", &packed).unwrap();
    b.output("conv_plain", &plain).unwrap();
    let packed = b.linear(&rows_in, &linear_w, None).unwrap();
    let w = b.identity(&linear_w).unwrap();
    let plain = b.matmul(&rows_in, &w, false, true).unwrap();
    b.output("linear_packed", &packed).unwrap();
    b.output("linear_plain", &plain).unwrap();
    let package = one.write(&dir.path().join("packed.mlpackage"));
    (dir, package)
}

/// Allowed difference of sums in another order, as a part of the largest.
const SUM_TOLERANCE: f32 = 1e-6;

#[test]
fn packed_weights_give_the_values_of_plain_interpretation() {
    for nbits in [1, 2, 3, 4, 6, 8] {
        for cols in [64, 94] {
            let (_dir, package) = packed_and_plain(nbits, 48, cols);
            let mut model = Model::load(&package, "main", Precision::F32, &[]).unwrap();
            let feeds = BTreeMap::from([
                ("x", floats(&[1, cols, 1, 1], &noise(cols))),
                ("rows", floats(&[3, cols], &noise(3 * cols))),
            ]);
            let out = model.run(&feeds).unwrap().outputs;
            for op in ["conv", "linear"] {
                let of = |form: &str| out[&format!("{op}_{form}")].as_f32().unwrap();
                let (packed, plain) = (of("packed"), of("plain"));
                assert_eq!(packed.len(), plain.len());
                let largest = plain.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (a, b) in packed.iter().zip(plain) {
                    let allowed = SUM_TOLERANCE * largest;
                    assert!(
                        (a - b).abs() <= allowed,
                        "{op}, {nbits} bits, {cols}: {a} {b}"
                    );
                }
            }
            assert!(
                out["conv_packed"]
                    .as_f32()
                    .unwrap()
                    .iter()
                    .any(|&v| v != 0.0)
            );
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (_dir, package) = packed_and_plain(4, 1024, 640);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let mut model = Model::load(&package, "main", Precision::F32, &[]).unwrap();
        let feeds = BTreeMap::from([
            ("x", floats(&[1, 640, 1, 1], &noise(640))),
            ("rows", floats(&[3, 640], &noise(1920))),
        ]);
        pool.install(|| model.run(&feeds).unwrap().outputs)
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}
