//! Ops that move elements: slices, shapes, gathers, casts, padding, states.

use super::{Call, Inferred, axes, axis, one_of};
use crate::mil::types::{DType, TensorType};

/// What `cast` converts to.
const CAST: [DType; 8] = [
    DType::Fp16,
    DType::Fp32,
    DType::Int32,
    DType::Bool,
    DType::Int8,
    DType::UInt8,
    DType::Int16,
    DType::UInt16,
];

/// Most results of one `split`: a number in a small file must not ask for any amount of memory.
const MAX_SPLITS: usize = 1 << 16;

fn size(what: &str, value: i64) -> Inferred<usize> {
    usize::try_from(value).map_err(|_| format!("{what} {value} is not a size"))
}

impl Call<'_> {
    pub(super) fn write_state(&self) -> Inferred<Vec<TensorType>> {
        let (state, data) = (self.ty("input")?, self.ty("data")?);
        if state != data {
            return Err(format!("a state of {state} cannot hold {data}"));
        }
        Ok(vec![])
    }

    pub(super) fn split(&self) -> Inferred<Vec<TensorType>> {
        let x = self.ty("x")?;
        let axis = axis("axis", self.int("axis", 0)?, x.rank())?;
        let len = x.shape[axis];
        let parts = self.scalar("num_splits", |v| v.as_int())?;
        let sizes = match (self.ints("split_sizes")?, parts) {
            (Some(sizes), parts) => {
                if parts.is_some_and(|n| n != sizes.len() as i64) {
                    return Err("num_splits is not the number of split_sizes".to_owned());
                }
                let sizes = sizes.into_iter().map(|s| size("split size", s));
                sizes.collect::<Inferred<Vec<usize>>>()?
            }
            (None, Some(n)) => {
                let n = size("num_splits", n)?;
                if n == 0 || len % n != 0 {
                    return Err(format!("{n} splits do not divide {len}"));
                }
                if n > MAX_SPLITS {
                    return Err(format!("{n} splits; at most {MAX_SPLITS} are supported"));
                }
                vec![len / n; n]
            }
            (None, None) => return Err("num_splits or split_sizes is needed".to_owned()),
        };
        let sum = sizes.iter().try_fold(0usize, |n, &s| n.checked_add(s));
        if sum != Some(len) {
            return Err(format!("split_sizes {sizes:?} do not add up to {len}"));
        }
        let part = |s: usize| {
            let mut ty = x.clone();
            ty.shape[axis] = s;
            ty
        };
        Ok(sizes.into_iter().map(part).collect())
    }

    pub(super) fn topk(&self) -> Inferred<Vec<TensorType>> {
        let mut values = self.ty("x")?.clone();
        let axis = axis("axis", self.int("axis", -1)?, values.rank())?;
        let len = values.shape[axis];
        let k = match self.int("k", 1)? {
            -1 => len,
            k => size("k", k)?,
        };
        if k > len {
            return Err(format!("k {k} is larger than {len} elements"));
        }
        values.shape[axis] = k;
        self.bool("sort", true)?;
        self.bool("ascending", false)?;
        if !self.bool("return_indices", true)? {
            if self.opt("output_indices_dtype").is_some() {
                return Err("output_indices_dtype without indices".to_owned());
            }
            return Ok(vec![values]);
        }
        let dtype = match self.str("output_indices_dtype", "int32")? {
            "int32" => DType::Int32,
            "uint16" => DType::UInt16,
            other => return Err(format!("output_indices_dtype `{other}`")),
        };
        let indices = TensorType::new(dtype, &values.shape);
        Ok(vec![values, indices])
    }

    pub(super) fn concat(&self) -> Inferred<TensorType> {
        let values = self.all("values");
        let first = values.first().ok_or("no values")?.ty;
        let axis = axis("axis", self.int("axis", 0)?, first.rank())?;
        let interleave = self.bool("interleave", false)?;
        let mut out = first.clone();
        for value in &values[1..] {
            let shape = &value.ty.shape;
            let fits = shape.len() == first.rank()
                && (0..first.rank())
                    .all(|i| shape[i] == first.shape[i] || (i == axis && !interleave));
            if !fits {
                return Err(format!("{} does not fit {first} on axis {axis}", value.ty));
            }
            let sum = out.shape[axis].checked_add(shape[axis]);
            out.shape[axis] = sum.ok_or("the result is too large")?;
        }
        Ok(out)
    }

    /// Sizes of a slice without squeezed dimensions; none where a computed bound decides.
    fn slice_shape(&self) -> Inferred<Vec<Option<usize>>> {
        let shape = self.shape("x")?;
        let rank = shape.len();
        let vector = |arg: &str| -> Inferred<Option<Vec<i64>>> {
            if let Some(bound) = self.opt(arg)
                && bound.ty.shape != [rank]
            {
                return Err(format!("`{arg}` is {}, expected {rank} elements", bound.ty));
            }
            self.ints(arg)
        };
        let mask = |arg: &str| -> Inferred<Vec<bool>> {
            match self.opt(arg).and_then(|bound| bound.value) {
                Some(value) if value.shape == [rank] => {
                    Ok(value.as_bools().unwrap_or_default().to_vec())
                }
                Some(value) => Err(format!("`{arg}` is {}, expected {rank}", value.ty())),
                None => Ok(vec![false; rank]),
            }
        };
        let (begin, end) = (vector("begin")?, vector("end")?);
        let stride = vector("stride")?.unwrap_or_else(|| vec![1; rank]);
        let (begin_mask, end_mask) = (mask("begin_mask")?, mask("end_mask")?);
        let squeeze = mask("squeeze_mask")?;
        let mut out = Vec::with_capacity(rank);
        for i in 0..rank {
            let begin = begin.as_ref().map(|b| b[i]);
            let dim = Dim {
                len: i64::try_from(shape[i]).map_err(|e| e.to_string())?,
                begin: if begin_mask[i] {
                    Bound::Open
                } else {
                    begin.into()
                },
                end: match end.as_ref().map(|e| e[i]) {
                    _ if end_mask[i] => Bound::Open,
                    end => end.into(),
                },
                stride: stride[i],
            };
            if squeeze[i] {
                dim.index().map_err(|e| format!("dimension {i}: {e}"))?;
            } else {
                out.push(dim.size().map_err(|e| format!("dimension {i}: {e}"))?);
            }
        }
        Ok(out)
    }

    pub(super) fn slice_by_index(&self) -> Inferred<TensorType> {
        let shape: Option<Vec<usize>> = self.slice_shape()?.into_iter().collect();
        let shape = shape.ok_or("computed bounds give no static shape; use slice_by_size")?;
        Ok(TensorType::new(self.ty("x")?.dtype, &shape))
    }

    pub(super) fn slice_update(&self) -> Inferred<TensorType> {
        let update = self.ty("update")?;
        let shape = self.slice_shape()?;
        let fits = shape.len() == update.rank()
            && shape
                .iter()
                .zip(&update.shape)
                .all(|(slice, &dim)| slice.is_none_or(|s| s == dim));
        if !fits || update.rank() == 0 {
            return Err(format!(
                "`update` {update} does not fit the slice {shape:?}"
            ));
        }
        Ok(self.ty("x")?.clone())
    }

    pub(super) fn slice_by_size(&self) -> Inferred<TensorType> {
        let x = self.ty("x")?;
        let rank = x.rank();
        for arg in ["begin", "size"] {
            if self.shape(arg)? != [rank] {
                return Err(format!(
                    "`{arg}` is {}, expected {rank} elements",
                    self.ty(arg)?
                ));
            }
        }
        let begin = self.ints("begin")?;
        let sizes = self.ints("size")?.ok_or("`size` must be constant")?;
        let mut shape = Vec::with_capacity(rank);
        for (i, &wanted) in sizes.iter().enumerate() {
            let len = i64::try_from(x.shape[i]).map_err(|e| e.to_string())?;
            let start = match begin.as_ref().map(|b| b[i]) {
                Some(b) if b < 0 => Some(b.saturating_add(len)),
                other => other,
            };
            let rest = start.map(|s| len - s);
            let got = match (wanted, rest) {
                (-1, Some(rest)) => rest,
                (-1, None) => return Err("size -1 needs a constant `begin`".to_owned()),
                (n, _) => n,
            };
            let outside = start.is_some_and(|s| s < 0) || rest.is_some_and(|rest| got > rest);
            if outside || got < 1 || got > len {
                return Err(format!("size {wanted} in dimension {i} does not fit {x}"));
            }
            shape.push(got as usize);
        }
        Ok(TensorType::new(x.dtype, &shape))
    }

    pub(super) fn reshape(&self) -> Inferred<TensorType> {
        let x = self.ty("x")?;
        let wanted = self.ints("shape")?.ok_or("`shape` must be constant")?;
        let total = x.elements().ok_or("`x` is too large")?;
        let mut shape = Vec::with_capacity(wanted.len());
        let mut open = None;
        for (i, &dim) in wanted.iter().enumerate() {
            shape.push(match dim {
                -1 if open.replace(i).is_some() => return Err("more than one -1".to_owned()),
                -1 => 1,
                0 if wanted.len() == x.rank() => x.shape[i],
                0 => return Err("0 needs as many dimensions as `x` has".to_owned()),
                dim => size("dimension", dim)?,
            });
        }
        let product = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let product = product.ok_or("the shape is too large")?;
        if let Some(i) = open
            && product != 0
        {
            shape[i] = total / product;
        }
        let elements = TensorType::new(x.dtype, &shape).elements();
        if elements != Some(total) {
            return Err(format!("{x} cannot be reshaped to {wanted:?}"));
        }
        Ok(TensorType::new(x.dtype, &shape))
    }

    pub(super) fn transpose(&self) -> Inferred<TensorType> {
        let x = self.ty("x")?;
        let perm = axes(&self.ints("perm")?.ok_or("no perm")?, x.rank())?;
        if perm.len() != x.rank() {
            return Err(format!("perm {perm:?} is no permutation of {x}"));
        }
        let shape: Vec<usize> = perm.iter().map(|&i| x.shape[i]).collect();
        Ok(TensorType::new(x.dtype, &shape))
    }

    pub(super) fn expand_dims(&self) -> Inferred<TensorType> {
        let x = self.ty("x")?;
        let values = self.ints("axes")?.ok_or("no axes")?;
        let mut axes = axes(&values, x.rank() + values.len())?;
        axes.sort_unstable();
        let mut shape = x.shape.clone();
        for axis in axes {
            shape.insert(axis, 1);
        }
        Ok(TensorType::new(x.dtype, &shape))
    }

    pub(super) fn squeeze(&self) -> Inferred<TensorType> {
        let x = self.ty("x")?;
        let keep = match self.ints("axes")? {
            Some(values) => {
                let axes = axes(&values, x.rank())?;
                if let Some(&axis) = axes.iter().find(|&&axis| x.shape[axis] != 1) {
                    return Err(format!("axis {axis} of {x} is not 1"));
                }
                (0..x.rank()).filter(|i| !axes.contains(i)).collect()
            }
            None => (0..x.rank())
                .filter(|&i| x.shape[i] != 1)
                .collect::<Vec<_>>(),
        };
        let shape: Vec<usize> = keep.into_iter().map(|i| x.shape[i]).collect();
        Ok(TensorType::new(x.dtype, &shape))
    }

    pub(super) fn tile(&self) -> Inferred<TensorType> {
        let x = self.ty("x")?;
        let reps = self.ints("reps")?.ok_or("`reps` must be constant")?;
        if reps.len() != x.rank() || reps.is_empty() {
            return Err(format!("{} reps for {x}", reps.len()));
        }
        let shape = x.shape.iter().zip(&reps).map(|(&dim, &rep)| {
            let rep = size("rep", rep)?;
            dim.checked_mul(rep)
                .ok_or("the result is too large".to_owned())
        });
        let shape: Vec<usize> = shape.collect::<Inferred<_>>()?;
        Ok(TensorType::new(x.dtype, &shape))
    }

    pub(super) fn gather(&self) -> Inferred<TensorType> {
        let (x, indices) = (self.ty("x")?, self.ty("indices")?);
        let axis = axis("axis", self.int("axis", 0)?, x.rank())?;
        let batch = size("batch_dims", self.int("batch_dims", 0)?)?;
        self.bool("validate_indices", false)?;
        if batch > axis || batch > indices.rank() || x.shape[..batch] != indices.shape[..batch] {
            return Err(format!("batch_dims {batch} does not fit {x} and {indices}"));
        }
        let mut shape = x.shape[..axis].to_vec();
        shape.extend(&indices.shape[batch..]);
        shape.extend(&x.shape[axis + 1..]);
        Ok(TensorType::new(x.dtype, &shape))
    }

    pub(super) fn gather_along_axis(&self) -> Inferred<TensorType> {
        let (x, indices) = (self.ty("x")?, self.ty("indices")?);
        let axis = axis("axis", self.int("axis", 0)?, x.rank())?;
        self.bool("validate_indices", false)?;
        let fits = indices.rank() == x.rank()
            && (0..x.rank()).all(|i| i == axis || x.shape[i] == indices.shape[i]);
        if !fits {
            return Err(format!("`indices` {indices} does not fit `x` {x}"));
        }
        Ok(TensorType::new(x.dtype, &indices.shape))
    }

    pub(super) fn cast(&self) -> Inferred<TensorType> {
        let name = self.str("dtype", "")?;
        let dtype = CAST.into_iter().find(|d| d.name() == name);
        let dtype = dtype.ok_or_else(|| format!("dtype `{name}` is not one to cast to"))?;
        Ok(TensorType::new(dtype, self.shape("x")?))
    }

    pub(super) fn pad(&self) -> Inferred<TensorType> {
        let mut out = self.ty("x")?.clone();
        let modes = ["constant", "reflect", "replicate"];
        one_of("mode", self.str("mode", "constant")?, &modes)?;
        self.scalar("constant_val", |v| v.as_float())?;
        let pad = self.ints("pad")?.ok_or("`pad` must be constant")?;
        if pad.len() % 2 != 0 || pad.len() > 2 * out.rank() {
            return Err(format!("{} pad values for {out}", pad.len()));
        }
        let first = out.rank() - pad.len() / 2;
        for (dim, pair) in out.shape[first..].iter_mut().zip(pad.chunks_exact(2)) {
            let sum = size("pad", pair[0])?.checked_add(size("pad", pair[1])?);
            let sum = sum.and_then(|sum| dim.checked_add(sum));
            *dim = sum.ok_or("the result is too large")?;
        }
        Ok(out)
    }
}

