//! Builds one function, op by op, with types checked at once.
//!
//! Values get names of the form `{scope}_{op}_{n}`. A name asked for by [`FunctionBuilder::output`] or
//! [`FunctionBuilder::name_value`] is exact; an automatic name that is in its way gives way.

mod ops;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use half::f16;

use super::error::{Error, Result};
use super::ident;
use super::infer::{Arg, ValueKind, infer};
use super::program::{ConstValue, Function, Input, Op};
use super::schema::OpType;
use super::types::{DType, TensorType};
use super::value::{DeferredConst, Immediate};

pub use ops::{ConvParams, GeluMode, SliceParams, TopkParams};

/// A value of a function under construction. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Var {
    id: usize,
    owner: u64,
    ty: Arc<TensorType>,
}

impl Var {
    /// Element type; of the tensor inside, for a state.
    pub fn dtype(&self) -> DType {
        self.ty.dtype
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        &self.ty.shape
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.ty.rank()
    }

    /// Whether both are the same value of the same function.
    pub fn is(&self, other: &Self) -> bool {
        (self.owner, self.id) == (other.owner, other.id)
    }

    /// Element type and shape.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }
}

/// What gave a value its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameOrigin {
    /// The builder; it may still change.
    Auto,
    /// A weight's id.
    Weight,
    /// An input, an output or a kept name.
    Fixed,
}

#[derive(Debug)]
struct Value {
    name: String,
    origin: NameOrigin,
    ty: Arc<TensorType>,
    kind: ValueKind,
    immediate: Option<Arc<Immediate>>,
}

/// An op whose values are still numbers.
#[derive(Debug)]
struct PendingOp {
    op_type: OpType,
    name: String,
    inputs: Vec<(&'static str, Vec<usize>)>,
    outputs: Vec<usize>,
    value: Option<ConstValue>,
}

/// Builder of one function.
#[derive(Debug)]
pub struct FunctionBuilder {
    name: String,
    owner: u64,
    scopes: Vec<String>,
    values: Vec<Value>,
    ops: Vec<PendingOp>,
    inputs: Vec<(usize, bool)>,
    outputs: Vec<usize>,
    names: HashMap<String, usize>,
    counters: HashMap<String, usize>,
    weights: BTreeMap<String, (DeferredConst, Var)>,
    immediates: HashMap<(TensorType, Vec<u8>), Var>,
}

/// Tells the `Var`s of one builder from those of another; never written anywhere.
static NEXT_OWNER: AtomicU64 = AtomicU64::new(0);

impl FunctionBuilder {
    /// A builder; the name appears in errors only, [`super::Program`] holds the real one.
    pub fn new(name: &str) -> Self {
        FunctionBuilder {
            name: name.to_owned(),
            owner: NEXT_OWNER.fetch_add(1, Ordering::Relaxed),
            scopes: Vec::new(),
            values: Vec::new(),
            ops: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            names: HashMap::new(),
            counters: HashMap::new(),
            weights: BTreeMap::new(),
            immediates: HashMap::new(),
        }
    }

    /// Declares an input feature: fp16, fp32 or int32, rank 1 to 5. The order is kept.
    ///
    /// # Errors
    /// A bad or used name, or a type that Core ML does not take as a feature.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Result<Var> {
        let ty = TensorType::new(dtype, shape);
        check_feature("input", name, &ty)?;
        let var = self.new_value(name, NameOrigin::Fixed, ty, ValueKind::Tensor)?;
        self.inputs.push((var.id, false));
        Ok(var)
    }

    /// Declares an fp16 state.
    ///
    /// # Errors
    /// As [`FunctionBuilder::input`].
    pub fn state(&mut self, name: &str, shape: &[usize]) -> Result<Var> {
        let ty = TensorType::new(DType::Fp16, shape);
        check_feature("state", name, &ty)?;
        let var = self.new_value(name, NameOrigin::Fixed, ty, ValueKind::State)?;
        self.inputs.push((var.id, true));
        Ok(var)
    }

    /// The value of a weight still to come. The same id gives the same value.
    ///
    /// # Errors
    /// The id was used with another type, or is in the way of another name.
    pub fn weight(&mut self, c: DeferredConst) -> Result<Var> {
        if let Some((known, var)) = self.weights.get(&c.id) {
            if *known != c {
                return Err(Error::WeightConflict {
                    id: c.id.clone(),
                    first: known.ty(),
                    second: c.ty(),
                });
            }
            return Ok(var.clone());
        }
        if c.shape.contains(&0) || c.ty().bytes().is_none() {
            return Err(Error::Feature {
                what: "weight",
                name: c.id.clone(),
                ty: c.ty(),
                allowed: "it must have a size and at least one element",
            });
        }
        let name = ident::sanitize(&c.id);
        let var = self.new_value(&name, NameOrigin::Weight, c.ty(), ValueKind::Const)?;
        self.push_const(&var, ConstValue::Deferred(c.clone()));
        self.weights.insert(c.id.clone(), (c, var.clone()));
        Ok(var)
    }

