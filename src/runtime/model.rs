//! One function of a package, compiled, with its states.

use super::error::{Error, Result};
use super::ops::moves_only;
use super::plan::{self, Action, Feature, Plan};
use super::pool::Pool;
use super::profile::Profile;
use super::roofline::WeightUse;
use super::tensor::{Kind, Precision, Tensor};
use super::value::Known;
use crate::mil::{DType, TensorType};
use crate::package::{Package, ReadFunction};
use std::collections::BTreeMap;
use std::time::Instant;

/// Finite values that became infinite in fp16.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overflow {
    /// Name of the op; `input` for a feature.
    pub op: String,
    /// Name of the value.
    pub value: String,
    /// Number of elements so far.
    pub count: u64,
    /// The run in which it first happened, counted from 0 since the model was loaded or reset.
    pub first_run: u64,
}

/// What a run gives.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOutput {
    /// The outputs of the function by name.
    pub outputs: BTreeMap<String, Tensor>,
    /// The kept values by name.
    pub kept: BTreeMap<String, Tensor>,
}

/// One function of a package, compiled.
pub struct Model {
    plan: Plan,
    precision: Precision,
    /// One slot per value: constants always, others while they live.
    slots: Vec<Option<Tensor>>,
    states: Vec<Tensor>,
    /// The states before the first run: zeros.
    initial: Vec<Tensor>,
    pool: Pool,
    runs: u64,
    overflows: BTreeMap<usize, Overflow>,
    profile: Option<Profile>,
}

impl Model {
    /// Compiles a function of a package. `keep` names values that every run returns besides the outputs.
    ///
    /// Errors: no such function, no such value, an op or attribute that is not supported, operands that do not fit, a
    /// declared type other than the derived one.
    pub fn load(
        package: &Package,
        function: &str,
        precision: Precision,
        keep: &[&str],
    ) -> Result<Self> {
        let functions = package.functions();
        let Some(function) = functions.get(function) else {
            let names: Vec<&str> = functions.keys().map(String::as_str).collect();
            return Err(Error::UnknownFunction {
                name: function.to_owned(),
                available: names.join(", "),
            });
        };
        Self::from_function(function, precision, keep)
    }

    /// Compiles a function; see [`Model::load`].
    pub fn from_function(
        function: &ReadFunction,
        precision: Precision,
        keep: &[&str],
    ) -> Result<Self> {
        let plan = plan::make(function, precision, keep)?;
        let slots = plan.values.iter().map(|value| match &value.known {
            Known::Constant(constant) => constant.decoded().cloned(),
            _ => None,
        });
        let states = plan.states.iter().map(|state| zeros(&state.ty));
        let initial = states.collect::<Result<Vec<_>>>()?;
        Ok(Self {
            slots: slots.collect(),
            states: initial.clone(),
            initial,
            plan,
            precision,
            pool: Pool::default(),
            runs: 0,
            overflows: BTreeMap::new(),
            profile: None,
        })
    }

