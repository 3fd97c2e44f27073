//! Adapters: against what PEFT and mlx-lm make of the same checkpoint, what is refused, and what becomes of them in a bundle.

#[path = "../common/mod.rs"]
mod common;

mod bundles;
mod helpers;
mod refused;
mod values;
