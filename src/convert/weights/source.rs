//! Fills the constants of a package from the checkpoint.

use super::input::Input;
use super::levers::Levers;
use super::stream::stream;
use super::tile::Buffers;
use super::tuning::Tuning;
use crate::bundle::provenance::TensorRecord;
use crate::checkpoint::Checkpoint;
use crate::convert::decide::{ByConst, Resolved, matrix, tensor_record};
use crate::convert::error::Error;
use crate::mil::DeferredConst;
use crate::package::{BoxError, ConstSource, PartSink, Storage};
use crate::progress::Progress;
use crate::quantize::{ErrorStats, SharedPalettes};
use std::sync::Arc;

/// The weights of one package: what the writer asks for, and a record of each.
pub(in crate::convert) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    levers: Option<Levers<'a>>,
    palettes: Option<Arc<SharedPalettes>>,
    by_const: ByConst<'a>,
    buffers: Buffers,
    progress: &'a dyn Progress,
    /// One per constant, in the order they were streamed.
    pub records: Vec<TensorRecord>,
    /// Our own error, when that is what stopped the writer.
    pub failed: Option<Error>,
}

impl<'a> Weights<'a> {
    pub fn new(
        checkpoint: &'a Checkpoint,
        weights: &'a [Resolved],
        levers: Option<Levers<'a>>,
        progress: &'a dyn Progress,
    ) -> Self {
        Self {
            checkpoint,
            levers,
            palettes: None,
            by_const: ByConst::new(weights),
            buffers: Buffers::default(),
            progress,
            records: Vec::new(),
            failed: None,
        }
    }

    /// Takes palettes that need no statistics from `palettes`.
    pub fn with_palettes(mut self, palettes: Option<Arc<SharedPalettes>>) -> Self {
        self.palettes = palettes;
        self
    }

    fn fill(&mut self, weight: &Resolved, sink: &mut dyn PartSink) -> Result<(), BoxError> {
        let binding = &weight.binding;
        let view = self
            .checkpoint
            .tensor(&binding.tensor, &binding.source_shape)
            .map_err(Error::from)?;
        self.progress.item(&binding.tensor);
        let (factors, tuning) = match &mut self.levers {
            Some(levers) => levers.of(weight)?,
            None => Default::default(),
        };
        // Other recipes may have another factor.
        let plain = self.levers.is_none() && weight.factor == 1.0;
        let shared = self.palettes.clone().filter(|_| plain);
        let shared = shared.map(|palettes| (palettes, binding.tensor.clone()));
        let tuning = Tuning { shared, ..tuning };
        let [outputs, inputs] = matrix(binding);
        let factors = factors.times(weight.factor, outputs);
        let input = Input::new(view, inputs, factors);
        let write = &mut |part, bytes: &[u8]| sink.write(part, bytes);
        let buffers = &mut self.buffers;
        let (stats, grid) = stream(&input, weight, &tuning, buffers, self.progress, write)?;
        let record = record(weight, &stats);
        self.records.push(TensorRecord { grid, ..record });
        Ok(())
    }
}

impl ConstSource for Weights<'_> {
    fn storage(&self, c: &DeferredConst) -> Result<Storage, BoxError> {
        Ok(self.by_const.find(c)?.storage.clone())
    }

    fn stream(&mut self, c: &DeferredConst, sink: &mut dyn PartSink) -> Result<(), BoxError> {
        let weight = self.by_const.find(c)?;
        self.fill(weight, sink)
            .map_err(|e| match e.downcast::<Error>() {
                Ok(ours) => {
                    let message = ours.to_string();
                    self.failed = Some(*ours);
                    message.into()
                }
                Err(other) => other,
            })
    }
}

fn record(weight: &Resolved, stats: &ErrorStats) -> TensorRecord {
    tensor_record(
        &weight.binding.tensor,
        &weight.package,
        (weight.scheme.to_string(), weight.reason.clone()),
        (weight.elements, weight.bytes),
        stats,
    )
}
