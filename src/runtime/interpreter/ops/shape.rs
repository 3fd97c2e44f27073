//! Ops that move elements.

use crate::mil::TensorType;
use crate::runtime::interpreter::args::{Compiled, Derived, OpArgs, Operand};
use crate::runtime::kernels::strided::strides;
use crate::runtime::kernels::strided::{View, copy};
use crate::runtime::values::element::Element;
use crate::runtime::values::element::for_each_kind;
use crate::runtime::values::error::Result;
use crate::runtime::values::pool::Pool;
use crate::runtime::values::tensor::{Tensor, elements};

/// The same value.
pub(super) fn identity(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    args.one(x.ty, |inputs, _| Ok(inputs[0].clone()))
}

/// The same elements under another shape.
fn reshaped(args: OpArgs<'_>, x: Operand, shape: Vec<usize>) -> Result<Compiled> {
    args.one(TensorType::new(x.ty.dtype, &shape), move |inputs, _| {
        inputs[0].reshaped(&shape)
    })
}

/// `reshape`: 0 copies a dim, one -1 is what is left.
pub(super) fn reshape(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let wanted = args.required_ints("shape")?;
    let from = &x.ty.shape;
    let wrong = || {
        let expected = format!("a shape of as many elements as {:?}", x.ty.shape);
        args.bad("shape", expected, format!("{wanted:?}"))
    };
    let mut shape = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (i, &dim) in wanted.iter().enumerate() {
        match dim {
            -1 if open.is_none() => {
                open = Some(i);
                shape.push(1);
            }
            0 if wanted.len() == from.len() => shape.push(from[i]),
            _ => shape.push(usize::try_from(dim).map_err(|_| wrong())?),
        }
    }
    let total: usize = from.iter().product();
    let known = elements(&shape).ok_or_else(wrong)?;
    if let Some(open) = open {
        if known == 0 || !total.is_multiple_of(known) {
            return Err(wrong());
        }
        shape[open] = total / known;
    } else if known != total {
        return Err(wrong());
    }
    reshaped(args, x, shape)
}

/// `expand_dims`: axes are those of the result.
pub(super) fn expand_dims(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let axes = args.required_ints("axes")?;
    let rank = x.ty.rank() + axes.len();
    let mut new = vec![false; rank];
    for &axis in &axes {
        let at = args.axis("axes", axis, rank)?;
        if std::mem::replace(&mut new[at], true) {
            return Err(args.bad("axes", "distinct axes", format!("{axes:?}")));
        }
    }
    let mut old = x.ty.shape.iter().copied();
    let shape = new
        .iter()
        .map(|&n| if n { 1 } else { old.next().unwrap_or(1) });
    let shape = shape.collect();
    reshaped(args, x, shape)
}

/// `squeeze`: drops the named dims that are 1; a named dim that is larger stays.
pub(super) fn squeeze(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let chosen = args.chosen_axes("axes", x.ty.rank())?;
    let dims = x.ty.shape.iter().zip(&chosen);
    let shape = dims.filter(|&(&n, &c)| !(c && n == 1)).map(|(&n, _)| n);
    let shape = shape.collect();
    reshaped(args, x, shape)
}

/// A strided copy of `x` into a new tensor of `shape`, read through `view` as `loops`.
fn strided(
    x: &Tensor,
    pool: &mut Pool,
    loops: &[usize],
    view: &View,
    shape: &[usize],
) -> Result<Tensor> {
    for_each_kind!(x.kind(), T => {
        let mut out = T::buffer(pool, shape.iter().product());
        copy(loops, T::of(x)?, view, &mut out, &View::dense(loops));
        Tensor::new(shape, T::data(out))
    })
}

/// `transpose`.
pub(super) fn transpose(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let perm = args.required_ints("perm")?;
    let rank = x.ty.rank();
    let order = perm
        .iter()
        .map(|&axis| args.axis("perm", axis, rank))
        .collect::<Result<Vec<usize>>>()?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..rank) {
        return Err(args.bad(
            "perm",
            format!("each axis of rank {rank} once"),
            format!("{perm:?}"),
        ));
    }
    let shape: Vec<usize> = order.iter().map(|&i| x.ty.shape[i]).collect();
    let moving = order.iter().filter(|&&i| x.ty.shape[i] != 1);
    if moving.is_sorted() {
        return reshaped(args, x, shape);
    }
    let dense = View::dense(&x.ty.shape);
    let view = View {
        offset: 0,
        strides: order.iter().map(|&i| dense.strides[i]).collect(),
    };
    args.one(TensorType::new(x.ty.dtype, &shape), move |inputs, pool| {
        strided(inputs[0], pool, &shape, &view, &shape)
    })
}

