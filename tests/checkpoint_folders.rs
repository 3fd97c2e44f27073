//! Folders as fine-tuners, trainers and downloads leave them: what is read from them, and what is said where nothing can be.
//!
//! Ids are those of transformers 5.23 on the same folder (float32, CPU, greedy).

mod snapshots;

use std::path::Path;

use gemma_coreml::checkpoint::{Checkpoint, Error, Notice};
use gemma_coreml::gemma::reference::{Keep, Reference};
use gemma_coreml::gemma::{self, ModelPlan};
use gemma_coreml::progress::NoProgress;
use serde_json::{Value, json};
use tempfile::TempDir;

use snapshots::{INDEX, Raw, SINGLE, find, fixture, read_raw, serialize, snapshot};

/// `Once there was`, as nano's tokenizer has it.
const PROMPT: [u32; 3] = [704, 671, 628];
/// What nano goes on with.
const NANO: [u32; 4] = [462, 663, 688, 659];
/// What it goes on with when every row of the head is shifted by one.
const SHIFTED: [u32; 4] = [463, 131, 448, 114];
const EMBED: &str = "model.language_model.embed_tokens.weight";

fn checked(dir: &Path) -> Result<Checkpoint, gemma::Error> {
    let checkpoint = Checkpoint::open(dir)?;
    ModelPlan::new(checkpoint.config())?.check(&checkpoint)?;
    Ok(checkpoint)
}

/// The first greedy ids after [`PROMPT`].
fn goes_on(dir: &Path) -> Vec<u32> {
    let checkpoint = checked(dir).unwrap_or_else(|e| panic!("{e}"));
    greedy(&checkpoint, &PROMPT)
}

fn greedy(checkpoint: &Checkpoint, prompt: &[u32]) -> Vec<u32> {
    let model = Reference::load(checkpoint).unwrap();
    let mut cache = model.cache();
    let (mut next, mut ids) = (prompt.to_vec(), Vec::new());
    for _ in 0..NANO.len() {
        let out = model.forward(&next, &mut cache, Keep::default()).unwrap();
        let logits = &out.logits[0];
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        next = vec![best.unwrap() as u32];
        ids.extend(&next);
    }
    ids
}

fn refused(dir: &Path) -> String {
    match checked(dir) {
        Ok(_) => panic!("{} was read", dir.display()),
        Err(e) => e.to_string(),
    }
}

/// Asserts that a message has these parts.
#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

fn nano() -> Vec<Raw> {
    read_raw(&fixture("nano").join(SINGLE))
}

fn edited(edit: impl FnOnce(&mut Vec<Raw>)) -> TempDir {
    let mut tensors = nano();
    edit(&mut tensors);
    snapshot("nano", &[(SINGLE, serialize(&tensors))])
}

fn renamed(of: &str, name: impl Fn(&str) -> String) -> TempDir {
    let mut tensors = read_raw(&fixture(of).join(SINGLE));
    tensors.iter_mut().for_each(|t| t.name = name(&t.name));
    snapshot(of, &[(SINGLE, serialize(&tensors))])
}

fn with_config(edit: impl FnOnce(&mut Value)) -> TempDir {
    let dir = snapshot("nano", &[]);
    std::fs::copy(fixture("nano").join(SINGLE), dir.path().join(SINGLE)).unwrap();
    set_config(dir.path(), edit);
    dir
}

fn set_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

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

#[test]
fn names_of_base_models_are_found() {
    let fingerprint = |dir: &Path| checked(dir).unwrap().fingerprint(&NoProgress).unwrap();
    for of in ["nano", "textonly-tiny"] {
        let expected = fingerprint(&fixture(of));
        let base = |name: &str| name.strip_prefix("model.").unwrap().to_string();
        let mixed = |name: &str| match name.contains("layers.1.") {
            true => base(name),
            false => name.to_string(),
        };
        for dir in [
            renamed(of, base),
            renamed(of, mixed),
            renamed(of, |n| format!("model.{n}")),
        ] {
            assert_eq!(fingerprint(dir.path()), expected, "{of}");
        }
    }
    let base = |name: &str| name.strip_prefix("model.").unwrap().to_string();
    assert_eq!(goes_on(renamed("nano", base).path()), NANO);
}

