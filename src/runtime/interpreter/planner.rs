//! From the ops of a function to a plan: constants folded, compressed weights left packed, every result type derived and
//! compared with the declared one, every value freed after its last use.

use super::args::{Compiled, Derived, OpArgs};
use super::fuse;
use super::note::Note;
use super::ops;
use super::plan::{Action, Feature, Plan, Step};
use super::value::{Known, Value};
use crate::mil::{DType, OpType, TensorType};
use crate::package::{Binding, ReadFunction, ReadOp, ReadValue};
use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::pool::Pool;
use crate::runtime::values::tensor::{Precision, Tensor};
use crate::runtime::weights::constant::Constant;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Makes the plan of `function`, keeping the values named in `keep` to the end; `plain` runs every op by itself.
pub(crate) fn make(
    function: &ReadFunction,
    precision: Precision,
    keep: &[&str],
    plain: bool,
) -> Result<Plan> {
    let mut planner = Planner::new(function, precision)?;
    for op in &function.ops {
        planner.add(op)?;
    }
    let find = |name: &str| {
        let index = planner.names.get(name).copied();
        index.filter(|&i| {
            !matches!(
                planner.plan.values[i].known,
                Known::State(_) | Known::Text(_)
            )
        })
    };
    let outputs = function.outputs.iter().map(|name| {
        find(name).ok_or_else(|| Error::UndefinedValue {
            op: "outputs".to_owned(),
            value: name.clone(),
        })
    });
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    let kept = keep
        .iter()
        .map(|&name| find(name).ok_or_else(|| Error::UnknownValue(name.to_owned())));
    let kept = kept.collect::<Result<Vec<_>>>()?;
    let mut plan = planner.plan;
    plan.outputs = outputs;
    plan.kept = kept;
    for &index in plan.outputs.iter().chain(&plan.kept) {
        // What is handed out must be decoded.
        if let Known::Constant(constant) = &plan.values[index].known {
            constant.dense();
        }
    }
    if precision == Precision::F32 && !plain {
        fuse::apply(&mut plan);
    }
    drop_unused(&mut plan);
    mark_dead(&mut plan);
    Ok(plan)
}

/// The constants of `function` by name: results of `const` and constexpr ops, strings left out. Other ops are passed over.
pub(crate) fn constants(function: &ReadFunction) -> Result<BTreeMap<String, Arc<Constant>>> {
    let mut planner = Planner::new(function, Precision::F32)?;
    let stored = |op: &&ReadOp| op.op_type == OpType::Const || op.op_type.is_constexpr();
    for op in function.ops.iter().filter(stored) {
        planner.add(op)?;
    }
    let named = planner.names.into_iter();
    let constants = named.filter_map(|(name, index)| match &planner.plan.values[index].known {
        Known::Constant(constant) => Some((name, constant.clone())),
        _ => None,
    });
    Ok(constants.collect())
}

struct Planner {
    precision: Precision,
    plan: Plan,
    names: HashMap<String, usize>,
    pool: Pool,
}

impl Planner {
    fn new(function: &ReadFunction, precision: Precision) -> Result<Self> {
        let mut planner = Self {
            precision,
            plan: Plan {
                values: Vec::new(),
                inputs: Vec::new(),
                states: Vec::new(),
                steps: Vec::new(),
                outputs: Vec::new(),
                kept: Vec::new(),
                caches: Vec::new(),
                parts: HashMap::new(),
            },
            names: HashMap::new(),
            pool: Pool::default(),
        };
        for input in &function.inputs {
            let feature = Feature {
                name: input.name.clone(),
                ty: input.ty.clone(),
            };
            let known = match input.is_state {
                true => Known::State(planner.plan.states.len()),
                false => Known::Runtime,
            };
            let index = planner.define(&input.name, input.ty.clone(), known);
            match input.is_state {
                true => planner.plan.states.push(feature),
                false => planner.plan.inputs.push((index, feature)),
            }
        }
        Ok(planner)
    }

    fn define(&mut self, name: &str, ty: TensorType, known: Known) -> usize {
        let index = self.plan.values.len();
        self.plan.values.push(Value {
            name: name.to_owned(),
            ty,
            known,
        });
        self.names.insert(name.to_owned(), index);
        index
    }

