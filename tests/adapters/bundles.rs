//! Bundles of a checkpoint with adapters.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use gemma_coreml::bundle::Provenance;
use gemma_coreml::bundle::provenance::FileRecord;
use gemma_coreml::calibrate::{self, Source};
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::convert::{Options, convert};
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::Recipe;

use crate::common::fixtures::fixture;
use crate::helpers::{Made, Q, adapted, all, save, stored};

const PROVENANCE: &str = "provenance.json";

fn options() -> Options {
    Options {
        threads: Some(2),
        context: Some(64),
        ..Options::default()
    }
}

/// The files of a new bundle, without its provenance.
fn files(checkpoint: &Checkpoint, recipe: &str, out: &Path) -> BTreeMap<String, FileRecord> {
    let recipe = Recipe::builtin(recipe).unwrap();
    let report = convert(checkpoint, &recipe, out, &options(), &NoProgress).unwrap();
    let mut files = report.files;
    files.remove(PROVENANCE).unwrap();
    files
}

fn base() -> Checkpoint {
    Checkpoint::open(&fixture("textonly-tiny")).unwrap()
}

/// A copy of the fixture with other values, all in f32.
fn dense(dir: &Path, checkpoint: &Checkpoint) -> Checkpoint {
    fs::create_dir(dir).unwrap();
    for entry in fs::read_dir(fixture("textonly-tiny")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
    }
    let tensors = checkpoint.names().map(|name| {
        let shape = checkpoint.shape(name).unwrap().to_vec();
        (format!("model.{name}"), (shape, all(checkpoint, name)))
    });
    save(&dir.join("model.safetensors"), &tensors.collect());
    Checkpoint::open(dir).unwrap()
}

#[test]
fn an_adapter_of_zeros_changes_no_byte_but_provenance() {
    let dir = tempfile::tempdir().unwrap();
    let mut made = Made::peft().lora(Q, [32, 32], 2).lora(
        "base_model.model.model.layers.3.mlp.up_proj",
        [32, 32],
        2,
    );
    for (name, (_, values)) in &mut made.tensors {
        if name.contains("lora_B") {
            values.fill(0.0);
        }
    }
    let path = made.write(&dir.path().join("adapter"));
    for recipe in ["swa4-int4", "swa4-fp16"] {
        let plain = files(&base(), recipe, &dir.path().join(format!("{recipe}-plain")));
        let out = dir.path().join(format!("{recipe}-zeros"));
        assert_eq!(
            files(&adapted("textonly-tiny", &[&path]), recipe, &out),
            plain,
            "{recipe}"
        );
        let [plain, zeros] = ["plain", "zeros"].map(|which| {
            let dir = dir.path().join(format!("{recipe}-{which}"));
            Provenance::read(&dir).unwrap()
        });
        assert_eq!(plain.adapters, []);
        assert_eq!(zeros.adapters.len(), 1);
        assert_ne!(plain.checkpoint.sha256, zeros.checkpoint.sha256);
        assert_eq!(plain.tensors, zeros.tensors);
    }
}

#[test]
fn a_bundle_is_that_of_the_merged_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let table = Made::peft()
        .set("target_modules", vec!["embed_tokens"])
        .tensor(
            "base_model.model.model.embed_tokens.lora_embedding_A",
            &[2, 224],
            |i| [0.25, 0.0, -0.5][i % 3],
        )
        .tensor(
            "base_model.model.model.embed_tokens.lora_embedding_B",
            &[32, 2],
            |i| [0.5, 0.125][i % 2],
        )
        .write(&dir.path().join("table"));
    let first = Made::peft()
        .lora(Q, [32, 32], 2)
        .lora(
            "base_model.model.model.layers.11.mlp.down_proj",
            [32, 64],
            2,
        )
        .write(&dir.path().join("first"));
    for (i, adapters) in [&[&first, &table][..], &[&stored("dora"), &stored("tables")]]
        .iter()
        .enumerate()
    {
        let folders: Vec<&Path> = adapters.iter().map(|p| p.as_path()).collect();
        let checkpoint = adapted("textonly-tiny", &folders);
        let merged = dense(&dir.path().join(format!("m{i}")), &checkpoint);
        let ours = files(&checkpoint, "swa4-int4", &dir.path().join(format!("a{i}")));
        let theirs = files(&merged, "swa4-int4", &dir.path().join(format!("b{i}")));
        assert_eq!(ours, theirs, "{adapters:?}");
        let plain = files(&base(), "swa4-int4", &dir.path().join(format!("c{i}")));
        assert_ne!(ours, plain);
    }
}

