//! Merged values, element by element.

use std::collections::{BTreeMap, BTreeSet};

use gemma_coreml::checkpoint::{AdapterNotice, Checkpoint};
use half::{bf16, f16};
use safetensors::SafeTensors;

use crate::common::fixtures::fixture;
use crate::helpers::{Made, Q, Q_WEIGHT, adapted, all, stored};

/// What the libraries made of the fixtures: `(case, kind, tensor)` to step and elements.
type References = BTreeMap<(String, String, String), (usize, Vec<f32>)>;

fn references() -> References {
    let bytes = std::fs::read(stored("merged.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let steps = header.metadata().clone().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut found = References::new();
    for (key, view) in file.tensors() {
        let mut parts = key.splitn(3, '/').map(str::to_string);
        let mut part = || parts.next().unwrap();
        let values = match view.dtype() {
            safetensors::Dtype::F32 => {
                let chunks = view.data().as_chunks::<4>().0.iter();
                chunks.map(|b| f32::from_le_bytes(*b)).collect()
            }
            _ => {
                let chunks = view.data().as_chunks::<2>().0.iter();
                chunks.map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
        };
        found.insert(
            (part(), part(), part()),
            (steps[&key].parse().unwrap(), values),
        );
    }
    found
}

fn model_of(case: &str) -> &'static str {
    match case {
        "multimodal" => "e4b-tiny",
        _ => "textonly-tiny",
    }
}

/// Largest difference over the size of the tensor's values, and over a unit in the last place of bf16 of the value or of what
/// the checkpoint has in its place: `textonly-tiny` is f32, so that a merge in bf16 rounds its weights too.
fn differences(ours: &[f32], base: &[f32], step: usize, theirs: &[f32]) -> (f32, f32) {
    let size = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
    let (mut relative, mut ulps) = (0f32, 0f32);
    for (i, theirs) in theirs.iter().enumerate() {
        let difference = (ours[i * step] - theirs).abs();
        let larger = theirs.abs().max(base[i * step].abs());
        relative = relative.max(difference / size);
        ulps = ulps.max(difference / 2f32.powi(larger.log2().floor() as i32 - 7));
    }
    (relative, ulps)
}

#[test]
fn merged_values_are_those_of_peft_and_mlx_lm() {
    let references = references();
    let cases: BTreeSet<&str> = references.keys().map(|(case, ..)| case.as_str()).collect();
    assert!(cases.len() >= 17, "{cases:?}");
    for case in cases {
        let folders: Vec<_> = case.split('+').map(stored).collect();
        let folders: Vec<_> = folders.iter().map(|f| f.as_path()).collect();
        let checkpoint = adapted(model_of(case), &folders);
        let base = Checkpoint::open(&fixture(model_of(case))).unwrap();
        let of_case = references.iter().filter(|((c, ..), _)| c == case);
        let mut named = BTreeSet::new();
        let mut worst = (0f32, 0f32);
        for ((_, kind, name), (step, theirs)) in of_case {
            let (ours, base) = (all(&checkpoint, name), all(&base, name));
            let (relative, ulps) = differences(&ours, &base, *step, theirs);
            match kind.as_str() {
                "bf16" => worst.1 = worst.1.max(ulps),
                _ => worst.0 = worst.0.max(relative),
            }
            named.insert(name.as_str());
        }
        println!(
            "{case}: {:.1e} of the f32 merge, {:.2} ulp of the bf16 merge",
            worst.0, worst.1
        );
        assert!(worst.0 <= 1e-6, "{case}: {worst:?}");
        // Half a unit is the rounding of the result alone; where the weights are rounded first, DoRA scales that too.
        let most = if case == "multimodal" { 0.501 } else { 1.25 };
        assert!(worst.1 <= most, "{case}: {worst:?}");
        let ours: BTreeSet<&str> = checkpoint
            .names()
            .filter(|n| checkpoint.is_adapted(n))
            .collect();
        assert_eq!(ours, named, "{case}");
    }
}

#[test]
fn any_range_gives_the_same_elements() {
    for (case, name) in [
        ("lora", "layers.3.mlp.down_proj.weight"),
        ("dora", "layers.4.mlp.down_proj.weight"),
        ("tables_dora", "embed_tokens.weight"),
        ("tokens", "embed_tokens.weight"),
        ("saved", "layers.1.mlp.up_proj.weight"),
        ("mlx_dora", "embed_tokens.weight"),
    ] {
        let path = stored(case);
        let whole = all(&adapted("textonly-tiny", &[&path]), name);
        // Opened anew, so that no factor of a row is known.
        for (start, len) in [
            (0, 1),
            (5, 3),
            (31, 2),
            (33, 100),
            (64, 64),
            (70, 1),
            (whole.len() - 7, 7),
        ] {
            let checkpoint = adapted("textonly-tiny", &[&path]);
            let view = checkpoint
                .tensor(name, checkpoint.shape(name).unwrap())
                .unwrap();
            let mut part = vec![0f32; len];
            view.read_f32(start..start + len, &mut part).unwrap();
            assert_eq!(part, whole[start..start + len], "{case} {start} {len}");
            let mut rounded = vec![f16::ZERO; len];
            view.read_f16(start..start + len, &mut rounded).unwrap();
            let expected: Vec<f16> = part.iter().map(|v| f16::from_f32(*v)).collect();
            assert_eq!(rounded, expected, "{case} {start} {len}");
            assert!(view.read_f32(start..whole.len() + 1, &mut part).is_err());
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_elements() {
    let path = stored("dora");
    let name = "layers.4.mlp.down_proj.weight";
    let alone = all(&adapted("textonly-tiny", &[&path]), name);
    let checkpoint = adapted("textonly-tiny", &[&path]);
    let view = checkpoint
        .tensor(name, checkpoint.shape(name).unwrap())
        .unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let (view, alone) = (&view, &alone);
            scope.spawn(move || {
                // Every thread in pieces of its own, which cut rows.
                let piece = 7 + 13 * thread;
                for start in (0..alone.len()).step_by(piece) {
                    let end = (start + piece).min(alone.len());
                    let mut part = vec![0f32; end - start];
                    view.read_f32(start..end, &mut part).unwrap();
                    assert_eq!(part, alone[start..end]);
                }
            });
        }
    });
}

#[test]
fn a_product_of_powers_of_two_is_added_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let made = Made::peft().lora(Q, [32, 32], 2);
    let path = made.write(dir.path());
    let before = all(
        &Checkpoint::open(&fixture("textonly-tiny")).unwrap(),
        Q_WEIGHT,
    );
    let after = all(&adapted("textonly-tiny", &[&path]), Q_WEIGHT);
    let (a, b) = (
        &made.tensors[&format!("{Q}.lora_A.weight")].1,
        &made.tensors[&format!("{Q}.lora_B.weight")].1,
    );
    for (i, (after, before)) in after.iter().zip(&before).enumerate() {
        let (row, column) = (i / 32, i % 32);
        let sum: f64 = (0..2)
            .map(|k| f64::from(b[row * 2 + k]) * f64::from(a[k * 32 + column]))
            .sum();
        assert_eq!(*after, (f64::from(*before) + 2.0 * sum) as f32, "{i}");
    }
    assert_ne!(after, before);
}

#[test]
fn names_of_any_class_of_the_model_mean_the_same_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let expected = {
        let path = Made::peft()
            .lora(Q, [32, 32], 2)
            .write(&dir.path().join("plain"));
        all(&adapted("textonly-tiny", &[&path]), Q_WEIGHT)
    };
    for (i, prefix) in [
        "base_model.model.model.language_model.",
        "base_model.model.language_model.model.",
        "base_model.model.",
        "model.language_model.",
        "",
    ]
    .iter()
    .enumerate()
    {
        let mut made = Made::peft().set("target_modules", vec!["q_proj"]);
        for (name, tensor) in Made::peft().lora(Q, [32, 32], 2).tensors {
            let name = name.replace("base_model.model.model.", prefix);
            // The name that an adapter has in memory, as in a plain state dict.
            let name = name.replace(".weight", ".default.weight");
            made.tensors.insert(name, tensor);
        }
        let path = made.write(&dir.path().join(i.to_string()));
        assert_eq!(
            all(&adapted("textonly-tiny", &[&path]), Q_WEIGHT),
            expected,
            "{prefix}"
        );
    }
}

