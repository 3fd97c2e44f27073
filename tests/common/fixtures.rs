//! The fixtures, and bundles made of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gemma_coreml::bundle::Bundle;
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::convert::{self, Options};
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::Recipe;

/// Context of the test bundles: past every fixture's window and longer than its references.
pub const CONTEXT: usize = 192;

/// Checkpoints with reference outputs, in name order.
pub fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut found: Vec<PathBuf> = std::fs::read_dir(root)
        .expect("fixtures/")
        .map(|entry| entry.expect("fixtures/").path())
        .filter(|dir| dir.join("reference.safetensors").is_file())
        .collect();
    found.sort();
    assert!(found.len() >= 4, "only {} fixtures have references", found.len());
    found
}

/// The fixture of that name.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// Last component of a fixture's path.
pub fn name(fixture: &Path) -> String {
    fixture.file_name().unwrap().to_string_lossy().into_owned()
}

/// The bundle of a fixture by a built-in recipe, converted once per test program.
pub fn bundle(fixture: &Path, recipe: &str) -> Arc<Bundle> {
    static MADE: Mutex<BTreeMap<(PathBuf, String), Arc<Bundle>>> = Mutex::new(BTreeMap::new());
    let key = (fixture.to_path_buf(), recipe.to_string());
    let mut made = MADE.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(bundle) = made.get(&key) {
        return bundle.clone();
    }
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME"));
    std::fs::create_dir_all(&root).unwrap();
    let out = root.join(format!("{}-{recipe}", name(fixture)));
    let checkpoint = Checkpoint::open(fixture).unwrap();
    let options = Options {
        context: Some(CONTEXT),
        force: true,
        ..Options::default()
    };
    let recipe = Recipe::builtin(recipe).unwrap();
    convert::convert(&checkpoint, &recipe, &out, &options, &NoProgress)
        .unwrap_or_else(|e| panic!("{}: {e}", out.display()));
    let bundle = Arc::new(Bundle::open(&out).unwrap());
    made.insert(key, bundle.clone());
    bundle
}
