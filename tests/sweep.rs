//! Sweeps over fixtures: figures equal those of `evaluate_text`, results are kept and recomputed, faults are named, the page is
//! well-formed.

use std::path::Path;
use std::sync::Arc;

use gemma_coreml::bundle::Bundle;
use gemma_coreml::checkpoint::{Checkpoint, Tokenizer};
use gemma_coreml::convert::{self, Options};
use gemma_coreml::evaluate::batched::{Batched, BundleWeights};
use gemma_coreml::evaluate::metrics::LogitStats;
use gemma_coreml::evaluate::subject::Subject;
use gemma_coreml::evaluate::text::{evaluate_text, windows};
use gemma_coreml::evaluate::{BundleSubject, ReferenceSubject, RowSource};
use gemma_coreml::gemma::ModelPlan;
use gemma_coreml::gemma::reference::Keep;
use gemma_coreml::progress::{NoProgress, Progress};
use gemma_coreml::recipe::Recipe;
use gemma_coreml::runtime::Precision;
use gemma_coreml::sweep::{
    self, CHECK_FLOOR, CHECK_SHARE, Error, EvaluationPath, Event, Settings, Sweep, read_recall,
};

#[path = "common/fixtures.rs"]
mod fixtures;
use fixtures::fixture;

/// Largest difference of a logit, batched against op by op: f32 sums in another order, epsilon in fp16. The softcap is 30.
const LOGITS: f32 = 1e-3;
/// Mean KL between the two.
const KL: f64 = 1e-9;
/// Positions of the windows: past every window of the fixtures.
const CONTEXT: usize = 80;
/// Tokens of the text: three windows, the last one short.
const TOKENS: usize = 200;

fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

/// The first tokens of nano's text, by the tokenizer of the fixture.
fn text_ids(model: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(fixture("nano").join("eval.txt")).unwrap();
    let tokenizer = Tokenizer::open(&fixture(model)).unwrap();
    let mut ids = tokenizer.encode(&text, true).unwrap();
    ids.truncate(TOKENS);
    assert_eq!(ids.len(), TOKENS);
    ids
}

fn settings(model: &str, recipes: &[&str]) -> Settings {
    let prompt = "Once there was";
    let tokenizer = Tokenizer::open(&fixture(model)).unwrap();
    Settings {
        model: model.into(),
        model_id: None,
        recipes: recipes
            .iter()
            .map(|r| Recipe::builtin(r).unwrap())
            .collect(),
        ids: text_ids(model),
        context: CONTEXT,
        prompt: (prompt.into(), tokenizer.encode(prompt, true).unwrap()),
        sample_tokens: 8,
        recall: Vec::new(),
        check_tokens: 48,
        calibration: sweep::Calibrations::default(),
        keep: false,
        threads: 2,
    }
}

/// Runs a sweep; also returns the recipes that were not kept from an earlier run.
fn run(model: &str, settings: &Settings, dir: &Path) -> (Sweep, Vec<String>) {
    let mut begun = Vec::new();
    let mut tell = |event: Event<'_>| {
        if let Event::Begun { name, .. } = event {
            begun.push(name.to_string());
        }
    };
    let sweep = sweep::sweep(&checkpoint(model), settings, dir, &NoProgress, &mut tell).unwrap();
    (sweep, begun)
}

fn fails(model: &str, settings: &Settings, dir: &Path) -> Error {
    sweep::sweep(&checkpoint(model), settings, dir, &NoProgress, &mut |_| ()).unwrap_err()
}

fn bundle(model: &str, recipe: &Recipe, dir: &Path) -> Arc<Bundle> {
    let out = dir.join(format!("{model}-{}", recipe.name));
    let options = Options {
        context: Some(CONTEXT),
        ..Options::default()
    };
    convert::convert(&checkpoint(model), recipe, &out, &options, &NoProgress).unwrap();
    Arc::new(Bundle::open(&out).unwrap())
}

/// Whether two mean KLs agree as a sweep wants them to.
fn agree(a: f64, b: f64) -> bool {
    (a - b).abs() <= CHECK_SHARE * a.max(b) + CHECK_FLOOR
}

