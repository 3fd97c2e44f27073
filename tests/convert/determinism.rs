//! The same input gives the same bytes.

use crate::helpers::*;
use gemma_coreml::bundle::Bundle;
use gemma_coreml::convert::Options;

const FIXTURES: [&str; 5] = [
    "nano",
    "e4b-tiny",
    "e2b35-tiny",
    "dense-tiny",
    "textonly-tiny",
];

#[test]
fn one_and_two_threads_give_the_same_directory() {
    for (fixture_name, recipe) in [
        ("nano", "swa4-int4"),
        ("e2b35-tiny", "swa4-int4"),
        ("dense-tiny", "swa4-fp16"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let with = |threads| Options {
            threads: Some(threads),
            ..options()
        };
        run(&fixture(fixture_name), recipe, &one, &with(1)).unwrap();
        run(&fixture(fixture_name), recipe, &two, &with(2)).unwrap();
        assert_same(&one, &two);
        assert_eq!(
            entries(dir.path()),
            ["one", "two"],
            "nothing is left beside the bundles"
        );
    }
}

#[test]
fn every_recipe_and_fixture_makes_a_bundle_that_opens() {
    for name in FIXTURES {
        for recipe in gemma_coreml::recipe::Recipe::list().unwrap() {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("b");
            let report = run_recipe(&fixture(name), &recipe, &out, &options())
                .unwrap_or_else(|e| panic!("{name} {}: {e}", recipe.name));
            let bundle = Bundle::open(&out).unwrap();
            assert_eq!(bundle.config().context_length, 64);
            assert_eq!(bundle.chunks().len(), 4);
            assert_eq!(
                report.bytes,
                contents(&out).values().map(|b| b.len() as u64).sum::<u64>()
            );
            assert_eq!(
                report.files.keys().collect::<Vec<_>>(),
                contents(&out).keys().collect::<Vec<_>>()
            );
            assert_eq!(bundle.provenance().tensors, report.tensors);
            let dense = bundle.config().per_layer_dim == 0;
            assert_eq!(dense, name == "dense-tiny");
            assert_eq!(out.join("per_layer_projection.bin").exists(), !dense);
        }
    }
}

#[test]
fn no_path_of_this_machine_is_in_a_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    run(&fixture("dense-tiny"), "swa4-int4", &out, &options()).unwrap();
    let here = env!("CARGO_MANIFEST_DIR").as_bytes();
    let there = dir.path().to_str().unwrap().as_bytes();
    for (name, bytes) in contents(&out) {
        for path in [here, there] {
            assert!(!bytes.windows(path.len()).any(|w| w == path), "{name}");
        }
    }
}
