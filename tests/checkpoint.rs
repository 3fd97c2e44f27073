//! Snapshots on disk: the fixtures as they are, resharded and renamed, and broken in every way that is known.

mod snapshots;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use gemma_coreml::checkpoint::{Checkpoint, Error, PassedOver, StoredDType};
use gemma_coreml::gemma::{self, ModelPlan};
use gemma_coreml::progress::{NoProgress, Progress};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use snapshots::{
    INDEX, Raw, SINGLE, assemble, edited, find, fixture, read_raw, serialize, snapshot, split,
};

/// All tensors of e2b35-tiny's three shards.
fn e2b35() -> Vec<Raw> {
    let shard = |n: usize| fixture("e2b35-tiny").join(format!("model-{n:05}-of-00003.safetensors"));
    (1..=3).flat_map(|n| read_raw(&shard(n))).collect()
}

fn is_shared_kv(name: &str) -> bool {
    let kv = ["k_proj.weight", "v_proj.weight", "k_norm.weight"];
    let layer = name.split('.').find_map(|part| part.parse::<usize>().ok());
    layer.is_some_and(|l| l >= 15)
        && kv.iter().any(|suffix| name.ends_with(suffix))
        && name.contains("language_model")
}

fn open_and_check(dir: &Path) -> Result<(), gemma::Error> {
    let checkpoint = Checkpoint::open(dir)?;
    ModelPlan::new(checkpoint.config())?.check(&checkpoint)
}

#[test]
fn fixtures_open_and_count_what_they_pass_over() {
    for (name, vision, audio, shared_kv) in [
        ("nano", 0, 0, None),
        ("e4b-tiny", 3, 3, Some(0)),
        ("e2b35-tiny", 3, 3, Some(60)),
        ("dense-tiny", 0, 0, Some(0)),
        ("moe-tiny", 0, 0, Some(0)),
        ("textonly-tiny", 0, 0, Some(0)),
    ] {
        let checkpoint = Checkpoint::open(&fixture(name)).expect(name);
        ModelPlan::new(checkpoint.config())
            .and_then(|plan| plan.check(&checkpoint))
            .expect(name);
        let counted = checkpoint.passed_over();
        assert_eq!(
            (counted.vision, counted.audio, counted.other),
            (vision, audio, 0),
            "{name}"
        );
        assert!(
            shared_kv.is_none_or(|n| n == counted.shared_kv),
            "{name}: {counted:?}"
        );
        assert!(checkpoint.names().is_sorted(), "{name}");
        assert!(
            checkpoint.names().all(|n| !n.contains("language_model")),
            "{name}"
        );
        let files = checkpoint.token_files();
        assert_eq!(files.len(), 5, "{name}: {files:?}");
    }
}

#[test]
fn stored_dtypes_of_the_fixtures() {
    for (name, dtype) in [
        ("e4b-tiny", StoredDType::Bf16),
        ("dense-tiny", StoredDType::F16),
        ("moe-tiny", StoredDType::Bf16),
        ("textonly-tiny", StoredDType::F32),
    ] {
        let checkpoint = Checkpoint::open(&fixture(name)).expect(name);
        let hidden = checkpoint.config().hidden_size;
        let view = checkpoint.tensor("norm.weight", &[hidden]).expect(name);
        assert_eq!((view.dtype(), view.len()), (dtype, hidden), "{name}");
    }
}

struct Counting(AtomicU64);