    /// A constant with its elements. Equal immediates are one value.
    ///
    /// # Errors
    /// An empty shape dimension.
    pub fn immediate(&mut self, v: Immediate) -> Result<Var> {
        let ty = v.ty();
        let key = (ty.clone(), v.to_bytes());
        if let Some(var) = self.immediates.get(&key) {
            return Ok(var.clone());
        }
        if ty.shape.contains(&0) {
            return Err(Error::ImmediateLength {
                shape: ty.shape,
                expected: 1,
                got: 0,
            });
        }
        let name = self.auto_name(&format!("const_{}", ty.dtype));
        let var = self.new_value(&name, NameOrigin::Auto, ty, ValueKind::Const)?;
        self.values[var.id].immediate = Some(Arc::new(v.clone()));
        self.push_const(&var, ConstValue::Immediate(v));
        self.immediates.insert(key, var.clone());
        Ok(var)
    }

    /// An fp16 scalar, rounded to nearest even.
    pub fn scalar_f16(&mut self, value: f32) -> Result<Var> {
        self.immediate(Immediate::fp16(f16::from_f32(value)))
    }

    /// Opens a scope: names of values made from here on begin with it.
    pub fn push_scope(&mut self, scope: &str) {
        self.scopes.push(ident::sanitize(scope));
    }

    /// Closes the innermost scope.
    pub fn pop_scope(&mut self) {
        self.scopes.pop();
    }

    /// Gives the value exactly this name and returns it. An input, an output, a weight or a value
    /// that has such a name already is copied by `identity`, and the copy gets the name.
    ///
    /// # Errors
    /// A bad name, or one that is already given.
    pub fn name_value(&mut self, v: &Var, name: &str) -> Result<Var> {
        ident::check("value", name)?;
        let value = self.value(v, "name_value")?;
        let free = value.origin == NameOrigin::Auto && value.kind == ValueKind::Tensor;
        let var = if free { v.clone() } else { self.identity(v)? };
        self.rename(var.id, name)?;
        Ok(var)
    }

    /// Makes the value an output of this name, in order of calls; renames it, or copies it by
    /// `identity` where [`FunctionBuilder::name_value`] would. A value that has the name already
    /// (given by `name_value`) becomes the output itself.
    ///
    /// # Errors
    /// A bad or used name, or a type that Core ML does not take as a feature.
    pub fn output(&mut self, name: &str, v: &Var) -> Result<()> {
        check_feature("output", name, v.ty())?;
        let value = self.value(v, "output")?;
        let is_io = self.outputs.contains(&v.id) || self.inputs.iter().any(|(id, _)| *id == v.id);
        let var = if value.name == name && !is_io && value.kind == ValueKind::Tensor {
            self.values[v.id].origin = NameOrigin::Fixed;
            v.clone()
        } else {
            self.name_value(v, name)?
        };
        self.outputs.push(var.id);
        Ok(())
    }

