//! One snapshot: what is in the cache, what the hub has, and the difference.

use std::path::{Path, PathBuf};

use hf_hub::api::RepoInfo;
use serde_json::Value;

use super::cache::RepoCache;
use super::client::Client;
use super::failure::{Failure, Why, printable};
use super::files::{self, ADAPTER_CONFIG, CONFIG, Refusal, Want, Weights};
use super::id::{HubId, is_commit};
use super::options::HubOptions;
use super::transfer::{self, Item, Stop};
use super::{Error, Result, store};
use crate::progress::Progress;

/// A snapshot that is asked for.
pub(super) struct Fetch<'a> {
    id: &'a HubId,
    want: Want,
    options: &'a HubOptions,
    cache: RepoCache,
}

impl<'a> Fetch<'a> {
    pub fn new(id: &'a HubId, want: Want, options: &'a HubOptions) -> Self {
        Self {
            id,
            want,
            options,
            cache: RepoCache::new(&options.cache, id, options.symlinks),
        }
    }

    /// The directory of the snapshot, fetched where needed.
    ///
    /// Without an answer of the hub, or with a refusal, a complete snapshot of the cache is taken, as `huggingface_hub` does;
    /// but not when the hub says that there is no such revision.
    pub fn run(&self, progress: &dyn Progress) -> Result<PathBuf> {
        let cached = self.cached();
        if let Ok(dir) = &cached
            && (self.options.offline || self.id.is_commit())
        {
            return Ok(dir.clone());
        }
        if self.options.offline {
            let what = cached.err().unwrap_or_default();
            return Err(self.error(
                format!("{what}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"),
                "unset HF_HUB_OFFLINE, or give a local directory",
            ));
        }
        let client = Client::new(self.options)?;
        let url = client.url(&[
            "api",
            "models",
            &self.id.org,
            &self.id.name,
            "revision",
            &self.id.revision,
        ]);
        let listed = match cached {
            // Nothing is lost by giving up early.
            Ok(_) => client.list(&url),
            // Where nobody is there at the first question, waiting seldom helps; most often the model is a folder mistyped.
            Err(_) => client.retrying_while(|f| f.why != Why::Unreachable, || client.list(&url)),
        };
        let listed = listed.and_then(|info| self.check(info));
        let info = match (listed, cached) {
            (Ok(info), _) => info,
            (Err(failure), Ok(dir)) if !failure.is_no_revision() => return Ok(dir),
            (Err(failure), _) => {
                return Err(self.failed("cannot list the files", &failure, client.has_token()));
            }
        };
        let names: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        let dir = self.fetch(&client, &info.sha, &names, progress)?;
        // The snapshot is complete without the note; a cache that one cannot write to is no reason to refuse it.
        let _ = self.cache.record(&self.id.revision, &info.sha);
        Ok(dir)
    }

    fn check(&self, info: RepoInfo) -> Result<RepoInfo, Failure> {
        let expected = match self.id.is_commit() {
            true => self.id.revision.as_str(),
            false => "a commit of 40 hex digits",
        };
        match is_commit(&info.sha) && (!self.id.is_commit() || info.sha == expected) {
            true => Ok(info),
            false => Err(Failure::broken(format!(
                "expected {expected}, got {:?}",
                printable(&info.sha)
            ))),
        }
    }

    /// The complete snapshot of the revision in the cache, or what there is not.
    fn cached(&self) -> Result<PathBuf, String> {
        let commit = match self.id.is_commit() {
            true => Some(self.id.revision.clone()),
            false => self.cache.commit_of(&self.id.revision),
        };
        let dir = commit.map(|commit| self.cache.snapshot(&commit));
        match dir.filter(|dir| dir.is_dir()) {
            None => Err(format!(
                "revision {} is not in the cache {}",
                self.id.revision,
                self.options.cache.display()
            )),
            Some(dir) => match files::lacks(self.want, &dir) {
                None => Ok(dir),
                Some(name) => Err(format!(
                    "the snapshot in the cache has no {}",
                    dir.join(name).display()
                )),
            },
        }
    }

