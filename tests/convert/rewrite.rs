//! Bundles of which parts are kept: another context, one package rebuilt.

use crate::helpers::*;
use gemma_coreml::bundle::{Bundle, Error as BundleError, Provenance};
use gemma_coreml::convert::{Error, Fault, Options, bundle_recipe};
use gemma_coreml::recipe::{Recipe, Rule};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Small, with palettes whose groups do not divide every weight.
const MODEL: &str = "dense-tiny";
const WEIGHTS: &str = "Data/com.apple.CoreML/weights/weight.bin";

fn context(n: usize) -> Options {
    Options {
        context: Some(n),
        ..options()
    }
}

fn only(package: &str) -> Options {
    Options {
        only: Some(package.to_string()),
        context: None,
        ..options()
    }
}

fn with_rules(recipe: &str, rules: &[&str]) -> Recipe {
    let rules: Vec<Rule> = rules.iter().map(|r| r.parse().unwrap()).collect();
    Recipe::builtin(recipe).unwrap().with_rules(&rules).unwrap()
}

/// Files of `a` that are other files, or have other bytes, in `b`.
fn changed(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    a.keys().filter(|k| a[*k] != b[*k]).cloned().collect()
}

#[test]
fn another_context_is_what_a_whole_conversion_makes() {
    let cases = fixtures()
        .into_iter()
        .map(|model| (model, "swa4-int4"))
        .chain(["swa4-fp16", "w8-linear", "w4-linear", "w3"].map(|r| (MODEL.to_string(), r)));
    for (model, recipe) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (out, fresh) = (dir.path().join("b"), dir.path().join("fresh"));
        run(&fixture(&model), recipe, &fresh, &context(96)).unwrap();
        run(&fixture(&model), recipe, &out, &context(64)).unwrap();
        let before = contents(&out);
        let report = run(&fixture(&model), recipe, &out, &context(96)).unwrap();
        assert_same(&out, &fresh);
        let kept = ["chunk1.mlpackage", "chunk4.mlpackage", "embed_tokens"];
        assert!(
            kept.iter().all(|k| report.kept.iter().any(|r| r == k)),
            "{:?}",
            report.kept
        );
        assert!(!report.kept.iter().any(|k| k == "rope"));
        assert_eq!(report.context, 96);
        let fresh_report = Provenance::read(&fresh).unwrap();
        assert_eq!(report.tensors, fresh_report.tensors);
        let changed = changed(&before, &contents(&out));
        assert!(
            !changed.iter().any(|f| f.ends_with("weight.bin")),
            "{changed:?}"
        );
        // And back, and the same again.
        for _ in 0..2 {
            run(&fixture(&model), recipe, &out, &context(64)).unwrap();
            assert!(contents(&out) == before, "{model} {recipe}");
        }
        assert_eq!(entries(dir.path()), ["b", "fresh"]);
    }
}

/// RoPE tables have other lengths once twice the context passes their least length.
#[test]
fn rope_tables_follow_the_context() {
    let dir = tempfile::tempdir().unwrap();
    let (out, fresh) = (dir.path().join("b"), dir.path().join("fresh"));
    let model = copy_model(MODEL, dir.path());
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&config).unwrap();
    let text = match json.get_mut("text_config") {
        Some(text) => text,
        None => &mut json,
    };
    text["max_position_embeddings"] = 8192.into();
    fs::write(model.join("config.json"), json.to_string()).unwrap();
    run(&model, "swa4-int4", &fresh, &context(2100)).unwrap();
    run(&model, "swa4-int4", &out, &context(64)).unwrap();
    run(&model, "swa4-int4", &out, &context(2100)).unwrap();
    assert_same(&out, &fresh);
    assert_eq!(Bundle::open(&out).unwrap().rope().cos_full.rows(), 4200);
}

