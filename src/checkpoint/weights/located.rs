//! Where a tensor is, and how it is stored.

use crate::checkpoint::stored::{Grid, StoredDType};

/// The steps of the int8 values that a linear layer of a quantization-aware checkpoint takes and gives: its input is rounded
/// to multiples of one, clipped to -128..127 of it, and so is its output. 0 where nothing is rounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActivationScales {
    /// Of the input.
    pub input: f32,
    /// Of the output.
    pub output: f32,
}

pub(super) struct Located {
    /// Name in the file, prefix included; that of its integers.
    pub full_name: String,
    pub file: usize,
    /// Of the numbers, or of the steps.
    pub dtype: StoredDType,
    pub shape: Vec<usize>,
    /// Where it is integers and steps.
    pub codes: Option<Codes>,
}

impl Located {
    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Bytes of the numbers, or of the integers and of the steps.
    pub fn bytes(&self) -> [usize; 2] {
        let elements = self.shape.iter().product::<usize>();
        match &self.codes {
            None => [elements * self.dtype.size(), 0],
            Some(codes) => {
                let rows = elements / self.columns().max(1);
                let steps = elements / codes.layout.grid.block;
                [rows * codes.layout.row_bytes, steps * self.dtype.size()]
            }
        }
    }
}

/// How the integers of a tensor lie in its file, and where its steps are.
pub(super) struct Codes {
    pub layout: Layout,
    /// Full name.
    pub steps: String,
    pub steps_file: usize,
}

/// How integers lie in rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub grid: Grid,
    /// As in [`Coded`](crate::checkpoint::stored::Coded).
    pub biased: bool,
    pub row_bytes: usize,
}
