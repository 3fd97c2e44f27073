//! From a model argument to a snapshot directory: a folder as it is, or a hub id through the ordinary Hugging Face cache, which is
//! shared with `huggingface_hub` (Python) and hf-hub in both directions.
//!
//! | file | what it does |
//! |---|---|
//! | `options` | the variables of `huggingface_hub`; `proxy` those of proxies |
//! | `id` | `org/name[@revision]` |
//! | `failure` | why a request failed, and the hint |
//! | `client` | requests, redirects, the token, time-outs, retries |
//! | `cache` | blobs, snapshots, refs and locks of one repository |
//! | `transfer` | one file: resumed, checked, renamed into place |
//! | `files` | which files are wanted |
//! | `fetch` | one snapshot |
//!
//! A revision is pinned to its commit before anything is fetched, so that no snapshot mixes two revisions. Commit, etag and file
//! names are checked before they become paths, and nothing else that the hub sends becomes one.
//!
//! hf-hub gives the layout of the cache and the form of the list of files. Its transfers are not used: 0.5 has no time-outs,
//! sends the token to hosts that the hub redirects to, takes the commit and etag of a second answer for paths unchecked, and
//! compares neither length nor hash. hf-hub 1.0 is asynchronous and brings tokio, reqwest and hf-xet.

mod cache;
mod client;
mod failure;
mod fetch;
mod files;
mod id;
mod options;
mod proxy;
mod transfer;

use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::weights as store;
use crate::progress::Progress;
use fetch::Fetch;
use files::Want;
use id::HubId;

pub use options::HubOptions;
pub use proxy::Proxies;

/// A directory as it is, or the snapshot of a hub id `org/name[@revision]`, fetched first where needed.
pub fn resolve(model: &str, progress: &dyn Progress) -> Result<PathBuf> {
    from_env(model, Want::Model, progress)
}

/// [`resolve`] with explicit options.
pub fn resolve_with(model: &str, options: &HubOptions, progress: &dyn Progress) -> Result<PathBuf> {
    find(model, Want::Model, options, progress)
}

/// A directory as it is, or the snapshot of a hub id with an adapter's `adapter_config.json` and `adapter_model.safetensors` (of
/// PEFT) or `adapters.safetensors` (of MLX), fetched first where needed.
pub fn resolve_adapter(model: &str, progress: &dyn Progress) -> Result<PathBuf> {
    from_env(model, Want::Adapter, progress)
}

/// [`resolve_adapter`] with explicit options.
pub fn resolve_adapter_with(
    model: &str,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    find(model, Want::Adapter, options, progress)
}

fn from_env(model: &str, want: Want, progress: &dyn Progress) -> Result<PathBuf> {
    if Path::new(model).is_dir() {
        return Ok(PathBuf::from(model));
    }
    HubId::parse(model)?;
    find(model, want, &HubOptions::from_env()?, progress)
}

fn find(model: &str, want: Want, options: &HubOptions, progress: &dyn Progress) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.exists() {
        return Err(Error::BadModelId {
            model: model.to_string(),
        });
    }
    Fetch::new(&HubId::parse(model)?, want, options).run(progress)
}
