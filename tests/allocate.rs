//! Widths per tensor: what is predicted is what is written and measured, and a budget is kept.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use gemma_coreml::allocate::{
    Allocation, Budget, Error, Measurements, Settings, Unit, WIDTHS, choose, measure,
    measure_or_read,
};
use gemma_coreml::bundle::Bundle;
use gemma_coreml::calibrate::{self, Source, Stats, calibrate};
use gemma_coreml::checkpoint::{Checkpoint, Tokenizer};
use gemma_coreml::convert::{self, Grids, convert, own_weights, resolve};
use gemma_coreml::evaluate::batched::{Batched, BundleWeights};
use gemma_coreml::evaluate::metrics::kl_divergence;
use gemma_coreml::gemma::ModelPlan;
use gemma_coreml::gemma::reference::{Keep, Reference, WeightSource};
use gemma_coreml::progress::NoProgress;
use gemma_coreml::quantize::Scheme;
use gemma_coreml::recipe::Recipe;

#[path = "common/fixtures.rs"]
mod fixtures;
use fixtures::fixture;

/// Tokens that sensitivities are measured over.
const TOKENS: usize = 40;
/// A mean of divergences in f64, of logits that f32 sums make in the same order, relative.
const KL: f64 = 1e-6;
/// A sum of the bytes of many tensors as f64.
const ROUNDING: f64 = 1e-9;
/// What weight files may have less than predicted where different tensors have the same bytes: blobs of norms, palettes.
const SHARED: u64 = 4096;

fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

fn plan(checkpoint: &Checkpoint) -> ModelPlan {
    ModelPlan::new(checkpoint.config()).unwrap()
}

fn ids(model: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(fixture("nano").join("calibration.txt")).unwrap();
    let tokenizer = Tokenizer::open(&fixture(model)).unwrap();
    let mut ids = tokenizer.encode(&text, true).unwrap();
    ids.truncate(TOKENS);
    ids
}

fn stats(model: &str) -> Stats {
    let dir = tempfile::tempdir().unwrap();
    let (file, source) = (dir.path().join("stats"), Source::Text(vec![ids(model)]));
    let options = calibrate::Options::default();
    calibrate(&checkpoint(model), &source, &options, &file, &NoProgress).unwrap()
}

/// A recipe of 3 bits with what statistics are for, short of compensation.
fn recipe(of: &str) -> Recipe {
    let text = Recipe::builtin(of).unwrap().source;
    let text = text.replace(
        "[quantize]\n",
        "[quantize]\nimportance = true\nscale = true\n",
    );
    Recipe::parse(of, &text).unwrap()
}

fn settings<'a>(recipe: &'a Recipe, stats: &'a Stats, ids: Option<&'a [u32]>) -> Settings<'a> {
    Settings {
        recipe,
        calibration: stats,
        ids,
        widths: &WIDTHS,
        probe: 3,
        threads: 2,
    }
}

/// nano with its statistics and measurements, made once.
struct Nano {
    checkpoint: Checkpoint,
    plan: ModelPlan,
    recipe: Recipe,
    stats: Arc<Stats>,
    measured: Measurements,
}

fn nano() -> &'static Nano {
    static NANO: OnceLock<Nano> = OnceLock::new();
    NANO.get_or_init(|| {
        let (checkpoint, stats, recipe) = (checkpoint("nano"), stats("nano"), recipe("w3"));
        let ids = ids("nano");
        let settings = settings(&recipe, &stats, Some(&ids));
        Nano {
            measured: measure(&checkpoint, &settings, &NoProgress).unwrap(),
            plan: plan(&checkpoint),
            stats: Arc::new(stats),
            checkpoint,
            recipe,
        }
    })
}

impl Nano {
    fn choose(&self, budget: Budget) -> Allocation {
        choose(&self.plan, &self.recipe, &self.measured, budget, None).unwrap()
    }
}

fn converted(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    stats: &Arc<Stats>,
    out: &Path,
) -> convert::Report {
    let options = convert::Options {
        calibration: Some(stats.clone()),
        force: true,
        ..convert::Options::default()
    };
    convert(checkpoint, recipe, out, &options, &NoProgress).unwrap()
}