#[test]
fn other_prefixes_are_named_as_found_and_as_expected() {
    for (with, part) in [
        ("language_model.model.", "mlx"),
        ("model.language_model.language_model.", "config.json"),
        ("base_model.model.model.language_model.", "PEFT"),
        ("_orig_mod.model.language_model.", "torch.compile"),
        ("module.model.language_model.", "DataParallel"),
        (
            "language_model.language_model.language_model.",
            "config.json",
        ),
        ("transformer.", "config.json"),
    ] {
        let dir = renamed("nano", |name| name.replace("model.language_model.", with));
        let found = format!("{with}embed_tokens.weight");
        says(&refused(dir.path()), &[&found, EMBED, "hint: ", part]);
    }
    let dir = renamed("textonly-tiny", |name| format!("_orig_mod.{name}"));
    says(
        &refused(dir.path()),
        &["_orig_mod.model.embed_tokens.weight, expected model.embed_tokens.weight"],
    );
    // Wrappers inside a name, and other parts of a module.
    for (with, part) in [
        ("layers.0._orig_mod.mlp.up_proj.weight", "torch.compile"),
        (
            "_fsdp_wrapped_module.layers.0._fsdp_wrapped_module.mlp.up_proj.weight",
            "FSDP",
        ),
        ("layers.0.mlp.up_proj.qweight", "quantization"),
    ] {
        let dir = renamed("nano", |name| {
            name.replace("layers.0.mlp.up_proj.weight", with)
        });
        let found = format!("there is model.language_model.{with}, expected");
        says(
            &refused(dir.path()),
            &[
                "tensor layers.0.mlp.up_proj.weight is missing",
                &found,
                part,
            ],
        );
    }
    // One tensor in two spellings.
    let dir = edited(|t| {
        let mut again = find(t, "language_model.norm.weight").clone();
        again.name = "language_model.norm.weight".into();
        t.push(again);
    });
    let error = Checkpoint::open(dir.path()).expect_err("twice");
    assert!(
        matches!(&error, Error::DuplicateTensor { tensor, .. } if tensor == "norm.weight"),
        "{error}"
    );
}

#[test]
fn towers_and_computed_constants_are_passed_over_and_nothing_else() {
    let dir = edited(|t| {
        for name in [
            "model.vision_tower.a",
            "embed_vision.b",
            "model.vision_embedder.c",
            "model.audio_tower.d",
            "embed_audio.e",
            "model.language_model.rotary_emb.inv_freq",
            "model.language_model.rotary_emb.full_attention_original_inv_freq",
            "model.language_model.embed_tokens.embed_scale",
            "model.language_model.layers.9.self_attn.k_proj.weight",
        ] {
            t.retain(|t| t.name != name);
            t.push(Raw::new(name, "I64", &[], vec![0; 8]));
        }
    });
    let passed = *checked(dir.path()).unwrap().passed_over();
    assert_eq!((passed.vision, passed.audio, passed.other), (3, 2, 3));
    for name in [
        "multi_modal_projector.weight",
        "model.embed_visions.x",
        "model.language_model.vision_tower.x",
        "model.language_model.layers.0.self_attn.inv_freq",
        "model.language_model.layers.9.self_attn.k_proj.lora_A.weight",
        "model.language_model.layers.0.self_attn.q_proj.weight_scale",
    ] {
        let dir = edited(|t| t.push(Raw::new(name, "F32", &[], vec![0; 4])));
        says(&refused(dir.path()), &[name]);
    }
}

fn lora() -> Vec<Raw> {
    let name = |x| {
        format!("base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{x}.weight")
    };
    let of =
        |x, shape: [usize; 2]| Raw::new(&name(x), "F32", &shape, vec![1; 4 * shape[0] * shape[1]]);
    vec![of("A", [8, 160]), of("B", [128, 8])]
}

const ADAPTER_CONFIG: &str =
    r#"{"base_model_name_or_path": "google/gemma-4-E2B-it", "peft_type": "LORA", "r": 8}"#;

#[test]
fn adapters_inside_the_weights_are_refused_by_their_first_tensor() {
    let dir = edited(|t| t.extend(lora()));
    says(
        &refused(dir.path()),
        &[
            "q_proj.lora_A.weight and 1 more are not part",
            "hint: this looks like an adapter that is not merged",
        ],
    );
    for name in [
        "q_proj.lora_a",
        "q_proj.lora_magnitude_vector.default.weight",
        "q_proj.lora_embedding_A",
    ] {
        let full = format!("model.language_model.layers.0.self_attn.{name}");
        let dir = edited(|t| t.push(Raw::new(&full, "BF16", &[1], vec![0, 0])));
        says(&refused(dir.path()), &[&full, "adapter that is not merged"]);
    }
    // A model saved with its adapter still wrapped around a projection.
    let base = "model.language_model.layers.0.self_attn.q_proj.base_layer.weight";
    let dir = renamed("nano", |n| {
        n.replace(
            "layers.0.self_attn.q_proj.weight",
            "layers.0.self_attn.q_proj.base_layer.weight",
        )
    });
    says(
        &refused(dir.path()),
        &[
            "layers.0.self_attn.q_proj.weight is missing",
            base,
            "adapter that is not merged",
        ],
    );
}

