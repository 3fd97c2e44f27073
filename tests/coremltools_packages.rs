//! Packages of every op and every storage, opened by coremltools: schema, type rules, layout and
//! decompressed weights agree with it.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::every_op::{arithmetic, conv_and_quantize, function, movement, states_and_storages};
use common::source::SeededSource;
use gemma_coreml::mil::{DType, DeferredConst, FunctionBuilder, OpType, Program};
use gemma_coreml::package::{
    Binding, ConstSource, ModelDescription, Package, PackageReport, PackageSpec, ReadFunction,
    ReadOp, ReadValue, Storage, WEIGHT_FILE_LIMIT, forecast_package, write_package,
};
use half::f16;

fn write(dir: &Path, program: &Program, source: &mut SeededSource) -> PackageReport {
    write_within(WEIGHT_FILE_LIMIT, dir, program, source)
}

/// Writes weight files that stay below `file_limit` bytes, and checks what was predicted of the files.
fn write_within(
    file_limit: u64,
    dir: &Path,
    program: &Program,
    source: &mut SeededSource,
) -> PackageReport {
    let order: Vec<String> = program.weights().iter().map(|c| c.id.clone()).collect();
    let description = ModelDescription {
        short_description: "a test".to_owned(),
        author: "gemma-coreml".to_owned(),
        license: "Apache-2.0".to_owned(),
        version: "1".to_owned(),
        user_defined: [("recipe".to_owned(), "none".to_owned())].into(),
    };
    let spec = PackageSpec {
        program,
        description,
        blob_order: &order,
        file_limit,
    };
    let predicted =
        forecast_package(&spec, &|c| source.storage(c), &mut |_| Ok(None)).expect("a forecast");
    let report = write_package(dir, &spec, source).expect("the package is written");
    // Weights with the same bytes are shared, which the forecast was not told of.
    let predicted: u64 = predicted.weights.iter().map(|file| file.bytes).sum();
    assert!(report.weight_bytes <= predicted);
    report
}

/// The four packages of one op set; together they have every op.
fn every_op(dir: &Path) -> (Vec<PathBuf>, Vec<Program>) {
    let mut source = SeededSource::default();
    let functions = [
        function(arithmetic),
        function(conv_and_quantize),
        function(movement),
        function(|o| source = states_and_storages(o)),
    ];
    let mut paths = Vec::new();
    let mut programs = Vec::new();
    for (i, function) in functions.into_iter().enumerate() {
        let program = Program::single(function);
        let path = dir.join(format!("ops{i}.mlpackage"));
        write(&path, &program, &mut source);
        paths.push(path);
        programs.push(program);
    }
    (paths, programs)
}

#[test]
fn every_op_with_and_without_each_attribute_agrees_with_coremltools() {
    let dir = tempfile::tempdir().unwrap();
    let (paths, _) = every_op(dir.path());
    let packages: Vec<Package> = paths.iter().map(|p| Package::open(p).unwrap()).collect();
    let ops = || packages.iter().flat_map(|p| &p.functions()["main"].ops);
    for &op_type in OpType::ALL {
        let of_type = || ops().filter(|op| op.op_type == op_type);
        assert!(of_type().next().is_some(), "no `{op_type}` in the test");
        let optional = op_type.args().iter().filter(|arg| !arg.required());
        for arg in optional.filter(|arg| (op_type, arg.name) != (OpType::LayerNorm, "axes")) {
            let given = of_type().any(|op| op.input(arg.name).is_some());
            let left_out = of_type().any(|op| op.input(arg.name).is_none());
            assert!(
                given && left_out,
                "`{op_type}` with and without `{}`",
                arg.name
            );
        }
    }
    common::coremltools_validate(&paths);
}

/// Plain dequantization from the bytes of a package, independent of the crate's own.
mod plain {
    use super::*;

    pub fn ints(value: &ReadValue) -> Vec<i32> {
        let (ty, bytes) = (value.ty(), value.bytes());
        let bits = ty.dtype.bits() as usize;
        let signed = ty.dtype.name().starts_with("int");
        (0..ty.elements().unwrap())
            .map(|i| {
                let bit =
                    |k: usize| i32::from(bytes[(i * bits + k) / 8] >> ((i * bits + k) % 8) & 1);
                let raw: i32 = (0..bits).map(|k| bit(k) << k).sum();
                if signed && raw >> (bits - 1) == 1 {
                    raw - (1 << bits)
                } else {
                    raw
                }
            })
            .collect()
    }