    /// Fetches what is missing of a commit. Weights come last, so that a snapshot that has its weights is complete.
    fn fetch(
        &self,
        client: &Client,
        commit: &str,
        names: &[&str],
        progress: &dyn Progress,
    ) -> Result<PathBuf> {
        let dir = self.cache.snapshot(commit);
        let (needed, adapter) = match self.want {
            Want::Model => (CONFIG, names.contains(&ADAPTER_CONFIG)),
            Want::Adapter => (ADAPTER_CONFIG, false),
        };
        let has_config = names.contains(&needed);
        if !has_config && !adapter {
            return Err(self.refusal(files::refuse(needed, names)));
        }
        let get = |names: &[String]| self.fetch_files(client, commit, names, progress);
        let weights = match files::weights(self.want, names) {
            Ok(weights) if has_config => weights,
            _ if adapter => {
                get(&[ADAPTER_CONFIG.to_string()])?;
                return Err(self.is_adapter(&dir));
            }
            Ok(weights) => weights,
            Err(refusal) => return Err(self.refusal(refusal)),
        };
        get(&files::small(self.want, names))?;
        let weights = match weights {
            Weights::Files(files) => files,
            Weights::Indexed => {
                get(&[store::INDEX.to_string()])?;
                let shards = store::shard_names(&dir.join(store::INDEX))?;
                if let Some(absent) = shards.iter().find(|shard| !names.contains(&shard.as_str())) {
                    return Err(self.refusal(files::refuse(absent, names)));
                }
                shards
            }
        };
        get(&weights)?;
        Ok(dir)
    }

    /// Fetches those of some files that the snapshot does not have.
    fn fetch_files(
        &self,
        client: &Client,
        commit: &str,
        names: &[String],
        progress: &dyn Progress,
    ) -> Result<()> {
        let dir = self.cache.snapshot(commit);
        let mut items = Vec::new();
        for name in names.iter().filter(|name| !dir.join(name).is_file()) {
            let url = client.url(&[&self.id.org, &self.id.name, "resolve", commit, name]);
            let metadata = client.retrying(|| client.metadata(&url, commit));
            let metadata = metadata.map_err(|f| self.failed(name, &f, client.has_token()))?;
            items.push(Item {
                name: name.clone(),
                url,
                metadata,
            });
        }
        if items.is_empty() {
            return Ok(());
        }
        progress.begin(
            "download",
            items.iter().filter_map(|item| item.metadata.size).sum(),
        );
        for item in &items {
            let new =
                transfer::fetch(client, &self.cache, item, progress).map_err(
                    |stop| match stop {
                        Stop::Local(error) => error,
                        Stop::Remote(failure) => {
                            self.failed(&item.name, &failure, client.has_token())
                        }
                    },
                )?;
            self.cache
                .link(commit, &item.name, &item.metadata.etag, new)?;
        }
        progress.end();
        Ok(())
    }

    /// What is said of an adapter that is given as a model.
    fn is_adapter(&self, dir: &Path) -> Error {
        let text = std::fs::read(dir.join(ADAPTER_CONFIG)).unwrap_or_default();
        let config: Value = serde_json::from_slice(&text).unwrap_or_default();
        let base = config
            .get("base_model_name_or_path")
            .and_then(Value::as_str);
        let base = base.map_or(
            "a model that its adapter_config.json does not name".to_string(),
            printable,
        );
        self.error(
            format!("the repository is an adapter for {base}, not a model"),
            "give that model, and this one with `--adapter`, which merges it",
        )
    }

    fn refusal(&self, refusal: Refusal) -> Error {
        self.error(refusal.message, &refusal.hint)
    }

    fn failed(&self, what: &str, failure: &Failure, with_token: bool) -> Error {
        self.error(
            format!("{what}: {}", failure.text),
            &failure.hint(with_token),
        )
    }

    fn error(&self, message: String, hint: &str) -> Error {
        Error::Hub {
            model: self.id.to_string(),
            message,
            hint: hint.into(),
        }
    }
}