#[test]
fn an_adapter_beside_the_weights_is_a_notice() {
    for (file, config, base) in [
        (
            "adapter_model.safetensors",
            Some(ADAPTER_CONFIG),
            Some("google/gemma-4-E2B-it"),
        ),
        ("adapter_model.bin", Some("{"), None),
        ("adapters.safetensors", None, None),
        (
            "adapter_config.json",
            Some(ADAPTER_CONFIG),
            Some("google/gemma-4-E2B-it"),
        ),
    ] {
        let dir = with_config(|_| ());
        write(dir.path(), file, serialize(&lora()));
        if let Some(config) = config {
            write(dir.path(), "adapter_config.json", config);
        }
        let checkpoint = checked(dir.path()).unwrap();
        let expected = Notice::AdapterNotApplied {
            path: dir.path().join(file),
            base: base.map(str::to_string),
        };
        assert_eq!(checkpoint.notices(), std::slice::from_ref(&expected));
        says(
            &expected.to_string(),
            &[file, "not applied", base.unwrap_or("")],
        );
    }
}

#[test]
fn a_folder_that_is_no_snapshot_is_said_to_be_what_it_is() {
    let only = TempDir::new().unwrap();
    write(only.path(), "adapter_model.safetensors", serialize(&lora()));
    write(only.path(), "adapter_config.json", ADAPTER_CONFIG);
    let hint = format!(
        "convert google/gemma-4-E2B-it --adapter {}",
        only.path().display()
    );
    says(
        &refused(only.path()),
        &["an adapter for google/gemma-4-E2B-it", "merge", &hint],
    );
    // Trainers save the config of the model beside the adapter.
    std::fs::copy(
        fixture("nano").join("config.json"),
        only.path().join("config.json"),
    )
    .unwrap();
    says(
        &refused(only.path()),
        &["an adapter for google/gemma-4-E2B-it", &hint],
    );

    let trainer = TempDir::new().unwrap();
    for step in ["checkpoint-90", "checkpoint-500", "checkpoint-last"] {
        write(trainer.path(), &format!("{step}/config.json"), "{}");
    }
    write(trainer.path(), "checkpoint-1000/optimizer.pt", "");
    let newest = trainer.path().join("checkpoint-500");
    says(
        &refused(trainer.path()),
        &["trainer", &format!("give {}", newest.display())],
    );

    let cache = TempDir::new().unwrap();
    let commit = "9dbdf8a839e4e9e0eb56ed80cc8886661d3817cf";
    let repo = "models--google--gemma-4-E2B-it";
    for at in [
        "0000000000000000000000000000000000000000",
        commit,
        "ffffffffffffffffffffffffffffffffffffffff",
    ] {
        write(
            cache.path(),
            &format!("{repo}/snapshots/{at}/config.json"),
            "{}",
        );
    }
    write(cache.path(), &format!("{repo}/refs/main"), commit);
    let repo = cache.path().join(repo);
    let snapshot = repo.join("snapshots").join(commit);
    says(
        &refused(&repo),
        &["hub's cache", &format!("give {}", snapshot.display())],
    );
    says(
        &refused(&repo.join("snapshots")),
        &["no model of its own, but in 0000", "give "],
    );
    says(
        &refused(cache.path()),
        &["hub's cache", "google/gemma-4-E2B-it"],
    );

    let parent = TempDir::new().unwrap();
    write(parent.path(), "merged/config.json", "{}");
    says(
        &refused(parent.path()),
        &[
            "in merged",
            &parent.path().join("merged").display().to_string(),
        ],
    );

    for (file, part) in [
        (
            "gemma-4-Q4_K_M.gguf",
            "GGUF files, not a checkpoint: gemma-4-Q4_K_M.gguf",
        ),
        ("model_config.json", "a bundle"),
        ("chunk1.mlpackage/Manifest.json", "Core ML packages"),
        ("Manifest.json", "Core ML packages"),
        ("notes.txt", "no config.json"),
    ] {
        let dir = TempDir::new().unwrap();
        write(dir.path(), file, "{}");
        says(&refused(dir.path()), &[part, "hint: "]);
    }
}