    pub fn halves(value: &ReadValue) -> Vec<f16> {
        let bytes = value.bytes();
        let (pairs, _) = bytes.as_chunks::<2>();
        pairs.iter().map(|&b| f16::from_le_bytes(b)).collect()
    }

    /// Index in a tensor of `groups` that covers one of `shape` evenly.
    pub fn group_of(mut flat: usize, shape: &[usize], groups: &[usize]) -> usize {
        let (mut index, mut stride) = (0, 1);
        for (&dim, &count) in shape.iter().zip(groups).rev() {
            index += flat % dim / (dim / count) * stride;
            stride *= count;
            flat /= dim;
        }
        index
    }
}

/// The op of a function that makes a value.
fn maker<'a>(function: &'a ReadFunction, value: &str) -> &'a ReadOp {
    let mut ops = function.ops.iter();
    ops.find(|op| op.outputs.iter().any(|(name, _)| name == value))
        .unwrap()
}

/// The dense value of a constexpr op.
fn dense(function: &ReadFunction, op: &ReadOp) -> Vec<f16> {
    let made = |arg: &str| match op.input(arg) {
        Some(Binding::Name(name)) => Some(maker(function, name)),
        _ => None,
    };
    let shape = &op.outputs[0].1.shape;
    match op.op_type {
        OpType::ConstexprBlockwiseShiftScale => scaled(op),
        OpType::ConstexprSparseToDense => {
            let sparse = made("nonzero_data").unwrap();
            let value = |arg: &str| in_place(sparse, arg).unwrap();
            let (mask, data, lut) = (
                value("indices_mask"),
                plain::ints(value("indices_nonzero_data")),
                value("lut"),
            );
            let bits = plain::ints(mask);
            let mut data = data.into_iter();
            let indices: Vec<Option<i32>> = bits
                .iter()
                .map(|&bit| (bit == 1).then(|| data.next().unwrap()))
                .collect();
            assert!(data.next().is_none());
            look_up(
                shape,
                &mask.ty().shape,
                &indices,
                (&plain::halves(lut), &lut.ty().shape),
            )
        }
        _ => {
            let indices = in_place(op, "indices").unwrap();
            let (table, lut) = match made("lut") {
                Some(lut) => (scaled(lut), lut.outputs[0].1.shape.clone()),
                None => {
                    let lut = in_place(op, "lut").unwrap();
                    (plain::halves(lut), lut.ty().shape)
                }
            };
            let numbers: Vec<Option<i32>> = plain::ints(indices).into_iter().map(Some).collect();
            look_up(shape, &indices.ty().shape, &numbers, (&table, &lut))
        }
    }
}

fn in_place<'a>(op: &'a ReadOp, arg: &str) -> Option<&'a ReadValue> {
    match op.input(arg) {
        Some(Binding::Value(value)) => Some(value),
        _ => None,
    }
}

fn scaled(op: &ReadOp) -> Vec<f16> {
    let shape = &op.outputs[0].1.shape;
    let (data, scale) = (
        in_place(op, "data").unwrap(),
        in_place(op, "scale").unwrap(),
    );
    let (numbers, scales) = (plain::ints(data), plain::halves(scale));
    let offsets = in_place(op, "offset").map(plain::ints);
    let one = |i: usize| {
        let block = plain::group_of(i, shape, &scale.ty().shape);
        let offset = offsets.as_ref().map_or(0, |o| o[block]);
        f16::from_f32((numbers[i] - offset) as f32 * scales[block].to_f32())
    };
    (0..shape.iter().product()).map(one).collect()
}

/// What indices of shape `ishape` are looked up as; zero where there is none.
fn look_up(
    shape: &[usize],
    ishape: &[usize],
    indices: &[Option<i32>],
    (table, lut): (&[f16], &[usize]),
) -> Vec<f16> {
    let (entries, vector) = (lut[lut.len() - 2], lut[lut.len() - 1]);
    let axis = (0..shape.len())
        .find(|&i| ishape[i] != shape[i])
        .unwrap_or(0);
    let inner: usize = shape[axis + 1..].iter().product();
    let one = |i: usize| {
        let along = i / inner % shape[axis];
        let outer = i / inner / shape[axis];
        let at = (outer * ishape[axis] + along / vector) * inner + i % inner;
        let group = plain::group_of(at, ishape, &lut[..lut.len() - 2]);
        let entry =
            |index: i32| table[(group * entries + index as usize) * vector + along % vector];
        indices[at].map_or(f16::ZERO, entry)
    };
    (0..shape.iter().product()).map(one).collect()
}

