//! Transfers that break: cut, silent, refused for a while, damaged.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gemma_coreml::checkpoint::{Checkpoint, HubOptions, resolve_with};
use gemma_coreml::progress::NoProgress;

use super::Bytes;
use super::mock::{How, Hub, REPO, Reply, Request, WEIGHTS, hub_error};

/// Requests for the weights' bytes.
fn transfers(hub: &Hub) -> Vec<Option<String>> {
    let of_weights = |r: &Request| r.cdn && r.method == "GET" && r.path.contains(WEIGHTS);
    let requests = hub.requests().into_iter().filter(of_weights);
    requests.map(|r| r.range).collect()
}

fn from(byte: usize) -> Option<String> {
    Some(format!("bytes={byte}-"))
}

/// The number of bytes after which the weights are cut, small enough for every fixture.
const CUT: usize = 300_000;

fn cut_weights(hub: &Hub, times: usize, how: How) {
    let mut left = times;
    hub.on(move |request, state| {
        if left == 0 || !request.cdn || request.method != "GET" || !request.path.contains(WEIGHTS) {
            return None;
        }
        left -= 1;
        Some(state.answer(request).how(how))
    });
}

#[test]
fn a_cut_transfer_resumes_where_it_stopped() {
    let hub = Hub::start("e4b-tiny");
    cut_weights(&hub, 1, How::Cut(CUT));
    let (message, hint) = hub_error(hub.resolve(REPO));
    assert!(
        message.contains(WEIGHTS) && hint.contains("again"),
        "{message}; {hint}"
    );
    let part = hub.part().expect("what was received is kept");
    assert_eq!(std::fs::metadata(part).expect("a file").len(), CUT as u64);
    assert_eq!(transfers(&hub), [None]);

    let dir = hub.resolve(REPO).expect("a resumed snapshot");
    assert_eq!(transfers(&hub), [from(CUT)], "nothing from the start");
    assert!(std::fs::read(dir.join(WEIGHTS)).expect("weights") == hub.file(WEIGHTS));
    assert!(hub.part().is_none());
    Checkpoint::open(&dir).expect("a snapshot that opens");
}

#[test]
fn retries_resume_within_one_call() {
    for how in [How::Cut(200_000), How::Hang(200_000)] {
        let hub = Hub::start("e4b-tiny");
        cut_weights(&hub, 2, how);
        let options = HubOptions {
            retries: 2,
            download_timeout: Duration::from_secs(1),
            ..hub.options()
        };
        let progress = Bytes::default();
        let dir = resolve_with(REPO, &options, &progress).expect("a snapshot in the end");
        assert_eq!(transfers(&hub), [None, from(200_000), from(400_000)]);
        assert!(std::fs::read(dir.join(WEIGHTS)).expect("weights") == hub.file(WEIGHTS));
        assert_eq!(
            progress.total.into_inner(),
            progress.done.load(Ordering::SeqCst)
        );
    }
}

#[test]
fn a_hub_that_asks_to_wait_is_waited_for() {
    for status in [408, 429, 500, 502, 503, 504] {
        for path in ["/api/", "/resolve/", "/blob/"] {
            let hub = Hub::start("e4b-tiny");
            let mut left = 2;
            hub.on(move |request, _| {
                left -= u32::from(left > 0 && request.path.contains(path));
                (left > 0 && request.path.contains(path)).then(|| Reply::new(status, ""))
            });
            let options = HubOptions {
                retries: 1,
                ..hub.options()
            };
            resolve_with(REPO, &options, &NoProgress).expect("a snapshot after a pause");
        }
    }
}

#[test]
fn retry_after_sets_the_pause() {
    let hub = Hub::start("e4b-tiny");
    let mut first = true;
    hub.on(move |_, _| {
        let reply = Reply::new(429, "").with("Retry-After", "1");
        std::mem::take(&mut first).then_some(reply)
    });
    let options = HubOptions {
        retries: 1,
        ..hub.options()
    };
    let begin = Instant::now();
    resolve_with(REPO, &options, &NoProgress).expect("a snapshot");
    assert!(begin.elapsed() >= Duration::from_secs(1));

    // Longer than anybody would wait: told at once.
    for (name, value) in [("Retry-After", "3600"), ("RateLimit", "\"api\";r=0;t=3600")] {
        hub.on(move |_, _| Some(Reply::new(429, "").with(name, value)));
        let begin = Instant::now();
        let (_, hint) = hub_error(resolve_with("some-org/other", &options, &NoProgress));
        assert!(hint.contains("3600 s"), "{hint}");
        assert!(begin.elapsed() < Duration::from_secs(1));
    }
}

