//! Prefill and verify against decoding token by token.

use gemma_coreml::bundle::Bundle;
use gemma_coreml::runtime::{Decoder, Error};
use std::path::Path;
use std::sync::Arc;

use crate::cases::*;
use crate::equal::{OTHER_ORDER, difference};

fn token(i: usize) -> u32 {
    2 + ((i * 37 + i * i) % 200) as u32
}

/// Logits of one token after another.
fn serial(bundle: &Arc<Bundle>, count: usize) -> Vec<Vec<f32>> {
    let mut decoder = decoder(bundle);
    (0..count).map(|i| step(&mut decoder, token(i))).collect()
}

fn step(decoder: &mut Decoder, token: u32) -> Vec<f32> {
    let step = decoder.step(token).unwrap();
    step.kept["logits"].as_f32().unwrap().to_vec()
}

/// Prefill of `length` tokens, the rest of them one by one, then 20 more: against `serial`.
fn prefill_then_decode(bundle: &Arc<Bundle>, length: usize, serial: &[Vec<f32>], label: &str) {
    let mut decoder = decoder(bundle);
    let prompt: Vec<u32> = (0..length).map(token).collect();
    let (count, out) = decoder.prefill(&prompt).unwrap();
    assert_eq!(decoder.position(), count);
    let mut got = vec![out.kept["logits"].as_f32().unwrap().to_vec()];
    got.extend((count..length + 20).map(|i| step(&mut decoder, token(i))));
    let worst = difference(&serial[count - 1..length + 20], &got);
    assert!(worst <= OTHER_ORDER, "{label}, {length} tokens: {worst}");
}

#[test]
fn prefill_then_decode_is_decode() {
    for fixture in all_fixtures() {
        let small = name(&fixture) != "nano";
        for recipe in ["prefill-48", "prefill-combined"] {
            let Ok(bundle) = bundle(&fixture, recipe) else {
                continue;
            };
            let serial = serial(&bundle, 120);
            // Around one token, the window (16, nano's 64), each width (12, 40, 48), and longer than any.
            let lengths: &[usize] = match small {
                true => &[1, 2, 11, 12, 13, 15, 16, 17, 39, 40, 41, 47, 48, 49, 90],
                false => &[1, 12, 47, 48, 63, 65, 90],
            };
            let label = format!("{} {recipe}", name(&fixture));
            for &length in lengths {
                prefill_then_decode(&bundle, length, &serial, &label);
            }
        }
    }
}

/// nano's window of 64 lies inside a prefill of 100.
#[test]
fn prefill_beyond_the_window_of_nano() {
    let nano = crate::fixtures::fixture("nano");
    let bundle = made(&nano, "prefill-100");
    let serial = serial(&bundle, 140);
    for length in [63, 64, 65, 66, 99, 100, 101, 120] {
        prefill_then_decode(&bundle, length, &serial, "nano prefill-100");
    }
}

#[test]
fn prefill_with_another_layout_of_decode() {
    for fixture in all_fixtures() {
        let mut recipe = unquantized("prefill-48");
        recipe.layout = gemma_coreml::graph::Layout::Swa3;
        let Ok(bundle) = bundle_of(&fixture, &recipe, "swa3-prefill-48", CONTEXT) else {
            continue;
        };
        let names: Vec<&str> = bundle.packages().map(|c| c.name.as_str()).collect();
        assert_eq!(names[..3], ["chunk1", "chunk2_3way", "chunk3_3way"]);
        assert_eq!(
            names[3..],
            [
                "prefill_chunk1",
                "prefill_chunk2",
                "prefill_chunk3",
                "prefill_chunk4"
            ]
        );
        let serial = serial(&bundle, 70);
        for length in [3, 20, 48, 50] {
            prefill_then_decode(&bundle, length, &serial, &name(&fixture));
        }
    }
}

