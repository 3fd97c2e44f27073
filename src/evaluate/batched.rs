//! A written bundle over many tokens at once: the f32 reference's forward with the bundle's weights and rows.
//!
//! Weights are decoded from the bytes of the packages by the runtime's own decoder, rows, cos and sin come from the bundle's
//! tables. What differs from interpreting the packages op by op is the order of sums and the epsilon of the norms (1e-6 here,
//! its fp16 there). A bundle whose packages compute something else than the reference, or round activations, is
//! [`Batched::Unfit`] with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::bundle::Bundle;
use crate::checkpoint::Checkpoint;
use crate::gemma::reference::{Reference, Table, WeightSource};
use crate::gemma::{LayerKind, ModelPlan, names};
use crate::mil::OpType;
use crate::package::{Binding, ReadFunction, ReadValue};
use crate::runtime::{BoxError, StoredWeights};

use super::error::Result;

/// Whether a bundle can be run by the reference's forward.
pub enum Batched {
    /// Yes, with these weights.
    Fit(BundleWeights),
    /// No; why.
    Unfit(String),
}

/// The weights of a bundle under the checkpoint's names.
pub struct BundleWeights {
    bundle: Arc<Bundle>,
    packages: Vec<StoredWeights>,
    /// Package and constant of each tensor.
    places: BTreeMap<String, (usize, String)>,
}

impl BundleWeights {
    /// Finds every weight of `plan` in the decode packages of `bundle`. Reads none.
    ///
    /// # Errors
    /// A package whose constants do not fit together.
    pub fn find(bundle: &Arc<Bundle>, plan: &ModelPlan) -> Result<Batched> {
        if let Some(reason) = differs(bundle) {
            return Ok(Batched::Unfit(reason));
        }
        let mut expected: BTreeMap<String, (String, usize)> = plan
            .multiplied_tensors()
            .into_iter()
            .map(|(tensor, shape)| {
                let elements = shape.iter().product();
                (constant_name(&tensor), (tensor, elements))
            })
            .collect();
        let mut found = BundleWeights {
            bundle: bundle.clone(),
            packages: Vec::new(),
            places: BTreeMap::new(),
        };
        for (index, chunk) in bundle.chunks().iter().enumerate() {
            let package = &chunk.package;
            let Some(function) = package.functions().get(package.default_function()) else {
                continue;
            };
            let known = |name: &str| {
                let places = found.places.values();
                expected.contains_key(name) || places.clone().any(|(_, n)| n == name)
            };
            if let Some(name) = weights_of(function).into_iter().find(|n| !known(n)) {
                let reason = format!(
                    "{}: `{name}` is no weight of the reference's forward",
                    chunk.name
                );
                return Ok(Batched::Unfit(reason));
            }
            let stored = StoredWeights::of(function)?;
            for name in stored.names() {
                let Some((tensor, elements)) = expected.get(name) else {
                    continue;
                };
                let shape = stored.shape(name).unwrap_or_default();
                if shape.iter().product::<usize>() == *elements {
                    let place = (index, name.to_string());
                    found.places.insert(tensor.clone(), place);
                    expected.remove(name);
                }
            }
            found.packages.push(stored);
        }
        // Some layouts leave these to the host, which has them in files.
        if bundle.per_layer_projection().is_some() {
            for tensor in [names::PER_LAYER_PROJECTION, names::PER_LAYER_NORM] {
                expected.remove(&constant_name(tensor));
            }
        }
        Ok(match expected.into_values().next() {
            Some((tensor, _)) => {
                Batched::Unfit(format!("no constant of a package is the tensor {tensor}"))
            }
            None => Batched::Fit(found),
        })
    }

