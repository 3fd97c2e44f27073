//! The parts of a weight: what each may be, and what is said of those that do not fit.

use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;

use crate::checkpoint::config::TextConfig;
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::stored::{StoredDType, header};

use super::super::located::{ActivationScales, Codes, Layout, Located};
use super::super::names::{self, HEAD};

/// What a tensor is to the weight that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Part {
    /// Integers, in the form of words, of `weight`, or of a table.
    Codes(Form),
    /// Steps of the integers.
    Steps,
    /// Steps of a table.
    TableSteps,
    /// Rows and columns.
    Shape,
    /// Step of the input.
    Input,
    /// Step of the output.
    Output,
    /// What no reader here knows how to use.
    Unread,
    /// Step of a layer's keys or values in the cache.
    Cache,
}

/// How integers lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Form {
    /// `weight_packed`: words of 32 bits.
    Words,
    /// `weight`: bytes.
    Bytes,
    /// `embedding_quantized`: bytes.
    Table,
}

/// A part, and where it is.
pub(in super::super) struct Found {
    pub part: Part,
    pub file: usize,
    pub entry: header::Entry,
}

/// The module of a layer whose keys or values a scale is for.
pub(super) fn is_attention(module: &str) -> bool {
    module.ends_with(".self_attn")
}

/// The weights of a checkpoint as far as parts need them.
pub(in super::super) struct Files<'a> {
    pub dir: &'a Path,
    pub config: &'a TextConfig,
    pub files: &'a [(PathBuf, MmapedSafetensors)],
}

/// The parts of one weight.
pub(super) struct Parts<'a> {
    pub files: &'a Files<'a>,
    /// Name of the weight without prefix.
    pub name: &'a str,
    pub parts: Vec<Found>,
}

impl Files<'_> {
    pub(super) fn path(&self, file: usize) -> &Path {
        self.files.get(file).map_or(self.dir, |(path, _)| path)
    }

    /// The bytes of a small part.
    pub(super) fn bytes(&self, found: &Found) -> Result<&[u8]> {
        let file = self.files.get(found.file);
        let bytes = file.and_then(|(_, file)| file.get(&found.entry.name).ok());
        bytes
            .map(|view| view.data())
            .ok_or_else(|| Error::BadTensor {
                path: self.path(found.file).to_path_buf(),
                tensor: found.entry.name.clone(),
                what: "data",
                expected: "what was there when the file was opened".into(),
                got: "another file".into(),
            })
    }
}

