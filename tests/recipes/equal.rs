//! What must be equal between recipes: bytes, bits, or up to a named tolerance.

use std::collections::BTreeSet;

use gemma_coreml::package::{Binding, ReadValue};
use gemma_coreml::runtime::Decoder;

use crate::cases::*;
use crate::fixtures::fixture;

/// Largest difference of a logit (at most the softcap, 30) where the same sums are taken in another order in f32.
pub const OTHER_ORDER: f32 = 1e-3;

/// Tokens fed where decoders are compared step by step: more than three windows of the small fixtures.
const STEPS: u32 = 100;

/// Logits of a decoder for an arbitrary sequence.
fn logits(decoder: &mut Decoder, steps: u32) -> Vec<Vec<f32>> {
    (0..steps)
        .map(|i| {
            let step = decoder.step(2 + (i * 37) % 200).unwrap();
            step.kept["logits"].as_f32().unwrap().to_vec()
        })
        .collect()
}

/// The largest difference of two runs.
pub fn difference(one: &[Vec<f32>], other: &[Vec<f32>]) -> f32 {
    assert_eq!(one.len(), other.len());
    let pairs = one.iter().flatten().zip(other.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn layouts_give_the_logits_of_swa4_to_the_last_bit() {
    for fixture in all_fixtures() {
        let base = logits(&mut decoder(&made(&fixture, "swa4-fp16")), STEPS);
        assert!(base.iter().flatten().all(|x| x.is_finite()));
        for recipe in [
            "swa3",
            "swa3-topology1",
            "swa2",
            "swa1",
            "stateful-mask",
            "padded-kv",
            "wfa-208",
            "verify-3",
            "prefill-48",
            "prefill-combined",
        ] {
            if let Ok(bundle) = bundle(&fixture, recipe) {
                let got = logits(&mut decoder(&bundle), STEPS);
                assert!(got == base, "{} {recipe}", name(&fixture));
            }
        }
    }
}

/// Not the layouts that take ids: they look the embedding up in fp16, the tables of the others are int8.
#[test]
fn other_caches_and_flash_give_the_logits_of_swa4() {
    for fixture in all_fixtures() {
        let base = logits(&mut decoder(&made(&fixture, "swa4-fp16")), STEPS);
        for recipe in [
            "stateful",
            "stateful-3chunk",
            "stateful-1chunk",
            "stateful-padded",
            "stateless-full",
            "flash-7",
            "flash-64",
        ] {
            let Ok(bundle) = bundle(&fixture, recipe) else {
                continue;
            };
            let got = logits(&mut decoder(&bundle), STEPS);
            let worst = difference(&base, &got);
            println!("{} {recipe}: {worst:.1e}", name(&fixture));
            let bound = match (recipe, name(&fixture).as_str()) {
                // The host combines with the gain in f32, the graph has it in fp16: the other checkpoints lose no digit.
                ("stateless-full", "textonly-tiny") => 0.1,
                _ => OTHER_ORDER,
            };
            assert!(worst <= bound, "{} {recipe}: {worst}", name(&fixture));
        }
    }
}

/// Padded states are those of unpadded ones, bit for bit.
#[test]
fn padded_heads_change_nothing_and_stay_zero() {
    for fixture in all_fixtures() {
        let plain = logits(&mut decoder(&made(&fixture, "stateful")), STEPS);
        let padded = logits(&mut decoder(&made(&fixture, "stateful-padded")), STEPS);
        assert!(plain == padded, "{}", name(&fixture));

        let bundle = made(&fixture, "padded-kv");
        let mut decoder = decoder(&bundle);
        logits(&mut decoder, STEPS);
        let mut seen = 0;
        for (chunk, cache, tensor) in decoder.caches() {
            let &[_, heads, length, width] = tensor.shape() else {
                panic!("{chunk} {cache}");
            };
            assert_eq!(heads, 32, "{chunk} {cache}");
            let own = match cache.ends_with("full") {
                true => bundle.config().full_kv_heads(),
                false => bundle.config().num_key_value_heads,
            };
            let values = tensor.as_f32().unwrap();
            for (head, rows) in values.chunks_exact(length * width).enumerate() {
                if head % heads >= own {
                    assert!(
                        rows.iter().all(|&x| x == 0.0),
                        "{chunk} {cache} head {head}"
                    );
                }
                seen += usize::from(head % heads < own && rows.iter().any(|&x| x != 0.0));
            }
        }
        assert!(seen > 0, "{}: no row was written", name(&fixture));
    }
}

/// Flash against standard attention on a whole context: nano decodes beyond several slices.
#[test]
fn flash_is_standard_attention() {
    let nano = fixture("nano");
    let base = logits(&mut decoder(&made(&nano, "swa4-fp16")), 200);
    for recipe in [
        "flash-7",
        "flash-64",
        "flash-104",
        "flash-207",
        "flash-208",
        "flash-1000",
    ] {
        let got = logits(&mut decoder(&made(&nano, recipe)), 200);
        let cosine = |a: &[f32], b: &[f32]| {
            let dot = |x: &[f32], y: &[f32]| -> f64 {
                x.iter()
                    .zip(y)
                    .map(|(x, y)| f64::from(*x) * f64::from(*y))
                    .sum()
            };
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let worst = base
            .iter()
            .zip(&got)
            .map(|(a, b)| cosine(a, b))
            .fold(1.0, f64::min);
        println!("{recipe}: worst cosine {worst:.9}");
        assert!(worst > 0.999999, "{recipe}: {worst}");
    }
}

fn weight_bytes(bundle: &gemma_coreml::bundle::Bundle, chunk: &str) -> Vec<u8> {
    let path = bundle.dir().join(format!("{chunk}.mlpackage"));
    std::fs::read(path.join("Data/com.apple.CoreML/weights/weight.bin")).unwrap()
}

#[test]
fn packages_with_the_same_layers_have_the_same_weight_file() {
    for fixture in all_fixtures() {
        let base = made(&fixture, "swa4-fp16");
        for recipe in [
            "swa3",
            "verify-3",
            "prefill-combined",
            "wfa-208",
            "swa4-8k",
            "flash-7",
        ] {
            let Ok(other) = bundle(&fixture, recipe) else {
                continue;
            };
            let bytes = weight_bytes(&other, "chunk1");
            assert!(
                bytes == weight_bytes(&base, "chunk1"),
                "{} {recipe}",
                name(&fixture)
            );
        }
        let Ok(prefill) = bundle(&fixture, "prefill-48") else {
            continue;
        };
        for i in 1..=4 {
            let (decode, own) = (format!("chunk{i}"), format!("prefill_chunk{i}"));
            assert!(
                weight_bytes(&prefill, &decode) == weight_bytes(&prefill, &own),
                "{} {own}",
                name(&fixture)
            );
        }
    }
}

/// Fewer chunks hold the weights of four: every blob of one is a blob of the other.
#[test]
fn merged_chunks_hold_the_weights_of_swa4() {
    let blobs = |bundle: &gemma_coreml::bundle::Bundle| -> BTreeSet<Vec<u8>> {
        let functions = bundle
            .packages()
            .flat_map(|c| c.package.functions().values());
        let ops = functions.flat_map(|f| &f.ops);
        let bound = ops.flat_map(|op| {
            let inline = op
                .inputs
                .iter()
                .flat_map(|(_, b)| b)
                .filter_map(|b| match b {
                    Binding::Value(value) => Some(value),
                    _ => None,
                });
            inline.chain(op.value.as_ref()).collect::<Vec<&ReadValue>>()
        });
        let large = bound.filter(|v| v.bytes().len() > 64);
        large.map(|v| v.bytes().to_vec()).collect()
    };
    for fixture in all_fixtures() {
        let base = blobs(&made(&fixture, "swa4-fp16"));
        assert!(base.len() > 20);
        for recipe in ["swa2", "swa1"] {
            if let Ok(other) = bundle(&fixture, recipe) {
                assert!(blobs(&other) == base, "{} {recipe}", name(&fixture));
            }
        }
    }
}

/// Decoding at a context of 8192 goes on as before beyond position 2048.
#[test]
fn a_context_of_8192_crosses_position_2048() {
    const LAST: usize = 2060;
    let nano = fixture("nano");
    let recipe = unquantized("swa4-8k");
    let long = bundle_of(&nano, &recipe, "swa4-8k", 8192).unwrap();
    assert_eq!(long.config().context_length, 8192);
    assert!(long.rope().cos_full.rows() >= 16384);
    let short = bundle_of(&nano, &recipe, "swa4-8k", 2048).unwrap();
    let (mut long, mut short) = (decoder(&long), decoder(&short));
    let mut checked = 0;
    for i in 0..LAST as u32 {
        let token = 2 + (i * 37) % 900;
        let at_long = long.step(token).unwrap();
        assert!(
            at_long.kept["logits"]
                .as_f32()
                .unwrap()
                .iter()
                .all(|x| x.is_finite())
        );
        match short.step(token) {
            Ok(at_short) => {
                let pair =
                    [at_short, at_long].map(|s| vec![s.kept["logits"].as_f32().unwrap().to_vec()]);
                assert!(
                    difference(&pair[0], &pair[1]) <= OTHER_ORDER,
                    "position {i}"
                );
                checked += 1;
            }
            Err(_) => assert!(i >= 2048, "position {i}"),
        }
    }
    assert_eq!((checked, long.position()), (2048, LAST));
}
