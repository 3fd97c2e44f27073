//! Where the hub is, where files go and who asks: the variables of the `huggingface_hub` client.

use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::proxy::Proxies;
use super::{Error, Result};

/// Where published models are.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Times that a broken transfer is resumed before giving up.
const DEFAULT_RETRIES: usize = 5;
/// Silence after which a server is given up.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the first retry; each further one doubles.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Where the hub is, where files go and who asks.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// Address of the hub without a final slash; it may have a path.
    pub endpoint: String,
    /// The cache directory, `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// Access token for gated models.
    pub token: Option<String>,
    /// File that holds the token when `token` is `None`, as `hf auth login` writes it. It need not be there.
    pub token_file: Option<PathBuf>,
    /// Times that a broken transfer is resumed before giving up.
    pub retries: usize,
    /// Pause before the first retry. It doubles up to eight times its length.
    pub retry_wait: Duration,
    /// Silence of the hub after which a question about a file is given up.
    pub etag_timeout: Duration,
    /// Silence of a server after which a transfer is broken off and resumed. The whole transfer may take any time.
    pub download_timeout: Duration,
    /// Use what is in the cache and no network.
    pub offline: bool,
    /// Whether snapshots are symbolic links to `blobs/`. Otherwise, and where the file system has none, they hold the files.
    pub symlinks: bool,
    /// Proxies by scheme.
    pub proxies: Proxies,
}

impl HubOptions {
    /// Options from the environment. An error when there is neither a cache variable nor a home directory, or when a variable
    /// makes no sense.
    pub fn from_env() -> Result<Self> {
        let odd = std::cell::Cell::new(None);
        let get = |name: &str| match std::env::var(name) {
            Err(std::env::VarError::NotUnicode(_)) => {
                odd.set(Some(name.to_string()));
                None
            }
            value => value.ok(),
        };
        let options = Self::from_variables(get, std::env::home_dir());
        match odd.take() {
            Some(name) => Err(invalid(&name, "a value in UTF-8", "other bytes")),
            None => options,
        }
    }

    /// [`from_env`](Self::from_env) with another source of variables. Blank values count as absent.
    pub fn from_variables(
        get: impl Fn(&str) -> Option<String>,
        home: Option<PathBuf>,
    ) -> Result<Self> {
        let any = &get;
        let get = |name: &str| any(name).filter(|value| !value.trim().is_empty());
        let home = home.as_deref();
        let path = |name: &str| get(name).map(|value| expand(&value, home, any));
        let base = path("HF_HOME").or_else(|| {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(home?.join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(base.as_ref()?.join("hub")));
        let cache = cache.ok_or_else(|| Error::Hub {
            model: "HF_HOME".into(),
            message: "no home directory to keep the download in".into(),
            hint: "set HF_HOME".into(),
        })?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(base?.join("token")));
        let token = get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN"));
        let asked = !is_true(get("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into());
        parse_endpoint(&endpoint)?;
        Ok(Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_string(),
            cache,
            token: token
                .and_then(|token| clean_token(&token))
                .filter(|_| asked),
            token_file: token_file.filter(|_| asked),
            retries: DEFAULT_RETRIES,
            retry_wait: RETRY_WAIT,
            etag_timeout: seconds("HF_HUB_ETAG_TIMEOUT", get("HF_HUB_ETAG_TIMEOUT"))?,
            download_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", get("HF_HUB_DOWNLOAD_TIMEOUT"))?,
            offline: is_true(get("HF_HUB_OFFLINE").or_else(|| get("TRANSFORMERS_OFFLINE"))),
            symlinks: !is_true(get("HF_HUB_DISABLE_SYMLINKS")),
            proxies: Proxies::from_variables(&get),
        })
    }

    /// The token to ask with.
    pub(super) fn find_token(&self) -> Result<Option<String>> {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => clean_token(token),
            (None, None) => None,
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => clean_token(&text),
                Err(e) if matches!(e.kind(), NotFound | NotADirectory) => None,
                Err(source) => {
                    return Err(Error::Io {
                        path: path.clone(),
                        source,
                    });
                }
            },
        };
        match token {
            Some(token) if !token.bytes().all(|b| b.is_ascii_graphic()) => Err(invalid(
                "HF_TOKEN",
                "a token of letters, digits and `_`",
                "other characters",
            )),
            token => Ok(token),
        }
    }
}

/// The token stays out of messages and logs.
impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// The endpoint as an address that paths can be added to.
pub(super) fn parse_endpoint(endpoint: &str) -> Result<Url> {
    let expected = "an address like https://huggingface.co";
    let url =
        Url::parse(endpoint.trim()).map_err(|_| invalid("HF_ENDPOINT", expected, endpoint))?;
    let known = matches!(url.scheme(), "http" | "https");
    match known && url.has_host() && url.query().is_none() && url.fragment().is_none() {
        true => Ok(url),
        false => Err(invalid("HF_ENDPOINT", expected, endpoint)),
    }
}

fn invalid(name: &str, expected: &str, got: &str) -> Error {
    Error::Hub {
        model: name.into(),
        message: format!("expected {expected}, got {got:?}"),
        hint: format!("set {name} anew or unset it"),
    }
}

fn is_true(value: Option<String>) -> bool {
    let value = value.map(|v| v.trim().to_ascii_uppercase());
    value.is_some_and(|v| matches!(v.as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// A number of seconds; 0 means the default.
fn seconds(name: &str, value: Option<String>) -> Result<Duration> {
    match value.as_deref().map(|v| (v, v.trim().parse::<u32>())) {
        None | Some((_, Ok(0))) => Ok(DEFAULT_TIMEOUT),
        Some((_, Ok(n))) => Ok(Duration::from_secs(n.into())),
        Some((text, Err(_))) => Err(invalid(name, "a whole number of seconds", text)),
    }
}

/// Without line ends and blanks around it; `None` when nothing is left.
fn clean_token(token: &str) -> Option<String> {
    let token = token.replace(['\r', '\n'], "");
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_string())
}

/// `~` at the start, then `$NAME` and `${NAME}`; what is not set stays as it is written.
fn expand(value: &str, home: Option<&Path>, get: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let at_home = |text: &str| match (text.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            format!("{}{rest}", home.display())
        }
        _ => text.to_string(),
    };
    let value = at_home(value);
    let mut out = String::with_capacity(value.len());
    let mut rest = value.as_str();
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        let (name, after) = match tail.strip_prefix('{').and_then(|t| t.split_once('}')) {
            Some(braced) => braced,
            None => {
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                tail.split_at(tail.find(|c| !word(c)).unwrap_or(tail.len()))
            }
        };
        let written = &rest[at..rest.len() - after.len()];
        match get(name).filter(|_| !name.is_empty()) {
            Some(set) => out.push_str(&set),
            None => out.push_str(written),
        }
        rest = after;
    }
    out.push_str(rest);
    PathBuf::from(at_home(&out))
}
