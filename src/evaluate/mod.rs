//! Parity and quality figures: cosines, KL, token agreement, reports.
//!
//! A [`Subject`] is fed token by token: a bundle on the CPU runtime ([`BundleSubject`]) or a checkpoint in f32
//! ([`ReferenceSubject`]). What it computed over a prompt is a [`Trace`], read from and written to files by
//! [`reference_file`]. [`parity`] compares traces; [`text`] compares two models over a text; [`batched`] runs a bundle's weights
//! over many tokens at once.

pub mod batched;
mod error;
mod exact_rows;
pub mod metrics;
mod models;
pub mod parity;
pub mod reference_file;
pub mod subject;
pub mod text;
mod trace;

pub use error::{Error, Result};
pub use exact_rows::ExactRows;
pub use models::{BundleSubject, ReferenceSubject, RowSource, is_unquantized, open_decoder};
pub use subject::Subject;
pub use trace::{Hidden, Rows, Trace, argmax};
