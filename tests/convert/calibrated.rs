//! Palettes from the statistics of a calibration: folds that change nothing, weights that coremltools reads as we do, less of
//! the KL divergence, and what a conversion needs for them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::coremltools::equal_to_coremltools;
use crate::helpers::*;
use crate::values::unpacked;
use gemma_coreml::bundle::Bundle;
use gemma_coreml::calibrate::{self, Framing, Source, Stats, TextOptions};
use gemma_coreml::checkpoint::{Checkpoint, Tokenizer};
use gemma_coreml::convert::{Error, Fault, Options};
use gemma_coreml::evaluate::text::evaluate_text;
use gemma_coreml::evaluate::{BundleSubject, ReferenceSubject, RowSource};
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::Recipe;
use gemma_coreml::runtime::Precision;

/// Recipes that ask for statistics to fit palettes.
const RECIPES: [&str; 6] = [
    "w2-calibrated",
    "w3-calibrated",
    "w4-calibrated",
    "w3-importance",
    "w3-scale",
    "w3-compensate",
];

/// Statistics with matrices: of nano on its calibration text, of the others on some ids.
pub fn statistics(name: &str, dir: &Path, full: bool) -> Arc<Stats> {
    let model = fixture(name);
    let checkpoint = Checkpoint::open(&model).unwrap();
    let sequences = match name {
        "nano" => {
            let text = std::fs::read_to_string(model.join("calibration.txt")).unwrap();
            let options = TextOptions {
                framing: Framing::Whole,
                length: 1024,
                max_tokens: 16_384,
            };
            calibrate::sequences(&checkpoint, &text, &options).unwrap()
        }
        _ => {
            let vocab = checkpoint.config().vocab_size as u32;
            let ids = (0..400).map(|i: u32| 3 + (i * 37 + i * i) % (vocab - 3));
            vec![std::iter::once(2).chain(ids).collect()]
        }
    };
    let options = calibrate::Options {
        full,
        replace: true,
    };
    let out = dir.join(format!("{name}.stats.safetensors"));
    let source = Source::Text(sequences);
    Arc::new(calibrate::calibrate(&checkpoint, &source, &options, &out, &NoProgress).unwrap())
}

fn with(stats: &Arc<Stats>) -> Options {
    Options {
        calibration: Some(stats.clone()),
        ..options()
    }
}

/// Every constant of every package, as the reader computes it.
fn weights(bundle: &Path) -> BTreeMap<String, Vec<f32>> {
    let bundle = Bundle::open(bundle).unwrap();
    let mut all = BTreeMap::new();
    for chunk in bundle.chunks() {
        let function = &chunk.package.functions()[chunk.package.default_function()];
        for op in &function.ops {
            if op.op_type.name().starts_with("const")
                && let Some((name, ty)) = op.outputs.first()
                && ty.rank() == 4
            {
                all.insert(name.clone(), unpacked(function, op));
            }
        }
    }
    all
}

/// The factors by which a norm was divided are those by which the columns behind it were multiplied, to the bit.
#[test]
fn folds_move_powers_of_two_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let stats = statistics("nano", dir.path(), false);
    let mut recipe = Recipe::load("w3-scale").unwrap();
    // One palette decides the folds; all else is exact.
    let mut text = recipe.source.replace("\"palette3-g32\"", "\"fp16\"");
    text += "\n[[quantize.rules]]\npattern = 'v_proj|gate_proj|mlp.down_proj'\nscheme = \"palette3-g32\"\n";
    recipe = Recipe::parse("folds.toml", &text).unwrap();
    let (plain, folded) = (dir.path().join("plain"), dir.path().join("folded"));
    run(&fixture("nano"), "swa4-fp16", &plain, &options()).unwrap();
    run_recipe(&fixture("nano"), &recipe, &folded, &with(&stats)).unwrap();
    let (plain, folded) = (weights(&plain), weights(&folded));
    let ratios = |name: &str| -> Vec<f32> {
        let pairs = folded[name].iter().zip(&plain[name]);
        // A value below the normal range of fp16 has fewer digits than the one it was made of.
        let normal = |f: f32| f.abs() >= half::f16::MIN_POSITIVE.to_f32();
        pairs
            .map(|(f, p)| {
                if normal(*f) && normal(*p) {
                    f / p
                } else {
                    f32::NAN
                }
            })
            .collect()
    };
    let columns = |name: &str, n: usize| -> Vec<f32> {
        let all = ratios(name);
        let first: Vec<f32> = (0..n)
            .map(|j| {
                let column = all.iter().skip(j).step_by(n);
                column.copied().find(|f| !f.is_nan()).unwrap_or(f32::NAN)
            })
            .collect();
        for row in all.chunks(n) {
            for (a, b) in row.iter().zip(&first) {
                assert!(
                    a == b || a.is_nan() || b.is_nan(),
                    "{name}: {a} and {b} in a column"
                );
            }
        }
        first
    };
    let mut moved = 0;
    for layer in 0..6 {
        let name = |suffix: &str| format!("layers_{layer}_{suffix}_weight");
        let norm = ratios(&name("input_layernorm"));
        let hidden = norm.len();
        for projection in ["self_attn_q_proj", "self_attn_k_proj"] {
            let factors = columns(&name(projection), hidden);
            for (divided, multiplied) in norm.iter().zip(factors) {
                assert!(divided * multiplied == 1.0 || multiplied.is_nan());
                moved += usize::from(*divided != 1.0);
            }
        }
        let norm = ratios(&name("pre_feedforward_layernorm"));
        assert!(
            norm.iter().all(|f| f.to_bits() & 0x007f_ffff == 0),
            "powers of two"
        );
    }
    assert!(moved > 100, "{moved} channels moved");
}

