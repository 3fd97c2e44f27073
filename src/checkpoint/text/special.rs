//! The special and added tokens that a snapshot's files name, as transformers reads them.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::error::{Error, Result};
use super::super::fields::{Fields, read_json};

/// What the tokenizer's configuration says of tokens.
#[derive(Debug, Default)]
pub(super) struct Special {
    /// `bos_token` and its kin: names and texts in file order.
    pub named: Vec<(String, String)>,
    /// The text of the first token; `Some(None)` where the file says that there is none.
    pub bos: Option<Option<String>>,
    /// `add_bos_token`
    pub add_bos: Option<bool>,
    /// Tokens that `tokenizer.json` may lack.
    pub added: Vec<Added>,
}

/// A token to add.
#[derive(Debug, Clone)]
pub(super) struct Added {
    /// The id that the file gives it.
    pub id: Option<u32>,
    /// Its text and flags.
    pub token: tokenizers::AddedToken,
}

/// Reads `tokenizer_config.json`, and what older writers put beside it: `special_tokens_map.json` and `added_tokens.json`.
pub(super) fn read(dir: &Path) -> Result<Special> {
    let path = dir.join("tokenizer_config.json");
    let root = match path.is_file() {
        true => read_json(&path)?,
        false => Value::Object(Map::new()),
    };
    let fields = Fields::top(&path, &root)?;
    let mut special = Special {
        add_bos: match fields.get("add_bos_token") {
            Some(Value::Bool(add)) => Some(*add),
            _ => None,
        },
        ..Special::default()
    };
    let mut extra = Extra::default();
    take(&mut special, &mut extra, fields.iter());
    match fields.get("added_tokens_decoder") {
        Some(Value::Object(tokens)) => {
            for (id, token) in tokens {
                let bad = || fields.invalid("added_tokens_decoder", "tokens by their id", id);
                special.added.push(Added {
                    id: Some(id.parse().map_err(|_| bad())?),
                    token: token_of(token, false).ok_or_else(bad)?,
                });
            }
            special.added.sort_by_key(|a| a.id);
        }
        _ => read_legacy(dir, &mut special, &mut extra)?,
    }
    let named = special.named.iter().map(|(_, text)| text.clone());
    for text in named.chain(extra.texts()).collect::<Vec<_>>() {
        if !special.added.iter().any(|a| a.token.content == text) {
            let token = tokenizers::AddedToken::from(text, true);
            special.added.push(Added { id: None, token });
        }
    }
    Ok(special)
}

/// Special tokens without names. The older list counts where the newer one is empty.
#[derive(Default)]
struct Extra {
    extra: Vec<String>,
    additional: Vec<String>,
}

impl Extra {
    fn texts(&self) -> Vec<String> {
        match self.extra.is_empty() {
            true => self.additional.clone(),
            false => self.extra.clone(),
        }
    }
}

/// Takes named tokens and lists of further ones. A later file wins.
fn take<'a>(
    special: &mut Special,
    extra: &mut Extra,
    fields: impl Iterator<Item = (&'a String, &'a Value)>,
) {
    for (name, value) in fields {
        match (name.as_str(), value) {
            // Newer files name further tokens in an object; a plain list has no names.
            ("extra_special_tokens", Value::Object(more)) => {
                for (name, value) in more {
                    name_token(special, name, value);
                }
            }
            ("extra_special_tokens", Value::Array(list)) => {
                extra.extra.extend(list.iter().filter_map(text_of));
            }
            ("additional_special_tokens", Value::Array(list)) => {
                extra.additional = list.iter().filter_map(text_of).collect();
            }
            ("bos_token", Value::Null) => special.bos = Some(None),
            (name, value) if name.ends_with("_token") => name_token(special, name, value),
            _ => {}
        }
    }
}

fn name_token(special: &mut Special, name: &str, value: &Value) {
    let Some(text) = text_of(value) else { return };
    if name == "bos_token" {
        special.bos = Some(Some(text.clone()));
    }
    match special.named.iter_mut().find(|(n, _)| n == name) {
        Some(found) => found.1 = text,
        None => special.named.push((name.to_string(), text)),
    }
}

fn text_of(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value.get("content")?.as_str());
    text.map(str::to_string)
}

fn token_of(value: &Value, special: bool) -> Option<tokenizers::AddedToken> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let is_special = flag("special").unwrap_or(special);
    let token = tokenizers::AddedToken::from(text_of(value)?, is_special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .normalized(flag("normalized").unwrap_or(!is_special));
    Some(token)
}

fn read_legacy(dir: &Path, special: &mut Special, extra: &mut Extra) -> Result<()> {
    let path = dir.join("special_tokens_map.json");
    if path.is_file() {
        let root = read_json(&path)?;
        take(special, extra, Fields::top(&path, &root)?.iter());
    }
    let path = dir.join("added_tokens.json");
    if path.is_file() {
        let root = read_json(&path)?;
        let fields = Fields::top(&path, &root)?;
        for (text, id) in fields.iter() {
            let number = id.as_u64().and_then(|n| u32::try_from(n).ok());
            let id = number.ok_or_else(|| fields.invalid(text, "a token id", id))?;
            let named = special.named.iter().any(|(_, t)| t == text);
            let is_special = named || extra.texts().contains(text);
            let token =
                tokenizers::AddedToken::from(text.clone(), is_special).normalized(!is_special);
            special.added.push(Added {
                id: Some(id),
                token,
            });
        }
        special.added.sort_by_key(|a| a.id);
    }
    Ok(())
}

/// Refuses a token whose id in the tokenizer is another than its file says.
pub(super) fn check_id(path: &Path, added: &Added, got: Option<u32>) -> Result<()> {
    match (added.id, got) {
        (Some(id), got) if got != Some(id) => Err(Error::Tokenizer {
            path: path.to_path_buf(),
            message: format!(
                "the added token {:?} has id {id} in the tokenizer's configuration, got {} in tokenizer.json\nhint: take both files from one checkpoint",
                added.token.content,
                got.map_or("none".into(), |id| id.to_string())
            ),
        }),
        _ => Ok(()),
    }
}

/// `bos_token_id` of `config.json`.
pub(super) fn bos_of_config(path: &Path) -> Result<Option<u32>> {
    if !path.is_file() {
        return Ok(None);
    }
    let root = read_json(path)?;
    let top = Fields::top(path, &root)?;
    let text = top.object("text_config")?.unwrap_or_else(|| top.clone());
    Ok(text.token_ids("bos_token_id")?.first().copied())
}