#[test]
fn lengths_of_rows_that_are_theirs_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let made = Made::peft().lora(Q, [32, 32], 2);
    let plain = all(
        &adapted("textonly-tiny", &[&made.write(&dir.path().join("lora"))]),
        Q_WEIGHT,
    );
    let lengths: Vec<f32> = plain
        .chunks(32)
        .map(|row| {
            row.iter()
                .map(|v| f64::from(*v).powi(2))
                .sum::<f64>()
                .sqrt() as f32
        })
        .collect();
    let made =
        made.set("use_dora", true)
            .tensor(&format!("{Q}.lora_magnitude_vector"), &[32], |i| lengths[i]);
    let scaled = all(
        &adapted("textonly-tiny", &[&made.write(&dir.path().join("dora"))]),
        Q_WEIGHT,
    );
    for (scaled, plain) in scaled.iter().zip(&plain) {
        assert!(
            (scaled - plain).abs() <= 2.0 * f32::EPSILON * plain.abs(),
            "{scaled} {plain}"
        );
    }
}

#[test]
fn what_does_not_belong_to_the_decoder_is_passed_over_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let tower = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.linear";
    let shared = "base_model.model.model.layers.9.self_attn.k_proj";
    let path = Made::peft()
        .set(
            "base_model_name_or_path",
            "unsloth/gemma-4-E2B-it-unsloth-bnb-4bit",
        )
        .set("init_lora_weights", "loftq")
        .set("some_new_setting", 3)
        .set("target_modules", vec!["q_proj", "k_proj", "out_proj"])
        .lora(Q, [32, 32], 2)
        .lora(tower, [8, 8], 2)
        .lora(shared, [16, 32], 2)
        .write(dir.path());
    let checkpoint = adapted("textonly-tiny", &[&path]);
    let merged = &checkpoint.adapters()[0];
    assert_eq!(merged.changed, [Q_WEIGHT]);
    assert_eq!(merged.about.tensors, 6);
    let texts: Vec<String> = merged.notices.iter().map(ToString::to_string).collect();
    for expected in [
        "trained on unsloth/gemma-4-E2B-it-unsloth-bnb-4bit, and is merged into textonly-tiny",
        "quantized base",
        "`some_new_setting` = 3: an unknown setting",
        "`target_modules` has out_proj, but no tensor",
        "2 tensors of K and V have no effect",
        "2 tensors of the vision and audio towers",
    ] {
        assert!(
            texts.iter().any(|t| t.contains(expected)),
            "{expected}: {texts:#?}"
        );
    }
    assert_eq!(texts.len(), 6, "{texts:#?}");
}

