//! From a model argument to a snapshot directory: a folder as it is, or a hub id through the ordinary Hugging Face cache.
//!
//! hf-hub does the transfers and lays out the cache (`blobs/`, `snapshots/COMMIT/`, `refs/`). Around it, this module pins a
//! revision to its commit before anything is fetched, so that no snapshot mixes two revisions; fetches only the files that
//! are read; takes the weights last, so that a snapshot that has its weights is complete; and checks lengths, which hf-hub
//! does not do after a transfer. hf-hub keeps a partial transfer as `blobs/ETAG.part` and resumes it by a Range request.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::progress::Progress;

use super::error::{Error, Result};
use super::weights as store;

/// Where published models are.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Times that a broken transfer is resumed before giving up.
const DEFAULT_RETRIES: usize = 4;
/// Files fetched when the repository has them, besides the weights.
const SMALL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Where the hub is, where files go and who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// Address of the hub without a final slash.
    pub endpoint: String,
    /// The cache directory, `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// Access token for gated models. Without one, the token file that the `hf` tool writes beside the cache is used.
    pub token: Option<String>,
    /// Times that a broken transfer is resumed before giving up.
    pub retries: usize,
    /// Use what is in the cache and no network.
    pub offline: bool,
}

impl HubOptions {
    /// Options from `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` and `HF_HUB_OFFLINE`. `None` when there is neither
    /// a cache variable nor a home directory.
    pub fn from_env() -> Option<Self> {
        Self::from_variables(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    /// [`from_env`](Self::from_env) with another source of variables.
    pub fn from_variables(
        get: impl Fn(&str) -> Option<String>,
        home: Option<PathBuf>,
    ) -> Option<Self> {
        let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let of_home = || Some(home?.join(".cache").join("huggingface").join("hub"));
        let cache = get("HF_HUB_CACHE").map(PathBuf::from);
        let cache = cache.or_else(|| get("HF_HOME").map(|dir| Path::new(&dir).join("hub")));
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into());
        let offline = get("HF_HUB_OFFLINE").map(|v| v.to_ascii_lowercase());
        Some(Self {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache: cache.or_else(of_home)?,
            token: get("HF_TOKEN").map(|t| t.trim().to_string()),
            retries: DEFAULT_RETRIES,
            offline: offline.is_some_and(|v| matches!(v.as_str(), "1" | "true" | "yes" | "on")),
        })
    }
}

/// A directory as it is, or the snapshot of a hub id `org/name[@revision]`, fetched first where needed.
pub fn resolve(model: &str, progress: &dyn Progress) -> Result<PathBuf> {
    if Path::new(model).is_dir() {
        return Ok(PathBuf::from(model));
    }
    HubId::parse(model)?;
    let options = HubOptions::from_env().ok_or_else(|| Error::Hub {
        model: model.to_string(),
        message: "no home directory to keep the download in".into(),
        hint: "set HF_HOME".into(),
    })?;
    resolve_with(model, &options, progress)
}

/// [`resolve`] with explicit options.
pub fn resolve_with(model: &str, options: &HubOptions, progress: &dyn Progress) -> Result<PathBuf> {
    if Path::new(model).is_dir() {
        return Ok(PathBuf::from(model));
    }
    Fetch::new(HubId::parse(model)?, options)?.run(progress)
}

/// `org/name` and a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HubId {
    repo: String,
    revision: String,
}

impl HubId {
    fn parse(model: &str) -> Result<Self> {
        let (repo, revision) = model.split_once('@').unwrap_or((model, "main"));
        let part_ok = |part: &str| {
            let chars = part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            chars && !part.is_empty() && !part.starts_with(['.', '-']) && !part.contains("..")
        };
        let repo_ok = repo
            .split_once('/')
            .is_some_and(|(org, name)| part_ok(org) && part_ok(name));
        if repo_ok && revision.split('/').all(part_ok) {
            return Ok(Self {
                repo: repo.to_string(),
                revision: revision.to_string(),
            });
        }
        Err(Error::BadModelId {
            model: model.to_string(),
        })
    }

    /// True for a full commit hash, which always means the same files.
    fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// One snapshot being fetched.
struct Fetch {
    id: HubId,
    api: Api,
    cache: Cache,
    offline: bool,
}

impl Fetch {
    fn new(id: HubId, options: &HubOptions) -> Result<Self> {
        let cache = Cache::new(options.cache.clone());
        let mut builder = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(options.endpoint.clone())
            .with_progress(false)
            .with_retries(options.retries)
            .with_user_agent("gemma-coreml", env!("CARGO_PKG_VERSION"));
        if let Some(token) = &options.token {
            builder = builder.with_token(Some(token.clone()));
        }
        match builder.build() {
            Ok(api) => Ok(Self {
                id,
                api,
                cache,
                offline: options.offline,
            }),
            Err(e) => Err(hub_error(&id, "cannot start", &e)),
        }
    }