    /// The reference's forward with these weights and the bundle's tables, for at most its context. `checkpoint` gives the configuration only.
    ///
    /// # Errors
    /// The checkpoint is of another model, or a weight cannot be read.
    pub fn reference<'a>(&'a self, checkpoint: &'a Checkpoint) -> Result<Reference<'a>> {
        let bundle = &self.bundle;
        let rows = move |table, token, out: &mut [f32]| {
            match table {
                Table::Embedding => bundle.embed_row(token, out)?,
                Table::PerLayer => bundle.per_layer_row(token, out)?,
            }
            Ok(())
        };
        let angles = move |kind, position, cos: &mut [f32], sin: &mut [f32]| {
            let rope = bundle.rope();
            let (cosines, sines) = match kind {
                LayerKind::Sliding => (&rope.cos_sliding, &rope.sin_sliding),
                LayerKind::Full => (&rope.cos_full, &rope.sin_full),
            };
            cosines.row(position, cos)?;
            sines.row(position, sin)?;
            Ok(())
        };
        // A bundle that rounds activations is not `Fit`.
        let reference = Reference::load_from(checkpoint, self)?.without_activation_scales();
        Ok(reference
            .with_rows(Box::new(rows))
            .with_rotary(Box::new(angles)))
    }
}

impl WeightSource for BundleWeights {
    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), BoxError> {
        if let Some((package, constant)) = self.places.get(name) {
            return Ok(self.packages[*package].read(constant, start, out)?);
        }
        let bundle = &self.bundle;
        let file = match name {
            names::PER_LAYER_PROJECTION => bundle.per_layer_projection(),
            names::PER_LAYER_NORM => bundle.per_layer_norm(),
            _ => None,
        };
        let bytes = file.ok_or_else(|| format!("no place for {name} in the bundle"))?;
        let short = || format!("{name}: the bundle's file is too short");
        let size = if name == names::PER_LAYER_NORM { 4 } else { 2 };
        let bytes = bytes
            .get(start * size..(start + out.len()) * size)
            .ok_or_else(short)?;
        if size == 4 {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        } else {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = half::f16::from_le_bytes(*b).to_f32();
            }
        }
        Ok(())
    }
}

/// The constant that packages have for a tensor.
fn constant_name(tensor: &str) -> String {
    tensor.replace('.', "_")
}

/// What makes a bundle compute something else than the reference does, if anything.
fn differs(bundle: &Bundle) -> Option<String> {
    let config = bundle.config();
    if let Some(window) = config.full_attention_window
        && window < config.context_length
    {
        return Some(format!("full layers see a window of {window}"));
    }
    for (index, chunk) in bundle.chunks().iter().enumerate() {
        let package = &chunk.package;
        let function = package.functions().get(package.default_function())?;
        if index == 0 && !function.inputs.iter().any(|i| i.name == "hidden_states") {
            return Some("the packages look tokens up by themselves".into());
        }
        let types = function.ops.iter().map(|op| op.op_type.to_string());
        let quantized = types
            .into_iter()
            .find(|t| ["quantize", "dequantize", "round"].contains(&t.as_str()));
        if let Some(op) = quantized {
            return Some(format!("{} has ops of type {op}", chunk.name));
        }
    }
    None
}

/// Names of the weights of a function: results of constexpr ops, and float constants of a weight file, that ops other than
/// constexpr ones read.
fn weights_of(function: &ReadFunction) -> BTreeSet<&str> {
    let mut parts = BTreeSet::new();
    for op in function.ops.iter().filter(|op| op.op_type.is_constexpr()) {
        let bindings = op.inputs.iter().flat_map(|(_, bindings)| bindings);
        parts.extend(bindings.filter_map(|b| match b {
            Binding::Name(name) => Some(name.as_str()),
            Binding::Value(_) => None,
        }));
    }
    let ops = function.ops.iter().filter(|op| match op.op_type {
        OpType::Const => {
            let blob = matches!(op.value, Some(ReadValue::Blob { .. }));
            blob && op.outputs.iter().all(|(_, ty)| ty.dtype.is_float())
        }
        other => other.is_constexpr(),
    });
    let names = ops.flat_map(|op| op.outputs.iter().map(|(name, _)| name.as_str()));
    names.filter(|name| !parts.contains(name)).collect()
}
