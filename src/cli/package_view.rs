//! A package as tables and JSON, for `inspect`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use super::console::{human_bytes, table};
use crate::mil::OpType;
use crate::package::{Binding, Package, ReadFunction, ReadOp, ReadValue};

/// Header of [`summary_row`].
pub const SUMMARY: [&str; 6] = [
    "package",
    ">functions",
    ">ops",
    ">weights",
    ">weight bytes",
    "default",
];

/// One line about a package.
pub fn summary_row(name: &str, package: &Package) -> Vec<String> {
    let functions = package.functions();
    let ops: usize = functions.values().map(|f| counted(f).count()).sum();
    let weights: usize = functions.values().map(|f| weights(f).len()).sum();
    vec![
        name.into(),
        functions.len().to_string(),
        ops.to_string(),
        weights.to_string(),
        package.weight_bytes().to_string(),
        package.default_function().into(),
    ]
}

/// Ops other than constants.
fn counted(function: &ReadFunction) -> impl Iterator<Item = &ReadOp> {
    function
        .ops
        .iter()
        .filter(|op| op.op_type != OpType::Const && !op.op_type.is_constexpr())
}

/// Features of every function, how often each op occurs, and the weights by scheme.
pub fn summary_text(package: &Package) -> String {
    let mut text = String::new();
    for (name, function) in package.functions() {
        let _ = writeln!(text, "function {name}: {} ops", counted(function).count());
        let mut rows = Vec::new();
        for input in &function.inputs {
            let kind = if input.is_state { "state" } else { "input" };
            rows.push(vec![kind.into(), input.name.clone(), input.ty.to_string()]);
        }
        for output in &function.outputs {
            let ty = function.type_of(output).map(ToString::to_string);
            rows.push(vec![
                "output".into(),
                output.clone(),
                ty.unwrap_or_default(),
            ]);
        }
        text.push_str(&table(&["feature", "name", "type"], &rows));
    }
    text.push_str(&ops_text(package));
    let schemes = schemes(package).into_iter();
    let rows: Vec<Vec<String>> = schemes
        .map(|(scheme, (count, bytes))| vec![scheme, count.to_string(), bytes.to_string()])
        .collect();
    text.push_str(&table(&["scheme", ">weights", ">bytes"], &rows));
    for (file, bytes, blobs) in package.weight_files() {
        let _ = writeln!(text, "{file}: {blobs} blobs, {}", human_bytes(bytes));
    }
    text
}

/// Number and bytes of the weights of each scheme. What several functions or constants share counts once.
fn schemes(package: &Package) -> BTreeMap<String, (usize, usize)> {
    let mut seen = BTreeSet::new();
    let mut schemes: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for weight in package.functions().values().flat_map(weights) {
        if seen.insert(weight.at) {
            let sum = schemes.entry(weight.scheme).or_default();
            *sum = (sum.0 + 1, sum.1 + weight.bytes);
        }
    }
    schemes
}

/// The same as JSON.
pub fn summary_json(name: &str, package: &Package) -> Value {
    let functions: BTreeMap<&String, Value> = package
        .functions()
        .iter()
        .map(|(name, f)| {
            let inputs: Vec<Value> = f
                .inputs
                .iter()
                .map(|i| {
                    json!({ "name": i.name, "dtype": i.ty.dtype.name(), "shape": i.ty.shape,
                            "state": i.is_state })
                })
                .collect();
            let outputs: Vec<Value> = f
                .outputs
                .iter()
                .map(|o| match f.type_of(o) {
                    Some(ty) => json!({ "name": o, "dtype": ty.dtype.name(), "shape": ty.shape }),
                    None => json!({ "name": o }),
                })
                .collect();
            let about = json!({ "inputs": inputs, "outputs": outputs, "ops": counted(f).count() });
            (name, about)
        })
        .collect();
    json!({
        "package": name,
        "default_function": package.default_function(),
        "functions": functions,
        "ops": histogram(package),
        "schemes": schemes(package)
            .into_iter()
            .map(|(scheme, (weights, bytes))| (scheme, json!({ "weights": weights, "bytes": bytes })))
            .collect::<BTreeMap<_, _>>(),
        "model_bytes": package.model_bytes(),
        "weight_bytes": package.weight_bytes(),
        "weight_files": package
            .weight_files()
            .map(|(file, bytes, blobs)| json!({ "file": file, "bytes": bytes, "blobs": blobs }))
            .collect::<Vec<_>>(),
    })
}

fn histogram(package: &Package) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for function in package.functions().values() {
        for op in &function.ops {
            *counts.entry(op.op_type.name()).or_default() += 1;
        }
    }
    counts
}

/// How often each op type occurs, most frequent first.
pub fn ops_text(package: &Package) -> String {
    let mut counts: Vec<(&str, usize)> = histogram(package).into_iter().collect();
    counts.sort_by_key(|(name, n)| (usize::MAX - n, *name));
    let rows: Vec<Vec<String>> = counts
        .into_iter()
        .map(|(name, n)| vec![name.to_string(), n.to_string()])
        .collect();
    table(&["op", ">count"], &rows)
}

