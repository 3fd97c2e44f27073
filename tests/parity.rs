//! Bundles against transformers: the bytes on disk, run by the CPU runtime, give the reference's logits, hidden states and
//! tokens. Figures are printed (`--nocapture`) and asserted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gemma_coreml::bundle::Bundle;
use gemma_coreml::checkpoint::{Checkpoint, Tokenizer, stop_ids};
use gemma_coreml::convert::{self, Options};
use gemma_coreml::evaluate::parity::{
    Comparer, Comparison, F16_MEAN, F32_MEAN, F32_MIN, Gate, follow,
};
use gemma_coreml::evaluate::reference_file::ReferenceFile;
use gemma_coreml::evaluate::text::{TextReport, evaluate_text};
use gemma_coreml::evaluate::{
    BundleSubject, ExactRows, ReferenceSubject, RowSource, Trace, open_decoder,
};
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::Recipe;
use gemma_coreml::runtime::generate::{Finish, Limits, generate};
use gemma_coreml::runtime::sampling::{Sampler, SamplingOptions};
use gemma_coreml::runtime::{DecodeOptions, Precision};

#[path = "common/fixtures.rs"]
mod fixtures;
use fixtures::{fixture, fixtures};

/// Steps that every reference has at least.
const LEAST_STEPS: usize = 64;

/// Tokens of the text that widths are measured on.
const TEXT_TOKENS: usize = 384;

/// Context of the test bundles: past every fixture's window and longer than its references.
const CONTEXT: usize = 192;

/// Last component of a fixture's path.
fn name(fixture: &Path) -> String {
    fixture.file_name().unwrap().to_string_lossy().into_owned()
}

