//! The plan with fused steps against every op by itself.

use gemma_coreml::bundle::Bundle;
use gemma_coreml::evaluate::{RowSource, open_decoder};
use gemma_coreml::runtime::{DecodeOptions, Decoder, Precision};
use std::sync::Arc;

use crate::cases::*;
use crate::equal::difference;
use crate::fixtures::fixture;

/// Largest difference of a logit (at most the softcap, 30): RMS norms may differ in the last place, and what follows adds
/// up.
const FUSED: f32 = 2e-4;

/// Tokens fed: past every window but nano's, around rings three times.
const STEPS: u32 = 50;

fn decoders(bundle: &Arc<Bundle>, threads: usize) -> [Decoder; 2] {
    [false, true].map(|plain| {
        let options = DecodeOptions {
            threads,
            keep: vec!["logits".to_string(), "layer_1_out".to_string()],
            plain,
        };
        open_decoder(bundle, Precision::F32, &RowSource::Bundle, options)
            .unwrap_or_else(|e| panic!("{}: {}", bundle.dir().display(), chain(&e)))
    })
}

fn token(i: u32) -> u32 {
    2 + (i * 37 + i * i) % 200
}

/// Logits and a layer's state of one step.
fn step(decoder: &mut Decoder, token: u32) -> Vec<Vec<f32>> {
    let step = decoder.step(token).unwrap();
    let kept = ["logits", "layer_1_out"].map(|name| step.kept[name].as_f32().unwrap().to_vec());
    kept.to_vec()
}

/// Steps `from` to `to` of both, side by side; returns the largest difference.
fn compare(decoders: &mut [Decoder; 2], steps: std::ops::Range<u32>) -> f32 {
    steps
        .map(|i| {
            let [fused, plain] = decoders.each_mut().map(|d| step(d, token(i)));
            difference(&fused, &plain)
        })
        .fold(0.0, f32::max)
}

#[test]
fn fused_decoding_is_every_op_by_itself() {
    for recipe in RECIPES {
        for fixture in all_fixtures() {
            let Ok(bundle) = bundle(&fixture, recipe) else {
                continue;
            };
            let label = format!("{} {recipe}", name(&fixture));
            let mut decoders = decoders(&bundle, 1);
            let mut worst = compare(&mut decoders, 0..STEPS);
            let caches = decoders.each_ref().map(|d| {
                let tensors = d
                    .caches()
                    .map(|(.., tensor)| tensor.as_f32().unwrap().to_vec());
                tensors.collect::<Vec<_>>()
            });
            worst = worst.max(difference(&caches[0], &caches[1]));
            // A second text, from a beginning at once where there is a function for it.
            decoders.iter_mut().for_each(Decoder::reset);
            let prompt: Vec<u32> = (0..30).map(token).collect();
            if decoders[0].prefill_widths().next().is_some() {
                let first = decoders.each_mut().map(|d| d.prefill(&prompt).unwrap());
                let logits =
                    first.map(|(_, out)| vec![out.kept["logits"].as_f32().unwrap().to_vec()]);
                worst = worst.max(difference(&logits[0], &logits[1]));
            }
            if let Some(width) = decoders[0].verify_width() {
                for round in 0..8 {
                    let tokens: Vec<u32> =
                        (0..width as u32).map(|i| token(round * 7 + i)).collect();
                    let out = decoders.each_mut().map(|d| {
                        let out = d.verify(&tokens).unwrap();
                        d.commit(round as usize % (width + 1)).unwrap();
                        vec![out.kept["logits"].as_f32().unwrap().to_vec()]
                    });
                    worst = worst.max(difference(&out[0], &out[1]));
                }
            }
            worst = worst.max(compare(&mut decoders, 0..10));
            println!("{label}: {worst:.1e}");
            assert!(worst <= FUSED, "{label}: {worst}");
        }
    }
}

/// To the last position of a context, on two threads.
#[test]
fn fused_decoding_to_the_end_of_the_context() {
    for recipe in ["swa4-fp16", "stateful", "lite2", "flash-64"] {
        let bundle = made(&fixture("e2b35-tiny"), recipe);
        let mut decoders = decoders(&bundle, 2);
        let worst = compare(&mut decoders, 0..CONTEXT as u32);
        println!("{recipe}: {worst:.1e}");
        assert!(worst <= FUSED, "{recipe}: {worst}");
        assert!(decoders.iter_mut().all(|d| d.step(2).is_err()));
    }
}

/// No plan holds a large weight decoded, the embedding that is looked up in the graph included.
#[test]
fn no_large_weight_is_decoded() {
    let nano = fixture("nano");
    for recipe in ["lite2", "monolithic", "swa1", "w4", "w4-linear"] {
        let recipe = gemma_coreml::recipe::Recipe::builtin(recipe).unwrap();
        let label = format!("{}-decoded", recipe.name);
        let bundle = bundle_of(&nano, &recipe, &label, CONTEXT).unwrap();
        let config = bundle.config();
        // Norms, RoPE and scalars: a few rows of the stream a layer.
        let few = 64 * config.num_layers * config.hidden_size;
        for chunk in bundle.packages() {
            let function = chunk.package.default_function();
            let load = gemma_coreml::runtime::Model::load;
            let model = load(&chunk.package, function, Precision::F32, &[]).unwrap();
            let decoded = model.decoded_elements();
            assert!(
                decoded < few.min(config.vocab_size * config.hidden_size / 4),
                "{label} {}: {decoded}",
                chunk.name
            );
        }
    }
}
