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

mod attention;
mod cache;
mod graph;
mod small;

use crate::runtime::interpreter::plan::Plan;

/// Fuses what can be proved equal.
pub(crate) fn apply(plan: &mut Plan) {
    cache::apply(plan);
    attention::apply(plan);
    small::apply(plan);
}