#[test]
fn another_recipe_or_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    run(&fixture(MODEL), "swa4-int4", &out, &options()).unwrap();
    let before = contents(&out);
    let refused = |model: &Path, recipe: &Recipe, what: &str, names: &[&str]| {
        let error = run_recipe(model, recipe, &out, &context(96)).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(&error, Error::OtherBundle { what: w, .. } if *w == what),
            "{text}"
        );
        assert!(matches!(error.fault(), Fault::Input));
        assert!(names.iter().all(|n| text.contains(n)), "{text}");
        assert!(contents(&out) == before);
        assert!(!dir.path().join(".b.partial").exists(), "{text}");
    };
    let int4 = Recipe::builtin("swa4-int4").unwrap();
    let fp16 = Recipe::builtin("swa4-fp16").unwrap();
    refused(
        &fixture(MODEL),
        &fp16,
        "recipe",
        &["swa4-int4", "swa4-fp16"],
    );
    let ruled = with_rules("swa4-int4", &["up_proj=fp16"]);
    refused(&fixture(MODEL), &ruled, "recipe", &["swa4-int4 (text "]);
    let hash = Provenance::read(&out).unwrap().checkpoint.sha256;
    let other = damaged(MODEL, dir.path(), |file| {
        file.set("layers.0.mlp.up_proj.weight", 0, 0.5)
    });
    refused(&other, &int4, "checkpoint", &[&hash]);
    let old = contents(&out)["provenance.json"].clone();
    let text = String::from_utf8(old.clone()).unwrap();
    let version = concat!("\"version\": \"", env!("CARGO_PKG_VERSION"), "\"");
    assert!(text.contains(version));
    fs::write(
        out.join("provenance.json"),
        text.replace(version, "\"version\": \"0.0.7\""),
    )
    .unwrap();
    let error = run_recipe(&fixture(MODEL), &int4, &out, &context(96)).unwrap_err();
    assert!(error.to_string().contains("0.0.7"), "{error}");
    fs::write(out.join("provenance.json"), old).unwrap();
    // Without a context an output that exists is an error as ever.
    let plain = Options {
        context: None,
        ..options()
    };
    let error = run_recipe(&fixture(MODEL), &int4, &out, &plain).unwrap_err();
    assert!(
        matches!(error, Error::Bundle(BundleError::Exists { .. })),
        "{error}"
    );
    // All of it goes when that is asked for.
    let force = Options {
        force: true,
        ..context(96)
    };
    let report = run_recipe(&fixture(MODEL), &fp16, &out, &force).unwrap();
    assert!(report.kept.is_empty());
}

#[test]
fn damage_is_not_carried_over() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    run(&fixture("e4b-tiny"), "swa4-int4", &out, &options()).unwrap();
    let weights = format!("chunk2.mlpackage/{WEIGHTS}");
    for file in [
        weights.as_str(),
        "embed_tokens_q8.bin",
        "embed_tokens_scales.bin",
        "per_layer_projection.bin",
    ] {
        let good = fs::read(out.join(file)).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        fs::write(out.join(file), &bad).unwrap();
        let error = run(&fixture("e4b-tiny"), "swa4-int4", &out, &context(96)).unwrap_err();
        assert!(
            matches!(&error, Error::Bundle(BundleError::Content { path, .. }) if path.ends_with(file)),
            "{error}"
        );
        fs::remove_file(out.join(file)).unwrap();
        let error = run(&fixture("e4b-tiny"), "swa4-int4", &out, &context(96)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error.fault(), Fault::Input), "{text}");
        assert!(text.contains(file) || text.contains("chunk2"), "{text}");
        fs::write(out.join(file), &good).unwrap();
    }
    // What was finished before the damage was met is used.
    let report = run(&fixture("e4b-tiny"), "swa4-int4", &out, &context(96)).unwrap();
    assert!(!report.resumed.is_empty());
    let fresh = dir.path().join("fresh");
    run(&fixture("e4b-tiny"), "swa4-int4", &fresh, &context(96)).unwrap();
    assert_same(&out, &fresh);
}