#[test]
fn what_a_tied_head_makes_of_an_adapter_is_said() {
    let tied = |case: &str| {
        let checkpoint = adapted("textonly-tiny", &[&stored(case)]);
        let notices = checkpoint.adapters()[0].notices.clone();
        notices
            .iter()
            .any(|n| matches!(n, AdapterNotice::TiedHead { .. }))
    };
    assert!(tied("head"));
    assert!(tied("tables"));
    assert!(!tied("tied"));
    assert!(!tied("lora"));
}

#[test]
fn a_folder_a_file_and_a_folder_around_them_are_the_same_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let made = Made::peft().lora(Q, [32, 32], 2);
    let inside = dir.path().join("run/checkpoint-500");
    made.write(&inside);
    std::fs::write(inside.join("optimizer.pt"), "").unwrap();
    let expected = all(&adapted("textonly-tiny", &[&inside]), Q_WEIGHT);
    for path in [
        dir.path().join("run"),
        inside.join("adapter_model.safetensors"),
        inside.join("adapter_config.json"),
    ] {
        assert_eq!(
            all(&adapted("textonly-tiny", &[&path]), Q_WEIGHT),
            expected,
            "{path:?}"
        );
    }
    let other = made.write_as(&dir.path().join("named"), "0000100_adapters.safetensors");
    let other = other.join("0000100_adapters.safetensors");
    assert_eq!(
        all(&adapted("textonly-tiny", &[&other]), Q_WEIGHT),
        expected
    );
}

#[test]
fn whole_tensors_of_mlx_lm_take_the_place_of_the_models() {
    let dir = tempfile::tempdir().unwrap();
    let mut made = Made::peft().tensor(
        "language_model.model.layers.0.self_attn.q_proj.weight",
        &[32, 32],
        |i| i as f32,
    );
    made.config =
        serde_json::json!({"fine_tune_type": "full", "num_layers": 16, "model": "textonly-tiny"});
    let path = made.write_as(dir.path(), "adapters.safetensors");
    let checkpoint = adapted("textonly-tiny", &[&path]);
    assert_eq!(
        all(&checkpoint, Q_WEIGHT),
        (0..1024).map(|i| i as f32).collect::<Vec<_>>()
    );
    assert_eq!(checkpoint.adapters()[0].notices, []);
}

#[test]
fn the_fingerprint_knows_adapters_and_their_order() {
    use gemma_coreml::progress::NoProgress;
    let print = |adapters: &[&str]| {
        let folders: Vec<_> = adapters.iter().map(|a| stored(a)).collect();
        let folders: Vec<_> = folders.iter().map(|f| f.as_path()).collect();
        adapted("textonly-tiny", &folders)
            .fingerprint(&NoProgress)
            .unwrap()
    };
    let plain = Checkpoint::open(&fixture("textonly-tiny")).unwrap();
    assert_eq!(print(&[]), plain.fingerprint(&NoProgress).unwrap());
    let all: BTreeSet<String> = [
        &["dora"][..],
        &["second"],
        &["dora", "second"],
        &["second", "dora"],
        &[],
    ]
    .map(print)
    .into();
    assert_eq!(all.len(), 5);
}