/// The bundle of a fixture by a built-in recipe, converted once per test program.
fn bundle(fixture: &Path, recipe: &str) -> Arc<Bundle> {
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

fn references(fixture: &Path, file: &str) -> Vec<Trace> {
    ReferenceFile::open(&fixture.join(file))
        .and_then(|f| f.read_all())
        .unwrap()
}

fn exact(fixture: &Path) -> RowSource {
    let checkpoint = Arc::new(Checkpoint::open(fixture).unwrap());
    RowSource::Exact(ExactRows::new(checkpoint).unwrap())
}

fn measure(
    fixture: &Path,
    recipe: &str,
    rows: &RowSource,
    precision: Precision,
    references: &[Trace],
) -> Comparison {
    let bundle = bundle(fixture, recipe);
    let mut model = BundleSubject::open(&bundle, precision, rows, true, 1).unwrap();
    let mut comparer = Comparer::default();
    for reference in references {
        let run = follow(&mut model, reference, &mut || ()).unwrap();
        comparer.add(reference, &run).unwrap();
    }
    comparer.finish()
}

fn show(what: &str, c: &Comparison) {
    let s = c.states.as_ref().expect("hidden states");
    println!(
        "{what}: logits mean {:.8} min {:.8}, states mean {:.8} min {:.8} ({}), KL {:.2e} p99 {:.2e}, \
         max diff {:.2e}, top-1 {:.4}, greedy {:?}",
        c.logits.cosine_mean,
        c.logits.cosine_min,
        s.cosine_mean,
        s.cosine_min,
        s.worst_state,
        c.logits.kl_mean,
        c.logits.kl_p99,
        c.logits.max_abs_diff,
        c.logits.top1_agreement,
        c.greedy
            .iter()
            .map(|g| format!("{}/{}", g.equal, g.of))
            .collect::<Vec<_>>()
    );
}

#[test]
fn fp16_bundles_with_exact_rows_are_the_reference_at_f32() {
    for fixture in fixtures("reference.safetensors") {
        let references = references(&fixture, "reference.safetensors");
        let rows = exact(&fixture);
        let c = measure(&fixture, "swa4-fp16", &rows, Precision::F32, &references);
        show(&format!("{} f32", name(&fixture)), &c);
        let gate = Gate {
            mean: F32_MEAN,
            min: F32_MIN,
        };
        let failures = gate.failures(&c);
        assert!(failures.is_empty(), "{}: {failures:?}", name(&fixture));
        for greedy in &c.greedy {
            assert!(greedy.of >= LEAST_STEPS);
            assert_eq!(greedy.equal, greedy.of, "{}", name(&fixture));
        }
    }
}

#[test]
fn fp16_bundles_with_exact_rows_stay_close_at_f16() {
    for fixture in fixtures("reference.safetensors") {
        let references = references(&fixture, "reference.safetensors");
        let rows = exact(&fixture);
        let c = measure(&fixture, "swa4-fp16", &rows, Precision::F16, &references);
        show(&format!("{} f16", name(&fixture)), &c);
        assert!(c.logits.cosine_mean >= F16_MEAN, "{}", name(&fixture));
    }
}

/// Nothing is kept here, so this is the plan that `decode` runs, not the one with kept intermediates.
#[test]
fn free_runs_give_the_references_tokens_past_the_window() {
    for fixture in fixtures("reference.safetensors") {
        let bundle = bundle(&fixture, "swa4-fp16");
        let mut decoder = open_decoder(
            &bundle,
            Precision::F32,
            &exact(&fixture),
            DecodeOptions::default(),
        )
        .unwrap();
        let window = bundle.config().sliding_window;
        let mut crossed = false;
        for reference in references(&fixture, "reference.safetensors") {
            let (prompt, want) = (&reference.prompt_ids, &reference.generated_ids);
            assert!(want.len() >= LEAST_STEPS);
            crossed |= prompt.len() + want.len() > window;
            decoder.reset();
            let limits = Limits {
                max_new: want.len(),
                stop_ids: &[],
            };
            let mut greedy = Sampler::new(SamplingOptions::default()).unwrap();
            let got = generate(&mut decoder, prompt, &mut greedy, &limits, &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap();
            assert_eq!(got.finish, Finish::Length);
            assert_eq!(&got.tokens, want, "{}", name(&fixture));
        }
        assert!(
            crossed,
            "{}: no reference crosses the window",
            name(&fixture)
        );
    }
}

#[test]
fn int8_tables_lose_what_transformers_loses_with_the_same_rows() {
    for fixture in fixtures("reference.safetensors") {
        let expected = references(&fixture, "reference_int8_tables.safetensors");
        let c = measure(
            &fixture,
            "swa4-fp16",
            &RowSource::Bundle,
            Precision::F32,
            &expected,
        );
        show(
            &format!("{} int8 tables, against transformers'", name(&fixture)),
            &c,
        );
        let gate = Gate {
            mean: F32_MEAN,
            min: F32_MIN,
        };
        let failures = gate.failures(&c);
        assert!(failures.is_empty(), "{}: {failures:?}", name(&fixture));

        let exact = references(&fixture, "reference.safetensors");
        let loss = measure(
            &fixture,
            "swa4-fp16",
            &RowSource::Bundle,
            Precision::F32,
            &exact[..1],
        );
        show(&format!("{} int8 tables, loss", name(&fixture)), &loss);
        // The loss is transformers' own: neither less (the tables would not be read) nor more.
        let (mut theirs, run) = (Comparer::default(), &expected[0]);
        theirs.add_pair(&exact[0], run).unwrap();
        let theirs = theirs.finish().logits;
        /// Ours and theirs may differ by this share of the loss, and by what f32 leaves of a cosine.
        const SHARE: f64 = 0.05;
        const ROUNDING: f64 = 1e-6;
        let (a, b) = (1.0 - loss.logits.cosine_mean, 1.0 - theirs.cosine_mean);
        assert!(
            (a - b).abs() <= SHARE * b + ROUNDING,
            "{}: loss {a:.3e}, transformers' {b:.3e}",
            name(&fixture)
        );
    }
}

/// The f32 reference of this crate makes the figures of bundles that have no transformers output.
#[test]
fn the_candle_reference_is_transformers() {
    for fixture in fixtures("reference.safetensors") {
        let checkpoint = Checkpoint::open(&fixture).unwrap();
        let mut model = ReferenceSubject::load(&checkpoint).unwrap();
        let mut comparer = Comparer::default();
        for reference in references(&fixture, "reference.safetensors") {
            let run = follow(&mut model, &reference, &mut || ()).unwrap();
            comparer.add(&reference, &run).unwrap();
        }
        let c = comparer.finish();
        show(&format!("{} candle", name(&fixture)), &c);
        let gate = Gate {
            mean: F32_MEAN,
            min: F32_MIN,
        };
        assert!(gate.failures(&c).is_empty());
    }
}

fn over_text(recipe: &str) -> TextReport {
    let nano = fixture("nano");
    let bundle = bundle(&nano, recipe);
    let text = std::fs::read_to_string(nano.join("eval.txt")).unwrap();
    let mut ids = Tokenizer::open(&nano).unwrap().encode(&text, true).unwrap();
    ids.truncate(TEXT_TOKENS);
    assert_eq!(ids.len(), TEXT_TOKENS);
    let checkpoint = Checkpoint::open(&nano).unwrap();
    let mut reference = ReferenceSubject::load(&checkpoint).unwrap();
    let mut model =
        BundleSubject::open(&bundle, Precision::F32, &RowSource::Bundle, false, 1).unwrap();
    let report = evaluate_text(&mut reference, &mut model, &ids, &mut || ()).unwrap();
    println!(
        "nano {recipe}: KL {:.6} +- {:.6}, p99 {:.6}, top-1 {:.4}, perplexity {:.4} (f32 {:.4})",
        report.logits.kl_mean,
        report.logits.kl_stderr,
        report.logits.kl_p99,
        report.logits.top1_agreement,
        report.perplexity,
        report.perplexity_reference
    );
    report
}

/// The windows of the text fit the test bundles' context with room to spare for several of them.
const _: () = assert!(TEXT_TOKENS > 2 * CONTEXT - 2);

#[test]
fn fewer_bits_lose_more() {
    let kl = |recipe| over_text(recipe).logits.kl_mean;
    let fp16 = kl("swa4-fp16");
    let (w8, w6, w4, w3, w2) = (
        kl("w8-palette"),
        kl("w6"),
        kl("swa4-int4"),
        kl("w3"),
        kl("w2"),
    );
    let (int8, block) = (kl("w8-linear"), kl("w4-linear"));
    assert!(w8 < w6 && w6 < w4 && w4 < w3 && w3 < w2);
    assert!(fp16 <= w8 && fp16 <= int8 && int8 < block);
    // What 4 bits may cost at most; they cost a tenth of it. Two bits cost several times more.
    const INT4_KL: f64 = 0.05;
    const TWO_BITS_FACTOR: f64 = 4.0;
    assert!(w4 < INT4_KL && block < INT4_KL);
    assert!(w2 > TWO_BITS_FACTOR * w4);
}

/// Words of ASCII letters.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphabetic())
        .filter(|w| !w.is_empty())
}

/// Stories are sentences of the corpus' words, end by themselves or fill the length, and do not run in a circle.
#[test]
fn int4_nano_tells_coherent_stories() {
    const NEW_TOKENS: usize = 96;
    const LEAST_WORDS: usize = 30;
    const LEAST_DIFFERENT: usize = 15;
    let nano = fixture("nano");
    let corpus: String = ["eval.txt", "calibration.txt"]
        .map(|file| std::fs::read_to_string(nano.join(file)).unwrap())
        .concat();
    let known: BTreeSet<&str> = words(&corpus).collect();
    let bundle = bundle(&nano, "swa4-int4");
    let tokenizer = Tokenizer::open(&bundle.hf_dir()).unwrap();
    let stop = stop_ids(&bundle.hf_dir()).unwrap();
    let mut decoder = open_decoder(
        &bundle,
        Precision::F32,
        &RowSource::Bundle,
        DecodeOptions::default(),
    )
    .unwrap();
    for prompt in [
        "Once there was a girl named Zoe.",
        "One day Sam had",
        "Once there was a boy named Leo. Leo had",
    ] {
        decoder.reset();
        let ids = tokenizer.encode(prompt, true).unwrap();
        let mut greedy = Sampler::new(SamplingOptions::default()).unwrap();
        let limits = Limits {
            max_new: NEW_TOKENS,
            stop_ids: &stop,
        };
        let mut go_on = |_| ControlFlow::Continue(());
        let story = generate(&mut decoder, &ids, &mut greedy, &limits, &mut go_on).unwrap();
        let text = tokenizer.decode(&story.tokens).unwrap();
        println!("{prompt}{text}");
        let told: Vec<&str> = words(&text).collect();
        let unknown: Vec<&&str> = told.iter().filter(|w| !known.contains(**w)).collect();
        assert!(unknown.is_empty(), "{text}: {unknown:?}");
        let different: BTreeSet<&&str> = told.iter().collect();
        assert!(
            told.len() >= LEAST_WORDS && different.len() >= LEAST_DIFFERENT,
            "{text}"
        );
    }
}
