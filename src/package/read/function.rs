//! One function: inputs, ops, outputs, each checked against schema and type rules.

use std::collections::HashMap;

use super::parse::{input_type, tensor_type, value};
use super::value::{Binding, ReadValue};
use super::weights::WeightFiles;
use super::{ReadFunction, ReadOp};
use crate::mil::builder::check_feature;
use crate::mil::infer::{Arg, ValueKind, infer};
use crate::mil::{ArgSpec, Immediate, Input, OPSET, OpType, TensorType, ident};
use crate::package::error::{Error, Result};
use crate::package::proto::spec::mil_spec as pb;

/// Reads a function.
pub(super) fn read(
    name: &str,
    function: &pb::Function,
    weights: &WeightFiles,
) -> Result<ReadFunction> {
    let mut reader = Reader {
        function: name,
        weights,
        values: HashMap::new(),
    };
    ident::check("function", name)?;
    let block = reader.check_frame(function)?;
    let mut inputs = Vec::with_capacity(function.inputs.len());
    for input in &function.inputs {
        inputs.push(reader.input(input)?);
    }
    let mut ops = Vec::with_capacity(block.operations.len());
    for op in &block.operations {
        ops.push(reader.op(op)?);
    }
    reader.check_outputs(&block.outputs, &inputs)?;
    Ok(ReadFunction {
        inputs,
        ops,
        outputs: block.outputs.clone(),
    })
}

/// What is known of a value that is defined.
struct Defined {
    ty: TensorType,
    kind: ValueKind,
    immediate: Option<Immediate>,
}

struct Reader<'a> {
    function: &'a str,
    weights: &'a WeightFiles,
    values: HashMap<String, Defined>,
}

