//! What the program says of such a checkpoint.

use std::process::Command;

use crate::helpers::*;

fn prints(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemma-coreml"));
    let out = command.args(args).output().expect("the program");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).expect("text")
}

#[test]
fn inspect_and_plan_say_how_weights_are_stored() {
    let folder = |of: &str| qat(of).to_string_lossy().into_owned();
    let text = prints(&["inspect", &folder("mobile")]);
    says(
        &text,
        &[
            "weights: gemma (mobile), ",
            "of 2 bits, one step a row",
            "with activation scales",
        ],
    );
    let json: Value = serde_json::from_str(&prints(&[
        "inspect",
        &folder("w4a16-ct"),
        "--format",
        "json",
    ]))
    .unwrap();
    says(
        json["quantization"].as_str().unwrap(),
        &["compressed-tensors, ", "32 inputs a step"],
    );
    let plan = ["plan", &folder("w4a16-ct"), "--recipe", "monolithic"];
    says(
        &prints(&plan),
        &["weights of the checkpoint: compressed-tensors, "],
    );
    let json: Value =
        serde_json::from_str(&prints(&[&plan[..], &["--format", "json"]].concat())).unwrap();
    says(
        json["quantization"].as_str().unwrap(),
        &["compressed-tensors, "],
    );
    let dense: Value = serde_json::from_str(&prints(&[
        "inspect",
        &folder("w4a16-dense"),
        "--format",
        "json",
    ]))
    .unwrap();
    assert_eq!(dense["quantization"], Value::Null);
}