    /// The inputs in order of declaration, states excepted.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = &Feature> {
        self.plan.inputs.iter().map(|(_, feature)| feature)
    }

    /// The states in order of declaration.
    pub fn states(&self) -> &[Feature] {
        &self.plan.states
    }

    /// Names and types of the outputs, in order.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = (&str, &TensorType)> {
        self.named(&self.plan.outputs)
    }

    /// Names and types of the kept values, in the order they were asked for.
    pub fn kept(&self) -> impl ExactSizeIterator<Item = (&str, &TensorType)> {
        self.named(&self.plan.kept)
    }

    fn named<'a>(
        &'a self,
        indices: &'a [usize],
    ) -> impl ExactSizeIterator<Item = (&'a str, &'a TensorType)> {
        indices.iter().map(|&i| {
            let value = &self.plan.values[i];
            (value.name.as_str(), &value.ty)
        })
    }

    /// Overflows so far, in the order of the ops. Always empty in f32.
    pub fn overflows(&self) -> impl Iterator<Item = &Overflow> {
        self.overflows.values()
    }

    /// Begins to time ops anew, or stops.
    pub(crate) fn set_profiling(&mut self, on: bool) {
        self.profile = on.then(Profile::default);
    }

    /// The times of ops, while they are taken.
    pub(crate) fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// The weights that stay as they are stored.
    pub(crate) fn weights(&self) -> impl Iterator<Item = WeightUse> {
        let values = self.plan.values.iter();
        values.filter_map(|value| match &value.known {
            Known::Constant(constant) if constant.decoded().is_none() => {
                Some(constant.weight()?.usage())
            }
            _ => None,
        })
    }

    /// Zeroes the states and forgets runs and overflows.
    pub fn reset(&mut self) {
        self.states.clone_from(&self.initial);
        self.runs = 0;
        self.overflows.clear();
    }

    /// Runs the function once. Errors: a missing or unknown input, one of another shape or kind, an index out of range.
    pub fn run(&mut self, inputs: &BTreeMap<&str, Tensor>) -> Result<RunOutput> {
        for &name in inputs.keys() {
            if !self.inputs().any(|feature| feature.name == name) {
                let names: Vec<&str> = self.inputs().map(|f| f.name.as_str()).collect();
                return Err(Error::UnknownInput {
                    name: name.to_owned(),
                    available: names.join(", "),
                });
            }
        }
        let ordered = self.inputs().map(|feature| {
            let given = inputs.get(feature.name.as_str()).cloned();
            given.ok_or_else(|| Error::MissingInput(feature.name.clone()))
        });
        let ordered = ordered.collect::<Result<Vec<_>>>()?;
        let mut results = self.run_in_order(ordered)?.into_iter();
        let names = |values: &mut dyn Iterator<Item = (&str, &TensorType)>| {
            values.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
        };
        let outputs = names(&mut self.outputs());
        let kept = names(&mut self.kept());
        Ok(RunOutput {
            outputs: outputs.into_iter().zip(results.by_ref()).collect(),
            kept: kept.into_iter().zip(results).collect(),
        })
    }

    /// Runs the function on inputs in order of declaration. Returns the outputs, then the kept values. Memory of an input
    /// that is given away is used again.
    pub fn run_in_order(&mut self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        self.accept(inputs)?;
        let result = self.execute();
        let run = self.runs;
        self.runs = run + 1;
        let wanted: Vec<usize> = self
            .plan
            .outputs
            .iter()
            .chain(&self.plan.kept)
            .copied()
            .collect();
        let taken = result.and_then(|()| {
            let slots = wanted.iter().map(|&i| self.slots[i].clone());
            slots
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| Error::UndefinedValue {
                    op: "outputs".to_owned(),
                    value: String::new(),
                })
        });
        for (slot, value) in self.slots.iter_mut().zip(&self.plan.values) {
            if matches!(value.known, Known::Runtime) {
                *slot = None;
            }
        }
        taken
    }

    /// Checks the inputs and puts them in their slots.
    fn accept(&mut self, inputs: Vec<Tensor>) -> Result<()> {
        if let Some((_, feature)) = self.plan.inputs.get(inputs.len()) {
            return Err(Error::MissingInput(feature.name.clone()));
        }
        for ((index, feature), mut tensor) in self.plan.inputs.iter().zip(inputs) {
            if tensor.shape() != feature.ty.shape || tensor.kind() != kind_of(feature.ty.dtype) {
                return Err(Error::InputType {
                    name: feature.name.clone(),
                    expected: feature.ty.to_string(),
                    got: format!("{} elements of shape {:?}", tensor.kind(), tensor.shape()),
                });
            }
            if self.precision == Precision::F16 && feature.ty.dtype == DType::Fp16 {
                let count = tensor.round_f16();
                note(
                    &mut self.overflows,
                    *index,
                    "input",
                    &feature.name,
                    count,
                    self.runs,
                );
            }
            self.slots[*index] = Some(tensor);
        }
        Ok(())
    }

    fn execute(&mut self) -> Result<()> {
        for step in &self.plan.steps {
            let begun = self.profile.is_some().then(Instant::now);
            let undefined = |value: usize| Error::UndefinedValue {
                op: step.op.clone(),
                value: self.plan.values[value].name.clone(),
            };
            let mut inputs = Vec::with_capacity(step.inputs.len());
            for &index in &step.inputs {
                inputs.push(self.slots[index].as_ref().ok_or_else(|| undefined(index))?);
            }
            let mut results = match &step.action {
                Action::Compute(kernel) => kernel(&inputs, &mut self.pool)?,
                Action::ReadState(state) => vec![self.states[*state].clone()],
                Action::WriteState(state) => {
                    self.states[*state] = inputs[0].clone();
                    Vec::new()
                }
            };
            let round = self.precision == Precision::F16 && !moves_only(step.op_type);
            for (&index, tensor) in step.outputs.iter().zip(&mut results) {
                let value = &self.plan.values[index];
                debug_assert_eq!(tensor.shape(), value.ty.shape, "{}", value.name);
                if round && value.ty.dtype == DType::Fp16 {
                    // An infinity that an operand brought (a mask, say) is no overflow.
                    let born = has_infinity(tensor) && !inputs.iter().any(|t| has_infinity(t));
                    let computed = if born { infinities(tensor) } else { 0 };
                    let count = tensor.round_f16() + computed;
                    note(
                        &mut self.overflows,
                        index,
                        &step.op,
                        &value.name,
                        count,
                        self.runs,
                    );
                }
            }
            for (&index, tensor) in step.outputs.iter().zip(results) {
                self.slots[index] = Some(tensor);
            }
            for &index in &step.dead {
                if let Some(tensor) = self.slots[index].take() {
                    self.pool.recycle(tensor);
                }
            }
            if let (Some(begun), Some(profile)) = (begun, &mut self.profile) {
                profile.add(step.op_type, begun.elapsed());
            }
        }
        Ok(())
    }
}

