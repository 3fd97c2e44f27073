//! The program as its users run it: verbs, exit codes, stdout and stderr.

mod program;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use program::*;
use serde_json::Value;

const VERBS: [&str; 13] = [
    "plan",
    "calibrate",
    "convert",
    "inspect",
    "decode",
    "bench",
    "parity",
    "sweep",
    "pack",
    "unpack",
    "compile",
    "recipes",
    "completions",
];

#[test]
fn every_verb_has_help_and_the_program_lists_them() {
    let help = good(&["--help"]);
    for verb in VERBS {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}");
        let own = good(&[verb, "--help"]);
        assert!(own.contains("Usage: gemma-coreml"), "{verb}");
        assert!(own.contains("--format"), "{verb}");
    }
    assert!(help.contains("130 interrupted"));
    assert!(good(&["--version"]).starts_with("gemma-coreml "));
    for args in [&[][..], &["recipes"]] {
        assert!(bad(args, USAGE).contains("Usage: gemma-coreml"), "{args:?}");
    }
}

#[test]
fn usage_errors_exit_2() {
    for args in [
        &["convert"][..],
        &["nonsense"],
        &["convert", "x"],
        &["convert", "x", "-o", "y", "--context", "many"],
        &["convert", "x", "-o", "y", "--context", "0"],
        &["parity", "x", "--reference", "r", "--gate-mean", "nan"],
        &["decode", "x"],
        &["decode", "x", "--tokens", "1", "-p", "y"],
        &["decode", "x", "--tokens", "1,two"],
        &["decode", "x", "--tokens", "1", "--precision", "f64"],
        &["parity", "x"],
        &[
            "parity",
            "x",
            "--reference",
            "r",
            "--no-gate",
            "--gate-mean",
            "1",
        ],
        &["inspect", "x", "--ops", "--mil"],
        &["recipes", "list", "-q", "-v"],
        &["sweep", "x", "--text", "t", "-o", "y"],
        &["sweep", "x", "--recipes", "swa4-int4", "-o", "y"],
    ] {
        let text = bad(args, USAGE);
        assert!(text.starts_with("error: "), "{args:?}: {text}");
    }
}

#[test]
fn a_bad_model_exits_3_and_says_what_and_where() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let text = bad(&["convert", path(&empty), "-o", path(&out)], INVALID);
    assert!(
        text.starts_with("error: ") && text.contains("config.json"),
        "{text}"
    );
    std::fs::write(empty.join("config.json"), "{\"model_type\": \"gemma4\",").unwrap();
    let text = bad(&["convert", path(&empty), "-o", path(&out)], INVALID);
    assert!(text.contains("config.json"), "{text}");
    assert!(!out.exists());
    for args in [
        &["inspect", path(&empty)][..],
        &["decode", path(&empty), "-p", "x"],
        &["parity", path(&empty), "--reference", "r.safetensors"],
        &["pack", path(&empty), "-o", path(&out)],
        &["compile", path(&empty)],
    ] {
        let text = bad(args, INVALID);
        assert!(text.starts_with("error: "), "{args:?}: {text}");
    }
    let nano = fixture("nano");
    let text = bad(&["decode", path(&nano), "-p", "x"], INVALID);
    assert!(
        text.contains("hint: ") && text.contains("gemma-coreml convert"),
        "{text}"
    );
    let text = bad(
        &["convert", path(&nano), "-r", "swa4-int5", "-o", path(&out)],
        INVALID,
    );
    assert!(
        text.contains("swa4-int5") && text.contains("hint: "),
        "{text}"
    );
}

#[test]
fn convert_refuses_to_overwrite() {
    let nano = fixture("nano");
    let output = run(&["convert", path(&nano), "-o", path(bundle())]);
    assert_eq!(output.status.code(), Some(INVALID));
    let text = stderr(&output);
    assert!(
        text.contains("error: ") && text.contains("hint: "),
        "{text}"
    );
    assert!(bundle().join("model_config.json").is_file());
}

#[test]
fn convert_reports_json() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let fixture = fixture("dense-tiny");
    let report = json(&[
        "convert",
        path(&fixture),
        "-r",
        "swa4-fp16",
        "-o",
        path(&out),
        "--context",
        "64",
        "--threads",
        "1",
        "--format",
        "json",
    ]);
    assert_eq!(report["context"], 64);
    assert_eq!(report["chunks"].as_array().unwrap().len(), 4);
    assert_eq!(report["chunks"][0]["first_layer"], 0);
    assert!(report["bytes"].as_u64().unwrap() > 0);
    assert!(report["schemes"]["fp16"]["tensors"].as_u64().unwrap() > 0);
    assert!(out.join("provenance.json").is_file());
}

