//! The one list of cases: every recipe on every fixture, with what must come of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gemma_coreml::bundle::Bundle;
use gemma_coreml::calibrate::{self, Framing, Source, Stats, TextOptions, sequences};
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::convert::{self, Options};
use gemma_coreml::evaluate::parity::Comparison;
use gemma_coreml::evaluate::{BundleSubject, ExactRows, RowSource, open_decoder};
use gemma_coreml::evaluate::{Trace, reference_file::ReferenceFile};
use gemma_coreml::mil::OpType;
use gemma_coreml::package::ReadOp;
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::Recipe;
use gemma_coreml::runtime::{DecodeOptions, Decoder, Precision};

use crate::fixtures::fixtures;

/// Context of the bundles: past every fixture's window several times over, and longer than the references.
pub const CONTEXT: usize = 208;

/// The recipes, with numbers that mean something at [`CONTEXT`]: built-in names, or with another number at their end.
pub const RECIPES: [&str; 21] = [
    "swa4-fp16",
    "swa4-8k",
    "swa3",
    "swa3-topology1",
    "swa2",
    "swa1",
    "lite2",
    "monolithic",
    "stateless-full",
    "wfa-208",
    "flash-7",
    "flash-64",
    "stateful",
    "stateful-3chunk",
    "stateful-1chunk",
    "stateful-mask",
    "padded-kv",
    "stateful-padded",
    "prefill-48",
    "prefill-combined",
    "verify-3",
];

/// Whether a recipe is not for a fixture, and a word of the reason that it must give.
pub fn refused(recipe: &str, fixture: &str) -> Option<&'static str> {
    let several = ["prefill", "verify"].iter().any(|f| recipe.starts_with(f));
    (several && fixture == "moe-tiny").then_some("it has experts")
}

/// Last component of a fixture's path.
pub fn name(fixture: &Path) -> String {
    fixture.file_name().unwrap().to_string_lossy().into_owned()
}

/// Every fixture with a reference.
pub fn all_fixtures() -> Vec<PathBuf> {
    fixtures("reference.safetensors")
}

/// A recipe with every weight in fp16, so that what differs from the reference is the graph.
pub fn unquantized(recipe: &str) -> Recipe {
    let mut recipe = Recipe::builtin(recipe).unwrap_or_else(|e| panic!("{e}"));
    if recipe.name == "prefill-combined" {
        // Sizes that a small context holds, one within the window of the small fixtures, one beyond.
        let text = recipe.source.replace("prefill-64", "prefill-12");
        let text = text.replace("prefill-512", "prefill-40");
        recipe = Recipe::parse("prefill-combined", &text).unwrap();
    }
    recipe.with_rules(&[".*=fp16".parse().unwrap()]).unwrap()
}

/// The unquantized bundle of a fixture by a recipe, converted once per test program.
pub fn bundle(fixture: &Path, recipe: &str) -> Result<Arc<Bundle>, String> {
    bundle_of(fixture, &unquantized(recipe), recipe, CONTEXT)
}

/// As [`bundle`], for any recipe and context; `label` tells it from others.
pub fn bundle_of(
    fixture: &Path,
    recipe: &Recipe,
    label: &str,
    context: usize,
) -> Result<Arc<Bundle>, String> {
    type Made = BTreeMap<(PathBuf, String, usize), Result<Arc<Bundle>, String>>;
    static MADE: Mutex<Made> = Mutex::new(BTreeMap::new());
    let key = (fixture.to_path_buf(), label.to_string(), context);
    let mut made = MADE.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(bundle) = made.get(&key) {
        return bundle.clone();
    }
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME"));
    std::fs::create_dir_all(&root).unwrap();
    let out = root.join(format!("{}-{label}-{context}", name(fixture)));
    let checkpoint = Checkpoint::open(fixture).unwrap();
    let options = Options {
        context: Some(context),
        force: true,
        calibration: recipe
            .quantize
            .calibrated_by()
            .is_some()
            .then(|| statistics(&checkpoint)),
        ..Options::default()
    };
    let result = convert::convert(&checkpoint, recipe, &out, &options, &NoProgress)
        .map_err(|e| chain(&e))
        .and_then(|_| Bundle::open(&out).map_err(|e| chain(&e)))
        .map(Arc::new);
    made.insert(key, result.clone());
    result
}

