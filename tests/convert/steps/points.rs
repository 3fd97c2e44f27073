//! Where programs round activations.

use std::collections::BTreeMap;

use gemma_coreml::bundle::Bundle;
use gemma_coreml::package::{Binding, ReadFunction, ReadOp};
use half::f16;

/// One place where a program rounds.
#[derive(Debug)]
pub struct Point {
    /// What goes in.
    pub from: String,
    /// The factors before and behind, 1 where there is none.
    pub factors: [f32; 2],
    /// The integers.
    pub counts: String,
    /// What comes out.
    pub result: String,
}

fn name_of<'a>(op: &'a ReadOp, arg: &str) -> &'a str {
    match op.input(arg) {
        Some(Binding::Name(name)) => name,
        other => panic!("{}: {arg}: {other:?}", op.name),
    }
}

fn by_output(function: &ReadFunction) -> BTreeMap<&str, &ReadOp> {
    let outputs = |op| {
        let op: &ReadOp = op;
        op.outputs.iter().map(move |(name, _)| (name.as_str(), op))
    };
    function.ops.iter().flat_map(outputs).collect()
}

/// The number that a product multiplies with, if it is a scalar in the program.
fn factor(ops: &BTreeMap<&str, &ReadOp>, op: &ReadOp) -> Option<f32> {
    if op.op_type.name() != "mul" {
        return None;
    }
    let value = match op.input("y")? {
        Binding::Value(value) => value,
        Binding::Name(name) => ops.get(name.as_str())?.value.as_ref()?,
    };
    let scalar = value.ty().shape.is_empty();
    let bytes = scalar.then(|| value.bytes())?;
    Some(f16::from_le_bytes([bytes[0], bytes[1]]).to_f32())
}

/// Every point of a function; checks the form.
pub fn points(function: &ReadFunction) -> Vec<Point> {
    let ops = by_output(function);
    let used = |name: &str| -> Vec<&ReadOp> {
        let reads = |op: &&ReadOp| {
            ["x", "y"]
                .iter()
                .any(|arg| matches!(op.input(arg), Some(Binding::Name(n)) if n == name))
        };
        function.ops.iter().filter(reads).collect()
    };
    let rounds = function
        .ops
        .iter()
        .filter(|op| op.op_type.name() == "round");
    rounds
        .map(|round| {
            let x = name_of(round, "x");
            let before = ops.get(x).and_then(|op| Some((factor(&ops, op)?, *op)));
            let (before, from) = match before {
                Some((factor, op)) => (factor, name_of(op, "x")),
                None => (1.0, x),
            };
            let [clip] = used(&round.outputs[0].0)[..] else {
                panic!("{}: one clip", round.name)
            };
            assert_eq!(clip.op_type.name(), "clip");
            let counts = &clip.outputs[0].0;
            let next = used(counts);
            let after = next.first().and_then(|op| Some((factor(&ops, op)?, *op)));
            let (after, result) = match after {
                Some((factor, op)) if next.len() == 1 => (factor, &op.outputs[0].0),
                _ => (1.0, counts),
            };
            Point {
                from: from.to_string(),
                factors: [before, after],
                counts: counts.clone(),
                result: result.clone(),
            }
        })
        .collect()
}

/// What is around each linear layer of a bundle's decode functions, by the name of its constant.
pub fn around(bundle: &Bundle) -> BTreeMap<String, [Option<Point>; 2]> {
    let mut found = BTreeMap::new();
    for chunk in bundle.chunks() {
        let function = &chunk.package.functions()[chunk.package.default_function()];
        for conv in function.ops.iter().filter(|op| op.op_type.name() == "conv") {
            let (x, y) = (name_of(conv, "x"), &conv.outputs[0].0);
            let input = points(function).into_iter().find(|p| p.result == x);
            let output = points(function).into_iter().find(|p| p.from == *y);
            let weight = name_of(conv, "weight").to_string();
            found.insert(weight, [input, output]);
        }
    }
    found
}
