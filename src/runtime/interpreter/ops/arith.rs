//! Elementwise ops, casts and activation quantization.

use crate::mil::{DType, OpType, TensorType};
use crate::runtime::interpreter::args::{Compiled, OpArgs};
use crate::runtime::kernels::broadcast::{Plan, broadcast_shape, broadcast_strides};
use crate::runtime::kernels::math::{erf, exp, sigmoid, tanh};
use crate::runtime::kernels::strided::{View, copy};
use crate::runtime::kernels::wide;
use crate::runtime::values::element::Element;
use crate::runtime::values::element::for_each_kind;
use crate::runtime::values::error::Result;
use crate::runtime::values::tensor::{Data, Tensor};

/// `add`, `sub`, `mul`, `real_div`, `maximum`, `minimum`, `pow`.
pub(super) fn binary(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let y = args.operand("y")?;
    if x.ty.dtype != y.ty.dtype {
        return Err(args.bad("y", x.ty.dtype.to_string(), y.ty.dtype.to_string()));
    }
    let Some(plan) = Plan::new(&x.ty.shape, &y.ty.shape) else {
        let expected = format!("a shape that broadcasts with {:?}", x.ty.shape);
        return Err(args.bad("y", expected, format!("{:?}", y.ty.shape)));
    };
    let ty = TensorType::new(x.ty.dtype, &plan.shape);
    match x.ty.dtype {
        DType::Fp16 | DType::Fp32 => float_binary(args, ty, plan),
        DType::Int32 => int_binary(args, ty, plan),
        _ => Err(args.unsupported(format!("operands of type {}", x.ty))),
    }
}

fn float_binary(args: OpArgs<'_>, ty: TensorType, plan: Plan) -> Result<Compiled> {
    let op = args.op_type;
    args.one(ty, move |inputs, pool| {
        let (a, b) = (inputs[0].as_f32()?, inputs[1].as_f32()?);
        let mut out = pool.floats(plan.len());
        match op {
            OpType::Add => plan.apply(a, b, &mut out, |x, y| x + y),
            OpType::Sub => plan.apply(a, b, &mut out, |x, y| x - y),
            OpType::Mul => plan.apply(a, b, &mut out, |x, y| x * y),
            OpType::RealDiv => plan.apply(a, b, &mut out, |x, y| x / y),
            OpType::Maximum => plan.apply(a, b, &mut out, maximum),
            OpType::Minimum => plan.apply(a, b, &mut out, |x, y| -maximum(-x, -y)),
            _ => plan.apply(a, b, &mut out, f32::powf),
        }
        Tensor::f32(&plan.shape, out)
    })
}

/// The larger, NaN if either is.
fn maximum(x: f32, y: f32) -> f32 {
    if x > y || x.is_nan() { x } else { y }
}

fn int_binary(args: OpArgs<'_>, ty: TensorType, plan: Plan) -> Result<Compiled> {
    let op = args.op_type;
    let f: fn(i32, i32) -> i32 = match op {
        OpType::Add => i32::wrapping_add,
        OpType::Sub => i32::wrapping_sub,
        OpType::Mul => i32::wrapping_mul,
        OpType::Maximum => i32::max,
        OpType::Minimum => i32::min,
        _ => return Err(args.unsupported("int32 operands")),
    };
    args.one(ty, move |inputs, _| {
        let mut out = vec![0; plan.len()];
        plan.apply(inputs[0].as_i32()?, inputs[1].as_i32()?, &mut out, f);
        Tensor::i32(&plan.shape, out)
    })
}

