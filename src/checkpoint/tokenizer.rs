//! Text to token ids and back, through the tokenizers library.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{Error, Result};
use super::fields::{Fields, read_json};

/// Ids held back at most while they do not decode to complete text. A character has four bytes at most.
const MAX_PENDING: usize = 8;
/// What the library writes for bytes that are not UTF-8.
const REPLACEMENT: char = '\u{FFFD}';

/// `tokenizer.json` of a snapshot or bundle.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens `tokenizer.json` in a directory. The first token of a text comes from `tokenizer_config.json`, falling back to
    /// `config.json`.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            return Err(Error::MissingFile {
                dir: dir.to_path_buf(),
                file: "tokenizer.json".into(),
                hint: "fetch the tokenizer's files with the checkpoint".into(),
            });
        }
        super::check_file(&path)?;
        let inner = tokenizers::Tokenizer::from_file(&path).map_err(|e| Error::Tokenizer {
            path: path.clone(),
            message: e.to_string(),
        })?;
        let bos = match special_tokens(dir)?
            .into_iter()
            .find(|(name, _)| name == "bos_token")
        {
            Some((_, text)) => inner.token_to_id(&text),
            None => bos_of_config(&dir.join("config.json"))?,
        };
        Ok(Self { path, inner, bos })
    }

    /// Token ids of a text. Special tokens that are written out in the text are recognized. `add_bos` puts the first token
    /// before it, unless the text begins with it.
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| self.error(&*e))?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(bos) = self.bos.filter(|bos| add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Text of token ids, special tokens left out. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| self.error(&*e))
    }

    /// The text of one token as the vocabulary has it, `None` for an id that is not in it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary has it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Ids in the vocabulary, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// A decoder that takes one id at a time.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder {
            tokenizer: self,
            pending: Vec::new(),
        }
    }

    fn error(&self, e: &(dyn std::error::Error + Send + Sync)) -> Error {
        Error::Tokenizer {
            path: self.path.clone(),
            message: e.to_string(),
        }
    }
}

/// Decodes ids one at a time and hands out complete UTF-8 only.
///
/// Ids whose bytes end within a character are held back until the next id completes it. What is handed out, joined, is what
/// [`Tokenizer::decode`] gives, except that broken byte sequences may become another number of U+FFFD.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    pending: Vec<u32>,
}

impl StreamDecoder<'_> {
    /// Takes an id; returns the text that is complete with it, empty for a special token or an incomplete character.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.pending.push(id);
        let text = self.tokenizer.decode(&self.pending)?;
        if text.ends_with(REPLACEMENT) && self.pending.len() < MAX_PENDING {
            return Ok(String::new());
        }
        self.pending.clear();
        Ok(text)
    }

    /// What is left at the end, incomplete bytes as U+FFFD.
    pub fn finish(self) -> Result<String> {
        self.tokenizer.decode(&self.pending)
    }
}

/// The `*_token` entries of `tokenizer_config.json` in file order, with their text. Empty when there is no such file.
pub(super) fn special_tokens(dir: &Path) -> Result<Vec<(String, String)>> {
    let path = dir.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let root = read_json(&path)?;
    let fields = Fields::top(&path, &root)?;
    let mut tokens = Vec::new();
    let text = |value: &Value| {
        let text = value.as_str().or_else(|| value.get("content")?.as_str());
        text.map(str::to_string)
    };
    for (name, value) in fields.iter().filter(|(name, _)| name.ends_with("_token")) {
        tokens.extend(text(value).map(|t| (name.clone(), t)));
    }
    // Newer files name further tokens in an object; a plain list has no names.
    if let Some(Value::Object(extra)) = fields.get("extra_special_tokens") {
        tokens.extend(
            extra
                .iter()
                .filter_map(|(n, v)| Some((n.clone(), text(v)?))),
        );
    }
    Ok(tokens)
}

fn bos_of_config(path: &Path) -> Result<Option<u32>> {
    if !path.is_file() {
        return Ok(None);
    }
    let root = read_json(path)?;
    let top = Fields::top(path, &root)?;
    let text = top.object("text_config")?.unwrap_or_else(|| top.clone());
    Ok(text.token_ids("bos_token_id")?.first().copied())
}
