//! Requests to the hub. Redirects are followed here, one by one, so that the token goes to the endpoint's host alone: once an
//! address leads elsewhere (a CDN, a bridge to xet storage, a signed address), nothing further carries it.

use std::io::Read;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use ureq::http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, LOCATION, RANGE,
};
use ureq::http::{Method, Request, Response};
use ureq::{Agent, Body, Proxy};
use url::Url;

use super::Result;
use super::failure::{Failure, Why, printable};
use super::options::{HubOptions, parse_endpoint};

/// Redirects that are followed for one request, as many as `huggingface_hub` follows.
const REDIRECTS: usize = 20;
/// Longest list of files that is read.
const LONGEST_LISTING: u64 = 64 << 20;
/// Bytes of an error's text that are read.
const LONGEST_ERROR: u64 = 64 << 10;
/// A list of files may take this many times the silence that is allowed.
const LISTING_FACTOR: u32 = 6;
/// Longest pause that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// What the hub says of a file.
#[derive(Debug, Clone)]
pub(super) struct Metadata {
    /// Name of the blob: SHA-256 of a large file, git's hash of a small one, or what a mirror has.
    pub etag: String,
    /// Bytes, where the hub tells.
    pub size: Option<u64>,
}

/// A connection to the hub.
pub(super) struct Client<'a> {
    agent: Agent,
    options: &'a HubOptions,
    endpoint: Url,
    token: Option<HeaderValue>,
}

/// One question, over all its redirects.
struct Ask<'a> {
    method: Method,
    url: &'a Url,
    range: Option<String>,
    silence: Duration,
    whole: Option<Duration>,
}

