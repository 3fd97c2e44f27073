//! Schemes for weights and tables that a checkpoint stores as integers.

use std::num::NonZeroUsize;

use serde::Deserialize;

use crate::quantize::{Grouping, IntRange, PaletteForm, RowBlock, Scheme, StepBits, TableScheme};

/// The integers of a weight in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// 2, 4 or 8.
    pub nbits: u8,
    /// Inputs of a row that share a step; `None` where all do.
    pub block: Option<usize>,
}

impl Given {
    /// The form of rows that keeps them.
    pub(super) fn rows(self) -> TableScheme {
        TableScheme::RowsSteps {
            bits: match self.nbits {
                ..=2 => StepBits::Two,
                3..=4 => StepBits::Four,
                _ => StepBits::Eight,
            },
            block: match self.block.and_then(NonZeroUsize::new) {
                Some(block) => RowBlock::Values(block),
                None => RowBlock::Row,
            },
        }
    }
}

/// How weights that the checkpoint stores as integers are stored: each in a scheme of its own width that keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GivenForm {
    /// Palettes of single rows for 2 and 4 bits, linear int8 for 8. As [`GivenForm::Linear`] where a step is for some inputs.
    Palette,
    /// Linear int4 for 2 and 4 bits, linear int8 for 8.
    Linear,
}

impl GivenForm {
    /// The name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Palette => "palette",
            Self::Linear => "linear",
        }
    }

    /// The scheme that keeps these integers.
    pub fn scheme(self, given: Given) -> Scheme {
        match (self, given) {
            (Self::Palette, Given { nbits, block: None }) if nbits < 8 => Scheme::Palette {
                nbits,
                group: Grouping::Channels(1),
                form: PaletteForm::Scalar,
            },
            (_, Given { nbits, block }) => Scheme::Linear {
                nbits: if nbits <= 4 { 4 } else { 8 },
                block,
                range: IntRange::Full,
            },
        }
    }
}