/// `tile`.
pub(super) fn tile(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let reps = args.required_ints("reps")?;
    let positive = reps.iter().all(|&r| r > 0);
    if reps.len() != x.ty.rank() || !positive {
        let expected = format!("{} positive numbers", x.ty.rank());
        return Err(args.bad("reps", expected, format!("{reps:?}")));
    }
    let dense = View::dense(&x.ty.shape);
    let mut loops = Vec::new();
    let mut view = View {
        offset: 0,
        strides: Vec::new(),
    };
    for ((&r, &n), &stride) in reps.iter().zip(&x.ty.shape).zip(&dense.strides) {
        loops.extend([r as usize, n]);
        view.strides.extend([0, stride]);
    }
    let shape: Vec<usize> = loops.chunks(2).map(|pair| pair[0] * pair[1]).collect();
    args.one(TensorType::new(x.ty.dtype, &shape), move |inputs, pool| {
        strided(inputs[0], pool, &loops, &view, &shape)
    })
}

/// `concat`, plain or interleaved; scalars become a vector.
pub(super) fn concat(mut args: OpArgs<'_>) -> Result<Compiled> {
    let values = args.operands("values")?;
    let first = &values[0].ty;
    let rank = first.rank().max(1);
    let axis = args.axis("axis", args.int("axis")?, rank)?;
    let interleave = args.bool("interleave")?;
    let shapes: Vec<Vec<usize>> = values
        .iter()
        .map(|v| {
            if v.ty.rank() == 0 {
                vec![1]
            } else {
                v.ty.shape.clone()
            }
        })
        .collect();
    for (value, shape) in values.iter().zip(&shapes) {
        let same = |i: usize| shape[i] == shapes[0][i] || (i == axis && !interleave);
        let fits =
            value.ty.dtype == first.dtype && value.ty.rank() == first.rank() && (0..rank).all(same);
        if !fits {
            let expected = format!("what fits with {first} along axis {axis}");
            return Err(args.bad("values", expected, value.ty.to_string()));
        }
    }
    let mut shape = shapes[0].clone();
    shape[axis] = shapes.iter().map(|s| s[axis]).sum();
    let mut at = 0;
    let targets: Vec<View> = shapes
        .iter()
        .map(|part| {
            let mut view = View::dense(&shape);
            view.offset = at * view.strides[axis] as usize;
            at += if interleave { 1 } else { part[axis] };
            if interleave {
                view.strides[axis] *= shapes.len() as isize;
            }
            view
        })
        .collect();
    args.one(TensorType::new(first.dtype, &shape), move |inputs, pool| {
        for_each_kind!(inputs[0].kind(), T => {
            let mut out = T::buffer(pool, shape.iter().product());
            for ((input, part), target) in inputs.iter().zip(&shapes).zip(&targets) {
                copy(part, T::of(input)?, &View::dense(part), &mut out, target);
            }
            Tensor::new(&shape, T::data(out))
        })
    })
}