/// Bytes of the weight files of a bundle, of packages that share one those of the first.
fn weight_bytes(plan: &ModelPlan, recipe: &Recipe, out: &Path) -> u64 {
    let chunks = resolve(plan, recipe, &Grids::default()).unwrap();
    let own: Vec<&str> = own_weights(&chunks).map(|c| c.spec.name.as_str()).collect();
    let bundle = Bundle::open(out).unwrap();
    let packages = bundle.packages().filter(|p| own.contains(&p.name.as_str()));
    packages.map(|p| p.package.weight_bytes()).sum()
}

/// The schemes that the recipe gives are those that were chosen, and what had no choice has what it had.
fn check_schemes(plan: &ModelPlan, given: &Recipe, made: &Allocation) {
    let read = Recipe::parse("read back", &made.recipe.source).unwrap();
    let chosen: BTreeMap<&str, Scheme> = made
        .tensors
        .iter()
        .map(|t| (t.tensor.as_str(), t.scheme))
        .collect();
    let (new, old) = (
        resolve(plan, &read, &Grids::default()).unwrap(),
        resolve(plan, given, &Grids::default()).unwrap(),
    );
    let weights = |chunks: Vec<convert::ResolvedChunk>| -> Vec<convert::Resolved> {
        chunks.into_iter().flat_map(|c| c.weights).collect()
    };
    let (new, old) = (weights(new), weights(old));
    assert_eq!(new.len(), old.len());
    for (new, old) in new.iter().zip(&old) {
        let name = old.binding.tensor.as_str();
        let expected = chosen.get(name).unwrap_or(&old.scheme);
        assert_eq!(new.scheme, *expected, "{name}");
    }
}

#[test]
fn budgets_of_bytes_are_kept_by_the_files_written() {
    let nano = nano();
    // To the byte: the least is what is written with every width the smallest.
    let least = match choose(
        &nano.plan,
        &nano.recipe,
        &nano.measured,
        Budget::Bytes(1000),
        None,
    ) {
        Err(Error::Budget { least_bytes, .. }) => least_bytes,
        other => panic!("{other:?}"),
    };
    let dir = tempfile::tempdir().unwrap();
    for budget in [least, least + 1, 1_000_000, 1_100_000] {
        let made = nano.choose(Budget::Bytes(budget));
        assert_eq!(made.budget, Budget::Bytes(budget));
        let out = dir.path().join("bundle");
        converted(&nano.checkpoint, &made.recipe, &nano.stats, &out);
        let bytes = weight_bytes(&nano.plan, &made.recipe, &out);
        let predicted = made.size.weight_bytes;
        assert!(
            bytes <= budget && predicted <= budget,
            "{bytes} {predicted} {budget}"
        );
        assert!(
            bytes <= predicted && predicted <= bytes + SHARED,
            "{bytes} written, {predicted} predicted"
        );
        check_schemes(&nano.plan, &nano.recipe, &made);
    }
    // The least is the least: every width is the smallest.
    assert!(
        nano.choose(Budget::Bytes(least))
            .tensors
            .iter()
            .all(|t| t.bits == 2)
    );
    let one_less = choose(
        &nano.plan,
        &nano.recipe,
        &nano.measured,
        Budget::Bytes(least - 1),
        None,
    );
    assert!(
        matches!(one_less, Err(Error::Budget { .. })),
        "{one_less:?}"
    );
}

#[test]
fn bits_per_weight_are_those_of_a_conversion() {
    let nano = nano();
    let dir = tempfile::tempdir().unwrap();
    for bits in [2.5, 3.25] {
        let made = nano.choose(Budget::BitsPerWeight(bits));
        assert_eq!(made.name, format!("mixed-{bits}"));
        assert_eq!(made.recipe.name, made.name);
        let out = dir.path().join("bundle");
        let report = converted(&nano.checkpoint, &made.recipe, &nano.stats, &out);
        // As a sweep counts them.
        let weights = report.tensors.iter().filter(|t| t.reason != "table");
        let (mut bytes, mut elements) = (0, 0);
        for weight in weights {
            bytes += weight.bytes;
            elements += weight.elements;
        }
        let got = 8.0 * bytes as f64 / elements as f64;
        assert!((got - made.size.bits_per_weight).abs() < ROUNDING);
        // The rest is less than the smallest step of a tensor: at most a fiftieth of a bit here.
        assert!(got <= bits && got > bits - 0.02, "{got} for {bits}");
        check_schemes(&nano.plan, &nano.recipe, &made);
    }
}

