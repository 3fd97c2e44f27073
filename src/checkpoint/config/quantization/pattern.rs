//! Regular expressions of a config, kept with their text.

use fancy_regex::Regex;

use crate::checkpoint::error::Result;
use crate::checkpoint::fields::Fields;

/// A regular expression. Equal to another of the same text.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    text: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// Compiles `text`; `field` of `fields` has it.
    pub fn new(fields: &Fields, field: &str, text: String) -> Result<Self> {
        let regex = Regex::new(&text).map_err(|e| {
            let expected = "a regular expression that can be read";
            fields.invalid(field, expected, format!("{text:?} ({e})"))
        })?;
        Ok(Self { text, regex })
    }

    /// Where the first match begins. A search that gives up, as some patterns make it, has found nothing.
    pub fn find(&self, name: &str) -> Option<usize> {
        let found = self.regex.find(name).ok().flatten();
        found.map(|found| found.start())
    }
}
