//! Which proxy a request goes through.

use url::Url;

/// Proxies by scheme of the address asked for, and hosts that are asked directly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http://` addresses.
    pub http: Option<String>,
    /// For `https://` addresses.
    pub https: Option<String>,
    /// Entries of `NO_PROXY`: `*`, a host (which stands for its subdomains, too), `.domain` for the subdomains alone, `host:port`.
    pub bypass: Vec<String>,
}

impl Proxies {
    /// From `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. Names in lower case come first, as everywhere on Unix.
    pub(super) fn from_variables(get: &impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| get(&name.to_ascii_lowercase()).or_else(|| get(name));
        let all = either("ALL_PROXY");
        let bypass = either("NO_PROXY").unwrap_or_default();
        Self {
            http: either("HTTP_PROXY").or_else(|| all.clone()),
            https: either("HTTPS_PROXY").or(all),
            bypass: bypass
                .split(',')
                .map(|entry| entry.trim().to_ascii_lowercase())
                .filter(|entry| !entry.is_empty())
                .collect(),
        }
    }

    /// The proxy for an address; `None` when it is asked directly.
    pub(super) fn of(&self, url: &Url) -> Option<&str> {
        let proxy = match url.scheme() {
            "https" => self.https.as_deref()?,
            _ => self.http.as_deref()?,
        };
        let host = url
            .host_str()?
            .trim_matches(['[', ']'])
            .to_ascii_lowercase();
        let port = url.port_or_known_default();
        (!self.bypass.iter().any(|entry| matches(entry, &host, port))).then_some(proxy)
    }
}

fn matches(entry: &str, host: &str, port: Option<u16>) -> bool {
    if entry == "*" || entry.trim_matches(['[', ']']) == host {
        return true;
    }
    let (name, wanted) = match entry.rsplit_once(':') {
        Some((name, digits)) if !name.ends_with(':') && digits.parse::<u16>().is_ok() => {
            (name, digits.parse::<u16>().ok())
        }
        _ => (entry, None),
    };
    if wanted.is_some() && wanted != port {
        return false;
    }
    let domain = name.strip_prefix('*').unwrap_or(name);
    match domain.strip_prefix('.') {
        Some(_) => host.ends_with(domain),
        None => {
            host == domain
                || host
                    .strip_suffix(domain)
                    .is_some_and(|rest| rest.ends_with('.'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_go_by_scheme_and_bypass() {
        let set = |name: &str| {
            let value = match name {
                "https_proxy" => "http://lower:1",
                "HTTPS_PROXY" => "http://upper:1",
                "ALL_PROXY" => "http://all:1",
                "NO_PROXY" => "localhost, .corp,example.org ,10.0.0.1,::1,mirror:8080",
                _ => return None,
            };
            Some(value.to_string())
        };
        let proxies = Proxies::from_variables(&set);
        for (url, proxy) in [
            ("https://huggingface.co/x", Some("http://lower:1")),
            ("http://huggingface.co/x", Some("http://all:1")),
            ("https://localhost:8080/", None),
            ("https://hub.corp/", None),
            ("https://corp/", Some("http://lower:1")),
            ("https://example.org/", None),
            ("https://a.Example.org/", None),
            ("https://badexample.org/", Some("http://lower:1")),
            ("http://10.0.0.1/", None),
            ("http://10.0.0.12/", Some("http://all:1")),
            ("http://[::1]:9/", None),
            ("http://mirror:8080/", None),
            ("http://mirror:80/", Some("http://all:1")),
        ] {
            let url: Url = url.parse().expect("an address");
            assert_eq!(proxies.of(&url), proxy, "{url}");
        }
        let none = Proxies::from_variables(&|name| {
            (name == "HTTP_PROXY").then(|| "http://plain:1".into())
        });
        assert_eq!(
            none.of(&"https://huggingface.co".parse().expect("an address")),
            None
        );
    }
}
