//! A head beside a table of integers, and tensors that have no part in the decoder.

use crate::helpers::*;

/// Turns one integer of the head into another.
fn other_head(tensors: &mut [Raw], part: &str) {
    find(tensors, &format!("lm_head.{part}")).bytes[0] ^= 1;
}

#[test]
fn a_head_that_repeats_the_table_is_the_table_whatever_the_config_says() {
    for of in ["mobile", "mobile-ct", "w4a16-ct"] {
        for says_tied in [true, false] {
            let dir = edited(of, |config, _| {
                config["tie_word_embeddings"] = says_tied.into();
                config["text_config"]["tie_word_embeddings"] = says_tied.into();
            });
            let checkpoint = opened(dir.path());
            assert!(checkpoint.config().tie_word_embeddings, "{of}");
            assert!(!checkpoint.has("lm_head.weight"));
            assert_eq!(checkpoint.notices(), []);
        }
    }
}

#[test]
fn a_head_of_its_own_is_used() {
    for (of, part) in [
        ("mobile", "weight"),
        ("mobile-ct", "weight_packed"),
        ("mobile", "weight_scale"),
        ("w4a16-ct", "weight"),
    ] {
        let dir = edited(of, |_, tensors| other_head(tensors, part));
        let checkpoint = opened(dir.path());
        assert!(!checkpoint.config().tie_word_embeddings, "{of} {part}");
        let (head, table) = (
            values(&checkpoint, "lm_head.weight"),
            values(&checkpoint, "embed_tokens.weight"),
        );
        assert_ne!(head, table);
        assert_eq!(head[64..], table[64..]);
        assert_eq!(logits(&checkpoint, &[2, 7, 9], 1).len(), 208);
    }
}

/// A head of numbers beside a table of integers, and the other way round.
#[test]
fn forms_of_head_and_table_may_differ() {
    let dir = edited("mobile", |_, tensors| {
        let table = values(&opened(&qat("mobile")), "embed_tokens.weight");
        tensors.retain(|t| !t.name.starts_with("lm_head."));
        tensors.push(Raw::new(
            "lm_head.weight",
            "F32",
            &[208, 64],
            floats(&table),
        ));
    });
    assert!(opened(dir.path()).config().tie_word_embeddings);
}

#[test]
fn no_head_though_the_config_has_one() {
    let dir = edited("mobile", |_, tensors| {
        tensors.retain(|t| !t.name.starts_with("lm_head."))
    });
    says(
        &refused(dir.path()),
        &["lm_head.weight is missing", "tie_word_embeddings"],
    );
}

/// K and V of layers that share those of another, towers: integers or not, steps of the cache or not.
#[test]
fn parts_of_what_is_not_used_are_counted() {
    for of in ["mobile", "mobile-ct", "w4a16-ct"] {
        let plain = *opened(&qat(of)).passed_over();
        let dir = edited(of, |_, tensors| {
            let others = tensors.iter().filter(|t| {
                let owned = t.name.contains("layers.1.self_attn.k_")
                    || t.name.contains("layers.1.self_attn.v_");
                owned && !t.name.contains("cache")
            });
            let others: Vec<Raw> = others.cloned().collect();
            tensors.retain(|t| {
                let name = &t.name;
                !name.contains("layers.3.self_attn.k_") && !name.contains("layers.3.self_attn.v_")
            });
            for t in &others {
                let at = |to: &str| Raw {
                    name: t.name.replace("language_model.layers.1.self_attn", to),
                    ..t.clone()
                };
                tensors.push(at("language_model.layers.3.self_attn"));
                tensors.push(at("vision_tower.encoder.layers.0.self_attn"));
                tensors.push(at("audio_tower.layers.0.attn"));
            }
            // Nobody looks at what they are.
            for (tower, part) in [
                ("vision_tower.a", "weight_zero_point"),
                ("audio_tower.b", "weight_g_idx"),
                ("vision_tower.c", "weight"),
            ] {
                tensors.push(Raw::new(
                    &format!("model.{tower}.{part}"),
                    "U8",
                    &[2],
                    vec![0; 2],
                ));
            }
            tensors.push(Raw::new(
                "model.audio_tower.rqv2_muls",
                "F8_E4M3",
                &[2],
                vec![0; 2],
            ));
        });
        let found = *opened(dir.path()).passed_over();
        assert!(
            found.vision > plain.vision + 4 && found.audio > plain.audio + 4,
            "{found:?}"
        );
        assert!(found.shared_kv > 4, "{found:?}");
        let (of_dir, whole) = (opened(dir.path()), opened(&qat(of)));
        assert!(of_dir.names().eq(whole.names()));
    }
}
