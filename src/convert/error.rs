//! What can stop a conversion.

use std::path::PathBuf;

/// Result of conversion.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a conversion stopped. What was finished before is kept beside the output unless nothing was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint cannot be read, or holds something it should not.
    #[error(transparent)]
    Checkpoint(Box<crate::checkpoint::Error>),
    /// The checkpoint is not the model that its config describes.
    #[error(transparent)]
    Model(Box<crate::gemma::Error>),
    /// The recipe is wrong, or a rule of it matches nothing.
    #[error(transparent)]
    Recipe(#[from] crate::recipe::Error),
    /// The model has no graph in this layout.
    #[error(transparent)]
    Graph(#[from] crate::graph::Error),
    /// Files of the bundle could not be written or do not open.
    #[error(transparent)]
    Bundle(#[from] crate::bundle::Error),
    /// A package could not be written.
    #[error("{package}: {source}")]
    Package {
        /// The package.
        package: String,
        /// The writer's reason.
        source: Box<crate::package::Error>,
    },
    /// A tensor cannot be quantized.
    #[error("tensor {tensor}, from element {start}: {source}")]
    Quantize {
        /// Name without prefix.
        tensor: String,
        /// Where the group or row begins, row-major.
        start: usize,
        /// What is wrong with it.
        source: crate::quantize::Error,
    },
    /// A scheme does not fit a tensor's shape and the recipe names no other.
    #[error(
        "tensor {tensor} {shape:?}: scheme {scheme} does not fit: {source}\n\
         hint: give it another scheme with a rule, or set `otherwise` in the recipe's [quantize]"
    )]
    DoesNotFit {
        /// Name without prefix.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The scheme chosen for it.
        scheme: crate::quantize::Scheme,
        /// Which axis does not divide.
        source: crate::quantize::Error,
    },
    /// A key of the recipe that does nothing for a scheme.
    #[error(
        "tensor {tensor}: `{key}` is not for {scheme}\n\
         hint: give the tensor another scheme with a rule, or leave `{key}` out"
    )]
    NotForScheme {
        /// HF name.
        tensor: String,
        /// Its scheme.
        scheme: crate::quantize::Scheme,
        /// The key.
        key: &'static str,
    },
    /// Error compensation, and importance of vectors and pruned weights, work on whole groups in memory.
    #[error(
        "tensor {tensor}: a palette for {length} weights cannot be tuned this way, at most {most}\n\
         hint: give it groups of channels with a rule"
    )]
    LargeGroup {
        /// HF name.
        tensor: String,
        /// Weights that share the palette.
        length: usize,
        /// The most that fit.
        most: usize,
    },
    /// Statistics without matrices, where compensation needs them.
    #[error(
        "{path}: no second moments of the inputs of {tensor}, which `compensate` needs\n\
         hint: `calibrate --full` stores them"
    )]
    NoMoments {
        /// The statistics.
        path: PathBuf,
        /// HF name.
        tensor: String,
    },
    /// Statistics of another checkpoint.
    #[error(
        "{path}: statistics of another checkpoint: expected {expected}, they were measured on {got}"
    )]
    OtherCalibration {
        /// The statistics.
        path: PathBuf,
        /// Fingerprint of the checkpoint that is converted.
        expected: String,
        /// The one in the statistics.
        got: String,
    },
    /// Statistics that are unreadable, or have none for a tensor.
    #[error(transparent)]
    Calibration(#[from] crate::calibrate::Error),
    /// A recipe that needs statistics, and none.
    #[error(
        "recipe {recipe}: `{key}` needs statistics of a calibration\n\
         hint: `gemma-coreml calibrate MODEL --text FILE -o stats.safetensors`, then --calibration stats.safetensors"
    )]
    NoCalibration {
        /// The recipe.
        recipe: String,
        /// Its key.
        key: &'static str,
    },
    /// An input whose int8 scale is beyond fp16.
    #[error(
        "tensor {tensor}: its input reaches {largest}: an int8 scale is beyond the range of fp16 (65504)"
    )]
    ActivationRange {
        /// HF name.
        tensor: String,
        /// The largest magnitude of its range.
        largest: f32,
    },
    /// A recipe that does not say what becomes of the steps of activations that the checkpoint has.
    #[error(
        "the checkpoint was trained with int8 activations around {layers} linear layers, which are a part of the model: without \
         them it is much worse on long answers (86 % against 48 % of GSM8K where it was measured). Recipe {recipe}{asked} would \
         leave them out\n\
         hint: take the recipe `qat-mobile`, or put `activations = {{ ranges = \"checkpoint\" }}` in [quantize]; \
         {{ ranges = \"none\" }} leaves them out all the same"
    )]
    ActivationsLeftOut {
        /// Its name.
        recipe: String,
        /// How many linear layers have a step.
        layers: usize,
        /// What it has instead, as part of the sentence.
        asked: String,
    },
    /// A step of activations that fp16 cannot hold, or whose reciprocal it cannot.
    #[error(
        "tensor {tensor}: the step {step} of its {of} is beyond what fp16 holds (about 0.0000153 to 16384)\n\
         hint: is the checkpoint damaged?"
    )]
    ActivationStep {
        /// HF name.
        tensor: String,
        /// `input` or `output`.
        of: &'static str,
        /// The step.
        step: f32,
    },
    /// A value that leaves the range of fp16 by its fold.
    #[error(
        "tensor {tensor}, element {element}: {value} times the factor {factor} of its fold is beyond the range of fp16 (65504)\n\
         hint: a recipe without `scale`, or with activations in the form \"quantize\", does not fold"
    )]
    FoldRange {
        /// HF name.
        tensor: String,
        /// Position in the tensor.
        element: usize,
        /// The value.
        value: f32,
        /// The factor.
        factor: f32,
    },
    /// Integers of the checkpoint whose products with their step are beyond fp16.
    #[error(
        "tensor {tensor}, from element {element}: integers times their step of {step} are beyond the range of fp16 (65504)"
    )]
    StepRange {
        /// HF name.
        tensor: String,
        /// Where the group begins.
        element: usize,
        /// The step, with the factor of its row.
        step: f64,
    },
    /// A row of a table, once scaled, is beyond fp16.
    #[error(
        "tensor {tensor}: row {row}: {value} times {factor} is beyond the range of fp16 (65504)"
    )]
    RowRange {
        /// Name without prefix.
        tensor: String,
        /// The row (token id).
        row: usize,
        /// Its largest magnitude.
        value: f32,
        /// What readers multiply it by.
        factor: f64,
    },
    /// The output holds a bundle of something else, so that none of it can be kept.
    #[error(
        "{path}: {what}: expected {expected}, the bundle there has {got}\n\
         hint: ask for it to be replaced; then everything is converted anew"
    )]
    OtherBundle {
        /// The output.
        path: PathBuf,
        /// `recipe`, `checkpoint` or `tool`.
        what: &'static str,
        /// What this conversion has.
        expected: String,
        /// What the bundle was made with.
        got: String,
    },
    /// There is no bundle whose package could be rebuilt.
    #[error(
        "{path}: no bundle there to rebuild `{package}` of\nhint: convert the whole model first"
    )]
    NoBundle {
        /// The output.
        path: PathBuf,
        /// The package asked for.
        package: String,
    },
    /// The bundle has no package of that name.
    #[error("no package `{package}`\nhint: the bundle has {}", .known.join(", "))]
    NoSuchPackage {
        /// What was asked for.
        package: String,
        /// Names there are.
        known: Vec<String>,
    },
    /// A rebuilt package would not agree with the rest of its bundle.
    #[error(
        "{package} would have {what} {asked}, the bundle has {there}\n\
         hint: convert the whole bundle that way, or rebuild the package as the bundle is"
    )]
    Inconsistent {
        /// The package.
        package: String,
        /// What all packages must agree on.
        what: &'static str,
        /// What the package would have.
        asked: String,
        /// What the bundle has.
        there: String,
    },
    /// The context is not one the model can have.
    #[error("context {context}: expected 1 to {max}, the positions the model was made for")]
    Context {
        /// What was asked.
        context: usize,
        /// `max_position_embeddings`.
        max: usize,
    },
    /// The disk is too small; nothing was begun.
    #[error(
        "{path}: the disk has no room: {needed} bytes needed, {free} free\nhint: free some space or choose another disk",
        path = path.display()
    )]
    Space {
        /// The output.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// There is too little memory; nothing was begun.
    #[error(
        "{path}: not enough memory: {needed} bytes needed at most, {free} available\n\
         hint: end other programs, or take fewer threads",
        path = path.display()
    )]
    Memory {
        /// The output.
        path: PathBuf,
        /// Anonymous memory at the worst moment, as predicted.
        needed: u64,
        /// What the system and control groups leave.
        free: u64,
    },
    /// The threads could not be started.
    #[error("{threads} threads: {reason}")]
    Threads {
        /// How many were asked.
        threads: usize,
        /// The system's reason.
        reason: String,
    },
}