/// The same as JSON.
pub fn ops_json(name: &str, package: &Package) -> Value {
    json!({ "package": name, "ops": histogram(package) })
}

/// A weight as it is stored.
struct Weight {
    name: String,
    shape: Vec<usize>,
    /// Element type, and what makes the weight of it: `fp16`, `uint4 lut`, `int8 scaled`.
    scheme: String,
    storage: String,
    bytes: usize,
    /// Weight file and offset of the first part that is a blob.
    at: (Arc<str>, usize),
}

/// The arguments of a constexpr op.
fn given(op: &ReadOp) -> impl Iterator<Item = &Binding> {
    let args = op.inputs.iter().filter(|_| op.op_type.is_constexpr());
    args.flat_map(|(_, bindings)| bindings)
}

/// Ops whose results other constexpr ops take, by the names of the results.
fn inner(function: &ReadFunction) -> BTreeMap<&str, &ReadOp> {
    let ops = || function.ops.iter().filter(|op| op.op_type.is_constexpr());
    let taken: BTreeSet<&str> = ops()
        .flat_map(given)
        .filter_map(|binding| match binding {
            Binding::Name(name) => Some(name.as_str()),
            Binding::Value(_) => None,
        })
        .collect();
    let made = ops().flat_map(|op| op.outputs.iter().map(move |(name, _)| (name.as_str(), op)));
    made.filter(|(name, _)| taken.contains(name)).collect()
}

/// Weights in files: constants and constexpr ops whose data is a blob.
fn weights(function: &ReadFunction) -> Vec<Weight> {
    let mut all = Vec::new();
    let inner = inner(function);
    for op in &function.ops {
        if op.value.is_none() && !op.op_type.is_constexpr() {
            continue;
        }
        let Some((name, ty)) = op.outputs.first() else {
            continue;
        };
        // What another constexpr op makes a weight of is counted there.
        if op.op_type.is_constexpr()
            && op
                .outputs
                .iter()
                .any(|(n, _)| inner.contains_key(n.as_str()))
        {
            continue;
        }
        let mut values: Vec<&ReadValue> = op.value.iter().collect();
        let mut from = None;
        for binding in given(op) {
            match binding {
                Binding::Value(value) => values.push(value),
                Binding::Name(name) => from = inner.get(name.as_str()).copied().or(from),
            }
        }
        let from_values = from.into_iter().flat_map(given);
        values.extend(from_values.filter_map(|binding| match binding {
            Binding::Value(value) => Some(value),
            Binding::Name(_) => None,
        }));
        let Some(at) = values.iter().find_map(|v| match v {
            ReadValue::Blob { name, offset, .. } => Some((name.clone(), *offset)),
            ReadValue::Immediate(_) => None,
        }) else {
            continue;
        };
        let parts: Vec<String> = values.iter().map(|v| v.ty().to_string()).collect();
        all.push(Weight {
            name: name.clone(),
            shape: ty.shape.clone(),
            scheme: match (op.op_type, values.first()) {
                (OpType::ConstexprLutToDense, Some(indices)) => match from {
                    Some(_) => format!("{} lut int8", indices.ty().dtype),
                    None => format!("{} lut", indices.ty().dtype),
                },
                (OpType::ConstexprSparseToDense, _) => match values.get(1) {
                    Some(indices) => format!("{} lut sparse", indices.ty().dtype),
                    None => ty.dtype.name().to_string(),
                },
                (OpType::ConstexprBlockwiseShiftScale, Some(data)) => {
                    format!("{} scaled", data.ty().dtype)
                }
                _ => ty.dtype.name().to_string(),
            },
            storage: match op.op_type {
                OpType::Const => ty.dtype.name().to_string(),
                other => format!("{}({})", other.name(), parts.join(", ")),
            },
            bytes: values
                .iter()
                .map(|v| v.ty().bytes().unwrap_or(0) as usize)
                .sum(),
            at,
        });
    }
    all
}

/// Every weight with its storage.
pub fn weights_text(package: &Package) -> String {
    let mut text = String::new();
    for (name, function) in package.functions() {
        if package.functions().len() > 1 {
            let _ = writeln!(text, "function {name}");
        }
        let rows: Vec<Vec<String>> = weights(function)
            .into_iter()
            .map(|w| {
                vec![
                    w.name,
                    format!("{:?}", w.shape),
                    w.bytes.to_string(),
                    w.at.0.to_string(),
                    w.at.1.to_string(),
                    w.storage,
                ]
            })
            .collect();
        let header = ["weight", ">shape", ">bytes", "file", ">offset", "storage"];
        text.push_str(&table(&header, &rows));
    }
    text
}

/// The same as JSON.
pub fn weights_json(name: &str, package: &Package) -> Value {
    let functions: BTreeMap<&String, Vec<Value>> = package
        .functions()
        .iter()
        .map(|(name, function)| {
            let list = weights(function)
                .into_iter()
                .map(|w| {
                    json!({ "name": w.name, "shape": w.shape, "storage": w.storage,
                            "bytes": w.bytes, "file": &*w.at.0, "offset": w.at.1 })
                })
                .collect();
            (name, list)
        })
        .collect();
    json!({ "package": name, "functions": functions })
}
