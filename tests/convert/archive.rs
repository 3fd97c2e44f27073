//! Packing and unpacking, and archives that lie.

use crate::helpers::*;
use gemma_coreml::bundle::archive::{MANIFEST, pack, unpack};
use gemma_coreml::bundle::{Error, files};
use gemma_coreml::progress::NoProgress;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// What a test does to the entries and the manifest of an archive.
type Change<'a> = &'a dyn Fn(&mut BTreeMap<String, Vec<u8>>, &mut serde_json::Value);

/// A bundle, and its archive.
fn packed(dir: &Path) -> (PathBuf, PathBuf) {
    let (bundle, archive) = (dir.join("b"), dir.join("b.zip"));
    run(&fixture("textonly-tiny"), "swa4-int4", &bundle, &options()).unwrap();
    pack(&bundle, &archive, false, &NoProgress).unwrap();
    (bundle, archive)
}

/// Entries of an archive; the manifest apart, as JSON.
fn take_apart(archive: &Path) -> (BTreeMap<String, Vec<u8>>, serde_json::Value) {
    let mut zip = ZipArchive::new(File::open(archive).unwrap()).unwrap();
    let mut entries = BTreeMap::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        entries.insert(entry.name().unwrap().into_owned(), bytes);
    }
    let manifest = serde_json::from_slice(&entries.remove(MANIFEST).unwrap()).unwrap();
    (entries, manifest)
}

fn put_together(archive: &Path, entries: &BTreeMap<String, Vec<u8>>, manifest: &serde_json::Value) {
    let mut zip = ZipWriter::new(File::create(archive).unwrap());
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    let text = serde_json::to_vec(manifest).unwrap();
    for (name, bytes) in entries.iter().chain([(&MANIFEST.to_string(), &text)]) {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

fn refused(archive: &Path) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let error = unpack(archive, &dir.path().join("out"), false, &NoProgress).unwrap_err();
    assert_eq!(entries(dir.path()), Vec::<String>::new(), "{error}");
    error
}

#[test]
fn there_and_back_and_reproducible() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, archive) = packed(dir.path());
    let again = dir.path().join("again.zip");
    pack(&bundle, &again, false, &NoProgress).unwrap();
    assert!(fs::read(&archive).unwrap() == fs::read(&again).unwrap());
    let out = dir.path().join("out");
    let report = unpack(&archive, &out, false, &NoProgress).unwrap();
    assert_same(&bundle, &out);
    assert_eq!(report.files, contents(&out).len());
    assert!(matches!(
        unpack(&archive, &out, false, &NoProgress),
        Err(Error::Exists { .. })
    ));
    unpack(&archive, &out, true, &NoProgress).unwrap();
    assert_same(&bundle, &out);
    assert!(matches!(
        pack(&bundle, &again, false, &NoProgress),
        Err(Error::Exists { .. })
    ));
    pack(&bundle, &again, true, &NoProgress).unwrap();
    assert_eq!(entries(dir.path()), ["again.zip", "b", "b.zip", "out"]);
}

#[test]
fn only_sound_bundles_are_packed() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, _) = packed(dir.path());
    let archive = dir.path().join("x.zip");
    let refuse = || {
        let error = pack(&bundle, &archive, false, &NoProgress).unwrap_err();
        assert_eq!(entries(dir.path()), ["b", "b.zip"], "{error}");
        error
    };
    fs::write(bundle.join("notes.txt"), "mine").unwrap();
    assert!(matches!(refuse(), Error::Foreign { .. }));
    fs::remove_file(bundle.join("notes.txt")).unwrap();
    let table = bundle.join("embed_tokens_q8.bin");
    let good = fs::read(&table).unwrap();
    let mut bad = good.clone();
    bad[7] ^= 1;
    fs::write(&table, &bad).unwrap();
    assert!(matches!(refuse(), Error::Content { what: "sha256", .. }));
    fs::write(&table, &good[1..]).unwrap();
    assert!(matches!(refuse(), Error::Size { .. }));
    fs::remove_file(&table).unwrap();
    assert!(matches!(refuse(), Error::Missing { .. }));
}