#[test]
fn weights_of_every_storage_decompress_as_in_coremltools() {
    decompressed_alike(WEIGHT_FILE_LIMIT, 1);
}

#[test]
fn weights_in_several_files_decompress_as_in_coremltools() {
    decompressed_alike(LARGEST_STORAGE, 4);
}

/// Fewer bytes than all weights of the storages have, more than any one.
const LARGEST_STORAGE: u64 = 4608;

/// Compares the weights of every storage, in at least so many files below `file_limit` bytes, with coremltools'.
fn decompressed_alike(file_limit: u64, files: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut source = SeededSource::default();
    let main = function(|o| source = states_and_storages(o));
    let path = dir.path().join("storages.mlpackage");
    write_within(file_limit, &path, &Program::single(main), &mut source);
    common::coremltools_dump_weights(std::slice::from_ref(&path), dir.path());
    let file = std::fs::read(dir.path().join("storages.safetensors")).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&file).unwrap();

    let package = Package::open(&path).unwrap();
    let found = package.weight_files().count();
    assert!(found >= files, "{found} files");
    let mut compared = BTreeSet::new();
    for op in &package.functions()["main"].ops {
        // The values of a sparse op are those of the op that takes them.
        if !op.op_type.is_constexpr() || op.op_type == OpType::ConstexprLutToSparse {
            continue;
        }
        let (name, ty) = &op.outputs[0];
        let tensor = theirs.tensor(&format!("main/{name}")).unwrap();
        assert_eq!(tensor.shape(), ty.shape, "{name}");
        let ours: Vec<u8> = dense(&package.functions()["main"], op)
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        assert!(
            ours == tensor.data(),
            "{name}: the decompressed weights differ"
        );
        compared.insert(op.op_type);
    }
    assert_eq!(
        compared.len(),
        3,
        "constexpr ops with dense results are compared"
    );
}

#[test]
fn two_functions_share_blobs_and_each_weight_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let build = |tokens: usize| {
        let mut b = FunctionBuilder::new("f");
        let x = b.input("x", DType::Fp16, &[1, 32, 1, tokens]).unwrap();
        let w = DeferredConst::new("proj.weight", DType::Fp16, &[64, 32, 1, 1]);
        let w = b.weight(w).unwrap();
        let y = b.conv(&x, &w, None, &Default::default()).unwrap();
        let state = b.state("cache", &[1, 64, 1, 16]).unwrap();
        let old = b.read_state(&state).unwrap();
        let gain = b
            .weight(DeferredConst::new("gain", DType::Fp16, &[64, 1, 1]))
            .unwrap();
        let same = b
            .weight(DeferredConst::new("gain_too", DType::Fp16, &[64, 1, 1]))
            .unwrap();
        let y = b.mul(&y, &gain).unwrap();
        let y = b.mul(&y, &same).unwrap();
        let all = b.concat(&[old, y], 3).unwrap();
        let kept = b.split(&all, &[tokens as i32, 16], 3).unwrap();
        b.write_state(&state, &kept[1]).unwrap();
        b.output("y", &kept[1]).unwrap();
        b.finish().unwrap()
    };
    let program = Program {
        functions: [
            ("infer".to_owned(), build(1)),
            ("prefill_b4".to_owned(), build(4)),
        ]
        .into(),
        default_function: "infer".to_owned(),
    };
    let storage = Storage::Palette {
        nbits: 4,
        lut_shape: vec![2, 1, 1, 1, 16, 1],
        vector_axis: None,
    };
    let mut source = SeededSource::default()
        .with("proj.weight", storage)
        .seeded("gain", 5)
        .seeded("gain_too", 5);
    let path = dir.path().join("multi.mlpackage");
    let report = write(&path, &program, &mut source);
    assert_eq!(report.blobs, 3, "indices, lut and one gain");

    let order: Vec<String> = program.weights().iter().map(|c| c.id.clone()).collect();
    let spec = PackageSpec {
        program: &program,
        description: ModelDescription::default(),
        blob_order: &order,
        file_limit: WEIGHT_FILE_LIMIT,
    };
    let predicted = forecast_package(&spec, &|c| source.storage(c), &mut |_| Ok(None)).unwrap();
    let predicted = predicted.weights[0].bytes;
    // What sharing saves: one metadata and 64 fp16 values, both whole multiples of 64.
    assert_eq!(predicted, report.weight_bytes + 64 + 128);

    let package = Package::open(&path).unwrap();
    assert_eq!(package.default_function(), "infer");
    assert_eq!(package.functions().len(), 2);
    assert_eq!(package.weight_bytes(), report.weight_bytes);
    let offsets = |function: &str, name: &str| {
        let ops = &package.functions()[function].ops;
        let op = ops
            .iter()
            .find(|op| op.outputs.iter().any(|(n, _)| n == name))
            .unwrap();
        let value = op.value.as_ref().or(match op.input("indices") {
            Some(Binding::Value(value)) => Some(value),
            _ => None,
        });
        match value {
            Some(ReadValue::Blob { offset, .. }) => *offset,
            other => panic!("{name} is {other:?}"),
        }
    };
    for name in ["proj_weight", "gain"] {
        assert_eq!(offsets("infer", name), offsets("prefill_b4", name));
    }
    assert_eq!(offsets("infer", "gain"), offsets("infer", "gain_too"));
    assert!(
        package
            .mil_text()
            .contains("func prefill_b4<ios18>(tensor<fp16, [1, 32, 1, 4]> x")
    );
    common::coremltools_validate(&[path]);
}

