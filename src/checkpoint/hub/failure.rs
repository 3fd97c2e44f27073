//! Why a request failed, whether it may be repeated, and what to do about it.

use std::time::Duration;

/// Longest text of a server that is passed on.
const LONGEST_TEXT: usize = 300;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// There is no connection: no such host, refused, no proxy.
    Unreachable,
    /// The connection was lost, or nothing came for too long.
    Cut,
    /// The server answered with this status.
    Status(u16),
    /// The answer makes no sense as one of the hub.
    Broken,
}

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub why: Why,
    /// What the hub calls it (`X-Error-Code`), or nothing.
    pub code: String,
    pub text: String,
    /// How long the server asks to wait.
    pub wait: Option<Duration>,
    /// True when the answer came from another host than the endpoint's.
    pub foreign: bool,
}

impl Failure {
    pub fn new(why: Why, text: impl Into<String>) -> Self {
        Self {
            why,
            code: String::new(),
            text: text.into(),
            wait: None,
            foreign: false,
        }
    }

    pub fn broken(text: impl Into<String>) -> Self {
        Self::new(Why::Broken, text)
    }

    pub fn cut(text: impl Into<String>) -> Self {
        Self::new(Why::Cut, text)
    }

    /// Whether the same request may do better a little later.
    pub fn passes(&self) -> bool {
        match self.why {
            Why::Unreachable | Why::Cut => true,
            Why::Status(code) => matches!(code, 408 | 429 | 500 | 502 | 503 | 504),
            Why::Broken => false,
        }
    }

    /// True when the hub says that the repository has no such revision: what is in the cache is not it either.
    pub fn is_no_revision(&self) -> bool {
        self.code == "RevisionNotFound"
    }

    pub fn hint(&self, with_token: bool) -> String {
        let text = match (self.why, self.code.as_str()) {
            (_, "RevisionNotFound") => {
                "check the revision after `@`: a branch, a tag, a commit or refs/pr/N"
            }
            (_, "GatedRepo") if with_token => {
                "accept the model's terms on its page, with the account that the token in HF_TOKEN or of `hf auth login` belongs to"
            }
            (_, "GatedRepo") => {
                "accept the model's terms on its page, then set HF_TOKEN or run `hf auth login`"
            }
            (Why::Status(401 | 403), _) if self.foreign => {
                "the server that keeps the file refuses it, not the hub: check the clock and the proxy"
            }
            (Why::Status(401 | 403), _) if with_token => {
                "check the spelling, and that the token in HF_TOKEN or of `hf auth login` is valid and may read the model; a gated model's terms must be accepted on its page"
            }
            (Why::Status(401 | 403), _) => {
                "check the spelling; for a gated or private model, accept its terms on the hub, and set HF_TOKEN or run `hf auth login`"
            }
            (Why::Status(404 | 410), _) if with_token => {
                "check the spelling and the revision; a private model needs a token that may read it"
            }
            (Why::Status(404 | 410), _) => {
                "check the spelling and the revision; a private model needs HF_TOKEN"
            }
            (Why::Status(407), _) => "the proxy asks for a name and password: check HTTPS_PROXY",
            (Why::Status(429), _) => return self.slow_down(),
            (Why::Status(500..), _) => "the hub has a fault of its own: try later",
            (Why::Status(_), _) => {
                "the hub refuses the request as such: check the spelling, and HF_ENDPOINT if it is set"
            }
            (Why::Cut, _) => {
                "run the command again: what was received is kept and the transfer resumes"
            }
            (Why::Unreachable, _) => {
                "check the network, the proxy variables, and HF_ENDPOINT if it is set"
            }
            (Why::Broken, _) => {
                "check HF_ENDPOINT if it is set, and whether a proxy or a login page answers in the hub's place"
            }
        };
        text.into()
    }

    fn slow_down(&self) -> String {
        match self.wait {
            Some(wait) => format!(
                "the hub asks to wait {} s; with HF_TOKEN it allows more",
                wait.as_secs()
            ),
            None => "the hub asks to slow down: wait some minutes, or set HF_TOKEN".into(),
        }
    }
}

/// A server's text as one short line without control characters.
pub(super) fn printable(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut out: String = line
        .chars()
        .map(|c| if hidden(c) { '?' } else { c })
        .take(LONGEST_TEXT + 1)
        .collect();
    if out.chars().count() > LONGEST_TEXT {
        out.pop();
        out.push_str("...");
    }
    out
}
