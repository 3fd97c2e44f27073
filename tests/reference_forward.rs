//! The f32 forward against the outputs of transformers that every fixture carries.

mod snapshots;

use std::path::Path;

use gemma_coreml::checkpoint::{self, Checkpoint};
use gemma_coreml::gemma::Error;
use gemma_coreml::gemma::reference::{Keep, Reference, Table, checkpoint_row};
use half::f16;
use safetensors::SafeTensors;

use snapshots::fixtures::fixtures;

/// Largest `max |ours - theirs| / max |theirs|` over a prompt's logits.
const LOGITS_TOLERANCE: f64 = 1e-4;
/// The same over each layer's state.
const HIDDEN_TOLERANCE: f64 = 1e-4;
/// Largest difference between one pass and token by token, by the same measure. Sums may be taken in another order.
const INCREMENTAL_TOLERANCE: f64 = 1e-5;

/// One prompt of a reference file.
struct Case {
    prompt: Vec<u32>,
    generated: Vec<u32>,
    /// `[generated, vocab]`.
    logits: Vec<f32>,
    /// `[layers + 2, positions, hidden]`.
    hidden: Vec<f32>,
    hidden_shape: Vec<usize>,
}

impl Case {
    /// The prompt and all generated ids but the last: what the logits were computed from.
    fn input(&self) -> Vec<u32> {
        let all = self.prompt.iter().chain(&self.generated).copied();
        all.take(self.prompt.len() + self.generated.len() - 1)
            .collect()
    }
}

fn cases(path: &Path) -> Vec<Case> {
    let bytes = std::fs::read(path).expect("a readable reference");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let words = |name: &str| -> Option<(Vec<[u8; 4]>, Vec<usize>)> {
        let tensor = file.tensor(name).ok()?;
        Some((
            tensor.data().as_chunks().0.to_vec(),
            tensor.shape().to_vec(),
        ))
    };
    let ids = |name: &str| {
        words(name).map(|(w, _)| w.into_iter().map(u32::from_le_bytes).collect::<Vec<u32>>())
    };
    let floats = |name: &str| {
        let (words, shape) = words(name).unwrap_or_else(|| panic!("{}: no {name}", path.display()));
        (
            words
                .into_iter()
                .map(f32::from_le_bytes)
                .collect::<Vec<f32>>(),
            shape,
        )
    };
    let mut cases = Vec::new();
    while let Some(prompt) = ids(&format!("p{}.prompt_ids", cases.len())) {
        let i = cases.len();
        let (hidden, hidden_shape) = floats(&format!("p{i}.hidden"));
        cases.push(Case {
            prompt,
            generated: ids(&format!("p{i}.generated_ids")).expect("generated ids"),
            logits: floats(&format!("p{i}.logits")).0,
            hidden,
            hidden_shape,
        });
    }
    assert!(!cases.is_empty(), "{}: no prompts", path.display());
    cases
}

/// `max |ours - theirs| / max |theirs|`.
fn relative(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0f64, |m, v| m.max(f64::from(*v).abs()));
    let worst = ours.iter().zip(theirs).fold(0f64, |m, (a, b)| {
        let difference = (f64::from(*a) - f64::from(*b)).abs();
        // A NaN must not get lost in a maximum.
        if difference.is_nan() {
            f64::INFINITY
        } else {
            m.max(difference)
        }
    });
    assert!(largest > 0.0, "a reference of zeros");
    worst / largest
}

/// Relative errors of logits and of the worst layer state, one pass over the whole case.
fn compare(model: &Reference, case: &Case) -> (f64, f64) {
    let keep = Keep {
        all_logits: true,
        hidden: true,
    };
    let input = case.input();
    let out = model
        .forward(&input, &mut model.cache(), keep)
        .expect("a forward pass");
    let logits: Vec<f32> = out.logits[case.prompt.len() - 1..].concat();
    let [states, positions, width] = case.hidden_shape[..] else {
        panic!("hidden has shape {:?}", case.hidden_shape)
    };
    assert_eq!(states, out.hidden.len());
    let of_state = |i: usize| {
        let size = positions * width;
        relative(
            &out.hidden[i][..size],
            &case.hidden[i * size..(i + 1) * size],
        )
    };
    let hidden = (0..states).map(of_state).fold(0f64, f64::max);
    (relative(&logits, &case.logits), hidden)
}

