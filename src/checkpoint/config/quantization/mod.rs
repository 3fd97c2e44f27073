//! `quantization_config`: how the weights beside a config are stored.
//!
//! What it does not describe is for the weights to say: whether a tensor is integers is decided by its dtype and its parts, and
//! this by how many bits and inputs a step it must have.

mod compressed;
mod gemma;
mod pattern;

use crate::checkpoint::error::Result;
use crate::checkpoint::fields::Fields;

pub(in crate::checkpoint) use compressed::{CompressedTensors, Group, Targeted};
pub(in crate::checkpoint) use gemma::GemmaBits;

/// What is read, for messages.
const SUPPORTED: &str = "\"compressed-tensors\" and \"gemma\" as `quant_method`, or `quant_type` \"q4_0\" without one; otherwise \
     take the unquantized checkpoint, or google/gemma-4-...-it-qat-q4_0-unquantized";

/// How weights are stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::checkpoint) enum QuantizationConfig {
    /// As numbers.
    #[default]
    Absent,
    /// As numbers that lie on a grid of 4 bits.
    Q4_0,
    /// As compressed-tensors packs integers.
    CompressedTensors(CompressedTensors),
    /// As transformers' `gemma` method packs integers.
    Gemma(GemmaBits),
}

impl QuantizationConfig {
    /// Reads it from the objects that may have it: the top of a config and its `text_config`.
    pub fn parse(levels: [&Fields; 2]) -> Result<Self> {
        let mut found: Option<(Self, String)> = None;
        for fields in levels {
            if matches!(fields.get("quantization"), Some(v) if v.is_object()) {
                return Err(fields.unsupported(
                    "quantization",
                    "none: this is a model that mlx quantized. Take the checkpoint that it was made of, or \
                     google/gemma-4-...-it-qat-q4_0-unquantized",
                ));
            }
            // The second name is that of old compressed-tensors.
            for name in ["quantization_config", "compression_config"] {
                let Some(own) = fields.object(name)? else {
                    continue;
                };
                let parsed = Self::of(fields, name, &own)?;
                match &found {
                    Some((first, of)) if *first != parsed => {
                        let expected = format!("what {of} says");
                        return Err(fields.invalid(name, expected, "something else"));
                    }
                    Some(_) => {}
                    None => found = Some((parsed, format!("`{name}`"))),
                }
            }
        }
        Ok(found.map(|(parsed, _)| parsed).unwrap_or_default())
    }

    fn of(fields: &Fields, name: &str, own: &Fields) -> Result<Self> {
        match own.string_opt("quant_method")? {
            Some("compressed-tensors") => {
                CompressedTensors::parse(own).map(Self::CompressedTensors)
            }
            Some("gemma") => GemmaBits::parse(own).map(Self::Gemma),
            Some(_) => Err(own.unsupported("quant_method", SUPPORTED)),
            None => match own.string_opt("quant_type")? {
                Some(kind) if kind.eq_ignore_ascii_case("q4_0") => Ok(Self::Q4_0),
                _ => Err(fields.unsupported(name, SUPPORTED)),
            },
        }
    }
}

#[cfg(test)]
mod tests;
