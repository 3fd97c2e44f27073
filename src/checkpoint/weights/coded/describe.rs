//! What a quantized checkpoint is, in a line.

use std::collections::BTreeMap;
use std::fmt;

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
