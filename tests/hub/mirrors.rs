//! Endpoints that are not huggingface.co: paths, missing headers, redirects of their own.

use gemma_coreml::checkpoint::{Checkpoint, HubOptions, resolve_with};
use gemma_coreml::progress::NoProgress;

use super::mock::{Hub, REPO, Reply, Request, State, WEIGHTS, etag, hub_error};

/// Changes the hub's own answers about files.
fn answers(hub: &Hub, change: impl Fn(&Request, &State, Reply) -> Reply + Send + 'static) {
    hub.on(move |request, state| {
        let ours = !request.cdn && request.path.contains("/resolve/");
        ours.then(|| change(request, state, state.answer(request)))
    });
}

#[track_caller]
fn is_fetched(hub: &Hub) {
    let dir = hub.resolve(REPO).expect("a snapshot");
    assert!(std::fs::read(dir.join(WEIGHTS)).expect("weights") == hub.file(WEIGHTS));
    assert!(std::fs::read(dir.join("config.json")).expect("a file") == hub.file("config.json"));
    Checkpoint::open(&dir).expect("a snapshot that opens");
}

#[test]
fn an_endpoint_with_a_path() {
    for prefix in ["/hf", "/api/huggingfaceml/remote"] {
        for end in ["", "/", "//"] {
            let hub = Hub::start("e4b-tiny");
            hub.with(|s| s.prefix = prefix.into());
            let options = HubOptions {
                endpoint: format!("{}{end}", hub.endpoint()),
                ..hub.options()
            };
            let options = HubOptions {
                endpoint: options.endpoint.trim_end_matches('/').into(),
                ..options
            };
            resolve_with(REPO, &options, &NoProgress).expect("a snapshot");
            assert!(
                hub.requests()
                    .iter()
                    .all(|r| r.cdn || r.path.starts_with(prefix))
            );
        }
    }
}

/// The etag is that of the server which has the file; there is no word of the commit, and no size before the transfer.
#[test]
fn headers_that_mirrors_leave_out() {
    type Change = fn(Reply) -> Reply;
    let changes: [Change; 4] = [
        |reply| reply.without("X-Repo-Commit"),
        |reply| reply.without("X-Linked-Size"),
        |reply| reply.without("X-Linked-Size").without("X-Repo-Commit"),
        |reply| Reply {
            announced: false,
            ..reply
        },
    ];
    for change in changes {
        let hub = Hub::start("e4b-tiny");
        answers(&hub, move |_, _, reply| change(reply));
        is_fetched(&hub);
    }
    let hub = Hub::start("e4b-tiny");
    answers(&hub, |_, _, reply| {
        reply.without("X-Linked-Etag").without("X-Linked-Size")
    });
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("no ETag"), "{message}");
    hub.on(|request, state| {
        let reply = state.answer(request);
        match request.cdn {
            true => Some(reply.with("ETag", "\"65f1c0-1a2b\"")),
            false => Some(reply.without("X-Linked-Etag").without("X-Linked-Size")),
        }
    });
    is_fetched(&hub);
    assert_eq!(hub.blobs("65f1c0-1a2b").len(), 1);
}

