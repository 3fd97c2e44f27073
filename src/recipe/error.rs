//! What can be wrong with a recipe.

use std::path::PathBuf;

/// An error in a recipe, or in how it meets a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a recipe: bad TOML, an unknown or missing field, a bad value.
    #[error("{file}:{line}:{column}: {message}{}", hint_line(.hint))]
    Invalid {
        /// File name, or `recipe NAME` for a built-in one.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong.
        message: String,
        /// What to write instead.
        hint: Option<String>,
    },
    /// No built-in recipe has this name, and it is no file.
    #[error("no recipe `{name}`\nhint: built-in recipes are {}; or give the path of a .toml file", .known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names of the built-in recipes.
        known: Vec<String>,
    },
    /// The recipe file cannot be read.
    #[error("cannot read recipe {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A pattern is not a regular expression.
    #[error("`{pattern}` is not a regular expression: {message}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What the regex parser says, in one line.
        message: String,
    },
    /// A rule that was to be added is not one.
    #[error(
        "rule `{text}`: {message}\nhint: a rule is REGEX=SCHEME, such as `down_proj=int8-channel`"
    )]
    Setting {
        /// What was given.
        text: String,
        /// What is wrong with it.
        message: String,
    },
    /// A quantization rule matches no weight that can be quantized.
    #[error("recipe `{recipe}`: rule `{pattern}` = {scheme} matches no weight\nhint: {hint}")]
    RuleMatchesNothing {
        /// Name of the recipe.
        recipe: String,
        /// The rule's pattern.
        pattern: String,
        /// The rule's scheme.
        scheme: String,
        /// What it may have been meant to match.
        hint: String,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

fn hint_line(hint: &Option<String>) -> String {
    hint.as_ref()
        .map(|h| format!("\nhint: {h}"))
        .unwrap_or_default()
}
