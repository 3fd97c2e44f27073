//! Programs, functions and ops as the builder makes them and the package writer takes them.

use std::collections::BTreeMap;

use super::schema::OpType;
use super::types::TensorType;
use super::value::{DeferredConst, Immediate};

/// A MIL program. With one function called `main` it is written as an ordinary model, otherwise as
/// a multifunction model.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// Functions by name.
    pub functions: BTreeMap<String, Function>,
    /// The function that is loaded when none is named.
    pub default_function: String,
}

impl Program {
    /// A program whose only function is `main`.
    pub fn single(main: Function) -> Self {
        Program {
            functions: BTreeMap::from([("main".to_owned(), main)]),
            default_function: "main".to_owned(),
        }
    }

    /// The weights of all functions, each id once, in the order of first use.
    pub fn weights(&self) -> Vec<&DeferredConst> {
        let mut seen = std::collections::BTreeSet::new();
        let ops = self.functions.values().flat_map(|f| &f.ops);
        ops.filter_map(|op| match &op.value {
            Some(ConstValue::Deferred(c)) if seen.insert(c.id.as_str()) => Some(c),
            _ => None,
        })
        .collect()
    }
}

/// One function: inputs, ops in execution order, names of outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Inputs and states in the order of declaration.
    pub inputs: Vec<Input>,
    /// Ops; a value is defined before it is used.
    pub ops: Vec<Op>,
    /// Names of values, in order.
    pub outputs: Vec<String>,
}

/// A feature that the caller supplies, or a state that lives between calls.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Feature name.
    pub name: String,
    /// Type; for a state, the type of the tensor in it.
    pub ty: TensorType,
    /// Whether this is a state.
    pub is_state: bool,
}

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Op {
    /// What it does.
    pub op_type: OpType,
    /// Name of the op (that of its output, if it has one output).
    pub name: String,
    /// Arguments that are given, in schema order, each with the names of its values: one, or
    /// several for `concat`.
    pub inputs: Vec<(&'static str, Vec<String>)>,
    /// Names and types of the results.
    pub outputs: Vec<(String, TensorType)>,
    /// The value of a `const`, none for every other op.
    pub value: Option<ConstValue>,
}

/// What a `const` op holds.
#[derive(Debug, Clone, PartialEq)]
pub enum ConstValue {
    /// Elements in the program.
    Immediate(Immediate),
    /// A weight still to come.
    Deferred(DeferredConst),
}
