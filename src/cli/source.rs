//! Arguments that several verbs share: models, precisions, token lists.

use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;

use super::console::Console;
use super::failure::{Code, Failure, OrFail, Result};
use crate::bundle::Bundle;
use crate::checkpoint::{self, Checkpoint};
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

/// Opens a bundle.
pub fn open_bundle(dir: &Path) -> Result<Arc<Bundle>> {
    if dir.join("config.json").is_file() && !dir.join("model_config.json").exists() {
        let what = format!("{}: a checkpoint, not a bundle", dir.display());
        return Err(Failure::new(Code::Invalid, what)
            .hint("make a bundle of it with `gemma-coreml convert`"));
    }
    Bundle::open(dir).map(Arc::new).or_invalid()
}

/// Opens a snapshot directory or a hub id, downloading it where needed.
pub fn open_model(model: &str, console: &Console) -> Result<Checkpoint> {
    let dir = checkpoint::resolve(model, console).or_invalid()?;
    console.detail(&format!("checkpoint {}", dir.display()));
    let checkpoint = Checkpoint::open(&dir).or_invalid()?;
    let passed = checkpoint.passed_over();
    console.detail(&format!(
        "not part of the text decoder: {} vision, {} audio, {} unused K/V, {} other tensors",
        passed.vision, passed.audio, passed.shared_kv, passed.other
    ));
    Ok(checkpoint)
}

/// Rows of `--exact-tables`, or the bundle's.
pub fn row_source(exact: Option<&str>, console: &Console) -> Result<RowSource> {
    match exact {
        None => Ok(RowSource::Bundle),
        Some(model) => {
            let checkpoint = Arc::new(open_model(model, console)?);
            Ok(RowSource::Exact(ExactRows::new(checkpoint).or_invalid()?))
        }
    }
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
        )),
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