impl Progress for Counting {
    fn begin(&self, _label: &str, _total: u64) {}
    fn advance(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
    fn end(&self) {}
}

/// Shards, prefixes of passed-over tensors, K and V of sharing layers and a repeated head make no difference.
#[test]
fn fingerprint_is_of_the_contents() {
    let original = Checkpoint::open(&fixture("e2b35-tiny")).expect("a fixture");
    let seen = Counting(AtomicU64::new(0));
    let fingerprint = original.fingerprint(&seen).expect("a fingerprint");
    assert_eq!(fingerprint.len(), 64);
    assert_eq!(seen.0.into_inner(), original.text_bytes());

    let mut one: Vec<Raw> = e2b35()
        .into_iter()
        .filter(|t| !is_shared_kv(&t.name))
        .collect();
    one.reverse();
    let table = find(&mut one, "embed_tokens.weight").clone();
    one.push(Raw {
        name: "lm_head.weight".into(),
        ..table
    });
    let dir = snapshot("e2b35-tiny", &[(SINGLE, serialize(&one))]);
    let merged = Checkpoint::open(dir.path()).expect("one file");
    assert_eq!(
        merged.fingerprint(&NoProgress).expect("a fingerprint"),
        fingerprint
    );
    let expected = PassedOver {
        vision: 3,
        audio: 3,
        shared_kv: 0,
        other: 1,
    };
    assert_eq!(*merged.passed_over(), expected);
    assert!(original.names().eq(merged.names()));

    find(&mut one, "layers.3.mlp.up_proj.weight").bytes[5] ^= 1;
    let dir = snapshot("e2b35-tiny", &[(SINGLE, serialize(&one))]);
    let changed = Checkpoint::open(dir.path()).expect("one file");
    assert_ne!(
        changed.fingerprint(&NoProgress).expect("a fingerprint"),
        fingerprint
    );

    let config = dir.path().join("config.json");
    let mut text =
        std::fs::read_to_string(fixture("e2b35-tiny").join("config.json")).expect("a config");
    text.push('\n');
    std::fs::write(config, text).expect("a written file");
    find(&mut one, "layers.3.mlp.up_proj.weight").bytes[5] ^= 1;
    std::fs::write(dir.path().join(SINGLE), serialize(&one)).expect("a written file");
    let changed = Checkpoint::open(dir.path()).expect("one file");
    assert_ne!(
        changed.fingerprint(&NoProgress).expect("a fingerprint"),
        fingerprint
    );
}

#[test]
fn truncated_files() {
    let whole = std::fs::read(fixture("e4b-tiny").join(SINGLE)).expect("a fixture");
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        let dir = snapshot("e4b-tiny", &[(SINGLE, whole[..length].to_vec())]);
        let error = Checkpoint::open(dir.path()).expect_err("truncated");
        let expected = match &error {
            Error::NotTheFile { path, .. } => length == 0 && path.ends_with(SINGLE),
            Error::BadFile { path, .. } | Error::BadTensor { path, .. } => path.ends_with(SINGLE),
            _ => false,
        };
        assert!(expected, "{length} bytes: {error}");
    }
    let mut longer = whole;
    longer.push(0);
    let dir = snapshot("e4b-tiny", &[(SINGLE, longer)]);
    let error = Checkpoint::open(dir.path()).expect_err("a byte too many");
    assert!(
        matches!(&error, Error::BadFile { what, .. } if *what == "data length"),
        "{error}"
    );
}

#[test]
fn header_lengths_that_cannot_be() {
    let whole = std::fs::read(fixture("e4b-tiny").join(SINGLE)).expect("a fixture");
    for length in [u64::MAX, 1 << 63, 1 << 40, whole.len() as u64 - 7] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        let dir = snapshot("e4b-tiny", &[(SINGLE, bytes)]);
        let error = Checkpoint::open(dir.path()).expect_err("a huge header");
        assert!(
            matches!(&error, Error::BadFile { what, .. } if *what == "header length"),
            "{error}"
        );
    }
    for header in [
        "",
        "{",
        "[]",
        "null",
        "{\"a\": 1}",
        "{\"a\": {}} x",
        "\u{feff}{}",
    ] {
        let dir = snapshot("e4b-tiny", &[(SINGLE, assemble(header, &[]))]);
        let error = Checkpoint::open(dir.path()).expect_err("no header");
        assert!(
            matches!(&error, Error::BadFile { .. } | Error::BadTensor { .. }),
            "{header}: {error}"
        );
    }
}

