//! What a token reads of a weight.

use crate::runtime::kernels::codec::RowCoding;

/// A weight that every token is multiplied with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightUse {
    /// How it is stored: `palette4`, `fp16`, `int8`; other forms, which are decoded first, as `blocks` or `sparse`.
    pub coding: String,
    /// Its elements.
    pub elements: u64,
    /// Its bytes: data, LUTs, scales and masks.
    pub bytes: u64,
    /// Whether a kernel multiplies it as it is stored, and how it is coded then.
    pub(crate) direct: Option<RowCoding>,
}
