//! Elements of either form.

use super::coded::Coded;
use super::dtype::StoredDType;

/// Elements as they lie in a file.
#[derive(Debug, Clone, Copy)]
pub(in crate::checkpoint) enum Raw<'a> {
    /// Numbers.
    Plain { dtype: StoredDType, bytes: &'a [u8] },
    /// Integers and their steps.
    Coded(Coded<'a>),
}

impl Raw<'_> {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain { dtype, bytes } => bytes.len() / dtype.size(),
            Self::Coded(coded) => coded.len(),
        }
    }

    /// Elements from `start` on as f32; those beyond the end are 0.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        match self {
            Self::Plain { dtype, bytes } => dtype.read(bytes, start, out),
            Self::Coded(coded) => coded.read(start, out),
        }
    }

    /// One element as f32, 0 beyond the end.
    pub fn get(&self, index: usize) -> f32 {
        let mut value = [0.0];
        self.read(index, &mut value);
        value[0]
    }
}