/// Every geometry and every kind of storage: logits of the batched forward against the interpreter, and the KL between them.
#[test]
fn batched_logits_are_those_of_the_packages() {
    let dir = tempfile::tempdir().unwrap();
    for (model, recipe) in [
        ("nano", "swa4-int4"),
        ("e4b-tiny", "swa4-fp16"),
        ("e4b-tiny", "w4-linear"),
        ("e2b35-tiny", "w3"),
        ("dense-tiny", "w8-linear"),
        ("moe-tiny", "w8-palette"),
        ("textonly-tiny", "swa2"),
        ("e4b-tiny", "stateless-full"),
        ("e4b-tiny", "stateful"),
    ] {
        let (ckpt, recipe) = (checkpoint(model), Recipe::builtin(recipe).unwrap());
        let plan = ModelPlan::new(ckpt.config()).unwrap();
        let bundle = bundle(model, &recipe, dir.path());
        let what = format!("{model} {}", recipe.name);
        let weights = match BundleWeights::find(&bundle, &plan).unwrap() {
            Batched::Fit(weights) => weights,
            Batched::Unfit(reason) => panic!("{what}: {reason}"),
        };
        let reference = weights.reference(&ckpt).unwrap();
        let keep = Keep {
            all_logits: true,
            hidden: false,
        };
        let ids = &text_ids(model)[..CONTEXT];
        let mut cache = reference.cache();
        let batched = reference.forward(ids, &mut cache, keep).unwrap().logits;
        let mut packages =
            BundleSubject::open(&bundle, Precision::F32, &RowSource::Bundle, false, 2).unwrap();
        let (mut worst, mut stats) = (0f32, LogitStats::default());
        for (id, row) in ids.iter().zip(&batched) {
            let logits = packages.step(*id, false).unwrap().logits;
            let pairs = row.iter().zip(&logits);
            worst = pairs.map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
            stats.add(&logits, row);
        }
        let kl = stats.summary().kl_mean;
        println!("{what}: largest difference {worst:.2e}, KL {kl:.2e}");
        assert!(worst <= LOGITS, "{what}: {worst}");
        assert!(kl <= KL, "{what}: {kl}");
    }
}

/// What the reference's forward does not compute is not run by it.
#[test]
fn other_graphs_are_not_batched() {
    let dir = tempfile::tempdir().unwrap();
    for (recipe, reason) in [("wfa-40", "window of 40"), ("monolithic", "look tokens up")] {
        let recipe = Recipe::builtin(recipe).unwrap();
        let bundle = bundle("e4b-tiny", &recipe, dir.path());
        let plan = ModelPlan::new(checkpoint("e4b-tiny").config()).unwrap();
        match BundleWeights::find(&bundle, &plan).unwrap() {
            Batched::Unfit(got) => assert!(got.contains(reason), "{got}"),
            Batched::Fit(_) => panic!("{} was taken", recipe.name),
        }
    }
}

