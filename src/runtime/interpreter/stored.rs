//! The weights of a package without its arithmetic: what the constants of a function hold, decoded on demand.

use super::planner;
use crate::package::ReadFunction;
use crate::runtime::kernels::kernel::Kernel;
use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::tensor::elements;
use crate::runtime::weights::constant::Constant;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Values that are worth a thread of their own.
const VALUES_PER_TASK: usize = 1 << 14;

/// The constants of a function by name, as ops see them: results of `const` and constexpr ops. The bytes stay in the mapped
/// file, and are decoded by the same code that the interpreter runs.
#[derive(Debug)]
pub struct StoredWeights {
    constants: BTreeMap<String, Arc<Constant>>,
}

impl StoredWeights {
    /// The constants of a function.
    ///
    /// # Errors
    /// A constant whose parts do not fit together.
    pub fn of(function: &ReadFunction) -> Result<Self> {
        let constants = planner::constants(function)?;
        Ok(Self { constants })
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.constants.keys().map(String::as_str)
    }

    /// Shape of a constant; `None` where there is none of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.constants.get(name).map(|c| c.ty().shape.as_slice())
    }

    /// Whether a constant is a weight that is multiplied without being decoded as a whole: a constexpr result, or fp16 of rank
    /// 2 and more.
    pub fn is_weight(&self, name: &str) -> bool {
        self.constants
            .get(name)
            .is_some_and(|c| c.weight().is_some())
    }

    /// The products of all rows of a weight (its first dim; the others are columns) with `vectors` vectors, one after another
    /// in `x`, into `out`: row-major `[rows, vectors]`. As the interpreter computes them, on the calling thread.
    ///
    /// # Errors
    /// [`Error::UnknownValue`] where [`StoredWeights::is_weight`] is false; [`Error::TensorLength`] when `x` or `out` is of
    /// another length.
    pub fn multiply(
        &self,
        name: &str,
        kernel: Kernel,
        x: &[f32],
        vectors: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let weight = self.constants.get(name).and_then(|c| c.weight());
        let weight = weight.ok_or_else(|| Error::UnknownValue(name.to_owned()))?;
        weight.multiply_all(kernel, x, vectors, out)
    }

    /// Elements from `start` on, row-major, into `out`: one group of rows of a matrix, say.
    ///
    /// # Errors
    /// [`Error::UnknownValue`]; [`Error::TensorLength`] when `out` reaches past the end.
    pub fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<()> {
        let unknown = || Error::UnknownValue(name.to_owned());
        let constant = self.constants.get(name).ok_or_else(unknown)?;
        let shape = &constant.ty().shape;
        let total = elements(shape).unwrap_or(0);
        let end = start.saturating_add(out.len());
        if end > total {
            return Err(Error::TensorLength {
                shape: shape.clone(),
                expected: total,
                got: end,
            });
        }
        let Some(weight) = constant.weight() else {
            let dense = constant.dense().as_f32()?;
            out.copy_from_slice(&dense[start..end]);
            return Ok(());
        };
        let cols = weight.cols().max(1);
        let (first, skip) = (start / cols, start % cols);
        if skip != 0 || !out.len().is_multiple_of(cols) {
            // A part of rows: rare, so that decoding too much does not matter.
            let rows = end.div_ceil(cols) - first;
            let mut whole = vec![0.0; rows * cols];
            for (i, row) in whole.chunks_exact_mut(cols).enumerate() {
                weight.decode_row(first + i, row);
            }
            out.copy_from_slice(&whole[skip..skip + out.len()]);
            return Ok(());
        }
        let rows = (VALUES_PER_TASK / cols).max(1);
        let tasks = out.par_chunks_mut(rows * cols).enumerate();
        tasks.for_each(|(task, part)| {
            for (i, row) in part.chunks_exact_mut(cols).enumerate() {
                weight.decode_row(first + task * rows + i, row);
            }
        });
        Ok(())
    }
}
