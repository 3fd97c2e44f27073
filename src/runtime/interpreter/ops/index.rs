//! Ops that give or take indices. An index out of range is an error of the run.

use crate::mil::{DType, TensorType};
use crate::runtime::interpreter::args::{Compiled, Derived, OpArgs, Weight};
use crate::runtime::interpreter::ops::norm::reduced_shape;
use crate::runtime::values::axes::AxesLast;
use crate::runtime::values::element::Element;
use crate::runtime::values::element::for_each_kind;
use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::tensor::Tensor;
use crate::runtime::weights::packed::PackedWeight;
use std::cmp::Ordering;
use std::sync::Arc;

/// The element type that an attribute names for indices along a dim of `len`.
fn index_dtype(args: &OpArgs<'_>, arg: &str, len: usize) -> Result<DType> {
    let (dtype, limit) = match args.text(arg)? {
        "int32" => (DType::Int32, i32::MAX as usize),
        "uint16" => (DType::UInt16, usize::from(u16::MAX)),
        other => return Err(args.unsupported(format!("{arg} `{other}`"))),
    };
    match len.saturating_sub(1) <= limit {
        true => Ok(dtype),
        false => Err(args.bad(arg, "a type that holds every index", dtype.name())),
    }
}

fn one_axis(rank: usize, axis: usize) -> Vec<bool> {
    (0..rank).map(|i| i == axis).collect()
}

/// The first index of the largest element along an axis.
pub(super) fn argmax(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.float_operand("x")?;
    let axis = args.axis("axis", args.int("axis")?, x.ty.rank())?;
    let chosen = one_axis(x.ty.rank(), axis);
    let shape = reduced_shape(&x.ty.shape, &chosen, args.bool("keep_dims")?);
    let dtype = index_dtype(&args, "output_dtype", x.ty.shape[axis])?;
    let axes = AxesLast::new(&x.ty.shape, &chosen);
    if axes.inner == 0 {
        return Err(args.unsupported("no elements to compare"));
    }
    args.one(TensorType::new(dtype, &shape), move |inputs, pool| {
        let x = axes.gather(inputs[0].as_f32()?, pool);
        let rows = x.chunks_exact(axes.inner);
        Tensor::i32(&shape, rows.map(first_largest).collect())
    })
}

fn first_largest(values: &[f32]) -> i32 {
    /// Elements whose largest is found before its place.
    const BLOCK: usize = 256;
    let mut best = 0;
    for (block, part) in values.chunks(BLOCK).enumerate() {
        let larger = |a: f32, v: f32| if v > a { v } else { a };
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (runs, rest) = part.as_chunks::<16>();
        for run in runs {
            lanes
                .iter_mut()
                .zip(run)
                .for_each(|(a, &v)| *a = larger(*a, v));
        }
        let lanes = lanes.iter().chain(rest);
        let largest = lanes.fold(f32::NEG_INFINITY, |a, &v| larger(a, v));
        // A NaN at the first place is never passed, any other is.
        if largest > values[best]
            && let Some(at) = part.iter().position(|&v| v == largest)
        {
            best = block * BLOCK + at;
        }
    }
    best as i32
}

/// The k first elements along an axis, descending (or ascending), with their indices; of equals the lower index first.
pub(super) fn topk(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.float_operand("x")?;
    let axis = args.axis("axis", args.int("axis")?, x.ty.rank())?;
    let len = x.ty.shape[axis];
    let k = match usize::try_from(args.int("k")?) {
        Ok(k) if (1..=len).contains(&k) => k,
        _ => return Err(args.bad("k", format!("1 to {len}"), args.int("k")?.to_string())),
    };
    let ascending = args.bool("ascending")?;
    let with_indices = args.bool("return_indices")?;
    // Sorted results are also in order when any order would do.
    args.bool("sort")?;
    let mut shape = x.ty.shape.clone();
    shape[axis] = k;
    let mut outputs = vec![Derived::Type(TensorType::new(x.ty.dtype, &shape))];
    if with_indices {
        let dtype = index_dtype(&args, "output_indices_dtype", len)?;
        outputs.push(Derived::Type(TensorType::new(dtype, &shape)));
    }
    let chosen = one_axis(shape.len(), axis);
    let from = AxesLast::new(&x.ty.shape, &chosen);
    let to = AxesLast::new(&shape, &chosen);
    args.compiled(outputs, move |inputs, pool| {
        let x = from.gather(inputs[0].as_f32()?, pool);
        let mut values = Vec::with_capacity(to.outer * k);
        let mut indices = Vec::with_capacity(to.outer * k);
        for row in x.chunks_exact(len) {
            let mut order: Vec<i32> = (0..len as i32).collect();
            order.sort_unstable_by(|&a, &b| first(row, a, b, ascending));
            values.extend(order[..k].iter().map(|&i| row[i as usize]));
            indices.extend_from_slice(&order[..k]);
        }
        let mut out = vec![Tensor::f32(&shape, to.scatter(values))?];
        if with_indices {
            out.push(Tensor::i32(&shape, to.scatter(indices))?);
        }
        Ok(out)
    })
}

