//! `convert` onto a bundle that is there, and its rules.

mod program;

use program::*;
use std::path::Path;

const MODEL: &str = "dense-tiny";

fn convert<'a>(model: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["convert", path(model), "-o", path(out)], more].concat()
}

fn read(out: &Path, file: &str) -> String {
    std::fs::read_to_string(out.join(file)).unwrap()
}

#[test]
fn a_bundle_is_rewritten_for_another_context() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (fixture(MODEL), dir.path().join("b"));
    good(&convert(&model, &out, &["--context", "64"]));
    let text = good(&convert(&model, &out, &["--context", "96"]));
    assert!(
        text.contains("kept from the bundle that was there: chunk1.mlpackage"),
        "{text}"
    );
    assert!(text.contains("context 96"), "{text}");
    let about = json(&["inspect", path(&out), "--format", "json"]);
    assert_eq!(about["config"]["context_length"], 96);
    let text = hinted(
        &convert(&model, &out, &["--context", "64", "-r", "swa4-fp16"]),
        INVALID,
    );
    assert!(
        text.contains("swa4-fp16") && text.contains("swa4-int4"),
        "{text}"
    );
    assert!(text.contains("hint: --force "), "{text}");
    let text = hinted(&convert(&model, &out, &[]), INVALID);
    assert!(
        text.contains("exists") && text.contains("--context N"),
        "{text}"
    );
    let other = fixture("textonly-tiny");
    let text = hinted(&convert(&other, &out, &["--context", "64"]), INVALID);
    assert!(text.contains("checkpoint: expected "), "{text}");
    // Something else in the way is left alone.
    let letter = dir.path().join("letters");
    std::fs::create_dir(&letter).unwrap();
    std::fs::write(letter.join("letter.txt"), "dear").unwrap();
    let text = hinted(&convert(&model, &letter, &["--context", "64"]), INVALID);
    assert!(text.contains("not a bundle"), "{text}");
}

#[test]
fn one_package_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (fixture(MODEL), dir.path().join("b"));
    let text = bad(&convert(&model, &out, &["--only", "chunk4"]), INVALID);
    assert!(text.contains("hint: --only chunk4 rebuilds"), "{text}");
    good(&convert(
        &model,
        &out,
        &["--context", "64", "-r", "swa4-fp16"],
    ));
    let before = read(&out, "provenance.json");
    // Without a recipe it is the bundle's.
    let report = json(&convert(
        &model,
        &out,
        &["--only", "chunk4", "--format", "json"],
    ));
    assert_eq!(report["chunks"].as_array().unwrap().len(), 1);
    assert_eq!(report["context"], 64);
    assert_eq!(read(&out, "provenance.json"), before);
    let rules = ["--only", "chunk4", "--set", "up_proj=int8-channel"];
    let text = good(&convert(&model, &out, &rules));
    assert!(text.contains("rule `up_proj`"), "{text}");
    let facts: serde_json::Value = serde_json::from_str(&read(&out, "provenance.json")).unwrap();
    let recipe = facts["packages"]["chunk4"]["text"].as_str().unwrap();
    assert!(recipe.contains("up_proj"), "{recipe}");
    let about = good(&["inspect", path(&out)]);
    assert!(
        about.contains("recipe swa4-fp16 (chunk4: swa4-fp16, rebuilt), "),
        "{about}"
    );
    let text = hinted(
        &convert(&model, &out, &["--only", "chunk4", "--context", "96"]),
        INVALID,
    );
    assert!(
        text.contains("chunk4 would have context 96, the bundle has 64"),
        "{text}"
    );
    let text = hinted(&convert(&model, &out, &["--only", "chunk5"]), INVALID);
    assert!(text.contains("chunk1, chunk2, chunk3, chunk4"), "{text}");
    bad(
        &convert(&model, &out, &["--only", "chunk4", "--force"]),
        USAGE,
    );
}