    /// Any op of the schema, with the arguments given; the typed methods are made of this.
    ///
    /// # Errors
    /// Those of [`infer`].
    pub fn op(&mut self, op: OpType, args: &[(&'static str, &[Var])]) -> Result<Vec<Var>> {
        let op_name = self.auto_name(op.name());
        let mut inputs: Vec<(&'static str, Vec<usize>)> = Vec::with_capacity(args.len());
        for (arg, vars) in args {
            for var in *vars {
                self.value(var, op.name())?;
            }
            inputs.push((arg, vars.iter().map(|var| var.id).collect()));
        }
        // Schema order, so that the order of the caller does not show in the program.
        inputs.sort_by_key(|(arg, _)| op.args().iter().position(|spec| spec.name == *arg));
        let bound: Vec<(&str, Vec<Arg<'_>>)> = inputs
            .iter()
            .map(|(arg, ids)| {
                (
                    *arg,
                    ids.iter().map(|&id| self.values[id].as_arg()).collect(),
                )
            })
            .collect();
        let types = infer(op, &op_name, &bound)?;
        let single = types.len() == 1;
        let mut vars = Vec::with_capacity(types.len());
        for (i, ty) in types.into_iter().enumerate() {
            let name = if single {
                op_name.clone()
            } else {
                self.auto_name(&format!("{op}_{i}"))
            };
            vars.push(self.new_value(&name, NameOrigin::Auto, ty, ValueKind::Tensor)?);
        }
        self.ops.push(PendingOp {
            op_type: op,
            name: op_name,
            inputs,
            outputs: vars.iter().map(|var| var.id).collect(),
            value: None,
        });
        Ok(vars)
    }

    /// The function.
    ///
    /// # Errors
    /// A scope is still open, or there is no output.
    pub fn finish(self) -> Result<Function> {
        let fault = |message: &str| Error::Function {
            function: self.name.clone(),
            message: message.to_owned(),
        };
        if !self.scopes.is_empty() {
            return Err(fault(&format!("scope `{}` is open", self.scopes.join("_"))));
        }
        if self.outputs.is_empty() {
            return Err(fault("there is no output"));
        }
        let name = |id: &usize| self.values[*id].name.clone();
        let named = |id: &usize| (name(id), (*self.values[*id].ty).clone());
        let inputs = self.inputs.iter().map(|(id, is_state)| Input {
            name: name(id),
            ty: (*self.values[*id].ty).clone(),
            is_state: *is_state,
        });
        let ops = self.ops.iter().map(|op| Op {
            op_type: op.op_type,
            name: match op.outputs.as_slice() {
                [output] => name(output),
                _ => op.name.clone(),
            },
            inputs: op
                .inputs
                .iter()
                .map(|(arg, ids)| (*arg, ids.iter().map(name).collect()))
                .collect(),
            outputs: op.outputs.iter().map(named).collect(),
            value: op.value.clone(),
        });
        Ok(Function {
            inputs: inputs.collect(),
            ops: ops.collect(),
            outputs: self.outputs.iter().map(name).collect(),
        })
    }

    fn value(&self, var: &Var, op: &str) -> Result<&Value> {
        if var.owner != self.owner {
            return Err(Error::ForeignVar { op: op.to_owned() });
        }
        Ok(&self.values[var.id])
    }

    fn push_const(&mut self, var: &Var, value: ConstValue) {
        self.ops.push(PendingOp {
            op_type: OpType::Const,
            name: String::new(),
            inputs: Vec::new(),
            outputs: vec![var.id],
            value: Some(value),
        });
    }

    /// A fresh name `{scope}_{stem}_{n}`.
    fn auto_name(&mut self, stem: &str) -> String {
        let mut full = self.scopes.join("_");
        if !full.is_empty() {
            full.push('_');
        }
        full.push_str(stem);
        let n = self.counters.entry(full.clone()).or_insert(0);
        loop {
            let name = format!("{full}_{n}");
            *n += 1;
            if !self.names.contains_key(&name) {
                return name;
            }
        }
    }

    fn new_value(
        &mut self,
        name: &str,
        origin: NameOrigin,
        ty: TensorType,
        kind: ValueKind,
    ) -> Result<Var> {
        let id = self.values.len();
        let ty = Arc::new(ty);
        self.values.push(Value {
            name: String::new(),
            origin: NameOrigin::Auto,
            ty: ty.clone(),
            kind,
            immediate: None,
        });
        if let Err(error) = self.rename(id, name) {
            self.values.pop();
            return Err(error);
        }
        self.values[id].origin = origin;
        Ok(Var {
            id,
            owner: self.owner,
            ty,
        })
    }

    /// Gives a value a fixed name; an automatic name in its way is changed.
    fn rename(&mut self, id: usize, name: &str) -> Result<()> {
        ident::check("value", name)?;
        if let Some(&other) = self.names.get(name)
            && other != id
        {
            if self.values[other].origin != NameOrigin::Auto {
                return Err(Error::DuplicateName {
                    name: name.to_owned(),
                });
            }
            let fresh = (1..).map(|n| format!("{name}_{n}"));
            let mut fresh = fresh.filter(|fresh| !self.names.contains_key(fresh));
            // The iterator is unbounded, the names are not.
            let fresh = fresh.next().unwrap_or_default();
            self.names.insert(fresh.clone(), other);
            self.values[other].name = fresh;
        }
        let old = std::mem::replace(&mut self.values[id].name, name.to_owned());
        if self.names.get(&old) == Some(&id) {
            self.names.remove(&old);
        }
        self.names.insert(name.to_owned(), id);
        self.values[id].origin = NameOrigin::Fixed;
        Ok(())
    }

    /// The immediate of a value, when it is one.
    pub fn immediate_of(&self, var: &Var) -> Option<&Immediate> {
        let value = self.values.get(var.id)?;
        (var.owner == self.owner)
            .then_some(value.immediate.as_deref())
            .flatten()
    }
}

impl Value {
    fn as_arg(&self) -> Arg<'_> {
        Arg {
            ty: &self.ty,
            kind: self.kind,
            value: self.immediate.as_deref(),
        }
    }
}

/// Checks that Core ML takes a type as a feature: static shape, rank 1 to 5, fp16, fp32 or int32
/// (a state: fp16).
///
/// # Errors
/// [`Error::Identifier`] or [`Error::Feature`].
pub fn check_feature(what: &'static str, name: &str, ty: &TensorType) -> Result<()> {
    ident::check(what, name)?;
    let dtypes: &[DType] = match what {
        "state" => &[DType::Fp16],
        _ => &[DType::Fp16, DType::Fp32, DType::Int32],
    };
    let allowed = if !dtypes.contains(&ty.dtype) {
        match what {
            "state" => "only fp16 is allowed",
            _ => "only fp16, fp32 and int32 are allowed",
        }
    } else if ty.rank() == 0 || ty.rank() > super::MAX_RANK {
        "the rank must be 1 to 5"
    } else if ty.shape.contains(&0) || ty.bytes().is_none() {
        "it must have at least one element"
    } else {
        return Ok(());
    };
    Err(Error::Feature {
        what,
        name: name.to_owned(),
        ty: ty.clone(),
        allowed,
    })
}

#[cfg(test)]
mod tests;
