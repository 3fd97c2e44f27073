//! Rules that a caller adds to a recipe.

use std::str::FromStr;

use toml::{Table, Value};

use super::Recipe;
use super::error::{Error, Result};
use super::rules::Rule;
use crate::quantize::Scheme;

impl FromStr for Rule {
    type Err = Error;

    /// Reads `REGEX=SCHEME`, split at the last `=`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |message: String| Error::Setting {
            text: text.to_owned(),
            message,
        };
        let (pattern, scheme) = text
            .rsplit_once('=')
            .ok_or_else(|| wrong("there is no `=`".to_owned()))?;
        let scheme = scheme.parse();
        Self::new(
            pattern,
            scheme.map_err(|e: crate::quantize::Error| wrong(e.to_string()))?,
        )
    }
}

impl Recipe {
    /// The recipe with these rules behind its own, so that they win. [`Recipe::source`] becomes the text of the whole, rules
    /// included: reading it again gives the same recipe. Without rules nothing changes.
    ///
    /// # Errors
    /// None for a recipe that was read from text.
    pub fn with_rules(self, rules: &[Rule]) -> Result<Self> {
        if rules.is_empty() {
            return Ok(self);
        }
        let wrong = |message: String| Error::Setting {
            text: rules.iter().map(setting).collect::<Vec<_>>().join(" "),
            message,
        };
        let mut table: Table = toml::from_str(&self.source).map_err(|e| wrong(e.to_string()))?;
        if !append(&mut table, rules) {
            return Err(wrong("the recipe has no list of rules".to_owned()));
        }
        let text = toml::to_string(&table).map_err(|e| wrong(e.to_string()))?;
        Self::parse(&format!("recipe {}", self.name), &text)
    }

    /// The recipe under another name, with another default scheme, and with these rules behind its own. Its text begins with
    /// name, description and status; comments are lost.
    ///
    /// # Errors
    /// A name or description that no recipe can have.
    pub fn derived(
        &self,
        name: &str,
        description: &str,
        default: Scheme,
        rules: &[Rule],
    ) -> Result<Self> {
        let wrong = |message: String| Error::Setting {
            text: name.to_owned(),
            message,
        };
        let mut table: Table = toml::from_str(&self.source).map_err(|e| wrong(e.to_string()))?;
        let head = [
            ("name", name),
            ("description", description),
            ("status", "experiment"),
        ];
        let mut text = String::new();
        for (key, value) in head {
            table.remove(key);
            let value = Value::String(value.to_owned());
            text.push_str(&format!("{key} = {value}\n"));
        }
        if let Some(quantize) = table.get_mut("quantize").and_then(Value::as_table_mut) {
            quantize.insert("default".to_owned(), Value::String(default.to_string()));
        }
        if !rules.is_empty() && !append(&mut table, rules) {
            return Err(wrong("the recipe has no list of rules".to_owned()));
        }
        text.push('\n');
        text.push_str(&toml::to_string(&table).map_err(|e| wrong(e.to_string()))?);
        Self::parse(&format!("recipe {name}"), &text)
    }
}

/// Adds rules to the list of a recipe; false when there is no place for one.
fn append(table: &mut Table, rules: &[Rule]) -> bool {
    let quantize = table.get_mut("quantize").and_then(Value::as_table_mut);
    let list = quantize
        .map(|quantize| {
            quantize
                .entry("rules")
                .or_insert_with(|| Value::Array(Vec::new()))
        })
        .and_then(Value::as_array_mut);
    let Some(list) = list else {
        return false;
    };
    list.extend(rules.iter().map(|rule| {
        let fields = [
            ("pattern", rule.pattern.as_str().to_owned()),
            ("scheme", rule.scheme.to_string()),
        ];
        Value::Table(
            fields
                .into_iter()
                .map(|(k, v)| (k.to_owned(), Value::String(v)))
                .collect(),
        )
    }));
    true
}

/// A rule as it is given.
fn setting(rule: &Rule) -> String {
    format!("{}={}", rule.pattern.as_str(), rule.scheme)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn a_rule_is_split_at_the_last_equals_sign() {
        let rule: Rule = "a=b=fp16".parse().unwrap();
        assert_eq!(setting(&rule), "a=b=fp16");
        assert!(rule.pattern.finds("xa=bx"));
        for (text, reason) in [
            ("fp16", "there is no `=`"),
            ("up_proj=int5", "int5"),
            ("up_proj=", ""),
            ("a(=fp16", "regular expression"),
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_text_says_what_was_added() {
        for recipe in Recipe::list().unwrap() {
            let (name, own) = (recipe.name.clone(), recipe.quantize.rules.len());
            let same = recipe.clone().with_rules(&[]).unwrap();
            assert_eq!(same.source, recipe.source);
            let first = recipe.with_rules(&rules(&[r"layers\.0\.=fp16"])).unwrap();
            let both = first
                .with_rules(&rules(&["'\"up=palette8-tensor"]))
                .unwrap();
            let read = Recipe::parse("x", &both.source).unwrap();
            assert_eq!(format!("{read:?}"), format!("{both:?}"), "{name}");
            let texts: Vec<String> = read.quantize.rules[own..].iter().map(setting).collect();
            assert_eq!(texts, [r"layers\.0\.=fp16", "'\"up=palette8-tensor"]);
        }
        // Another name and default, the rest as it was.
        for recipe in Recipe::list().unwrap() {
            let more = rules(&[r"^layers\.0\.x$=palette2-g8"]);
            let default = "palette6-g16".parse().unwrap();
            let made = recipe
                .derived("mixed-3.25", "a \"text\" of 'ours'", default, &more)
                .unwrap();
            assert!(made.source.starts_with("name = \"mixed-3.25\"\n"));
            let read = Recipe::parse("x", &made.source).unwrap();
            assert_eq!(read.description, "a \"text\" of 'ours'");
            assert_eq!(read.quantize.default, default);
            assert_eq!(read.quantize.rules.len(), recipe.quantize.rules.len() + 1);
            let options = |r: &Recipe| format!("{:?}", r.graph_options(64));
            assert_eq!(options(&read), options(&recipe));
            assert_eq!(read.quantize.otherwise, recipe.quantize.otherwise);
            assert!(recipe.derived("a b", "c", default, &[]).is_err());
        }
        // Rules written in place are a list like any other.
        let text = Recipe::builtin("swa4-int4").unwrap().source + "rules = []\n";
        let inline = Recipe::parse("x", &text).unwrap();
        let more = inline.with_rules(&rules(&[".*=fp16"])).unwrap();
        assert_eq!(more.quantize.rules.len(), 1);
    }
}