/// Adds to the overflows of a value.
fn note(
    overflows: &mut BTreeMap<usize, Overflow>,
    index: usize,
    op: &str,
    value: &str,
    count: usize,
    run: u64,
) {
    if count > 0 {
        let entry = overflows.entry(index).or_insert_with(|| Overflow {
            op: op.to_owned(),
            value: value.to_owned(),
            count: 0,
            first_run: run,
        });
        entry.count += count as u64;
    }
}

fn infinities(tensor: &Tensor) -> usize {
    let values = tensor.as_f32().unwrap_or_default();
    values.iter().filter(|v| v.is_infinite()).count()
}

fn has_infinity(tensor: &Tensor) -> bool {
    let values = tensor.as_f32().unwrap_or_default();
    values.iter().any(|v| v.is_infinite())
}

/// What elements of a type are held as.
fn kind_of(dtype: DType) -> Kind {
    match dtype {
        DType::Bool => Kind::Bool,
        dtype if dtype.is_float() => Kind::Float,
        _ => Kind::Int,
    }
}

/// A tensor of zeros.
pub(crate) fn zeros(ty: &TensorType) -> Result<Tensor> {
    let too_large = || Error::TooLarge { ty: ty.to_string() };
    let len = super::tensor::elements(&ty.shape).ok_or_else(too_large)?;
    match kind_of(ty.dtype) {
        Kind::Float => Tensor::f32(&ty.shape, filled(len, 0.0).ok_or_else(too_large)?),
        Kind::Int => Tensor::i32(&ty.shape, filled(len, 0).ok_or_else(too_large)?),
        Kind::Bool => Tensor::bool(&ty.shape, filled(len, false).ok_or_else(too_large)?),
    }
}

/// `len` times `value`; `None` if there is no memory for it.
fn filled<T: Clone>(len: usize, value: T) -> Option<Vec<T>> {
    let mut out = Vec::new();
    out.try_reserve_exact(len).ok()?;
    out.resize(len, value);
    Some(out)
}
