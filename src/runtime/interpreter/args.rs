//! The arguments of one op, looked up by name while the plan is made.

use super::value::{Known, Value};
use crate::mil::{DType, DefaultValue, OpType, TensorType};
use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::pool::Pool;
use crate::runtime::values::tensor::{Precision, Tensor};
use crate::runtime::weights::coding::SharedBytes;
use crate::runtime::weights::constant::Constant;
use crate::runtime::weights::packed::PackedWeight;
use std::sync::Arc;

/// Executes one op: operands in, results out.
pub(crate) type Kernel = Box<dyn Fn(&[&Tensor], &mut Pool) -> Result<Vec<Tensor>> + Send + Sync>;

/// The type of a result as the runtime derives it.
pub(crate) enum Derived {
    /// From the operand types alone.
    Type(TensorType),
    /// An element type whose shape depends on values known only at run time: the declared shape is taken, and the kernel
    /// checks it.
    Declared(DType),
}

/// An op ready to run.
pub(crate) struct Compiled {
    /// Indices of the values that the kernel takes.
    pub inputs: Vec<usize>,
    /// The kernel.
    pub kernel: Kernel,
    /// Types of its results.
    pub outputs: Vec<Derived>,
}

/// An operand of a kernel: its place among the inputs, and its type.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    pub at: usize,
    pub ty: TensorType,
}

/// A matrix operand, in its stored form if it is constant.
pub(crate) enum Weight {
    Packed(Arc<PackedWeight>),
    Operand(Operand),
}

/// One op with its arguments resolved to values.
pub(crate) struct OpArgs<'a> {
    /// Name of the op.
    pub op: &'a str,
    /// Its type.
    pub op_type: OpType,
    /// Precision of the model.
    pub precision: Precision,
    /// Declared types of the results.
    pub declared: Vec<TensorType>,
    /// Argument names with the indices of their values.
    pub bound: Vec<(String, Vec<usize>)>,
    /// All values so far.
    pub values: &'a [Value],
    inputs: Vec<usize>,
}

impl<'a> OpArgs<'a> {
    /// The arguments of an op.
    pub fn new(
        op: &'a str,
        op_type: OpType,
        precision: Precision,
        declared: Vec<TensorType>,
        bound: Vec<(String, Vec<usize>)>,
        values: &'a [Value],
    ) -> Self {
        Self {
            op,
            op_type,
            precision,
            declared,
            bound,
            values,
            inputs: Vec::new(),
        }
    }

    /// An error about an argument.
    pub fn bad(&self, arg: &str, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::BadArgument {
            op: self.op.to_owned(),
            op_type: self.op_type.to_string(),
            arg: arg.to_owned(),
            expected: expected.into(),
            got: got.into(),
        }
    }

