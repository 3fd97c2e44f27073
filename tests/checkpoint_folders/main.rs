//! Folders as fine-tuners, trainers and downloads leave them: what is read from them, and what is said where nothing can be.
//!
//! Ids are those of transformers 5.23 on the same folder (float32, CPU, greedy).

#[path = "../snapshots/mod.rs"]
mod snapshots;

mod adapters;
mod configs;
mod folders;
mod heads;
mod helpers;
mod names;
mod weights;