#[test]
fn rules_of_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (fixture(MODEL), dir.path().join("b"));
    let rules = [
        "--context",
        "64",
        "--set",
        ".*=fp16",
        "--set",
        r"layers\.1\..*=int8-channel",
    ];
    let text = good(&convert(&model, &out, &rules));
    assert!(
        text.contains("rule `.*`") && text.contains(r"rule `layers\.1\..*`"),
        "{text}"
    );
    assert!(!text.contains("palette4-"), "{text}");
    for (rule, expected) in [
        ("up_proj", "there is no `=`"),
        ("up_proj=int5", "int5"),
        ("up(=fp16", "regular expression"),
    ] {
        let text = bad(&convert(&model, &out, &["--set", rule]), USAGE);
        assert!(text.contains(expected), "{text}");
    }
    let nothing = ["--set", "no_such=fp16", "--force"];
    let text = bad(&convert(&model, &out, &nothing), INVALID);
    assert!(
        text.contains("no_such") && text.contains("hint: "),
        "{text}"
    );
}

#[test]
fn a_bundle_with_a_chunk_of_another_context_exits_3_and_names_both() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (fixture(MODEL), dir.path().join("b"));
    let longer = dir.path().join("longer");
    good(&convert(&model, &out, &["--context", "64"]));
    good(&convert(&model, &longer, &["--context", "96"]));
    let chunk = out.join("chunk4.mlpackage");
    std::fs::remove_dir_all(&chunk).unwrap();
    copy_tree(&longer.join("chunk4.mlpackage"), &chunk);
    for args in [
        &["decode", path(&out), "--tokens", "2,5", "-n", "1"][..],
        &["inspect", path(&out)],
    ] {
        let text = hinted(args, INVALID);
        assert!(
            text.contains("chunk4") && text.contains("64") && text.contains("96"),
            "{text}"
        );
    }
    // The package is rebuilt in its place.
    good(&convert(&model, &out, &["--only", "chunk4"]));
    good(&["decode", path(&out), "--tokens", "2,5", "-n", "1"]);
}

#[test]
fn plan_prints_what_convert_makes() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (fixture("e4b-tiny"), dir.path().join("b"));
    let flags = ["-r", "swa4-int4", "--context", "64", "--threads", "1"];
    let plan = [&["plan", path(&model)], &flags[..]].concat();
    let text = good(&plan);
    for part in [
        "chunk4",
        "palette4-g32",
        "embed_tokens_q8.bin",
        "an estimate",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let about = json(&[&plan[..], &["--format", "json"]].concat());
    let report = json(&convert(
        &model,
        &out,
        &[&flags[..], &["--format", "json"]].concat(),
    ));
    assert_eq!(report["plan"], about);
    for (name, file) in about["files"].as_object().unwrap() {
        let bytes = std::fs::metadata(out.join(name)).unwrap().len();
        if file["exact"] == true {
            assert_eq!(file["bytes"], bytes, "{name}");
        }
    }
    // The tables that `convert` begins with are those of `plan`.
    std::fs::remove_dir_all(&out).unwrap();
    let converted = good(&convert(&model, &out, &flags));
    let tables = text.split("file ").next().unwrap().trim_end();
    assert!(converted.starts_with(tables), "{converted}");
    let needs = text.lines().find(|l| l.starts_with("needs ")).unwrap();
    assert!(converted.contains(needs), "{converted}");
    // What a conversion is refused for, a plan is.
    for more in [
        &["--set", "no_such_tensor=fp16"][..],
        &["--context", "999999"],
    ] {
        let flags = [&["plan", path(&model)], more].concat();
        let text = bad(&flags, INVALID);
        assert!(text.contains("hint: "), "{text}");
    }
    bad(&["plan", path(&out)], INVALID);
}

#[test]
fn convert_refuses_what_has_no_room_with_5() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let model = fixture("dense-tiny");
    // More threads than any machine has memory for.
    let text = hinted(
        &convert(&model, &out, &["--threads", "100000000"]),
        RESOURCES,
    );
    assert!(text.contains("not enough memory"), "{text}");
    assert!(text.contains("bytes needed at most"), "{text}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
