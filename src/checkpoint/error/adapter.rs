//! What can be wrong with an adapter.

use std::path::PathBuf;

/// An error about an adapter. Every variant names the file or tensor at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A place holds no adapter that can be read.
    #[error("{path}: {found}, expected {expected}\nhint: {hint}")]
    Place {
        /// What was looked at.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
        /// What to do about it.
        hint: String,
    },
    /// A setting asks for something that is not merged.
    #[error("{path}: `{field}` = {got} is not supported: {why}")]
    Setting {
        /// The adapter's config.
        path: PathBuf,
        /// The setting.
        field: String,
        /// Its value.
        got: String,
        /// Why not, and what is supported.
        why: String,
    },
    /// A tensor is not what it should be.
    #[error("{path}: tensor {tensor}: {what}: expected {expected}, got {got}")]
    Tensor {
        /// The adapter's weights.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// The property that is wrong.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A tensor cannot be merged into this model.
    #[error("{path}: tensor {tensor}: {why}\nhint: {hint}")]
    Unmergeable {
        /// The adapter's weights.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// Why not.
        why: String,
        /// What to do about it.
        hint: String,
    },
    /// Nothing of an adapter belongs to the text decoder.
    #[error("{path}: no tensor changes the model: {found}\nhint: {hint}")]
    NoEffect {
        /// The adapter's weights.
        path: PathBuf,
        /// What its tensors are.
        found: String,
        /// What to do about it.
        hint: String,
    },
    /// A merged weight is NaN or infinite.
    #[error(
        "tensor {tensor}: element {index} is {value} once {adapter} is merged, expected a finite number\nhint: the adapter \
         is damaged, or was trained on another model"
    )]
    NotFinite {
        /// Name without prefix.
        tensor: String,
        /// Element index in row-major order.
        index: usize,
        /// The value.
        value: f32,
        /// The adapters that change the tensor.
        adapter: String,
    },
    /// A merged weight is beyond fp16's largest value, 65504.
    #[error(
        "tensor {tensor}: element {index} is {value} once {adapter} is merged, beyond the range of fp16 (65504)\nhint: the \
         adapter is damaged, or was trained on another model"
    )]
    Fp16Range {
        /// Name without prefix.
        tensor: String,
        /// Element index in row-major order.
        index: usize,
        /// The value.
        value: f32,
        /// The adapters that change the tensor.
        adapter: String,
    },
}