impl<'a> Client<'a> {
    pub fn new(options: &'a HubOptions) -> Result<Self> {
        let token = options.find_token()?;
        let token = token.and_then(|t| HeaderValue::from_str(&format!("Bearer {t}")).ok());
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("gemma-coreml/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .build()
            .new_agent();
        Ok(Self {
            agent,
            options,
            endpoint: parse_endpoint(&options.endpoint)?,
            token,
        })
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    pub fn options(&self) -> &HubOptions {
        self.options
    }

    /// The address below the endpoint with these parts, each escaped.
    pub fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        // An address with a host always has segments.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// The commit and the files of a revision.
    pub fn list(&self, url: &Url) -> Result<RepoInfo, Failure> {
        let silence = self.options.etag_timeout;
        let response = self.follow(
            &Ask {
                method: Method::GET,
                url,
                range: None,
                silence,
                whole: Some(silence * LISTING_FACTOR),
            },
            |_, _, _| false,
        )?;
        let body = response
            .into_body()
            .into_with_config()
            .limit(LONGEST_LISTING);
        let bytes = body
            .read_to_vec()
            .map_err(|e| self.lost(&e, url, silence))?;
        serde_json::from_slice(&bytes).map_err(|e| match bytes.trim_ascii_start().first() {
            Some(b'<') => Failure::broken(format!(
                "{} answers with a web page, not with the hub's JSON",
                shown(url)
            )),
            _ => Failure::broken(format!("{}: not the JSON of a repository: {e}", shown(url))),
        })
    }

    /// What the hub says of a file of a commit. Headers of the endpoint's own answers count, those of other hosts only where
    /// the endpoint gives none.
    pub fn metadata(&self, url: &Url, commit: &str) -> Result<Metadata, Failure> {
        match self.probe(Method::HEAD, url, commit) {
            // Servers that do not know HEAD; and addresses signed for GET alone.
            Err(f)
                if matches!(f.why, Why::Status(405 | 501))
                    || f.foreign && f.why == Why::Status(403) =>
            {
                self.probe(Method::GET, url, commit)
            }
            other => other,
        }
    }

    fn probe(&self, method: Method, url: &Url, commit: &str) -> Result<Metadata, Failure> {
        let range = (method == Method::GET).then(|| "bytes=0-0".to_string());
        let ask = Ask {
            method,
            url,
            range,
            silence: self.options.etag_timeout,
            whole: None,
        };
        let (mut etag, mut size, mut found) = (None, None, None);
        let response = self.follow(&ask, |headers, trusted, leaves| {
            if trusted {
                let get = |name: &str| text(headers, name);
                etag = etag.take().or_else(|| get("x-linked-etag"));
                size = size.or_else(|| get("x-linked-size")?.parse().ok());
                found = found.take().or_else(|| get("x-repo-commit"));
            }
            leaves && etag.is_some()
        })?;
        let headers = response.headers();
        if response.status().is_success() {
            etag = etag.or_else(|| text(headers, ETAG.as_str()));
            size = size.or_else(|| length(headers));
        }
        if let Some(found) = found.filter(|found| found != commit) {
            return Err(Failure::broken(format!(
                "{}: expected commit {commit}, got {:?}",
                shown(url),
                printable(&found)
            )));
        }
        let etag =
            etag.ok_or_else(|| Failure::broken(format!("{}: the answer has no ETag", shown(url))))?;
        let name = etag.strip_prefix("W/").unwrap_or(&etag).trim_matches('"');
        match is_file_name(name) {
            true => Ok(Metadata {
                etag: name.to_string(),
                size,
            }),
            false => Err(Failure::broken(format!(
                "{}: expected an etag of letters and digits, got {:?}",
                shown(url),
                printable(&etag)
            ))),
        }
    }

    /// The bytes of a file from `from` on. The answer's status is 200 (all of it) or 206.
    pub fn open(&self, url: &Url, from: u64) -> Result<Response<Body>, Failure> {
        let ask = Ask {
            method: Method::GET,
            url,
            range: (from > 0).then(|| format!("bytes={from}-")),
            silence: self.options.download_timeout,
            whole: None,
        };
        self.follow(&ask, |_, _, _| false)
    }

    /// How long to wait before a failed request is repeated for the `tries`th time; `None` when it is not.
    pub fn pause(&self, failure: &Failure, tries: usize) -> Option<Duration> {
        if !failure.passes() || tries >= self.options.retries {
            return None;
        }
        let own = self.options.retry_wait * (1 << tries.min(3));
        match failure.wait {
            Some(asked) if asked > LONGEST_WAIT => None,
            Some(asked) => Some(asked.max(own)),
            None => Some(own),
        }
    }

    /// Repeats a request while that may help.
    pub fn retrying<T>(&self, request: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        self.retrying_while(|_| true, request)
    }

    /// Repeats a request while that may help and `worth` says so of its failure.
    pub fn retrying_while<T>(
        &self,
        worth: impl Fn(&Failure) -> bool,
        mut request: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut tries = 0;
        loop {
            let failure = match request() {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            match self.pause(&failure, tries).filter(|_| worth(&failure)) {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(failure),
            }
            tries += 1;
        }
    }

    /// Asks and follows redirects. `see` looks at the headers of each answer: whether it is the endpoint's own, and whether it
    /// leads away from it; when it returns true, that answer is the last.
    fn follow(
        &self,
        ask: &Ask,
        mut see: impl FnMut(&HeaderMap, bool, bool) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let (mut url, mut trusted) = (ask.url.clone(), true);
        for _ in 0..=REDIRECTS {
            let response = self.once(ask, &url, trusted)?;
            let next = match response.status().is_redirection() {
                true => Some(next(&url, &response)?),
                false => None,
            };
            let stays = next
                .as_ref()
                .is_some_and(|next| trusted && self.is_own(next));
            if see(response.headers(), trusted, next.is_some() && !stays) {
                return Ok(response);
            }
            match next {
                None => return self.check(response, &url, trusted),
                Some(next) => (url, trusted) = (next, stays),
            }
        }
        Err(Failure::broken(format!(
            "{} leads through more than {REDIRECTS} redirects, the last to {}",
            shown(ask.url),
            shown(&url)
        )))
    }

    /// Whether the token may go to an address: the endpoint's scheme, host and port, or its host by https in place of http.
    fn is_own(&self, url: &Url) -> bool {
        let endpoint = &self.endpoint;
        let upgraded = (endpoint.scheme(), url.scheme()) == ("http", "https")
            && (endpoint.port(), url.port()) == (None, None)
            && endpoint.host() == url.host();
        endpoint.origin() == url.origin() || upgraded
    }

    fn once(&self, ask: &Ask, url: &Url, trusted: bool) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(&ask.method).uri(url.as_str());
        if let Some(token) = self.token.as_ref().filter(|_| trusted) {
            request = request.header(AUTHORIZATION, token);
        }
        if let Some(range) = &ask.range {
            request = request.header(RANGE, range);
        }
        let broken = |e: &dyn std::fmt::Display| Failure::broken(format!("{}: {e}", shown(url)));
        let request = request.body(()).map_err(|e| broken(&e))?;
        let proxy = self.options.proxies.of(url).map(Proxy::new).transpose();
        let proxy = proxy.map_err(|_| {
            Failure::broken("HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is not an address")
        })?;
        let silence = Some(ask.silence);
        let request = self
            .agent
            .configure_request(request)
            .proxy(proxy)
            .timeout_resolve(silence)
            .timeout_connect(silence)
            .timeout_send_request(silence)
            .timeout_recv_response(silence)
            .timeout_per_read(silence)
            .timeout_recv_body(ask.whole)
            .build();
        self.agent
            .run(request)
            .map_err(|e| self.lost(&e, url, ask.silence))
    }

    /// An answer that is no success as a failure, with what the server says about it.
    fn check(
        &self,
        response: Response<Body>,
        url: &Url,
        trusted: bool,
    ) -> Result<Response<Body>, Failure> {
        let status = response.status();
        if matches!(status.as_u16(), 200 | 206) {
            return Ok(response);
        }
        let headers = response.headers();
        let get = |name: &str| text(headers, name);
        let (code, header, wait) = (
            get("x-error-code"),
            get("x-error-message"),
            asked_wait(headers),
        );
        let mut bytes = Vec::new();
        // What the server says is a help; without it the status must do.
        let _ = response
            .into_body()
            .into_reader()
            .take(LONGEST_ERROR)
            .read_to_end(&mut bytes);
        let said = header
            .or_else(|| body_text(&bytes))
            .map(|said| printable(&said));
        let reason = status.canonical_reason().unwrap_or_default();
        let mut message = format!("HTTP {} {reason}", status.as_u16())
            .trim_end()
            .to_string();
        if !trusted {
            message += &format!(" from {}", url.host_str().unwrap_or_default());
        }
        if let Some(said) = said.filter(|said| !said.is_empty()) {
            message += &format!(": {said}");
        }
        Err(Failure {
            why: Why::Status(status.as_u16()),
            code: code.filter(|_| trusted).unwrap_or_default(),
            text: message,
            wait,
            foreign: !trusted,
        })
    }

    /// A connection that fails or breaks.
    pub fn lost(&self, error: &ureq::Error, url: &Url, silence: Duration) -> Failure {
        use std::io::ErrorKind::{
            ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable,
        };
        use ureq::Error as E;
        let at = shown(url);
        match error {
            E::Timeout(kind @ (ureq::Timeout::Connect | ureq::Timeout::Resolve)) => Failure::new(
                Why::Unreachable,
                format!("{at}: no connection within {silence:?} ({kind})"),
            ),
            E::Timeout(_) => Failure::cut(format!("{at}: no answer within {silence:?}")),
            E::HostNotFound => {
                Failure::new(Why::Unreachable, format!("{at}: there is no such host"))
            }
            E::ConnectProxyFailed(_) | E::ConnectionFailed => {
                Failure::new(Why::Unreachable, format!("{at}: {error}"))
            }
            E::Io(e)
                if matches!(
                    e.kind(),
                    ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown
                ) =>
            {
                Failure::new(Why::Unreachable, format!("{at}: {e}"))
            }
            E::Io(e) => Failure::cut(format!("{at}: {e}")),
            _ => Failure::broken(format!("{at}: {error}")),
        }
    }
}

/// Where a redirect leads.
fn next(url: &Url, response: &Response<Body>) -> Result<Url, Failure> {
    let status = response.status().as_u16();
    let Some(location) = text(response.headers(), LOCATION.as_str()) else {
        return Err(Failure::broken(format!(
            "{}: HTTP {status} without a Location",
            shown(url)
        )));
    };
    match url.join(&location) {
        Ok(next) if matches!(next.scheme(), "http" | "https") && next.has_host() => Ok(next),
        _ => Err(Failure::broken(format!(
            "{}: HTTP {status} leads to {:?}, which is no web address",
            shown(url),
            printable(&location)
        ))),
    }
}

/// An address without what may be secret: name and password, and the query, in which signatures are.
pub(super) fn shown(url: &Url) -> String {
    let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
    let host = url.host_str().unwrap_or_default();
    printable(&format!("{}://{host}{port}{}", url.scheme(), url.path()))
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then(|| value.to_string())
}

/// Length of the whole file: after the slash of `Content-Range`, or `Content-Length`.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    match text(headers, CONTENT_RANGE.as_str()) {
        Some(range) => range.rsplit_once('/')?.1.trim().parse().ok(),
        None => text(headers, CONTENT_LENGTH.as_str())?.parse().ok(),
    }
}