/// Functions of one float operand.
pub(super) fn unary(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.float_operand("x")?;
    match args.op_type {
        OpType::Exp => map(args, x.ty, exp),
        OpType::Tanh => map(args, x.ty, tanh),
        OpType::Sigmoid => map(args, x.ty, sigmoid),
        OpType::Silu => map(args, x.ty, |v| v * sigmoid(v)),
        OpType::Sqrt => map(args, x.ty, f32::sqrt),
        OpType::Cos => map(args, x.ty, f32::cos),
        OpType::Sin => map(args, x.ty, f32::sin),
        OpType::Round => map(args, x.ty, f32::round_ties_even),
        OpType::Clip => {
            let (alpha, beta) = (args.float("alpha")?, args.float("beta")?);
            // The order of numpy's minimum and maximum: a NaN stays one.
            let held = move |v: f32| -maximum(-maximum(v, alpha), -beta);
            map(args, x.ty, held)
        }
        OpType::Rsqrt => {
            let epsilon = args.float("epsilon")?;
            map(args, x.ty, move |v| 1.0 / (v + epsilon).sqrt())
        }
        _ => match args.text("mode")? {
            "EXACT" => map(args, x.ty, gelu_exact),
            "TANH_APPROXIMATION" => map(args, x.ty, gelu_tanh),
            "SIGMOID_APPROXIMATION" => map(args, x.ty, |v| v * sigmoid(1.702 * v)),
            other => {
                let what = format!("mode `{other}`");
                Err(args.unsupported(what))
            }
        },
    }
}

fn map(
    args: OpArgs<'_>,
    ty: TensorType,
    f: impl Fn(f32) -> f32 + Send + Sync + 'static,
) -> Result<Compiled> {
    args.one(ty, move |inputs, pool| {
        let x = inputs[0].as_f32()?;
        let mut out = pool.floats(x.len());
        wide::map(&f, x, &mut out);
        Tensor::f32(inputs[0].shape(), out)
    })
}

fn gelu_exact(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    /// `sqrt(2 / pi)`.
    const SLOPE: f32 = 0.797_884_6;
    0.5 * x * (1.0 + tanh(SLOPE * (x + 0.044715 * x * x * x)))
}

/// `a` where `cond`, `b` elsewhere; all three broadcast.
pub(super) fn select(mut args: OpArgs<'_>) -> Result<Compiled> {
    let cond = args.operand("cond")?;
    let a = args.operand("a")?;
    let b = args.operand("b")?;
    if a.ty.dtype != b.ty.dtype {
        return Err(args.bad("b", a.ty.dtype.to_string(), b.ty.dtype.to_string()));
    }
    let shape = broadcast_shape(&a.ty.shape, &b.ty.shape)
        .and_then(|ab| broadcast_shape(&ab, &cond.ty.shape));
    let Some(shape) = shape else {
        let got = format!("{}, {}, {}", cond.ty, a.ty, b.ty);
        return Err(args.bad("cond", "shapes that broadcast", got));
    };
    let ty = TensorType::new(a.ty.dtype, &shape);
    args.one(ty, move |inputs, pool| {
        let cond = expand(inputs[0].shape(), inputs[0].as_bool()?, &shape);
        for_each_kind!(inputs[1].kind(), T => {
            let a = expand(inputs[1].shape(), T::of(inputs[1])?, &shape);
            let b = expand(inputs[2].shape(), T::of(inputs[2])?, &shape);
            let mut out = T::buffer(pool, cond.len());
            for (((o, &c), &a), &b) in out.iter_mut().zip(&*cond).zip(&*a).zip(&*b) {
                *o = if c { a } else { b };
            }
            Tensor::new(&shape, T::data(out))
        })
    })
}

/// `values` of `shape` repeated to `target`.
fn expand<'a, T: Copy + Default>(
    shape: &[usize],
    values: &'a [T],
    target: &[usize],
) -> std::borrow::Cow<'a, [T]> {
    if shape == target {
        return values.into();
    }
    let mut out = vec![T::default(); target.iter().product()];
    let from = View {
        offset: 0,
        strides: broadcast_strides(shape, target),
    };
    copy(target, values, &from, &mut out, &View::dense(target));
    out.into()
}

/// Conversion of the element type. Floats are cut toward zero and held to the range of i32; integers wrap around in
/// narrower ones.
pub(super) fn cast(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let name = args.text("dtype")?;
    let target = match name.parse::<DType>() {
        Ok(dtype) if dtype != DType::String && !dtype.is_sub_byte() => dtype,
        _ => return Err(args.unsupported(format!("dtype `{name}`"))),
    };
    let ty = TensorType::new(target, &x.ty.shape);
    args.one(ty, move |inputs, _| {
        let x = inputs[0];
        if target.is_float() {
            let values = match x.data() {
                Data::F32(_) => return Ok(x.clone()),
                Data::I32(v) => v.iter().map(|&v| v as f32).collect(),
                Data::Bool(v) => v.iter().map(|&v| f32::from(v)).collect(),
            };
            return Tensor::f32(x.shape(), values);
        }
        if target == DType::Bool {
            let values = match x.data() {
                Data::F32(v) => v.iter().map(|&v| v != 0.0).collect(),
                Data::I32(v) => v.iter().map(|&v| v != 0).collect(),
                Data::Bool(_) => return Ok(x.clone()),
            };
            return Tensor::bool(x.shape(), values);
        }
        let narrow = narrowing(target);
        let values = match x.data() {
            Data::F32(v) => v.iter().map(|&v| narrow(v as i32)).collect(),
            Data::I32(v) => v.iter().map(|&v| narrow(v)).collect(),
            Data::Bool(v) => v.iter().map(|&v| i32::from(v)).collect(),
        };
        Tensor::i32(x.shape(), values)
    })
}

