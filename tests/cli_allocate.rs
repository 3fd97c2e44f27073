//! `allocate` as its users run it.

mod program;

use std::path::Path;

use program::*;

/// Statistics of nano over a few tokens, and the beginning of its calibration text.
fn prepare(dir: &Path) -> (String, String) {
    let whole = std::fs::read_to_string(fixture("nano").join("calibration.txt")).unwrap();
    let (text, stats) = (dir.join("text.txt"), dir.join("stats"));
    std::fs::write(&text, whole.chars().take(400).collect::<String>()).unwrap();
    let nano = fixture("nano");
    let args = [
        "calibrate",
        path(&nano),
        "--text",
        path(&text),
        "-o",
        path(&stats),
    ];
    good(&args);
    (path(&text).to_string(), path(&stats).to_string())
}

#[test]
fn allocate_writes_a_recipe_that_convert_takes() {
    let dir = tempfile::tempdir().unwrap();
    let (text, stats) = prepare(dir.path());
    let nano = fixture("nano");
    let (out, kept) = (
        dir.path().join("a/mixed.toml"),
        dir.path().join("kept.json"),
    );
    let base = |spend: [&'static str; 2]| {
        let args = [
            "allocate",
            path(&nano),
            "-r",
            "w3",
            "--calibration",
            &stats,
            "-o",
            path(&out),
        ];
        let args = args.iter().chain(&spend).map(|a| a.to_string());
        args.collect::<Vec<String>>()
    };
    let with = |spend: [&'static str; 2], more: &[&str]| -> Vec<String> {
        let more = more.iter().map(|a| a.to_string());
        base(spend).into_iter().chain(more).collect()
    };
    fn refs(args: &[String]) -> Vec<&str> {
        args.iter().map(String::as_str).collect()
    }
    let measure = [
        "--text",
        &text,
        "--tokens",
        "24",
        "--measurements",
        path(&kept),
    ];
    let first = with(
        ["--bpw", "3.25"],
        &[&measure[..], &["--format", "json"]].concat(),
    );
    let value = json(&refs(&first));
    assert_eq!(
        (&value["name"], &value["from"]),
        (&"mixed-3.25".into(), &"w3".into())
    );
    assert_eq!(
        (&value["unit"], &value["tokens"]),
        (&"kl".into(), &24.into())
    );
    assert_eq!(value["budget"]["bits_per_weight"], 3.25);
    let tensors = value["tensors"].as_array().unwrap();
    let head = tensors
        .iter()
        .find(|t| t["tensor"] == "embed_tokens.weight")
        .unwrap();
    assert!(head["bits"].as_u64().unwrap() > 3, "{head}");
    let text_of = || std::fs::read_to_string(&out).unwrap();
    let made = text_of();
    assert!(good(&["recipes", "check", path(&out)]).contains("mixed-3.25"));

    // The file is not replaced unless that is asked for; what was measured is used again and gives the same bytes.
    let again = with(["--bpw", "3.25"], &measure);
    assert!(bad(&refs(&again), INVALID).contains("--force"));
    let again = with(["--bpw", "3.25"], &[&measure[..], &["--force"]].concat());
    let table = good(&refs(&again));
    assert!(
        table.starts_with("tensor") && table.contains("mixed-3.25:"),
        "{table}"
    );
    assert_eq!(text_of(), made);

    // Another budget of the same measurements, in bytes, without forward passes for a file of its own.
    let fast = with(
        ["--budget", "0.9MiB"],
        &["--fast", "--name", "small", "--force", "--format", "json"],
    );
    let value = json(&refs(&fast));
    assert_eq!(
        (&value["name"], &value["unit"]),
        (&"small".into(), &"relative_error".into())
    );
    assert!(value["size"]["weight_bytes"].as_u64().unwrap() <= 943_718);
    let bundle = dir.path().join("bundle");
    let converted = json(&[
        "convert",
        path(&nano),
        "-r",
        path(&out),
        "-o",
        path(&bundle),
        "--format",
        "json",
    ]);
    let files = converted["files"].as_object().unwrap();
    let weights = files
        .iter()
        .filter(|(name, _)| name.ends_with("/weight.bin"));
    let bytes: u64 = weights.map(|(_, f)| f["bytes"].as_u64().unwrap()).sum();
    assert_eq!(bytes, value["size"]["weight_bytes"].as_u64().unwrap());

    // What cannot be done, and what makes no sense.
    let kept_of_fast = ["--fast", "--force", "--measurements", path(&kept)];
    let message = bad(&refs(&with(["--bpw", "3"], &kept_of_fast)), INVALID);
    assert!(message.contains("kept.json"), "{message}");
    let small = bad(
        &refs(&with(["--budget", "20KB"], &["--fast", "--force"])),
        INVALID,
    );
    assert!(
        small.contains("20000 bytes is too small") && small.contains("hint:"),
        "{small}"
    );
    let width = with(["--bpw", "3"], &["--fast", "--force", "--widths", "2,7"]);
    assert!(bad(&refs(&width), INVALID).contains("width 7"));
    for wrong in [
        with(["--bpw", "3"], &["--budget", "1GB", "--fast"]),
        with(["--bpw", "3"], &[]),
        with(["--budget", "1TB"], &["--fast"]),
        with(["--bpw", "3"], &["--fast", "--text", &text]),
    ] {
        bad(&refs(&wrong), USAGE);
    }
    assert_eq!(std::fs::read_dir(out.parent().unwrap()).unwrap().count(), 1);
}
