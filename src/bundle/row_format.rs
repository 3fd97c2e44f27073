//! How the rows of a table are stored.

use serde::{Deserialize, Serialize};

/// How the rows of a table are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RowFormat {
    /// One signed byte a value, one fp16 scale a row: the published form.
    #[default]
    #[serde(rename = "rows-int8")]
    Int8,
    /// Half a byte a value, one fp16 scale a row.
    #[serde(rename = "rows-int4")]
    Int4,
    /// fp16 values.
    #[serde(rename = "rows-fp16")]
    Fp16,
}

impl RowFormat {
    /// Bytes of one row of `dim` values, without its scale.
    pub fn row_bytes(self, dim: usize) -> usize {
        match self {
            Self::Int8 => dim,
            Self::Int4 => dim.div_ceil(2),
            Self::Fp16 => dim * 2,
        }
    }
}