#[test]
fn more_bytes_never_cost_more() {
    let nano = nano();
    let mut last = f64::INFINITY;
    for step in 0..60 {
        let made = nano.choose(Budget::BitsPerWeight(2.2 + 0.1 * f64::from(step)));
        let sum: f64 = made.tensors.iter().map(|t| t.cost).sum();
        assert!((sum - made.size.cost).abs() <= ROUNDING * sum);
        assert!(made.size.cost <= last, "{} after {last}", made.size.cost);
        last = made.size.cost;
        let shares: f64 = made.tensors.iter().map(|t| t.share).sum();
        assert!((shares - 1.0).abs() < ROUNDING);
    }
    let most = nano.choose(Budget::BitsPerWeight(16.0));
    assert!(most.tensors.iter().all(|t| t.bits == 8));
    // What the recipe itself costs: 3 bits everywhere, where sensitivities were measured.
    let given: f64 = nano.measured.tensors.iter().map(|t| t.sensitivity).sum();
    assert!((most.given.cost - given).abs() <= ROUNDING * given);
    assert!(
        nano.choose(Budget::Bytes(most.given.weight_bytes))
            .size
            .cost
            < given
    );
}

/// A tensor of a bundle in the place of the checkpoint's.
struct FromBundle<'a> {
    checkpoint: &'a Checkpoint,
    bundle: &'a BundleWeights,
    tensor: &'a str,
}

impl WeightSource for FromBundle<'_> {
    fn read(
        &self,
        name: &str,
        start: usize,
        out: &mut [f32],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if name == self.tensor {
            return self.bundle.read(name, start, out);
        }
        let view = self
            .checkpoint
            .tensor(name, self.checkpoint.shape(name).unwrap())?;
        Ok(view.read_f32(start..start + out.len(), out)?)
    }
}

/// Sensitivities are the divergences that the tensors of a converted bundle cause, and the sensitive get more bits.
#[test]
fn sensitive_tensors_get_more_bits() {
    let nano = nano();
    // Folds change more than one tensor, so this is without them.
    let mut plain = Recipe::builtin("w3").unwrap().source;
    plain = plain.replace("[quantize]\n", "[quantize]\nimportance = true\n");
    let plain = Recipe::parse("plain", &plain).unwrap();
    let ids = ids("nano");
    let settings = settings(&plain, &nano.stats, Some(&ids));
    let measured = measure(&nano.checkpoint, &settings, &NoProgress).unwrap();
    assert_eq!((measured.unit, measured.tokens), (Unit::Kl, TOKENS));

    let dir = tempfile::tempdir().unwrap();
    converted(
        &nano.checkpoint,
        &plain,
        &nano.stats,
        dir.path().join("b").as_path(),
    );
    let bundle = Arc::new(Bundle::open(&dir.path().join("b")).unwrap());
    let Batched::Fit(weights) = BundleWeights::find(&bundle, &nano.plan).unwrap() else {
        panic!("the reference's forward has every weight of swa4");
    };
    let keep = Keep {
        all_logits: true,
        hidden: false,
    };
    let logits = |reference: Reference<'_>| {
        let mut cache = reference.cache();
        reference.forward(&ids, &mut cache, keep).unwrap().logits
    };
    let exact = logits(Reference::load(&nano.checkpoint).unwrap());
    let kl = |tensor: &str| {
        let source = FromBundle {
            checkpoint: &nano.checkpoint,
            bundle: &weights,
            tensor,
        };
        let got = logits(Reference::load_from(&nano.checkpoint, &source).unwrap());
        let rows = exact.iter().zip(&got);
        rows.map(|(p, q)| kl_divergence(p, q)).sum::<f64>() / ids.len() as f64
    };
    let made = choose(
        &nano.plan,
        &plain,
        &measured,
        Budget::BitsPerWeight(3.0),
        None,
    )
    .unwrap();
    let of = |name: &str| made.tensors.iter().find(|t| t.tensor == name).unwrap();
    // All of one shape but the head, which is larger than any and the most sensitive.
    let gates = |i: usize| format!("layers.{i}.mlp.gate_proj.weight");
    let mut gates: Vec<(f64, u8)> = [0, 2, 5]
        .map(gates)
        .iter()
        .map(|name| {
            let (expected, got) = (kl(name), of(name).sensitivity);
            assert!(
                (got - expected).abs() <= KL * expected,
                "{name}: {got} {expected}"
            );
            (expected, of(name).bits)
        })
        .collect();
    gates.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(gates.is_sorted_by_key(|(_, bits)| *bits), "{gates:?}");
    let head = "embed_tokens.weight";
    let (expected, got) = (kl(head), of(head).sensitivity);
    assert!((got - expected).abs() <= KL * expected, "{got} {expected}");
    assert!(
        expected > gates[2].0 && of(head).bits > gates[2].1,
        "{gates:?}"
    );
    assert!(of(head).bits > gates[0].1);
}

