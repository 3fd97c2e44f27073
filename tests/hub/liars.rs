//! A hub that lies about names: nothing is written outside the cache, whatever it sends.

use std::path::{Path, PathBuf};

use gemma_coreml::checkpoint::{HubOptions, resolve_with};
use gemma_coreml::progress::NoProgress;

use super::mock::{COMMIT, Hub, REPO, Reply, WEIGHTS, hub_error};

/// Every path below a directory.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(tree(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

/// The cache three levels down, and what lies around it.
fn boxed(hub: &Hub) -> (HubOptions, PathBuf) {
    let outside = hub.cache.path().join("a/b/precious.txt");
    std::fs::create_dir_all(hub.cache.path().join("a/b/c")).expect("a folder");
    std::fs::write(&outside, "precious").expect("a file");
    let options = HubOptions {
        cache: hub.cache.path().join("a/b/c/hub"),
        ..hub.options()
    };
    (options, outside)
}

#[test]
fn names_of_the_hub_do_not_lead_out_of_the_cache() {
    let commits = [
        "../../../../../x",
        "/x",
        "main",
        "",
        "..",
        &COMMIT[1..],
        &COMMIT.to_uppercase(),
    ]
    .map(str::to_string);
    for commit in commits {
        let hub = Hub::start("e4b-tiny");
        let (options, outside) = boxed(&hub);
        hub.with(|s| s.commit = commit.clone());
        let (message, _) = hub_error(resolve_with(REPO, &options, &NoProgress));
        assert!(message.contains("commit"), "{commit}: {message}");
        assert_eq!(std::fs::read(&outside).expect("a file"), b"precious");
        assert!(!options.cache.exists(), "{:?}", tree(hub.cache.path()));
    }
    for etag in [
        "../../../precious.txt",
        "/tmp/x",
        "..",
        ".",
        "",
        "a/b",
        "a\\b",
        "x.incomplete",
        "W/\"../x\"",
        &"a".repeat(500),
    ] {
        let hub = Hub::start("e4b-tiny");
        let (options, outside) = boxed(&hub);
        let etag = match etag.starts_with('/') {
            true => outside.to_string_lossy().into_owned(),
            false => etag.to_string(),
        };
        let sent = etag.clone();
        hub.on(move |request, state| {
            let reply = state.answer(request);
            let reply = reply.without("ETag").without("X-Linked-Etag");
            request.path.contains("/resolve/").then(|| {
                reply
                    .with("X-Linked-Etag", sent.clone())
                    .with("ETag", sent.clone())
            })
        });
        let (message, _) = hub_error(resolve_with(REPO, &options, &NoProgress));
        assert!(
            message.contains("etag") || message.contains("ETag"),
            "{etag}: {message}"
        );
        assert_eq!(std::fs::read(&outside).expect("a file"), b"precious");
        assert!(!options.cache.exists(), "{:?}", tree(hub.cache.path()));
    }
}

/// The answer that brings the bytes says something else than the one that was asked about them.
#[test]
fn what_the_second_answer_says_of_itself_is_no_path() {
    let hub = Hub::start("e4b-tiny");
    let (options, outside) = boxed(&hub);
    let evil = outside.to_string_lossy().into_owned();
    hub.on(move |request, state| {
        let reply = state.answer(request);
        let lie = request.method == "GET" && request.path.contains("/resolve/");
        lie.then(|| {
            let reply = reply
                .without("ETag")
                .without("X-Linked-Etag")
                .without("X-Repo-Commit");
            let reply = reply
                .with("ETag", evil.clone())
                .with("X-Linked-Etag", evil.clone());
            reply.with("X-Repo-Commit", "../../../../../x")
        })
    });
    resolve_with(REPO, &options, &NoProgress).expect("the bytes are right");
    assert_eq!(std::fs::read(&outside).expect("a file"), b"precious");
    let around = tree(hub.cache.path())
        .into_iter()
        .filter(|path| !path.starts_with(&options.cache));
    assert_eq!(around.count(), 4, "{:?}", tree(hub.cache.path()));
}

