//! Number formats: palettes, linear integers, packing, row tables. Slices in, slices out.
//!
//! A weight tensor is row-major, output channels first. What leaves this room is what the weight
//! file holds: look-up tables of `2^nbits` fp16 values (ascending, unused entries 0 at the end),
//! indices as one little-endian bit stream over the whole tensor (element `i` at bit `i * nbits`),
//! int8 or int4 values with fp16 scales. Names, shapes of blobs and op types are the package's.
//!
//! Palettes of single weights are exact: [`kmeans`] finds the optimal 1-D k-means over the histogram of a group's fp16
//! values, for any group size, any width and any importance. Palettes of vectors ([`vector`]) are the best
//! of several starts of Lloyd's iteration.

pub mod budget;
pub mod compensate;
pub mod error;
pub mod fold;
pub mod fp16;
pub mod grid;
pub mod histogram;
pub mod kmeans;
pub mod linear;
pub mod moments;
pub mod pack;
pub mod palette;
mod scaled;
pub mod scheme;
mod shared;
pub mod sparse;
pub mod stats;
mod sums;
pub mod table;
pub mod table_scheme;
pub mod vector;
mod wide;

pub use compensate::{Compensation, palettize_compensated};
pub use error::{Error, Result};
pub use fp16::narrow;
pub use histogram::Histogram;
pub use moments::Moments;
pub use pack::{BitPacker, pack, packed_len, unpack};
pub use palette::{GroupResult, Lut, Scratch, palettize_group};
pub use scaled::{ScaledLuts, scale_luts};
pub use scheme::{Grouping, IntRange, PaletteForm, Scheme};
pub use shared::SharedPalettes;
pub use sparse::palettize_sparse;
pub use stats::ErrorStats;
pub use table_scheme::{RowBlock, StepBits, TableScheme};
pub use vector::palettize_vectors;
