//! `parity` and `decode --trace` as their users run them.

mod program;

use program::*;
use serde_json::Value;

#[test]
fn a_trace_is_a_reference_file_that_parity_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.safetensors");
    good(&[
        "decode",
        path(bundle()),
        "--tokens",
        "2,200,201",
        "-n",
        "6",
        "--ignore-eos",
        "--trace",
        path(&trace),
    ]);
    let report = json(&[
        "parity",
        path(bundle()),
        "--reference",
        path(&trace),
        "--gate-mean",
        "1",
        "--gate-min",
        "0.9999999",
        "--format",
        "json",
    ]);
    assert_eq!(report["failures"].as_array().unwrap().len(), 0);
    assert_eq!(report["bundle_tables"]["greedy"][0]["equal"], 6);
    assert_eq!(report["bundle_tables"]["logits"]["max_abs_diff"], 0.0);
    assert!(
        report["bundle_tables"]["states"]["vectors"]
            .as_u64()
            .unwrap()
            > 0
    );
}

#[test]
fn parity_measures_gates_and_exits_4() {
    let nano = fixture("nano");
    let reference = nano.join("reference.safetensors");
    let args = ["parity", path(bundle()), "--reference", path(&reference)];
    // A quantized bundle is measured, not gated, unless asked.
    let text = good(&args);
    assert!(
        text.contains("bundle tables") && text.contains("gate: none"),
        "{text}"
    );
    let text = good(&[&args[..], &["--exact-tables", path(&nano)]].concat());
    assert!(
        text.contains("exact tables") && text.contains("tables alone"),
        "{text}"
    );
    let output = run(&[&args[..], &["--gate-mean", "0.9999999"]].concat());
    assert_eq!(output.status.code(), Some(GATE));
    assert!(stderr(&output).contains("error: the parity gate failed"));
    assert!(stdout(&output).contains("failed"));
    let text = bad(
        &[
            "parity",
            path(bundle()),
            "--reference",
            path(&nano.join("none.safetensors")),
        ],
        INVALID,
    );
    assert!(text.contains("none.safetensors"), "{text}");
    let other = fixture("dense-tiny").join("reference.safetensors");
    bad(
        &["parity", path(bundle()), "--reference", path(&other)],
        INVALID,
    );
}

#[test]
fn parity_takes_a_model_as_reference() {
    let nano = fixture("nano");
    let report = json(&[
        "parity",
        path(bundle()),
        "--reference",
        path(&nano),
        "-p",
        "Once upon",
        "-n",
        "4",
        "--format",
        "json",
    ]);
    assert_eq!(report["bundle_tables"]["logits"]["steps"], 4);
    assert_eq!(report["gate"], Value::Null);
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(
        &text,
        "Once upon a time there was a dog. The dog was happy.",
    )
    .unwrap();
    let args = [
        "parity",
        path(bundle()),
        "--reference",
        path(&nano),
        "--text",
        path(&text),
    ];
    let report = json(&[&args[..], &["--format", "json", "--max-tokens", "9"]].concat());
    assert_eq!(report["tokens"], 9);
    assert!(report["logits"]["kl_mean"].as_f64().unwrap() > 0.0);
    assert!(report["perplexity"].as_f64().unwrap() > 1.0);
    assert!(good(&args).contains("perplexity of the reference"));
    let reference = nano.join("reference.safetensors");
    bad(
        &[
            "parity",
            path(bundle()),
            "--reference",
            path(&reference),
            "--text",
            path(&text),
        ],
        USAGE,
    );
}