/// Without forward passes: the same errors, and a sensitivity that is the relative error times the share of the weights.
#[test]
fn relative_errors_need_no_text() {
    let nano = nano();
    let fast = settings(&nano.recipe, &nano.stats, None);
    let fast = measure(&nano.checkpoint, &fast, &NoProgress).unwrap();
    assert_eq!((fast.unit, fast.tokens), (Unit::RelativeError, 0));
    assert_eq!(fast.tensors.len(), nano.measured.tensors.len());
    let chunks = resolve(&nano.plan, &nano.recipe, &Grids::default()).unwrap();
    let weights = || own_weights(&chunks).flat_map(|c| &c.weights);
    let of = |name: &str| {
        weights()
            .find(|w| w.binding.tensor == name)
            .unwrap()
            .elements
    };
    let all: u64 = fast.tensors.iter().map(|t| of(&t.tensor)).sum();
    for (fast, run) in fast.tensors.iter().zip(&nano.measured.tensors) {
        assert_eq!((&fast.errors, fast.energy), (&run.errors, run.energy));
        let expected = fast.errors[&3] / fast.energy * of(&fast.tensor) as f64 / all as f64;
        assert!((fast.sensitivity - expected).abs() <= ROUNDING * expected);
        assert!(fast.errors[&3] < fast.energy && expected > 0.0);
    }
    let budget = Budget::BitsPerWeight(3.25);
    let made = choose(&nano.plan, &nano.recipe, &fast, budget, None).unwrap();
    assert!(made.size.cost < made.given.cost && made.size.bits_per_weight <= 3.25);
}