    fn run(&self, progress: &dyn Progress) -> Result<PathBuf> {
        if let Some(dir) = self
            .cached()
            .filter(|_| self.offline || self.id.is_commit())
        {
            return Ok(dir);
        }
        if self.offline {
            return Err(Error::Hub {
                model: self.id.repo.clone(),
                message: format!(
                    "revision {} is not in the cache, and HF_HUB_OFFLINE is set",
                    self.id.revision
                ),
                hint: "unset HF_HUB_OFFLINE, or give a local directory".into(),
            });
        }
        let info = match self.repo(&self.id.revision).info() {
            Ok(info) => info,
            Err(e) => match self.cached().filter(|_| status(&e).is_none()) {
                // The hub cannot be reached, but a complete snapshot is here.
                Some(dir) => return Ok(dir),
                None => return Err(hub_error(&self.id, "cannot list the files", &e)),
            },
        };
        if !is_commit(&info.sha) {
            return Err(self.broken("a commit of 40 hex digits", &info.sha));
        }
        let names: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        let dir = self.fetch(&info.sha, &names, progress)?;
        let named = Repo::with_revision(
            self.id.repo.clone(),
            RepoType::Model,
            self.id.revision.clone(),
        );
        self.cache
            .repo(named)
            .create_ref(&info.sha)
            .map_err(|source| Error::Io {
                path: dir.clone(),
                source,
            })?;
        Ok(dir)
    }

    fn repo(&self, revision: &str) -> ApiRepo {
        let repo = Repo::with_revision(self.id.repo.clone(), RepoType::Model, revision.to_string());
        self.api.repo(repo)
    }

    fn model_dir(&self) -> PathBuf {
        let repo = Repo::model(self.id.repo.clone());
        self.cache.path().join(repo.folder_name())
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.model_dir().join("snapshots").join(commit)
    }

    /// The complete snapshot of the revision in the cache.
    fn cached(&self) -> Option<PathBuf> {
        let commit = match self.id.is_commit() {
            true => self.id.revision.clone(),
            false => {
                let file = self.model_dir().join("refs").join(&self.id.revision);
                std::fs::read_to_string(file).ok()?.trim().to_string()
            }
        };
        let dir = self.snapshot(&commit);
        let complete =
            is_commit(&commit) && dir.join("config.json").is_file() && store::has_weights(&dir);
        complete.then_some(dir)
    }

    /// Fetches what is missing of a commit. Weights come last.
    fn fetch(&self, commit: &str, names: &[&str], progress: &dyn Progress) -> Result<PathBuf> {
        if !names.contains(&"config.json") {
            return Err(self.no_file("config.json"));
        }
        let dir = self.snapshot(commit);
        let small: Vec<&str> = SMALL_FILES
            .iter()
            .copied()
            .filter(|f| names.contains(f))
            .collect();
        self.fetch_files(commit, &small, progress)?;
        if names.contains(&store::SINGLE) {
            self.fetch_files(commit, &[store::SINGLE], progress)?;
            return Ok(dir);
        }
        if !names.contains(&store::INDEX) {
            return Err(self.no_file("model.safetensors and no model.safetensors.index.json"));
        }
        self.fetch_files(commit, &[store::INDEX], progress)?;
        let shards = store::shard_names(&dir.join(store::INDEX))?;
        let shards: Vec<&str> = shards.iter().map(String::as_str).collect();
        if let Some(absent) = shards.iter().find(|s| !names.contains(s)) {
            return Err(self.no_file(absent));
        }
        self.fetch_files(commit, &shards, progress)?;
        Ok(dir)
    }

    fn fetch_files(&self, commit: &str, names: &[&str], progress: &dyn Progress) -> Result<()> {
        let dir = self.snapshot(commit);
        let repo = self.repo(commit);
        let mut missing = Vec::new();
        for name in names.iter().filter(|name| !dir.join(name).is_file()) {
            let data = self.api.metadata(&repo.url(name));
            let data = data.map_err(|e| hub_error(&self.id, name, &e))?;
            if data.etag().is_empty()
                || !data
                    .etag()
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            {
                return Err(self.broken("an etag of letters and digits", data.etag()));
            }
            missing.push((*name, data.size() as u64, data.etag().to_string()));
        }
        if missing.is_empty() {
            return Ok(());
        }
        progress.begin("download", missing.iter().map(|(_, size, _)| size).sum());
        for (name, size, etag) in missing {
            self.fetch_file(&repo, &dir, name, size, &etag, progress)?;
        }
        progress.end();
        Ok(())
    }

