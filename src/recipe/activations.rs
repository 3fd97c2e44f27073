//! How activations are quantized, where they are.

use serde::Deserialize;

/// Activations around linear layers as int8. The first two put symmetric int8 with one scale, `largest / 127`, before the layers
/// whose weights are quantized; the range comes from the statistics that a conversion is given. The others say what becomes of
/// the steps that a quantization-aware checkpoint has: a recipe for such a checkpoint must have one of them.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(
    tag = "ranges",
    rename_all = "kebab-case",
    deny_unknown_fields,
    expecting = "expected a table such as { ranges = \"minmax\" }"
)]
pub enum Activations {
    /// `{ ranges = "minmax" }`: up to the largest magnitude that was seen.
    Minmax {},
    /// `{ ranges = "percentile", percentile = 99.99 }`: up to the magnitude that so many percent of the values seen do not
    /// exceed; larger ones saturate.
    Percentile {
        /// Above 0, at most 100.
        percentile: f64,
    },
    /// `{ ranges = "checkpoint" }`: inputs and outputs are rounded to the checkpoint's own steps. Nothing is rounded where it has
    /// none.
    Checkpoint {
        /// The ops that do it.
        #[serde(default)]
        form: ActivationForm,
    },
    /// `{ ranges = "none" }`: nothing is rounded, although the checkpoint has steps.
    None {},
}

/// The ops that round an activation to a multiple of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationForm {
    /// `round` and `clip` on counts of steps, in fp16. What turns values into counts and back is folded into norms and
    /// weights where it can be.
    #[default]
    Arithmetic,
    /// `quantize` and `dequantize`. Nothing is folded.
    Quantize,
}

impl Activations {
    /// The percentile of magnitudes that a range of statistics reaches to; 100 is the largest. `None` where no statistics are
    /// asked for.
    pub fn percentile(&self) -> Option<f64> {
        match self {
            Self::Minmax {} => Some(100.0),
            Self::Percentile { percentile } => Some(*percentile),
            Self::Checkpoint { .. } | Self::None {} => None,
        }
    }

    /// What serde cannot see.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.percentile() {
            Some(percentile) if !(percentile > 0.0 && percentile <= 100.0) => Err(format!(
                "activations: percentile {percentile}: expected above 0 and at most 100"
            )),
            _ => Ok(()),
        }
    }
}