/// One bound of a slice.
#[derive(Clone, Copy)]
enum Bound {
    /// To the border.
    Open,
    At(i64),
    /// Computed when the program runs.
    Computed,
}

impl From<Option<i64>> for Bound {
    fn from(value: Option<i64>) -> Self {
        value.map_or(Bound::Computed, Bound::At)
    }
}

/// A slice of one dimension.
struct Dim {
    len: i64,
    begin: Bound,
    end: Bound,
    stride: i64,
}

impl Dim {
    /// Checks the index of a squeezed dimension.
    fn index(&self) -> Inferred<()> {
        match self.begin {
            Bound::At(at) if at < -self.len || at >= self.len => {
                Err(format!("index {at} is outside {} elements", self.len))
            }
            _ => Ok(()),
        }
    }

    /// Number of elements; none if a computed bound decides.
    fn size(&self) -> Inferred<Option<usize>> {
        if self.stride == 0 {
            return Err("stride 0".to_owned());
        }
        let at = |bound, open| match bound {
            Bound::Open => Some(open),
            Bound::At(at) if at < 0 => Some(at.saturating_add(self.len)),
            Bound::At(at) => Some(at),
            Bound::Computed => None,
        };
        let (first, past) = if self.stride > 0 {
            (at(self.begin, 0), at(self.end, self.len))
        } else {
            (at(self.begin, self.len - 1), at(self.end, -1))
        };
        let (Some(first), Some(past)) = (first, past) else {
            return Ok((self.len == 1).then_some(1));
        };
        let span = if self.stride > 0 {
            past - first
        } else {
            first - past
        };
        let inside = (0..self.len).contains(&first) && (-1..=self.len).contains(&past);
        if !inside || span < 1 {
            return Err(format!(
                "{first}..{past} by {} is not a slice of {} elements",
                self.stride, self.len
            ));
        }
        Ok(Some(
            span.unsigned_abs().div_ceil(self.stride.unsigned_abs()) as usize,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::broadcast;
    use super::*;

    #[test]
    fn slices_of_one_dimension() {
        let dim = |begin, end, stride| Dim {
            len: 10,
            begin,
            end,
            stride,
        };
        use Bound::{At, Computed, Open};
        assert_eq!(dim(At(2), At(7), 2).size(), Ok(Some(3)));
        assert_eq!(dim(At(-3), Open, 1).size(), Ok(Some(3)));
        assert_eq!(dim(Open, Open, -1).size(), Ok(Some(10)));
        assert_eq!(dim(Open, Open, 3).size(), Ok(Some(4)));
        assert_eq!(dim(Computed, Open, 1).size(), Ok(None));
        assert!(dim(At(7), At(7), 1).size().is_err());
        assert!(dim(At(0), At(11), 1).size().is_err());
        assert!(dim(Open, Open, 0).size().is_err());
    }

    #[test]
    fn broadcasting() {
        assert_eq!(broadcast(&[3, 1], &[4]), Ok(vec![3, 4]));
        assert_eq!(broadcast(&[], &[4]), Ok(vec![4]));
        assert!(broadcast(&[3], &[4]).is_err());
    }
}