/// Asserts that logits and layer states are the case's within the tolerances.
fn assert_matches(model: &Reference, case: &Case, name: &str) {
    let (logits, hidden) = compare(model, case);
    println!("{name}: logits {logits:.2e}, hidden {hidden:.2e}");
    assert!(
        logits <= LOGITS_TOLERANCE,
        "{name}: logits off by {logits:e}"
    );
    assert!(
        hidden <= HIDDEN_TOLERANCE,
        "{name}: hidden off by {hidden:e}"
    );
}

#[test]
fn every_fixture_matches_transformers() {
    for dir in fixtures("reference.safetensors") {
        let checkpoint = Checkpoint::open(&dir).expect("a fixture opens");
        let model = Reference::load(&checkpoint).expect("a fixture loads");
        for (i, case) in cases(&dir.join("reference.safetensors")).iter().enumerate() {
            assert_matches(&model, case, &format!("{} p{i}", dir.display()));
        }
    }
}

/// What a reader of an int8 row table yields: the row times sqrt(width), quantized against its fp16 maximum, rounded to fp16.
fn through_int8(raw: &[f32], scale: f32, out: &mut [f32]) {
    let largest = raw
        .iter()
        .fold(0f32, |m, v| m.max(v.abs()))
        .max(2f32.powi(-14));
    let largest = f16::from_f32(largest).to_f32();
    for (slot, value) in out.iter_mut().zip(raw) {
        let q = (value * 127.0 / largest)
            .round_ties_even()
            .clamp(-127.0, 127.0);
        *slot = f16::from_f32(q * (largest / 127.0) * scale).to_f32();
    }
}

#[test]
fn int8_rows_match_transformers_with_the_same_rows() {
    for dir in fixtures("reference_int8_tables.safetensors") {
        let checkpoint = Checkpoint::open(&dir).expect("a fixture opens");
        let exact = Reference::load(&checkpoint).expect("a fixture loads");
        let plan = exact.plan().clone();
        let source = |table: Table, token: u32, out: &mut [f32]| {
            let mut raw = vec![0f32; out.len()];
            let unscaled = gemma_coreml::gemma::ModelPlan {
                embed_scale: 1.0,
                ple_embed_scale: 1.0,
                ..plan.clone()
            };
            checkpoint_row(&checkpoint, &unscaled, table, token, &mut raw)?;
            let scale = match table {
                Table::Embedding => plan.embed_scale,
                Table::PerLayer => plan.ple_embed_scale,
            };
            through_int8(&raw, scale as f32, out);
            Ok(())
        };
        let model = Reference::load(&checkpoint)
            .expect("a fixture loads")
            .with_rows(Box::new(source));
        for (i, case) in cases(&dir.join("reference_int8_tables.safetensors"))
            .iter()
            .enumerate()
        {
            assert_matches(&model, case, &format!("{} p{i}", dir.display()));
            let (unquantized, _) = compare(&exact, case);
            assert!(
                unquantized > LOGITS_TOLERANCE,
                "{}: the int8 rows make no difference",
                dir.display()
            );
        }
    }
}

/// Token by token and in uneven pieces through the cache, layers and head read on every pass: the same logits.
#[test]
fn the_cache_gives_what_one_pass_gives() {
    for dir in fixtures("reference.safetensors") {
        let checkpoint = Checkpoint::open(&dir).expect("a fixture opens");
        let resident = Reference::load(&checkpoint).expect("a fixture loads");
        let streamed = Reference::with_budget(&checkpoint, 0).expect("a fixture loads");
        let case = &cases(&dir.join("reference.safetensors"))[0];
        let input = case.input();
        let all = Keep {
            all_logits: true,
            hidden: false,
        };
        let whole = resident
            .forward(&input, &mut resident.cache(), all)
            .expect("a forward pass");
        for (model, piece) in [(&resident, 1), (&streamed, 7)] {
            let mut cache = model.cache();
            for (n, ids) in input.chunks(piece).enumerate() {
                let out = model
                    .forward(ids, &mut cache, Keep::default())
                    .expect("a forward pass");
                let last = n * piece + ids.len() - 1;
                let error = relative(&out.logits[0], &whole.logits[last]);
                assert!(
                    error <= INCREMENTAL_TOLERANCE,
                    "{} at {last}: off by {error:e}",
                    dir.display()
                );
            }
            assert_eq!(cache.position(), input.len());
        }
    }
}