impl From<crate::gemma::Error> for Error {
    fn from(e: crate::gemma::Error) -> Self {
        match e {
            crate::gemma::Error::Checkpoint(e) => e.into(),
            other => Self::Model(Box::new(other)),
        }
    }
}

impl From<crate::checkpoint::Error> for Error {
    fn from(e: crate::checkpoint::Error) -> Self {
        Self::Checkpoint(Box::new(e))
    }
}

/// Who can do something about an error; the command line's exit codes follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The checkpoint, the recipe or the existing output is not as it must be.
    Input,
    /// Not enough disk or memory.
    Space,
    /// The system refused something, or the program is wrong.
    Unexpected,
}

impl Error {
    /// Who can do something about it.
    pub fn fault(&self) -> Fault {
        use crate::bundle::Error as B;
        use crate::package::Error as P;
        match self {
            Self::Space { .. } | Self::Memory { .. } | Self::Bundle(B::DiskFull { .. }) => {
                Fault::Space
            }
            Self::Package { source, .. } if disk_full(source.as_ref()) => Fault::Space,
            Self::Package { source, .. }
                if matches!(**source, P::Donor { .. } | P::WeightTooLarge { .. }) =>
            {
                Fault::Input
            }
            Self::Package { .. } | Self::Threads { .. } | Self::Bundle(B::Io { .. }) => {
                Fault::Unexpected
            }
            _ => Fault::Input,
        }
    }
}

/// Whether some cause of `error` is a full disk, quota or file size limit.
pub(super) fn disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if e.downcast_ref::<std::io::Error>()
            .is_some_and(crate::bundle::error::is_full)
        {
            return true;
        }
        cause = e.source();
    }
    false
}