#[test]
fn coremltools_reads_what_was_fitted_with_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let mut bundles = Vec::new();
    for (name, recipes) in [
        ("nano", &RECIPES[..]),
        ("moe-tiny", &["w3-calibrated"]),
        ("e4b-tiny", &["w2-calibrated"]),
        ("textonly-tiny", &["w4-calibrated"]),
    ] {
        let stats = statistics(name, dir.path(), true);
        for recipe in recipes {
            let out = dir.path().join(format!("{name}-{recipe}"));
            run(&fixture(name), recipe, &out, &with(&stats)).unwrap();
            bundles.push(out);
        }
    }
    assert!(equal_to_coremltools(&bundles, dir.path()) > 500);
}

/// Mean KL over a part of nano's evaluation text, which no calibration has seen.
fn kl(recipe: &str, stats: &Arc<Stats>, dir: &Path) -> f64 {
    const TOKENS: usize = 600;
    let (model, out) = (fixture("nano"), dir.join(recipe));
    let recipe = Recipe::load(recipe).unwrap();
    let mut options = Options {
        context: Some(512),
        ..options()
    };
    if recipe.quantize.calibrated_by().is_some() {
        options.calibration = Some(stats.clone());
    }
    run_recipe(&model, &recipe, &out, &options).unwrap();
    let text = std::fs::read_to_string(model.join("eval.txt")).unwrap();
    let mut ids = Tokenizer::open(&model)
        .unwrap()
        .encode(&text, true)
        .unwrap();
    ids.truncate(TOKENS);
    let checkpoint = Checkpoint::open(&model).unwrap();
    let mut reference = ReferenceSubject::load(&checkpoint).unwrap();
    let bundle = Arc::new(Bundle::open(&out).unwrap());
    let rows = RowSource::Bundle;
    let mut subject = BundleSubject::open(&bundle, Precision::F32, &rows, false, 2).unwrap();
    let report = evaluate_text(&mut reference, &mut subject, &ids, &mut || ()).unwrap();
    report.logits.kl_mean
}

/// The target of the calibrated widths: a quarter of the plain palette's KL. (Seen: less than a twentieth.)
const SHARE: f64 = 0.25;

#[test]
fn statistics_lower_the_kl_of_every_width() {
    let dir = tempfile::tempdir().unwrap();
    let stats = statistics("nano", dir.path(), true);
    let of = |recipe: &str| kl(recipe, &stats, dir.path());
    let [w2, w3, w4] = ["w2", "w3", "w4"].map(of);
    let [c2, c3, c4] = ["w2-calibrated", "w3-calibrated", "w4-calibrated"].map(of);
    for (plain, calibrated) in [(w2, c2), (w3, c3), (w4, c4)] {
        assert!(
            calibrated < SHARE * plain,
            "{calibrated:e} against {plain:e}"
        );
    }
    assert!(c3 < w4, "3 bits calibrated {c3:e}, 4 bits plain {w4:e}");
    for lever in ["w3-importance", "w3-scale", "w3-compensate"] {
        let one = of(lever);
        assert!(
            one < w3 && c3 < one,
            "{lever}: {one:e} between {c3:e} and {w3:e}"
        );
    }
}

#[test]
fn the_same_statistics_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let stats = statistics("e4b-tiny", dir.path(), true);
    let model = fixture("e4b-tiny");
    let out = |n: usize| dir.path().join(format!("threads-{n}"));
    for threads in [1, 2] {
        let options = Options {
            threads: Some(threads),
            ..with(&stats)
        };
        run(&model, "w3-calibrated", &out(threads), &options).unwrap();
    }
    assert_same(&out(1), &out(2));
    // Onto the bundle for another context: its weights are kept, and it is what a whole conversion writes.
    let wider = Options {
        context: Some(96),
        ..with(&stats)
    };
    run(&model, "w3-calibrated", &out(1), &wider).unwrap();
    run(&model, "w3-calibrated", &out(3), &wider).unwrap();
    assert_same(&out(1), &out(3));
}

#[test]
fn what_statistics_lack_is_said_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let error = run(&fixture("nano"), "w3-calibrated", &out, &options()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NoCalibration {
                key: "importance",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.fault(), Fault::Input);
    let plain = statistics("nano", dir.path(), false);
    let error = run(&fixture("nano"), "w3-compensate", &out, &with(&plain)).unwrap_err();
    assert!(matches!(error, Error::NoMoments { .. }), "{error}");
    assert!(error.to_string().contains("--full"), "{error}");
    let other = statistics("e4b-tiny", dir.path(), true);
    let error = run(&fixture("nano"), "w3-calibrated", &out, &with(&other)).unwrap_err();
    assert!(matches!(error, Error::OtherCalibration { .. }), "{error}");
    // A scheme that cannot do what the recipe asks of it.
    let text = Recipe::load("w3-compensate").unwrap().source;
    let vectors = text.replace("palette3-g32", "palette6-g32-v2");
    let recipe = Recipe::parse("v.toml", &vectors).unwrap();
    let full = statistics("nano", dir.path(), true);
    let error = run_recipe(&fixture("nano"), &recipe, &out, &with(&full)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotForScheme {
                key: "compensate",
                ..
            }
        ),
        "{error}"
    );
    assert!(!out.exists());
}
