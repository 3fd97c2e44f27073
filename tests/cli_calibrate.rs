//! `calibrate` as its users run it.

mod program;

use std::path::Path;

use program::*;

fn text_of(dir: &Path) -> std::path::PathBuf {
    let text = dir.join("text.txt");
    std::fs::write(
        &text,
        "One day Lily had a black coin.\n\nSums: 3 + 3 = 6.\n",
    )
    .unwrap();
    text
}

#[test]
fn calibrate_measures_and_prints() {
    let dir = tempfile::tempdir().unwrap();
    let (text, out) = (text_of(dir.path()), dir.path().join("a/stats.safetensors"));
    let nano = fixture("nano");
    let measure = |more: &[&str]| {
        let mut args = vec![
            "calibrate",
            path(&nano),
            "--text",
            path(&text),
            "-o",
            path(&out),
        ];
        args.extend(more);
        json(&[&args[..], &["--format", "json", "--force"]].concat())
    };
    let whole = measure(&[]);
    assert_eq!(whole["sequences"], 1);
    assert_eq!(whole["source"], "text");
    assert_eq!(whole["checkpoint"].as_str().unwrap().len(), 64);
    let sites = whole["sites"].as_array().unwrap();
    let of = |tensor: &str| {
        let has =
            |s: &&serde_json::Value| s["tensors"].as_array().unwrap().iter().any(|t| t == tensor);
        sites.iter().find(has).unwrap_or_else(|| panic!("{tensor}"))
    };
    assert_eq!(
        of("layers.0.self_attn.q_proj.weight"),
        of("layers.0.self_attn.v_proj.weight")
    );
    let down = of("layers.9.mlp.down_proj.weight");
    let number = |key: &str| down[key].as_f64().unwrap();
    assert!(
        number("max_abs") >= number("p99_9") && number("p99_9") > 0.0 && number("outlier") >= 1.0
    );
    // Two lines, each with a first token of its own; a turn has its marks besides.
    let lines = measure(&["--lines"]);
    let chat = measure(&["--chat"]);
    let tokens = |v: &serde_json::Value| v["tokens"].as_u64().unwrap();
    assert_eq!(
        (&lines["sequences"], &chat["sequences"]),
        (&2.into(), &2.into())
    );
    assert!(tokens(&chat) > tokens(&lines));
    let short = measure(&["--length", "4", "--max-tokens", "10"]);
    assert_eq!((tokens(&short), &short["sequences"]), (10, &3.into()));
    let table = good(&[
        "calibrate",
        path(&nano),
        "--noise",
        "-o",
        path(&dir.path().join("n")),
    ]);
    assert!(
        table.starts_with("input of") && table.contains("5 tokens of noise"),
        "{table}"
    );
    assert_eq!(std::fs::read_dir(out.parent().unwrap()).unwrap().count(), 1);
}

/// The same bytes on one thread of candle's and on two.
#[test]
fn threads_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let text = fixture("nano").join("calibration.txt");
    let file = |threads: &str| {
        let out = dir.path().join(threads);
        let status = program()
            .env("RAYON_NUM_THREADS", threads)
            .args([
                "calibrate",
                path(&fixture("nano")),
                "-q",
                "--full",
                "--max-tokens",
                "700",
            ])
            .args(["--length", "300", "--text", path(&text), "-o", path(&out)])
            .output()
            .unwrap();
        assert!(status.status.success(), "{}", stderr(&status));
        std::fs::read(out).unwrap()
    };
    assert!(file("1") == file("2"));
}

#[test]
fn calibrate_errors_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (text, out) = (text_of(dir.path()), dir.path().join("stats.safetensors"));
    let (nano, empty) = (fixture("nano"), dir.path().join("empty.txt"));
    std::fs::write(&empty, "\n").unwrap();
    let (n, t, o) = (path(&nano), path(&text), path(&out));
    for args in [
        &["calibrate", n, "-o", o][..],
        &["calibrate", n, "-o", o, "--text", t, "--noise"],
        &["calibrate", n, "-o", o, "--text", t, "--lines", "--chat"],
        &["calibrate", n, "--text", t],
    ] {
        bad(args, USAGE);
    }
    for args in [
        &[
            "calibrate",
            n,
            "-o",
            o,
            "--text",
            path(&dir.path().join("none")),
        ][..],
        &["calibrate", n, "-o", o, "--text", path(&empty), "--lines"],
        &["calibrate", n, "-o", o, "--text", t, "--length", "1"],
        &["calibrate", n, "-o", o, "--text", t, "--length", "9000"],
        &["calibrate", n, "-o", o, "--text", t, "--max-tokens", "1"],
        &["calibrate", n, "-o", o, "--noise", "0"],
        &["calibrate", n, "-o", path(dir.path()), "--noise"],
        &["calibrate", path(dir.path()), "-o", o, "--noise"],
    ] {
        let text = bad(args, INVALID);
        assert!(text.contains("error: "), "{text}");
    }
    assert!(!out.exists());
    std::fs::write(&out, "kept").unwrap();
    assert!(hinted(&["calibrate", n, "-o", o, "--noise"], INVALID).contains("--force"));
    assert_eq!(std::fs::read(&out).unwrap(), b"kept");
}

/// A write that fails, and a process that is killed: nothing that opens.
#[cfg(unix)]
#[test]
fn what_is_interrupted_leaves_no_file() {
    use std::process::Command;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("stats.safetensors");
    let nano = fixture("nano");
    let output = Command::new("bash")
        .args([
            "-c",
            "ulimit -f 64 && exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_gemma-coreml"),
        ])
        .args(["calibrate", path(&nano), "--noise", "-o", path(&out)])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(RESOURCES), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let text = nano.join("calibration.txt");
    let mut child = program()
        .args([
            "calibrate",
            path(&nano),
            "--full",
            "-o",
            path(&out),
            "--text",
            path(&text),
        ])
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let partial = dir.path().join(".stats.safetensors.partial");
    while !partial.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.exists() && partial.exists());
    gemma_coreml::calibrate::Stats::open(&partial)
        .map(|_| ())
        .expect_err("a part");
    // The next run is not in its way.
    good(&["calibrate", path(&nano), "--noise", "-o", path(&out)]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
