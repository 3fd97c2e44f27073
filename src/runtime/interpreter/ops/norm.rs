//! Reductions, softmax and layer norm. Sums are f64, in order.

use crate::mil::{OpType, TensorType};
use crate::runtime::interpreter::args::{Compiled, OpArgs};
use crate::runtime::kernels::math::exp;
use crate::runtime::values::axes::AxesLast;
use crate::runtime::values::error::Result;
use crate::runtime::values::tensor::Tensor;

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v)).sum()
}

fn sum_of_squares(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum()
}

/// The largest, NaN if any is.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(f32::NEG_INFINITY, |best, &v| {
        if v > best || v.is_nan() { v } else { best }
    })
}

/// `shape` without the chosen dims, or with ones in their place.
pub(super) fn reduced_shape(shape: &[usize], chosen: &[bool], keep_dims: bool) -> Vec<usize> {
    let dims = shape.iter().zip(chosen);
    match keep_dims {
        true => dims.map(|(&n, &c)| if c { 1 } else { n }).collect(),
        false => dims.filter(|(_, c)| !**c).map(|(&n, _)| n).collect(),
    }
}

/// `reduce_mean`, `reduce_sum`, `reduce_max`, `reduce_sum_square`.
pub(super) fn reduce(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.float_operand("x")?;
    let chosen = args.chosen_axes("axes", x.ty.rank())?;
    let shape = reduced_shape(&x.ty.shape, &chosen, args.bool("keep_dims")?);
    let axes = AxesLast::new(&x.ty.shape, &chosen);
    let f: fn(&[f32]) -> f32 = match args.op_type {
        OpType::ReduceMean => |v| (sum(v) / v.len() as f64) as f32,
        OpType::ReduceSum => |v| sum(v) as f32,
        OpType::ReduceMax => largest,
        _ => |v| sum_of_squares(v.iter().map(|&v| f64::from(v))) as f32,
    };
    if axes.inner == 0 {
        return Err(args.unsupported("no elements to reduce"));
    }
    args.one(TensorType::new(x.ty.dtype, &shape), move |inputs, pool| {
        let x = axes.gather(inputs[0].as_f32()?, pool);
        let mut out = pool.floats(axes.outer);
        for (o, x) in out.iter_mut().zip(x.chunks_exact(axes.inner)) {
            *o = f(x);
        }
        Tensor::f32(&shape, out)
    })
}

/// Softmax along one axis.
pub(super) fn softmax(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.float_operand("x")?;
    let axis = args.axis("axis", args.int("axis")?, x.ty.rank())?;
    let chosen: Vec<bool> = (0..x.ty.rank()).map(|i| i == axis).collect();
    let axes = AxesLast::new(&x.ty.shape, &chosen);
    args.one(x.ty, move |inputs, pool| {
        let x = axes.gather(inputs[0].as_f32()?, pool);
        let mut out = pool.floats(x.len());
        if axes.inner > 0 {
            let rows = out.chunks_exact_mut(axes.inner);
            for (out, x) in rows.zip(x.chunks_exact(axes.inner)) {
                softmax_row(x, out);
            }
        }
        Tensor::f32(inputs[0].shape(), axes.scatter(out))
    })
}

/// Softmax of `x` into `out`.
pub(super) fn softmax_row(x: &[f32], out: &mut [f32]) {
    let max = largest(x);
    let mut total = 0.0;
    for (o, &v) in out.iter_mut().zip(x) {
        *o = exp(v - max);
        total += f64::from(*o);
    }
    let scale = (1.0 / total) as f32;
    for o in out {
        *o *= scale;
    }
}

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` over the axes.
pub(super) fn layer_norm(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.float_operand("x")?;
    let gamma = args.operand_or_none("gamma")?;
    let beta = args.operand_or_none("beta")?;
    let epsilon = f64::from(args.float("epsilon")?);
    let chosen = args.chosen_axes("axes", x.ty.rank())?;
    let normalized: Vec<usize> = (0..x.ty.rank())
        .filter(|&i| chosen[i])
        .map(|i| x.ty.shape[i])
        .collect();
    for (arg, operand) in [("gamma", &gamma), ("beta", &beta)] {
        if let Some(operand) = operand
            && operand.ty.shape != normalized
        {
            return Err(args.bad(arg, format!("{normalized:?}"), operand.ty.to_string()));
        }
    }
    let axes = AxesLast::new(&x.ty.shape, &chosen);
    let (gamma, beta) = (gamma.map(|o| o.at), beta.map(|o| o.at));
    args.one(x.ty, move |inputs, pool| {
        let x = axes.gather(inputs[0].as_f32()?, pool);
        let gamma = gamma.map(|at| inputs[at].as_f32()).transpose()?;
        let beta = beta.map(|at| inputs[at].as_f32()).transpose()?;
        let mut out = pool.floats(x.len());
        if axes.inner > 0 {
            let rows = out.chunks_exact_mut(axes.inner);
            for (out, x) in rows.zip(x.chunks_exact(axes.inner)) {
                normalize(x, epsilon, out);
                if let Some(gamma) = gamma {
                    out.iter_mut().zip(gamma).for_each(|(o, g)| *o *= g);
                }
                if let Some(beta) = beta {
                    out.iter_mut().zip(beta).for_each(|(o, b)| *o += b);
                }
            }
        }
        Tensor::f32(inputs[0].shape(), axes.scatter(out))
    })
}

fn normalize(x: &[f32], epsilon: f64, out: &mut [f32]) {
    let n = x.len() as f64;
    let mean = sum(x) / n;
    let variance = sum_of_squares(x.iter().map(|&v| f64::from(v) - mean)) / n;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for (o, &v) in out.iter_mut().zip(x) {
        *o = ((f64::from(v) - mean) * scale) as f32;
    }
}