#[test]
fn convert_says_what_experts_cost() {
    let dir = tempfile::tempdir().unwrap();
    let convert = |model: &str| {
        let (model, out) = (fixture(model), dir.path().join(model));
        good(&[
            "convert",
            path(&model),
            "-r",
            "swa4-fp16",
            "-o",
            path(&out),
            "--context",
            "64",
        ])
    };
    // Six layers of eight experts with three matrices of 16 by 64; two experts are a quarter.
    let text = convert("moe-tiny");
    assert!(
        text.contains("all 8 experts of each layer are in the graph: every token computes their 147456 weights, ")
            && text.contains(" in the model; top-2 needs only 36864\n"),
        "{text}"
    );
    assert!(!convert("dense-tiny").contains("experts"));
}

#[test]
fn progress_without_a_terminal_is_one_line_per_phase() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let fixture = fixture("dense-tiny");
    let output = run(&[
        "convert",
        path(&fixture),
        "-o",
        path(&out),
        "--context",
        "64",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stderr(&output);
    assert!(!text.is_empty() && !text.contains('\x1b') && !text.contains('\r'));
    assert!(text.lines().all(|l| !l.trim().is_empty()), "{text}");
    assert!(text.lines().count() < 40, "{text}");
}

#[test]
fn inspect_knows_every_kind() {
    let nano = fixture("nano");
    let file = nano.join("model.safetensors");
    let text = good(&["inspect", path(&file)]);
    assert!(text.contains("model.language_model.embed_tokens.weight") && text.contains("BF16"));
    let tensors = json(&["inspect", path(&file), "--format", "json"]);
    assert_eq!(tensors["kind"], "safetensors");
    assert!(tensors["tensors"].as_array().unwrap().len() > 20);

    assert!(good(&["inspect", path(&nano)]).contains("layers.0.mlp.up_proj.weight"));
    assert!(good(&["inspect", "swa4-int4"]).contains("[quantize]"));
    assert_eq!(
        json(&["inspect", "swa4-int4", "--format", "json"])["kind"],
        "recipe"
    );

    let text = good(&["inspect", path(bundle())]);
    assert!(
        text.contains("recipe swa4-int4") && text.contains("chunk4"),
        "{text}"
    );
    let about = json(&["inspect", path(bundle()), "--format", "json"]);
    assert_eq!(about["kind"], "bundle");
    assert_eq!(about["config"]["context_length"], 192);
    assert_eq!(about["packages"].as_array().unwrap().len(), 4);

    let package = bundle().join("chunk1.mlpackage");
    let text = good(&["inspect", path(&package)]);
    assert!(
        text.contains("function main") && text.contains("hidden_states"),
        "{text}"
    );
    let ops = json(&["inspect", path(&package), "--ops", "--format", "json"]);
    assert!(
        ops["packages"][0]["ops"]["constexpr_lut_to_dense"]
            .as_u64()
            .unwrap()
            > 0
    );
    assert!(good(&["inspect", path(&package), "--weights"]).contains("uint4"));
    let mil = good(&["inspect", path(&package), "--mil"]);
    assert!(
        mil.contains("func main<ios18>(") && mil.contains("BLOBFILE("),
        "{mil}"
    );
    assert!(mil.contains("constexpr_lut_to_dense(") && mil.contains("layer_norm("));
    assert!(bad(&["inspect", path(&file), "--ops"], USAGE).contains("--ops"));
    let readme = nano.join("eval.txt");
    assert!(bad(&["inspect", path(&readme)], INVALID).contains("expected"));
    assert!(bad(&["inspect", "no-such-thing"], INVALID).contains("no-such-thing"));
}

#[test]
fn decode_gives_the_json_of_its_contract() {
    let args = [
        "decode",
        path(bundle()),
        "--tokens",
        "2,200,201",
        "-n",
        "5",
        "--ignore-eos",
        "--format",
        "json",
    ];
    let output = json(&args);
    let object = output.as_object().unwrap();
    let keys: Vec<&str> = object.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["tokens", "text", "finish_reason", "tokens_per_second"]
    );
    assert_eq!(output["tokens"].as_array().unwrap().len(), 5);
    assert_eq!(output["finish_reason"], "length");
    assert!(output["tokens_per_second"].as_f64().unwrap() > 0.0);

    // The tokens are those that parity finds: the same bundle, threads or not, gives the same ids.
    let again = json(&[&args[..], &["--threads", "2"]].concat());
    assert_eq!(again["tokens"], output["tokens"]);
    let sampled = |seed: &str| {
        let sampling = [
            "--temperature",
            "2",
            "--top-k",
            "50",
            "--top-p",
            "0.95",
            "--seed",
            seed,
        ];
        json(&[&args[..], &sampling].concat())["tokens"].clone()
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert!((2..6).any(|seed| sampled(&seed.to_string()) != sampled("1")));
}

#[test]
fn bench_counts_what_a_token_reads() {
    for kernel in [&[][..], &["--kernel", "portable"]] {
        let args = ["bench", path(bundle()), "-n", "3", "--format", "json"];
        let output = json(&[&args[..], &["--context-tokens", "2"], kernel].concat());
        assert!(output["tokens_per_second"].as_f64().unwrap() > 0.0);
        assert_eq!(output["tokens"], 3);
        // Two before, three timed, eight profiled.
        assert_eq!(output["position"], 13);
        let sum = |field: &str| -> u64 {
            let codings = output["codings"].as_array().unwrap();
            codings.iter().map(|c| c[field].as_u64().unwrap()).sum()
        };
        assert_eq!(output["weight_bytes_per_token"], sum("bytes_per_token"));
        // 4-bit palettes in weight.bin: half a byte a weight and their LUTs; each weight in one of the chunks.
        let stored: u64 = ["chunk1", "chunk2", "chunk3", "chunk4"]
            .iter()
            .map(|chunk| {
                let weights = "Data/com.apple.CoreML/weights/weight.bin";
                let file = bundle().join(format!("{chunk}.mlpackage")).join(weights);
                std::fs::metadata(file).unwrap().len()
            })
            .sum();
        assert!(sum("bytes_per_token") <= stored);
        assert!(sum("bytes_per_token") * 10 >= stored * 9, "{output}");
        assert!(output["cache_bytes_per_token"].as_u64().unwrap() > 0);
        let used = output["kernel"].as_str().unwrap();
        assert!(kernel.is_empty() || used == "portable");
        assert!(!output["profile"].as_array().unwrap().is_empty());
    }
    bad(&["bench", path(bundle()), "--kernel", "sse9"], USAGE);
    bad(&["bench", path(bundle()), "-n", "0"], USAGE);
    let text = bad(&["bench", path(bundle()), "-n", "999999"], INVALID);
    assert!(text.contains("context"), "{text}");
}

#[test]
fn decode_stops_at_the_end_of_the_context() {
    let output = json(&[
        "decode",
        path(bundle()),
        "--tokens",
        "2,200,201",
        "-n",
        "500",
        "--ignore-eos",
        "--format",
        "json",
    ]);
    assert_eq!(output["finish_reason"], "context");
    // 192 positions hold 3 + 189 ids; one more id is chosen at the last of them.
    assert_eq!(output["tokens"].as_array().unwrap().len(), 190);
    let long = vec!["200"; 193].join(",");
    let text = bad(&["decode", path(bundle()), "--tokens", &long], INVALID);
    assert!(text.contains("192") && text.contains("hint: "), "{text}");
    let text = bad(&["decode", path(bundle()), "--tokens", "99999"], INVALID);
    assert!(text.contains("99999"), "{text}");
}

#[test]
fn decode_streams_text_and_chats() {
    let text = good(&[
        "decode",
        path(bundle()),
        "-p",
        "Once upon a time",
        "-n",
        "8",
    ]);
    assert!(text.ends_with('\n'));
    let object = json(&[
        "decode",
        path(bundle()),
        "-p",
        "Once upon a time",
        "-n",
        "8",
        "--format",
        "json",
    ]);
    assert_eq!(
        text.trim_end_matches('\n'),
        object["text"].as_str().unwrap().trim_end_matches('\n')
    );
    good(&["decode", path(bundle()), "-p", "Hello", "--chat", "-n", "4"]);

    let mut child = program()
        .args([
            "decode",
            path(bundle()),
            "--chat",
            "-n",
            "3",
            "-q",
            "--format",
            "json",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"Hello\n\nTell me more\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 2);
    assert_eq!(stderr(&output), "");
}

#[test]
fn packing_is_reproducible_and_unpacking_checks() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.zip"), dir.path().join("b.zip"));
    let report = json(&["pack", path(bundle()), "-o", path(&a), "--format", "json"]);
    assert!(report["files"].as_u64().unwrap() > 10);
    good(&["pack", path(bundle()), "-o", path(&b)]);
    let bytes = std::fs::read(&a).unwrap();
    assert!(bytes == std::fs::read(&b).unwrap(), "archives differ");
    assert!(bad(&["pack", path(bundle()), "-o", path(&a)], INVALID).contains("hint: "));

    let out = dir.path().join("out");
    good(&["unpack", path(&a), "-o", path(&out)]);
    for file in [
        "model_config.json",
        "provenance.json",
        "chunk1.mlpackage/Manifest.json",
    ] {
        assert!(
            std::fs::read(out.join(file)).unwrap() == std::fs::read(bundle().join(file)).unwrap()
        );
    }
    bad(&["unpack", path(&a), "-o", path(&out)], INVALID);
    let mut broken = bytes.clone();
    let middle = broken.len() / 2;
    broken[middle] ^= 1;
    std::fs::write(&b, &broken).unwrap();
    let second = dir.path().join("second");
    bad(&["unpack", path(&b), "-o", path(&second)], INVALID);
    assert!(!second.exists());
}

#[test]
fn recipes_are_listed_shown_and_checked() {
    let list = good(&["recipes", "list"]);
    assert!(list.contains("swa4-int4") && list.contains("swa4-fp16"));
    let all = json(&["recipes", "list", "--format", "json"]);
    assert_eq!(all[0]["name"], "swa4-int4");
    assert_eq!(all[0]["default"], true);
    let toml = good(&["recipes", "show", "swa4-fp16"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    std::fs::write(&file, &toml).unwrap();
    assert!(good(&["recipes", "check", path(&file)]).contains("is valid"));
    std::fs::write(&file, format!("{toml}\nsurprise = 1\n")).unwrap();
    let text = bad(&["recipes", "check", path(&file)], INVALID);
    assert!(
        text.contains("mine.toml") && text.contains("surprise"),
        "{text}"
    );
}

#[test]
fn completions_name_every_verb() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = good(&["completions", shell]);
        for verb in VERBS {
            assert!(script.contains(verb), "{shell}: {verb}");
        }
    }
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A directory with a program called `xcrun` that runs this shell script.
    fn stand_in(script: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("xcrun");
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    fn compile(search: &Path, out: &Path, more: &[&str]) -> Output {
        program()
            .args(["compile", path(bundle()), "-o", path(out)])
            .args(more)
            .env("PATH", format!("{}:/usr/bin:/bin", search.display()))
            .output()
            .unwrap()
    }

    #[test]
    fn compile_calls_coremlcompiler_for_each_package() {
        let xcrun = stand_in(
            r#"[ "$1 $2" = "coremlcompiler compile" ] || exit 64
[ -f "$3/Manifest.json" ] || exit 65
name=$(basename "$3" .mlpackage)
mkdir "$4/$name.mlmodelc" && echo "$3" > "$4/$name.mlmodelc/coremldata.bin""#,
        );
        let dir = tempfile::tempdir().unwrap();
        let output = compile(xcrun.path(), dir.path(), &["--format", "json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let done: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(done.as_array().unwrap().len(), 4);
        for i in 1..=4 {
            let file = dir.path().join(format!("chunk{i}.mlmodelc/coremldata.bin"));
            let package = std::fs::read_to_string(file).unwrap();
            assert_eq!(
                package.trim(),
                path(&bundle().join(format!("chunk{i}.mlpackage")))
            );
        }
    }

    #[test]
    fn a_failing_compiler_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let xcrun = stand_in("echo 'the model is odd' >&2; exit 1");
        let output = compile(xcrun.path(), dir.path(), &[]);
        assert_eq!(output.status.code(), Some(INVALID));
        let text = stderr(&output);
        assert!(
            text.contains("chunk1") && text.contains("the model is odd"),
            "{text}"
        );
        let lazy = stand_in("exit 0");
        let output = compile(lazy.path(), dir.path(), &[]);
        assert_eq!(output.status.code(), Some(1));
        let lacking =
            stand_in("echo 'xcrun: error: unable to find utility \"coremlcompiler\"' >&2; exit 72");
        let text = stderr(&compile(lacking.path(), dir.path(), &[]));
        assert!(text.contains("hint: install Xcode"), "{text}");
    }

    #[test]
    fn without_xcode_compile_says_what_to_do() {
        let empty = tempfile::tempdir().unwrap();
        let output = program()
            .args(["compile", path(bundle())])
            .env("PATH", empty.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(INVALID));
        let text = stderr(&output);
        assert!(
            text.contains("xcrun") && text.contains("hint: ") && text.contains("pack"),
            "{text}"
        );
    }

    #[test]
    fn ctrl_c_exits_130() {
        let mut child = program()
            .args(["decode", path(bundle()), "--chat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The first turn's answer shows that the program is up and its handler is installed.
        use std::io::{BufRead, BufReader, Write};
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"Hello\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let status = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(child.wait().unwrap().code(), Some(INTERRUPTED));
        drop(stdin);
    }

    #[test]
    fn a_reader_that_leaves_is_no_error() {
        let status = Command::new("sh")
            .arg("-c")
            .arg("\"$0\" inspect \"$1\" --mil | head -n 1 >/dev/null")
            .arg(env!("CARGO_BIN_EXE_gemma-coreml"))
            .arg(path(bundle()))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert!(status.status.success());
        assert_eq!(stderr(&status), "");
    }
}
