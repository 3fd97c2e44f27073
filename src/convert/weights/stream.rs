//! Streams one weight through the quantizer of its scheme.

use super::input::Input;
use super::tile::{Buffers, Sink, Stopped, Tiler};
use super::tuning::Tuning;
use crate::bundle::provenance::GridRecord;
use crate::convert::decide::{Resolved, matrix};
use crate::convert::limits::TILE;
use crate::progress::Progress;
use crate::quantize::{ErrorStats, Grouping, IntRange, PaletteForm, Scheme};

/// What streaming tells of a weight: its errors, and what became of integers and steps that the scheme was to keep.
pub(super) type Streamed = (ErrorStats, Option<GridRecord>);

/// Streams `input` in the scheme that `resolved` names; returns the error against the checkpoint's values (fp16) or
/// against the values rounded to fp16 (the other schemes).
pub(super) fn stream(
    input: &Input<'_>,
    resolved: &Resolved,
    tuning: &Tuning,
    buffers: &mut Buffers,
    progress: &dyn Progress,
    sink: Sink<'_>,
) -> std::result::Result<Streamed, Stopped> {
    let [outputs, inputs] = matrix(&resolved.binding);
    let mut tiler = Tiler {
        input,
        tuning,
        buffers,
        progress,
        sink,
    };
    let scheme = resolved.scheme;
    let stats = match scheme {
        Scheme::Fp16 => tiler.fp16(),
        Scheme::Palette { nbits, group, form } => {
            if let Some(grid) = tiler.given(scheme).filter(|_| tuning.is_by_weights()) {
                return tiler.given_palettes(scheme, nbits, grid);
            }
            let length = match group {
                Grouping::Tensor => outputs * inputs,
                Grouping::Channels(n) => n * inputs,
            };
            match form {
                PaletteForm::Scalar if length > TILE => tiler.large_groups(nbits, length),
                PaletteForm::Scalar => tiler.groups(nbits, length),
                PaletteForm::Vector(size) if length > TILE => {
                    tiler.large_vector_groups((nbits, size), length, inputs)
                }
                PaletteForm::Vector(size) => tiler.vector_groups((nbits, size), length, inputs),
                PaletteForm::Sparse(percent) if length > TILE => {
                    tiler.large_sparse_groups((nbits, percent), length)
                }
                PaletteForm::Sparse(percent) => tiler.sparse_groups((nbits, percent), length),
                PaletteForm::Lut8 => tiler.scaled_groups(nbits, length),
            }
        }
        Scheme::Linear {
            nbits,
            block,
            range: IntRange::Full,
        } => return tiler.full(scheme, nbits, block),
        Scheme::Linear { nbits, block, .. } => tiler.linear(nbits, inputs, block.unwrap_or(inputs)),
    };
    Ok((stats?, None))
}
