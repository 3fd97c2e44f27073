//! What can stop an allocation.

use std::path::PathBuf;

/// Result of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this room; the name of the thing is in the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint, the recipe, the statistics, or a tensor that cannot be quantized.
    #[error(transparent)]
    Convert(Box<crate::convert::Error>),
    /// Running the model over the text; files.
    #[error(transparent)]
    Run(Box<crate::sweep::Error>),
    /// The recipe that was made is not one: a name that recipes cannot have.
    #[error(transparent)]
    Recipe(#[from] crate::recipe::Error),
    /// Nothing in the recipe has a width to choose.
    #[error(
        "recipe {recipe}: no weight has a palette of single weights, so there is no width to choose\n\
         hint: give it `default = \"palette3-g32\"`, say"
    )]
    NothingToChoose {
        /// Its name.
        recipe: String,
    },
    /// The recipe leaves the widths to the checkpoint.
    #[error(
        "recipe {recipe}: `given` keeps the checkpoint's own widths, so there is none to choose\n\
         hint: leave `given` out"
    )]
    WidthsGiven {
        /// Its name.
        recipe: String,
    },
    /// A width that no palette has.
    #[error("width {bits}: a palette has 1, 2, 3, 4, 6 or 8 bits")]
    Width {
        /// What was asked.
        bits: u8,
    },
    /// No widths at all.
    #[error("no widths to choose from")]
    NoWidths,
    /// A tensor with a choice that was not measured, or not at the width that it has.
    #[error("tensor {tensor}: not measured with this recipe")]
    NotMeasured {
        /// Its name.
        tensor: String,
    },
    /// The smallest widths need more than there is.
    #[error(
        "a budget of {asked} is too small: with the least width of every tensor the weights need {least_bytes} bytes, \
         {least_bits:.4} bits per weight\n\
         hint: give a larger budget, smaller widths, or a recipe with larger groups or fewer weights in fp16"
    )]
    Budget {
        /// What was asked.
        asked: super::Budget,
        /// Bytes of all weight files with the least widths.
        least_bytes: u64,
        /// Bits per weight with the least widths.
        least_bits: f64,
    },
    /// A budget that is no number above zero.
    #[error("{bits} bits per weight: expected a number above 0")]
    BitsPerWeight {
        /// What was asked.
        bits: f64,
    },
    /// The logits were not finite with this tensor quantized.
    #[error("tensor {tensor}: the divergence with {bits} bits is {kl}")]
    NotFinite {
        /// Its name.
        tensor: String,
        /// Its width.
        bits: u8,
        /// The divergence.
        kl: f64,
    },
    /// The recipe that was made gives a tensor something else than was chosen.
    #[error(
        "tensor {tensor}: the recipe gives it {got}, chosen was {expected}\n\
         hint: a rule of the recipe gives the tensor different schemes in different packages"
    )]
    Unexpressed {
        /// Its name.
        tensor: String,
        /// What was chosen.
        expected: String,
        /// What the recipe gives.
        got: String,
    },
    /// Measurements of something else, or no measurements.
    #[error(
        "{}: {message}\nhint: remove the file, or name another one, to measure anew", path.display()
    )]
    Measurements {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The output is there already.
    #[error("{}: is there already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
}

impl From<crate::convert::Error> for Error {
    fn from(e: crate::convert::Error) -> Self {
        Error::Convert(Box::new(e))
    }
}

impl From<crate::sweep::Error> for Error {
    fn from(e: crate::sweep::Error) -> Self {
        Error::Run(Box::new(e))
    }
}
