//! Type rules: from an op and its arguments to the types of its results.
//!
//! The builder calls [`infer`] when it makes an op, the package reader when it checks one, so that
//! what is written and what is accepted cannot differ. All shapes are static.

mod linear;
mod shape;

use super::MAX_RANK;
use super::error::{Error, Result};
use super::schema::{ArgSpec, OpType, Role};
use super::types::{DType, TensorType};
use super::value::Immediate;

/// What a value is, as far as an argument cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// Computed, or an input.
    Tensor,
    /// A `const` or the output of a constexpr op.
    Const,
    /// A state.
    State,
}

/// A value bound to an argument.
#[derive(Debug, Clone, Copy)]
pub struct Arg<'a> {
    /// Type of the value.
    pub ty: &'a TensorType,
    /// What the value is.
    pub kind: ValueKind,
    /// Its elements, when they are known.
    pub value: Option<&'a Immediate>,
}

/// The arguments of one op.
pub type Args<'a> = [(&'a str, Vec<Arg<'a>>)];

/// Checks the arguments against the schema and derives the types of the results.
///
/// # Errors
/// A typed error that names the op (`name` is the op's own name), the argument, what was expected
/// and what was found.
pub fn infer(op: OpType, name: &str, args: &Args<'_>) -> Result<Vec<TensorType>> {
    check_schema(op, name, args)?;
    let call = Call { op, args };
    let outputs = call.outputs().map_err(|message| Error::Infer {
        op: op.name(),
        name: name.to_owned(),
        message,
    })?;
    for ty in &outputs {
        let message = if ty.shape.contains(&0) {
            format!("the result {ty} is empty")
        } else if ty.rank() > MAX_RANK && !op.is_constexpr() {
            format!("the result {ty} has a rank over {MAX_RANK}")
        } else if ty.elements().is_none() {
            format!("the result {ty} has too many elements")
        } else {
            continue;
        };
        return Err(Error::Infer {
            op: op.name(),
            name: name.to_owned(),
            message,
        });
    }
    Ok(outputs)
}

fn check_schema(op: OpType, name: &str, args: &Args<'_>) -> Result<()> {
    for (arg, _) in args {
        if op.arg(arg).is_none() {
            return Err(Error::UnknownArg {
                op: op.name(),
                name: name.to_owned(),
                arg: (*arg).to_owned(),
            });
        }
    }
    let mut groups: Vec<(char, DType)> = Vec::new();
    for spec in op.args() {
        let bound = args.iter().find(|(arg, _)| *arg == spec.name);
        let Some((_, values)) = bound else {
            if spec.required() {
                return Err(Error::MissingArg {
                    op: op.name(),
                    name: name.to_owned(),
                    arg: spec.name,
                });
            }
            continue;
        };
        let bad = |expected: String, got: String| Error::BadArg {
            op: op.name(),
            name: name.to_owned(),
            arg: spec.name.to_owned(),
            expected,
            got,
        };
        if values.is_empty() || (!spec.variadic && values.len() > 1) {
            let expected = if spec.variadic { "one or more" } else { "one" };
            return Err(bad(format!("{expected} value"), values.len().to_string()));
        }
        for value in values {
            check_value(spec, value, &mut groups).map_err(|(expected, got)| bad(expected, got))?;
        }
    }
    Ok(())
}

/// Checks role, element type and type group of one bound value; (expected, got) if it is wrong.
fn check_value(
    spec: &ArgSpec,
    value: &Arg<'_>,
    groups: &mut Vec<(char, DType)>,
) -> std::result::Result<(), (String, String)> {
    let ty = value.ty;
    let role = match (spec.role, value.kind) {
        (Role::State, ValueKind::State) => None,
        (Role::State, _) => Some("a state"),
        (_, ValueKind::State) => Some("a tensor"),
        (Role::Weight, ValueKind::Tensor) => Some("a constant"),
        (Role::Attribute, _) if value.value.is_none() => Some("an immediate constant"),
        _ => None,
    };
    if let Some(expected) = role {
        let got = match value.kind {
            ValueKind::Tensor => format!("a computed {ty}"),
            ValueKind::Const => format!("a constant {ty} without immediate value"),
            ValueKind::State => format!("a state of {ty}"),
        };
        return Err((expected.to_owned(), got));
    }
    if !spec.dtypes.contains(&ty.dtype) {
        let names: Vec<_> = spec.dtypes.iter().map(|d| d.name()).collect();
        return Err((names.join(" or "), ty.to_string()));
    }
    if spec.group != ' ' {
        match groups.iter().find(|(group, _)| *group == spec.group) {
            Some((_, dtype)) if *dtype != ty.dtype => {
                return Err((
                    format!("{dtype} like the argument before it"),
                    ty.to_string(),
                ));
            }
            Some(_) => {}
            None => groups.push((spec.group, ty.dtype)),
        }
    }
    Ok(())
}

/// Result with a message; [`infer`] adds the op.
type Inferred<T> = std::result::Result<T, String>;

/// An op with arguments that passed the schema check.
struct Call<'a> {
    op: OpType,
    args: &'a Args<'a>,
}

