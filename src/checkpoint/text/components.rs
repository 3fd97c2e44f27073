//! What `tokenizer.json` is made of, looked at before the tokenizers library sees it.
//!
//! The library ends the process on some files: a component that it cannot parse, one nested too deeply, a charsmap that lies. So the
//! components are checked first, and only those that are known to be safe are let through.

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::super::error::{Error, Result};
use super::super::fields::parse_json;

/// Components within components, at most.
const MAX_NESTING: usize = 6;
/// Components of one kind, at most; each may make a text longer.
const MAX_PARTS: usize = 16;

const NORMALIZERS: [&str; 13] = [
    "Sequence",
    "Replace",
    "Prepend",
    "Strip",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "StripAccents",
    "Nmt",
    "ByteLevel",
    "BertNormalizer",
];
const PRE_TOKENIZERS: [&str; 10] = [
    "Sequence",
    "Split",
    "ByteLevel",
    "Metaspace",
    "Digits",
    "Whitespace",
    "WhitespaceSplit",
    "Punctuation",
    "BertPreTokenizer",
    "CharDelimiterSplit",
];
const POST_PROCESSORS: [&str; 5] = [
    "Sequence",
    "TemplateProcessing",
    "ByteLevel",
    "BertProcessing",
    "RobertaProcessing",
];
const DECODERS: [&str; 9] = [
    "Sequence",
    "Replace",
    "ByteFallback",
    "Fuse",
    "Strip",
    "ByteLevel",
    "Metaspace",
    "WordPiece",
    "BPEDecoder",
];

/// The parts of `tokenizer.json` that are looked at; vocabulary and merges are passed over.
#[derive(Deserialize)]
pub(super) struct Components {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    pub post_processor: Value,
    #[serde(default)]
    pub decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    vocab: Option<IgnoredAny>,
}

/// Parses and checks the components of a file.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Components> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(failed(
            path,
            "this is a pointer of Git LFS, not the file\nhint: fetch the real one with `git lfs pull`",
        ));
    }
    let root: Components = serde_json::from_slice(bytes).map_err(|e| {
        // Where the file is no JSON at all, its line says more.
        match parse_json(path, bytes) {
            Ok(_) => failed(path, e),
            Err(Error::Json {
                line,
                column,
                message,
                ..
            }) => failed(path, format!("line {line}, column {column}: {message}")),
            Err(other) => other,
        }
    })?;
    let kinds = [
        (
            "normalizer",
            &root.normalizer,
            "normalizers",
            &NORMALIZERS[..],
        ),
        (
            "pre_tokenizer",
            &root.pre_tokenizer,
            "pretokenizers",
            &PRE_TOKENIZERS,
        ),
        (
            "post_processor",
            &root.post_processor,
            "processors",
            &POST_PROCESSORS,
        ),
        ("decoder", &root.decoder, "decoders", &DECODERS),
    ];
    for (field, component, list, known) in kinds {
        check(path, field, component, list, known)?;
    }
    let kind = root.model.kind.as_deref().unwrap_or("BPE");
    if kind != "BPE" || root.model.vocab.is_none() {
        return Err(failed(
            path,
            format!("model: expected a BPE model with a vocabulary, got {kind:?}"),
        ));
    }
    match root.model.continuing_subword_prefix.as_deref() {
        None | Some("") => Ok(root),
        Some(prefix) => Err(failed(
            path,
            format!("model: continuing_subword_prefix {prefix:?} is not supported"),
        )),
    }
}

fn failed(path: &Path, message: impl ToString) -> Error {
    Error::Tokenizer {
        path: path.to_path_buf(),
        message: message.to_string(),
    }
}

fn check(path: &Path, field: &str, component: &Value, list: &str, known: &[&str]) -> Result<()> {
    let parts = flatten(component, list).ok_or_else(|| {
        failed(
            path,
            format!("{field}: expected at most {MAX_NESTING} levels of components"),
        )
    })?;
    if parts.len() > MAX_PARTS {
        return Err(failed(
            path,
            format!(
                "{field}: expected at most {MAX_PARTS} components, got {}",
                parts.len()
            ),
        ));
    }
    for part in parts {
        let kind = part
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or("(no type)");
        if !known.contains(&kind) {
            return Err(failed(
                path,
                format!(
                    "{field}: {kind} is not supported, supported: {}",
                    known.join(", ")
                ),
            ));
        }
    }
    Ok(())
}

/// The components of a kind, sequences resolved, in order. `None` where they are nested too deeply.
pub(super) fn flatten<'a>(component: &'a Value, list: &str) -> Option<Vec<&'a Value>> {
    fn add<'a>(of: &'a Value, list: &str, levels: usize, out: &mut Vec<&'a Value>) -> Option<()> {
        match of.get(list).and_then(Value::as_array) {
            Some(_) if levels == 0 => None,
            Some(parts) => parts.iter().try_for_each(|p| add(p, list, levels - 1, out)),
            None if of.is_null() => Some(()),
            None => {
                out.push(of);
                Some(())
            }
        }
    }
    let mut out = Vec::new();
    add(component, list, MAX_NESTING, &mut out).map(|()| out)
}