#[test]
fn another_commit_than_the_listed_one_is_refused() {
    let hub = Hub::start("e4b-tiny");
    hub.on(|request, state| {
        let reply = state.answer(request).without("X-Repo-Commit");
        request
            .path
            .contains("/resolve/")
            .then(|| reply.with("X-Repo-Commit", "f".repeat(40)))
    });
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(
        message.contains(COMMIT) && message.contains("ffff"),
        "{message}"
    );
    // A commit that is asked for must be the one that is listed.
    hub.behave();
    hub.with(|s| s.commit = "e".repeat(40));
    let (message, _) = hub_error(hub.resolve(&format!("{REPO}@{COMMIT}")));
    assert!(message.contains(COMMIT), "{message}");
}

#[test]
fn the_index_does_not_lead_out_of_the_snapshot() {
    for name in [
        "../../../x.safetensors",
        "/x.safetensors",
        "a/../../x",
        "..",
    ] {
        let hub = Hub::start("e2b35-tiny");
        let (options, outside) = boxed(&hub);
        hub.with(|s| {
            let index = serde_json::json!({"weight_map": {"model.norm.weight": name}});
            s.files.insert(
                "model.safetensors.index.json".into(),
                index.to_string().into(),
            );
            s.files.insert(name.into(), b"evil".to_vec());
        });
        resolve_with(REPO, &options, &NoProgress).expect_err(name);
        assert_eq!(std::fs::read(&outside).expect("a file"), b"precious");
        let around = tree(hub.cache.path())
            .into_iter()
            .filter(|path| !path.starts_with(&options.cache));
        assert_eq!(around.count(), 4, "{:?}", tree(hub.cache.path()));
    }
}

#[test]
fn redirects_without_end_or_sense_are_refused() {
    for (location, wanted) in [
        ("", "without a Location"),
        ("file:///etc/passwd", "no web address"),
        ("ftp://example.org/x", "no web address"),
        ("http://", "no web address"),
        ("?x", "more than 20 redirects"),
        ("/a", "more than 20 redirects"),
    ] {
        for part in ["/api/", "/resolve/"] {
            let hub = Hub::start("e4b-tiny");
            hub.on(move |request, _| {
                let ours = request.path.contains(part) || request.path == "/a";
                ours.then(|| Reply::redirect(302, location))
            });
            let (message, _) = hub_error(hub.resolve(REPO));
            assert!(message.contains(wanted), "{part} {location}: {message}");
            assert!(hub.requests().len() < 30);
        }
    }
    // Between two hosts, with the bytes.
    let hub = Hub::start("e4b-tiny");
    hub.on(|request, state| {
        let of_weights = request.path.contains(WEIGHTS) && request.method == "GET";
        let other = if request.cdn { &state.hub } else { &state.cdn };
        of_weights.then(|| Reply::redirect(307, format!("http://{other}/{WEIGHTS}")))
    });
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("more than 20 redirects"), "{message}");
}

#[test]
fn lists_that_are_none() {
    for (body, wanted) in [
        ("<!doctype html><title>Log in</title>", "web page"),
        ("{}", "not the JSON of a repository"),
        ("[1]", "not the JSON of a repository"),
        (
            r#"{"sha": 4, "siblings": []}"#,
            "not the JSON of a repository",
        ),
        (
            r#"{"sha": "x", "siblings": null}"#,
            "not the JSON of a repository",
        ),
        ("", "not the JSON of a repository"),
    ] {
        let hub = Hub::start("e4b-tiny");
        hub.on(move |request, _| {
            request
                .path
                .contains("/api/")
                .then(|| Reply::new(200, body))
        });
        let (message, hint) = hub_error(hub.resolve(REPO));
        assert!(message.contains(wanted), "{message}");
        assert!(hint.contains("HF_ENDPOINT"), "{hint}");
    }
    let hub = Hub::start("e4b-tiny");
    hub.on(|request, _| {
        request
            .path
            .contains("/api/")
            .then(|| Reply::new(200, "[".repeat(100_000)))
    });
    hub_error(hub.resolve(REPO));
}
