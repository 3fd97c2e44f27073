//! How activations are quantized, where they are.

use serde::Deserialize;

/// Activations before linear layers as symmetric int8, one scale for each input: `largest / 127`. The range comes from the
/// statistics that a conversion is given. Only inputs of layers whose weights are quantized.
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
}

impl Activations {
    /// The percentile of magnitudes that a range reaches to; 100 is the largest.
    pub fn percentile(&self) -> f64 {
        match self {
            Self::Minmax {} => 100.0,
            Self::Percentile { percentile } => *percentile,
        }
    }

    /// What serde cannot see.
    pub(super) fn check(&self) -> Result<(), String> {
        let percentile = self.percentile();
        match percentile > 0.0 && percentile <= 100.0 {
            true => Ok(()),
            false => Err(format!(
                "activations: percentile {percentile}: expected above 0 and at most 100"
            )),
        }
    }
}
