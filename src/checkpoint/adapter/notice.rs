//! What a user should know about an adapter that is merged all the same.

use std::fmt;
use std::path::PathBuf;

/// Something about an adapter that changes nothing of how it is merged, though it may not be what was meant. Its text is a
/// sentence or two, for a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterNotice {
    /// The config names another base model.
    OtherBase {
        /// The adapter's config.
        path: PathBuf,
        /// The model it was trained on.
        base: String,
        /// The model it is merged into.
        given: String,
    },
    /// Tensors of K and V projections that the model does not use, as their layers share those of an earlier one.
    SharedKv {
        /// The adapter's weights.
        path: PathBuf,
        /// How many tensors.
        tensors: usize,
    },
    /// Tensors of the vision and audio towers.
    Towers {
        /// The adapter's weights.
        path: PathBuf,
        /// How many tensors.
        tensors: usize,
    },
    /// The embedding table and the head are one tensor in the model and not in the training.
    TiedHead {
        /// The adapter's weights.
        path: PathBuf,
        /// What was trained: `embed_tokens`, `lm_head`, or both apart.
        trained: &'static str,
    },
    /// A module that the config names has no tensors.
    NoTensors {
        /// The adapter's config.
        path: PathBuf,
        /// The module as the config names it.
        module: String,
    },
    /// A setting is passed over or has a meaning of its own.
    Setting {
        /// The adapter's config.
        path: PathBuf,
        /// The setting.
        field: String,
        /// Its value.
        got: String,
        /// What that means here.
        meaning: &'static str,
    },
}

impl fmt::Display for AdapterNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherBase { path, base, given } => write!(
                f,
                "{}: the adapter was trained on {base}, and is merged into {given}",
                path.display()
            ),
            Self::SharedKv { path, tensors } => write!(
                f,
                "{}: {tensors} tensors of K and V have no effect: their layers share K and V of an earlier layer",
                path.display()
            ),
            Self::Towers { path, tensors } => write!(
                f,
                "{}: {tensors} tensors of the vision and audio towers are passed over",
                path.display()
            ),
            Self::TiedHead { path, trained } => write!(
                f,
                "{}: the adapter was trained on {trained}, and changes the embedding table and the tied head alike, as \
                 PEFT's merge does",
                path.display()
            ),
            Self::NoTensors { path, module } => write!(
                f,
                "{}: `target_modules` has {module}, but no tensor is for it",
                path.display()
            ),
            Self::Setting {
                path,
                field,
                got,
                meaning,
            } => write!(f, "{}: `{field}` = {got}: {meaning}", path.display()),
        }
    }
}
