//! Sets of weight files.

use crate::helpers::*;

/// e2b35-tiny copied, index and shards.
pub fn sharded() -> TempDir {
    let dir = snapshot("e2b35-tiny", &[]);
    for entry in std::fs::read_dir(fixture("e2b35-tiny")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name.to_str().unwrap().starts_with("model") {
            std::fs::copy(&path, dir.path().join(name)).unwrap();
        }
    }
    dir
}

#[test]
fn a_whole_set_of_shards_needs_no_index() {
    let fingerprint = |dir: &Path| checked(dir).unwrap().fingerprint(&NoProgress).unwrap();
    let expected = fingerprint(&fixture("e2b35-tiny"));
    let dir = sharded();
    std::fs::remove_file(dir.path().join(INDEX)).unwrap();
    assert_eq!(fingerprint(dir.path()), expected);
    std::fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    says(
        &refused(dir.path()),
        &["no model-00002-of-00003.safetensors", "2 of 3 shards"],
    );
    std::fs::remove_file(dir.path().join("model-00003-of-00003.safetensors")).unwrap();
    says(
        &refused(dir.path()),
        &[
            "no model-00002-of-00003.safetensors and 1 more",
            "1 of 3 shards",
        ],
    );
    write(dir.path(), "model-00001-of-00002.safetensors", "x");
    says(
        &refused(dir.path()),
        &["model-00001-of-00002.safetensors, model-00001-of-00003.safetensors"],
    );

    let one = snapshot("nano", &[]);
    std::fs::copy(
        fixture("nano").join(SINGLE),
        one.path().join("model-00001-of-00001.safetensors"),
    )
    .unwrap();
    assert_eq!(goes_on(one.path()), NANO);
}

#[test]
fn weights_that_are_not_read_are_listed() {
    for (files, part) in [
        (
            &["pytorch_model.bin", "training_args.bin"][..],
            "(there: pytorch_model.bin)",
        ),
        (&["model.pt"], "(there: model.pt)"),
        (&["weights.npz"], "(there: weights.npz)"),
        (
            &["tf_model.h5", "flax_model.msgpack"],
            "(there: flax_model.msgpack, tf_model.h5)",
        ),
        (
            &["consolidated.safetensors", "x.bin"],
            "(there: x.bin, consolidated.safetensors)",
        ),
        (
            &["model.fp16.safetensors"],
            "(there: model.fp16.safetensors)",
        ),
        (
            &["model-00000-of-00001.safetensors"],
            "(there: model-00000-of-00001.safetensors)",
        ),
        (
            &[
                "pytorch_model-00001-of-00002.bin",
                "pytorch_model-00002-of-00002.bin",
            ],
            "pytorch_model-00001-of-00002.bin, ",
        ),
        (
            &["model-q4.gguf"],
            "GGUF files, not a checkpoint: model-q4.gguf",
        ),
        (
            &["training_args.bin"],
            "no model.safetensors and no model.safetensors.index.json\nhint: fetch",
        ),
    ] {
        let dir = snapshot("nano", &[]);
        files.iter().for_each(|file| write(dir.path(), file, "x"));
        let text = refused(dir.path());
        says(&text, &[part, "hint: "]);
    }
}

#[test]
fn a_stray_single_file_beside_an_index_is_read_and_named() {
    let norm = nano()
        .into_iter()
        .filter(|t| t.name == "model.language_model.norm.weight");
    let stray = serialize(&norm.collect::<Vec<_>>());
    let dir = sharded();
    write(dir.path(), SINGLE, stray);
    says(
        &refused(dir.path()),
        &[
            "embed_tokens.weight is missing",
            "read: model.safetensors; not read: model.safetensors.index.json, model-00001",
            INDEX,
            "hint: ",
        ],
    );
    let notices = Checkpoint::open(dir.path()).unwrap().notices().to_vec();
    says(
        &notices[0].to_string(),
        &["read from model.safetensors, not from model.safetensors.index.json, model-00001"],
    );
    // Shards that the index does not name.
    let dir = sharded();
    write(dir.path(), "model-00004-of-00004.safetensors", "x");
    let notices = checked(dir.path()).unwrap().notices().to_vec();
    says(
        &notices[0].to_string(),
        &["not from model-00004-of-00004.safetensors"],
    );
}

#[test]
fn an_index_may_name_files_in_folders_and_begin_with_a_byte_order_mark() {
    let dir = sharded();
    let text = std::fs::read_to_string(dir.path().join(INDEX)).unwrap();
    let text = text.replace("model-00002", "part/model-00002");
    write(dir.path(), INDEX, format!("\u{feff}{text}"));
    let shard = "model-00002-of-00003.safetensors";
    std::fs::create_dir(dir.path().join("part")).unwrap();
    std::fs::rename(dir.path().join(shard), dir.path().join("part").join(shard)).unwrap();
    checked(dir.path()).unwrap();
    for name in ["part/../x", "./x", "part/", "/x", "a\\b"] {
        let dir = sharded();
        write(
            dir.path(),
            INDEX,
            json!({"weight_map": {"t": name}}).to_string(),
        );
        says(&refused(dir.path()), &["weight_map.t"]);
    }
}
