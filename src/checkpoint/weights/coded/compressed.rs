//! compressed-tensors: `weight_packed`, `weight_scale` and `weight_shape`, or bytes in `weight` and `weight_scale`.
//!
//! A row of packed integers is a stream of bits, lowest first, filled up to whole words of 32 bits. An integer is stored with
//! half of its range added.

use crate::checkpoint::config::{CompressedTensors, Group, Targeted};
use crate::checkpoint::error::Result;
use crate::checkpoint::stored::Grid;

use super::super::located::{ActivationScales, Layout, Located};
use super::parts::{Form, Found, Part, Parts, is_attention};

/// Bits of a word.
const WORD: usize = 32;
/// Classes of a linear layer.
const LINEAR: &[&str] = &["Linear", "Module"];

pub(super) fn part(module: &str, last: &str) -> Option<Part> {
    Some(match last {
        "weight_packed" => Part::Codes(Form::Words),
        "weight_scale" => Part::Steps,
        "weight_shape" => Part::Shape,
        "input_scale" => Part::Input,
        "output_scale" => Part::Output,
        "weight_zero_point"
        | "input_zero_point"
        | "output_zero_point"
        | "weight_g_idx"
        | "weight_global_scale"
        | "input_global_scale"
        | "output_global_scale" => Part::Unread,
        "k_scale" | "v_scale" | "k_cache_scale" | "v_cache_scale" if is_attention(module) => {
            Part::Cache
        }
        _ => return None,
    })
}

pub(super) fn weight(
    config: &CompressedTensors,
    parts: &mut Parts<'_>,
) -> Result<(Located, Option<ActivationScales>)> {
    let (form, codes) = parts.codes(&[Form::Words, Form::Bytes])?;
    let group = group(config, parts, &codes)?;
    let (shape, row_bytes) = match form {
        Form::Words => packed(group, parts, &codes)?,
        _ => bytes(group, parts, &codes)?,
    };
    let block = group.block.unwrap_or(shape[1]);
    if !shape[1].is_multiple_of(block) {
        let expected = format!(
            "a number of columns that is a multiple of {block}, the group_size of {}",
            group.name
        );
        return Err(parts.error(Some(&codes), &expected, shape[1].to_string()));
    }
    let steps = parts.need(Part::Steps, "weight_scale", &codes)?;
    let step_dtype = parts.steps(&steps, [shape[0], shape[1] / block])?;
    let needed = (group.input, group.output);
    let activations = parts.activations(needed, ("input_scale", "output_scale"), &codes)?;
    let layout = Layout {
        grid: Grid {
            nbits: group.nbits,
            block,
        },
        biased: form == Form::Words,
        row_bytes,
    };
    Ok((
        parts.located(codes, steps, step_dtype, shape, layout),
        activations,
    ))
}

/// What config.json says of a linear layer that is in integers.
pub(super) fn says(config: &CompressedTensors, modules: &[String]) -> Option<String> {
    let targeted = modules.iter().map(|module| config.targeted(module, LINEAR));
    let mut group = None;
    for found in targeted {
        match found {
            Targeted::Ignored => return None,
            Targeted::In(of) => group = group.or(Some(of)),
            Targeted::No => {}
        }
    }
    group.map(|group| format!("as {} in config.json has the module", group.name))
}

/// The group of config.json that the module is in.
fn group<'c>(config: &'c CompressedTensors, parts: &Parts<'_>, codes: &Found) -> Result<&'c Group> {
    let classes: &[&str] = match parts.is_table() {
        true => &["Gemma4TextScaledWordEmbedding", "Embedding", "Module"],
        false => LINEAR,
    };
    let mut ignored = false;
    for module in parts.modules() {
        match config.targeted(&module, classes) {
            Targeted::In(group) => return Ok(group),
            Targeted::Ignored => ignored = true,
            Targeted::No => {}
        }
    }
    let expected = match ignored {
        true => "numbers, as `ignore` of config.json names the module",
        false => {
            "numbers, as no group in `config_groups` of config.json has the module among its targets"
        }
    };
    Err(parts.form_error(codes, expected))
}

/// Rows and columns, and bytes of a row, of packed integers.
fn packed(group: &Group, parts: &mut Parts<'_>, codes: &Found) -> Result<([usize; 2], usize)> {
    let part = parts.need(Part::Shape, "weight_shape", codes)?;
    if part.entry.dtype != "I64" || part.entry.shape != [2] {
        return Err(parts.form_error(&part, "I64 [2]"));
    }
    let (numbers, _) = parts.files.bytes(&part)?.as_chunks::<8>();
    let size = |i: usize| {
        let number = numbers.get(i).map(|bytes| i64::from_le_bytes(*bytes));
        number
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n > 0)
    };
    let (Some(rows), Some(columns)) = (size(0), size(1)) else {
        let got = format!(
            "{:?}",
            numbers
                .iter()
                .map(|b| i64::from_le_bytes(*b))
                .collect::<Vec<_>>()
        );
        return Err(parts.error(Some(&part), "two sizes above 0", got));
    };
    let words = |bits: usize| columns.checked_mul(bits).map(|bits| bits.div_ceil(WORD));
    let entry = &codes.entry;
    match (words(usize::from(group.nbits)), &entry.shape[..]) {
        (Some(words), [r, w]) if (*r, *w) == (rows, words) && entry.dtype == "I32" => {
            Ok(([rows, columns], words * (WORD / 8)))
        }
        (words_of_group, found) => {
            let words_of_group = words_of_group.map_or("?".into(), |w| w.to_string());
            let mut expected = format!(
                "I32 [{rows}, {words_of_group}] for {rows} x {columns} integers of {} bits ({} of config.json)",
                group.nbits, group.name
            );
            let fits = |bits: &usize| found == [rows, words(*bits).unwrap_or(0)];
            if let Some(bits) = (1..=8).find(fits) {
                expected.push_str(&format!("; this would be {bits} bits"));
            }
            Err(parts.form_error(codes, &expected))
        }
    }
}

/// The same of integers in bytes of their own.
fn bytes(group: &Group, parts: &Parts<'_>, codes: &Found) -> Result<([usize; 2], usize)> {
    match codes.entry.shape[..] {
        [rows, columns]
            if rows > 0 && columns > 0 && codes.entry.dtype == "I8" && group.nbits == 8 =>
        {
            Ok(([rows, columns], columns))
        }
        _ => {
            let expected = match group.nbits {
                8 => "I8 [rows, columns]".to_string(),
                bits => format!(
                    "weight_packed, for the {bits} bits that {} of config.json has",
                    group.name
                ),
            };
            Err(parts.form_error(codes, &expected))
        }
    }
}