impl<'a> Call<'a> {
    fn all(&self, arg: &str) -> &'a [Arg<'a>] {
        let found = self.args.iter().find(|(name, _)| *name == arg);
        found.map_or(&[], |(_, values)| values.as_slice())
    }

    fn opt(&self, arg: &str) -> Option<&'a Arg<'a>> {
        self.all(arg).first()
    }

    fn ty(&self, arg: &str) -> Inferred<&'a TensorType> {
        let arg = self.opt(arg).ok_or_else(|| format!("no `{arg}`"))?;
        Ok(arg.ty)
    }

    fn shape(&self, arg: &str) -> Inferred<&'a [usize]> {
        Ok(&self.ty(arg)?.shape)
    }

    /// Elements of an integer vector argument; none when absent or not known.
    fn ints(&self, arg: &str) -> Inferred<Option<Vec<i64>>> {
        let Some(bound) = self.opt(arg) else {
            return Ok(None);
        };
        if bound.ty.rank() != 1 {
            return Err(format!("`{arg}` must be a vector, got {}", bound.ty));
        }
        Ok(bound.value.and_then(Immediate::ints))
    }

    /// An integer scalar argument or its default.
    fn int(&self, arg: &str, default: i64) -> Inferred<i64> {
        Ok(self.scalar(arg, Immediate::as_int)?.unwrap_or(default))
    }

    fn bool(&self, arg: &str, default: bool) -> Inferred<bool> {
        Ok(self.scalar(arg, Immediate::as_bool)?.unwrap_or(default))
    }

    fn str(&self, arg: &str, default: &'static str) -> Inferred<&'a str> {
        Ok(self.scalar(arg, Immediate::as_str)?.unwrap_or(default))
    }

    fn scalar<T>(
        &self,
        arg: &str,
        get: impl Fn(&'a Immediate) -> Option<T>,
    ) -> Inferred<Option<T>> {
        let Some(bound) = self.opt(arg) else {
            return Ok(None);
        };
        if bound.ty.rank() != 0 {
            return Err(format!("`{arg}` must be a scalar, got {}", bound.ty));
        }
        Ok(bound.value.and_then(get))
    }

    fn outputs(&self) -> Inferred<Vec<TensorType>> {
        use OpType::*;
        Ok(vec![match self.op {
            Const => return Err("a const has no arguments".to_owned()),
            WriteState => return self.write_state(),
            Split => return self.split(),
            Topk => return self.topk(),
            ConstexprLutToDense => self.lut_to_dense()?,
            ConstexprLutToSparse => return self.lut_to_sparse(),
            ConstexprSparseToDense => self.sparse_to_dense()?,
            ConstexprBlockwiseShiftScale => self.blockwise_shift_scale()?,
            Conv => self.conv()?,
            Linear => self.linear()?,
            Matmul => self.matmul()?,
            LayerNorm => self.layer_norm()?,
            ReduceMean | ReduceSum | ReduceMax | ReduceSumSquare => self.reduce()?,
            ReduceArgmax => self.reduce_argmax()?,
            Add | Sub | Mul | RealDiv | Maximum | Minimum | Pow => self.binary()?,
            Exp | Tanh | Sigmoid | Silu | Sqrt | Cos | Sin | Round | Identity => {
                self.ty("x")?.clone()
            }
            Clip => self.clip()?,
            Rsqrt => self.rsqrt()?,
            Gelu => self.gelu()?,
            Softmax => self.softmax()?,
            ScaledDotProductAttention => self.attention()?,
            Concat => self.concat()?,
            SliceByIndex => self.slice_by_index()?,
            SliceBySize => self.slice_by_size()?,
            SliceUpdate => self.slice_update()?,
            Reshape => self.reshape()?,
            Transpose => self.transpose()?,
            ExpandDims => self.expand_dims()?,
            Squeeze => self.squeeze()?,
            Tile => self.tile()?,
            Gather => self.gather()?,
            GatherAlongAxis => self.gather_along_axis()?,
            Cast => self.cast()?,
            Pad => self.pad()?,
            Select => self.select()?,
            ReadState => self.ty("input")?.clone(),
            Quantize => self.quantize()?,
            Dequantize => self.dequantize()?,
        }])
    }
}

/// An axis made positive, or why it is none of `rank` dimensions.
fn axis(what: &str, axis: i64, rank: usize) -> Inferred<usize> {
    let len = i64::try_from(rank).map_err(|e| e.to_string())?;
    let positive = if axis < 0 {
        axis.saturating_add(len)
    } else {
        axis
    };
    if (0..len).contains(&positive) {
        Ok(positive as usize)
    } else {
        Err(format!("{what} {axis} is outside a rank of {rank}"))
    }
}

/// Distinct positive axes in the order given.
fn axes(values: &[i64], rank: usize) -> Inferred<Vec<usize>> {
    let mut out = Vec::with_capacity(values.len());
    for &value in values {
        let value = axis("axis", value, rank)?;
        if out.contains(&value) {
            return Err(format!("axis {value} is given twice"));
        }
        out.push(value);
    }
    Ok(out)
}

/// Numpy broadcast of two shapes.
fn broadcast(a: &[usize], b: &[usize]) -> Inferred<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |index| s[index]);
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(format!("{a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

fn one_of<'v>(what: &str, value: &'v str, allowed: &[&str]) -> Inferred<&'v str> {
    if allowed.contains(&value) {
        return Ok(value);
    }
    Err(format!(
        "{what} `{value}` is unknown; expected {}",
        allowed.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_into_a_billion_pieces_is_refused_without_allocating() {
        const PIECES: i32 = 1 << 30;
        let x = TensorType::new(DType::Fp16, &[PIECES as usize]);
        let scalar = TensorType::scalar(DType::Int32);
        let (pieces, axis) = (Immediate::int32(PIECES), Immediate::int32(0));
        let constant = |value| Arg {
            ty: &scalar,
            kind: ValueKind::Const,
            value: Some(value),
        };
        let tensor = Arg {
            ty: &x,
            kind: ValueKind::Tensor,
            value: None,
        };
        let args = [
            ("x", vec![tensor]),
            ("num_splits", vec![constant(&pieces)]),
            ("axis", vec![constant(&axis)]),
        ];
        let error = infer(OpType::Split, "s", &args).unwrap_err();
        assert!(error.to_string().contains("at most"), "{error}");
    }
}
