//! Arguments that several verbs share: models, precisions, token lists.

use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;

use super::adapters::Adapters;
use super::console::Console;
use super::failure::{Code, Failure, OrFail, Result};
use crate::bundle::Bundle;
use crate::calibrate::Stats;
use crate::checkpoint::{self, ChatTemplate, Checkpoint, Message, Tokenizer};
use crate::evaluate::{ExactRows, RowSource};
use crate::runtime::Precision;

/// How activations are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// Every activation in f32
    F32,
    /// Every op's result rounded to fp16, as the device stores it
    F16,
}

impl From<PrecisionArg> for Precision {
    fn from(arg: PrecisionArg) -> Self {
        match arg {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::F16 => Precision::F16,
        }
    }
}

/// What to do about a bundle that does not open.
const DAMAGED: &str = "the bundle is damaged, or mixed from several: convert again";

/// Opens a bundle.
pub fn open_bundle(dir: &Path) -> Result<Arc<Bundle>> {
    check_place(dir)?;
    Bundle::open(dir)
        .map(Arc::new)
        .or_invalid()
        .map_err(|f| f.hint(DAMAGED))
}

/// Says what `dir` is when it cannot be a bundle.
pub fn check_place(dir: &Path) -> Result<()> {
    let make = "make a bundle with `gemma-coreml convert MODEL -o DIR`";
    let not = |what: &str| Failure::new(Code::Invalid, format!("{}: {what}", dir.display()));
    if !dir.exists() {
        return Err(not("not there: expected a bundle").hint(make));
    }
    if !dir.is_dir() {
        return Err(not("a file: expected the directory of a bundle")
            .hint("`gemma-coreml unpack` makes a bundle of an archive"));
    }
    if dir.join("Manifest.json").is_file() {
        return Err(not("one package: expected the bundle that holds it")
            .hint("give the directory that holds model_config.json"));
    }
    if dir.join("config.json").is_file() && !dir.join("model_config.json").exists() {
        return Err(not("a checkpoint, not a bundle")
            .hint("make a bundle of it with `gemma-coreml convert`"));
    }
    if !dir.join("model_config.json").is_file() {
        return Err(not("no model_config.json: not a bundle").hint(make));
    }
    Ok(())
}

/// Opens a snapshot directory or a hub id, downloading it where needed, and merges adapters into it.
pub fn open_model(model: &str, adapters: &Adapters, console: &Console) -> Result<Checkpoint> {
    let dir = checkpoint::resolve(model, console)
        .or_invalid()
        .map_err(|f| unresolved(model, f))?;
    console.detail(&format!("checkpoint {}", dir.display()));
    let checkpoint = adapters.merge_into(Checkpoint::open(&dir).or_invalid()?, console)?;
    tell(&checkpoint, console);
    Ok(checkpoint)
}

/// Says first that there is no folder `model`, when it was taken for a hub id and that led nowhere.
fn unresolved(model: &str, mut failure: Failure) -> Failure {
    let path = Path::new(model);
    if path.exists() {
        let not = format!("{model}: a file, expected the folder of a checkpoint");
        return match checkpoint::check_file(path) {
            Ok(()) => Failure::new(Code::Invalid, not)
                .hint("give the directory of a Hugging Face snapshot, not a file"),
            Err(e) => Failure::from_error(Code::Invalid, &e),
        };
    }
    if path.is_symlink() {
        return Failure::new(
            Code::Invalid,
            format!("{model}: a link to a folder that is not there"),
        )
        .hint("its target was deleted or moved");
    }
    if looks_like_a_path(model) {
        return Failure::new(Code::Invalid, format!("{model}: no such folder")).hint(
            match model.starts_with('~') {
                true => "the shell replaces ~ only at the start of a word without quotes",
                false => {
                    "give the folder of a checkpoint, or a hub id such as google/gemma-4-E2B-it"
                }
            },
        );
    }
    let id = model.split('@').next().unwrap_or(model);
    failure.causes.insert(0, failure.message);
    failure.message = match id.contains('/') {
        true => format!("{model}: no such folder here, so it was taken for a hub id"),
        false => format!("{model}: no such folder here, and no hub id"),
    };
    failure.hint("a hub id looks like google/gemma-4-E2B-it")
}

/// Whether a model argument can only mean a path.
fn looks_like_a_path(model: &str) -> bool {
    let slashes = model
        .split('@')
        .next()
        .unwrap_or(model)
        .matches('/')
        .count();
    model.starts_with(['.', '/', '~'])
        || model.ends_with('/')
        || model.contains('\\')
        || slashes > 1
}

/// Opens a snapshot directory, and warns of what one may think is read and is not.
pub fn open_snapshot(dir: &Path, console: &Console) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(dir).or_invalid()?;
    tell(&checkpoint, console);
    Ok(checkpoint)
}

