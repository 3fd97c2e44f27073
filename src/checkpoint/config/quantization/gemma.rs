//! The `gemma` method of transformers: a width for each module, found by its name.

use super::pattern::Pattern;
use crate::checkpoint::error::Result;
use crate::checkpoint::fields::{Fields, shorten};

/// Widths of modules by their names.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::checkpoint) struct GemmaBits {
    /// Of a module that no pattern finds.
    num_bits: u8,
    /// In the order of the file.
    overrides: Vec<(Pattern, u8)>,
    /// Ends of the names of modules that are not quantized, and the same as patterns for their beginnings.
    skipped: Vec<(String, Pattern)>,
    /// Whether embedding tables are quantized too.
    pub embeddings: bool,
}

impl GemmaBits {
    pub(super) fn parse(own: &Fields) -> Result<Self> {
        const MODULES: &str = "module_quant_configs";
        const SKIPPED: &str = "modules_to_not_convert";
        let num_bits = bits(own)?.unwrap_or(4);
        let mut overrides = Vec::new();
        if let Some(modules) = own.object(MODULES)? {
            for (text, value) in modules.iter() {
                let pattern = Pattern::new(own, MODULES, text.clone())?;
                let options = modules.object(text)?.ok_or_else(|| {
                    modules.invalid(text, "an object with num_bits", shorten(value))
                })?;
                if let Some((other, _)) = options.iter().find(|(key, _)| *key != "num_bits") {
                    return Err(options.unsupported(other, "num_bits alone"));
                }
                overrides.push((pattern, bits(&options)?.unwrap_or(num_bits)));
            }
        }
        let skipped = own.strings(SKIPPED)?.unwrap_or_default();
        let skipped = skipped.into_iter().map(|end| {
            let beginning = format!(r"^(?:{end})(?:(?<=\.)|(?=\.|$))");
            Ok((end, Pattern::new(own, SKIPPED, beginning)?))
        });
        Ok(Self {
            num_bits,
            overrides,
            skipped: skipped.collect::<Result<_>>()?,
            embeddings: own.flag("quantize_embeddings", false)?,
        })
    }

    /// Whether a module is left in numbers.
    pub fn skips(&self, module: &str) -> bool {
        let mut skipped = self.skipped.iter();
        skipped.any(|(end, pattern)| module.ends_with(end) || pattern.find(module).is_some())
    }

    /// The width for a module that a pattern finds: the one whose match begins first, of several the first in the file. So it
    /// is with transformers, which joins them to one pattern.
    pub fn found(&self, module: &str) -> Option<u8> {
        let found = self.overrides.iter();
        let found = found.filter_map(|(pattern, bits)| Some((pattern.find(module)?, *bits)));
        // The first of equal ones.
        found.min_by_key(|(start, _)| *start).map(|(_, bits)| bits)
    }

    /// The width of a module that no pattern finds.
    pub fn default_bits(&self) -> u8 {
        self.num_bits
    }
}

fn bits(fields: &Fields) -> Result<Option<u8>> {
    match fields.count_opt("num_bits", 64)? {
        None => Ok(None),
        Some(bits @ (2 | 4 | 8)) => Ok(Some(bits as u8)),
        Some(_) => Err(fields.unsupported("num_bits", "2, 4, 8")),
    }
}
