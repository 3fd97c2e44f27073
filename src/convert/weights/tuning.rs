//! What statistics of the inputs do for one tensor.

use crate::quantize::compensate::spread;
use crate::quantize::{
    Compensation, GroupResult, Moments, Result, Scratch, SharedPalettes, palettize_compensated,
    palettize_group,
};
use half::f16;
use std::sync::Arc;

/// How the palettes of a tensor are fitted and its indices chosen. The default is by the weights alone.
#[derive(Debug, Clone, Default)]
pub(super) struct Tuning {
    /// Importance of each input.
    pub inputs: Option<Arc<[f32]>>,
    /// Importance of each row.
    pub rows: Option<Arc<[f32]>>,
    /// For error compensation.
    pub moments: Option<Arc<Moments>>,
    /// Its rounds of refinement.
    pub rounds: usize,
    /// Palettes of several widths, and the tensor's name among them; where none of the above is there.
    pub shared: Option<(Arc<SharedPalettes>, String)>,
}

impl Tuning {
    /// Whether palettes are fitted by the weights alone.
    pub fn is_by_weights(&self) -> bool {
        self.inputs.is_none() && self.rows.is_none() && self.moments.is_none()
    }

    /// Palettizes a group of whole rows of `inputs` weights, `first` being the first of them.
    pub fn palettize(
        &self,
        group: &[f16],
        (first, inputs): (usize, usize),
        nbits: u8,
        scratch: &mut Scratch,
        indices: &mut [u8],
    ) -> Result<GroupResult> {
        let Some(moments) = &self.moments else {
            if let (Some((palettes, tensor)), None, None) = (&self.shared, &self.inputs, &self.rows)
                && let Some(result) =
                    palettes.palettize((tensor, first), group, nbits, scratch, indices)
            {
                return result;
            }
            let importance = self.importance(first, group.len() / inputs, inputs);
            return palettize_group(group, nbits, importance.as_deref(), scratch, indices);
        };
        let with = Compensation {
            moments,
            importance: self.inputs.as_deref(),
            rows: self.rows_of(first, group.len() / inputs),
            rounds: self.rounds,
        };
        palettize_compensated(group, nbits, &with, scratch, indices)
    }

    /// Importance of the elements of `count` rows from row `first` on, or of each of the `inputs` where rows are alike.
    pub fn importance(&self, first: usize, count: usize, inputs: usize) -> Option<Vec<f32>> {
        spread(self.inputs.as_deref(), self.rows_of(first, count), inputs)
    }

    fn rows_of(&self, first: usize, count: usize) -> Option<&[f32]> {
        self.rows.as_deref()?.get(first..first + count)
    }
}
