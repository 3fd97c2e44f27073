//! What a checkpoint is by its contents.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::checkpoint::adapter;
use crate::checkpoint::config;
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::tensor::{TensorView, prefetch};
use crate::progress::Progress;

use super::store::Checkpoint;

/// Bytes of a tensor that are hashed at a time for [`Checkpoint::fingerprint`].
pub const HASHED: usize = 4 << 20;

impl Checkpoint {
    /// SHA-256, in hex, of config.json and of every text tensor's name, dtype, shape and bytes in name order, then of the steps
    /// of activations: the same however the tensors are sharded and prefixed. The bytes of a tensor enter as the SHA-256 of each [`HASHED`] bytes of it,
    /// so that all threads can work. Reads every weight once. With adapters, the SHA-256 of that and of each adapter's weights
    /// and config in their order.
    pub fn fingerprint(&self, progress: &dyn Progress) -> Result<String> {
        let path = config::path_in(&self.dir)?;
        let config = std::fs::read(&path).map_err(|source| Error::Io { path, source })?;
        let mut hash = Sha256::new();
        hash.update((config.len() as u64).to_le_bytes());
        hash.update(&config);
        progress.begin("hash", self.text_bytes());
        let views = self.tensors.iter();
        let views: Vec<TensorView<'_>> = views
            .map(|(name, located)| self.view(name, located))
            .collect::<Result<_>>()?;
        let parts = views.iter().flat_map(|v| {
            let parts = v.file_bytes().into_iter().flat_map(|b| b.chunks(HASHED));
            parts.enumerate().map(|(i, part)| (v.name, i, part))
        });
        let parts: Vec<(&str, usize, &[u8])> = parts.collect();
        let digests: Vec<[u8; 32]> = parts
            .into_par_iter()
            .map(|(name, i, part)| {
                if i == 0 {
                    progress.item(name);
                }
                prefetch(part);
                let digest = Sha256::digest(part).into();
                progress.advance(part.len() as u64);
                digest
            })
            .collect();
        let mut digests = digests.iter();
        for view in &views {
            let head = format!("{}\0{}\0{:?}\0", view.name, view.form(), view.shape);
            hash.update((head.len() as u64).to_le_bytes());
            hash.update(head);
            let bytes = view.file_bytes().into_iter();
            let count = bytes.map(|b| b.len().div_ceil(HASHED)).sum();
            digests.by_ref().take(count).for_each(|d| hash.update(d));
        }
        progress.end();
        for (name, scales) in &self.activations {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            hash.update(scales.input.to_le_bytes());
            hash.update(scales.output.to_le_bytes());
        }
        let base = adapter::hex(&hash.finalize());
        if self.adapters.is_empty() {
            return Ok(base);
        }
        let mut hash = Sha256::new_with_prefix(base);
        for merged in &self.adapters {
            hash.update(&merged.about.weights_sha256);
            hash.update(&merged.about.config_sha256);
        }
        Ok(adapter::hex(&hash.finalize()))
    }
}
