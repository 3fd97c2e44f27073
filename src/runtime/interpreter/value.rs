//! What is known of a value while a plan is made: its type, and its elements if it is constant.

use crate::mil::TensorType;
use crate::runtime::weights::constant::Constant;
use std::sync::Arc;

/// A value of a function at planning time.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    /// Name in the file.
    pub name: String,
    /// Declared type.
    pub ty: TensorType,
    /// What is known of its elements.
    pub known: Known,
}

/// What is known of a value's elements.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// Computed at run time.
    Runtime,
    /// The state of this index.
    State(usize),
    /// A string.
    Text(String),
    /// A constant.
    Constant(Arc<Constant>),
}
