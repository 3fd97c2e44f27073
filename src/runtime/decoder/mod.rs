//! The decode loop: the functions of a bundle's packages wired into chains, fed with tokens, their caches, and the choice of
//! the next token.
//!
//! May use all other rooms of the runtime: `interpreter`, `weights`, `values`, `kernels`.

mod caches;
pub(crate) mod chain;
pub(crate) mod decode;
mod functions;
pub mod generate;
mod host;
pub mod sampling;
pub(crate) mod spec;
mod team;
