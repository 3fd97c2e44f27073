//! Packages of every op and every storage, opened by coremltools: schema, type rules, layout and
//! decompressed weights agree with it.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::source::SeededSource;
use gemma_coreml::mil::{
    DType, DeferredConst, Function, FunctionBuilder, Immediate, ImmediateData, OpType, Program, Var,
};
use gemma_coreml::package::{
    Binding, ModelDescription, Package, PackageReport, PackageSpec, ReadValue, Storage,
    predict_weight_bytes, write_package,
};
use half::f16;

fn write(dir: &Path, program: &Program, source: &mut SeededSource) -> PackageReport {
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
    };
    write_package(dir, &spec, source).expect("the package is written")
}

/// A function under construction with short ways to its values.
struct Ops {
    b: FunctionBuilder,
}

impl Ops {
    fn imm(&mut self, v: Immediate) -> Var {
        self.b.immediate(v).unwrap()
    }

    fn int(&mut self, v: i32) -> Var {
        self.imm(Immediate::int32(v))
    }

    fn ints(&mut self, v: &[i32]) -> Var {
        self.imm(Immediate::int32s(v))
    }

    fn flag(&mut self, v: bool) -> Var {
        self.imm(Immediate::bool(v))
    }

    fn flags(&mut self, v: &[bool]) -> Var {
        self.imm(Immediate::bools(v))
    }

    fn text(&mut self, v: &str) -> Var {
        self.imm(Immediate::string(v))
    }

    fn half(&mut self, v: f32) -> Var {
        self.imm(Immediate::fp16(f16::from_f32(v)))
    }

    fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Var {
        self.b.input(name, dtype, shape).unwrap()
    }

    fn weight(&mut self, id: &str, shape: &[usize]) -> Var {
        let c = DeferredConst::new(id, DType::Fp16, shape);
        self.b.weight(c).unwrap()
    }

    /// The op with its required arguments only, and with all of them.
    fn both(&mut self, op: OpType, required: &[(&'static str, Var)], rest: &[(&'static str, Var)]) {
        self.op(op, required);
        let all: Vec<_> = required.iter().chain(rest).cloned().collect();
        self.op(op, &all);
    }