/// `split` by `split_sizes`, or evenly by `num_splits`.
pub(super) fn split(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let axis = args.axis("axis", args.int("axis")?, x.ty.rank())?;
    let len = x.ty.shape[axis];
    let count = args.int_or_none("num_splits")?;
    let sizes = match (args.ints("split_sizes")?, count) {
        (Some(sizes), None) => sizes,
        (Some(sizes), Some(count)) if sizes.len() as i64 == count => sizes,
        (None, Some(count)) if count > 0 && len as i64 % count == 0 => {
            vec![len as i64 / count; count as usize]
        }
        (sizes, count) => {
            let got = format!("num_splits {count:?}, split_sizes {sizes:?}");
            return Err(args.bad("split_sizes", format!("sizes that split {len}"), got));
        }
    };
    let sum = sizes.iter().try_fold(0i64, |sum, &s| sum.checked_add(s));
    if sum != Some(len as i64) || sizes.iter().any(|&s| s < 0) {
        return Err(args.bad(
            "split_sizes",
            format!("a sum of {len}"),
            format!("{sizes:?}"),
        ));
    }
    let mut at = 0;
    let parts: Vec<(Vec<usize>, View)> = sizes
        .iter()
        .map(|&size| {
            let mut shape = x.ty.shape.clone();
            shape[axis] = size as usize;
            let mut view = View::dense(&x.ty.shape);
            view.offset = at * strides(&x.ty.shape)[axis];
            at += size as usize;
            (shape, view)
        })
        .collect();
    let outputs = parts
        .iter()
        .map(|(shape, _)| Derived::Type(TensorType::new(x.ty.dtype, shape)))
        .collect();
    args.compiled(outputs, move |inputs, pool| {
        parts
            .iter()
            .map(|(shape, view)| strided(inputs[0], pool, shape, view, shape))
            .collect()
    })
}

/// How `pad` fills.
#[derive(Clone, Copy)]
enum Fill {
    Constant(f32),
    Reflect,
    Replicate,
}

/// `pad`: `[before, after]` for each of the last dims.
pub(super) fn pad(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.float_operand("x")?;
    let pads = args.required_ints("pad")?;
    let fill = match args.text("mode")? {
        "constant" => Fill::Constant(args.float("constant_val")?),
        "reflect" => Fill::Reflect,
        "replicate" => Fill::Replicate,
        other => return Err(args.unsupported(format!("mode `{other}`"))),
    };
    let rank = x.ty.rank();
    let fits = pads.len() % 2 == 0 && pads.len() / 2 <= rank && pads.iter().all(|&p| p >= 0);
    if !fits {
        let expected = format!("two non-negative numbers for at most {rank} dims");
        return Err(args.bad("pad", expected, format!("{pads:?}")));
    }
    let first = rank - pads.len() / 2;
    let mut dims = Vec::new();
    let mut shape = x.ty.shape.clone();
    for (i, pair) in pads.chunks(2).enumerate() {
        let (before, after) = (pair[0] as usize, pair[1] as usize);
        let len = shape[first + i];
        let most = match fill {
            Fill::Constant(_) => usize::MAX,
            Fill::Reflect => len.saturating_sub(1),
            Fill::Replicate if len == 0 => 0,
            Fill::Replicate => usize::MAX,
        };
        if before.max(after) > most {
            return Err(args.bad("pad", format!("at most {most}"), format!("{pads:?}")));
        }
        shape[first + i] = len + before + after;
        dims.push((first + i, before, after));
    }
    args.one(TensorType::new(x.ty.dtype, &shape), move |inputs, _| {
        let mut shape = inputs[0].shape().to_vec();
        let mut values = inputs[0].as_f32()?.to_vec();
        for &(axis, before, after) in &dims {
            if before + after > 0 {
                values = pad_axis(&values, &shape, axis, (before, after), fill);
                shape[axis] += before + after;
            }
        }
        Tensor::f32(&shape, values)
    })
}

fn pad_axis(
    values: &[f32],
    shape: &[usize],
    axis: usize,
    (before, after): (usize, usize),
    fill: Fill,
) -> Vec<f32> {
    let len = shape[axis];
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    let mut out = Vec::with_capacity(outer * (before + len + after) * inner);
    for o in 0..outer {
        for i in 0..before + len + after {
            let source = match (i.checked_sub(before), fill) {
                (Some(i), _) if i < len => Some(i),
                (_, Fill::Constant(_)) => None,
                (None, Fill::Reflect) => Some(before - i),
                (Some(i), Fill::Reflect) => Some(2 * (len - 1) - i),
                (None, Fill::Replicate) => Some(0),
                (Some(_), Fill::Replicate) => Some(len - 1),
            };
            match (source, fill) {
                (Some(i), _) => {
                    let from = (o * len + i) * inner;
                    out.extend_from_slice(&values[from..from + inner]);
                }
                (None, Fill::Constant(value)) => out.extend(std::iter::repeat_n(value, inner)),
                (None, _) => {}
            }
        }
    }
    out
}
