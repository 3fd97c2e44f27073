//! Whether the chunks of a bundle agree with its config and with each other.

use super::config::BundleConfig;
use super::error::{Error, Result};
use super::open::Chunk;
use crate::mil::{DType, TensorType};
use std::collections::BTreeMap;

/// Inputs and outputs of a package's default function, in declaration order.
#[derive(Debug, Clone, Default)]
pub(super) struct Features {
    pub inputs: Vec<(String, TensorType)>,
    pub outputs: Vec<(String, TensorType)>,
}

impl Features {
    fn input(&self, name: &str) -> Option<&TensorType> {
        self.inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }

    fn output(&self, name: &str) -> Option<&TensorType> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }
}

/// Inputs that every chunk declares (bundle contract, 3.1).
const COMMON: [&str; 8] = [
    "hidden_states",
    "causal_mask_full",
    "causal_mask_sliding",
    "update_mask",
    "cos_s",
    "sin_s",
    "cos_f",
    "sin_f",
];

/// Caches a chunk takes and gives back, and K and V that a chunk gives to later ones.
const CACHES: [&str; 4] = ["K_sliding", "V_sliding", "K_full", "V_full"];
const SHARED: [&str; 4] = ["kv13_k", "kv13_v", "kv14_k", "kv14_v"];

/// Checks all chunks of a bundle.
pub(super) fn chunks(config: &BundleConfig, chunks: &[Chunk]) -> Result<()> {
    let mut all = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        all.push((chunk.name.clone(), features(chunk)?));
    }
    agree(config, &all)
}

fn features(chunk: &Chunk) -> Result<Features> {
    let package = &chunk.package;
    let name = package.default_function();
    let function = package
        .functions()
        .get(name)
        .ok_or_else(|| Error::Feature {
            chunk: chunk.name.clone(),
            feature: "default function".into(),
            expected: "a function of the package".into(),
            got: name.to_string(),
        })?;
    Ok(Features {
        inputs: function
            .inputs
            .iter()
            .filter(|input| !input.is_state)
            .map(|input| (input.name.clone(), input.ty.clone()))
            .collect(),
        outputs: function
            .outputs
            .iter()
            .filter_map(|n| function.type_of(n).map(|t| (n.clone(), t.clone())))
            .collect(),
    })
}

/// The checks themselves, on names and types alone.
pub(super) fn agree(config: &BundleConfig, chunks: &[(String, Features)]) -> Result<()> {
    let known = input_shapes(config);
    let last = chunks.len().saturating_sub(1);
    for (i, (chunk, f)) in chunks.iter().enumerate() {
        let per_layer: &[&str] = match (config.per_layer_dim, i) {
            (0, _) => &[],
            (_, 0) => &["per_layer_raw"],
            _ => &["per_layer_combined"],
        };
        for name in COMMON.iter().chain(per_layer) {
            if f.input(name).is_none() {
                return wrong(chunk, name, "an input", "none of that name");
            }
        }
        for (name, t) in &f.inputs {
            if let Some(shape) = known.get(name.as_str()) {
                expect(chunk, name, t, DType::Fp16, shape, "model_config.json")?;
            }
        }
        caches(config, chunk, f)?;
        outputs(config, chunk, f, i == last)?;
        carried(chunk, f, &chunks[..i])?;
    }
    slots(config, chunks)
}

/// Shapes of inputs that the config alone decides.
fn input_shapes(config: &BundleConfig) -> BTreeMap<&'static str, Vec<usize>> {
    let (context, window) = (config.context_length, config.sliding_window);
    let (sliding, full) = (config.head_dim, config.global_head_dim);
    let width = config.per_layer_width();
    let (kv_s, kv_f) = (config.num_key_value_heads, config.full_kv_heads());
    BTreeMap::from([
        ("hidden_states", vec![1, 1, config.hidden_size]),
        ("causal_mask_full", vec![1, 1, 1, context]),
        ("causal_mask_sliding", vec![1, 1, 1, window]),
        ("update_mask", vec![1, 1, context, 1]),
        ("per_layer_raw", vec![1, 1, width]),
        ("per_layer_combined", vec![1, 1, width]),
        ("cos_s", vec![1, 1, 1, sliding]),
        ("sin_s", vec![1, 1, 1, sliding]),
        ("cos_f", vec![1, 1, 1, full]),
        ("sin_f", vec![1, 1, 1, full]),
        ("kv13_k", vec![1, kv_s, window, sliding]),
        ("kv13_v", vec![1, kv_s, window, sliding]),
        ("kv14_k", vec![1, kv_f, context, full]),
        ("kv14_v", vec![1, kv_f, context, full]),
    ])
}

