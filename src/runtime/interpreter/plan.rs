//! A plan: the values of a function and the steps that compute them, each value freed after its last use.

use super::args::Kernel;
use super::note::Note;
use super::steps::attention::Attention;
use super::steps::part::Part;
use super::steps::update::Update;
use super::value::Value;
use crate::mil::{OpType, TensorType};
use std::collections::HashMap;

/// One op of a plan.
pub(crate) struct Step {
    /// Name of the op.
    pub op: String,
    /// Its type.
    pub op_type: OpType,
    /// What it does.
    pub action: Action,
    /// Values read.
    pub inputs: Vec<usize>,
    /// Values defined.
    pub outputs: Vec<usize>,
    /// Values that nothing reads any more.
    pub dead: Vec<usize>,
    /// What fusion knows of the op.
    pub note: Note,
}

impl Step {
    /// A step in the place of another.
    pub fn new(old: &Step, action: Action, inputs: Vec<usize>, outputs: Vec<usize>) -> Self {
        Self {
            op: old.op.clone(),
            op_type: old.op_type,
            action,
            inputs,
            outputs,
            dead: Vec::new(),
            note: old.note.clone(),
        }
    }
}

/// What a step does.
pub(crate) enum Action {
    /// Computes its outputs.
    Compute(Kernel),
    /// Reads the state of this index.
    ReadState(usize),
    /// Replaces the state of this index.
    WriteState(usize),
    /// Changes a cache in place.
    Update(Update),
    /// Copies a part of a cache, or of an input that may be one.
    Copy(Part),
    /// Attention over the keys that are seen.
    Attention(Attention),
}

/// An input or state of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Its declared type.
    pub ty: TensorType,
}

/// The plan of one function.
pub(crate) struct Plan {
    /// Every value, in order of definition.
    pub values: Vec<Value>,
    /// Inputs, states excepted, in order of declaration.
    pub inputs: Vec<(usize, Feature)>,
    /// States in order of declaration.
    pub states: Vec<Feature>,
    /// Ops that run.
    pub steps: Vec<Step>,
    /// Values that are the outputs.
    pub outputs: Vec<usize>,
    /// Values that the caller keeps.
    pub kept: Vec<usize>,
    /// Caches that are changed in place.
    pub caches: Vec<CachePlan>,
    /// Values that are parts of them.
    pub parts: HashMap<usize, Part>,
}

/// Where a cache is between calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// In the input of this value.
    Input(usize),
    /// In the state of this index.
    State(usize),
}

/// A cache that is changed in place.
#[derive(Clone, Debug)]
pub(crate) struct CachePlan {
    pub source: Source,
    /// Rows that a run appends, the oldest dropped: 0 or 1.
    pub appended: usize,
}
