//! Checkpoints of integers and steps: compressed-tensors and transformers' `gemma` method. Fixtures, logits and packed words are
//! those of the two libraries (fixtures/make_qat.py).

#[path = "../snapshots/mod.rs"]
mod snapshots;

mod adapters;
mod configs;
mod heads;
mod helpers;
mod packing;
mod parts;
mod program;
mod values;