/// What there is to know about a snapshot.
fn tell(checkpoint: &Checkpoint, console: &Console) {
    for notice in checkpoint.notices() {
        console.warn(&notice.to_string());
    }
    let passed = checkpoint.passed_over();
    console.detail(&format!(
        "not part of the text decoder: {} vision, {} audio, {} unused K/V, {} other tensors",
        passed.vision, passed.audio, passed.shared_kv, passed.other
    ));
}

/// The statistics named, if any.
pub fn open_calibration(path: Option<&Path>) -> Result<Option<Arc<Stats>>> {
    path.map(|path| Stats::open(path).map(Arc::new).or_invalid())
        .transpose()
}

/// The hub id that a model argument stands for: its own, or that of a snapshot in the hub's cache
/// (`models--ORG--NAME/snapshots/REVISION`). No revision.
pub fn hub_id(model: &str) -> Option<String> {
    let path = Path::new(model);
    if !path.is_dir() {
        let id = model.split_once('@').map_or(model, |(id, _)| id);
        return Some(id.to_string());
    }
    let path = std::path::absolute(path).ok()?;
    let snapshots = path.parent()?;
    let repo = snapshots.parent()?.file_name()?.to_str()?;
    let id = repo.strip_prefix("models--")?;
    (snapshots.file_name()? == "snapshots").then(|| id.replacen("--", "/", 1))
}

/// Rows of `--exact-tables`, or the bundle's.
pub fn row_source(
    exact: Option<&str>,
    adapters: &Adapters,
    console: &Console,
) -> Result<RowSource> {
    match exact {
        None => Ok(RowSource::Bundle),
        Some(model) => {
            let checkpoint = Arc::new(open_model(model, adapters, console)?);
            Ok(RowSource::Exact(ExactRows::new(checkpoint).or_invalid()?))
        }
    }
}

/// A text file.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        let mut failure = Failure::from_error(Code::Invalid, &e);
        failure.causes.insert(0, failure.message.clone());
        failure.message = format!("{}: cannot read the text", path.display());
        failure
    })
}

/// Ids of a text by the tokenizer in `dir`; with `chat`, of the text as one turn of the user in the chat template there.
pub fn encode(dir: &Path, text: &str, chat: bool) -> Result<Vec<u32>> {
    let tokenizer = Tokenizer::open(dir).or_invalid()?;
    if !chat {
        return tokenizer.encode(text, true).or_invalid();
    }
    let template = ChatTemplate::open(dir)
        .or_invalid()?
        .ok_or_else(|| Failure::new(Code::Invalid, "the model has no chat template"))?;
    let message = Message::new("user", text);
    let framed = template.render(&[message], true).or_invalid()?;
    tokenizer.encode(&framed, false).or_invalid()
}

/// Ids that must lie in the vocabulary, at least one.
pub fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    if ids.is_empty() {
        return Err(Failure::new(Code::Invalid, "the prompt has no tokens"));
    }
    match ids.iter().find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Failure::new(
            Code::Invalid,
            format!("token id {id}: expected an id below the vocabulary size {vocab}"),
        )
        .hint("ids must come from the tokenizer of this bundle")),
    }
}

/// What became infinite in fp16, one line per value; empty at f32.
pub fn overflow_lines<'a>(
    overflows: impl Iterator<Item = (&'a str, &'a crate::runtime::Overflow)>,
) -> Vec<String> {
    overflows
        .map(|(chunk, o)| {
            format!(
                "{chunk}: `{}` (op `{}`) overflowed fp16 {} times, first at position {}",
                o.value, o.op, o.count, o.first_run
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_hub_ids() {
        for path in [
            "./x",
            "../x",
            "/x/y",
            "~/x",
            "models/x/",
            "a/b/c",
            "a\\b",
            ".x",
            "a/b/c@main",
        ] {
            assert!(looks_like_a_path(path), "{path}");
        }
        for id in [
            "google/gemma-4-E2B-it",
            "a/b@refs/pr/3",
            "models/x",
            "gemma",
        ] {
            assert!(!looks_like_a_path(id), "{id}");
        }
    }

    #[test]
    fn a_model_is_named_by_its_hub_id() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir
            .path()
            .join("models--google--gemma-4-E2B-it/snapshots/0123");
        std::fs::create_dir_all(&snapshot).unwrap();
        let id = Some("google/gemma-4-E2B-it".to_string());
        assert_eq!(hub_id("google/gemma-4-E2B-it"), id);
        assert_eq!(hub_id("google/gemma-4-E2B-it@main"), id);
        assert_eq!(hub_id(snapshot.to_str().unwrap()), id);
        assert_eq!(hub_id(dir.path().to_str().unwrap()), None);
    }
}