fn qat(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/qat/{name}"))
}

/// Checkpoints that were trained with int8 activations: with them, and without.
#[test]
fn rounded_activations_match_transformers() {
    for name in ["mobile", "mobile-ct"] {
        let dir = qat(name);
        let checkpoint = Checkpoint::open(&dir).expect("a fixture opens");
        assert!(checkpoint.has_activation_scales());
        let of = |file: &str| cases(&dir.join(file)).remove(0);
        let model = Reference::load(&checkpoint).expect("a fixture loads");
        let streamed = Reference::with_budget(&checkpoint, 0).expect("a fixture loads");
        let case = of("reference.safetensors");
        assert_matches(&model, &case, name);
        assert_matches(&streamed, &case, name);
        let plain = model.without_activation_scales();
        let (off, _) = compare(&plain, &case);
        assert!(
            off > 100.0 * LOGITS_TOLERANCE,
            "{name}: no difference: {off:e}"
        );
        if name == "mobile" {
            let without = of("reference_no_clamps.safetensors");
            assert_matches(&plain, &without, "mobile without");
        }
    }
}

/// Greedy decoding from the prompt alone reproduces the generated ids.
#[test]
fn greedy_decoding_follows_transformers() {
    for dir in fixtures("reference.safetensors") {
        let checkpoint = Checkpoint::open(&dir).expect("a fixture opens");
        let model = Reference::load(&checkpoint).expect("a fixture loads");
        for case in cases(&dir.join("reference.safetensors")) {
            let mut cache = model.cache();
            let mut next = case.prompt.clone();
            let mut generated: Vec<u32> = Vec::new();
            while generated.len() < case.generated.len() {
                let out = model
                    .forward(&next, &mut cache, Keep::default())
                    .expect("a forward pass");
                let best = (0..out.logits[0].len())
                    .max_by(|a, b| out.logits[0][*a].total_cmp(&out.logits[0][*b]));
                next = vec![best.expect("logits") as u32];
                generated.extend(&next);
            }
            assert_eq!(generated, case.generated, "{}", dir.display());
        }
    }
}

#[test]
fn inputs_that_cannot_be_run_are_errors() {
    let checkpoint = Checkpoint::open(&snapshots::fixture("e4b-tiny")).expect("a fixture opens");
    let model = Reference::load(&checkpoint).expect("a fixture loads");
    let mut cache = model.cache();
    let run = |ids: &[u32], cache: &mut _| model.forward(ids, cache, Keep::default()).map(|_| ());
    assert!(matches!(run(&[], &mut cache), Err(Error::NoTokens)));
    run(&[2, 110], &mut cache).expect("a forward pass");
    let error = run(&[3, 256], &mut cache).expect_err("no such token");
    let expected = matches!(
        error,
        Error::TokenId {
            id: 256,
            position: 3,
            vocab: 256
        }
    );
    assert!(expected && cache.position() == 2, "{error}");
    let other = Checkpoint::open(&snapshots::fixture("e2b35-tiny")).expect("a fixture opens");
    let mut wrong = Reference::load(&other).expect("a fixture loads").cache();
    assert!(matches!(
        run(&[2], &mut wrong),
        Err(Error::WrongCache {
            expected: 12,
            got: 35
        })
    ));
}

/// Both where the layers stay in memory and where they are read on every pass.
#[test]
fn a_nan_weight_stops_the_reference() {
    const TENSOR: &str = "layers.3.mlp.down_proj.weight";
    let dir = snapshots::edited(|t| {
        let nan = half::bf16::NAN.to_le_bytes();
        snapshots::find(t, TENSOR).bytes[2 * 70..2 * 71].copy_from_slice(&nan);
    });
    let checkpoint = Checkpoint::open(dir.path()).expect("headers are fine");
    let streamed = Reference::with_budget(&checkpoint, 0).expect("nothing read yet");
    let late = streamed
        .forward(&[2], &mut streamed.cache(), Keep::default())
        .map(|_| ());
    for error in [Reference::load(&checkpoint).map(|_| ()), late] {
        let error = error.expect_err("a NaN");
        let named = matches!(&error, Error::Checkpoint(checkpoint::Error::NotFinite { tensor, index: 70, .. })
            if tensor == TENSOR);
        assert!(named, "{error}");
    }
}
