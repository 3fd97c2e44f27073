//! Slices and their replacement. `begin` and `end` may be computed; the result then has the declared shape.

use crate::mil::TensorType;
use crate::runtime::interpreter::args::{Compiled, Derived, OpArgs, Operand};
use crate::runtime::interpreter::steps::part::Region;
use crate::runtime::kernels::strided::{View, copy};
use crate::runtime::values::element::Element;
use crate::runtime::values::element::for_each_kind;
use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::pool::Pool;
use crate::runtime::values::tensor::Tensor;

/// The constant part of a slice.
struct Spec {
    op: String,
    x_shape: Vec<usize>,
    stride: Vec<i64>,
    begin_mask: Vec<bool>,
    end_mask: Vec<bool>,
    squeeze_mask: Vec<bool>,
}

/// A slice: its shape, with and without squeezed dims, and where it lies in `x`.
struct Resolved {
    begin: Vec<usize>,
    full: Vec<usize>,
    squeezed: Vec<usize>,
    view: View,
}

impl Spec {
    fn new(args: &OpArgs<'_>, x: &TensorType) -> Result<Self> {
        let rank = x.rank();
        let mask = |arg: &str| -> Result<Vec<bool>> {
            let mask = args.bools(arg)?.unwrap_or_else(|| vec![false; rank]);
            match mask.len() == rank {
                true => Ok(mask),
                false => Err(args.bad(arg, format!("{rank} bools"), mask.len().to_string())),
            }
        };
        let stride = args.ints("stride")?.unwrap_or_else(|| vec![1; rank]);
        if stride.len() != rank || stride.contains(&0) {
            let expected = format!("{rank} numbers other than 0");
            return Err(args.bad("stride", expected, format!("{stride:?}")));
        }
        for arg in ["begin", "end"] {
            let ty = args.ty(arg)?;
            if ty.shape != [rank] {
                return Err(args.bad(arg, format!("{rank} integers"), ty.to_string()));
            }
        }
        Ok(Self {
            op: args.op.to_owned(),
            x_shape: x.shape.clone(),
            stride,
            begin_mask: mask("begin_mask")?,
            end_mask: mask("end_mask")?,
            squeeze_mask: mask("squeeze_mask")?,
        })
    }

    /// The slice for these bounds, by the rules of Python slices; a squeezed dim must be in range.
    fn resolve(&self, begin: &[i64], end: &[i64]) -> Result<Resolved> {
        let dense = View::dense(&self.x_shape);
        let mut out = Resolved {
            begin: Vec::new(),
            full: Vec::new(),
            squeezed: Vec::new(),
            view: View {
                offset: 0,
                strides: Vec::new(),
            },
        };
        for (i, &n) in self.x_shape.iter().enumerate() {
            let begin = (!self.begin_mask[i]).then_some(begin[i]);
            let end = (!self.end_mask[i]).then_some(end[i]);
            let (start, len, step) = if self.squeeze_mask[i] {
                (self.index(begin.unwrap_or(0), n)?, 1, 1)
            } else {
                range(n as i64, begin, end, self.stride[i])
            };
            out.begin.push(start);
            out.full.push(len);
            if !self.squeeze_mask[i] {
                out.squeezed.push(len);
            }
            out.view.offset += start * dense.strides[i] as usize;
            out.view.strides.push(dense.strides[i] * step);
        }
        Ok(out)
    }

    fn index(&self, index: i64, len: usize) -> Result<usize> {
        let front = if index < 0 { index + len as i64 } else { index };
        match usize::try_from(front) {
            Ok(front) if front < len => Ok(front),
            _ => Err(Error::IndexRange {
                op: self.op.clone(),
                index,
                len,
            }),
        }
    }
}

