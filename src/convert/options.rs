//! What a caller may choose.

use super::room::Room;
use crate::calibrate::Stats;
use crate::package::WEIGHT_FILE_LIMIT;
use crate::quantize::SharedPalettes;
use std::sync::Arc;

/// What a caller may choose beside the recipe.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Worker threads; all cores when `None`.
    pub threads: Option<usize>,
    /// Replace an existing bundle at the output by a whole conversion.
    pub force: bool,
    /// Positions of the full-attention cache; the recipe's when `None`. With an existing bundle of the same checkpoint,
    /// recipe and version at the output, and without `force`, that bundle is rewritten for this context: its weights and
    /// tables are kept. The result is the same, byte for byte, as that of a whole conversion.
    pub context: Option<usize>,
    /// Rebuild this package (`chunk4`) of the bundle at the output, with the recipe given, which may quantize in another way.
    /// All else is kept, tables and tokenizer included. `force` and `model_id` say nothing then.
    pub only: Option<String>,
    /// Statistics of the inputs of the model's projections, for recipes that ask for them. They decide the bundle's bytes.
    pub calibration: Option<Arc<Stats>>,
    /// Palettes shared with other conversions of the same checkpoint that differ in width; they change no bytes.
    pub palettes: Option<Arc<SharedPalettes>>,
    /// Name of the model for `model_config.json` (a hub id, say); `gemma4` when `None`. It is part of the bundle's bytes.
    pub model_id: Option<String>,
    /// Every weight file has fewer bytes than this; [`WEIGHT_FILE_LIMIT`] when `None`. It is part of the
    /// bundle's bytes. Packages whose weights are kept keep their files.
    pub weight_file_limit: Option<u64>,
    /// Room on disk and in memory; measured when `None`.
    pub room: Option<Room>,
}

impl Options {
    pub(super) fn file_limit(&self) -> u64 {
        self.weight_file_limit.unwrap_or(WEIGHT_FILE_LIMIT)
    }

    /// Whether a bundle at the output may be replaced.
    pub(super) fn replaces(&self) -> bool {
        self.force || self.context.is_some() || self.only.is_some()
    }
}