#[test]
fn deflated_entries_are_fine_and_every_lie_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, archive) = packed(dir.path());
    let (good, manifest) = take_apart(&archive);
    let made = dir.path().join("made.zip");
    put_together(&made, &good, &manifest);
    unpack(&made, &dir.path().join("out"), false, &NoProgress).unwrap();
    assert_same(&bundle, &dir.path().join("out"));

    let table = "embed_tokens_q8.bin".to_string();
    let change = |work: Change<'_>| {
        let (mut entries, mut manifest) = (good.clone(), manifest.clone());
        work(&mut entries, &mut manifest);
        put_together(&made, &entries, &manifest);
        refused(&made).to_string()
    };
    let text = change(&|e, _| e.get_mut(&table).unwrap()[3] ^= 1);
    assert!(text.contains(&table) && text.contains("sha256"), "{text}");
    let text = change(&|e, _| e.get_mut(&table).unwrap().push(0));
    assert!(text.contains(&table) && text.contains("size"), "{text}");
    let text = change(&|e, _| drop(e.remove(&table)));
    assert!(text.contains("entries: expected"), "{text}");
    let text = change(&|e, _| drop(e.insert("more".into(), vec![1])));
    assert!(text.contains("entries: expected"), "{text}");
    for name in [
        "../escape",
        "/etc/escape",
        "a/../../escape",
        "a//b",
        "c:\\escape",
        "a\\..\\b",
        "./x",
        "nul\u{0}",
    ] {
        let text = change(&|e, m| {
            e.insert(name.into(), vec![1]);
            m["files"][name] = serde_json::json!({"bytes": 1, "sha256": files::hex(&[0; 32])});
        });
        assert!(
            text.contains("plain relative path") || text.contains("listed"),
            "{name}: {text}"
        );
    }
    let text = change(&|_, m| m["format"] = 2.into());
    assert!(text.contains("format"), "{text}");
    let text = change(&|_, m| m["files"][&table]["bytes"] = u64::MAX.into());
    assert!(text.contains("no space") || text.contains("size"), "{text}");
    // Sound entries that do not make a bundle.
    let text = change(&|e, m| {
        let config = e.get_mut("model_config.json").unwrap();
        *config = String::from_utf8(config.clone())
            .unwrap()
            .replace("\"context_length\": 64", "\"context_length\": 65")
            .into();
        m["files"]["model_config.json"]["sha256"] = {
            use sha2::Digest;
            files::hex(&sha2::Sha256::digest(&*config)).into()
        };
    });
    assert!(text.contains("causal_mask_full"), "{text}");
}

#[test]
fn damaged_bytes_never_pass_and_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (_, archive) = packed(dir.path());
    let good = fs::read(&archive).unwrap();
    let bad = dir.path().join("bad.zip");
    for cut in [0, 1, 21, 22, 100, good.len() / 2, good.len() - 1] {
        fs::write(&bad, &good[..cut]).unwrap();
        refused(&bad);
    }
    // Every 4 KB one bit: content, headers and directory.
    for at in (0..good.len())
        .step_by(4099)
        .chain(good.len() - 400..good.len())
    {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&bad, &bytes).unwrap();
        let out = dir.path().join("out");
        if unpack(&bad, &out, false, &NoProgress).is_ok() {
            // A bit that says nothing about the content (a date, a version): what came out is the bundle all the same.
            assert_same(&dir.path().join("b"), &out);
            fs::remove_dir_all(&out).unwrap();
        }
        assert!(!out.exists());
    }
    assert!(matches!(
        refused(&dir.path().join("absent.zip")),
        Error::Missing { .. }
    ));
}

#[test]
fn links_are_not_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let (_, archive) = packed(dir.path());
    let (good, manifest) = take_apart(&archive);
    let made = dir.path().join("made.zip");
    let mut zip = ZipWriter::new(File::create(&made).unwrap());
    let options = SimpleFileOptions::default();
    for (name, bytes) in &good {
        if name == "hf_model/config.json" {
            zip.add_symlink(name, String::from_utf8_lossy(bytes), options)
                .unwrap();
        } else {
            zip.start_file(name, options).unwrap();
            zip.write_all(bytes).unwrap();
        }
    }
    zip.start_file(MANIFEST, options).unwrap();
    zip.write_all(&serde_json::to_vec(&manifest).unwrap())
        .unwrap();
    zip.finish().unwrap();
    assert!(refused(&made).to_string().contains("not a plain file"));
}