/// The published prefill sees further back than the window: it differs from decode beyond it, and only there.
#[test]
fn compat_prefill_has_no_window() {
    let fixture = crate::fixtures::fixture("e4b-tiny");
    let mut recipe = unquantized("prefill-48");
    recipe.compat = true;
    let bundle = bundle_of(&fixture, &recipe, "prefill-48-compat", CONTEXT).unwrap();
    let serial = serial(&bundle, 60);
    let last = |length: usize| {
        let prompt: Vec<u32> = (0..length).map(token).collect();
        let (_, out) = decoder(&bundle).prefill(&prompt).unwrap();
        let got = out.kept["logits"].as_f32().unwrap().to_vec();
        difference(&serial[length - 1..length], &[got])
    };
    assert!(last(16) <= OTHER_ORDER);
    let beyond = last(40);
    println!("compat prefill of 40 tokens, window 16: {beyond:.2}");
    assert!(beyond > 0.01, "{beyond}");
}

fn refuses(fixture: &Path) {
    let bundle = made(fixture, "prefill-48");
    let mut decoder = decoder(&bundle);
    assert!(matches!(decoder.prefill(&[]), Err(Error::Prefill { .. })));
    decoder.step(2).unwrap();
    assert!(matches!(
        decoder.prefill(&[3]),
        Err(Error::Prefill { position: 1, .. })
    ));
    assert!(matches!(
        decoder.verify(&[3]),
        Err(Error::NoFunction { .. })
    ));
    assert!(matches!(decoder.commit(0), Err(Error::VerifyWidth { .. })));
}

#[test]
fn what_prefill_and_verify_refuse() {
    let fixture = crate::fixtures::fixture("e2b35-tiny");
    refuses(&fixture);
    let mut decoder = decoder(&made(&fixture, "verify-3"));
    assert_eq!(decoder.verify_width(), Some(3));
    assert!(matches!(
        decoder.verify(&[3, 4]),
        Err(Error::VerifyWidth {
            expected: 3,
            got: 2
        })
    ));
    assert!(matches!(
        decoder.prefill(&[3]),
        Err(Error::NoFunction { .. })
    ));
    decoder.verify(&[3, 4, 5]).unwrap();
    assert!(matches!(decoder.commit(4), Err(Error::VerifyWidth { .. })));
    decoder.commit(1).unwrap();
    assert_eq!(decoder.position(), 1);
    for i in 1..CONTEXT - 2 {
        decoder.step(token(i)).unwrap();
    }
    assert!(matches!(
        decoder.verify(&[3, 4, 5]),
        Err(Error::ContextFull { .. })
    ));
    decoder.step(3).unwrap();
}

/// Every row of a verification is serial decoding's, at the beginning, across the edge of the window and far past it, and
/// after every number of accepted tokens decoding goes on as if they had been fed one by one.
fn verify_is_serial(bundle: &Arc<Bundle>, label: &str, until: usize) {
    let k = decoder(bundle).verify_width().unwrap();
    let vocab = bundle.config().vocab_size;
    let serial = serial(bundle, until + 2 * k + 4);
    let mut decoder = decoder(bundle);
    let mut accept = 0;
    let mut position = 0;
    while position < until {
        let tokens: Vec<u32> = (position..position + k).map(token).collect();
        let out = decoder.verify(&tokens).unwrap();
        let logits = out.kept["logits"].as_f32().unwrap();
        for row in 0..k {
            let expected = &serial[position + row];
            // (1, V, 1, K)
            let got: Vec<f32> = (0..vocab).map(|v| logits[v * k + row]).collect();
            let worst = difference(std::slice::from_ref(expected), std::slice::from_ref(&got));
            assert!(
                worst <= OTHER_ORDER,
                "{label}: position {position} row {row}: {worst}"
            );
            let best = (0..vocab).fold(0, |b, v| if got[v] > got[b] { v } else { b });
            assert_eq!(
                out.token_ids[row] as usize, best,
                "{label}: position {position} row {row}"
            );
        }
        decoder.commit(accept).unwrap();
        position += accept;
        assert_eq!(decoder.position(), position);
        if accept == 0 {
            // Nothing was kept: the next step is that of the position.
            let got = step(&mut decoder, token(position));
            let worst = difference(&serial[position..=position], &[got]);
            assert!(worst <= OTHER_ORDER, "{label}: step at {position}: {worst}");
            position += 1;
        }
        accept = (accept + 1) % (k + 1);
    }
}

