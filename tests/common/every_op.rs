//! Functions that together have every op of the schema, with and without each optional argument,
//! and every storage of a weight.

use gemma_coreml::mil::{
    DType, DeferredConst, Function, FunctionBuilder, Immediate, ImmediateData, OpType, Var,
};
use gemma_coreml::package::Storage;
use half::f16;

use super::source::SeededSource;

/// A function under construction with short ways to its values.
pub struct Ops {
    pub b: FunctionBuilder,
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

    pub fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Var {
        self.b.input(name, dtype, shape).unwrap()
    }

    pub fn weight(&mut self, id: &str, shape: &[usize]) -> Var {
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
pub fn arithmetic(o: &mut Ops) {
    let x = o.input("x", DType::Fp16, &[1, 8, 3, 4]);
    let y = o.input("y", DType::Fp16, &[8, 1, 4]);
    use OpType::*;
    for op in [Add, Sub, Mul, RealDiv, Maximum, Minimum, Pow] {
        o.op(op, &[("x", x.clone()), ("y", y.clone())]);
    }
    for op in [Exp, Tanh, Sigmoid, Silu, Sqrt, Cos, Sin, Round, Identity] {
        o.op(op, &[("x", x.clone())]);
    }
    let (alpha, beta) = (o.half(-128.0), o.half(127.0));
    o.op(Clip, &[("x", x.clone()), ("alpha", alpha), ("beta", beta)]);
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
pub fn conv_and_quantize(o: &mut Ops) {
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
pub fn movement(o: &mut Ops) {
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
        o.b.op(
            Reshape,
            &[("x", std::slice::from_ref(&x)), ("shape", &[shape])]
        )
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
pub fn states_and_storages(o: &mut Ops) -> SeededSource {
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
    for (id, vector, axis) in [("sparse", 1, None), ("sparse_vectors", 2, Some(0))] {
        let weight = o.weight(id, &[32, 64, 1, 1]);
        let storage = Storage::PaletteSparse {
            nbits: 3,
            lut_shape: vec![4, 1, 1, 1, 8, vector],
            vector_axis: axis,
            nonzero: 777,
        };
        source = source.with(id, storage);
        results.push(o.b.conv(&x, &weight, None, &Default::default()).unwrap());
    }
    let scaled = o.weight("lut8", &[32, 64, 1, 1]);
    let storage = Storage::PaletteInt8 {
        nbits: 4,
        lut_shape: vec![4, 1, 1, 1, 16, 1],
    };
    source = source.with("lut8", storage);
    results.push(o.b.conv(&x, &scaled, None, &Default::default()).unwrap());
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

pub fn function(fill: impl FnOnce(&mut Ops)) -> Function {
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