#[test]
fn etags_in_other_spellings() {
    for (begin, end) in [("", ""), ("\"", "\""), ("W/\"", "\"")] {
        let hub = Hub::start("e4b-tiny");
        answers(&hub, move |request, state, reply| {
            let name = request.path.rsplit('/').next().unwrap_or_default();
            let tag = format!("{begin}{}{end}", etag(name, &state.files[name]));
            let header = if reply.status == 302 {
                "X-Linked-Etag"
            } else {
                "ETag"
            };
            reply.without(header).with(header, tag)
        });
        is_fetched(&hub);
        assert_eq!(hub.blobs(&etag(WEIGHTS, &hub.file(WEIGHTS))).len(), 1);
    }
    // The plain SHA-1 of a file, as some mirrors have it: taken when it is right.
    let sha1 = |bytes: &[u8]| -> String {
        use sha1::{Digest, Sha1};
        Sha1::digest(bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    };
    for turned in [0, 1] {
        let hub = Hub::start("e4b-tiny");
        answers(&hub, move |request, state, reply| {
            let name = request.path.rsplit('/').next().unwrap_or_default();
            let mut bytes = state.files[name].clone();
            bytes[0] ^= turned;
            reply.without("ETag").with("ETag", sha1(&bytes))
        });
        assert_eq!(hub.resolve(REPO).is_ok(), turned == 0);
    }
}

/// The mirror keeps the files itself, behind an address on its own host, absolute or relative, of any status.
#[test]
fn redirects_to_the_mirror_itself() {
    for (status, absolute) in [
        (301, true),
        (302, false),
        (303, true),
        (307, false),
        (308, true),
    ] {
        let hub = Hub::start("e4b-tiny");
        hub.on(move |request, state| {
            let kept = request.path.strip_prefix("/kept/");
            if let Some(name) = kept {
                let inner = Request {
                    path: format!("/blob/{name}"),
                    cdn: true,
                    ..request.clone()
                };
                return Some(state.answer(&inner));
            }
            let name = request.path.rsplit('/').next()?.to_string();
            let reply = state.answer(request);
            (reply.status == 302).then(|| {
                let host = if absolute {
                    format!("http://{}", state.hub)
                } else {
                    String::new()
                };
                let mut to = reply
                    .without("Location")
                    .with("Location", format!("{host}/kept/{name}"));
                to.status = status;
                to
            })
        });
        is_fetched(&hub);
    }
}

/// Servers that do not know HEAD are asked for one byte.
#[test]
fn a_mirror_without_head() {
    for status in [405, 501] {
        let hub = Hub::start("e4b-tiny");
        hub.on(move |request, _| (request.method == "HEAD").then(|| Reply::new(status, "")));
        is_fetched(&hub);
    }
}

/// Xet storage: the plain way is a redirect to a bridge, with the hash of the whole file in the redirect.
#[test]
fn a_file_in_xet_storage_comes_over_the_bridge() {
    let hub = Hub::start("e4b-tiny");
    answers(&hub, |request, state, reply| match reply.status {
        302 => {
            let name = request.path.rsplit('/').next().unwrap_or_default();
            let bridge = format!(
                "http://{}/blob/{name}?X-Amz-Signature=00&X-Xet-Cas-Uid=public",
                state.cdn
            );
            let reply = reply.without("Location").with("Location", bridge);
            let auth = format!(
                "<http://{}/api/models/{REPO}/xet-read-token/x>; rel=\"xet-auth\"",
                state.hub
            );
            reply.with("X-Xet-Hash", "a".repeat(64)).with("Link", auth)
        }
        _ => reply,
    });
    is_fetched(&hub);
    assert_eq!(hub.blobs(&etag(WEIGHTS, &hub.file(WEIGHTS))).len(), 1);
}

/// Where neither length nor hash is told, nothing can show that a file is whole.
#[test]
fn a_file_of_which_nothing_is_known_is_refused() {
    let hub = Hub::start("e4b-tiny");
    hub.on(|request, state| {
        let reply = state.answer(request);
        request.path.contains("/resolve/").then(|| {
            let reply = reply
                .without("ETag")
                .without("X-Linked-Etag")
                .without("X-Linked-Size");
            let reply = reply.with("X-Linked-Etag", "\"abc\"");
            reply.with("ETag", "\"abc\"").unannounced()
        })
    });
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("neither length nor hash"), "{message}");
    assert!(hub.part().is_none());
}

/// A plain proxy of the environment is asked, but not for hosts of `NO_PROXY`.
#[test]
fn a_proxy_stands_between() {
    use std::io::{BufRead, BufReader, Write};
    let hub = Hub::start("e4b-tiny");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let proxy = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut line = String::new();
        let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
        reader.read_line(&mut line).expect("a line");
        let mut rest = String::new();
        while reader.read_line(&mut rest).expect("a line") > 2 {}
        let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
        line
    });
    let mut options = hub.options();
    options.proxies.http = Some(format!("http://{address}"));
    options.proxies.bypass = vec!["127.0.0.1".into()];
    resolve_with(REPO, &options, &NoProgress).expect("asked directly");
    options.proxies.bypass.clear();
    let (_, hint) = hub_error(resolve_with("some-org/other", &options, &NoProgress));
    assert!(hint.contains("proxy"), "{hint}");
    let host = hub.endpoint().replace("http://", "");
    assert_eq!(
        proxy.join().expect("no panic"),
        format!("CONNECT {host} HTTP/1.1\r\n")
    );
    options.proxies.http = Some("http://[".into());
    let (message, _) = hub_error(resolve_with("some-org/other", &options, &NoProgress));
    assert!(message.contains("HTTP_PROXY"), "{message}");
}
