//! What can go wrong with a slice of numbers. The caller adds the tensor's name.

use thiserror::Error;

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// A quantization that cannot be done as asked.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Error {
    /// The text is not a weight scheme.
    #[error(
        "unknown scheme \"{text}\": {reason}; expected fp16, palette{{1,2,3,4,6,8}}-g<channels>, \
         palette{{1,2,3,4,6,8}}-tensor, either with -v2, -v4, \
         -sparse<percent> or -lut8, int{{4,8}}-channel or int{{4,8}}-block<size>, either with -full"
    )]
    Scheme {
        /// What was given.
        text: String,
        /// Which part of it is wrong.
        reason: &'static str,
    },
    /// The text is not a row-table scheme.
    #[error(
        "unknown table scheme \"{text}\": {reason}; expected rows-int8, rows-int4, rows-fp16, \
         rows-int{{2,4,8}}-block<size> or rows-int{{2,4,8}}-row"
    )]
    TableScheme {
        /// What was given.
        text: String,
        /// Which part of it is wrong.
        reason: &'static str,
    },
    /// A bit width that has no Core ML type.
    #[error("{nbits} bits per weight: expected 1, 2, 3, 4, 6 or 8")]
    Bits {
        /// What was given.
        nbits: u8,
    },
    /// A width that integers with scales do not have.
    #[error("integers of {nbits} bits: expected 4 or 8")]
    LinearBits {
        /// What was given.
        nbits: u8,
    },
    /// A vector length that no palette has.
    #[error("vectors of {vector} weights: expected 2 or 4")]
    VectorSize {
        /// What was given.
        vector: usize,
    },
    /// Channels (or inputs) that do not split into whole groups (or blocks).
    #[error("{len} {what} do not divide into groups of {group}")]
    NotDivisible {
        /// "output channels", "input channels" or "channels of a group", "weights of a group".
        what: &'static str,
        /// Length of the axis.
        len: usize,
        /// Size asked for.
        group: usize,
    },
    /// NaN or infinity among the weights.
    #[error("element {index} is {value}, expected a finite number")]
    NotFinite {
        /// Position in the slice given.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A finite weight that rounds to an fp16 infinity.
    #[error("element {index} is {value}, beyond the fp16 range of ±65504")]
    Fp16Range {
        /// Position in the slice given.
        index: usize,
        /// The value.
        value: f32,
    },
    /// An importance that is negative, NaN or infinite.
    #[error("importance {index} is {value}, expected a finite number, zero or above")]
    Importance {
        /// Position in the importance slice.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A buffer or a parallel slice of the wrong length.
    #[error("{what}: expected length {expected}, got {got}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Length needed.
        expected: usize,
        /// Length given.
        got: usize,
    },
    /// Values of a palette that are not ascending, or a weight that is not above zero.
    #[error("bin {index}: expected finite values, strictly ascending, with weights above zero")]
    Bin {
        /// Position of the bin.
        index: usize,
    },
    /// A byte budget that is too small.
    #[error("a budget of {budget} bytes: at least {least} are needed")]
    Budget {
        /// Bytes of the smallest choices.
        least: u64,
        /// The budget.
        budget: u64,
    },
    /// Second moments that no inputs have.
    #[error("the {n} x {n} second moments are not positive definite, however much they are damped")]
    NotPositive {
        /// Number of inputs.
        n: usize,
    },
    /// Nothing to quantize.
    #[error("an empty group has no palette")]
    Empty,
    /// More elements than a bin can count.
    #[error("a group of more than {max} elements cannot share one histogram")]
    TooLarge {
        /// The most a histogram takes.
        max: u64,
    },
    /// Some elements were counted without an importance and some with one.
    #[error("a histogram is either weighted by importance or not, never in part")]
    MixedImportance,
    /// A value to pack that needs more bits than the width has; of a negative one its byte.
    #[error("value {value} at {index} does not fit {nbits} bits")]
    PackRange {
        /// Position in the slice given.
        index: usize,
        /// The value.
        value: u8,
        /// Bits per value.
        nbits: u8,
    },
}