/// A sweep's figures against `evaluate_text`, which steps both models token by token.
fn equals_text_evaluation(model: &str, recipes: &[&str], batched: &[bool]) {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(model, recipes);
    let (sweep, _) = run(model, &settings, dir.path());
    assert!(sweep.disagree.is_empty(), "{:?}", sweep.disagree);
    assert_eq!(sweep.recipes.len(), recipes.len());
    let fed: usize = windows(&settings.ids, CONTEXT)
        .unwrap()
        .iter()
        .map(Vec::len)
        .sum();
    assert_eq!(sweep.tokens, fed);
    assert!(sweep.kl_is_exact);
    let ckpt = checkpoint(model);
    for ((result, recipe), batched) in sweep.recipes.iter().zip(&settings.recipes).zip(batched) {
        assert_eq!(
            result.path == EvaluationPath::Batched,
            *batched,
            "{}",
            result.name
        );
        let bundle = bundle(model, recipe, dir.path());
        let mut reference = ReferenceSubject::load(&ckpt).unwrap();
        let mut packages =
            BundleSubject::open(&bundle, Precision::F32, &RowSource::Bundle, false, 2).unwrap();
        let report =
            evaluate_text(&mut reference, &mut packages, &settings.ids, &mut || ()).unwrap();
        let (got, want) = (result.figures, report.logits);
        println!("{model} {}: {got:?} {want:?}", result.name);
        assert_eq!(got.tokens, report.tokens);
        for (a, b) in [
            (got.kl_mean, want.kl_mean),
            (got.kl_stderr, want.kl_stderr),
            (got.nll_difference.abs(), report.nll_difference.abs()),
        ] {
            assert!(agree(a, b), "{}: {a} {b}", result.name);
        }
        /// Relative difference of perplexities, and share of tokens whose top two logits are as good as equal.
        const PERPLEXITY: f64 = 1e-3;
        const TIES: f64 = 0.011;
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < PERPLEXITY;
        assert!(close(got.perplexity, report.perplexity));
        assert!(close(got.perplexity_reference, report.perplexity_reference));
        assert!((got.top1_agreement - want.top1_agreement).abs() <= TIES);
        let on_disk: u64 = bundle.packages().map(|c| c.package.weight_bytes()).sum();
        assert_eq!(result.weights.weight_bytes, on_disk);
        assert!(result.weights.bundle_bytes > on_disk);
        let sample = result.sample.as_ref().unwrap();
        assert_eq!(sample.ids.len(), settings.sample_tokens);
    }
    // Nothing of a bundle is left, and no half-written file.
    assert_eq!(
        std::fs::read_dir(dir.path().join("bundles"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn figures_are_those_of_the_text_evaluation_on_nano() {
    equals_text_evaluation("nano", &["swa4-int4", "w2"], &[true, true]);
}

#[test]
fn figures_are_those_of_the_text_evaluation_on_a_fixture_with_a_window() {
    equals_text_evaluation("e4b-tiny", &["w3", "wfa-40"], &[true, false]);
}

#[test]
fn recall_and_weight_figures_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let lines = std::fs::read_to_string(fixture("nano").join("recall.jsonl")).unwrap();
    let near: Vec<&str> = lines
        .lines()
        .filter(|l| l.contains("\"near\""))
        .take(3)
        .collect();
    let file = dir.path().join("recall.jsonl");
    std::fs::write(&file, near.join("\n")).unwrap();
    let mut settings = settings("nano", &["swa4-fp16", "w2"]);
    settings.recall = read_recall(&file).unwrap();
    settings.context = 160;
    let (sweep, _) = run("nano", &settings, &dir.path().join("sweep"));
    // METRICS.json: all near facts are recalled by the trained model.
    let base = sweep.recall.as_ref().unwrap();
    assert_eq!((base.right, base.of), (12, 12));
    assert_eq!(base.kinds["near"], [12, 12]);
    let [fp16, w2] = &sweep.recipes[..] else {
        panic!("two recipes")
    };
    assert_eq!(fp16.recall.as_ref(), Some(base));
    assert!(w2.recall.as_ref().unwrap().right <= 12);
    assert_eq!(fp16.sample, sweep.sample);
    assert_eq!(fp16.weights.bits_per_weight, 16.0);
    assert!((2.0..2.2).contains(&w2.weights.bits_per_weight));
    // Each ratio of w2's quantized tensors is near that of all together.
    let all = w2.weights.sqnr_db.unwrap();
    let lossy = w2.weights.tensors.iter().filter(|t| t.scheme != "fp16");
    let each: Vec<f64> = lossy.filter_map(|t| t.sqnr_db).collect();
    assert!(each.iter().any(|db| *db < all) && each.iter().any(|db| *db > all));
    // The front is both, and both were run op by op.
    assert_eq!(sweep.front, ["swa4-fp16", "w2"]);
    assert!(
        sweep
            .recipes
            .iter()
            .all(|r| r.check.is_some_and(|c| c.agrees()))
    );
}

/// The JSON of a sweep, times and all: what is kept is kept to the last digit.
fn json(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("sweep.json")).unwrap()
}

#[test]
fn a_sweep_goes_on_where_it_was_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let settings = settings("dense-tiny", &["swa4-int4", "w2"]);
    let (first, begun) = run("dense-tiny", &settings, dir);
    assert_eq!(begun, ["swa4-int4", "w2"]);
    let whole = json(dir);
    let base = std::fs::metadata(dir.join("base.safetensors")).unwrap();
    let (again, begun) = run("dense-tiny", &settings, dir);
    assert!(begun.is_empty(), "{begun:?}");
    assert_eq!(again, first);
    assert_eq!(json(dir), whole);

    // As if the power went while the second recipe was at work: its result is half written, its bundle half made.
    let result = sweep::result_path(dir, "w2");
    let text = std::fs::read(&result).unwrap();
    std::fs::write(&result, &text[..text.len() / 2]).unwrap();
    std::fs::create_dir_all(dir.join("bundles/.w2.partial/content")).unwrap();
    let (resumed, begun) = run("dense-tiny", &settings, dir);
    assert_eq!(begun, ["w2"]);
    assert_eq!(resumed.recipes[0], first.recipes[0]);
    assert_eq!(resumed.recipes[1].figures, first.recipes[1].figures);
    assert_eq!(resumed.recipes[1].sample, first.recipes[1].sample);
    let same = std::fs::metadata(dir.join("base.safetensors")).unwrap();
    assert_eq!(base.modified().unwrap(), same.modified().unwrap());
}

/// Ends the process' work at a given step by a panic, as a signal would.
struct Falls(std::sync::atomic::AtomicUsize, usize);

impl Progress for Falls {
    fn begin(&self, _label: &str, _total: u64) {}
    fn advance(&self, _amount: u64) {
        let done = self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        assert!(done != self.1, "interrupted");
    }
    fn end(&self) {}
}

#[test]
fn an_interruption_anywhere_loses_one_recipe_at_most() {
    let settings = settings("dense-tiny", &["swa4-int4", "w2"]);
    let whole = tempfile::tempdir().unwrap();
    let (want, _) = run("dense-tiny", &settings, whole.path());
    let steps = Falls(Default::default(), usize::MAX);
    let dir = tempfile::tempdir().unwrap();
    let ckpt = checkpoint("dense-tiny");
    sweep::sweep(&ckpt, &settings, dir.path(), &steps, &mut |_| ()).unwrap();
    let total = steps.0.into_inner();
    let mut lost = Vec::new();
    for part in 1..8 {
        let dir = tempfile::tempdir().unwrap();
        let falls = Falls(Default::default(), total * part / 8);
        let fallen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            sweep::sweep(&ckpt, &settings, dir.path(), &falls, &mut |_| ()).map(|_| ())
        }));
        assert!(fallen.is_err());
        let recipes = settings.recipes.iter();
        let done = recipes.filter(|r| sweep::result_path(dir.path(), &r.name).is_file());
        let done = done.count();
        lost.push(2 - done);
        let (got, begun) = run("dense-tiny", &settings, dir.path());
        assert_eq!(begun.len(), 2 - done);
        for (a, b) in got.recipes.iter().zip(&want.recipes) {
            assert_eq!(
                (a.figures, &a.sample, &a.weights),
                (b.figures, &b.sample, &b.weights)
            );
        }
    }
    assert!(lost.contains(&2) && lost.contains(&1), "{lost:?}");
}

