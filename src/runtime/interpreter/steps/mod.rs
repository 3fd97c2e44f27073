//! Steps that do the work of several ops: attention over the keys that are seen, caches changed in place, parts of them.
//!
//! They are run here; `fuse` finds the ops that they stand for.

mod attend;
pub(crate) mod attention;
pub(crate) mod part;
pub(crate) mod update;