/// Each way in which a header can lie about one tensor, by the property that the error blames.
#[test]
fn headers_that_lie_name_the_tensor() {
    const TENSOR: &str = "model.language_model.layers.2.mlp.up_proj.weight";
    let whole = std::fs::read(fixture("e4b-tiny").join(SINGLE)).expect("a fixture");
    let (header, data) = split(&whole);
    let offsets = header[TENSOR]["data_offsets"].clone();
    let (begin, end) = (
        offsets[0].as_u64().expect("begin"),
        offsets[1].as_u64().expect("end"),
    );
    for (what, field, value) in [
        ("data_offsets", "data_offsets", json!([begin, u64::MAX])),
        (
            "data_offsets",
            "data_offsets",
            json!([begin, data.len() + 2]),
        ),
        ("data_offsets", "data_offsets", json!([end, begin])),
        ("data_offsets", "data_offsets", json!([-1, end])),
        ("data_offsets", "data_offsets", json!([begin])),
        ("data_offsets", "data_offsets", json!([begin + 2, end])),
        ("data_offsets", "data_offsets", json!([begin - 2, end])),
        ("data_offsets", "data_offsets", json!(null)),
        ("size", "shape", json!([32, 97])),
        ("size", "shape", json!([u64::MAX, 4])),
        ("size", "shape", json!([1u64 << 63, 1u64 << 63])),
        ("shape", "shape", json!([-1, 96])),
        ("shape", "shape", json!("32x96")),
        ("size", "dtype", json!("F32")),
        ("dtype", "dtype", json!("F17")),
        ("dtype", "dtype", json!(16)),
    ] {
        let mut lie = header.clone();
        lie[TENSOR][field] = value.clone();
        let dir = snapshot("e4b-tiny", &[(SINGLE, assemble(&lie.to_string(), data))]);
        match Checkpoint::open(dir.path()).expect_err("a lie") {
            Error::BadTensor {
                tensor,
                what: blamed,
                expected,
                got,
                ..
            } => {
                assert_eq!(
                    blamed, what,
                    "{field} = {value}: expected {expected}, got {got}"
                );
                // A wrong begin or end shows at the tensor itself or at its neighbour in the file.
                assert!(
                    tensor == TENSOR || what == "data_offsets",
                    "{field} = {value}: {tensor}"
                );
            }
            other => panic!("{field} = {value}: {other}"),
        }
    }
}

#[test]
fn a_name_twice_in_one_header() {
    let entry = r#"{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}"#;
    let header = format!("{{\"model.norm.weight\":{entry},\"model.norm.weight\":{entry}}}");
    let dir = snapshot("e4b-tiny", &[(SINGLE, assemble(&header, &[0, 0]))]);
    let error = Checkpoint::open(dir.path()).expect_err("twice");
    assert!(
        matches!(&error, Error::DuplicateTensor { tensor, .. } if tensor == "model.norm.weight"),
        "{error}"
    );
}

#[test]
fn dtypes_that_weights_are_not_read_from() {
    for dtype in ["I16", "U16"] {
        let dir = edited(|t| find(t, "layers.1.mlp.gate_proj.weight").dtype = dtype.into());
        let error = Checkpoint::open(dir.path()).expect_err("a dtype");
        let named = matches!(&error, Error::UnsupportedDtype { tensor, got, .. }
            if tensor.ends_with("layers.1.mlp.gate_proj.weight") && got == dtype);
        assert!(named, "{error}");
    }
    // Of a tower it does not matter.
    let dir =
        edited(|t| find(t, "vision_tower.patch_embedder.input_proj.weight").dtype = "I16".into());
    Checkpoint::open(dir.path()).expect("towers are passed over");
}