#[test]
fn a_bundle_is_not_mixed_with_one_of_another_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("bundle");
    let recipe = Recipe::builtin("swa4-int4").unwrap();
    let lora = adapted("textonly-tiny", &[&stored("lora")]);
    files(&lora, "swa4-int4", &out);
    let record = Provenance::read(&out).unwrap().adapters;
    assert_eq!(record.len(), 1);
    assert_eq!(
        (record[0].format.as_str(), record[0].method.as_str()),
        ("PEFT", "LoRA")
    );
    assert_eq!(
        (record[0].ranks.as_slice(), record[0].alpha, record[0].scale),
        (&[4][..], Some(8.0), None)
    );
    assert_eq!(record[0].base_model.as_deref(), Some("textonly-tiny"));
    assert_eq!(record[0].tensors, lora.adapters()[0].changed.len());

    let only = Options {
        only: Some("chunk1".into()),
        ..options()
    };
    let context = Options {
        context: Some(128),
        ..options()
    };
    for other in [base(), adapted("textonly-tiny", &[&stored("dora")])] {
        for options in [&only, &context] {
            let error = convert(&other, &recipe, &out, options, &NoProgress)
                .unwrap_err()
                .to_string();
            assert!(error.contains("adapters"), "{error}");
        }
    }
    let report = convert(&lora, &recipe, &out, &context, &NoProgress).unwrap();
    let whole = dir.path().join("whole");
    let anew = convert(&lora, &recipe, &whole, &context, &NoProgress).unwrap();
    assert_eq!(report.files, anew.files);
    assert!(!report.kept.is_empty());
}

#[test]
fn statistics_are_of_the_adapters_they_were_measured_with() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stats.safetensors");
    let lora = adapted("textonly-tiny", &[&stored("lora")]);
    let stats = calibrate::calibrate(
        &lora,
        &Source::Noise(64),
        &Default::default(),
        &path,
        &NoProgress,
    )
    .unwrap();
    assert_eq!(stats.checkpoint(), lora.fingerprint(&NoProgress).unwrap());
    assert_ne!(stats.checkpoint(), base().fingerprint(&NoProgress).unwrap());
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemma-coreml"));
    command.args(args).output().unwrap()
}

fn texts(output: &Output) -> (String, String) {
    let [out, err] =
        [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
    (out, err)
}

#[test]
fn the_command_line_merges_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let model = fixture("textonly-tiny").to_string_lossy().into_owned();
    let [lora, tables] = ["lora", "tables"].map(|a| stored(a).to_string_lossy().into_owned());
    let adapters = ["--adapter", &lora, "--adapter", &tables];

    let args = [&["plan", &model][..], &adapters].concat();
    let (out, err) = texts(&run(&args));
    for expected in [
        "LoRA of PEFT, rank 4, alpha 8, for textonly-tiny",
        "3 q_proj",
        "1 embed_tokens_per_layer",
        "tied head",
    ] {
        assert!(err.contains(expected), "{expected}: {err}");
    }
    assert!(out.contains("packages") || out.contains("package"), "{out}");
    let (out, _) = texts(&run(&[&args[..], &["--format", "json"]].concat()));
    let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(plan["adapters"].as_array().unwrap().len(), 2);

    let bundle = at("bundle");
    let output = run(&[
        &[
            "convert",
            &model,
            "-r",
            "swa4-fp16",
            "--context",
            "64",
            "-o",
            &bundle,
        ][..],
        &adapters,
    ]
    .concat());
    assert!(output.status.success(), "{}", texts(&output).1);
    let (out, _) = texts(&run(&["inspect", &bundle]));
    assert!(out.contains("LoRA of PEFT, rank 4"), "{out}");

    // What the bundle computes is what the merged checkpoint does, and not what the checkpoint alone does.
    let parity = [
        "parity",
        &bundle,
        "--reference",
        &model,
        "--exact-tables",
        &model,
        "-n",
        "4",
        "-p",
        "a b",
        "--gate-mean",
        "0.9999",
        "--gate-min",
        "0.9995",
    ];
    let output = run(&[&parity[..], &adapters].concat());
    assert!(output.status.success(), "{:?}", texts(&output));
    let output = run(&parity);
    assert_eq!(output.status.code(), Some(4), "{:?}", texts(&output));

    let (out, _) = texts(&run(&["inspect", &lora]));
    assert!(out.contains("LoRA of PEFT, rank 4, alpha 8"), "{out}");
    let (_, err) = texts(&run(&[
        "convert",
        &model,
        "-o",
        &at("no"),
        "--adapter",
        &at("absent"),
    ]));
    assert!(err.contains("absent") && err.contains("adapter"), "{err}");
    let (_, err) = texts(&run(&["decode", &bundle, "-p", "a", "--adapter", &lora]));
    assert!(err.contains("--exact-tables"), "{err}");
}