    /// The constant of a stored value.
    fn stored(&self, op: &ReadOp, arg: &str, value: &ReadValue) -> Result<Known> {
        if let ReadValue::Immediate(immediate) = value
            && let Some(text) = immediate.as_str()
        {
            return Ok(Known::Text(text.to_owned()));
        }
        let ty = value.ty();
        let have = value.bytes().len();
        let constant = match value {
            ReadValue::Immediate(immediate) => {
                Constant::raw(ty.clone(), Arc::new(immediate.to_bytes()))
            }
            ReadValue::Blob { .. } => Constant::raw(ty.clone(), Arc::new(Stored(value.clone()))),
        };
        match constant {
            Some(constant) => Ok(Known::Constant(Arc::new(constant))),
            None => Err(Error::BadArgument {
                op: op.name.clone(),
                op_type: op.op_type.to_string(),
                arg: arg.to_owned(),
                expected: format!("the bytes of {ty}"),
                got: format!("{have} bytes"),
            }),
        }
    }

    fn add(&mut self, op: &ReadOp) -> Result<()> {
        if op.op_type == OpType::Const {
            return self.add_const(op);
        }
        let bound = self.bind(op)?;
        let declared: Vec<TensorType> = op.outputs.iter().map(|(_, ty)| ty.clone()).collect();
        let args = OpArgs::new(
            &op.name,
            op.op_type,
            self.precision,
            declared,
            bound,
            &self.plan.values,
        );
        if op.op_type.is_constexpr() {
            let constants = ops::constexpr(&args)?;
            let types = constants.iter().map(|c| Derived::Type(c.ty().clone()));
            check_types(op, &types.collect::<Vec<_>>())?;
            for ((name, ty), constant) in op.outputs.iter().zip(constants) {
                self.define(name, ty.clone(), Known::Constant(Arc::new(constant)));
            }
            return Ok(());
        }
        match op.op_type {
            OpType::ReadState => {
                let (state, ty) = args.state("input")?;
                check_types(op, &[Derived::Type(ty.clone())])?;
                self.push(op, Action::ReadState(state), Vec::new(), Note::None);
            }
            OpType::WriteState => {
                let (state, ty) = args.state("input")?;
                let mut args = args;
                let data = args.operand("data")?;
                if data.ty != *ty {
                    return Err(args.bad("data", ty.to_string(), data.ty.to_string()));
                }
                check_types(op, &[])?;
                let inputs = args.into_inputs();
                self.push(op, Action::WriteState(state), inputs, Note::None);
            }
            _ => {
                let note = Note::of(&args);
                let compiled = ops::compile(args)?;
                check_types(op, &compiled.outputs)?;
                self.fold_or_push(op, compiled, note)?;
            }
        }
        Ok(())
    }

    fn add_const(&mut self, op: &ReadOp) -> Result<()> {
        let (Some(value), [(name, ty)]) = (&op.value, &op.outputs[..]) else {
            return Err(Error::Unsupported {
                op: op.name.clone(),
                op_type: op.op_type.to_string(),
                what: "a const without a value, or not of one result".to_owned(),
            });
        };
        check_types(op, &[Derived::Type(value.ty())])?;
        let known = self.stored(op, "val", value)?;
        self.define(name, ty.clone(), known);
        Ok(())
    }

    /// The values of all arguments; those given in place become nameless constants.
    fn bind(&mut self, op: &ReadOp) -> Result<Vec<(String, Vec<usize>)>> {
        let mut bound = Vec::with_capacity(op.inputs.len());
        for (arg, bindings) in &op.inputs {
            let mut indices = Vec::with_capacity(bindings.len());
            for binding in bindings {
                indices.push(match binding {
                    Binding::Name(name) => match self.names.get(name) {
                        Some(&index) => index,
                        None => {
                            return Err(Error::UndefinedValue {
                                op: op.name.clone(),
                                value: name.clone(),
                            });
                        }
                    },
                    Binding::Value(value) => {
                        let known = self.stored(op, arg, value)?;
                        self.plan.values.push(Value {
                            name: format!("{}.{arg}", op.name),
                            ty: value.ty(),
                            known,
                        });
                        self.plan.values.len() - 1
                    }
                });
            }
            bound.push(((*arg).to_owned(), indices));
        }
        Ok(bound)
    }

    fn push(&mut self, op: &ReadOp, action: Action, inputs: Vec<usize>, note: Note) {
        let outputs = op.outputs.iter();
        let outputs = outputs.map(|(name, ty)| self.define(name, ty.clone(), Known::Runtime));
        let outputs = outputs.collect();
        self.plan.steps.push(Step {
            op: op.name.clone(),
            op_type: op.op_type,
            action,
            inputs,
            outputs,
            dead: Vec::new(),
            note,
        });
    }