/// Statistics of a checkpoint over its calibration text, or over a few ids where it has none; measured once.
fn statistics(checkpoint: &Checkpoint) -> Arc<Stats> {
    static KNOWN: Mutex<BTreeMap<PathBuf, Arc<Stats>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap();
    let stats = known
        .entry(checkpoint.dir().to_path_buf())
        .or_insert_with(|| {
            let text = std::fs::read_to_string(checkpoint.dir().join("calibration.txt"));
            let cut = TextOptions {
                framing: Framing::Whole,
                length: 512,
                max_tokens: 16_384,
            };
            let source = Source::Text(match text {
                Ok(text) => sequences(checkpoint, &text, &cut).unwrap(),
                Err(_) => vec![(2..100).collect()],
            });
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("stats.safetensors");
            let options = calibrate::Options {
                full: true,
                ..Default::default()
            };
            // The file stays mapped when its directory goes.
            Arc::new(
                calibrate::calibrate(checkpoint, &source, &options, &out, &NoProgress).unwrap(),
            )
        });
    stats.clone()
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// The bundle, which must be there.
pub fn made(fixture: &Path, recipe: &str) -> Arc<Bundle> {
    bundle(fixture, recipe).unwrap_or_else(|e| panic!("{} {recipe}: {e}", name(fixture)))
}

pub fn references(fixture: &Path) -> Vec<Trace> {
    ReferenceFile::open(&fixture.join("reference.safetensors"))
        .and_then(|f| f.read_all())
        .unwrap()
}

/// The checkpoint's own rows.
pub fn exact(fixture: &Path) -> RowSource {
    let checkpoint = Arc::new(Checkpoint::open(fixture).unwrap());
    RowSource::Exact(ExactRows::new(checkpoint).unwrap())
}

/// A decoder in f32 over the bundle's own tables that keeps the logits.
pub fn decoder(bundle: &Arc<Bundle>) -> Decoder {
    let options = DecodeOptions {
        threads: 1,
        keep: vec!["logits".to_string()],
        ..DecodeOptions::default()
    };
    open_decoder(bundle, Precision::F32, &RowSource::Bundle, options)
        .unwrap_or_else(|e| panic!("{}: {}", bundle.dir().display(), chain(&e)))
}

/// A subject in f32 over exact rows that keeps layer states.
pub fn subject(bundle: &Arc<Bundle>, fixture: &Path) -> BundleSubject {
    BundleSubject::open(bundle, Precision::F32, &exact(fixture), true, 1)
        .unwrap_or_else(|e| panic!("{}: {}", bundle.dir().display(), chain(&e)))
}

/// A row of the table of recipes.
pub fn row(recipe: &str, fixture: &str, bundle: &Bundle, c: &Comparison) -> String {
    let equal: usize = c.greedy.iter().map(|g| g.equal).sum();
    let of: usize = c.greedy.iter().map(|g| g.of).sum();
    let weights: u64 = bundle.packages().map(|p| p.package.weight_bytes()).sum();
    let models: u64 = bundle.packages().map(|p| p.package.model_bytes()).sum();
    let ops = bundle.packages().map(|p| {
        let functions = p.package.functions().values();
        let counts = functions.map(|f| {
            let executed = |op: &&ReadOp| op.op_type != OpType::Const && !op.op_type.is_constexpr();
            f.ops.iter().filter(executed).count().to_string()
        });
        counts.collect::<Vec<_>>().join("+")
    });
    format!(
        "| {recipe} | {fixture} | {equal}/{of} | {:.7} / {:.7} | {} | {weights} | {models} | {} |",
        c.logits.cosine_mean,
        c.logits.cosine_min,
        bundle.packages().count(),
        ops.collect::<Vec<_>>().join(", "),
    )
}