/// No answer, an answer without end, and bytes one by one: each is given up after the time set.
#[test]
fn silent_servers_are_given_up() {
    let drip = How::Drip(Duration::from_millis(50));
    for path in ["/api/", "/resolve/", "/blob/"] {
        for how in [How::Hang(0), How::Hang(10), drip] {
            let hub = Hub::start("e4b-tiny");
            hub.on(move |request, state| {
                let mut reply = state.answer(request);
                if how == drip && path == "/api/" {
                    reply.body.resize(10_000, b' ');
                }
                (request.path.contains(path) && request.method == "GET").then_some(reply.how(how))
            });
            let silence = Duration::from_millis(500);
            let options = HubOptions {
                etag_timeout: silence,
                download_timeout: silence,
                ..hub.options()
            };
            let begin = Instant::now();
            let result = resolve_with(REPO, &options, &NoProgress);
            // Redirects have no body to be waited for.
            if path == "/resolve/" && result.is_ok() {
                continue;
            }
            let (message, hint) = hub_error(result);
            assert!(message.contains("within"), "{path}: {message}");
            assert!(hint.contains("again"), "{hint}");
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "{path}: {:?}",
                begin.elapsed()
            );
        }
    }
}

/// A transfer may last much longer than the time-out, as long as something comes.
#[test]
fn a_slow_transfer_is_no_silent_one() {
    let hub = Hub::start("e4b-tiny");
    hub.with(|s| {
        s.files
            .insert("chat_template.jinja".into(), vec![b'x'; 7000])
    });
    let pause = Duration::from_micros(450);
    hub.on(move |request, state| {
        let slow = request.path.ends_with(".jinja") && request.method == "GET";
        slow.then(|| state.answer(request).how(How::Drip(pause)))
    });
    let options = HubOptions {
        download_timeout: Duration::from_secs(3),
        ..hub.options()
    };
    let begin = Instant::now();
    resolve_with(REPO, &options, &NoProgress).expect("a snapshot");
    assert!(begin.elapsed() > options.download_timeout);
}

#[test]
fn short_and_overlong_transfers_are_not_taken_for_whole() {
    // The length is not announced, so that only the comparison with the size told before can tell.
    let hub = Hub::start("e4b-tiny");
    hub.spoil(1, |reply| reply.unannounced().how(How::Cut(1000)));
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("got 1000"), "{message}");
    hub.resolve(REPO).expect("a snapshot");

    let hub = Hub::start("e4b-tiny");
    hub.spoil(1, |mut reply| {
        reply.body.extend([7; 5]);
        reply.unannounced()
    });
    let (message, _) = hub_error(hub.resolve(REPO));
    assert!(message.contains("got more"), "{message}");
    assert!(hub.part().is_none(), "nothing of use was received");
    hub.resolve(REPO).expect("a snapshot");

    // Another announced length is told before anything is stored.
    let hub = Hub::start("e4b-tiny");
    hub.spoil(1, |_| Reply::new(200, "<html>log in here</html>"));
    let (message, hint) = hub_error(hub.resolve(REPO));
    assert!(
        message.contains("expected") && hint.contains("login page"),
        "{message}; {hint}"
    );
    assert!(hub.blobs(".incomplete").is_empty());
}

/// The answer to a range may be the whole file.
#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let hub = Hub::start("e4b-tiny");
    cut_weights(&hub, 1, How::Cut(1000));
    hub_error(hub.resolve(REPO));
    hub.on(|request, state| {
        let whole = Request {
            range: None,
            ..request.clone()
        };
        Some(state.answer(&whole))
    });
    let progress = Bytes::default();
    let dir = resolve_with(REPO, &hub.options(), &progress).expect("a snapshot");
    assert!(std::fs::read(dir.join(WEIGHTS)).expect("weights") == hub.file(WEIGHTS));
    assert_eq!(progress.total.into_inner(), progress.done.into_inner());
}

