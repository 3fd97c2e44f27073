//! Variables, the token, and what the hub says of repositories that it does not show.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gemma_coreml::checkpoint::{HubOptions, resolve_with};
use gemma_coreml::progress::NoProgress;

use super::mock::{Hub, REPO, Reply, hub_error};

fn options(set: &[(&str, &str)]) -> Result<HubOptions, String> {
    let get = |name: &str| {
        let found = set.iter().find(|(n, _)| *n == name);
        found.map(|(_, value)| value.to_string())
    };
    HubOptions::from_variables(get, Some("/home/me".into())).map_err(|e| e.to_string())
}

/// Expected values are those of `huggingface_hub.constants` 2.4 for the same variables, but for blank ones, which count as unset.
#[test]
fn the_cache_is_where_the_python_client_has_it() {
    let default = "/home/me/.cache/huggingface/hub";
    for (set, cache) in [
        (&[][..], default),
        (&[("HF_HOME", "/a")], "/a/hub"),
        (&[("HF_HOME", "~/a")], "/home/me/a/hub"),
        (&[("HF_HOME", "$X/b"), ("X", "/x")], "/x/b/hub"),
        (
            &[("HF_HOME", "${X}y/$UNSET/${UNSET}"), ("X", "/x")],
            "/xy/$UNSET/${UNSET}/hub",
        ),
        (&[("HF_HOME", "/a$")], "/a$/hub"),
        (&[("XDG_CACHE_HOME", "/xdg")], "/xdg/huggingface/hub"),
        (
            &[("XDG_CACHE_HOME", "~/xdg")],
            "/home/me/xdg/huggingface/hub",
        ),
        (&[("XDG_CACHE_HOME", "/xdg"), ("HF_HOME", "/a")], "/a/hub"),
        (
            &[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/a")],
            "/old",
        ),
        (
            &[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/c")],
            "/c",
        ),
        (&[("HF_HUB_CACHE", "~/c")], "/home/me/c"),
        (&[("HF_HUB_CACHE", "$X/c"), ("X", "~")], "/home/me/c"),
        (&[("HF_HUB_CACHE", "/a~b")], "/a~b"),
        (&[("TRANSFORMERS_CACHE", "/t")], default),
        (&[("HF_HOME", "")], default),
        (&[("HF_HUB_CACHE", " "), ("HF_HOME", "/a")], "/a/hub"),
    ] {
        let options = options(set).expect("options");
        assert_eq!(options.cache, Path::new(cache), "{set:?}");
    }
    HubOptions::from_variables(|_| None, None).expect_err("nowhere to keep anything");
    let there = |name: &str| (name == "HF_HUB_CACHE").then(|| "/c".to_string());
    let options = HubOptions::from_variables(there, None).expect("options");
    assert_eq!(
        (options.cache, options.token_file),
        (PathBuf::from("/c"), None)
    );
}

#[test]
fn the_token_is_found_where_the_python_client_finds_it() {
    let file = |path: &str| Some(PathBuf::from(path));
    let own = |token: &str| Some(token.to_string());
    for (set, token, path) in [
        (&[][..], None, file("/home/me/.cache/huggingface/token")),
        (&[("HF_HOME", "/a")], None, file("/a/token")),
        // The cache may be elsewhere; the token stays at home.
        (
            &[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/a")],
            None,
            file("/a/token"),
        ),
        (&[("HF_TOKEN_PATH", "~/t")], None, file("/home/me/t")),
        (
            &[("HF_TOKEN", " hf_a\r\n")],
            own("hf_a"),
            file("/home/me/.cache/huggingface/token"),
        ),
        (
            &[("HF_TOKEN", "hf_a"), ("HUGGING_FACE_HUB_TOKEN", "hf_b")],
            own("hf_a"),
            file("/home/me/.cache/huggingface/token"),
        ),
        (
            &[("HF_TOKEN", ""), ("HUGGING_FACE_HUB_TOKEN", "hf_b")],
            own("hf_b"),
            file("/home/me/.cache/huggingface/token"),
        ),
        (
            &[("HF_TOKEN", "hf_a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")],
            None,
            None,
        ),
        (
            &[
                ("HF_TOKEN", "hf_a"),
                ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0"),
                ("HF_HOME", "/a"),
            ],
            own("hf_a"),
            file("/a/token"),
        ),
    ] {
        let options = options(set).expect("options");
        assert_eq!(
            (options.token.clone(), options.token_file.clone()),
            (token, path),
            "{set:?}"
        );
        assert!(!format!("{options:?}").contains("hf_"), "no token in a log");
    }
}

#[test]
fn switches_and_seconds() {
    for (value, on) in [
        ("1", true),
        ("ON", true),
        ("Yes", true),
        ("true", true),
        ("0", false),
        ("off", false),
        ("", false),
        ("y", false),
        ("2", false),
    ] {
        let one = |name: &str| options(&[(name, value)]).expect("options");
        assert_eq!(one("HF_HUB_OFFLINE").offline, on, "{value:?}");
        assert_eq!(one("TRANSFORMERS_OFFLINE").offline, on, "{value:?}");
        assert_eq!(one("HF_HUB_DISABLE_SYMLINKS").symlinks, !on, "{value:?}");
    }
    let both = [("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")];
    assert!(
        !options(&both).expect("options").offline,
        "the hub's own variable decides"
    );
    for (value, seconds) in [("3", 3), ("0", 10), ("", 10), (" 7 ", 7)] {
        let set = [
            ("HF_HUB_ETAG_TIMEOUT", value),
            ("HF_HUB_DOWNLOAD_TIMEOUT", value),
        ];
        let options = options(&set).expect("options");
        let expected = Duration::from_secs(seconds);
        assert_eq!(
            (options.etag_timeout, options.download_timeout),
            (expected, expected)
        );
    }
    for (name, value) in [
        ("HF_HUB_ETAG_TIMEOUT", "soon"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "-1"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "2.5"),
        ("HF_ENDPOINT", "mirror.example"),
        ("HF_ENDPOINT", "ftp://x"),
        ("HF_ENDPOINT", "http://"),
        ("HF_ENDPOINT", "https://x/?a=b"),
    ] {
        let error = options(&[(name, value)]).expect_err(value);
        assert!(error.starts_with(name) && error.contains(value), "{error}");
    }
    for (value, endpoint) in [
        ("https://m/hf/", "https://m/hf"),
        ("http://m:1//", "http://m:1"),
        ("", "https://huggingface.co"),
    ] {
        assert_eq!(
            options(&[("HF_ENDPOINT", value)])
                .expect("options")
                .endpoint,
            endpoint
        );
    }
}

#[test]
fn the_token_goes_to_the_endpoint_alone() {
    let hub = Hub::start("e4b-tiny");
    hub.with(|s| s.token = Some("hf_secret".into()));
    let with = HubOptions {
        token: Some("hf_secret".into()),
        ..hub.options()
    };
    resolve_with(REPO, &with, &NoProgress).expect("a snapshot");
    let requests = hub.requests();
    assert!(requests.iter().any(|r| r.cdn) && requests.iter().any(|r| !r.cdn));
    for request in &requests {
        assert_eq!(request.token.is_some(), !request.cdn, "{request:?}");
    }
}

/// The way back from another host does not carry the token either, nor does the host's name with another port.
#[test]
fn a_token_that_was_left_off_stays_off() {
    let hub = Hub::start("e4b-tiny");
    hub.on(|request, state| {
        let path = request.path.clone();
        match (request.cdn, request.method.as_str()) {
            (true, _) if path.starts_with("/blob/") => {
                let name = path
                    .split('?')
                    .next()?
                    .trim_start_matches("/blob/")
                    .to_string();
                Some(Reply::redirect(
                    302,
                    format!("http://{}/back/{name}", state.hub),
                ))
            }
            (false, _) if path.starts_with("/back/") => Some(Reply::new(
                200,
                state.files[path.trim_start_matches("/back/")].clone(),
            )),
            _ => None,
        }
    });
    let with = HubOptions {
        token: Some("hf_secret".into()),
        ..hub.options()
    };
    resolve_with(REPO, &with, &NoProgress).expect("a snapshot");
    let back: Vec<_> = hub
        .requests()
        .into_iter()
        .filter(|r| r.path.starts_with("/back/"))
        .collect();
    assert!(
        !back.is_empty() && back.iter().all(|r| r.token.is_none()),
        "{back:?}"
    );
}

/// A repository that was renamed: the address on the same host gets the token.
#[test]
fn redirects_on_the_same_host_keep_the_token() {
    let hub = Hub::start("e4b-tiny");
    hub.with(|s| s.token = Some("hf_secret".into()));
    hub.on(|request, _| {
        let old = request.path.contains("old-org/old-name");
        old.then(|| Reply::redirect(307, request.path.replace("old-org/old-name", REPO)))
    });
    let with = HubOptions {
        token: Some("hf_secret".into()),
        ..hub.options()
    };
    let dir = resolve_with("old-org/old-name", &with, &NoProgress).expect("a snapshot");
    assert!(dir.to_string_lossy().contains("models--old-org--old-name"));
    for request in hub.requests() {
        assert_eq!(request.token.is_some(), !request.cdn, "{request:?}");
    }
}

#[test]
fn unknown_and_gated_models() {
    let hub = Hub::start("e4b-tiny");
    let (message, hint) = hub_error(hub.resolve("some-org/other"));
    assert!(
        message.contains("404") && hint.contains("spelling"),
        "{message}; {hint}"
    );
    hub.with(|s| s.token = Some("hf_secret".into()));
    let (message, hint) = hub_error(hub.resolve(REPO));
    assert!(
        message.contains("401") && hint.contains("set HF_TOKEN"),
        "{message}; {hint}"
    );
    assert!(message.contains("Invalid username"), "{message}");
    let wrong = HubOptions {
        token: Some("hf_wrong".into()),
        ..hub.options()
    };
    let (_, hint) = hub_error(resolve_with(REPO, &wrong, &NoProgress));
    assert!(hint.contains("valid"), "{hint}");
    let unfit = HubOptions {
        token: Some("hf_\u{e4}\u{f6}".into()),
        ..hub.options()
    };
    let (message, _) = hub_error(resolve_with(REPO, &unfit, &NoProgress));
    assert!(message.contains("a token"), "{message}");

    for (code, said, wanted) in [
        ("GatedRepo", "Access to model X is restricted.", "terms"),
        ("RevisionNotFound", "Invalid rev id", "branch"),
        ("EntryNotFound", "Entry not found", "spelling"),
    ] {
        let status = if code == "GatedRepo" { 403 } else { 404 };
        let evil = format!("{said}\u{1b}[31m{}", "x".repeat(1000));
        let body = serde_json::json!({"error": evil}).to_string();
        hub.on(move |_, _| Some(Reply::new(status, body.clone()).with("X-Error-Code", code)));
        let (message, hint) = hub_error(hub.resolve(REPO));
        assert!(
            message.contains(said) && hint.contains(wanted),
            "{message}; {hint}"
        );
        assert!(
            !message.contains('\u{1b}') && message.len() < 600,
            "{message}"
        );
    }
    for status in [400, 410, 416, 451] {
        hub.on(move |_, _| Some(Reply::new(status, r#"{"error":"no"}"#)));
        let (message, hint) = hub_error(hub.resolve(REPO));
        assert!(
            message.contains(&format!("{status}")) && message.contains(": no"),
            "{message}"
        );
        assert!(
            !hint.contains("again") && !hint.contains("resumes"),
            "{hint}"
        );
    }
}

/// An unreadable token file is told, one that is not there is no matter.
#[test]
fn token_files() {
    let hub = Hub::start("e4b-tiny");
    hub.with(|s| s.token = Some("hf_secret".into()));
    let path = hub.cache.path().join("token");
    std::fs::write(&path, "\r\n hf_secret \n\n").expect("a file");
    hub.resolve(REPO).expect("a snapshot");
    std::fs::write(&path, " \n").expect("a file");
    let (message, _) = hub_error(hub.resolve("some-org/other"));
    assert!(message.contains("401"), "{message}");
    std::fs::remove_file(&path).expect("a file");
    std::fs::create_dir(&path).expect("a folder in its place");
    let error = hub.resolve("some-org/other").expect_err("no token file");
    assert!(error.to_string().contains("token"), "{error}");
}
