//! Recipes: one TOML file per experiment. A conversion is a pure function of a checkpoint and a recipe.
//!
//! ```toml
//! name = "swa4-int4"
//! description = "one line: what it is"
//! status = "default"
//!
//! layout = "swa4"            # how the layers are split into packages
//! attention = "standard"
//! cache = "shift"
//! functions = ["decode"]
//! context = 2048             # optional; else min(2048, max_position_embeddings)
//! compat = false             # optional; true: bit-parity with the published bundles where they are wrong
//!
//! [quantize]
//! default = "palette4-g32"
//! otherwise = "palette4-tensor"   # optional; else a weight that does not fit its scheme is an error
//! threshold = 2048                # weights of at most this many elements stay fp16
//! tables = "rows-int8"
//!
//! [[quantize.rules]]              # the last matching rule wins; one that matches nothing is an error
//! pattern = 'layers\.0\..*proj'
//! scheme = "palette8-g32"
//! ```
//!
//! The built-in recipes are the files of `recipes/`, compiled in.

mod error;
mod rules;
mod set;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Deserialize;

pub use error::{Error, Result};
pub use rules::{Candidate, Choice, Pattern, QuantRules, Reason, Rule};

use crate::graph::{AttentionForm, CacheForm, FunctionKind, Layout};

/// Name of the recipe used when none is named.
pub const DEFAULT: &str = "swa4-int4";

/// Context length when neither recipe nor caller says, unless the model has fewer positions.
pub const DEFAULT_CONTEXT: usize = 2048;

/// Name and TOML text of each built-in recipe, the default first.
const BUILTIN: [(&str, &str); 8] = [
    ("swa4-int4", include_str!("../../recipes/swa4-int4.toml")),
    ("swa4-fp16", include_str!("../../recipes/swa4-fp16.toml")),
    ("swa4-w2", include_str!("../../recipes/swa4-w2.toml")),
    ("swa4-w3", include_str!("../../recipes/swa4-w3.toml")),
    ("swa4-w6", include_str!("../../recipes/swa4-w6.toml")),
    ("swa4-w8", include_str!("../../recipes/swa4-w8.toml")),
    ("swa4-int8", include_str!("../../recipes/swa4-int8.toml")),
    (
        "swa4-int4-block",
        include_str!("../../recipes/swa4-int4-block.toml"),
    ),
];

/// A recipe: everything that decides a bundle, beside the checkpoint.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Short name, also of its file.
    pub name: String,
    /// What it is, in one line.
    pub description: String,
    /// Where it stands: `default`, `reference`, `experiment`, `shelved: why`.
    pub status: String,
    /// How the layers are split into packages.
    pub layout: Layout,
    /// How a query attends to its keys.
    pub attention: AttentionForm,
    /// How keys and values are kept between steps.
    pub cache: CacheForm,
    /// The functions of each package, the default one first.
    pub functions: Vec<FunctionKind>,
    /// Context length in tokens.
    pub context: Option<usize>,
    /// Follow the published bundles where they differ from Gemma 4.
    #[serde(default)]
    pub compat: bool,
    /// Schemes of the weights and tables.
    pub quantize: QuantRules,
    /// The TOML text this recipe was read from.
    #[serde(skip)]
    pub source: String,
}

impl Recipe {
    /// Reads a recipe from TOML text; `file` names it in errors.
    ///
    /// # Errors
    /// [`Error::Invalid`] with line and column.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let mut recipe: Self = toml::from_str(text).map_err(|e| invalid(file, text, &e))?;
        recipe.source = text.to_owned();
        recipe.check().map_err(|(field, message)| {
            let (line, column) = field_position(text, field);
            Error::Invalid {
                file: file.to_owned(),
                line,
                column,
                message,
                hint: None,
            }
        })?;
        Ok(recipe)
    }

    /// A built-in recipe by name.
    ///
    /// # Errors
    /// [`Error::Unknown`] with the names there are.
    pub fn builtin(name: &str) -> Result<Self> {
        match BUILTIN.iter().find(|(n, _)| *n == name) {
            Some((name, text)) => Self::parse(&format!("recipe {name}"), text),
            None => Err(Error::Unknown {
                name: name.to_owned(),
                known: BUILTIN.iter().map(|(n, _)| (*n).to_owned()).collect(),
            }),
        }
    }

    /// All built-in recipes, the default first.
    ///
    /// # Errors
    /// None in a tested build: the texts are compiled in.
    pub fn list() -> Result<Vec<Self>> {
        BUILTIN
            .iter()
            .map(|(name, _)| Self::builtin(name))
            .collect()
    }

    /// A built-in recipe by name, or one from a TOML file: whatever ends in `.toml` or holds a path separator is a path.
    ///
    /// # Errors
    /// An unknown name, an unreadable file, or text that is not a recipe.
    pub fn load(name_or_path: &str) -> Result<Self> {
        if !name_or_path.ends_with(".toml")
            && !name_or_path.contains(['/', std::path::MAIN_SEPARATOR])
        {
            return Self::builtin(name_or_path);
        }
        let path = Path::new(name_or_path);
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(name_or_path, &text)
    }

    /// The context length to build for: what the caller asks, else the recipe, else [`DEFAULT_CONTEXT`], the last
    /// bounded by the model's `max_positions`.
    pub fn context_for(&self, asked: Option<usize>, max_positions: usize) -> usize {
        asked
            .or(self.context)
            .unwrap_or(DEFAULT_CONTEXT.min(max_positions))
    }

    /// What serde cannot see. The error is the field and what is wrong with it.
    fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        if self.name.is_empty()
            || !self
                .name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        {
            return Err((
                "name",
                format!(
                    "name `{}`: expected letters, digits, `-`, `_`, `.`",
                    self.name
                ),
            ));
        }
        if self.description.trim().is_empty() || self.description.contains('\n') {
            return Err((
                "description",
                "description: expected one line of text".to_owned(),
            ));
        }
        if self.context == Some(0) {
            return Err(("context", "context 0: expected at least 1 token".to_owned()));
        }
        if self.functions.is_empty() {
            return Err((
                "functions",
                "functions is empty: expected at least \"decode\"".to_owned(),
            ));
        }
        for (i, function) in self.functions.iter().enumerate() {
            if self.functions[..i].contains(function) {
                return Err(("functions", format!("function {function} is listed twice")));
            }
        }
        Ok(())
    }
}

fn invalid(file: &str, text: &str, error: &toml::de::Error) -> Error {
    let (line, column) = error.span().map_or((1, 1), |s| position(text, s.start));
    let message = error.message().to_owned();
    let hint = if message.starts_with("missing field") {
        Some(format!(
            "`gemma-coreml recipes show {DEFAULT}` prints a whole recipe"
        ))
    } else {
        None
    };
    Error::Invalid {
        file: file.to_owned(),
        line,
        column,
        message,
        hint,
    }
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// Where a top-level field is set.
fn field_position(text: &str, field: &str) -> (usize, usize) {
    let line = text.lines().position(|l| {
        l.trim_start()
            .strip_prefix(field)
            .is_some_and(|rest| rest.trim_start().starts_with('='))
    });
    (line.map_or(1, |i| i + 1), 1)
}