#[test]
fn files_that_are_something_else_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d4d\nsize 10246621918\n";
    for (content, parts) in [
        (pointer, &["pointer of Git LFS", "git lfs pull"][..]),
        ("<!DOCTYPE html>\n<html></html>", &["web page", "hint: "]),
        ("", &["empty", "hint: "]),
    ] {
        for file in [
            SINGLE,
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "chat_template.jinja",
        ] {
            let dir = with_config(|_| ());
            write(dir.path(), file, content);
            let text = refused(dir.path());
            says(&text, parts);
            says(&text, &[file]);
        }
        for file in [INDEX, "model-00002-of-00003.safetensors"] {
            let dir = sharded();
            write(dir.path(), file, content);
            let text = refused(dir.path());
            says(&text, parts);
            says(&text, &[file]);
        }
    }
    says(
        &refused(with(SINGLE, pointer).path()),
        &["10246621918 bytes", "sha256:4d4d"],
    );
    says(
        &refused(with(SINGLE, "GGUF\x03\0\0\0").path()),
        &["a GGUF file"],
    );
    says(&refused(with(SINGLE, "PK\x03\x04\0\0").path()), &["zip"]);
    says(
        &refused(with(SINGLE, "Entry not found").path()),
        &["\"Entry not found\""],
    );
    let error = gemma_coreml::checkpoint::Tokenizer::open(with("tokenizer.json", pointer).path())
        .err()
        .unwrap();
    says(&error.to_string(), &["git lfs pull"]);
}

fn with(file: &str, content: &str) -> TempDir {
    let dir = with_config(|_| ());
    write(dir.path(), file, content);
    dir
}

#[test]
fn directories_and_dead_links_in_place_of_files() {
    for file in [SINGLE, "config.json", "tokenizer.json"] {
        let dir = with_config(|_| ());
        let path = dir.path().join(file);
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir(&path).unwrap();
        says(
            &refused(dir.path()),
            &[file, "a directory, where a file is expected"],
        );
        #[cfg(unix)]
        {
            std::fs::remove_dir(&path).unwrap();
            std::os::unix::fs::symlink("../../blobs/4d4d", &path).unwrap();
            says(
                &refused(dir.path()),
                &[file, "a link to ../../blobs/4d4d, which is not there"],
            );
        }
    }
    #[cfg(unix)]
    {
        let dir = sharded();
        let path = dir.path().join("model-00003-of-00003.safetensors");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("../blobs/00", &path).unwrap();
        says(
            &refused(dir.path()),
            &["model-00003-of-00003.safetensors: a link to ../blobs/00"],
        );
    }
}

/// e2b35-tiny copied, index and shards.
fn sharded() -> TempDir {
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

#[test]
fn configs_as_fine_tuners_write_them() {
    type Edit = fn(&mut Value);
    let same: [(&str, Edit); 9] = [
        ("torch_dtype", |c| {
            c.as_object_mut().unwrap().remove("dtype");
            c["torch_dtype"] = json!("bfloat16");
        }),
        ("extra keys", |c| {
            c["unsloth_version"] = json!("2026.9");
            c["unsloth_fixed"] = json!(true);
            c["_name_or_path"] = json!("google/gemma-4-E2B-it");
            c["use_cache"] = json!(false);
        }),
        ("null quantization", |c| {
            c["quantization_config"] = Value::Null
        }),
        ("Gemma4Model", |c| {
            c["architectures"] = json!(["Gemma4Model"])
        }),
        ("Gemma4TextModel", |c| {
            c["architectures"] = json!(["Gemma4TextModel"])
        }),
        ("Gemma4ForCausalLM", |c| {
            c["architectures"] = json!(["Gemma4ForCausalLM"])
        }),
        ("no architectures", |c| {
            drop(c.as_object_mut().unwrap().remove("architectures"))
        }),
        ("no inner model_type", |c| {
            drop(
                c["text_config"]
                    .as_object_mut()
                    .unwrap()
                    .remove("model_type"),
            )
        }),
        ("null rope_scaling", |c| {
            c["text_config"]["rope_scaling"] = Value::Null
        }),
    ];
    for (name, edit) in same {
        let dir = with_config(edit);
        checked(dir.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    // Python's json writes these, and reads them.
    let dir = with_config(|c| c["loss"] = json!("NAN"));
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path)
        .unwrap()
        .replace("\"NAN\"", "NaN");
    std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    assert_eq!(goes_on(dir.path()), NANO);
    let bad: [(&str, Edit); 3] = [
        ("rms_norm_eps", |c| {
            c["text_config"]["rms_norm_eps"] = json!("NaN")
        }),
        ("use_double_wide_mlp", |c| {
            c["text_config"]["use_double_wide_mlp"] = json!("false")
        }),
        ("text_config.hidden_size", |c| {
            c["text_config"]["hidden_size"] = json!(160.5)
        }),
    ];
    for (field, edit) in bad {
        says(&refused(with_config(edit).path()), &[field]);
    }
}