/// Position of the first byte of a partial answer.
pub(super) fn begin(headers: &HeaderMap) -> Option<u64> {
    let range = text(headers, CONTENT_RANGE.as_str())?;
    let (begin, _) = range.trim_start_matches("bytes").trim().split_once('-')?;
    begin.trim().parse().ok()
}

/// A name for a blob: nothing that leads out of its directory, or that could be another file in it.
fn is_file_name(name: &str) -> bool {
    let char_ok =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'+' | b'=' | b':');
    !name.is_empty() && name.len() <= 128 && name.bytes().all(char_ok)
}

/// Seconds of `Retry-After`, or those of the hub's `RateLimit` when nothing is left of it.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let after = text(headers, "retry-after").and_then(|v| v.parse().ok());
    let limit = || {
        let limit = text(headers, "ratelimit")?;
        let field = |name: &str| -> Option<u64> {
            let mut fields = limit.split(';').map(str::trim);
            fields.find_map(|f| f.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        };
        (field("r")? == 0).then(|| field("t"))?
    };
    after.or_else(limit).map(Duration::from_secs)
}

/// The message in the body of an error: JSON's `error`, or plain text. No web pages.
fn body_text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    if let Ok(value) = serde_json::from_str::<serde_json::Value>(text) {
        let error = value.get("error")?;
        let first = error.as_array().and_then(|a| a.first()).unwrap_or(error);
        return first.as_str().map(str::to_string);
    }
    (!text.starts_with('<')).then(|| text.to_string())
}
