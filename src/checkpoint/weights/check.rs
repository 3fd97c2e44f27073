//! Whether a checkpoint has the tensors that a model needs, and no others.

use std::collections::BTreeSet;

use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::folder::listed;

use super::files::INDEX;
use super::names::{self, EMBED, HEAD};
use super::store::Checkpoint;

impl Checkpoint {
    /// Checks that every tensor of `needed` (names without prefix, shapes) is there with its shape, and that nothing else is
    /// that could be a part of the text decoder. Reads no weights.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`], or [`Error::UnexpectedTensor`] with the first of those in name order.
    pub fn check(&self, needed: &[(String, Vec<usize>)]) -> Result<()> {
        for (name, shape) in needed {
            self.tensor(name, shape)?;
        }
        let known: BTreeSet<&str> = needed.iter().map(|(name, _)| name.as_str()).collect();
        let others = self
            .tensors
            .iter()
            .filter(|(name, _)| !known.contains(name.as_str()));
        let others = others.map(|(_, located)| (located.full_name.as_str(), located.file));
        let unknown = self
            .unknown
            .iter()
            .map(|(name, file)| (name.as_str(), *file));
        let unexpected: BTreeSet<(&str, usize)> = others.chain(unknown).collect();
        let Some(&(name, file)) = unexpected.first() else {
            return Ok(());
        };
        Err(Error::UnexpectedTensor {
            path: self.files[file].0.clone(),
            tensor: name.to_string(),
            more: unexpected.len() - 1,
            prefix: names::prefix(&self.config.model_type),
            hint: names::hint(unexpected.iter().map(|(name, _)| *name)).into(),
        })
    }

    /// How many tensors are neither under a prefix of the text decoder nor of a known tower, and the first in name order.
    pub fn unknown(&self) -> Option<(usize, &str)> {
        let first = self.unknown.iter().map(|(name, _)| name.as_str()).min()?;
        Some((self.unknown.len(), first))
    }

    /// The error for a tensor that is not there, with what may have taken its place.
    pub(super) fn missing(&self, name: &str, expected: &[usize]) -> Error {
        let prefix = match name {
            HEAD => "",
            _ => names::prefix(&self.config.model_type),
        };
        let mut notes = Vec::new();
        let mut hint = None;
        let located = self.tensors.values().map(|t| t.full_name.as_str());
        let unknown = self.unknown.iter().map(|(name, _)| name.as_str());
        if let Some(found) = names::stand_in(unknown.chain(located), name) {
            notes.push(format!("there is {found}, expected {prefix}{name}"));
            hint = Some(names::hint([found].into_iter()));
        } else if name == EMBED
            && let Some(head) = &self.lone_head
        {
            notes.push(format!(
                "there is {head}, from which the embedding is not taken"
            ));
        } else if name == HEAD && !self.config.tie_word_embeddings {
            notes.push("config.json has `tie_word_embeddings` = false, so that the embedding table is not the head".into());
        } else if self.tensors.is_empty() && !self.unknown.is_empty() {
            let first = self
                .unknown
                .iter()
                .map(|(name, _)| name.as_str())
                .min()
                .unwrap_or_default();
            notes.push(format!(
                "no name begins with {prefix}, the first is {first}"
            ));
            hint = Some(names::hint([first].into_iter()));
        }
        if !self.unread.is_empty() {
            let (read, unread) = (self.read_names(), listed(&self.unread));
            notes.push(format!("read: {read}; not read: {unread}"));
            if self.unread.iter().any(|name| name == INDEX) {
                hint = hint.or(Some("model.safetensors goes before the index, as in transformers: take away the one that does not belong"));
            }
        }
        Error::MissingTensor {
            dir: self.dir.clone(),
            tensor: name.to_string(),
            expected: expected.to_vec(),
            notes: notes.iter().map(|note| format!("; {note}")).collect(),
            hint: hint.map(str::to_string),
        }
    }
}
