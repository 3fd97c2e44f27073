//! hub
use super::error::Result;
use crate::progress::Progress;
use std::path::PathBuf;
/// Where the hub is and who asks.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Address of the hub without a final slash.
    pub endpoint: String,
    /// The cache directory (`HF_HOME/hub`).
    pub cache: PathBuf,
    /// Access token for gated models.
    pub token: Option<String>,
}
/// A directory as it is, or a hub id's snapshot in the cache, fetched first where needed.
pub fn resolve(_model: &str, _progress: &dyn Progress) -> Result<PathBuf> {
    todo!()
}
/// [`resolve`] with explicit options.
pub fn resolve_with(
    _model: &str,
    _options: &HubOptions,
    _progress: &dyn Progress,
) -> Result<PathBuf> {
    todo!()
}
