//! A head that is not the embedding, from the files to what the packages compute.

mod snapshots;

use std::path::Path;
use std::sync::Arc;

use gemma_coreml::bundle::Bundle;
use gemma_coreml::calibrate::{self, Source, Stats};
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::convert::{self, Options, convert};
use gemma_coreml::evaluate::batched::{Batched, BundleWeights};
use gemma_coreml::evaluate::{RowSource, argmax, open_decoder};
use gemma_coreml::gemma::ModelPlan;
use gemma_coreml::gemma::reference::Keep;
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::{Recipe, Rule};
use gemma_coreml::runtime::{DecodeOptions, Precision};
use tempfile::TempDir;

use snapshots::{SINGLE, fixture, read_raw, serialize, snapshot};

const HEAD: &str = "lm_head.weight";
/// `Once there was`, as nano's tokenizer has it.
const PROMPT: [u32; 3] = [704, 671, 628];
/// What transformers 5.23 goes on with in float32, where every row of the head is shifted by one.
const SHIFTED: [u32; 4] = [463, 131, 448, 114];

/// nano with the rows of its embedding table, shifted by one, as a head.
fn model() -> TempDir {
    let mut tensors = read_raw(&fixture("nano").join(SINGLE));
    let table = tensors
        .iter()
        .find(|t| t.name.ends_with(".embed_tokens.weight"));
    let mut head = table.unwrap().clone();
    head.name = HEAD.into();
    head.bytes.rotate_right(2 * head.shape[1]);
    tensors.push(head);
    let dir = snapshot("nano", &[(SINGLE, serialize(&tensors))]);
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        std::fs::copy(fixture("nano").join(file), dir.path().join(file)).unwrap();
    }
    dir
}

/// The recipe with every weight in fp16.
fn in_fp16(name: &str) -> Recipe {
    let mut recipe = Recipe::load(name).unwrap();
    let all = Rule::new(".", "fp16".parse().unwrap()).unwrap();
    recipe.quantize.rules.push(all);
    recipe
}

fn options(calibration: Option<Arc<Stats>>) -> Options {
    Options {
        threads: Some(2),
        context: Some(64),
        calibration,
        ..Options::default()
    }
}

fn converted(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    options: &Options,
    out: &Path,
) -> Arc<Bundle> {
    let forecast = convert::forecast(checkpoint, recipe, options).unwrap();
    convert(checkpoint, recipe, out, options, &NoProgress).unwrap();
    for (file, bytes) in forecast
        .files
        .iter()
        .filter(|(file, _)| file.contains("weight"))
    {
        let size = std::fs::metadata(out.join(file)).unwrap().len();
        assert_eq!(size, bytes.bytes, "{file}");
    }
    Arc::new(Bundle::open(out).unwrap())
}

/// Greedy ids after [`PROMPT`], in f32 over the bundle's tables.
fn goes_on(bundle: &Arc<Bundle>) -> Vec<u32> {
    let options = DecodeOptions {
        threads: 1,
        keep: vec!["logits".into()],
        ..DecodeOptions::default()
    };
    let mut decoder = open_decoder(bundle, Precision::F32, &RowSource::Bundle, options).unwrap();
    let mut last = 0;
    for token in PROMPT {
        last = decoder.step(token).unwrap().token_id;
    }
    let mut ids = vec![last];
    while ids.len() < SHIFTED.len() {
        last = decoder.step(last).unwrap().token_id;
        ids.push(last);
    }
    ids
}

#[test]
fn packages_multiply_with_the_head_and_look_up_the_embedding() {
    let model = model();
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    let plan = ModelPlan::new(checkpoint.config()).unwrap();
    let out = TempDir::new().unwrap();
    // Rows from tables; from the weights of the first of two packages; from those of the only one.
    for name in ["swa4-fp16", "lite2", "monolithic"] {
        let bundle = converted(
            &checkpoint,
            &in_fp16(name),
            &options(None),
            &out.path().join(name),
        );
        assert_eq!(goes_on(&bundle), SHIFTED, "{name}");
        let weights = match BundleWeights::find(&bundle, &plan).unwrap() {
            Batched::Fit(weights) => weights,
            Batched::Unfit(reason) => {
                assert!(
                    name != "swa4-fp16" && reason.contains("look tokens up"),
                    "{reason}"
                );
                continue;
            }
        };
        let reference = weights.reference(&checkpoint).unwrap();
        let got = reference
            .forward(&PROMPT, &mut reference.cache(), Keep::default())
            .unwrap();
        assert_eq!(argmax(&got.logits[0]), SHIFTED[0] as usize);
    }
}

#[test]
fn the_heads_input_is_measured_under_its_own_name() {
    let model = model();
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    let out = TempDir::new().unwrap();
    let source = Source::Text(vec![(2..60).collect()]);
    let file = out.path().join("stats.safetensors");
    let stats = calibrate::calibrate(
        &checkpoint,
        &source,
        &calibrate::Options::default(),
        &file,
        &NoProgress,
    );
    let stats = Arc::new(stats.unwrap());
    stats.input(HEAD).unwrap();
    stats
        .input("embed_tokens.weight")
        .err()
        .expect("no linear layer multiplies with the embedding");
    let recipe = Recipe::load("w3-importance").unwrap();
    let bundle = converted(
        &checkpoint,
        &recipe,
        &options(Some(stats)),
        &out.path().join("bundle"),
    );
    let tensors = &bundle.provenance().tensors;
    assert!(tensors.iter().any(|t| t.tensor == HEAD));
    let table = tensors.iter().find(|t| t.tensor == "embed_tokens.weight");
    assert_eq!(table.unwrap().reason, "table");
}
