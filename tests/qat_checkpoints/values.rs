//! Values, logits, files.

use crate::helpers::*;

/// Largest difference from transformers' logits, as in `reference_forward.rs`.
const TOLERANCE: f32 = 1e-4;

#[test]
fn compressed_tensors_has_the_values_and_logits_of_its_dense_twin() {
    let (coded, dense) = (opened(&qat("w4a16-ct")), opened(&qat("w4a16-dense")));
    assert!(coded.names().eq(dense.names()));
    let mut on_grid = 0;
    for name in coded.names() {
        assert_eq!(coded.shape(name), dense.shape(name), "{name}");
        assert_eq!(values(&coded, name), values(&dense, name), "{name}");
        on_grid += usize::from(grid(&coded, name).is_some());
    }
    assert_eq!(
        grid(&coded, UP),
        Some(Grid {
            nbits: 4,
            block: 32
        })
    );
    let quantization = coded.quantization().unwrap();
    assert_eq!(quantization.tensors.values().sum::<usize>(), on_grid);
    says(
        &quantization.to_string(),
        &[
            "compressed-tensors, ",
            "24 tensors of 4 bits, 32 inputs a step",
        ],
    );
    assert_eq!(dense.quantization(), None);
    // `ignore` has a pattern for this one.
    assert_eq!(grid(&coded, "layers.3.per_layer_input_gate.weight"), None);
    let (ids, theirs) = stored(&qat("w4a16-ct").join("reference.safetensors"));
    let ours = logits(&coded, &ids, 16);
    assert_eq!(ours, logits(&dense, &ids, 16));
    assert!(
        distance(&ours, &theirs) < TOLERANCE,
        "{}",
        distance(&ours, &theirs)
    );
    assert!(coded.notices().is_empty(), "{:?}", coded.notices());
}

#[test]
fn both_mobile_forms_are_the_same_model() {
    let (gemma, compressed) = (opened(&qat("mobile")), opened(&qat("mobile-ct")));
    assert!(gemma.names().eq(compressed.names()));
    let mut widths = std::collections::BTreeSet::new();
    for name in gemma.names() {
        assert_eq!(gemma.shape(name), compressed.shape(name), "{name}");
        assert_eq!(grid(&gemma, name), grid(&compressed, name), "{name}");
        assert_eq!(values(&gemma, name), values(&compressed, name), "{name}");
        assert_eq!(
            gemma.activation_scales(name),
            compressed.activation_scales(name),
            "{name}"
        );
        if let Some(grid) = grid(&gemma, name) {
            widths.insert(grid.nbits);
            assert_eq!(codes(&gemma, name), codes(&compressed, name), "{name}");
            assert_eq!(steps(&gemma, name), steps(&compressed, name), "{name}");
        }
    }
    assert_eq!(Vec::from_iter(widths), [2, 4, 8]);
    let up = gemma.activation_scales(UP).expect("steps of activations");
    assert!(up.input > 0.0 && up.output > 0.0);
    // Not calibrated: 0 in one form, absent in the other.
    assert_eq!(
        gemma.activation_scales("layers.0.self_attn.o_proj.weight"),
        None
    );
    assert!(gemma.has_activation_scales() && compressed.has_activation_scales());
    let text = gemma.quantization().unwrap().to_string();
    says(
        &text,
        &[
            "gemma (mobile), ",
            "of 2 bits, one step a row",
            "of 8 bits",
            "1 tensor of 4 bits, 32 inputs a step",
            "with activation scales",
        ],
    );
    let passed = gemma.passed_over();
    assert!(
        gemma.config().tie_word_embeddings && passed.other > 4,
        "{passed:?}"
    );
}

#[test]
fn mobile_without_rounded_activations_has_the_logits_of_transformers() {
    let dir = edited("mobile", |_, tensors| without_activations(tensors));
    let checkpoint = opened(dir.path());
    assert!(!checkpoint.has_activation_scales());
    let (ids, theirs) = stored(&qat("mobile").join("reference_no_clamps.safetensors"));
    let ours = logits(&checkpoint, &ids, 16);
    assert!(
        distance(&ours, &theirs) < TOLERANCE,
        "{}",
        distance(&ours, &theirs)
    );
}

#[test]
fn q4_0_is_numbers() {
    let checkpoint = opened(&qat("q4_0"));
    assert!(
        checkpoint
            .names()
            .all(|name| grid(&checkpoint, name).is_none())
    );
    says(
        &checkpoint.quantization().unwrap().to_string(),
        &["q4_0, stored as numbers"],
    );
    let (ids, theirs) = stored(&qat("q4_0").join("reference.safetensors"));
    assert!(distance(&logits(&checkpoint, &ids, 16), &theirs) < TOLERANCE);
}

