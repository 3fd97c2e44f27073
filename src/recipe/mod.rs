//! Recipes: one TOML file per experiment. A conversion is a pure function of a checkpoint and a recipe.
//!
//! ```toml
//! name = "swa4-int4"
//! description = "one line: what it is"
//! status = "default"
//!
//! layout = "swa4"            # how the layers are split into packages: swa4, swa3, swa3-topology1, swa2, swa1, lite2, monolithic
//! attention = "standard"     # or "flash-C": full layers take C keys at a time
//! cache = "shift"            # or "window-FW", "full", "state", "state-mask", "state-full"
//! functions = ["decode"]     # and "prefill-N", "verify-K"
//! prefill = "separate"       # optional; or "combined": prefill functions in the packages of decode
//! pad_kv_heads = 32          # optional; KV heads of the caches padded with zeros to a multiple of this
//! context = 2048             # optional; else min(2048, max_position_embeddings)
//! compat = false             # optional; true: bit-parity with the published bundles where they are wrong
//!
//! [quantize]
//! default = "palette4-g32"
//! otherwise = "palette4-tensor"   # optional; else a weight that does not fit its scheme is an error
//! threshold = 2048                # weights of at most this many elements stay fp16
//! tables = "rows-int8"            # how rows of the embedding and per-layer tables are stored
//! per_layer_tables = "rows-int4-block256"   # optional; another form for the per-layer table
//! importance = true               # optional; the next four need the statistics of a calibration
//! scale = true                    # optional; powers of two folded into the tensor before
//! compensate = { rounds = 4, damping = 0.01 }   # optional; GPTQ's order, then rounds of refinement
//! activations = { ranges = "percentile", percentile = 99.99 }   # optional; int8 inputs of quantized layers; or ranges = "minmax"
//!                                 # for a checkpoint with steps of activations: ranges = "checkpoint", or "none" to leave them out
//! given = "palette"               # optional; or "linear": weights and tables that the checkpoint stores as integers keep them,
//!                                 # each in a scheme of its width
//!
//! [[quantize.rules]]              # the last matching rule wins; one that matches nothing is an error
//! pattern = 'layers\.0\..*proj'
//! scheme = "palette8-g32"
//! ```
//!
//! The built-in recipes are the files of `recipes/`, compiled in. One whose name ends in a number can be asked for with
//! another number: `flash-256` is `recipes/flash-1024.toml` with 256 in the place of 1024.

mod activations;
mod error;
mod given;
mod rules;
mod set;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Deserialize;

pub use activations::{ActivationForm, Activations};
pub use error::{Error, Result};
pub use given::{Given, GivenForm};
pub use rules::{Candidate, Choice, Compensate, Pattern, QuantRules, Reason, Rule};

use crate::graph::{AttentionForm, CacheForm, FunctionKind, GraphOptions, Layout, PrefillPackages};

/// Name of the recipe used when none is named.
pub const DEFAULT: &str = "swa4-int4";

/// Context length when neither recipe nor caller says, unless the model has fewer positions.
pub const DEFAULT_CONTEXT: usize = 2048;

/// Name and TOML text of each built-in recipe, in name order: the files of `recipes/`, listed by the build script.
const BUILTIN: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// A recipe: everything that decides a bundle, beside the checkpoint.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Short name, also of its file.
    pub name: String,
    /// What it is, in one line.
    pub description: String,
    /// Where it stands: `default`, `reference`, `variant` (a published form), `experiment`, `shelved: why`, `specimen: why`.
    pub status: String,
    /// How the layers are split into packages.
    pub layout: Layout,
    /// How a query attends to its keys.
    pub attention: AttentionForm,
    /// How keys and values are kept between steps.
    pub cache: CacheForm,
    /// The functions of each package, the default one first.
    pub functions: Vec<FunctionKind>,
    /// Where prefill functions go.
    #[serde(default)]
    pub prefill: PrefillPackages,
    /// KV heads of the caches are padded with zeros to a multiple of this.
    pub pad_kv_heads: Option<usize>,
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

    /// A built-in recipe by name, or by a name with another number at its end.
    ///
    /// # Errors
    /// [`Error::Unknown`] with the names there are.
    pub fn builtin(name: &str) -> Result<Self> {
        let file = format!("recipe {name}");
        if let Some((_, text)) = BUILTIN.iter().find(|(n, _)| *n == name) {
            return Self::parse(&file, text);
        }
        if let Some((stem, number)) = numbered(name) {
            for (known, text) in BUILTIN {
                if let Some((of_known, default)) = numbered(known)
                    && of_known == stem
                {
                    return Self::parse(&file, &with_number(text, default, number));
                }
            }
        }
        Err(Error::Unknown {
            name: name.to_owned(),
            known: names().into_iter().map(str::to_owned).collect(),
        })
    }

    /// All built-in recipes: the default, the others in four chunks, the rest.
    ///
    /// # Errors
    /// None in a tested build: the texts are compiled in.
    pub fn list() -> Result<Vec<Self>> {
        names().into_iter().map(Self::builtin).collect()
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

    /// What the packages are built for.
    pub fn graph_options(&self, context: usize) -> GraphOptions {
        GraphOptions {
            context,
            layout: self.layout,
            attention: self.attention,
            cache: self.cache,
            functions: self.functions.clone(),
            prefill: self.prefill,
            pad_kv_heads: self.pad_kv_heads,
            compat: self.compat,
            activations: Default::default(),
        }
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
        let options = self.graph_options(self.context.unwrap_or(DEFAULT_CONTEXT));
        options.check().map_err(|e| ("layout", e.to_string()))?;
        self.quantize.check()?;
        for (i, function) in self.functions.iter().enumerate() {
            if self.functions[..i].contains(function) {
                return Err(("functions", format!("function {function} is listed twice")));
            }
        }
        Ok(())
    }
}

/// Names of the built-in recipes: the default, the others in four chunks, the rest.
fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = BUILTIN.iter().map(|(name, _)| *name).collect();
    names.sort_by_key(|name| (*name != DEFAULT, !name.starts_with("swa4"), *name));
    names
}

/// Stem and number of a name that ends in `-` and digits.
fn numbered(name: &str) -> Option<(&str, &str)> {
    let (stem, number) = name.rsplit_once('-')?;
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    digits.then_some((stem, number))
}

/// `text` with `number` in the place of every `default` that stands alone.
fn with_number(text: &str, default: &str, number: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(default) {
        let end = at + default.len();
        let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
        let alone = !digit(rest[..at].chars().next_back()) && !digit(rest[end..].chars().next());
        out.push_str(&rest[..at]);
        out.push_str(if alone { number } else { default });
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
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