/// A crash between the two renames of a replacement leaves the old bundle in the staging directory; it is found there.
#[test]
fn death_between_the_renames_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (out, fresh) = (dir.path().join("b"), dir.path().join("fresh"));
    run(&fixture(MODEL), "swa4-int4", &fresh, &context(96)).unwrap();
    for options in [context(96), only("chunk2")] {
        run(&fixture(MODEL), "swa4-int4", &out, &context(64)).unwrap();
        let before = contents(&out);
        fs::create_dir(dir.path().join(".b.partial")).unwrap();
        fs::rename(&out, dir.path().join(".b.partial/old")).unwrap();
        let report = run(&fixture(MODEL), "swa4-int4", &out, &options).unwrap();
        assert!(!report.kept.is_empty());
        match options.only {
            None => assert_same(&out, &fresh),
            Some(_) => assert!(contents(&out) == before),
        }
        assert_eq!(entries(dir.path()), ["b", "fresh"]);
    }
}

#[test]
fn one_package_is_rebuilt_in_another_scheme() {
    let dir = tempfile::tempdir().unwrap();
    let (out, fp16) = (dir.path().join("b"), dir.path().join("fp16"));
    run(&fixture(MODEL), "swa4-int4", &out, &options()).unwrap();
    run(&fixture(MODEL), "swa4-fp16", &fp16, &options()).unwrap();
    let (before, whole) = (contents(&out), contents(&fp16));
    let report = run(&fixture(MODEL), "swa4-fp16", &out, &only("chunk4")).unwrap();
    assert!(!report.kept.iter().any(|k| k == "chunk4.mlpackage"));
    assert!(report.kept.iter().any(|k| k == "hf_model"));
    let after = contents(&out);
    for file in changed(&before, &after) {
        assert!(
            file.starts_with("chunk4.mlpackage/") || file == "provenance.json",
            "{file}"
        );
    }
    for (file, bytes) in after
        .iter()
        .filter(|(f, _)| f.starts_with("chunk4.mlpackage/"))
    {
        assert!(bytes == &whole[file], "{file}");
    }
    let facts = Provenance::read(&out).unwrap();
    assert_eq!(facts.recipe.name, "swa4-int4");
    assert_eq!(facts.packages.keys().collect::<Vec<_>>(), ["chunk4"]);
    assert_eq!(facts.packages["chunk4"].name, "swa4-fp16");
    for tensor in &facts.tensors {
        if tensor.file == "chunk4.mlpackage" {
            assert_eq!(tensor.scheme, "fp16", "{}", tensor.tensor);
        }
    }
    assert!(
        facts
            .tensors
            .iter()
            .any(|t| t.scheme.starts_with("palette4"))
    );
    // Another context keeps the package's own recipe and weights.
    run(&fixture(MODEL), "swa4-int4", &out, &context(96)).unwrap();
    let longer = Provenance::read(&out).unwrap();
    assert_eq!(longer.packages, facts.packages);
    assert_eq!(longer.tensors, facts.tensors);
    run(&fixture(MODEL), "swa4-fp16", &fp16, &context(96)).unwrap();
    let (mixed, whole) = (contents(&out), contents(&fp16));
    for (file, bytes) in mixed
        .iter()
        .filter(|(f, _)| f.starts_with("chunk4.mlpackage/"))
    {
        assert!(bytes == &whole[file], "{file}");
    }
    run(&fixture(MODEL), "swa4-int4", &out, &context(64)).unwrap();
    assert!(contents(&out) == after);
    // And back to the bundle's own recipe.
    let own = bundle_recipe(&out).unwrap();
    run_recipe(&fixture(MODEL), &own, &out, &only("chunk4")).unwrap();
    assert!(contents(&out) == before);
    assert_eq!(entries(dir.path()), ["b", "fp16"]);
}