fn first(row: &[f32], a: i32, b: i32, ascending: bool) -> Ordering {
    let order = row[a as usize].total_cmp(&row[b as usize]);
    let order = if ascending { order } else { order.reverse() };
    order.then(a.cmp(&b))
}

/// Checks indices against the length of the dim they index.
fn checked(op: &str, indices: &[i32], len: usize) -> Result<()> {
    let bad = indices
        .iter()
        .find(|&&i| !usize::try_from(i).is_ok_and(|i| i < len));
    match bad {
        None => Ok(()),
        Some(&index) => Err(Error::IndexRange {
            op: op.to_owned(),
            index: i64::from(index),
            len,
        }),
    }
}

/// Slices of `x` along an axis.
pub(super) fn gather(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x_ty = args.ty("x")?.clone();
    let rank = x_ty.rank();
    let axis = args.axis("axis", args.int("axis")?, rank)?;
    let batch_dims = args.int("batch_dims")?;
    // Out of range is always an error here.
    args.bool("validate_indices")?;
    let indices = args.operand("indices")?;
    let batch = match usize::try_from(batch_dims) {
        Ok(b)
            if b <= axis && b <= indices.ty.rank() && x_ty.shape[..b] == indices.ty.shape[..b] =>
        {
            b
        }
        _ => {
            let got = format!("{batch_dims} for x {x_ty}, indices {}", indices.ty);
            return Err(args.bad("batch_dims", "leading dims common to x and indices", got));
        }
    };
    let mut shape = x_ty.shape[..axis].to_vec();
    shape.extend(&indices.ty.shape[batch..]);
    shape.extend(&x_ty.shape[axis + 1..]);
    let ty = TensorType::new(x_ty.dtype, &shape);
    if axis == 0
        && x_ty.dtype.is_float()
        && let Weight::Packed(weight) = args.weight("x")?
    {
        return gather_rows(args, weight, ty);
    }
    let x = args.operand("x")?;
    let size = |dims: &[usize]| dims.iter().product::<usize>();
    let outer = size(&x_ty.shape[batch..axis]);
    let len = x_ty.shape[axis];
    let inner = size(&x_ty.shape[axis + 1..]);
    let per_batch = size(&indices.ty.shape[batch..]);
    let op = args.op.to_owned();
    args.one(ty, move |inputs, pool| {
        let indices = inputs[indices.at].as_i32()?;
        checked(&op, indices, len)?;
        for_each_kind!(inputs[x.at].kind(), T => {
            let values = T::of(inputs[x.at])?;
            let mut out = T::buffer(pool, shape.iter().product());
            let mut runs = out.chunks_exact_mut(inner.max(1));
            for (b, indices) in indices.chunks(per_batch.max(1)).enumerate() {
                for o in 0..outer {
                    for &i in indices {
                        let from = ((b * outer + o) * len + i as usize) * inner;
                        if let Some(run) = runs.next() {
                            run.copy_from_slice(&values[from..from + inner]);
                        }
                    }
                }
            }
            Tensor::new(&shape, T::data(out))
        })
    })
}

/// Rows of a packed table.
fn gather_rows(args: OpArgs<'_>, weight: Arc<PackedWeight>, ty: TensorType) -> Result<Compiled> {
    let op = args.op.to_owned();
    let shape = ty.shape.clone();
    args.one(ty, move |inputs, pool| {
        let indices = inputs[0].as_i32()?;
        checked(&op, indices, weight.rows())?;
        let mut out = pool.floats(shape.iter().product());
        for (out, &i) in out.chunks_exact_mut(weight.cols().max(1)).zip(indices) {
            weight.decode_row(i as usize, out);
        }
        Tensor::f32(&shape, out)
    })
}

/// One element of `x` along an axis per index.
pub(super) fn gather_along_axis(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let indices = args.operand("indices")?;
    let rank = x.ty.rank();
    let axis = args.axis("axis", args.int("axis")?, rank)?;
    args.bool("validate_indices")?;
    let same = |i: usize| i == axis || x.ty.shape[i] == indices.ty.shape[i];
    if indices.ty.rank() != rank || !(0..rank).all(same) {
        let expected = format!("the shape of x, {}, but along axis {axis}", x.ty);
        return Err(args.bad("indices", expected, indices.ty.to_string()));
    }
    let len = x.ty.shape[axis];
    let picks = indices.ty.shape[axis];
    let inner: usize = x.ty.shape[axis + 1..].iter().product();
    let shape = indices.ty.shape.clone();
    let op = args.op.to_owned();
    args.one(TensorType::new(x.ty.dtype, &shape), move |inputs, pool| {
        let indices = inputs[1].as_i32()?;
        checked(&op, indices, len)?;
        for_each_kind!(inputs[0].kind(), T => {
            let values = T::of(inputs[0])?;
            let mut out = T::buffer(pool, indices.len());
            for (at, (o, &i)) in out.iter_mut().zip(indices).enumerate() {
                let outer = at / inner / picks;
                *o = values[(outer * len + i as usize) * inner + at % inner];
            }
            Tensor::new(&shape, T::data(out))
        })
    })
}