/// Layouts whose packages share weight files or look tokens up in the head's weight, experts, and no per-layer embeddings.
#[test]
fn shared_weights_count_once() {
    for (model, of) in [
        ("dense-tiny", "w3"),
        ("dense-tiny", "lite2"),
        ("dense-tiny", "monolithic"),
        ("dense-tiny", "prefill-16"),
        ("dense-tiny", "prefill-combined"),
        ("moe-tiny", "w3"),
    ] {
        let (checkpoint, stats) = (checkpoint(model), stats(model));
        let plan = plan(&checkpoint);
        let rule = "[[quantize.rules]]\npattern = '^embed'\nscheme = \"palette4-tensor\"\n";
        let text = recipe(of).source + rule;
        let recipe = Recipe::parse(of, &text).unwrap();
        let ids = ids(model);
        // What runs the model is the same for all; the lookup is not.
        let ids = ["lite2", "monolithic"].contains(&of).then_some(&ids[..]);
        let settings = settings(&recipe, &stats, ids);
        let measured = measure(&checkpoint, &settings, &NoProgress).unwrap();
        assert_eq!(measured.tokens, ids.map_or(0, <[u32]>::len));
        let mut names: Vec<&str> = measured.tensors.iter().map(|t| t.tensor.as_str()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{model} {of}");
        assert!(names.contains(&"embed_tokens.weight"), "{model} {of}");
        if model == "moe-tiny" {
            assert!(names.iter().any(|n| n.contains("experts")), "{names:?}");
        }
        let made = choose(
            &plan,
            &recipe,
            &measured,
            Budget::BitsPerWeight(6.0),
            Some("made"),
        )
        .unwrap();
        assert_eq!(made.recipe.name, "made");
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("b");
        let stats = Arc::new(stats);
        let report = converted(&checkpoint, &made.recipe, &stats, &out);
        let (bytes, predicted) = (
            weight_bytes(&plan, &made.recipe, &out),
            made.size.weight_bytes,
        );
        assert!(
            bytes <= predicted && predicted <= bytes + SHARED,
            "{model} {of}: {bytes} written, {predicted} predicted"
        );
        let weights = report.tensors.iter().filter(|t| t.reason != "table");
        let sums = weights.fold((0, 0), |(b, e), t| (b + t.bytes, e + t.elements));
        let bits = 8.0 * sums.0 as f64 / sums.1 as f64;
        assert!(
            (bits - made.size.bits_per_weight).abs() < ROUNDING,
            "{model} {of}"
        );
        check_schemes(&plan, &recipe, &made);
    }
}

#[test]
fn threads_and_a_file_between_change_nothing() {
    let (model, recipe) = ("dense-tiny", recipe("w3"));
    let (checkpoint, stats, ids) = (checkpoint(model), stats(model), ids(model));
    let made = |threads: usize| {
        let settings = Settings {
            threads,
            ..settings(&recipe, &stats, Some(&ids))
        };
        measure(&checkpoint, &settings, &NoProgress).unwrap()
    };
    let one = made(1);
    assert_eq!(one, made(2));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("new/measured.json");
    let settings = settings(&recipe, &stats, Some(&ids));
    let kept = measure_or_read(&checkpoint, &settings, &file, &NoProgress).unwrap();
    let again = measure_or_read(&checkpoint, &settings, &file, &NoProgress).unwrap();
    assert_eq!(kept, again);
    let plan = plan(&checkpoint);
    let text = |m: &Measurements| {
        let made = choose(&plan, &recipe, m, Budget::BitsPerWeight(6.0), None).unwrap();
        made.recipe.source
    };
    assert_eq!(text(&kept), text(&one));
    // Of something else.
    for other in [
        Settings {
            probe: 4,
            ..settings.clone()
        },
        Settings {
            widths: &[2, 4],
            ..settings.clone()
        },
        Settings {
            ids: Some(&ids[..20]),
            ..settings.clone()
        },
        Settings {
            ids: None,
            ..settings.clone()
        },
    ] {
        let error = measure_or_read(&checkpoint, &other, &file, &NoProgress).unwrap_err();
        assert!(matches!(error, Error::Measurements { .. }), "{error}");
    }
    std::fs::write(&file, "{}").unwrap();
    let error = measure_or_read(&checkpoint, &settings, &file, &NoProgress).unwrap_err();
    assert!(matches!(error, Error::Measurements { .. }), "{error}");
}

#[test]
fn what_cannot_be_done_is_named() {
    let nano = nano();
    let tiny = checkpoint("dense-tiny");
    let measured = |checkpoint: &Checkpoint, settings: &Settings<'_>| {
        measure(checkpoint, settings, &NoProgress).unwrap_err()
    };
    let fast = settings(&nano.recipe, &nano.stats, None);
    assert!(matches!(
        measured(&tiny, &fast),
        Error::Convert(e) if matches!(*e, convert::Error::OtherCalibration { .. })
    ));
    let five = Settings {
        widths: &[2, 5],
        ..fast.clone()
    };
    assert!(matches!(
        measured(&nano.checkpoint, &five),
        Error::Width { bits: 5 }
    ));
    let seven = Settings {
        probe: 7,
        ..fast.clone()
    };
    assert!(matches!(
        measured(&nano.checkpoint, &seven),
        Error::Width { bits: 7 }
    ));
    let none = Settings {
        widths: &[],
        ..fast.clone()
    };
    assert!(matches!(measured(&nano.checkpoint, &none), Error::NoWidths));
    let short = Settings {
        ids: Some(&[2]),
        ..fast.clone()
    };
    assert!(matches!(measured(&nano.checkpoint, &short), Error::Run(_)));
    let fp16 = Recipe::builtin("swa4-fp16").unwrap();
    let fp16 = Settings {
        recipe: &fp16,
        ..fast
    };
    assert!(matches!(
        measured(&nano.checkpoint, &fp16),
        Error::NothingToChoose { .. }
    ));
    let chosen =
        |budget, name| choose(&nano.plan, &nano.recipe, &nano.measured, budget, name).unwrap_err();
    for bits in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = chosen(Budget::BitsPerWeight(bits), None);
        assert!(matches!(error, Error::BitsPerWeight { .. }), "{error}");
    }
    let error = chosen(Budget::BitsPerWeight(1.5), None);
    let Error::Budget { least_bits, .. } = error else {
        panic!("{error}");
    };
    // What the error names is enough, up to the digits of a decimal number.
    nano.choose(Budget::BitsPerWeight(least_bits + ROUNDING));
    assert!(matches!(
        chosen(Budget::BitsPerWeight(3.0), Some("a b")),
        Error::Recipe(_)
    ));
    let other = Recipe::builtin("lite2").unwrap();
    let other = choose(
        &plan(&tiny),
        &other,
        &nano.measured,
        Budget::BitsPerWeight(5.0),
        None,
    );
    assert!(matches!(other, Err(Error::NotMeasured { .. })), "{other:?}");
}
