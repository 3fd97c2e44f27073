//! One function of a package, compiled, with its states.

use super::ops::moves_only;
use super::places::{Accepted, Places, accepted, in_place};
use super::plan::{Action, Feature, Plan, Source, Step};
use super::planner;
use super::profile::Profile;
use super::steps::part::{Base, Part};
use super::value::Known;
use crate::mil::{DType, TensorType};
use crate::package::{Package, ReadFunction};
use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::held::{Held, Strided};
use crate::runtime::values::kind::Kind;
use crate::runtime::values::pool::Pool;
use crate::runtime::values::tensor::{Precision, Tensor, elements};
use crate::runtime::weights::rows;
use crate::runtime::weights::usage::WeightUse;
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
    /// Caches that are changed in place; those that are inputs are here during a run only.
    caches: Vec<Option<Strided>>,
    /// Inputs that lie in a larger buffer.
    held: Vec<(usize, Strided)>,
    /// What happens to each input.
    accepted: Vec<Accepted>,
    pool: Pool,
    runs: u64,
    overflows: BTreeMap<usize, Overflow>,
    profile: Option<Profile>,
    /// Whether a run has parts for several threads.
    is_shared: bool,
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
        Self::from_function(find(package, function)?, precision, keep)
    }

    /// Compiles a function; see [`Model::load`].
    pub fn from_function(
        function: &ReadFunction,
        precision: Precision,
        keep: &[&str],
    ) -> Result<Self> {
        Self::new(planner::make(function, precision, keep, false)?, precision)
    }

    /// As [`Model::load`], with every op run by itself: what fused steps are compared with.
    pub fn load_plain(
        package: &Package,
        function: &str,
        precision: Precision,
        keep: &[&str],
    ) -> Result<Self> {
        let function = find(package, function)?;
        Self::new(planner::make(function, precision, keep, true)?, precision)
    }

    fn new(plan: Plan, precision: Precision) -> Result<Self> {
        let slots = plan.values.iter().map(|value| match &value.known {
            Known::Constant(constant) => constant.decoded().cloned(),
            _ => None,
        });
        let in_place = |state: usize| {
            let mut caches = plan.caches.iter();
            caches.any(|c| c.source == Source::State(state))
        };
        let states = plan
            .states
            .iter()
            .enumerate()
            .map(|(i, state)| match in_place(i) {
                true => Ok(Tensor::empty()),
                false => zeros(&state.ty),
            });
        let initial = states.collect::<Result<Vec<_>>>()?;
        let slots = slots.collect();
        let is_shared = weights(&plan).any(|w| rows::is_shared(w.elements as usize));
        Ok(Self {
            slots,
            states: initial.clone(),
            initial,
            caches: vec![None; plan.caches.len()],
            held: Vec::new(),
            accepted: accepted(&plan),
            plan,
            precision,
            pool: Pool::default(),
            runs: 0,
            overflows: BTreeMap::new(),
            profile: None,
            is_shared,
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

    /// Steps of a run: ops, or what several of them were fused to.
    pub fn steps(&self) -> usize {
        self.plan.steps.len()
    }

    /// Elements of constants that are held decoded; weights of products and tables are read as they are stored.
    pub fn decoded_elements(&self) -> usize {
        let constants = self.plan.values.iter().zip(&self.slots);
        constants
            .filter(|(value, _)| matches!(value.known, Known::Constant(_)))
            .filter_map(|(_, slot)| slot.as_ref())
            .map(Tensor::len)
            .sum()
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
        weights(&self.plan)
    }

    /// Whether a run has parts that are worth other threads.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Zeroes the states and forgets runs and overflows.
    pub fn reset(&mut self) {
        self.states.clone_from(&self.initial);
        self.caches.fill(None);
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
        let results = self.run_held(inputs.into_iter().map(Held::Dense).collect())?;
        results.into_iter().map(Held::into_tensor).collect()
    }

    /// As [`Self::run_in_order`]; parts of caches are not copied. They keep the caches' memory from being changed in place
    /// until they are dropped.
    pub(crate) fn run_held(&mut self, inputs: Vec<Held>) -> Result<Vec<Held>> {
        let result = self.accept(inputs).and_then(|()| self.execute());
        self.runs += 1;
        let taken = result.and_then(|()| self.results());
        for (slot, value) in self.slots.iter_mut().zip(&self.plan.values) {
            if matches!(value.known, Known::Runtime) {
                *slot = None;
            }
        }
        self.held.clear();
        for (cache, known) in self.caches.iter_mut().zip(&self.plan.caches) {
            match (known.source, cache) {
                (Source::Input(_), cache) => *cache = None,
                (Source::State(_), Some(cache)) => cache.advance(known.appended),
                (Source::State(_), None) => {}
            }
        }
        taken
    }

    /// The outputs, then the kept values.
    fn results(&self) -> Result<Vec<Held>> {
        let undefined = |value: usize| Error::UndefinedValue {
            op: "outputs".to_owned(),
            value: self.plan.values[value].name.clone(),
        };
        let dense = |value: usize| {
            let slot = self.slots[value].clone();
            slot.map(Held::Dense).ok_or_else(|| undefined(value))
        };
        let outputs = self
            .plan
            .outputs
            .iter()
            .map(|&value| match self.plan.parts.get(&value) {
                Some(Part {
                    base: Base::Cache(cache),
                    region,
                }) => {
                    let cache = self.caches[*cache].as_ref();
                    let cache = cache.ok_or_else(|| undefined(value))?;
                    Ok(Held::Strided(cache.part(&region.begin, &region.size)))
                }
                _ => dense(value),
            });
        let kept = self.plan.kept.iter().map(|&value| dense(value));
        outputs.chain(kept).collect()
    }

    /// Checks the inputs and puts them in their places.
    fn accept(&mut self, inputs: Vec<Held>) -> Result<()> {
        if let Some((_, feature)) = self.plan.inputs.get(inputs.len()) {
            return Err(Error::MissingInput(feature.name.clone()));
        }
        for (cache, known) in self.caches.iter_mut().zip(&self.plan.caches) {
            if let Source::State(state) = known.source {
                let cache = match cache {
                    Some(cache) => cache,
                    None => {
                        let zeros = zeros(&self.plan.states[state].ty)?;
                        cache.insert(Strided::from_tensor(zeros)?)
                    }
                };
                cache.make_room(known.appended);
            }
        }
        let accepted = self.plan.inputs.iter().zip(&self.accepted);
        for (((index, feature), accepted), value) in accepted.zip(inputs) {
            if value.shape() != feature.ty.shape || value.kind() != kind_of(feature.ty.dtype) {
                return Err(Error::InputType {
                    name: feature.name.clone(),
                    expected: feature.ty.to_string(),
                    got: format!("{} elements of shape {:?}", value.kind(), value.shape()),
                });
            }
            let mut tensor = match (accepted, value) {
                (Accepted::Cache(cache), value) => {
                    let mut value = value.into_cache()?;
                    value.make_room(self.plan.caches[*cache].appended);
                    self.caches[*cache] = Some(value);
                    continue;
                }
                (Accepted::AsItLies, Held::Strided(value)) => {
                    self.held.push((*index, value));
                    continue;
                }
                (_, value) => value.into_tensor()?,
            };
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
        /// Operands that need no list of their own.
        const FEW: usize = 4;
        let empty = Tensor::empty();
        for step in &self.plan.steps {
            let begun = self.profile.is_some().then(Instant::now);
            let undefined = |value: usize| Error::UndefinedValue {
                op: step.op.clone(),
                value: self.plan.values[value].name.clone(),
            };
            let places = Places {
                slots: &self.slots,
                held: &self.held,
                caches: &self.caches,
            };
            if let Some(result) = in_place(step, &self.plan.values, &places, &mut self.pool)? {
                self.slots[step.outputs[0]] = Some(result);
                free(&mut self.slots, &mut self.pool, &step.dead);
                time(&mut self.profile, step, begun);
                continue;
            }
            let (mut few, mut many) = ([&empty; FEW], Vec::new());
            if step.inputs.len() > FEW {
                many.resize(step.inputs.len(), &empty);
            }
            let inputs = match many.as_mut_slice() {
                [] => &mut few[..step.inputs.len()],
                many => many,
            };
            for (input, &index) in inputs.iter_mut().zip(&step.inputs) {
                *input = self.slots[index].as_ref().ok_or_else(|| undefined(index))?;
            }
            let inputs: &[&Tensor] = inputs;
            let mut results = match &step.action {
                Action::Compute(kernel) => kernel(inputs, &mut self.pool)?,
                Action::ReadState(state) => vec![self.states[*state].clone()],
                Action::WriteState(state) => {
                    self.states[*state] = inputs[0].clone();
                    Vec::new()
                }
                Action::Update(update) => {
                    let cache = self.caches[update.cache].as_mut();
                    let cache = cache.ok_or_else(|| undefined(step.inputs[0]))?;
                    update.run(&step.op, cache, inputs)?;
                    Vec::new()
                }
                Action::Copy(_) | Action::Attention(_) => Vec::new(),
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
            free(&mut self.slots, &mut self.pool, &step.dead);
            time(&mut self.profile, step, begun);
        }
        Ok(())
    }
}

/// Gives back the memory of values that nothing reads any more.
fn free(slots: &mut [Option<Tensor>], pool: &mut Pool, dead: &[usize]) {
    for &index in dead {
        if let Some(tensor) = slots[index].take() {
            pool.recycle(tensor);
        }
    }
}

/// The weights of a plan that stay as they are stored.
fn weights(plan: &Plan) -> impl Iterator<Item = WeightUse> {
    plan.values.iter().filter_map(|value| match &value.known {
        Known::Constant(constant) if constant.decoded().is_none() => {
            Some(constant.weight()?.usage())
        }
        _ => None,
    })
}

/// Counts a step that began then, if steps are timed.
fn time(profile: &mut Option<Profile>, step: &Step, begun: Option<Instant>) {
    let (Some(profile), Some(begun)) = (profile, begun) else {
        return;
    };
    let name = match &step.action {
        Action::Attention(_) => "attention",
        Action::Update(_) => "cache update",
        _ => step.op_type.name(),
    };
    profile.add(name, begun.elapsed());
}

/// A function of a package.
fn find<'a>(package: &'a Package, function: &str) -> Result<&'a ReadFunction> {
    let functions = package.functions();
    functions.get(function).ok_or_else(|| {
        let names: Vec<&str> = functions.keys().map(String::as_str).collect();
        Error::UnknownFunction {
            name: function.to_owned(),
            available: names.join(", "),
        }
    })
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
    let len = elements(&ty.shape).ok_or_else(too_large)?;
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