    /// Fetches one file, resuming a partial one.
    fn fetch_file(
        &self,
        repo: &ApiRepo,
        dir: &Path,
        name: &str,
        size: u64,
        etag: &str,
        progress: &dyn Progress,
    ) -> Result<()> {
        let blob = self.model_dir().join("blobs").join(etag);
        let part = blob.with_extension("part");
        let length = |path: &Path| std::fs::metadata(path).map(|m| m.len()).ok();
        // Asking for what follows the last byte is refused, so that a whole or overlong partial file would never be used up.
        if length(&part).is_some_and(|len| len >= size) {
            remove(&part)?;
        }
        let report = Report {
            progress,
            seen: 0,
            reported: 0,
        };
        let path = repo
            .download_with_progress(name, report)
            .map_err(|e| hub_error(&self.id, name, &e))?;
        match length(&path) {
            Some(len) if len == size => Ok(()),
            other => {
                remove(&dir.join(name))?;
                remove(&blob)?;
                Err(Error::Hub {
                    model: self.id.repo.clone(),
                    message: format!("{name}: expected {size} bytes, got {}", other.unwrap_or(0)),
                    hint: "the transfer was interrupted; run the command again".into(),
                })
            }
        }
    }

    fn no_file(&self, name: &str) -> Error {
        Error::Hub {
            model: self.id.repo.clone(),
            message: format!("the repository has no {name}"),
            hint: "give a Gemma 4 checkpoint in the Hugging Face layout with safetensors weights"
                .into(),
        }
    }

    fn broken(&self, expected: &str, got: &str) -> Error {
        Error::Hub {
            model: self.id.repo.clone(),
            message: format!("the hub's answer is broken: expected {expected}, got {got:?}"),
            hint: "check HF_ENDPOINT".into(),
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
            path: path.to_path_buf(),
            source,
        }),
        _ => Ok(()),
    }
}

/// The HTTP status that an error carries.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        ApiError::TooManyRetries(inner) => status(inner),
        _ => None,
    }
}

fn hub_error(id: &HubId, what: &str, error: &ApiError) -> Error {
    let hint = match (status(error), error) {
        (Some(401 | 403), _) => {
            "check the spelling; for a gated or private model, accept its terms on the hub, and set HF_TOKEN or run `hf auth login`"
        }
        (Some(404), _) => "check the spelling and the revision; a private model needs HF_TOKEN",
        (Some(429), _) => "the hub asks to slow down: wait, or set HF_TOKEN",
        (_, ApiError::LockAcquisition(_)) => {
            "another process is fetching the same file; wait for it"
        }
        _ => "run the command again: what was received is kept and the transfer resumes",
    };
    Error::Hub {
        model: format!("{}@{}", id.repo, id.revision),
        message: format!("{what}: {error}"),
        hint: hint.into(),
    }
}

/// Passes hf-hub's progress on. hf-hub reports a file's bytes from the start again on each retry.
struct Report<'a> {
    progress: &'a dyn Progress,
    seen: u64,
    reported: u64,
}

impl hf_hub::api::Progress for Report<'_> {
    fn init(&mut self, _size: usize, filename: &str) {
        self.progress.item(filename);
        self.seen = 0;
    }

    fn update(&mut self, size: usize) {
        self.seen += size as u64;
        if self.seen > self.reported {
            self.progress.advance(self.seen - self.reported);
            self.reported = self.seen;
        }
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids() {
        let id = HubId::parse("google/gemma-4-E2B-it").expect("an id");
        assert_eq!(
            (id.repo.as_str(), id.revision.as_str()),
            ("google/gemma-4-E2B-it", "main")
        );
        let id = HubId::parse("a/b.c@refs/pr/3").expect("an id");
        assert_eq!(
            (id.repo.as_str(), id.revision.as_str()),
            ("a/b.c", "refs/pr/3")
        );
        for bad in [
            "",
            "gemma",
            "/abs/path",
            "./here",
            "../up",
            "a/b/c",
            "a/..",
            "a/b@",
            "a/b@../x",
            "a b/c",
            "a/b@x y",
            "-a/b",
            "~/m",
        ] {
            assert!(
                matches!(HubId::parse(bad), Err(Error::BadModelId { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn options_from_variables() {
        let none = HubOptions::from_variables(|_| None, Some("/h".into())).expect("a home");
        assert_eq!(none.endpoint, DEFAULT_ENDPOINT);
        assert_eq!(none.cache, Path::new("/h/.cache/huggingface/hub"));
        assert_eq!((none.token.as_deref(), none.offline), (None, false));
        assert!(HubOptions::from_variables(|_| None, None).is_none());
        let set = |name: &str| {
            let value = match name {
                "HF_HOME" => "/cache",
                "HF_ENDPOINT" => "http://localhost:1/",
                "HF_TOKEN" => "secret\n",
                "HF_HUB_OFFLINE" => "1",
                _ => return None,
            };
            Some(value.to_string())
        };
        let all = HubOptions::from_variables(set, None).expect("a cache");
        assert_eq!(all.endpoint, "http://localhost:1");
        assert_eq!(all.cache, Path::new("/cache/hub"));
        assert_eq!((all.token.as_deref(), all.offline), (Some("secret"), true));
    }
}