#[test]
fn what_changes_is_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut settings = settings("dense-tiny", &["swa4-int4", "w2"]);
    run("dense-tiny", &settings, dir);
    let text = settings.recipes[1]
        .source
        .replace("palette2-g32", "palette3-g32");
    settings.recipes[1] = Recipe::parse("changed", &text).unwrap();
    let (changed, begun) = run("dense-tiny", &settings, dir);
    assert_eq!(begun, ["w2"]);
    assert!(changed.recipes[1].weights.bits_per_weight > 3.0);
    // One that an earlier sweep had beaten, and did not run op by op, is run so when it is on the front of another sweep.
    settings.recipes.remove(1);
    let path = sweep::result_path(dir, "swa4-int4");
    let mut result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let check = result["check"].take();
    assert!(check.is_object());
    std::fs::write(&path, result.to_string()).unwrap();
    let (alone, begun) = run("dense-tiny", &settings, dir);
    assert!(begun.is_empty());
    assert_eq!(alone.front, ["swa4-int4"]);
    let written: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(written["check"], check);
    settings.ids.truncate(TOKENS / 2);
    let (_, begun) = run("dense-tiny", &settings, dir);
    assert_eq!(begun, ["swa4-int4"]);
}

#[test]
fn faults_are_named_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    let good = settings("moe-tiny", &["swa4-int4"]);
    let with = |change: &dyn Fn(&mut Settings)| {
        let mut settings = good.clone();
        change(&mut settings);
        fails("moe-tiny", &settings, &out)
    };
    let error = with(&|s| s.recipes.push(s.recipes[0].clone()));
    assert!(matches!(error, Error::SameName { name } if name == "swa4-int4"));
    let error = with(&|s| s.recipes.push(Recipe::builtin("verify-3").unwrap()));
    assert!(
        matches!(&error, Error::Convert { recipe, .. } if recipe == "verify-3"),
        "{error}"
    );
    let error = with(&|s| s.recipes.clear());
    assert!(matches!(error, Error::NoRecipes));
    let error = with(&|s| s.context = 100_000);
    assert!(matches!(
        error,
        Error::Context {
            context: 100_000,
            ..
        }
    ));
    let error = with(&|s| s.ids[7] = 1 << 30);
    assert!(matches!(error, Error::TokenId { id, .. } if id == 1 << 30));
    let error = with(&|s| s.sample_tokens = CONTEXT);
    assert!(matches!(error, Error::TooLong { .. }));
    let error = with(&|s| s.recipes = vec![Recipe::load("w8a8").unwrap()]);
    assert!(error.to_string().contains("calibrate"), "{error}");
    let error = with(&|s| s.ids.truncate(1));
    assert!(error.to_string().contains("tokens of the text"), "{error}");
    assert!(!out.exists());

    std::fs::create_dir_all(&out).unwrap();
    let lock = std::fs::File::create(out.join("lock")).unwrap();
    lock.lock().unwrap();
    assert!(matches!(
        fails("moe-tiny", &good, &out),
        Error::Locked { .. }
    ));
}

