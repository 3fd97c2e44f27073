//! `sweep` as its users run it.

mod program;

use std::path::{Path, PathBuf};

use program::*;
use serde_json::Value;

/// A short text in the words of the fixtures, and a directory for results.
struct Place {
    dir: tempfile::TempDir,
    text: PathBuf,
    out: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    let words = "Once there was a dog. The dog was red and ran to the farm. Then the dog went home. The end.\n";
    std::fs::write(&text, words.repeat(4)).unwrap();
    let out = dir.path().join("sweep");
    Place { dir, text, out }
}

fn args<'a>(place: &'a Place, model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "sweep",
        model,
        "--text",
        path(&place.text),
        "-o",
        path(&place.out),
    ];
    args.extend([
        "--max-tokens",
        "60",
        "--context",
        "48",
        "--sample-tokens",
        "4",
        "--check-tokens",
        "16",
    ]);
    args.extend(more);
    args
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn sweep_prints_a_table_and_json_and_keeps_results() {
    let place = place();
    let model = fixture("dense-tiny");
    let model = path(&model);
    let more = ["--recipes", "swa4-fp16", "w3"];
    let text = good(&args(&place, model, &more));
    let lines: Vec<&str> = text.lines().collect();
    let header: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(
        header.join(" "),
        "recipe weights bundle bits SQNR dB KL mean ± se KL p99 top-1 perplexity recall convert s memory run"
    );
    assert!(
        lines[1].starts_with("swa4-fp16 *  ") && lines[1].ends_with("  batched"),
        "{text}"
    );
    assert!(
        lines[2].starts_with("w3 *  ") && lines[2].contains("  4.997  "),
        "{text}"
    );
    assert!(
        lines[3].starts_with("61 tokens in windows of 48, perplexity of the f32 model "),
        "{text}"
    );
    assert_eq!(lines[4], path(&place.out.join("sweep.html")));
    assert_eq!(lines.len(), 5);

    let mut again = args(&place, model, &more);
    again.extend(["--format", "json"]);
    let output = run(&again);
    assert!(
        stderr(&output).contains("w3: kept from an earlier run"),
        "{}",
        stderr(&output)
    );
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value, read(&place.out.join("sweep.json")));
    assert_eq!(value["recipes"][1]["name"], "w3");
    assert_eq!(value["recipes"][0]["path"], "batched");
    assert!(value["recipes"][1]["figures"]["kl_mean"].as_f64().unwrap() > 0.0);
    assert_eq!(value["model"], "dense-tiny");
    let page = std::fs::read_to_string(place.out.join("sweep.html")).unwrap();
    assert!(page.contains("Recipes for dense-tiny"));
}

#[test]
fn a_check_that_does_not_agree_exits_4_and_names_the_recipe() {
    let place = place();
    let model = fixture("dense-tiny");
    let args = args(
        &place,
        path(&model),
        &["--recipes", "swa4-fp16", "w3", "-q"],
    );
    good(&args);
    // As if the interpreter had found something else.
    let file = place.out.join("results/w3.json");
    let mut result = read(&file);
    let kl = result["check"]["kl_interpreter"].as_f64().unwrap();
    result["check"]["kl_interpreter"] = (kl * 1.5).into();
    std::fs::write(&file, result.to_string()).unwrap();
    let text = hinted(&args, GATE);
    assert!(
        text.contains("error: w3: ") && text.contains("op by op"),
        "{text}"
    );
    let page = std::fs::read_to_string(place.out.join("sweep.html")).unwrap();
    assert!(page.contains("class=\"bad\">differ</span>"));
    assert_eq!(read(&place.out.join("sweep.json"))["disagree"][0], "w3");
}

#[test]
fn bad_input_exits_3_before_anything_is_written() {
    let place = place();
    let (model, moe) = (fixture("dense-tiny"), fixture("moe-tiny"));
    let (model, moe) = (path(&model), path(&moe));
    let own = place.dir.path().join("own.toml");
    std::fs::write(&own, good(&["recipes", "show", "w3"])).unwrap();
    let broken = place.dir.path().join("recall.jsonl");
    let long = "Once there was a dog. ".repeat(20);
    std::fs::write(&broken, "{\"ids\": [1]}\n").unwrap();
    for (model, more, part) in [
        (
            model,
            &["--recipes", "w3", path(&own)][..],
            "two recipes are named `w3`",
        ),
        (model, &["--recipes", "w99x"], "w99x"),
        (
            moe,
            &["--recipes", "swa4-int4", "verify-3"],
            "recipe verify-3: ",
        ),
        (
            model,
            &["--recipes", "w3", "--recall", path(&broken)],
            "recall.jsonl:1: ",
        ),
        (model, &["--recipes", "w3", "-p", &long], "needs"),
        (
            model,
            &["--recipes", "w3", "--calibration", "no-such-file"],
            "no-such-file",
        ),
        ("no/such", &["--recipes", "w3"], "no/such"),
    ] {
        let text = bad(&args(&place, model, more), INVALID);
        assert!(text.contains(part), "{more:?}: {text}");
    }
    assert!(!place.out.exists());
}