/// Too long, as long, of other bytes, a link, or of a server that knows no such range: started anew without a word.
#[test]
fn useless_partial_files_are_dropped() {
    let size = Hub::start("e4b-tiny").file(WEIGHTS).len();
    for len in [size, size + 5, 1000] {
        let hub = Hub::start("e4b-tiny");
        cut_weights(&hub, 1, How::Cut(10));
        hub_error(hub.resolve(REPO));
        let part = hub.part().expect("a partial file");
        std::fs::write(part, vec![7; len]).expect("a written file");
        let dir = hub.resolve(REPO).expect("a snapshot");
        assert!(std::fs::read(dir.join(WEIGHTS)).expect("weights") == hub.file(WEIGHTS));
    }
    let hub = Hub::start("e4b-tiny");
    cut_weights(&hub, 1, How::Cut(10));
    hub_error(hub.resolve(REPO));
    hub.on(|request, _| request.range.is_some().then(|| Reply::new(416, "")));
    hub.resolve(REPO).expect("a snapshot");
    #[cfg(unix)]
    {
        let hub = Hub::start("e4b-tiny");
        cut_weights(&hub, 1, How::Cut(10));
        hub_error(hub.resolve(REPO));
        let part = hub.part().expect("a partial file");
        let precious = hub.cache.path().join("precious");
        std::fs::write(&precious, "precious").expect("a file");
        std::fs::remove_file(&part).expect("a file");
        std::os::unix::fs::symlink(&precious, &part).expect("a link");
        hub.resolve(REPO).expect("a snapshot");
        assert_eq!(std::fs::read(&precious).expect("a file"), b"precious");
    }
}

/// Bytes of the right length with one bit turned: told by the hash, and nothing of it stays.
#[test]
fn damaged_bytes_are_not_kept() {
    for name in [WEIGHTS, "config.json", "tokenizer.json"] {
        let hub = Hub::start("e4b-tiny");
        hub.on(move |request, state| {
            let mut reply = state.answer(request);
            let spoilt =
                request.path.contains(name) && request.method == "GET" && reply.status == 200;
            spoilt.then(|| {
                reply.body[20] ^= 4;
                reply
            })
        });
        let options = HubOptions {
            retries: 3,
            ..hub.options()
        };
        let (message, hint) = hub_error(resolve_with(REPO, &options, &NoProgress));
        assert!(
            message.contains(name) && message.contains("damaged"),
            "{message}"
        );
        assert!(!hint.contains("run the command again"), "{hint}");
        assert!(hub.part().is_none());
        let etag = super::mock::etag(name, &hub.file(name));
        assert!(hub.blobs(&etag).is_empty());
        hub.behave();
        let dir = hub.resolve(REPO).expect("a snapshot");
        assert!(std::fs::read(dir.join(name)).expect("a file") == hub.file(name));
    }
}

#[test]
fn a_signed_address_that_has_run_out_is_asked_for_anew() {
    let hub = Hub::start("e4b-tiny");
    let mut turn = 0;
    hub.on(move |request, state| {
        if !request.path.contains(WEIGHTS) || request.method != "GET" {
            return None;
        }
        turn += 1;
        let reply = state.answer(request);
        match (request.cdn, turn) {
            (false, _) => Some(reply.without("Location").with(
                "Location",
                format!("http://{}/blob/{WEIGHTS}?sig={turn}", state.cdn),
            )),
            (true, 2) => Some(reply.how(How::Cut(1000))),
            // Only the address of the second answer is good now.
            (true, _) if request.path.ends_with("sig=3") => Some(reply),
            (true, _) => Some(Reply::new(403, "expired")),
        }
    });
    let options = HubOptions {
        retries: 1,
        ..hub.options()
    };
    resolve_with(REPO, &options, &NoProgress).expect("a snapshot");
}

/// Two at once: one fetches, the other waits for it.
#[test]
fn two_processes_fetch_each_file_once() {
    let hub = Hub::start("e4b-tiny");
    hub.on(|request, state| {
        let slow = request.cdn && request.method == "GET";
        slow.then(|| {
            std::thread::sleep(Duration::from_millis(300));
            state.answer(request)
        })
    });
    let options = hub.options();
    let dirs: Vec<_> = std::thread::scope(|scope| {
        let one = || resolve_with(REPO, &options, &NoProgress).expect("a snapshot");
        let running: Vec<_> = (0..3).map(|_| scope.spawn(one)).collect();
        running
            .into_iter()
            .map(|r| r.join().expect("no panic"))
            .collect()
    });
    assert!(dirs.iter().all(|dir| *dir == dirs[0]));
    assert_eq!(transfers(&hub).len(), 1);
    Checkpoint::open(&dirs[0]).expect("a snapshot that opens");
}
