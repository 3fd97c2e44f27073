//! The `gemma` method of transformers: bytes of integers in `weight` or `embedding_quantized`, a step for each row or for a part of
//! it, and steps of activations.
//!
//! Integers of 2 and 4 bits are stored in U8, lowest bits first, with half of their range added; those of 8 bits in I8. Nothing in a
//! file tells how many columns the bytes of a row are: that is the config's to say.

use crate::checkpoint::config::{GemmaBits, LayerKind, TextConfig};
use crate::checkpoint::error::Result;
use crate::checkpoint::stored::Grid;

use super::super::located::{ActivationScales, Layout, Located};
use super::super::names::HEAD;
use super::parts::{Form, Found, Part, Parts, is_attention};

const WIDTHS: [usize; 3] = [2, 4, 8];

pub(super) fn part(module: &str, last: &str) -> Option<Part> {
    Some(match last {
        "weight_scale" => Part::Steps,
        "input_activation_scale" => Part::Input,
        "output_activation_scale" => Part::Output,
        "embedding_quantized" => Part::Codes(Form::Table),
        "embedding_scale" => Part::TableSteps,
        "k_cache_scale" | "v_cache_scale" if is_attention(module) => Part::Cache,
        _ => return None,
    })
}

pub(super) fn weight(
    config: &GemmaBits,
    parts: &mut Parts<'_>,
) -> Result<(Located, Option<ActivationScales>)> {
    let form = match parts.is_table() {
        true => Form::Table,
        false => Form::Bytes,
    };
    let (_, codes) = parts.codes(&[form])?;
    let bits = bits(config, parts, &codes)?;
    let (shape, row_bytes) = sizes(bits, parts, &codes)?;
    let (steps, activations) = match form {
        Form::Table => (
            parts.need(Part::TableSteps, "embedding_scale", &codes)?,
            None,
        ),
        _ => {
            let endings = ("input_activation_scale", "output_activation_scale");
            let steps = parts.need(Part::Steps, "weight_scale", &codes)?;
            (steps, parts.activations((true, true), endings, &codes)?)
        }
    };
    // A row of a table may be several parts with a step each.
    let per_row = match (form, &steps.entry.shape[..]) {
        (Form::Table, [_, n]) if *n > 0 && shape[1].is_multiple_of(*n) => *n,
        _ => 1,
    };
    let step_dtype = parts.steps(&steps, [shape[0], per_row])?;
    let layout = Layout {
        grid: Grid {
            nbits: bits,
            block: shape[1] / per_row,
        },
        biased: bits != 8,
        row_bytes,
    };
    Ok((
        parts.located(codes, steps, step_dtype, shape, layout),
        activations,
    ))
}

/// What config.json says of a linear layer that is in integers.
pub(super) fn says(config: &GemmaBits, modules: &[String]) -> Option<String> {
    let unnamed = "as `modules_to_not_convert` of config.json does not name the module";
    let skips = modules.iter().any(|module| config.skips(module));
    (!skips).then(|| unnamed.to_string())
}

/// The width that config.json has for the module.
fn bits(config: &GemmaBits, parts: &Parts<'_>, codes: &Found) -> Result<u8> {
    let modules = parts.modules();
    let numbers = match () {
        () if parts.is_table() && !config.embeddings => "`quantize_embeddings` is not true",
        () if modules.first().is_some_and(|module| config.skips(module)) => {
            "`modules_to_not_convert` names the module"
        }
        () => {
            let found = modules.iter().find_map(|module| config.found(module));
            return Ok(found.unwrap_or(config.default_bits()));
        }
    };
    let expected = format!("numbers, as {numbers} in config.json");
    Err(parts.form_error(codes, &expected))
}

/// Rows and columns, and bytes of a row.
fn sizes(bits: u8, parts: &Parts<'_>, codes: &Found) -> Result<([usize; 2], usize)> {
    let bits = usize::from(bits);
    let config = parts.files.config;
    let columns = columns(config, parts.name);
    let bytes = |columns: usize, bits: usize| (columns * bits).div_ceil(8);
    let dtype = |bits: usize| if bits == 8 { "I8" } else { "U8" };
    let entry = &codes.entry;
    match entry.shape[..] {
        [rows, width] if rows > 0 && width > 0 && entry.dtype == dtype(bits) => match columns {
            // Of a module that the model does not have, which is refused once all are known.
            None => return Ok(([rows, width * 8 / bits], width)),
            Some(columns) if width == bytes(columns, bits) => return Ok(([rows, columns], width)),
            Some(_) => {}
        },
        _ => {}
    }
    let mut expected = format!(
        "{} for integers of {bits} bits (module_quant_configs of config.json)",
        dtype(bits)
    );
    if let Some(columns) = columns {
        let width = bytes(columns, bits);
        expected = format!(
            "{} [rows, {width}] for {columns} integers of {bits} bits a row (module_quant_configs of config.json)",
            dtype(bits)
        );
        let fits = |other: &&usize| {
            entry.dtype == dtype(**other) && entry.shape.get(1) == Some(&bytes(columns, **other))
        };
        if let Some(other) = WIDTHS.iter().find(fits) {
            expected.push_str(&format!("; this would be {other} bits"));
        }
    }
    Err(parts.form_error(codes, &expected))
}

/// Inputs of a linear layer, or the width of a table.
fn columns(config: &TextConfig, name: &str) -> Option<usize> {
    let (hidden, ple) = (config.hidden_size, config.hidden_size_per_layer_input);
    let Some((layer, module)) = name
        .strip_prefix("layers.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return match name {
            "embed_tokens.weight" | HEAD | "per_layer_model_projection.weight" => Some(hidden),
            "embed_tokens_per_layer.weight" => Some(config.num_hidden_layers * ple),
            _ => None,
        };
    };
    let layer: usize = layer.parse().ok()?;
    let kind: LayerKind = *config.layer_types.get(layer)?;
    Some(match module {
        "self_attn.q_proj.weight"
        | "self_attn.k_proj.weight"
        | "self_attn.v_proj.weight"
        | "mlp.gate_proj.weight"
        | "mlp.up_proj.weight"
        | "per_layer_input_gate.weight"
        | "router.proj.weight" => hidden,
        "self_attn.o_proj.weight" => config.num_attention_heads * config.heads(kind).head_dim,
        "mlp.down_proj.weight" => {
            let wide = config.use_double_wide_mlp && layer >= config.first_shared();
            config.intermediate_size * if wide { 2 } else { 1 }
        }
        "per_layer_projection.weight" => ple,
        _ => return None,
    })
}
