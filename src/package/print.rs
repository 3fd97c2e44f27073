//! Readable MIL text of a package, as Core ML's compiler writes `model.mil`.

use std::fmt::{self, Write};

use super::WEIGHTS_PREFIX;
use super::blob::HEADER_BYTES;
use super::read::{Binding, Package, ReadFunction, ReadOp, ReadValue};
use crate::mil::{Immediate, ImmediateData, TensorType};

/// Immediates of more elements are cut.
const MAX_ELEMENTS: usize = 16;

impl Package {
    /// The program as text. Blobs appear as file and offset, long immediates are cut after 16
    /// elements.
    pub fn mil_text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = program(&mut out, self);
        out
    }
}

fn program(out: &mut String, package: &Package) -> fmt::Result {
    writeln!(out, "program(1.3)\n{{")?;
    for (name, f) in package.functions() {
        function(out, name, f)?;
    }
    writeln!(out, "}}")
}

fn function(out: &mut String, name: &str, f: &ReadFunction) -> fmt::Result {
    let inputs = f.inputs.iter().map(|input| match input.is_state {
        true => format!("state<{}> {}", ty(&input.ty), input.name),
        false => format!("{} {}", ty(&input.ty), input.name),
    });
    let inputs: Vec<String> = inputs.collect();
    writeln!(out, "    func {name}<ios18>({}) {{", inputs.join(", "))?;
    for op in &f.ops {
        write!(out, "        ")?;
        operation(out, op)?;
        writeln!(out, ";")?;
    }
    writeln!(out, "    }} -> ({});", f.outputs.join(", "))
}

fn operation(out: &mut String, op: &ReadOp) -> fmt::Result {
    let results: Vec<String> = op
        .outputs
        .iter()
        .map(|(name, t)| format!("{} {name}", ty(t)))
        .collect();
    if !results.is_empty() {
        write!(out, "{} = ", results.join(", "))?;
    }
    let args: Vec<String> = op
        .inputs
        .iter()
        .map(|(arg, bindings)| {
            let bound: Vec<String> = bindings.iter().map(binding).collect();
            match op.op_type.arg(arg) {
                Some(spec) if spec.variadic => format!("{arg} = ({})", bound.join(", ")),
                _ => format!("{arg} = {}", bound.join(", ")),
            }
        })
        .collect();
    write!(out, "{}({})", op.op_type, args.join(", "))?;
    write!(out, "[name = string({:?})", op.name)?;
    if let Some(v) = &op.value {
        write!(out, ", val = {}", value(v))?;
    }
    write!(out, "]")
}

fn ty(ty: &TensorType) -> String {
    match ty.shape.is_empty() {
        true => ty.dtype.name().to_owned(),
        false => format!("tensor<{}, {:?}>", ty.dtype, ty.shape),
    }
}

fn binding(binding: &Binding) -> String {
    match binding {
        Binding::Name(name) => name.clone(),
        Binding::Value(v) => value(v),
    }
}

fn value(value: &ReadValue) -> String {
    match value {
        ReadValue::Immediate(v) => immediate(v),
        ReadValue::Blob {
            ty: t,
            name,
            offset,
            ..
        } => format!(
            "{}(BLOBFILE(path = string(\"{WEIGHTS_PREFIX}{name}\"), offset = uint64({})))",
            ty(t),
            *offset as u64 - HEADER_BYTES
        ),
    }
}

fn immediate(v: &Immediate) -> String {
    fn list<T: fmt::Display>(values: &[T]) -> String {
        let shown = values.iter().take(MAX_ELEMENTS).map(|x| x.to_string());
        let mut shown: Vec<String> = shown.collect();
        if values.len() > MAX_ELEMENTS {
            shown.push(format!("... {} more", values.len() - MAX_ELEMENTS));
        }
        shown.join(", ")
    }
    let elements = match &v.data {
        ImmediateData::Bool(values) => list(values),
        ImmediateData::String(value) => format!("{value:?}"),
        ImmediateData::Fp16(values) => list(values),
        ImmediateData::Fp32(values) => list(values),
        ImmediateData::Int8(values) => list(values),
        ImmediateData::Int16(values) => list(values),
        ImmediateData::Int32(values) => list(values),
        ImmediateData::UInt8(values) => list(values),
        ImmediateData::UInt16(values) => list(values),
        ImmediateData::UInt32(values) => list(values),
        ImmediateData::SubByte(_, bytes) => {
            let hex: String = bytes
                .iter()
                .take(MAX_ELEMENTS)
                .map(|b| format!("{b:02x}"))
                .collect();
            format!("packed 0x{hex}")
        }
    };
    match v.shape.is_empty() {
        true => format!("{}({elements})", v.dtype()),
        false => format!("{}([{elements}])", ty(&v.ty())),
    }
}