#[test]
fn verify_is_serial_decoding() {
    for fixture in all_fixtures() {
        if let Ok(bundle) = bundle(&fixture, "verify-3") {
            let until = if name(&fixture) == "nano" { 90 } else { 60 };
            verify_is_serial(&bundle, &name(&fixture), until);
        }
    }
    // Wider than the window, at which every cached row may drop out within one call.
    let fixture = crate::fixtures::fixture("e4b-tiny");
    verify_is_serial(&made(&fixture, "verify-20"), "e4b-tiny verify-20", 90);
}

/// The published form shifts before it attends: right while everything lies within the window, short of K rows after.
#[test]
fn compat_verify_is_serial_within_the_window() {
    let fixture = crate::fixtures::fixture("e2b35-tiny");
    let mut recipe = unquantized("verify-3");
    recipe.compat = true;
    let bundle = bundle_of(&fixture, &recipe, "verify-3-compat", CONTEXT).unwrap();
    verify_is_serial(&bundle, "compat", 12);
    let serial = serial(&bundle, 40);
    let mut decoder = decoder(&bundle);
    (0..30).for_each(|i| drop(decoder.step(token(i)).unwrap()));
    let out = decoder.verify(&[token(30), token(31), token(32)]).unwrap();
    let (logits, vocab) = (
        out.kept["logits"].as_f32().unwrap(),
        bundle.config().vocab_size,
    );
    let first: Vec<f32> = (0..vocab).map(|v| logits[v * 3]).collect();
    let worst = difference(&serial[30..31], &[first]);
    println!("compat verify of 3 tokens at position 30, window 16: {worst:.2}");
    assert!(worst > 0.01, "{worst}");
}

/// Speculation: drafts that are right, wrong or partly right give the stream of greedy decoding.
#[test]
fn speculative_decoding_is_greedy_decoding() {
    let nano = crate::fixtures::fixture("nano");
    let bundle = made(&nano, "verify-3");
    let mut plain = decoder(&bundle);
    let mut next = 2;
    let greedy: Vec<u32> = (0..90)
        .map(|_| {
            next = plain.step(next).unwrap().token_id;
            next
        })
        .collect();
    let mut fast = decoder(&bundle);
    let mut stream = vec![fast.step(2).unwrap().token_id];
    while stream.len() < 80 {
        let n = stream.len();
        // Every third draft is wrong at its first, every other third at its second place.
        let draft = |i: usize| if n % 3 == i { 7 } else { greedy[n + i] };
        let fed = [stream[n - 1], draft(0), draft(1)];
        let out = fast.verify(&fed).unwrap();
        let right = (0..2)
            .take_while(|&i| out.token_ids[i] == fed[i + 1])
            .count();
        fast.commit(right + 1).unwrap();
        stream.extend(&out.token_ids[..=right]);
    }
    assert_eq!(stream[..80], greedy[..80]);
}

/// Decode, prefill and verify in one package share every blob, and work together.
#[test]
fn one_package_holds_all_functions() {
    let fixture = crate::fixtures::fixture("e2b35-tiny");
    let mut recipe = unquantized("prefill-combined");
    recipe.functions = ["decode", "prefill-12", "verify-3", "prefill-40"]
        .map(|f| f.parse().unwrap())
        .to_vec();
    let bundle = bundle_of(&fixture, &recipe, "all-functions", CONTEXT).unwrap();
    let plain = made(&fixture, "swa4-fp16");
    for (chunk, alone) in bundle.chunks().iter().zip(plain.chunks()) {
        assert_eq!(chunk.package.functions().len(), 4, "{}", chunk.name);
        assert_eq!(chunk.package.weight_bytes(), alone.package.weight_bytes());
    }
    verify_is_serial(&bundle, "all functions", 30);
    let serial = serial(&bundle, 60);
    prefill_then_decode(&bundle, 30, &serial, "all functions");
    // Verified tokens after a prompt that was fed at once.
    let mut decoder = decoder(&bundle);
    let prompt: Vec<u32> = (0..25).map(token).collect();
    let (count, _) = decoder.prefill(&prompt).unwrap();
    assert_eq!(count, 25);
    decoder.verify(&[token(25), token(26), token(27)]).unwrap();
    decoder.commit(2).unwrap();
    let got = step(&mut decoder, token(27));
    let worst = difference(&serial[27..28], &[got]);
    assert!(worst <= OTHER_ORDER, "{worst}");
}