/// A chunk's own caches: `(slots, kv_heads, length, max head dim)`, given back in the shape they came in.
fn caches(config: &BundleConfig, chunk: &str, f: &Features) -> Result<()> {
    let dim = config.head_dim.max(config.global_head_dim);
    for name in CACHES {
        let (input, output) = (format!("{name}_in"), format!("{name}_out"));
        let (t, back) = match (f.input(&input), f.output(&output)) {
            (None, None) => continue,
            (Some(t), Some(back)) => (t, back),
            (Some(_), None) => {
                return wrong(
                    chunk,
                    &output,
                    "an output, as there is such an input",
                    "none",
                );
            }
            (None, Some(_)) => {
                return wrong(
                    chunk,
                    &input,
                    "an input, as there is such an output",
                    "none",
                );
            }
        };
        let (heads, length) = if name.ends_with("sliding") {
            (config.num_key_value_heads, config.sliding_window)
        } else {
            (config.full_kv_heads(), config.context_length)
        };
        let slots = t.shape.first().copied().unwrap_or(0).max(1);
        expect(
            chunk,
            &input,
            t,
            DType::Fp16,
            &[slots, heads, length, dim],
            "model_config.json",
        )?;
        expect(chunk, &output, back, DType::Fp16, &t.shape, &input)?;
    }
    Ok(())
}

fn outputs(config: &BundleConfig, chunk: &str, f: &Features, last: bool) -> Result<()> {
    let hidden = [1, 1, config.hidden_size];
    let mut needed: Vec<(&str, DType, &[usize])> =
        vec![("hidden_states_out", DType::Fp16, &hidden)];
    if last {
        needed.push(("token_id", DType::Int32, &[1]));
        needed.push(("token_logit", DType::Fp16, &[1]));
    }
    for (name, dtype, shape) in needed {
        match f.output(name) {
            Some(t) => expect(chunk, name, t, dtype, shape, "model_config.json")?,
            None => return wrong(chunk, name, "an output", "none of that name"),
        }
    }
    Ok(())
}

/// What a chunk takes from earlier ones must be given by one of them, in the same shape.
fn carried(chunk: &str, f: &Features, earlier: &[(String, Features)]) -> Result<()> {
    let pairs = SHARED
        .iter()
        .map(|n| (*n, *n))
        .chain([("per_layer_combined", "per_layer_combined_out")]);
    for (input, output) in pairs {
        let Some(t) = f.input(input) else { continue };
        let giver = earlier
            .iter()
            .rev()
            .find_map(|(n, e)| e.output(output).map(|o| (n, o)));
        match giver {
            Some((n, o)) => expect(chunk, input, t, o.dtype, &o.shape, &format!("{n}'s output"))?,
            None => return wrong(chunk, input, "an earlier chunk with that output", "none"),
        }
    }
    Ok(())
}

/// Enough cache slots for every layer that owns K and V.
fn slots(config: &BundleConfig, chunks: &[(String, Features)]) -> Result<()> {
    let owners = &config.layer_types[..config.num_layers - config.num_kv_shared_layers];
    for (input, kind) in [
        ("K_sliding_in", "sliding_attention"),
        ("K_full_in", "full_attention"),
    ] {
        let needed = owners.iter().filter(|k| *k == kind).count();
        let found: usize = chunks
            .iter()
            .filter_map(|(_, f)| f.input(input))
            .filter_map(|t| t.shape.first())
            .sum();
        if found < needed {
            let expected = format!("{needed} slots in all chunks, one for each {kind} layer");
            return wrong(&chunks[0].0, input, &expected, &found.to_string());
        }
    }
    Ok(())
}

fn expect(
    chunk: &str,
    feature: &str,
    t: &TensorType,
    dtype: DType,
    shape: &[usize],
    by: &str,
) -> Result<()> {
    if t.dtype == dtype && t.shape == shape {
        return Ok(());
    }
    wrong(
        chunk,
        feature,
        &format!("{dtype} {shape:?} as {by} says"),
        &format!("{} {:?}", t.dtype, t.shape),
    )
}

fn wrong(chunk: &str, feature: &str, expected: &str, got: &str) -> Result<()> {
    Err(Error::Feature {
        chunk: chunk.into(),
        feature: feature.into(),
        expected: expected.into(),
        got: got.into(),
    })
}
