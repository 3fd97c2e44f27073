//! The same input gives the same bytes.

use crate::helpers::*;
use gemma_coreml::bundle::Bundle;
use gemma_coreml::convert::Options;
use gemma_coreml::quantize::SharedPalettes;
use std::sync::Arc;

/// Every recipe on the trained model, two on the others.
#[test]
fn a_second_run_and_one_and_two_threads_give_the_same_directory() {
    for name in fixtures() {
        for recipe in crate::helpers::swa4_recipes() {
            if name != "nano" && !["swa4-int4", "swa4-fp16"].contains(&recipe.name.as_str()) {
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            let bundles = ["again", "one", "two"].map(|b| dir.path().join(b));
            for (threads, out) in [2, 1, 2].into_iter().zip(&bundles) {
                let options = Options {
                    threads: Some(threads),
                    ..options()
                };
                run_recipe(&fixture(&name), &recipe, out, &options).unwrap();
                assert_same(&bundles[0], out);
            }
            assert_eq!(
                entries(dir.path()),
                ["again", "one", "two"],
                "nothing is left beside the bundles"
            );
        }
    }
}

#[test]
fn every_recipe_and_fixture_makes_a_bundle_that_opens() {
    for name in fixtures() {
        for recipe in crate::helpers::swa4_recipes() {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("b");
            let report = run_recipe(&fixture(&name), &recipe, &out, &options())
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
            assert_eq!(dense, ["dense-tiny", "moe-tiny"].contains(&name.as_str()));
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

/// Recipes that differ in width alone share the histograms of their groups, and get the same bytes.
#[test]
fn palettes_of_several_widths_come_from_one_histogram() {
    let dir = tempfile::tempdir().unwrap();
    let palettes = Arc::new(SharedPalettes::new([2, 3, 4]));
    let model = fixture("e4b-tiny");
    let mut groups = 0;
    for recipe in ["w3", "w4", "w2", "w6"] {
        let (alone, shared) = (dir.path().join("alone"), dir.path().join("shared"));
        let mut options = Options {
            force: true,
            ..options()
        };
        run(&model, recipe, &alone, &options).unwrap();
        options.palettes = Some(palettes.clone());
        run(&model, recipe, &shared, &options).unwrap();
        assert_same(&alone, &shared);
        // The first recipe counts every group, the others none.
        assert!(groups == 0 || palettes.groups() == groups, "{recipe}");
        groups = palettes.groups();
    }
    assert!(groups > 50, "{groups}");
}
