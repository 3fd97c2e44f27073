//! Weights that a file holds as integers and steps, in parts: which parts there are, and what they make together.

mod compressed;
mod gemma;
mod parts;

use crate::checkpoint::config::QuantizationConfig;
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::stored::{StoredDType, header};

use super::located::{ActivationScales, Located};
use parts::{Form, Parts};

pub(super) use parts::{Files, Found, Part};

/// What a tensor of a quantized checkpoint is a part of: the full name of the weight, and which part. `None` for one that is
/// numbers of its own.
pub(super) fn split(entry: &header::Entry, config: &QuantizationConfig) -> Option<(String, Part)> {
    let (module, last) = entry.name.rsplit_once('.')?;
    let part = match config {
        QuantizationConfig::Absent | QuantizationConfig::Q4_0 => return None,
        QuantizationConfig::CompressedTensors(_) => compressed::part(module, last),
        QuantizationConfig::Gemma(_) => gemma::part(module, last),
    };
    let integers = last == "weight" && StoredDType::from_name(&entry.dtype).is_none();
    let part = part.or(integers.then_some(Part::Codes(Form::Bytes)))?;
    Some((format!("{module}.weight"), part))
}

impl<'a> Files<'a> {
    /// What the parts of the weight `name` make together. `numbers` is a tensor of that name that is numbers of its own.
    pub fn weight(
        &'a self,
        name: &'a str,
        parts: Vec<Found>,
        numbers: Option<&Located>,
    ) -> Result<(Located, Option<ActivationScales>)> {
        let mut parts = Parts {
            files: self,
            name,
            parts,
        };
        parts.refuse_unread()?;
        if let Some(numbers) = numbers {
            let got = format!("{} {:?} as well", numbers.full_name, numbers.shape);
            let first = parts.first();
            return Err(parts.error(first, "integers alone, or numbers alone", got));
        }
        let made = match &self.config.quantization {
            QuantizationConfig::CompressedTensors(config) => {
                compressed::weight(config, &mut parts)?
            }
            QuantizationConfig::Gemma(config) => gemma::weight(config, &mut parts)?,
            QuantizationConfig::Absent | QuantizationConfig::Q4_0 => {
                let first = parts.first();
                return Err(parts.error(first, "numbers", "a part of integers".into()));
            }
        };
        match parts.parts.first() {
            None => Ok(made),
            Some(left) => {
                let expected = "the parts that config.json implies, and no others";
                Err(parts.error(Some(left), expected, "one more".into()))
            }
        }
    }

    /// Refuses a linear layer in numbers that config.json has in integers. Outside the decoder's layers numbers may stand for
    /// them: published heads and tables do.
    pub fn numbers(&self, name: &str, numbers: &Located) -> Result<()> {
        let parts = Parts {
            files: self,
            name,
            parts: Vec::new(),
        };
        let is_linear =
            parts.is_in_layer() && name.ends_with(".weight") && numbers.shape.len() == 2;
        let modules = parts.modules();
        let says = match &self.config.quantization {
            _ if !is_linear => None,
            QuantizationConfig::CompressedTensors(config) => compressed::says(config, &modules),
            QuantizationConfig::Gemma(config) => gemma::says(config, &modules),
            QuantizationConfig::Absent | QuantizationConfig::Q4_0 => None,
        };
        match says {
            None => Ok(()),
            Some(says) => Err(Error::BadCodes {
                path: self.path(numbers.file).to_path_buf(),
                tensor: numbers.full_name.clone(),
                expected: format!("integers, {says}"),
                got: format!("{} {:?}", numbers.dtype.name(), numbers.shape),
            }),
        }
    }
}