impl Reader<'_> {
    fn fault(&self, op: &str, value: &str, message: impl Into<String>) -> Error {
        Error::Program {
            function: self.function.to_owned(),
            op: op.to_owned(),
            value: value.to_owned(),
            message: message.into(),
        }
    }

    /// Opset, attributes and the number of bodies.
    fn check_frame<'f>(&self, function: &'f pb::Function) -> Result<&'f pb::Block> {
        let fault = |message: String| self.fault("", "", message);
        if function.opset != OPSET {
            return Err(fault(format!(
                "opset `{}`, expected `{OPSET}`",
                function.opset
            )));
        }
        let mut bodies = function.block_specializations.iter();
        let block = match (bodies.next(), bodies.next()) {
            (Some((opset, block)), None) if *opset == function.opset => block,
            _ => {
                let opsets: Vec<_> = function.block_specializations.keys().collect();
                return Err(fault(format!(
                    "bodies for {opsets:?}, expected one for {OPSET}"
                )));
            }
        };
        let mut attributes = function.attributes.keys().chain(block.attributes.keys());
        if let Some(attribute) = attributes.next() {
            return Err(fault(format!("unknown attribute `{attribute}`")));
        }
        if !block.inputs.is_empty() {
            return Err(fault("the body has inputs of its own".to_owned()));
        }
        Ok(block)
    }

    fn define(&mut self, op: &str, name: &str, defined: Defined) -> Result<()> {
        ident::check("value", name).map_err(|e| self.fault(op, name, e.to_string()))?;
        if self.values.insert(name.to_owned(), defined).is_some() {
            return Err(self.fault(op, name, "the value is defined twice"));
        }
        Ok(())
    }

    fn input(&mut self, input: &pb::NamedValueType) -> Result<Input> {
        let name = input.name.as_str();
        let (ty, is_state) =
            input_type(input.r#type.as_ref()).map_err(|e| self.fault("", name, e))?;
        let (what, kind) = if is_state {
            ("state", ValueKind::State)
        } else {
            ("input", ValueKind::Tensor)
        };
        check_feature(what, name, &ty).map_err(|e| self.fault("", name, e.to_string()))?;
        let defined = Defined {
            ty: ty.clone(),
            kind,
            immediate: None,
        };
        self.define("", name, defined)?;
        Ok(Input {
            name: name.to_owned(),
            ty,
            is_state,
        })
    }

    fn op(&mut self, op: &pb::Operation) -> Result<ReadOp> {
        let name = self.op_name(op)?;
        let op_type = OpType::from_name(&op.r#type).ok_or_else(|| Error::UnknownOp {
            function: self.function.to_owned(),
            op: name.clone(),
            op_type: op.r#type.clone(),
        })?;
        if !op.blocks.is_empty() {
            return Err(self.fault(&name, "", "the op has blocks"));
        }
        let allowed: &[&str] = match op_type {
            OpType::Const => &["name", "val"],
            _ => &["name"],
        };
        let mut attributes = op.attributes.keys();
        if let Some(other) = attributes.find(|key| !allowed.contains(&key.as_str())) {
            return Err(self.fault(&name, "", format!("unknown attribute `{other}`")));
        }
        let mut outputs = Vec::with_capacity(op.outputs.len());
        for output in &op.outputs {
            let ty = tensor_type(output.r#type.as_ref());
            let ty = ty.map_err(|e| self.fault(&name, &output.name, e))?;
            outputs.push((output.name.clone(), ty));
        }
        let (inputs, read) = if op_type == OpType::Const {
            (vec![], Some(self.constant(op, &name, &outputs)?))
        } else {
            let inputs = self.inputs(op, op_type, &name)?;
            self.check_types(op_type, &name, &inputs, &outputs)?;
            self.check_mask(op_type, &name, &inputs)?;
            (inputs, None)
        };
        let kind = match op_type {
            OpType::Const => ValueKind::Const,
            _ if op_type.is_constexpr() => ValueKind::Const,
            _ => ValueKind::Tensor,
        };
        for (value, ty) in &outputs {
            let defined = Defined {
                ty: ty.clone(),
                kind,
                immediate: read.as_ref().and_then(ReadValue::attribute),
            };
            self.define(&name, value, defined)?;
        }
        Ok(ReadOp {
            op_type,
            name,
            inputs,
            outputs,
            value: read,
        })
    }

    fn op_name(&self, op: &pb::Operation) -> Result<String> {
        let first = op.outputs.first().map_or("", |output| output.name.as_str());
        let attribute = op.attributes.get("name").ok_or_else(|| {
            self.fault(
                "",
                first,
                format!("an op of type `{}` has no name", op.r#type),
            )
        })?;
        let read = value(attribute, self.weights).map_err(|e| self.fault("", first, e))?;
        let name = match &read {
            ReadValue::Immediate(name) => name.as_str(),
            ReadValue::Blob { .. } => None,
        };
        let name = name.ok_or_else(|| self.fault("", first, "the op's name is not a string"))?;
        ident::check("op", name).map_err(|e| self.fault(name, first, e.to_string()))?;
        Ok(name.to_owned())
    }

    fn constant(
        &self,
        op: &pb::Operation,
        name: &str,
        outputs: &[(String, TensorType)],
    ) -> Result<ReadValue> {
        let [(output, ty)] = outputs else {
            return Err(self.fault(name, "", "a const has one output"));
        };
        if !op.inputs.is_empty() {
            return Err(self.fault(name, output, "a const has no inputs"));
        }
        let val = op.attributes.get("val");
        let val = val.ok_or_else(|| self.fault(name, output, "a const has no val"))?;
        let read = value(val, self.weights).map_err(|e| self.fault(name, output, e))?;
        if read.ty() != *ty {
            let message = format!("the const holds {}, its output is {ty}", read.ty());
            return Err(self.fault(name, output, message));
        }
        Ok(read)
    }

    /// The bindings in schema order.
    fn inputs(
        &self,
        op: &pb::Operation,
        op_type: OpType,
        name: &str,
    ) -> Result<Vec<(&'static str, Vec<Binding>)>> {
        let unknown = op.inputs.keys().find(|arg| op_type.arg(arg).is_none());
        if let Some(arg) = unknown {
            return Err(self.fault(name, arg, format!("`{op_type}` has no argument `{arg}`")));
        }
        let mut out = Vec::with_capacity(op.inputs.len());
        for spec in op_type.args() {
            if let Some(argument) = op.inputs.get(spec.name) {
                let bindings = self.bindings(argument, op_type, spec, name)?;
                out.push((spec.name, bindings));
            }
        }
        Ok(out)
    }

    fn bindings(
        &self,
        argument: &pb::Argument,
        op_type: OpType,
        spec: &ArgSpec,
        name: &str,
    ) -> Result<Vec<Binding>> {
        let bind = |binding: &pb::argument::Binding| match &binding.binding {
            Some(pb::argument::binding::Binding::Name(value)) => {
                if !self.values.contains_key(value) {
                    let message =
                        format!("argument `{}`: the value is not defined before", spec.name);
                    return Err(self.fault(name, value, message));
                }
                Ok(Binding::Name(value.clone()))
            }
            Some(pb::argument::binding::Binding::Value(inline)) => {
                if !op_type.is_constexpr() {
                    let message = format!("argument `{}`: a value in place", spec.name);
                    return Err(self.fault(name, spec.name, message));
                }
                let read = value(inline, self.weights);
                let read = read.map_err(|e| self.fault(name, spec.name, e))?;
                Ok(Binding::Value(read))
            }
            None => Err(self.fault(name, spec.name, "an empty binding")),
        };
        argument.arguments.iter().map(bind).collect()
    }

    /// Infers the types of the results and compares them with the declared ones.
    fn check_types(
        &self,
        op_type: OpType,
        name: &str,
        inputs: &[(&'static str, Vec<Binding>)],
        outputs: &[(String, TensorType)],
    ) -> Result<()> {
        // Values in place, kept alive for the arguments that borrow them.
        let in_place = |binding: &Binding| match binding {
            Binding::Value(value) => Some((value.ty(), value.attribute())),
            Binding::Name(_) => None,
        };
        let inline: Vec<Vec<_>> = inputs
            .iter()
            .map(|(_, bindings)| bindings.iter().map(in_place).collect())
            .collect();
        let mut args = Vec::with_capacity(inputs.len());
        for ((arg, bindings), inline) in inputs.iter().zip(&inline) {
            let bound = bindings.iter().zip(inline).filter_map(|pair| match pair {
                (_, Some((ty, immediate))) => Some(Arg {
                    ty,
                    kind: ValueKind::Const,
                    value: immediate.as_ref(),
                }),
                (Binding::Name(value), None) => self.values.get(value).map(|defined| Arg {
                    ty: &defined.ty,
                    kind: defined.kind,
                    value: defined.immediate.as_ref(),
                }),
                (Binding::Value(_), None) => None,
            });
            args.push((*arg, bound.collect()));
        }
        let first = outputs.first().map_or("", |(value, _)| value.as_str());
        let types =
            infer(op_type, name, &args).map_err(|e| self.fault(name, first, e.to_string()))?;
        if types.len() != outputs.len() {
            let message = format!("{} results, expected {}", outputs.len(), types.len());
            return Err(self.fault(name, first, message));
        }
        for (expected, (value, declared)) in types.iter().zip(outputs) {
            if expected != declared {
                let message = format!("declared {declared}, the op makes {expected}");
                return Err(self.fault(name, value, message));
            }
        }
        Ok(())
    }

    /// A mask in place has as many ones as there are elements for it.
    fn check_mask(
        &self,
        op_type: OpType,
        name: &str,
        inputs: &[(&'static str, Vec<Binding>)],
    ) -> Result<()> {
        let (mask, data) = match op_type {
            OpType::ConstexprLutToSparse => ("indices_mask", "indices_nonzero_data"),
            OpType::ConstexprSparseToDense => ("mask", "nonzero_data"),
            _ => return Ok(()),
        };
        let find = |arg: &str| inputs.iter().find(|(found, _)| *found == arg);
        let (Some((_, mask_bound)), Some((_, data))) = (find(mask), find(data)) else {
            return Ok(());
        };
        let ([Binding::Value(bits)], [data]) = (mask_bound.as_slice(), data.as_slice()) else {
            return Ok(());
        };
        let elements = match data {
            Binding::Value(value) => value.ty().elements(),
            Binding::Name(value) => self.values.get(value).and_then(|v| v.ty.elements()),
        };
        let ones: usize = bits.bytes().iter().map(|b| b.count_ones() as usize).sum();
        if elements != Some(ones) {
            let elements = elements.unwrap_or(0);
            let message = format!("`{mask}` has {ones} ones for {elements} elements");
            return Err(self.fault(name, mask, message));
        }
        Ok(())
    }

    fn check_outputs(&self, outputs: &[String], inputs: &[Input]) -> Result<()> {
        if outputs.is_empty() {
            return Err(self.fault("", "", "the function has no output"));
        }
        for (i, output) in outputs.iter().enumerate() {
            let defined = self.values.get(output);
            let defined = defined.ok_or_else(|| {
                self.fault("", output, "the output is a value that is not defined")
            })?;
            if inputs.iter().any(|input| input.name == *output) {
                return Err(self.fault("", output, "an input or state is an output"));
            }
            if outputs[..i].contains(output) {
                return Err(self.fault("", output, "the output is listed twice"));
            }
            check_feature("output", output, &defined.ty)
                .map_err(|e| self.fault("", output, e.to_string()))?;
        }
        Ok(())
    }
}