#[test]
fn a_package_that_would_not_fit_its_bundle_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let error = run(&fixture(MODEL), "swa4-int4", &out, &only("chunk4")).unwrap_err();
    assert!(matches!(error, Error::NoBundle { .. }), "{error}");
    assert_eq!(entries(dir.path()), [] as [&str; 0]);
    run(&fixture(MODEL), "swa4-int4", &out, &options()).unwrap();
    let before = contents(&out);
    let refused = |recipe: &Recipe, options: &Options, expected: &str| {
        let error = run_recipe(&fixture(MODEL), recipe, &out, options).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(matches!(error.fault(), Fault::Input));
        assert!(contents(&out) == before);
        assert_eq!(entries(dir.path()), ["b"]);
    };
    let int4 = Recipe::builtin("swa4-int4").unwrap();
    refused(&int4, &only("chunk9"), "chunk1, chunk2, chunk3, chunk4");
    let longer = Options {
        context: Some(96),
        ..only("chunk4")
    };
    refused(
        &int4,
        &longer,
        "chunk4 would have context 96, the bundle has 64",
    );
    let mut text = int4
        .source
        .replace("[quantize]", "context = 128\n[quantize]");
    let recipe = Recipe::parse("x", &text).unwrap();
    refused(
        &recipe,
        &only("chunk4"),
        "chunk4 would have context 128, the bundle has 64",
    );
    text = int4
        .source
        .replace("[quantize]", "compat = true\n[quantize]");
    let recipe = Recipe::parse("x", &text).unwrap();
    refused(
        &recipe,
        &only("chunk4"),
        "chunk4 would have compat true, the bundle has false",
    );
    // A rule for another package would be lost.
    let lost = with_rules("swa4-int4", &[r"layers\.0\.=fp16"]);
    refused(
        &lost,
        &only("chunk4"),
        "only the weights of chunk4 are built",
    );
    // The same context said again is fine.
    let same = Options {
        context: Some(64),
        ..only("chunk4")
    };
    run_recipe(&fixture(MODEL), &int4, &out, &same).unwrap();
    assert!(contents(&out) == before);
}

#[test]
fn a_damaged_package_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    run(&fixture(MODEL), "swa4-int4", &out, &options()).unwrap();
    let before = contents(&out);
    fs::remove_dir_all(out.join("chunk3.mlpackage")).unwrap();
    assert!(Bundle::open(&out).is_err());
    run(&fixture(MODEL), "swa4-int4", &out, &only("chunk3")).unwrap();
    assert!(contents(&out) == before);
}

#[test]
fn rules_that_are_added_win_and_are_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let fp16 = dir.path().join("fp16");
    run(&fixture(MODEL), "swa4-fp16", &fp16, &options()).unwrap();
    let whole = contents(&fp16);
    for recipe in crate::helpers::swa4_recipes() {
        let out = dir.path().join("b");
        let all = with_rules(&recipe.name, &[".*=fp16"]);
        run_recipe(&fixture(MODEL), &all, &out, &options()).unwrap();
        for (file, bytes) in contents(&out) {
            if file.ends_with("weight.bin") {
                assert!(bytes == whole[&file], "{}: {file}", recipe.name);
            }
        }
        let facts = Provenance::read(&out).unwrap();
        assert!(facts.recipe.text.contains("\".*\"") || facts.recipe.text.contains("'.*'"));
        let ruled = facts
            .tensors
            .iter()
            .filter(|t| t.reason == "rule `.*`")
            .count();
        assert!(ruled > 20, "{ruled}");
        // What is written down makes the same bundle.
        let again = dir.path().join("again");
        let written = bundle_recipe(&out).unwrap();
        run_recipe(&fixture(MODEL), &written, &again, &options()).unwrap();
        assert_same(&out, &again);
        fs::remove_dir_all(out).unwrap();
        fs::remove_dir_all(again).unwrap();
    }
    let rules = ["mlp=int8-channel", r"layers\.0\.mlp=fp16"];
    let out = dir.path().join("b");
    run_recipe(
        &fixture(MODEL),
        &with_rules("swa4-int4", &rules),
        &out,
        &options(),
    )
    .unwrap();
    for t in Provenance::read(&out).unwrap().tensors {
        if t.tensor.contains(".mlp.") {
            let first = t.tensor.starts_with("layers.0.");
            assert_eq!(
                t.scheme,
                if first { "fp16" } else { "int8-channel" },
                "{}",
                t.tensor
            );
        }
    }
    let nothing = with_rules("swa4-int4", &["no_such_proj=fp16"]);
    let error =
        run_recipe(&fixture(MODEL), &nothing, &dir.path().join("c"), &options()).unwrap_err();
    assert!(error.to_string().contains("no_such_proj"), "{error}");
    assert!(!dir.path().join(".c.partial").exists());
}