    /// Runs an op of constants now, any other at run time; also one that overflows fp16, so that it is counted.
    fn fold_or_push(&mut self, op: &ReadOp, compiled: Compiled, note: Note) -> Result<()> {
        let values = &self.plan.values;
        let constants: Option<Vec<Tensor>> = compiled
            .inputs
            .iter()
            .map(|&i| match &values[i].known {
                Known::Constant(constant) => Some(constant.dense().clone()),
                _ => None,
            })
            .collect();
        let Some(constants) = constants else {
            self.push(op, Action::Compute(compiled.kernel), compiled.inputs, note);
            return Ok(());
        };
        let inputs: Vec<&Tensor> = constants.iter().collect();
        let mut results = (compiled.kernel)(&inputs, &mut self.pool)?;
        if self.precision == Precision::F16 {
            let rounded = op.outputs.iter().zip(&mut results);
            let overflows: usize = rounded
                .filter(|((_, ty), _)| ty.dtype == DType::Fp16)
                .map(|(_, tensor)| tensor.round_f16())
                .sum();
            if overflows > 0 {
                self.push(op, Action::Compute(compiled.kernel), compiled.inputs, note);
                return Ok(());
            }
        }
        for ((name, ty), tensor) in op.outputs.iter().zip(results) {
            let constant = Constant::folded(ty.clone(), tensor);
            self.define(name, ty.clone(), Known::Constant(Arc::new(constant)));
        }
        Ok(())
    }
}

/// A stored value as bytes.
struct Stored(ReadValue);

impl AsRef<[u8]> for Stored {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            ReadValue::Blob {
                file, offset, len, ..
            } => &file[*offset..*offset + *len],
            ReadValue::Immediate(_) => &[],
        }
    }
}

/// Compares derived types with declared ones.
fn check_types(op: &ReadOp, derived: &[Derived]) -> Result<()> {
    let mismatch = |value: &str, derived: String, declared: String| Error::DeclaredType {
        op: op.name.clone(),
        op_type: op.op_type.to_string(),
        value: value.to_owned(),
        derived,
        declared,
    };
    if derived.len() != op.outputs.len() {
        let value = op.outputs.first().map_or("", |(name, _)| name);
        let results = |n: usize| format!("{n} results");
        return Err(mismatch(
            value,
            results(derived.len()),
            results(op.outputs.len()),
        ));
    }
    for ((name, declared), derived) in op.outputs.iter().zip(derived) {
        match derived {
            Derived::Type(ty) if ty == declared => {}
            Derived::Declared(dtype) if *dtype == declared.dtype => {}
            Derived::Type(ty) => return Err(mismatch(name, ty.to_string(), declared.to_string())),
            Derived::Declared(dtype) => {
                return Err(mismatch(
                    name,
                    dtype.to_string(),
                    declared.dtype.to_string(),
                ));
            }
        }
    }
    Ok(())
}

/// Removes steps whose results nothing needs.
fn drop_unused(plan: &mut Plan) {
    let mut needed = vec![false; plan.values.len()];
    let handed_out = |plan: &Plan| {
        // What is a part of a cache is handed out as such.
        let outputs = plan.outputs.iter().copied();
        let outputs = outputs.filter(|value| !plan.parts.contains_key(value));
        outputs.chain(plan.kept.iter().copied()).collect::<Vec<_>>()
    };
    for index in handed_out(plan) {
        needed[index] = true;
    }
    let mut keep = vec![false; plan.steps.len()];
    for (keep, step) in keep.iter_mut().zip(&plan.steps).rev() {
        *keep = matches!(step.action, Action::WriteState(_) | Action::Update(_))
            || step.outputs.iter().any(|&o| needed[o]);
        if *keep {
            step.inputs.iter().for_each(|&i| needed[i] = true);
        }
    }
    let mut keep = keep.into_iter();
    plan.steps.retain(|_| keep.next().unwrap_or(true));
}

/// Notes for each step which values die with it. Constants, outputs and kept values never do.
fn mark_dead(plan: &mut Plan) {
    let mut seen: Vec<bool> = plan
        .values
        .iter()
        .map(|v| !matches!(v.known, Known::Runtime))
        .collect();
    for &index in plan.outputs.iter().chain(&plan.kept) {
        seen[index] = true;
    }
    for step in plan.steps.iter_mut().rev() {
        for &index in step.inputs.iter().chain(&step.outputs) {
            if !std::mem::replace(&mut seen[index], true) {
                step.dead.push(index);
            }
        }
    }
}
