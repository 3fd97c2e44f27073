//! Bundles whose packages have several weight files.

use crate::coremltools::equal_to_coremltools;
use crate::helpers::*;
use gemma_coreml::bundle::archive::{pack, unpack};
use gemma_coreml::bundle::{Bundle, Error as BundleError};
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::convert::{Error, Grids, Options, resolve};
use gemma_coreml::evaluate::{RowSource, open_decoder};
use gemma_coreml::gemma::ModelPlan;
use gemma_coreml::package::WEIGHTS_DIR;
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::Recipe;
use gemma_coreml::runtime::{DecodeOptions, Precision};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Metadata of the blobs of one weight, and the header of a file.
const METADATA: u64 = 1024;

/// A limit that the largest weight of the model just fits in.
fn limit(model: &str, recipe: &str) -> u64 {
    let checkpoint = Checkpoint::open(&fixture(model)).unwrap();
    let plan = ModelPlan::new(checkpoint.config()).unwrap();
    let chunks = resolve(&plan, &Recipe::load(recipe).unwrap(), &Grids::default()).unwrap();
    let weights = chunks.iter().flat_map(|c| &c.weights);
    weights.map(|w| w.bytes).max().unwrap() + METADATA
}

fn sharded(model: &str, recipe: &str) -> Options {
    Options {
        weight_file_limit: Some(limit(model, recipe)),
        ..options()
    }
}

/// Names of the weight files of a bundle.
fn weight_files(bundle: &Path) -> Vec<String> {
    let mut files = gemma_coreml::bundle::files::list(bundle).unwrap();
    files.retain(|f| f.contains(WEIGHTS_DIR));
    files
}

/// What a bundle decodes greedily.
fn decoded(bundle: &Path) -> Vec<u32> {
    let bundle = Arc::new(Bundle::open(bundle).unwrap());
    let options = DecodeOptions::default();
    let mut decoder = open_decoder(&bundle, Precision::F16, &RowSource::Bundle, options).unwrap();
    let mut tokens = vec![2];
    for i in 0..8 {
        let step = decoder.step(tokens[i]).unwrap();
        tokens.push(step.token_id);
    }
    tokens
}

#[test]
fn several_files_hold_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut bundles = Vec::new();
    for (model, recipe) in [
        ("e4b-tiny", "monolithic"),
        ("nano", "swa4-int4"),
        ("moe-tiny", "sparse50"),
        ("dense-tiny", "lite2"),
    ] {
        let (one, many) = (
            dir.path().join(format!("{model}-one")),
            dir.path().join(format!("{model}-many")),
        );
        run(&fixture(model), recipe, &one, &options()).unwrap();
        let options = sharded(model, recipe);
        let report = run(&fixture(model), recipe, &many, &options).unwrap();
        let files = weight_files(&many);
        assert!(files.len() > weight_files(&one).len(), "{files:?}");
        for file in &files {
            let bytes = fs::metadata(many.join(file)).unwrap().len();
            assert!(bytes < options.weight_file_limit.unwrap(), "{file}");
            assert_eq!(report.files[file].bytes, bytes);
        }
        assert_eq!(decoded(&one), decoded(&many), "{model}");
        // The same on one thread.
        let again = dir.path().join("again");
        let options = Options {
            threads: Some(1),
            ..options
        };
        run(&fixture(model), recipe, &again, &options).unwrap();
        assert_same(&many, &again);
        fs::remove_dir_all(&again).unwrap();
        fs::remove_dir_all(&one).unwrap();
        bundles.push(many);
    }
    assert!(equal_to_coremltools(&bundles, dir.path()) > 100);
}

#[test]
fn several_files_are_kept_rewritten_archived_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (model, recipe) = ("e4b-tiny", "monolithic");
    let first = sharded(model, recipe);
    run(&fixture(model), recipe, &path("b"), &first).unwrap();
    let files = weight_files(&path("b"));
    assert!(files.len() > 2, "{files:?}");

    let archive = path("b.zip");
    pack(&path("b"), &archive, false, &NoProgress).unwrap();
    unpack(&archive, &path("back"), false, &NoProgress).unwrap();
    assert_same(&path("b"), &path("back"));

    // For another context the weights are kept, and the bytes are those of a whole conversion.
    let wider = Options {
        context: Some(96),
        ..first.clone()
    };
    run(&fixture(model), recipe, &path("b"), &wider).unwrap();
    run(&fixture(model), recipe, &path("whole"), &wider).unwrap();
    assert_same(&path("b"), &path("whole"));
    assert_eq!(weight_files(&path("b")), files);

    // A change in any of them is found when it is to be kept.
    let second = path("b").join(&files[1]);
    let mut bytes = fs::read(&second).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::remove_file(&second).unwrap();
    fs::write(&second, bytes).unwrap();
    let narrower = Options {
        context: Some(64),
        ..first
    };
    let error = run(&fixture(model), recipe, &path("b"), &narrower).unwrap_err();
    let Error::Bundle(BundleError::Content { path: found, .. }) = &error else {
        panic!("{error}");
    };
    assert!(found.ends_with(&files[1]), "{error}");
    // One that is gone is missed when the bundle is opened.
    fs::remove_file(&second).unwrap();
    let error = Bundle::open(&path("b")).unwrap_err();
    let text = format!("{error}: {:?}", std::error::Error::source(&error));
    assert!(text.contains("weight_1.bin"), "{text}");
}

#[test]
fn inspect_lists_every_weight_file_and_counts_shared_weights_once() {
    let dir = tempfile::tempdir().unwrap();
    let (model, recipe) = ("e4b-tiny", "monolithic");
    let (one, many) = (dir.path().join("one"), dir.path().join("many"));
    run(&fixture(model), recipe, &one, &options()).unwrap();
    run(&fixture(model), recipe, &many, &sharded(model, recipe)).unwrap();
    let inspect = |bundle: &Path, flags: &[&str]| {
        let package = entries(bundle)
            .into_iter()
            .find(|e| e.ends_with(".mlpackage"));
        let out = Command::new(env!("CARGO_BIN_EXE_gemma-coreml"))
            .args(["inspect", "--format", "json"])
            .args(flags)
            .arg(bundle.join(package.unwrap()))
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()["packages"][0].clone()
    };
    let (single, sharded) = (inspect(&one, &[]), inspect(&many, &[]));
    assert_eq!(single["schemes"], sharded["schemes"]);
    let listed: Vec<&str> = sharded["weight_files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["file"].as_str().unwrap())
        .collect();
    let names = weight_files(&many);
    let names: Vec<&str> = names
        .iter()
        .map(|f| f.rsplit('/').next().unwrap())
        .collect();
    assert_eq!(listed, names);
    let weights = inspect(&many, &["--weights"]);
    let function = weights["functions"]
        .as_object()
        .unwrap()
        .values()
        .next()
        .unwrap();
    let used: BTreeSet<&str> = function
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w["file"].as_str().unwrap())
        .collect();
    assert_eq!(used, names.into_iter().collect());
}

#[test]
fn a_weight_that_no_file_has_room_for_is_named_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        weight_file_limit: Some(4096),
        ..options()
    };
    let out = dir.path().join("b");
    let error = run(&fixture("nano"), "swa4-int4", &out, &options).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("must stay below 4096"), "{text}");
    assert_eq!(error.fault(), gemma_coreml::convert::Fault::Input, "{text}");
    assert_eq!(entries(dir.path()), Vec::<String>::new());
}