/// Start, length and step of a Python slice of `n` elements.
fn range(n: i64, begin: Option<i64>, end: Option<i64>, step: i64) -> (usize, usize, isize) {
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let bound = |value: Option<i64>, absent: i64| match value {
        None => absent,
        Some(v) if v < 0 => (v + n).clamp(low, high),
        Some(v) => v.clamp(low, high),
    };
    let (start, stop) = match step > 0 {
        true => (bound(begin, low), bound(end, high)),
        false => (bound(begin, high), bound(end, low)),
    };
    let span = if step > 0 { stop - start } else { start - stop };
    let size = step.unsigned_abs();
    let len = (span.max(0) as u64).div_ceil(size) as usize;
    match len {
        0 => (0, 0, 0),
        _ => (start as usize, len, step as isize),
    }
}

/// `begin` and `end`, constant or operands.
struct Bounds {
    begin: Operand,
    end: Operand,
}

impl Bounds {
    fn new(args: &mut OpArgs<'_>) -> Result<Self> {
        Ok(Self {
            begin: args.operand("begin")?,
            end: args.operand("end")?,
        })
    }

    /// Their values if both are constant.
    fn constant(args: &OpArgs<'_>) -> Result<Option<(Vec<i64>, Vec<i64>)>> {
        let known = args.constant("begin")?.is_some() && args.constant("end")?.is_some();
        match known {
            true => Ok(Some((
                args.required_ints("begin")?,
                args.required_ints("end")?,
            ))),
            false => Ok(None),
        }
    }

    fn read(&self, inputs: &[&Tensor]) -> Result<(Vec<i64>, Vec<i64>)> {
        Ok((wide(inputs[self.begin.at])?, wide(inputs[self.end.at])?))
    }
}

fn wide(tensor: &Tensor) -> Result<Vec<i64>> {
    Ok(tensor.as_i32()?.iter().map(|&v| i64::from(v)).collect())
}

fn sliced(x: &Tensor, pool: &mut Pool, at: &Resolved) -> Result<Tensor> {
    for_each_kind!(x.kind(), T => {
        let mut out = T::buffer(pool, at.full.iter().product());
        copy(&at.full, T::of(x)?, &at.view, &mut out, &View::dense(&at.full));
        Tensor::new(&at.squeezed, T::data(out))
    })
}

/// The part of `x` that a slice of constant bounds takes, if neighbours stay neighbours and no dim is squeezed.
pub(crate) fn region(args: &OpArgs<'_>) -> Option<Region> {
    let spec = Spec::new(args, args.ty("x").ok()?).ok()?;
    let (begin, end) = Bounds::constant(args).ok()??;
    let plain = spec.stride.iter().all(|&s| s == 1) && !spec.squeeze_mask.contains(&true);
    let at = spec.resolve(&begin, &end).ok().filter(|_| plain)?;
    Some(Region {
        begin: at.begin,
        size: at.full,
    })
}

/// Whether a slice update replaces exactly what its bounds say: unit strides, no masks.
pub(crate) fn slice_update_bounds(args: &OpArgs<'_>) -> bool {
    let spec = args.ty("x").and_then(|x| Spec::new(args, x));
    spec.is_ok_and(|spec| {
        let masks = [&spec.begin_mask, &spec.end_mask, &spec.squeeze_mask];
        spec.stride.iter().all(|&s| s == 1) && masks.iter().all(|m| !m.contains(&true))
    })
}

/// `slice_by_index`.
pub(super) fn by_index(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let spec = Spec::new(&args, &x.ty)?;
    if let Some((begin, end)) = Bounds::constant(&args)? {
        let at = spec.resolve(&begin, &end)?;
        return args.one(
            TensorType::new(x.ty.dtype, &at.squeezed),
            move |inputs, pool| sliced(inputs[0], pool, &at),
        );
    }
    let bounds = Bounds::new(&mut args)?;
    let declared = args.declared.first().map(|ty| ty.shape.clone());
    args.compiled(vec![Derived::Declared(x.ty.dtype)], move |inputs, pool| {
        let (begin, end) = bounds.read(inputs)?;
        let at = spec.resolve(&begin, &end)?;
        if Some(&at.squeezed) != declared.as_ref() {
            return Err(Error::RunShape {
                op: spec.op.clone(),
                expected: declared.clone().unwrap_or_default(),
                got: at.squeezed,
            });
        }
        Ok(vec![sliced(inputs[0], pool, &at)?])
    })
}

