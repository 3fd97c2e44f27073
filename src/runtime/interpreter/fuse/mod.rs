//! What the planner runs as one step: attention over the keys that the mask shows, cache updates in place, RMS norms, RoPE.
//!
//! A form is recognised by what its ops do, not by their names. Nothing is fused across a value that the caller keeps or
//! that anything else reads, and only in f32: f16 rounds the result of every op.
//!
//! | fused | equal to the ops one by one |
//! |---|---|
//! | attention, standard and Flash | to the bit, but for the sign of zeros |
//! | cache updates (shift, scatter, in place) | to the bit, but for the sign of zeros |
//! | RoPE | to the bit |
//! | RMS norm | up to one unit in the last place: the mean of `[x, -x]` is taken as 0, sums of squares have another order |

mod attend;
mod attention;
mod cache;
mod graph;
mod small;

use crate::mil::OpType;
use crate::runtime::interpreter::args::OpArgs;
use crate::runtime::interpreter::ops::{region, slice_update_bounds};
use crate::runtime::interpreter::plan::Plan;

pub(crate) use attention::{Attention, Located, Operands};
pub(crate) use cache::{CachePlan, Source, Update};

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

/// A part of a tensor: from `begin` on, in extents `size`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub begin: Vec<usize>,
    pub size: Vec<usize>,
}

impl Region {
    /// All of a tensor of this shape.
    pub fn all(shape: &[usize]) -> Self {
        Self {
            begin: vec![0; shape.len()],
            size: shape.to_vec(),
        }
    }

    /// A part of this part.
    pub fn part(&self, inner: &Region) -> Self {
        let begin = self.begin.iter().zip(&inner.begin);
        Self {
            begin: begin.map(|(a, b)| a + b).collect(),
            size: inner.size.clone(),
        }
    }
}

/// Where a part lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// In a value.
    Value(usize),
    /// In a cache. Rows that a step appends come behind those that it found.
    Cache(usize),
}

/// A part of a value or of a cache, not copied.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub base: Base,
    pub region: Region,
}

impl Part {
    /// A part of this part.
    pub fn part(&self, inner: &Region) -> Self {
        Self {
            base: self.base,
            region: self.region.part(inner),
        }
    }
}

/// Fuses what can be proved equal.
pub(crate) fn apply(plan: &mut Plan) {
    cache::apply(plan);
    attention::apply(plan);
    small::apply(plan);
}
