//! How configs name modules: PEFT's regular expressions and endings, mlx-lm's keys.

use std::path::Path;

use fancy_regex::Regex;

use super::super::error::{AdapterError as Error, Result};
use super::names;

/// Values of some modules: the first pattern that matches a module's path up to its end says which.
#[derive(Debug, Default)]
pub(super) struct Overrides<T> {
    list: Vec<(Regex, T)>,
}

impl<T: Copy> Overrides<T> {
    /// Adds a pattern, which must begin at a dot or at the beginning of a path.
    pub fn push(&mut self, config: &Path, field: &str, pattern: &str, value: T) -> Result<()> {
        let whole = compile(config, field, pattern, format!(r"^(.*\.)?({pattern})$"))?;
        self.list.push((whole, value));
        Ok(())
    }

    /// The value for a module.
    pub fn of(&self, module: &str) -> Option<T> {
        let found = self.list.iter().find(|(regex, _)| matches(regex, module));
        found.map(|(_, value)| *value)
    }
}

/// Modules as `target_modules` and `exclude_modules` name them.
#[derive(Debug)]
pub(super) enum Modules {
    /// A regular expression for the whole path.
    Whole(Box<Regex>),
    /// Whole paths, or their ends.
    Ends(Vec<String>),
}

impl Modules {
    /// A regular expression.
    pub fn whole(config: &Path, field: &str, pattern: &str) -> Result<Self> {
        let regex = compile(config, field, pattern, format!("^(?:{pattern})$"))?;
        Ok(Self::Whole(Box::new(regex)))
    }

    /// Whether a module is named. A path may have been written for another class of the same model, so that what
    /// stands before the decoder's own names does not count.
    pub fn has(&self, module: &str) -> bool {
        let inner = names::inner(module);
        match self {
            Self::Whole(regex) => spellings(module, inner).any(|path| matches(regex, &path)),
            Self::Ends(ends) => ends.iter().any(|end| ends_with(module, inner, end)),
        }
    }
}

/// Whether a module's path is `end`, or has it as its last parts.
pub(super) fn ends_with(module: &str, inner: &str, end: &str) -> bool {
    let ending = module.strip_suffix(end);
    ending.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        || (names::inner(end) == inner && !inner.is_empty())
}

/// A path in the classes of the model that have the decoder.
fn spellings(module: &str, inner: &str) -> impl Iterator<Item = String> {
    let prefixes = [
        "model.language_model.",
        "model.",
        "language_model.model.",
        "",
    ];
    let others = prefixes.map(|prefix| format!("{prefix}{inner}"));
    std::iter::once(module.to_string()).chain(others)
}

fn compile(config: &Path, field: &str, pattern: &str, whole: String) -> Result<Regex> {
    let regex = Regex::new(&whole).map_err(|e| Error::Setting {
        path: config.to_path_buf(),
        field: field.to_string(),
        got: pattern.to_string(),
        why: format!("not a regular expression that can be read ({e})"),
    })?;
    Ok(regex)
}

/// A search that gives up, as some patterns make it, has found nothing.
fn matches(regex: &Regex, text: &str) -> bool {
    regex.is_match(text).unwrap_or(false)
}