fn narrowing(target: DType) -> fn(i32) -> i32 {
    match target {
        DType::Int8 => |v| i32::from(v as i8),
        DType::UInt8 => |v| i32::from(v as u8),
        DType::Int16 => |v| i32::from(v as i16),
        DType::UInt16 => |v| i32::from(v as u16),
        _ => |v| v,
    }
}

/// Scale and zero point of `quantize` and `dequantize`, one per index along an axis.
struct Affine {
    scale: Vec<f32>,
    zero_point: Vec<f32>,
    /// Product of the dims after the axis.
    inner: usize,
}

impl Affine {
    fn new(args: &OpArgs<'_>, shape: &[usize]) -> Result<Self> {
        let scale = args.required("scale")?.dense().as_f32()?.to_vec();
        let zero_point = match args.ints("zero_point")? {
            Some(values) => values.into_iter().map(|v| v as f32).collect(),
            None => vec![0.0; scale.len()],
        };
        if zero_point.len() != scale.len() {
            let got = zero_point.len().to_string();
            return Err(args.bad("zero_point", format!("{} values", scale.len()), got));
        }
        let is_scalar = args.ty("scale")?.rank() == 0;
        let inner = match args.int_or_none("axis")? {
            None if is_scalar => shape.iter().product(),
            Some(axis) if !is_scalar => {
                let axis = args.axis("axis", axis, shape.len())?;
                if shape[axis] != scale.len() {
                    let got = format!("{} scales", scale.len());
                    return Err(args.bad("scale", format!("{} scales", shape[axis]), got));
                }
                shape[axis + 1..].iter().product()
            }
            axis => {
                let got = format!("axis {axis:?} and a scale of {}", args.ty("scale")?);
                return Err(args.bad("axis", "an axis for a vector of scales only", got));
            }
        };
        Ok(Self {
            scale,
            zero_point,
            inner,
        })
    }

    /// Scale and zero point of element `i`.
    fn of(&self, i: usize) -> (f32, f32) {
        let at = i / self.inner % self.scale.len();
        (self.scale[at], self.zero_point[at])
    }
}

/// `clip(round_half_even(input / scale) + zero_point)`.
pub(super) fn quantize(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.float_operand("input")?;
    let affine = Affine::new(&args, &x.ty.shape)?;
    let (dtype, low, high) = match args.text("output_dtype")? {
        "int8" => (DType::Int8, -128.0, 127.0),
        "uint8" => (DType::UInt8, 0.0, 255.0),
        other => {
            let what = format!("output_dtype `{other}`");
            return Err(args.unsupported(what));
        }
    };
    args.one(TensorType::new(dtype, &x.ty.shape), move |inputs, _| {
        let values = inputs[0].as_f32()?.iter().enumerate().map(|(i, &v)| {
            let (scale, zero_point) = affine.of(i);
            ((v / scale).round_ties_even() + zero_point).clamp(low, high) as i32
        });
        Tensor::i32(inputs[0].shape(), values.collect())
    })
}

/// `scale * (input - zero_point)`.
pub(super) fn dequantize(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("input")?;
    let affine = Affine::new(&args, &x.ty.shape)?;
    let ty = TensorType::new(args.ty("scale")?.dtype, &x.ty.shape);
    args.one(ty, move |inputs, _| {
        let values = inputs[0].as_i32()?.iter().enumerate().map(|(i, &v)| {
            let (scale, zero_point) = affine.of(i);
            scale * (v as f32 - zero_point)
        });
        Tensor::f32(inputs[0].shape(), values.collect())
    })
}