/// `slice_by_size`: `begin` may be computed; -1 is what is left after a constant `begin`.
pub(super) fn by_size(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let rank = x.ty.rank();
    let begin = args.operand("begin")?;
    let known = args.constant("begin")?.is_some();
    let constant = known.then(|| args.required_ints("begin")).transpose()?;
    let sizes = args.required_ints("size")?;
    if begin.ty.shape != [rank] || sizes.len() != rank {
        let got = format!("begin {}, size {sizes:?}", begin.ty);
        return Err(args.bad("begin", format!("{rank} integers, as size"), got));
    }
    let mut shape = Vec::with_capacity(rank);
    for (i, (&size, &n)) in sizes.iter().zip(&x.ty.shape).enumerate() {
        let n = n as i64;
        let start = constant
            .as_ref()
            .map(|b| if b[i] < 0 { b[i] + n } else { b[i] });
        let len = match (size, start) {
            (-1, Some(start)) => n - start,
            (-1, None) => return Err(args.unsupported("size -1 with a computed begin")),
            _ => size,
        };
        if len < 1 || len > n {
            return Err(args.bad("size", format!("1 to {n}, or -1"), format!("{sizes:?}")));
        }
        shape.push(len as usize);
    }
    let x_shape = x.ty.shape.clone();
    let op = args.op.to_owned();
    args.one(TensorType::new(x.ty.dtype, &shape), move |inputs, pool| {
        let mut view = View::dense(&x_shape);
        for (i, &start) in wide(inputs[1])?.iter().enumerate() {
            let n = x_shape[i];
            let front = if start < 0 { start + n as i64 } else { start };
            match usize::try_from(front) {
                Ok(front) if front + shape[i] <= n => {
                    view.offset += front * view.strides[i] as usize;
                }
                _ => {
                    return Err(Error::IndexRange {
                        op: op.clone(),
                        index: start,
                        len: n - shape[i] + 1,
                    });
                }
            }
        }
        let at = Resolved {
            begin: Vec::new(),
            full: shape.clone(),
            squeezed: shape.clone(),
            view,
        };
        sliced(inputs[0], pool, &at)
    })
}

/// `slice_update`: `x` with a slice replaced.
pub(super) fn update(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.operand("x")?;
    let update = args.operand("update")?;
    let spec = Spec::new(&args, &x.ty)?;
    if update.ty.dtype != x.ty.dtype {
        return Err(args.bad("update", x.ty.dtype.name(), update.ty.to_string()));
    }
    if let Some((begin, end)) = Bounds::constant(&args)? {
        let at = spec.resolve(&begin, &end)?;
        if at.squeezed != update.ty.shape {
            let expected = format!("the shape of the slice, {:?}", at.squeezed);
            return Err(args.bad("update", expected, update.ty.to_string()));
        }
    }
    let bounds = Bounds::new(&mut args)?;
    args.one(x.ty, move |inputs, pool| {
        let (begin, end) = bounds.read(inputs)?;
        let at = spec.resolve(&begin, &end)?;
        let update = inputs[1];
        if at.squeezed != update.shape() {
            return Err(Error::RunShape {
                op: spec.op.clone(),
                expected: update.shape().to_vec(),
                got: at.squeezed,
            });
        }
        for_each_kind!(inputs[0].kind(), T => {
            let values = T::of(inputs[0])?;
            let mut out = T::buffer(pool, values.len());
            out.copy_from_slice(values);
            copy(&at.full, T::of(update)?, &View::dense(&at.full), &mut out, &at.view);
            Tensor::new(inputs[0].shape(), T::data(out))
        })
    })
}
