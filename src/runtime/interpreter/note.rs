//! What fusion is told of an op while its arguments are at hand.

use super::args::OpArgs;
use super::ops::{region, slice_update_bounds};
use super::steps::part::Region;
use crate::mil::OpType;

/// What fusion needs to know of an op beside its type and operands.
#[derive(Clone, Debug)]
pub(crate) enum Note {
    /// Nothing.
    None,
    /// A slice of unit strides.
    Slice(Region),
    /// A plain concat along an axis.
    Concat(usize),
    /// A product, each side stored transposed or not.
    Matmul(bool, bool),
    /// A reduction of the last axis, which stays.
    ReduceLast,
    /// A layer norm over one axis, without gain and bias.
    Norm(usize, f32),
    /// A slice replaced, without masks or strides.
    SliceUpdate,
}

impl Note {
    /// Of an op with its arguments.
    pub fn of(args: &OpArgs<'_>) -> Self {
        Self::known(args).unwrap_or(Note::None)
    }

    fn known(args: &OpArgs<'_>) -> Option<Self> {
        let rank = |arg: &str| Some(args.ty(arg).ok()?.rank());
        Some(match args.op_type {
            OpType::SliceByIndex => Note::Slice(region(args)?),
            OpType::Concat if !args.bool("interleave").ok()? => {
                let rank = args.declared.first()?.rank();
                Note::Concat(args.axis("axis", args.int("axis").ok()?, rank).ok()?)
            }
            OpType::Matmul => Note::Matmul(
                args.bool("transpose_x").ok()?,
                args.bool("transpose_y").ok()?,
            ),
            OpType::ReduceMax | OpType::ReduceSum => {
                let chosen = args.chosen_axes("axes", rank("x")?).ok()?;
                let (last, others) = chosen.split_last()?;
                let fits = *last && !others.contains(&true) && args.bool("keep_dims").ok()?;
                fits.then_some(Note::ReduceLast)?
            }
            OpType::LayerNorm => {
                let bare = ["gamma", "beta"].iter().all(|arg| args.ty(arg).is_err());
                let axes = args.ints("axes").ok()??;
                match axes[..] {
                    [axis] if bare => Note::Norm(
                        args.axis("axes", axis, rank("x")?).ok()?,
                        args.float("epsilon").ok()?,
                    ),
                    _ => Note::None,
                }
            }
            OpType::SliceUpdate if slice_update_bounds(args) => Note::SliceUpdate,
            _ => Note::None,
        })
    }
}
