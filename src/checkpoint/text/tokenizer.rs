//! Text to token ids and back, through the tokenizers library.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use tokenizers::models::ModelWrapper;

use super::super::error::{Error, Result};
use super::super::pointer::check_file;
use super::components;
use super::composition::Composition;
use super::special::{self, Special};

/// `tokenizer.json` of a snapshot or bundle.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    /// Whether the file's post-processor puts special tokens to a text.
    post_processor: bool,
    composition: Composition,
    /// Texts of the special tokens, which decoding leaves out.
    skipped: HashSet<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens `tokenizer.json` in a directory, with the tokens that `tokenizer_config.json` adds to it. Truncation, padding and
    /// dropout that a training left in the file are off, as they are in transformers where no call asks for them.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            let hint = match dir.join("tokenizer.model").is_file() {
                true => {
                    "there is a tokenizer.model, which is not read: save the tokenizer with transformers, which writes tokenizer.json"
                }
                false => "fetch the tokenizer's files with the checkpoint",
            };
            return Err(Error::MissingFile {
                dir: dir.to_path_buf(),
                file: "tokenizer.json".into(),
                hint: hint.into(),
            });
        }
        check_file(&path)?;
        let bytes = std::fs::read(&path).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })?;
        let parts = components::read(&path, &bytes)?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| Error::Tokenizer {
                path: path.clone(),
                message: e.to_string(),
            })?;
        drop(bytes);
        switch_off(&mut inner).map_err(|e| Error::Tokenizer {
            path: path.clone(),
            message: e.to_string(),
        })?;
        let special = special::read(dir)?;
        add_tokens(&path, &mut inner, &special)?;
        let bos = bos(dir, &inner, &special)?;
        let skipped = inner
            .get_added_tokens_decoder()
            .values()
            .filter(|t| t.special)
            .map(|t| t.content.clone())
            .collect();
        Ok(Self {
            path,
            bos,
            post_processor: !parts.post_processor.is_null(),
            composition: Composition::of(&parts.decoder),
            skipped,
            inner,
        })
    }

    /// Token ids of a text. Special tokens that are written out in the text are recognized. `add_bos` puts those before and behind
    /// it that the file's post-processor names; without one, the first token, unless `add_bos_token` is false. A text that begins
    /// with the first token gets no second one.
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, add_bos && self.post_processor)
            .map_err(|e| self.error(&*e))?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(bos) = self.bos.filter(|_| add_bos) {
            match self.post_processor {
                true if ids.starts_with(&[bos, bos]) => {
                    ids.remove(0);
                }
                false if ids.first() != Some(&bos) => ids.insert(0, bos),
                _ => {}
            }
        }
        Ok(ids)
    }

    /// Text of token ids, special tokens left out. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let has_text = |id: &u32| self.token(*id).is_some_and(|t| !self.is_skipped(&t));
        if !ids.iter().any(has_text) {
            // Some decoders of the library do not take an empty list.
            return Ok(String::new());
        }
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

    pub(super) fn composition(&self) -> Composition {
        self.composition
    }

    pub(super) fn is_skipped(&self, token: &str) -> bool {
        self.skipped.contains(token)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| self.is_skipped(&token))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, e: &(dyn std::error::Error + Send + Sync)) -> Error {
        Error::Tokenizer {
            path: self.path.clone(),
            message: e.to_string(),
        }
    }
}

/// Switches off what belongs to a training: truncation, padding, BPE dropout.
fn switch_off(inner: &mut tokenizers::Tokenizer) -> tokenizers::Result<()> {
    inner.with_truncation(None)?;
    inner.with_padding(None);
    let dropping = match inner.get_model() {
        ModelWrapper::BPE(bpe) if bpe.dropout.is_some() => Some(bpe.clone()),
        _ => None,
    };
    if let Some(mut bpe) = dropping {
        bpe.dropout = None;
        inner.with_model(bpe);
    }
    Ok(())
}

/// Adds the tokens that the tokenizer does not know as added ones yet.
fn add_tokens(path: &Path, inner: &mut tokenizers::Tokenizer, special: &Special) -> Result<()> {
    let known: HashSet<String> = inner
        .get_added_tokens_decoder()
        .values()
        .map(|t| t.content.clone())
        .collect();
    for added in &special.added {
        if !known.contains(&added.token.content) {
            let token = [added.token.clone()];
            match added.token.special {
                true => inner.add_special_tokens(&token),
                false => inner.add_tokens(&token),
            };
        }
        special::check_id(path, added, inner.token_to_id(&added.token.content))?;
    }
    Ok(())
}

/// The id of the first token.
fn bos(dir: &Path, inner: &tokenizers::Tokenizer, special: &Special) -> Result<Option<u32>> {
    match (&special.bos, special.add_bos) {
        (_, Some(false)) | (Some(None), _) => Ok(None),
        (Some(Some(text)), _) => Ok(inner.token_to_id(text)),
        (None, _) => special::bos_of_config(&dir.join("config.json")),
    }
}