/// Integers in one file, their steps in another: the same checkpoint, the same fingerprint.
#[test]
fn parts_of_a_weight_in_two_shards() {
    for of in ["mobile", "mobile-ct", "w4a16-ct"] {
        let whole = opened(&qat(of));
        let (first, second): (Vec<Raw>, Vec<Raw>) = read_raw(&qat(of).join(SINGLE))
            .into_iter()
            .partition(|t| !t.name.ends_with("_scale"));
        let dir = written(&config_of(of), &[]);
        std::fs::remove_file(dir.path().join(SINGLE)).unwrap();
        let names = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        let mut map = serde_json::Map::new();
        for (name, tensors) in names.iter().zip([&second, &first]) {
            std::fs::write(dir.path().join(name), serialize(tensors)).unwrap();
            map.extend(tensors.iter().map(|t| (t.name.clone(), (*name).into())));
        }
        std::fs::write(
            dir.path().join(INDEX),
            json!({"weight_map": map}).to_string(),
        )
        .unwrap();
        std::fs::copy(qat(of).join("config.json"), dir.path().join("config.json")).unwrap();
        let sharded = opened(dir.path());
        for name in whole.names() {
            assert_eq!(values(&whole, name), values(&sharded, name), "{name}");
        }
        assert_eq!(
            whole.fingerprint(&NoProgress).unwrap(),
            sharded.fingerprint(&NoProgress).unwrap()
        );
        assert_eq!(whole.text_bytes(), sharded.text_bytes());
    }
}

#[test]
fn a_fingerprint_covers_integers_steps_and_scales_of_activations() {
    let of = |edit: &dyn Fn(&mut Vec<Raw>)| {
        let dir = edited("mobile", |_, tensors| edit(tensors));
        opened(dir.path()).fingerprint(&NoProgress).unwrap()
    };
    let plain = of(&|_| {});
    let module = "layers.1.mlp.up_proj";
    for part in [
        "weight",
        "weight_scale",
        "input_activation_scale",
        "output_activation_scale",
    ] {
        let other = of(&|tensors| find(tensors, &format!("{module}.{part}")).bytes[0] ^= 1);
        assert_ne!(plain, other, "{part}");
    }
    assert_eq!(
        plain,
        of(&|tensors| find(tensors, "k_cache_scale").bytes[0] ^= 1)
    );
}

/// Provenance of bundles has the fingerprint of checkpoints that are numbers, which this computes as it has always been.
#[test]
fn the_fingerprint_of_numbers_stays() {
    use sha2::{Digest, Sha256};
    let dir = qat("w4a16-dense");
    let checkpoint = opened(&dir);
    let config = std::fs::read(dir.join("config.json")).unwrap();
    let mut hash = Sha256::new();
    hash.update((config.len() as u64).to_le_bytes());
    hash.update(&config);
    let mut tensors = read_raw(&dir.join(SINGLE));
    tensors.retain(|t| t.name.starts_with(PREFIX));
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    for t in &tensors {
        let head = format!("{}\0{}\0{:?}\0", &t.name[PREFIX.len()..], t.dtype, t.shape);
        hash.update((head.len() as u64).to_le_bytes());
        hash.update(head);
        hash.update(Sha256::digest(&t.bytes));
    }
    let expected: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(checkpoint.fingerprint(&NoProgress).unwrap(), expected);
}

/// Names with one `model.` less, and the text-only class.
#[test]
fn other_prefixes_and_configs() {
    let whole = opened(&qat("mobile"));
    for of in ["mobile", "mobile-ct", "w4a16-ct"] {
        let dir = edited(of, |_, tensors| {
            for t in tensors.iter_mut() {
                t.name = t
                    .name
                    .replacen("model.language_model.", "language_model.", 1);
            }
        });
        let found = opened(dir.path());
        assert!(
            found
                .quantization()
                .unwrap()
                .tensors
                .values()
                .sum::<usize>()
                > 20
        );
        let dir = edited(of, |config, tensors| {
            let mut text = config["text_config"].clone();
            text["quantization_config"] = config["quantization_config"].clone();
            *config = text;
            for t in tensors.iter_mut() {
                t.name = t.name.replacen("model.language_model.", "model.", 1);
            }
        });
        // mobile's pattern for the MLPs has `language_model` in it, which the class of text alone lacks.
        let found = opened(dir.path());
        if of == "mobile" {
            assert!(
                found
                    .names()
                    .all(|name| values(&found, name) == values(&whole, name))
            );
        }
    }
}

/// A model that speaks, at 2 bits.
#[test]
fn the_trained_nano_has_the_logits_of_transformers() {
    let dir = qat("../nano-qat2");
    let checkpoint = opened(&dir);
    let (ids, theirs) = stored(&dir.join("reference.safetensors"));
    let count = theirs.len() / checkpoint.config().vocab_size;
    let ours = logits(&checkpoint, &ids, count);
    assert!(
        distance(&ours, &theirs) < TOLERANCE,
        "{}",
        distance(&ours, &theirs)
    );
}