#[test]
fn the_same_program_makes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for run in ["a", "b"] {
        let root = dir.path().join(run);
        let (paths, _) = every_op(&root);
        let mut bytes = Vec::new();
        for path in paths {
            for file in [
                "Manifest.json",
                "Data/com.apple.CoreML/model.mlmodel",
                "Data/com.apple.CoreML/weights/weight.bin",
            ] {
                bytes.push(std::fs::read(path.join(file)).unwrap());
            }
        }
        all.push(bytes);
    }
    assert!(all[0] == all[1]);
}

#[test]
fn coremltools_refuses_a_wrong_type() {
    // The check itself can fail: an op that declares another shape than coremltools infers.
    let dir = tempfile::tempdir().unwrap();
    let mut main = function(arithmetic);
    let op = main
        .ops
        .iter_mut()
        .find(|op| op.op_type == OpType::Exp)
        .unwrap();
    op.outputs[0].1.shape[0] = 2;
    let path = dir.path().join("wrong.mlpackage");
    write(&path, &Program::single(main), &mut SeededSource::default());
    assert!(Package::open(&path).is_err());
    let results = common::coremltools_results(&[path]);
    assert_eq!(results[0]["ok"], false);
}

#[test]
fn validate_py_finds_what_coremltools_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::single(function(|o| {
        let w = o.weight("w", &[16]);
        o.b.exp(&w).unwrap();
    }));
    let weights = "Data/com.apple.CoreML/weights/weight.bin";
    let model = "Data/com.apple.CoreML/model.mlmodel";
    // The description comes before the program in the file, so the first name is in it.
    let faults: [(&str, &str, &[u8], &[u8]); 5] = [
        ("count", weights, &[1, 0, 0, 0, 2], &[0, 0, 0, 0, 2]),
        ("reserved", weights, &[2, 0, 0, 0, 0], &[2, 0, 0, 0, 1]),
        ("input", model, b"last_input", b"lost_input"),
        ("opset", model, b"CoreML8", b"CoreML7"),
        (
            "file",
            model,
            b"@model_path/weights",
            b"@model_path/heights",
        ),
    ];
    let mut paths = Vec::new();
    for (name, file, from, to) in faults {
        let path = dir.path().join(format!("{name}.mlpackage"));
        write(&path, &program, &mut SeededSource::default());
        let mut bytes = std::fs::read(path.join(file)).unwrap();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        std::fs::write(path.join(file), bytes).unwrap();
        assert!(Package::open(&path).is_err(), "{name}");
        paths.push(path);
    }
    for result in common::coremltools_results(&paths) {
        assert_eq!(result["ok"], false, "{result}");
    }
}
