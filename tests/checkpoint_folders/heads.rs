//! A head of its own beside the embedding table.

use crate::helpers::*;

/// The embedding table as a head.
fn head(tensors: &[Raw], name: &str, shift: bool) -> Raw {
    let table = tensors.iter().find(|t| t.name == EMBED);
    let mut head = table.unwrap().clone();
    head.name = name.into();
    if shift {
        let row = 2 * head.shape[1];
        head.bytes.rotate_right(row);
    }
    head
}

/// nano with such a head.
fn with_head(name: &str, shift: bool) -> TempDir {
    edited(|t| {
        let head = head(t, name, shift);
        t.push(head);
    })
}

#[test]
fn a_head_with_other_values_than_the_tied_table_is_used() {
    for name in ["lm_head.weight", "model.lm_head.weight"] {
        let dir = with_head(name, true);
        assert_eq!(goes_on(dir.path()), SHIFTED, "{name}");
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert!(!checkpoint.config().tie_word_embeddings);
        assert_eq!(checkpoint.passed_over().other, 0);
        let own = Notice::OwnHead {
            tensor: name.into(),
        };
        assert_eq!(checkpoint.notices(), [own]);
    }
    // As configured: nothing to say.
    let dir = with_head("lm_head.weight", true);
    set_config(dir.path(), |c| c["tie_word_embeddings"] = json!(false));
    assert_eq!(goes_on(dir.path()), SHIFTED);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().notices(), []);
}

#[test]
fn a_head_that_repeats_the_table_is_passed_over() {
    let plain = Checkpoint::open(&fixture("nano")).unwrap();
    let fingerprint = plain.fingerprint(&NoProgress).unwrap();
    let equal = with_head("lm_head.weight", false);
    let in_f32 = edited(|t| {
        let mut wide = head(t, "lm_head.weight", false);
        let values = wide.bytes.as_chunks::<2>().0.iter();
        wide.bytes = values.flat_map(|b| [0, 0, b[0], b[1]]).collect();
        wide.dtype = "F32".into();
        t.push(wide);
    });
    for dir in [&equal, &in_f32] {
        let checkpoint = checked(dir.path()).unwrap();
        assert!(checkpoint.config().tie_word_embeddings);
        assert_eq!(checkpoint.passed_over().other, 1);
        assert_eq!(checkpoint.notices(), []);
        assert_eq!(checkpoint.fingerprint(&NoProgress).unwrap(), fingerprint);
    }
    set_config(equal.path(), |c| c["tie_word_embeddings"] = json!(false));
    assert!(checked(equal.path()).unwrap().config().tie_word_embeddings);
    // The last element alone differs.
    let dir = edited(|t| {
        let mut other = head(t, "lm_head.weight", false);
        *other.bytes.last_mut().unwrap() ^= 1;
        t.push(other);
    });
    assert!(!checked(dir.path()).unwrap().config().tie_word_embeddings);
}

#[test]
fn heads_that_cannot_be_used_are_refused_by_name() {
    let dir = with_config(|c| c["tie_word_embeddings"] = json!(false));
    says(
        &refused(dir.path()),
        &[
            "lm_head.weight is missing",
            "[992, 160]",
            "tie_word_embeddings",
        ],
    );
    // transformers looks at the top alone.
    let dir = with_config(|c| c["text_config"]["tie_word_embeddings"] = json!(false));
    checked(dir.path()).unwrap();
    let dir = edited(|t| {
        let lone = head(t, "lm_head.weight", false);
        t.retain(|t| t.name != EMBED);
        t.push(lone);
    });
    says(
        &refused(dir.path()),
        &["embed_tokens.weight is missing", "there is lm_head.weight"],
    );
    let dir = edited(|t| {
        let mut short = head(t, "lm_head.weight", false);
        short.shape[0] -= 1;
        short.bytes.truncate(2 * short.shape[0] * short.shape[1]);
        t.push(short);
    });
    says(
        &refused(dir.path()),
        &["lm_head.weight", "[992, 160]", "[991, 160]"],
    );
    for name in [
        "lm_head.bias",
        "language_model.lm_head.weight",
        "score.weight",
        "v_head.summary.weight",
    ] {
        let dir = edited(|t| t.push(Raw::new(name, "BF16", &[1], vec![0, 0])));
        says(
            &refused(dir.path()),
            &[name, "model.language_model.*", "hint: "],
        );
    }
    let dir = edited(|t| {
        let again = head(t, "lm_head.weight", true);
        t.extend([
            again.clone(),
            Raw {
                name: "model.lm_head.weight".into(),
                ..again
            },
        ]);
    });
    says(&refused(dir.path()), &["lm_head.weight is in", "again"]);
}