    fn op(&mut self, op: OpType, args: &[(&'static str, Var)]) -> Vec<Var> {
        let args: Vec<_> = args
            .iter()
            .map(|(arg, var)| (*arg, std::slice::from_ref(var)))
            .collect();
        self.b.op(op, &args).unwrap()
    }
}

/// Element-wise ops, reductions, normalization and products.
fn arithmetic(o: &mut Ops) {
    let x = o.input("x", DType::Fp16, &[1, 8, 3, 4]);
    let y = o.input("y", DType::Fp16, &[8, 1, 4]);
    use OpType::*;
    for op in [Add, Sub, Mul, RealDiv, Maximum, Minimum, Pow] {
        o.op(op, &[("x", x.clone()), ("y", y.clone())]);
    }
    for op in [Exp, Tanh, Sigmoid, Silu, Sqrt, Cos, Sin, Identity] {
        o.op(op, &[("x", x.clone())]);
    }
    let (eps, mode) = (o.half(1e-3), o.text("TANH_APPROXIMATION"));
    o.both(Rsqrt, &[("x", x.clone())], &[("epsilon", eps.clone())]);
    o.both(Gelu, &[("x", x.clone())], &[("mode", mode)]);
    let mode = o.text("SIGMOID_APPROXIMATION");
    o.op(Gelu, &[("x", x.clone()), ("mode", mode)]);
    let (axis, keep) = (o.int(1), o.flag(true));
    o.both(Softmax, &[("x", x.clone())], &[("axis", axis.clone())]);
    let axes = o.ints(&[-1, 1]);
    for op in [ReduceMean, ReduceSum, ReduceMax, ReduceSumSquare] {
        let rest = [("axes", axes.clone()), ("keep_dims", keep.clone())];
        o.both(op, &[("x", x.clone())], &rest);
        o.op(op, &[("x", x.clone()), ("axes", axes.clone())]);
    }
    let short = o.text("uint16");
    let rest = [("axis", axis), ("keep_dims", keep), ("output_dtype", short)];
    o.both(ReduceArgmax, &[("x", x.clone())], &rest);

    let (gamma, beta) = (o.weight("gamma", &[3, 4]), o.weight("beta", &[3, 4]));
    // Without `axes` coremltools 9.0 cannot load a layer_norm: it makes its own default a range.
    let axes = o.ints(&[2, 3]);
    let required = [("x", x.clone()), ("axes", axes)];
    let rest = [("gamma", gamma), ("beta", beta), ("epsilon", eps)];
    o.both(LayerNorm, &required, &rest);
    let (tx, ty) = (o.flag(true), o.flag(true));
    let y = o.input("rows", DType::Fp16, &[8, 5, 3]);
    o.op(
        Matmul,
        &[
            ("x", x.clone()),
            ("y", y.clone()),
            ("transpose_x", tx),
            ("transpose_y", ty),
        ],
    );
    let z = o.input("columns", DType::Fp16, &[4, 6]);
    o.op(Matmul, &[("x", x.clone()), ("y", z)]);
    let (weight, bias) = (o.weight("linear_w", &[5, 4]), o.weight("linear_b", &[5]));
    o.both(
        Linear,
        &[("x", x.clone()), ("weight", weight)],
        &[("bias", bias)],
    );
    let q = o.input("query", DType::Fp16, &[1, 2, 3, 8]);
    let k = o.input("key", DType::Fp16, &[1, 2, 7, 8]);
    let v = o.input("value", DType::Fp16, &[1, 2, 7, 4]);
    let mask = o.input("mask", DType::Fp16, &[1, 1, 3, 7]);
    let required = [("query", q), ("key", k), ("value", v)];
    o.both(ScaledDotProductAttention, &required, &[("attn_mask", mask)]);
}

/// Convolutions of every padding, and quantization.
fn conv_and_quantize(o: &mut Ops) {
    use OpType::*;
    let x = o.input("image", DType::Fp16, &[1, 8, 9, 7]);
    let (w, b) = (o.weight("conv_w", &[6, 4, 3, 2]), o.weight("conv_b", &[6]));
    let wide = o.weight("conv_wide", &[6, 8, 1, 1]);
    o.op(Conv, &[("x", x.clone()), ("weight", wide)]);
    for pad_type in ["valid", "custom", "same", "same_lower"] {
        let (strides, pad) = (o.ints(&[2, 1]), o.ints(&[1, 0, 2, 1]));
        let (dilations, groups) = (o.ints(&[1, 2]), o.int(2));
        let pad_type = o.text(pad_type);
        o.op(
            Conv,
            &[
                ("x", x.clone()),
                ("weight", w.clone()),
                ("bias", b.clone()),
                ("strides", strides),
                ("pad_type", pad_type),
                ("pad", pad),
                ("dilations", dilations),
                ("groups", groups),
            ],
        );
    }
    let x1 = o.input("signal", DType::Fp16, &[2, 4, 10]);
    let w1 = o.weight("conv1d_w", &[3, 4, 3]);
    o.op(Conv, &[("x", x1.clone()), ("weight", w1)]);

    let (scale, dtype) = (o.half(0.1), o.text("int8"));
    let required = [
        ("input", x.clone()),
        ("scale", scale),
        ("output_dtype", dtype),
    ];
    let q = o.op(Quantize, &required).swap_remove(0);
    let scale = o.half(0.1);
    let back = o
        .op(Dequantize, &[("input", q.clone()), ("scale", scale)])
        .swap_remove(0);
    o.b.output("dequantized", &back).unwrap();
    let scales = vec![f16::from_f32(0.5); 8];
    let scales = o.imm(Immediate::fp16s(&[8], scales).unwrap());
    let zeros = o.imm(Immediate::new(&[8], ImmediateData::UInt8(vec![127; 8])).unwrap());
    let (axis, dtype) = (o.int(1), o.text("uint8"));
    let all = [
        ("input", x),
        ("zero_point", zeros.clone()),
        ("scale", scales.clone()),
        ("axis", axis.clone()),
        ("output_dtype", dtype),
    ];
    let q = o.op(Quantize, &all).swap_remove(0);
    let all = [
        ("input", q),
        ("zero_point", zeros),
        ("scale", scales),
        ("axis", axis),
    ];
    o.op(Dequantize, &all);
}

/// Ops that move elements.
fn movement(o: &mut Ops) {
    use OpType::*;
    let x = o.input("block", DType::Fp16, &[2, 6, 5]);
    let axis = o.int(1);
    let interleave = o.flag(true);
    let values = [x.clone(), x.clone()];
    let bind = |var: &Var| vec![var.clone()];
    for rest in [None, Some(interleave)] {
        let (axis, rest) = (bind(&axis), rest.map(|v| vec![v]));
        let mut args: Vec<(&'static str, &[Var])> = vec![("values", &values), ("axis", &axis)];
        args.extend(rest.as_ref().map(|v| ("interleave", v.as_slice())));
        o.b.op(Concat, &args).unwrap();
    }
    let (n, sizes) = (o.int(3), o.ints(&[1, 2, 3]));
    let required = [("x", x.clone()), ("axis", axis.clone())];
    o.op(
        Split,
        &[required.as_slice(), &[("num_splits", n.clone())]].concat(),
    );
    o.op(
        Split,
        &[required.as_slice(), &[("split_sizes", sizes.clone())]].concat(),
    );
    o.op(
        Split,
        &[
            required.as_slice(),
            &[("num_splits", n), ("split_sizes", sizes)],
        ]
        .concat(),
    );

    let (begin, end) = (o.ints(&[0, 1, -4]), o.ints(&[2, 6, -1]));
    let (stride, squeeze) = (o.ints(&[1, 2, 1]), o.flags(&[true, false, false]));
    let (open, shut) = (
        o.flags(&[false, true, false]),
        o.flags(&[false, false, true]),
    );
    let slice = [("begin", begin), ("end", end)];
    let rest = [
        ("stride", stride),
        ("begin_mask", open),
        ("end_mask", shut),
        ("squeeze_mask", squeeze),
    ];
    let required = [&[("x", x.clone())], slice.as_slice()].concat();
    o.both(SliceByIndex, &required, &rest);
    let update = o.input("update", DType::Fp16, &[2, 5, 3]);
    let small = o.input("small_update", DType::Fp16, &[3, 4]);
    let target = [("x", x.clone())];
    o.op(
        SliceUpdate,
        &[&target, &[("update", update)], slice.as_slice()].concat(),
    );
    o.op(
        SliceUpdate,
        &[&target, &[("update", small)], slice.as_slice(), &rest].concat(),
    );
    let (begin, size) = (o.ints(&[0, 2, 1]), o.ints(&[2, 3, -1]));
    o.op(
        SliceBySize,
        &[("x", x.clone()), ("begin", begin), ("size", size.clone())],
    );
    let at = o.input("position", DType::Int32, &[3]);
    let size = o.ints(&[2, 3, 1]);
    o.op(
        SliceBySize,
        &[("x", x.clone()), ("begin", at), ("size", size)],
    );

    let shape = o.ints(&[0, -1, 3, 1, 5]);
    assert!(
        o.b.op(Reshape, &[("x", &[x.clone()]), ("shape", &[shape])])
            .is_err()
    );
    for shape in [vec![4, -1], vec![0, 3, 10], vec![2, 3, 2, 5]] {
        let shape = o.ints(&shape);
        o.op(Reshape, &[("x", x.clone()), ("shape", shape)]);
    }
    let perm = o.ints(&[2, 0, -2]);
    o.op(Transpose, &[("x", x.clone()), ("perm", perm)]);
    let axes = o.ints(&[0, -1]);
    let wide = o
        .op(ExpandDims, &[("x", x.clone()), ("axes", axes.clone())])
        .swap_remove(0);
    o.both(Squeeze, &[("x", wide)], &[("axes", axes)]);
    let reps = o.ints(&[1, 2, 3]);
    o.op(Tile, &[("x", x.clone()), ("reps", reps)]);
    let indices = o.input("indices", DType::Int32, &[2, 3]);
    let (minus, one, check) = (o.int(-1), o.int(1), o.flag(false));
    let required = [("x", x.clone()), ("indices", indices)];
    let rest = [
        ("axis", minus.clone()),
        ("batch_dims", one),
        ("validate_indices", check.clone()),
    ];
    o.both(Gather, &required, &rest);
    let along = o.input("along", DType::Int32, &[2, 6, 2]);
    let first = o.input("along_first", DType::Int32, &[4, 6, 5]);
    o.op(GatherAlongAxis, &[("x", x.clone()), ("indices", first)]);
    let rest = [("axis", minus), ("validate_indices", check)];
    o.op(
        GatherAlongAxis,
        &[&[("x", x.clone()), ("indices", along)], rest.as_slice()].concat(),
    );
    for dtype in ["fp32", "int32", "bool", "int8", "uint8", "int16", "uint16"] {
        let dtype = o.text(dtype);
        o.op(Cast, &[("x", x.clone()), ("dtype", dtype)]);
    }
    let (pad, mode, value) = (o.ints(&[1, 0, 0, 2]), o.text("constant"), o.half(1.0));
    let rest = [("mode", mode), ("constant_val", value)];
    o.both(Pad, &[("x", x.clone()), ("pad", pad)], &rest);
    let to_bool = o.text("bool");
    let cond = o
        .op(Cast, &[("x", x.clone()), ("dtype", to_bool)])
        .swap_remove(0);
    let zero = o.half(0.0);
    o.op(Select, &[("cond", cond), ("a", x.clone()), ("b", zero)]);
    let (k, yes) = (o.int(3), o.flag(true));
    let short = o.text("uint16");
    let rest = [
        ("k", k.clone()),
        ("axis", axis),
        ("ascending", yes.clone()),
        ("sort", yes.clone()),
        ("return_indices", yes),
        ("output_indices_dtype", short),
    ];
    o.both(Topk, &[("x", x.clone())], &rest);
    let no = o.flag(false);
    o.op(Topk, &[("x", x), ("k", k), ("return_indices", no)]);
}

/// States, and weights of every storage.
fn states_and_storages(o: &mut Ops) -> SeededSource {
    let cache = o.b.state("kv_cache", &[2, 1, 4, 8]).unwrap();
    let read = o.b.read_state(&cache).unwrap();
    let new = o.b.add(&read, &read).unwrap();
    o.b.write_state(&cache, &new).unwrap();
    let again = o.b.read_state(&cache).unwrap();
    let kept = o.b.name_value(&again, "cache_after").unwrap();
    let sum = o.b.reduce_sum(&kept, &[-1], false).unwrap();
    o.b.output("sum", &sum).unwrap();

    let x = o.input("hidden", DType::Fp16, &[1, 64, 1, 2]);
    let mut source = SeededSource::default();
    let mut results = Vec::new();
    for nbits in [1u8, 2, 3, 4, 6, 8] {
        for groups in [1, 4] {
            let id = format!("palette{nbits}.g{groups}");
            let weight = o.weight(&id, &[32, 64, 1, 1]);
            let storage = Storage::Palette {
                nbits,
                lut_shape: vec![groups, 1, 1, 1, 1 << nbits, 1],
                vector_axis: None,
            };
            source = source.with(&id, storage);
            results.push(o.b.conv(&x, &weight, None, &Default::default()).unwrap());
        }
    }
    let vector = o.weight("vectors", &[32, 64, 1, 1]);
    let storage = Storage::Palette {
        nbits: 4,
        lut_shape: vec![2, 1, 1, 1, 16, 4],
        vector_axis: Some(0),
    };
    source = source.with("vectors", storage);
    results.push(o.b.conv(&x, &vector, None, &Default::default()).unwrap());
    for (data, offset) in [
        (DType::Int8, false),
        (DType::UInt8, true),
        (DType::Int4, false),
        (DType::UInt4, true),
    ] {
        let id = format!("blockwise-{data}");
        let weight = o.weight(&id, &[32, 64, 1, 1]);
        let storage = Storage::Blockwise {
            data,
            scale_shape: vec![32, 2, 1, 1],
            offset,
        };
        source = source.with(&id, storage);
        results.push(o.b.conv(&x, &weight, None, &Default::default()).unwrap());
    }
    // Odd element counts end in a partial byte; few elements make the weight an immediate.
    let odd = o.weight("odd", &[3, 7]);
    let storage = Storage::Palette {
        nbits: 3,
        lut_shape: vec![1, 1, 8, 1],
        vector_axis: None,
    };
    source = source.with("odd", storage);
    let rows = o.input("rows7", DType::Fp16, &[2, 7]);
    let tiny = o.weight("tiny", &[3]);
    let out = o.b.linear(&rows, &odd, Some(&tiny)).unwrap();
    o.b.output("odd_out", &out).unwrap();
    let all = o.b.concat(&results, 1).unwrap();
    o.b.output("all", &all).unwrap();
    source
}

fn function(fill: impl FnOnce(&mut Ops)) -> Function {
    let mut o = Ops {
        b: FunctionBuilder::new("main"),
    };
    o.b.push_scope("test");
    fill(&mut o);
    o.b.pop_scope();
    let x = o.input("last_input", DType::Fp16, &[2]);
    o.b.output("last", &x).unwrap();
    o.b.finish().unwrap()
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

/// The dense value of a constexpr op.
fn dense(op: &gemma_coreml::package::ReadOp) -> Vec<f16> {
    let value = |arg: &str| match op.input(arg) {
        Some(Binding::Value(value)) => Some(value),
        _ => None,
    };
    let shape = &op.outputs[0].1.shape;
    let count: usize = shape.iter().product();
    if op.op_type == OpType::ConstexprBlockwiseShiftScale {
        let (data, scale) = (value("data").unwrap(), value("scale").unwrap());
        let (numbers, scales) = (plain::ints(data), plain::halves(scale));
        let offsets = value("offset").map(plain::ints);
        let one = |i: usize| {
            let block = plain::group_of(i, shape, &scale.ty().shape);
            let offset = offsets.as_ref().map_or(0, |o| o[block]);
            f16::from_f32((numbers[i] - offset) as f32 * scales[block].to_f32())
        };
        return (0..count).map(one).collect();
    }
    let (indices, lut) = (value("indices").unwrap(), value("lut").unwrap());
    let (numbers, table, lut) = (plain::ints(indices), plain::halves(lut), lut.ty().shape);
    let (entries, vector) = (lut[lut.len() - 2], lut[lut.len() - 1]);
    let ishape = indices.ty().shape;
    let axis = (0..shape.len())
        .find(|&i| ishape[i] != shape[i])
        .unwrap_or(0);
    let inner: usize = shape[axis + 1..].iter().product();
    let one = |i: usize| {
        let along = i / inner % shape[axis];
        let outer = i / inner / shape[axis];
        let at = (outer * ishape[axis] + along / vector) * inner + i % inner;
        let group = plain::group_of(at, &ishape, &lut[..lut.len() - 2]);
        table[(group * entries + numbers[at] as usize) * vector + along % vector]
    };
    (0..count).map(one).collect()
}

#[test]
fn weights_of_every_storage_decompress_as_in_coremltools() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = SeededSource::default();
    let main = function(|o| source = states_and_storages(o));
    let path = dir.path().join("storages.mlpackage");
    write(&path, &Program::single(main), &mut source);
    common::coremltools_dump_weights(std::slice::from_ref(&path), dir.path());
    let file = std::fs::read(dir.path().join("storages.safetensors")).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&file).unwrap();

    let package = Package::open(&path).unwrap();
    let mut compared = BTreeSet::new();
    for op in &package.functions()["main"].ops {
        if !op.op_type.is_constexpr() {
            continue;
        }
        let (name, ty) = &op.outputs[0];
        let tensor = theirs.tensor(&format!("main/{name}")).unwrap();
        assert_eq!(tensor.shape(), ty.shape, "{name}");
        let ours: Vec<u8> = dense(op).iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(
            ours == tensor.data(),
            "{name}: the decompressed weights differ"
        );
        compared.insert(op.op_type);
    }
    assert_eq!(compared.len(), 2, "both constexpr ops are compared");
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
    let predicted = predict_weight_bytes(&program, &order, &source).unwrap();
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