impl Parts<'_> {
    /// The module of the weight, without prefix.
    pub(super) fn module(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(self.name)
    }

    /// Names that the module may have to the config: first the one in the class of the model that `model_type` means, then
    /// those in others.
    pub(super) fn modules(&self) -> Vec<String> {
        let (own, module) = (names::prefix(&self.files.config.model_type), self.module());
        if self.name == HEAD {
            return vec![module.to_string()];
        }
        let others = ["model.language_model.", "model.", "language_model.", ""];
        let prefixes = std::iter::once(own).chain(others.into_iter().filter(|p| *p != own));
        prefixes.map(|prefix| format!("{prefix}{module}")).collect()
    }

    pub(super) fn is_table(&self) -> bool {
        self.module().starts_with("embed_tokens")
    }

    /// Whether the model has the module once a layer.
    pub(super) fn is_in_layer(&self) -> bool {
        self.module().starts_with("layers.")
    }

    pub(super) fn first(&self) -> Option<&Found> {
        self.parts.first()
    }

    /// Takes a part out, so that what is left at the end is of no use.
    pub(super) fn take(&mut self, part: Part) -> Option<Found> {
        let at = self.parts.iter().position(|found| found.part == part)?;
        Some(self.parts.remove(at))
    }

    /// A part that must be there, beside `beside`.
    pub(super) fn need(&mut self, part: Part, ending: &str, beside: &Found) -> Result<Found> {
        self.take(part).ok_or_else(|| {
            let (module, _) = beside.entry.name.rsplit_once('.').unwrap_or_default();
            let expected = format!("{module}.{ending} beside it");
            self.error(Some(beside), &expected, "no such tensor".into())
        })
    }

    /// The integers.
    pub(super) fn codes(&mut self, forms: &[Form]) -> Result<(Form, Found)> {
        let mut found = forms.iter().filter_map(|form| {
            let at = self
                .parts
                .iter()
                .position(|f| f.part == Part::Codes(*form))?;
            Some((*form, at))
        });
        let (first, second) = (found.next(), found.next());
        match (first, second) {
            (Some((form, at)), None) => Ok((form, self.parts.remove(at))),
            (Some(_), Some((_, second))) => {
                let second = self.parts.get(second);
                Err(self.error(
                    second,
                    "integers once",
                    "integers in another form as well".into(),
                ))
            }
            (None, _) => {
                let got =
                    "none; there may be numbers, which are not to be multiplied with steps".into();
                Err(self.error(self.first(), "integers beside it", got))
            }
        }
    }

    pub(super) fn refuse_unread(&self) -> Result<()> {
        match self.parts.iter().find(|found| found.part == Part::Unread) {
            None => Ok(()),
            Some(found) => {
                let expected = "integers that are symmetric around 0, in the order of the columns, with one step each";
                let got = "a part that says otherwise: zero points, an order of columns and scales of scales are not read";
                Err(self.error(Some(found), expected, got.into()))
            }
        }
    }

    /// The error for one of the parts.
    pub(super) fn error(&self, found: Option<&Found>, expected: &str, got: String) -> Error {
        Error::BadCodes {
            path: self
                .files
                .path(found.map_or(usize::MAX, |f| f.file))
                .to_path_buf(),
            tensor: found.map_or(self.name, |f| &f.entry.name).to_string(),
            expected: expected.to_string(),
            got,
        }
    }

    /// The error for a dtype or a shape of a part.
    pub(super) fn form_error(&self, found: &Found, expected: &str) -> Error {
        let got = format!("{} {:?}", found.entry.dtype, found.entry.shape);
        self.error(Some(found), expected, got)
    }

    /// Steps in a number format that is read, of this shape.
    pub(super) fn steps(&self, found: &Found, shape: [usize; 2]) -> Result<StoredDType> {
        let dtype = StoredDType::from_name(&found.entry.dtype);
        match dtype.filter(|_| found.entry.shape == shape) {
            Some(dtype) => Ok(dtype),
            None => Err(self.form_error(found, &format!("BF16, F16 or F32 {shape:?}"))),
        }
    }

    /// The steps of the activations around the module; where one is `needed` it must be there, elsewhere it must not.
    pub(super) fn activations(
        &mut self,
        needed: (bool, bool),
        endings: (&str, &str),
        beside: &Found,
    ) -> Result<Option<ActivationScales>> {
        let mut scale = |needed: bool, part: Part, ending: &str| match self.take(part) {
            Some(found) if needed => self.activation(&found).map(Some),
            Some(found) => {
                let got = "a step of activations".into();
                Err(self.error(Some(&found), "none, as config.json has it", got))
            }
            // Ids are not rounded, though a group of config.json may have its tables with its linear layers.
            None if needed && !self.is_table() => self.need(part, ending, beside).map(|_| None),
            None => Ok(None),
        };
        let input = scale(needed.0, Part::Input, endings.0)?;
        let output = scale(needed.1, Part::Output, endings.1)?;
        let scales = ActivationScales {
            input: input.unwrap_or(0.0),
            output: output.unwrap_or(0.0),
        };
        Ok((scales.input != 0.0 || scales.output != 0.0).then_some(scales))
    }

    /// One step of activations.
    fn activation(&self, found: &Found) -> Result<f32> {
        let entry = &found.entry;
        let dtype = StoredDType::from_name(&entry.dtype);
        let Some(dtype) = dtype.filter(|_| matches!(entry.shape[..], [] | [1])) else {
            return Err(self.form_error(found, "BF16, F16 or F32 []"));
        };
        let mut value = [0.0];
        dtype.read(self.files.bytes(found)?, 0, &mut value);
        let [value] = value;
        match value.is_finite() && value >= 0.0 {
            false => {
                let expected = "a finite step of activations that is not negative";
                Err(self.error(Some(found), expected, value.to_string()))
            }
            true if value != 0.0 && !self.is_in_layer() => {
                let expected =
                    "0: activations are rounded around the linear layers of decoder layers alone";
                Err(self.error(Some(found), expected, value.to_string()))
            }
            true => Ok(value),
        }
    }

    /// The weight whose integers are `codes`, each row in `row_bytes`.
    pub(super) fn located(
        &self,
        codes: Found,
        steps: Found,
        step_dtype: StoredDType,
        shape: [usize; 2],
        layout: Layout,
    ) -> Located {
        Located {
            full_name: codes.entry.name,
            file: codes.file,
            dtype: step_dtype,
            shape: shape.to_vec(),
            codes: Some(Codes {
                layout,
                steps: steps.entry.name,
                steps_file: steps.file,
            }),
        }
    }
}