#[test]
fn missing_misshapen_and_unexplained_tensors() {
    const TENSOR: &str = "layers.5.self_attn.q_norm.weight";
    let dir = edited(|t| t.retain(|t| !t.name.ends_with(TENSOR)));
    match open_and_check(dir.path()).expect_err("missing") {
        gemma::Error::Checkpoint(Error::MissingTensor {
            tensor, expected, ..
        }) => {
            assert_eq!((tensor.as_str(), expected), (TENSOR, vec![32]));
        }
        other => panic!("{other}"),
    }
    let dir = edited(|t| find(t, TENSOR).shape = vec![2, 16]);
    match open_and_check(dir.path()).expect_err("misshapen") {
        gemma::Error::Checkpoint(Error::WrongShape {
            tensor,
            expected,
            got,
            ..
        }) => {
            assert!(tensor.ends_with(TENSOR));
            assert_eq!((expected, got), (vec![32], vec![2, 16]));
        }
        other => panic!("{other}"),
    }
    for name in [
        "layers.0.self_attn.q_proj.bias",
        "layers.0.mlp.up_proj.lora_A.weight",
        "layers.12.layer_scalar",
    ] {
        let full = format!("model.language_model.{name}");
        let dir = edited(|t| t.push(Raw::new(&full, "BF16", &[1], vec![0, 0])));
        match open_and_check(dir.path()).expect_err("unexplained") {
            gemma::Error::Checkpoint(Error::UnexpectedTensor { tensor, more, .. }) => {
                assert_eq!((tensor, more), (full, 0));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn one_name_under_two_prefixes() {
    let dir = edited(|t| {
        let mut again = find(t, "language_model.norm.weight").clone();
        again.name = "model.norm.weight".into();
        t.push(again);
    });
    let error = Checkpoint::open(dir.path()).expect_err("twice");
    assert!(
        matches!(&error, Error::DuplicateTensor { tensor, .. } if tensor == "norm.weight"),
        "{error}"
    );
}

/// e2b35-tiny copied, for the tests that break its index or a shard.
fn sharded() -> TempDir {
    let names: Vec<String> = (1..=3)
        .map(|n| format!("model-{n:05}-of-00003.safetensors"))
        .collect();
    let mut files = vec![(
        INDEX,
        std::fs::read(fixture("e2b35-tiny").join(INDEX)).expect("an index"),
    )];
    for name in &names {
        files.push((
            name,
            std::fs::read(fixture("e2b35-tiny").join(name)).expect("a shard"),
        ));
    }
    let dir = snapshot("e2b35-tiny", &files);
    Checkpoint::open(dir.path()).expect("a copy opens");
    dir
}

fn edit_index(dir: &TempDir, edit: impl FnOnce(&mut Map<String, Value>)) {
    let path = dir.path().join(INDEX);
    let mut index: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("an index")).expect("JSON");
    edit(index["weight_map"].as_object_mut().expect("a map"));
    std::fs::write(path, index.to_string()).expect("a written file");
}

#[test]
fn broken_shards_and_indices() {
    const SHARD: &str = "model-00002-of-00003.safetensors";
    let dir = sharded();
    std::fs::remove_file(dir.path().join(SHARD)).expect("a removed shard");
    let error = Checkpoint::open(dir.path()).expect_err("a missing shard");
    assert!(
        matches!(&error, Error::MissingFile { file, .. } if file == SHARD),
        "{error}"
    );

    let dir = sharded();
    let shard = std::fs::read(dir.path().join(SHARD)).expect("a shard");
    std::fs::write(dir.path().join(SHARD), &shard[..shard.len() - 100]).expect("a truncated shard");
    let error = Checkpoint::open(dir.path()).expect_err("a truncated shard");
    assert!(
        matches!(&error, Error::BadTensor { path, .. } if path.ends_with(SHARD)),
        "{error}"
    );

    let dir = sharded();
    let name = "model.language_model.norm.weight";
    edit_index(&dir, |map| drop(map.insert(name.into(), json!(SHARD))));
    let error = Checkpoint::open(dir.path()).expect_err("a wrong index");
    assert!(
        matches!(&error, Error::IndexMismatch { tensor, .. } if tensor == name),
        "{error}"
    );

    let dir = sharded();
    edit_index(&dir, |map| {
        drop(map.insert("model.language_model.extra".into(), json!(SHARD)))
    });
    let error = Checkpoint::open(dir.path()).expect_err("a tensor that is nowhere");
    assert!(matches!(&error, Error::IndexMismatch { .. }), "{error}");

    for outside in [
        json!("../model.safetensors"),
        json!("/etc/passwd"),
        json!(""),
        json!(3),
    ] {
        let dir = sharded();
        edit_index(&dir, |map| drop(map.insert("x".into(), outside.clone())));
        let error = Checkpoint::open(dir.path()).expect_err("a file elsewhere");
        assert!(
            matches!(&error, Error::InvalidField { .. }),
            "{outside}: {error}"
        );
    }

    let dir = sharded();
    let mut tensors = read_raw(&dir.path().join(SHARD));
    tensors.extend(
        read_raw(&dir.path().join("model-00003-of-00003.safetensors"))
            .into_iter()
            .take(1),
    );
    std::fs::write(dir.path().join(SHARD), serialize(&tensors)).expect("a written shard");
    let error = Checkpoint::open(dir.path()).expect_err("a tensor in two shards");
    assert!(
        matches!(&error, Error::DuplicateTensor { first, second, .. } if first != second),
        "{error}"
    );
}

#[test]
fn snapshots_without_config_or_weights() {
    let dir = TempDir::new().expect("a temporary directory");
    let error = Checkpoint::open(dir.path()).expect_err("empty");
    assert!(
        matches!(&error, Error::MissingFile { file, .. } if file == "config.json"),
        "{error}"
    );
    let dir = snapshot("e4b-tiny", &[]);
    let error = Checkpoint::open(dir.path()).expect_err("no weights");
    assert!(
        matches!(&error, Error::MissingFile { file, .. } if file.contains(SINGLE)),
        "{error}"
    );
    let dir = snapshot(
        "e4b-tiny",
        &[("config.json", b"{\n\"model_type\": }".to_vec())],
    );
    let error = Checkpoint::open(dir.path()).expect_err("an unreadable config");
    assert!(
        matches!(&error, Error::Json { line: 2, path, .. } if path.ends_with("config.json")),
        "{error}"
    );
    let dir = snapshot("e4b-tiny", &[("config.json", vec![])]);
    std::fs::remove_file(dir.path().join("config.json")).expect("removed");
    std::fs::create_dir(dir.path().join("config.json")).expect("a directory");
    Checkpoint::open(dir.path()).expect_err("a directory is no config");
}

fn small_file() -> Vec<u8> {
    let norm = |n: usize| vec![0x3f; 2 * n];
    serialize(&[
        Raw::new("model.language_model.norm.weight", "BF16", &[96], norm(96)),
        Raw::new(
            "model.language_model.layers.0.layer_scalar",
            "BF16",
            &[1],
            norm(1),
        ),
        Raw::new("model.vision_tower.x", "F32", &[], vec![0; 4]),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever bytes change, opening and reading ends in a value or an error.
    #[test]
    fn changed_bytes_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let mut bytes = small_file();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        let dir = snapshot("e4b-tiny", &[(SINGLE, bytes)]);
        if let Ok(checkpoint) = Checkpoint::open(dir.path()) {
            let names: Vec<String> = checkpoint.names().map(str::to_string).collect();
            for name in names {
                let shape = checkpoint.shape(&name).expect("a listed tensor").to_vec();
                let view = checkpoint.tensor(&name, &shape).expect("a listed tensor");
                let _ = view.read_f32(0..view.len(), &mut vec![0.0; view.len()]);
            }
        }
    }
}
