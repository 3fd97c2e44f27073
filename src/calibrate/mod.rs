//! Statistics of what goes into every linear layer of a model, measured with the f32 reference.
//!
//! [`calibrate`] runs a checkpoint over a text, layer by layer, and writes a [`Stats`] file: for every distinct input of a
//! linear layer (a *site*; q, k and v share one, gate and up share one) second moments, means of magnitudes, the range, a
//! histogram of magnitudes, and on request the whole matrix of second moments. Quantizers weigh errors with them, and scales
//! of activations come from them.
//!
//! The file is safetensors. With `S` the name of a site's first tensor (without prefix) and `n` the width of its vectors:
//!
//! | tensor | shape | dtype | content |
//! |---|---|---|---|
//! | `S.second_moment` | `[n]` | f32 | mean over rows of `x_j^2` |
//! | `S.mean_abs` | `[n]` | f32 | mean over rows of `abs(x_j)` |
//! | `S.range` | `[2]` | f32 | least and largest value |
//! | `S.histogram` | `[BINS]` | u64 | how many values have a magnitude in each bin of [`histogram`] |
//! | `S.moments` | `[n, n]` | f32 | mean over rows of `x x^T`; in a full file only |
//!
//! `__metadata__` holds strings: `format`, `tool`, `checkpoint` (fingerprint), `tokens`, `sequences`, `ids_sha256`, `source`
//! (`text` or `noise`), `full`, and `sites`, a JSON object from every linear layer's tensor to `S`.
//!
//! A row is a token, except in the layers of experts: there each expert's rows are the tokens that the router gave it, and
//! all experts of a layer are one site.

mod collect;
mod error;
pub mod histogram;
mod run;
mod sites;
mod stats;
mod text;
mod write;

pub use error::{Error, Result};
pub use run::{DEFAULT_NOISE, NOISE_SCALE, Options, Source, calibrate};
pub use stats::{InputStats, Moments, Stats};
pub use text::{Framing, TextOptions, sequences};

/// What `format` in the metadata of a file says.
const FORMAT: &str = "gemma-coreml calibration 1";
/// Ends of the names of a site's vectors, and of its matrix.
const SECOND_MOMENT: &str = "second_moment";
const MEAN_ABS: &str = "mean_abs";
const RANGE: &str = "range";
const HISTOGRAM: &str = "histogram";
const MOMENTS: &str = "moments";

/// Lower-case hex of `bytes`.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
