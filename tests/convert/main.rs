//! Conversion of real (small) checkpoints: determinism, bad input, crashes, values read back, archives.

mod archive;
mod crash;
mod determinism;
mod faults;
mod helpers;
mod opening;
mod values;
