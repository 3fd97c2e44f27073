//! What the program refuses, and how it says so: bundles and checkpoints that are damaged, paths that will not do, full disks.

mod program;

use std::process::{Command, Output};

use program::*;

#[test]
fn convert_refuses_tokenizer_files_that_would_not_open() {
    let dir = tempfile::tempdir().unwrap();
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        let model = dir.path().join(file).join("model");
        copy_tree(&fixture("dense-tiny"), &model);
        let bytes = std::fs::read(model.join(file)).unwrap();
        std::fs::write(model.join(file), &bytes[..bytes.len() / 2]).unwrap();
        let out = dir.path().join(file).join("out");
        let output = run(&["convert", path(&model), "-o", path(&out)]);
        assert_eq!(output.status.code(), Some(INVALID));
        assert!(stderr(&output).contains(file), "{}", stderr(&output));
        assert!(!out.exists());
    }
}

#[test]
fn a_file_that_provenance_lists_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("b");
    copy_tree(bundle(), &copy);
    std::fs::remove_file(copy.join("hf_model/generation_config.json")).unwrap();
    let zip = dir.path().join("b.zip");
    for args in [
        &["decode", path(&copy), "--tokens", "2", "-n", "1"][..],
        &["inspect", path(&copy)],
        &["pack", path(&copy), "-o", path(&zip)],
    ] {
        assert!(hinted(args, INVALID).contains("generation_config.json"));
    }
}

#[test]
fn archives_hold_the_bundle_only() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("b");
    copy_tree(bundle(), &copy);
    // What `compile` leaves beside the packages stays out, and the parents of the archive are made.
    std::fs::create_dir(copy.join("chunk1.mlmodelc")).unwrap();
    std::fs::write(copy.join("chunk1.mlmodelc/coremldata.bin"), "x").unwrap();
    let (one, two) = (dir.path().join("new/one.zip"), dir.path().join("two.zip"));
    good(&["pack", path(&copy), "-o", path(&one)]);
    good(&["pack", path(bundle()), "-o", path(&two)]);
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap());
    let inside = copy.join("b.zip");
    hinted(&["pack", path(&copy), "-o", path(&inside)], INVALID);
    assert!(!inside.exists());
    std::fs::write(copy.join("letter.txt"), "dear").unwrap();
    let three = dir.path().join("three.zip");
    let text = hinted(&["pack", path(&copy), "-o", path(&three)], INVALID);
    assert!(text.contains("letter.txt"), "{text}");
}

#[test]
fn errors_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let nano = fixture("nano");
    let out = dir.path().join("out");
    let nowhere = dir.path().join("nowhere");
    let file = nano.join("config.json");
    let below = file.join("out");
    let reference = nano.join("reference.safetensors");
    let other = fixture("dense-tiny").join("reference.safetensors");
    let weights = nano.join("model.safetensors");
    let package = bundle().join("chunk1.mlpackage");
    let (o, b) = (path(&out), path(bundle()));
    for (args, code) in [
        (&["convert", path(&nowhere), "-o", o][..], INVALID),
        (&["convert", path(&file), "-o", o], INVALID),
        (&["convert", path(&nano), "-o", path(&below)], 1),
        (
            &["convert", path(&nano), "-o", o, "--context", "8193"],
            INVALID,
        ),
        (
            &["convert", path(&nano), "-o", o, "-r", "none.toml"],
            INVALID,
        ),
        (&["decode", path(&nowhere), "-p", "a"], INVALID),
        (&["decode", path(&file), "-p", "a"], INVALID),
        (&["decode", path(&package), "-p", "a"], INVALID),
        (&["decode", path(dir.path()), "-p", "a"], INVALID),
        (&["decode", b, "--tokens", "2,99999"], INVALID),
        (&["parity", b, "--reference", path(&weights)], INVALID),
        (&["parity", b, "--reference", path(&other)], INVALID),
        (
            &[
                "parity",
                b,
                "--reference",
                path(&reference),
                "--gate-min",
                "1",
            ],
            GATE,
        ),
        (&["pack", path(&nowhere), "-o", o], INVALID),
        (&["unpack", path(&file), "-o", o], INVALID),
    ] {
        hinted(args, code);
    }
    assert!(!out.exists());
    let text = hinted(&["convert", path(&nano), "-o", b], INVALID);
    assert!(text.contains("--force"), "{text}");
    // Refused before the work: nothing was decoded.
    let trace = nowhere.join("t.safetensors");
    let args = [
        "decode",
        b,
        "--tokens",
        "2",
        "-n",
        "1",
        "--trace",
        path(&trace),
    ];
    assert!(bad(&args, INVALID).contains("nowhere"));
}

#[test]
fn a_damaged_package_is_named_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("b");
    copy_tree(bundle(), &copy);
    let weights = "chunk2.mlpackage/Data/com.apple.CoreML/weights/weight.bin";
    let file = std::fs::File::options()
        .write(true)
        .open(copy.join(weights))
        .unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    let text = hinted(&["decode", path(&copy), "--tokens", "2"], INVALID);
    assert!(text.contains("chunk2"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_name_need_not_be_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join(std::ffi::OsStr::from_bytes(b"b\xff"));
    let output = program()
        .args([
            "convert",
            path(&fixture("dense-tiny")),
            "--context",
            "16",
            "-o",
        ])
        .arg(&out)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let zip = dir.path().join(std::ffi::OsStr::from_bytes(b"z\xff"));
    let output = program().arg("pack").arg(&out).arg("-o").arg(&zip).output();
    assert!(output.unwrap().status.success());
    assert!(zip.is_file());
}

/// A limit of 64 KiB on the size of files, as `ulimit -f` sets it.
#[cfg(unix)]
fn limited(args: &[&str]) -> Output {
    let mut line = vec!["-c", "ulimit -f 64 && exec \"$@\"", "sh"];
    line.push(env!("CARGO_BIN_EXE_gemma-coreml"));
    line.extend(args);
    Command::new("bash").args(&line).output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_file_size_limit_exits_5_and_is_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    let (out, zip) = (dir.path().join("out"), dir.path().join("out.zip"));
    let nano = fixture("nano");
    for args in [
        &["convert", path(&nano), "-o", path(&out)][..],
        &["pack", path(bundle()), "-o", path(&zip)],
    ] {
        let output = limited(args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(RESOURCES), "{args:?}: {text}");
        // Ours alone: no library prints.
        for line in text.lines() {
            let ours = [
                "hash",
                "convert",
                "pack",
                "error: ",
                "hint: ",
                "  caused by: ",
            ];
            assert!(ours.iter().any(|o| line.starts_with(o)), "{line}");
        }
        assert!(text.contains("\nhint: "), "{text}");
    }
    assert!(!out.exists() && !zip.exists());
}
