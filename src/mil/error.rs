//! What can be wrong with a program while it is built or checked.

use super::types::TensorType;

/// A fault in a MIL program. Every variant names the op or the value it is about.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
pub enum Error {
    /// Not an identifier that Core ML takes, or a reserved word.
    #[error("`{name}` cannot name a {what}: {reason}")]
    Identifier {
        what: &'static str,
        name: String,
        reason: &'static str,
    },
    /// Two values, inputs or functions with the same name.
    #[error("the name `{name}` is used twice")]
    DuplicateName { name: String },
    /// The same weight id with two types.
    #[error("weight `{id}` is declared as {first} and as {second}")]
    WeightConflict {
        id: String,
        first: TensorType,
        second: TensorType,
    },
    /// An op without an argument it needs.
    #[error("op `{op}` ({name}): argument `{arg}` is missing")]
    MissingArg {
        op: &'static str,
        name: String,
        arg: &'static str,
    },
    /// An op with an argument its schema does not have.
    #[error("op `{op}` ({name}): there is no argument `{arg}`")]
    UnknownArg {
        op: &'static str,
        name: String,
        arg: String,
    },
    /// An argument of the wrong type, or one that must be constant and is not.
    #[error("op `{op}` ({name}): argument `{arg}`: expected {expected}, got {got}")]
    BadArg {
        op: &'static str,
        name: String,
        arg: String,
        expected: String,
        got: String,
    },
    /// Arguments that do not fit together.
    #[error("op `{op}` ({name}): {message}")]
    Infer {
        op: &'static str,
        name: String,
        message: String,
    },
    /// A `Var` of another builder.
    #[error("op `{op}`: a value of another function is used")]
    ForeignVar { op: String },
    /// An immediate whose data does not fill its shape.
    #[error("immediate of shape {shape:?} needs {expected} elements, got {got}")]
    ImmediateLength {
        shape: Vec<usize>,
        expected: usize,
        got: usize,
    },
    /// Unbalanced scopes, or a function without outputs.
    #[error("function `{function}`: {message}")]
    Function { function: String, message: String },
    /// A type that cannot be the input or output of a model.
    #[error("`{name}`: {ty} cannot be a model {what}; {allowed}")]
    Feature {
        what: &'static str,
        name: String,
        ty: TensorType,
        allowed: &'static str,
    },
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