    /// An error about something the runtime does not execute.
    pub fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported {
            op: self.op.to_owned(),
            op_type: self.op_type.to_string(),
            what: what.into(),
        }
    }

    fn indices(&self, arg: &str) -> Option<&[usize]> {
        let found = self.bound.iter().find(|(name, _)| name == arg);
        found.map(|(_, indices)| indices.as_slice())
    }

    fn value(&self, arg: &str) -> Result<Option<&'a Value>> {
        match self.indices(arg) {
            None => Ok(None),
            Some(&[index]) => Ok(Some(&self.values[index])),
            Some(many) => Err(self.bad(arg, "one value", format!("{} values", many.len()))),
        }
    }

    fn take(&mut self, arg: &str, index: usize) -> Result<Operand> {
        let value = &self.values[index];
        match value.known {
            Known::Runtime | Known::Constant(_) => {}
            Known::State(_) => return Err(self.bad(arg, "a tensor", "a state")),
            Known::Text(_) => return Err(self.bad(arg, "a tensor", "a string")),
        }
        if let Known::Constant(constant) = &value.known {
            constant.dense();
        }
        self.inputs.push(index);
        Ok(Operand {
            at: self.inputs.len() - 1,
            ty: value.ty.clone(),
        })
    }

    /// A tensor operand.
    pub fn operand(&mut self, arg: &str) -> Result<Operand> {
        match self.indices(arg) {
            Some(&[index]) => self.take(arg, index),
            Some(many) => Err(self.bad(arg, "one value", format!("{} values", many.len()))),
            None => Err(self.bad(arg, "a value", "none")),
        }
    }

    /// A tensor operand that may be absent.
    pub fn operand_or_none(&mut self, arg: &str) -> Result<Option<Operand>> {
        match self.indices(arg) {
            None => Ok(None),
            Some(_) => self.operand(arg).map(Some),
        }
    }

    /// All operands of a variadic argument, at least one.
    pub fn operands(&mut self, arg: &str) -> Result<Vec<Operand>> {
        let indices = self.indices(arg).unwrap_or_default().to_vec();
        if indices.is_empty() {
            return Err(self.bad(arg, "at least one value", "none"));
        }
        indices.into_iter().map(|i| self.take(arg, i)).collect()
    }

    /// A float operand.
    pub fn float_operand(&mut self, arg: &str) -> Result<Operand> {
        let operand = self.operand(arg)?;
        match operand.ty.dtype.is_float() {
            true => Ok(operand),
            false => Err(self.unsupported(format!("`{arg}` of type {}", operand.ty))),
        }
    }

    /// A float operand, in its stored form if it is constant.
    pub fn weight(&mut self, arg: &str) -> Result<Weight> {
        if let Some(constant) = self.constant(arg)?
            && constant.ty().dtype.is_float()
            && let Some(weight) = constant.weight()
        {
            return Ok(Weight::Packed(weight));
        }
        self.float_operand(arg).map(Weight::Operand)
    }

    /// The type of an argument's value.
    pub fn ty(&self, arg: &str) -> Result<&'a TensorType> {
        match self.value(arg)? {
            Some(value) => Ok(&value.ty),
            None => Err(self.bad(arg, "a value", "none")),
        }
    }

    /// The constant bound to an argument; `None` if it is absent or not constant.
    pub fn constant(&self, arg: &str) -> Result<Option<&'a Constant>> {
        Ok(self.value(arg)?.and_then(|value| match &value.known {
            Known::Constant(constant) => Some(constant.as_ref()),
            _ => None,
        }))
    }

    /// The constant bound to a required argument.
    pub fn required(&self, arg: &str) -> Result<&'a Constant> {
        self.constant(arg)?
            .ok_or_else(|| self.bad(arg, "a constant", "none, or a computed value"))
    }

    /// The packed bytes of a required constant.
    pub fn bytes(&self, arg: &str) -> Result<SharedBytes> {
        Ok(self.required(arg)?.bytes())
    }

    /// The state bound to an argument.
    pub fn state(&self, arg: &str) -> Result<(usize, &'a TensorType)> {
        match self.value(arg)? {
            Some(Value {
                known: Known::State(index),
                ty,
                ..
            }) => Ok((*index, ty)),
            _ => Err(self.bad(arg, "a state", "another value, or none")),
        }
    }

    /// A given attribute; an error if it is bound to a computed value.
    fn attribute(&self, arg: &str) -> Result<Option<&'a Value>> {
        let value = self.value(arg)?;
        match value.map(|v| &v.known) {
            Some(Known::Runtime | Known::State(_)) => {
                Err(self.unsupported(format!("`{arg}` that is not constant")))
            }
            _ => Ok(value),
        }
    }

    fn default(&self, arg: &str) -> DefaultValue {
        self.op_type
            .default_of(arg)
            .unwrap_or(DefaultValue::Required)
    }

    /// The integers of an attribute; `None` if it is absent.
    pub fn ints(&self, arg: &str) -> Result<Option<Vec<i64>>> {
        let Some(value) = self.attribute(arg)? else {
            return Ok(None);
        };
        match &value.known {
            Known::Constant(constant) => match constant.dense().as_i32() {
                Ok(values) => Ok(Some(values.iter().map(|&v| i64::from(v)).collect())),
                Err(_) => Err(self.bad(arg, "integers", value.ty.to_string())),
            },
            _ => Err(self.bad(arg, "integers", "a string")),
        }
    }

    /// The integers of a required attribute.
    pub fn required_ints(&self, arg: &str) -> Result<Vec<i64>> {
        self.ints(arg)?
            .ok_or_else(|| self.bad(arg, "integers", "none"))
    }

    /// The integer of an attribute, or its default; `None` if it is absent and has none.
    pub fn int_or_none(&self, arg: &str) -> Result<Option<i64>> {
        match self.ints(arg)? {
            Some(values) => match values[..] {
                [value] => Ok(Some(value)),
                _ => Err(self.bad(arg, "one integer", format!("{}", values.len()))),
            },
            None => match self.default(arg) {
                DefaultValue::Int(value) => Ok(Some(i64::from(value))),
                _ => Ok(None),
            },
        }
    }

    /// The integer of an attribute, or its default.
    pub fn int(&self, arg: &str) -> Result<i64> {
        self.int_or_none(arg)?
            .ok_or_else(|| self.bad(arg, "an integer", "none"))
    }

    /// The number of an attribute, or its default.
    pub fn float(&self, arg: &str) -> Result<f32> {
        match (self.constant(arg)?, self.default(arg)) {
            (Some(constant), _) => match constant.dense().as_f32() {
                Ok([value]) => Ok(*value),
                _ => Err(self.bad(arg, "one number", constant.ty().to_string())),
            },
            (None, DefaultValue::Float(value)) if self.indices(arg).is_none() => Ok(value),
            _ => Err(self.bad(arg, "a constant number", "none, or a computed value")),
        }
    }

    /// The bools of an attribute; `None` if it is absent.
    pub fn bools(&self, arg: &str) -> Result<Option<Vec<bool>>> {
        let Some(value) = self.attribute(arg)? else {
            return Ok(None);
        };
        match &value.known {
            Known::Constant(constant) => match constant.dense().as_bool() {
                Ok(values) => Ok(Some(values.to_vec())),
                Err(_) => Err(self.bad(arg, "bools", value.ty.to_string())),
            },
            _ => Err(self.bad(arg, "bools", "a string")),
        }
    }

    /// The bool of an attribute, or its default.
    pub fn bool(&self, arg: &str) -> Result<bool> {
        match (self.bools(arg)?.as_deref(), self.default(arg)) {
            (Some(&[value]), _) => Ok(value),
            (None, DefaultValue::Bool(value)) => Ok(value),
            _ => Err(self.bad(arg, "one bool", "none or several")),
        }
    }

    /// The string of an attribute, or its default.
    pub fn text(&self, arg: &str) -> Result<&'a str> {
        match (self.attribute(arg)?.map(|v| &v.known), self.default(arg)) {
            (Some(Known::Text(text)), _) => Ok(text),
            (None, DefaultValue::Str(text)) => Ok(text),
            _ => Err(self.bad(arg, "a string", "none, or another type")),
        }
    }

    /// `axis` of a tensor of `rank` counted from the front.
    pub fn axis(&self, arg: &str, axis: i64, rank: usize) -> Result<usize> {
        let front = if axis < 0 { axis + rank as i64 } else { axis };
        match usize::try_from(front) {
            Ok(front) if front < rank => Ok(front),
            _ => Err(self.bad(arg, format!("an axis of rank {rank}"), axis.to_string())),
        }
    }

    /// Which dims of a tensor of `rank` an attribute of axes names; all if it is absent.
    pub fn chosen_axes(&self, arg: &str, rank: usize) -> Result<Vec<bool>> {
        let Some(axes) = self.ints(arg)? else {
            return Ok(vec![true; rank]);
        };
        let mut chosen = vec![false; rank];
        for axis in axes {
            chosen[self.axis(arg, axis, rank)?] = true;
        }
        Ok(chosen)
    }

    /// Indices of the values taken as operands.
    pub fn into_inputs(self) -> Vec<usize> {
        self.inputs
    }

    /// A kernel with one result of a derived type.
    pub fn one(
        self,
        ty: TensorType,
        kernel: impl Fn(&[&Tensor], &mut Pool) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Result<Compiled> {
        self.compiled(vec![Derived::Type(ty)], move |inputs, pool| {
            Ok(vec![kernel(inputs, pool)?])
        })
    }

    /// A kernel.
    pub fn compiled(
        self,
        outputs: Vec<Derived>,
        kernel: impl Fn(&[&Tensor], &mut Pool) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    ) -> Result<Compiled> {
        Ok(Compiled {
            inputs: self.inputs,
            kernel: Box::new(kernel),
            outputs,
        })
    }
}
