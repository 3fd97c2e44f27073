//! Conversion of real (small) checkpoints: determinism, bad input, crashes, values read back, archives.

mod activations;
mod archive;
mod calibrated;
#[path = "../common/mod.rs"]
mod common;
mod coremltools;
mod crash;
mod determinism;
mod faults;
#[cfg(unix)]
mod forecast;
mod grid;
mod helpers;
#[cfg(all(unix, debug_assertions))]
mod kills;
mod opening;
mod rewrite;
mod sharding;
mod steps;
mod tables;
mod values;