/// Checks that elements are closed in order, attributes quoted and entities known; returns the text outside of tags.
fn well_formed(page: &str) -> String {
    let mut open: Vec<&str> = Vec::new();
    let mut text = String::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a doctype");
    while let Some(at) = rest.find('<') {
        let (before, tag) = rest.split_at(at);
        assert!(!before.contains('>'), "{before}");
        text.push_str(before);
        let end = tag.find('>').expect("a closed tag");
        let inner = &tag[1..end];
        rest = &tag[end + 1..];
        if let Some(name) = inner.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{inner}");
            continue;
        }
        let (inner, closed) = match inner.strip_suffix('/') {
            Some(inner) => (inner, true),
            None => (inner, false),
        };
        let name = inner.split_whitespace().next().expect("a name");
        assert_eq!(inner.matches('"').count() % 2, 0, "{inner}");
        if !closed {
            open.push(name);
        }
        if name == "style" {
            rest = &rest[rest.find("</style>").expect("the end of the style")..];
        }
    }
    assert!(open.is_empty(), "{open:?}");
    for entity in text.split('&').skip(1) {
        let name = entity.split(';').next().unwrap();
        assert!(
            ["amp", "lt", "gt", "quot", "#39"].contains(&name),
            "&{name}"
        );
    }
    text
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings("dense-tiny", &["swa4-fp16", "swa4-int4"]);
    let text = settings.recipes[1]
        .source
        .replace("what CoreML-LLM ships", "<b>&'ships'</b>");
    settings.recipes[1] = Recipe::parse("marked", &text).unwrap();
    assert!(settings.recipes[1].description.contains("<b>&"));
    settings.model = "a <model> & \"more\"".into();
    let (mut sweep, _) = run("dense-tiny", &settings, dir.path());
    let page = std::fs::read_to_string(dir.path().join("sweep.html")).unwrap();
    let text = well_formed(&page);
    assert!(text.contains("Recipes for a &lt;model&gt; &amp; &quot;more&quot;"));
    assert!(page.contains("&lt;b&gt;&amp;&#39;ships&#39;&lt;/b&gt;") && !page.contains("<b>&"));
    for part in ["http", "url(", "<script", "<link", "src=", "@import", "NaN"] {
        assert!(!page.contains(part), "{part}");
    }
    for name in ["swa4-fp16", "swa4-int4", "mlp.gate_proj", "f32 model"] {
        assert!(text.contains(name), "{name}");
    }
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("viewport"));
    // Three plots of loss against size, wide and narrow; q, o, gate, up and down of every layer (dense-tiny's k and v have no
    // more values than stay fp16).
    assert_eq!(page.matches("<svg").count(), 6 + 5);

    // Figures that are no numbers, no sample, no front: still a page.
    sweep.sample = None;
    sweep.disagree = vec!["swa4-fp16".into()];
    for recipe in &mut sweep.recipes {
        recipe.figures.kl_mean = f64::NAN;
        recipe.weights.tensors.clear();
    }
    let page = sweep::html::page(&sweep);
    assert!(well_formed(&page).contains("do not give the KL"));
}
