//! How the rows of a table are stored: names, sizes.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::pack::packed_len;
use super::scheme::positive;

/// Values of a row that share a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowBlock {
    /// All.
    Row,
    /// This many consecutive ones; the last of a row may be fewer.
    Values(NonZeroUsize),
}

/// Bits of the integers of [`TableScheme::RowsSteps`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StepBits {
    /// -2 ..= 1.
    Two,
    /// -8 ..= 7.
    Four,
    /// -128 ..= 127.
    Eight,
}

impl StepBits {
    /// 2, 4 or 8.
    pub fn count(self) -> u8 {
        match self {
            StepBits::Two => 2,
            StepBits::Four => 4,
            StepBits::Eight => 8,
        }
    }
}

/// How the rows of an embedding table are stored. Written `rows-int8`, `rows-int4`, `rows-fp16`, `rows-int4-block32`,
/// `rows-int2-row`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub enum TableScheme {
    /// One int8 per element and an fp16 scale per row, 127 times the step: the published form.
    #[default]
    RowsInt8,
    /// Two int4 per byte and an fp16 scale per row, 7 times the step.
    RowsInt4,
    /// fp16, no scale.
    RowsFp16,
    /// Written `rows-int4-block32`, `rows-int4-row`: integers in two's complement and fp16 steps; a value is the product.
    RowsSteps {
        /// 2, 4 or 8.
        bits: StepBits,
        /// Who shares a step.
        block: RowBlock,
    },
}

impl TableScheme {
    /// Bytes of one row of `dim` values, without scales or steps: whole bytes, lowest bits first.
    pub fn row_bytes(self, dim: usize) -> usize {
        match self {
            TableScheme::RowsInt8 => dim,
            TableScheme::RowsInt4 => packed_len(dim, 4),
            TableScheme::RowsFp16 => dim * 2,
            TableScheme::RowsSteps { bits, .. } => packed_len(dim, bits.count()),
        }
    }

    /// fp16 scales or steps of one row of `dim` values.
    pub fn row_scales(self, dim: usize) -> usize {
        match self {
            TableScheme::RowsInt8 | TableScheme::RowsInt4 => 1,
            TableScheme::RowsFp16 => 0,
            TableScheme::RowsSteps { .. } => dim.div_ceil(self.block(dim)),
        }
    }

    /// Values of a row of `dim` that share a scale or step.
    pub fn block(self, dim: usize) -> usize {
        match self {
            TableScheme::RowsSteps {
                block: RowBlock::Values(n),
                ..
            } => n.get(),
            _ => dim.max(1),
        }
    }
}

impl fmt::Display for TableScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableScheme::RowsInt8 => f.write_str("rows-int8"),
            TableScheme::RowsInt4 => f.write_str("rows-int4"),
            TableScheme::RowsFp16 => f.write_str("rows-fp16"),
            TableScheme::RowsSteps { bits, block } => match (bits.count(), block) {
                (nbits, RowBlock::Row) => write!(f, "rows-int{nbits}-row"),
                (nbits, RowBlock::Values(n)) => write!(f, "rows-int{nbits}-block{n}"),
            },
        }
    }
}

impl FromStr for TableScheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "rows-int8" => return Ok(TableScheme::RowsInt8),
            "rows-int4" => return Ok(TableScheme::RowsInt4),
            "rows-fp16" => return Ok(TableScheme::RowsFp16),
            _ => {}
        }
        let wrong = |reason| Error::TableScheme {
            text: text.to_owned(),
            reason,
        };
        let rest = text.strip_prefix("rows-int");
        let (bits, block) = rest
            .and_then(|rest| rest.split_once('-'))
            .ok_or_else(|| wrong("no such format"))?;
        let bits = match bits {
            "2" => StepBits::Two,
            "4" => StepBits::Four,
            "8" => StepBits::Eight,
            _ => return Err(wrong("rows with steps have 2, 4 or 8 bits")),
        };
        let block = match block.strip_prefix("block") {
            _ if block == "row" => RowBlock::Row,
            Some(n) => RowBlock::Values(
                positive(n)
                    .and_then(NonZeroUsize::new)
                    .ok_or_else(|| wrong("the block size is not a positive number"))?,
            ),
            None => return Err(wrong("a step is shared by a block<size> or by the row")),
        };
        Ok(TableScheme::RowsSteps { bits, block })
    }
}

impl TryFrom<String> for TableScheme {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<TableScheme> for String {
    fn from(scheme: TableScheme) -> Self {
        scheme.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_as_they_parse() {
        for text in [
            "rows-int8",
            "rows-int4",
            "rows-fp16",
            "rows-int2-block256",
            "rows-int4-block32",
            "rows-int8-block1",
            "rows-int2-row",
            "rows-int4-row",
            "rows-int8-row",
        ] {
            assert_eq!(text.parse::<TableScheme>().unwrap().to_string(), text);
        }
        for (text, hint) in [
            ("int8", "no such format"),
            ("rows-int2", "no such format"),
            ("rows-int3-row", "2, 4 or 8 bits"),
            ("rows-int-row", "2, 4 or 8 bits"),
            ("rows-int04-row", "2, 4 or 8 bits"),
            ("rows-int4-rows", "shared by"),
            ("rows-int4-", "shared by"),
            ("rows-int4-block", "positive"),
            ("rows-int4-block0", "positive"),
            ("rows-int4-block+8", "positive"),
            ("rows-int4-block32-row", "positive"),
        ] {
            let message = text.parse::<TableScheme>().unwrap_err().to_string();
            assert!(message.contains(hint), "{text}: {message}");
            assert!(message.contains("rows-int{2,4,8}-block<size>"), "{message}");
        }
    }

    #[test]
    fn sizes_of_a_row() {
        for (text, dim, bytes, scales) in [
            ("rows-int8", 7, 7, 1),
            ("rows-int4", 7, 4, 1),
            ("rows-fp16", 7, 14, 0),
            ("rows-int2-row", 7, 2, 1),
            ("rows-int4-block1", 7, 4, 7),
            ("rows-int8-block7", 7, 7, 1),
            ("rows-int2-block256", 8960, 2240, 35),
            ("rows-int4-block32", 1536, 768, 48),
            ("rows-int4-block32", 280, 140, 9),
            ("rows-int4-block32", 31, 16, 1),
        ] {
            let scheme: TableScheme = text.parse().unwrap();
            assert_eq!(
                (scheme.row_bytes(dim), scheme.row_scales(dim)),
                (bytes, scales)
            );
        }
    }
}
