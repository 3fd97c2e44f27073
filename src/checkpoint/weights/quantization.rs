//! What a quantized checkpoint is, in a line.

use std::collections::BTreeMap;
use std::fmt;

use crate::checkpoint::config::QuantizationConfig;

use super::located::ActivationScales;
use super::store::Checkpoint;

/// How the weights of a checkpoint are stored that was trained to be rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantizationFormat {
    /// Numbers on a grid of 4 bits, as the config says.
    Q4_0,
    /// compressed-tensors.
    CompressedTensors,
    /// The `gemma` method of transformers, which Google's mobile checkpoints have.
    Gemma,
}

impl QuantizationFormat {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::CompressedTensors => "compressed-tensors",
            Self::Gemma => "gemma (mobile)",
        }
    }
}

/// What is quantized in a checkpoint. Its text is part of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantization {
    /// How it is stored.
    pub format: QuantizationFormat,
    /// Tensors by their bits and the inputs that share a step, `None` where a row does.
    pub tensors: BTreeMap<(u8, Option<usize>), usize>,
    /// Whether linear layers round their inputs or outputs.
    pub activations: bool,
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.format.name())?;
        if self.format == QuantizationFormat::Q4_0 {
            f.write_str(", stored as numbers")?;
        }
        for (i, ((bits, block), tensors)) in self.tensors.iter().enumerate() {
            f.write_str(if i == 0 { ", " } else { "; " })?;
            write!(
                f,
                "{tensors} tensor{} of {bits} bits, ",
                if *tensors == 1 { "" } else { "s" }
            )?;
            match block {
                Some(inputs) => write!(f, "{inputs} inputs a step")?,
                None => f.write_str("one step a row")?,
            }
        }
        if self.activations {
            f.write_str("; with activation scales")?;
        }
        Ok(())
    }
}

impl Checkpoint {
    /// The steps of the int8 activations around the linear layer of a weight (a text tensor without prefix), in a checkpoint that
    /// was trained with them. They are a part of the model: without them it computes something else.
    pub fn activation_scales(&self, tensor: &str) -> Option<ActivationScales> {
        self.activations.get(tensor).copied()
    }

    /// Whether any linear layer has [`activation_scales`](Self::activation_scales) that are not 0.
    pub fn has_activation_scales(&self) -> bool {
        let mut scales = self.activations.values();
        scales.any(|s| s.input != 0.0 || s.output != 0.0)
    }

    /// How the weights are stored, in a checkpoint whose config says that they were rounded.
    pub fn quantization(&self) -> Option<Quantization> {
        let format = match &self.config.quantization {
            QuantizationConfig::Absent => return None,
            QuantizationConfig::Q4_0 => QuantizationFormat::Q4_0,
            QuantizationConfig::CompressedTensors(_) => QuantizationFormat::CompressedTensors,
            QuantizationConfig::Gemma(_) => QuantizationFormat::Gemma,
        };
        let mut tensors = BTreeMap::new();
        for located in self.tensors.values() {
            if let Some(codes) = &located.codes {
                let grid = codes.layout.grid;
                let block = (grid.block != located.columns()).then_some(grid.block);
                *tensors.entry((grid.nbits, block)).or_default() += 1;
            }
        }
        Some(Quantization {
            format,
            tensors,
            activations: self.has_activation_scales(),
        })
    }
}
