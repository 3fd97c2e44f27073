//! Statistics of linear layers' inputs against transformers' stored states and against brute force.

mod snapshots;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use gemma_coreml::calibrate::{Error, InputStats, Options, Source, Stats, calibrate};
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::gemma::reference::{Keep, Layerwise, Reference};
use gemma_coreml::gemma::{Observer, names};
use gemma_coreml::progress::NoProgress;
use safetensors::SafeTensors;
use serde_json::Value;

use snapshots::fixtures::fixtures;

/// Against statistics of the states that transformers stored, relative to the largest. States are within 1e-4 of ours.
const STORED_TOLERANCE: f64 = 1e-3;
/// Against the same sums in f64, relative to the value. What is stored is f32.
const SUM_TOLERANCE: f64 = 1e-6;
/// Products are multiplied in f32 before they are summed: relative to the largest of the matrix.
const PRODUCT_TOLERANCE: f64 = 1e-5;
/// A percentile read from the histogram, relative to the exact one.
const PERCENTILE_TOLERANCE: f64 = 0.01;

/// Every input that an observer is shown, in rows, by tensor.
#[derive(Default)]
struct Recorder {
    inputs: BTreeMap<String, Vec<Vec<f32>>>,
    last: Vec<(String, candle_core::TensorId)>,
}

impl Observer for Recorder {
    fn input(&mut self, tensor: &str, x: &Tensor) -> candle_core::Result<()> {
        let rows = self.inputs.entry(tensor.into()).or_default();
        rows.extend(x.to_vec2::<f32>()?);
        self.last.push((tensor.into(), x.id()));
        Ok(())
    }
}

/// Prompt and continuation of a reference file, as many ids as there are states, and the states `[layer][position][hidden]`.
fn stored(path: &Path, prompt: usize) -> (Vec<u32>, Vec<Vec<Vec<f32>>>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |what: &str| {
        let tensor = file.tensor(&format!("p{prompt}.{what}")).unwrap();
        let words: Vec<[u8; 4]> = tensor.data().as_chunks().0.to_vec();
        (words, tensor.shape().to_vec())
    };
    let (hidden, shape) = words("hidden");
    let all = words("prompt_ids")
        .0
        .into_iter()
        .chain(words("generated_ids").0);
    let ids = all.map(u32::from_le_bytes).take(shape[1]).collect();
    let values: Vec<f32> = hidden.into_iter().map(f32::from_le_bytes).collect();
    let states = values.chunks(shape[1] * shape[2]);
    let rows = |state: &[f32]| state.chunks(shape[2]).map(<[f32]>::to_vec).collect();
    (ids, states.map(rows).collect())
}

/// Two sequences of a fixture, of different length.
fn two_sequences(dir: &Path) -> Vec<Vec<u32>> {
    let file = dir.join("reference.safetensors");
    vec![stored(&file, 1).0, stored(&file, 0).0[..3].to_vec()]
}

fn measured(
    checkpoint: &Checkpoint,
    sequences: &[Vec<u32>],
    full: bool,
) -> (tempfile::TempDir, Stats) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        full,
        replace: false,
    };
    let source = Source::Text(sequences.to_vec());
    let out = dir.path().join("stats.safetensors");
    let stats = calibrate(checkpoint, &source, &options, &out, &NoProgress).unwrap();
    (dir, stats)
}

fn recorded(checkpoint: &Checkpoint, sequences: &[Vec<u32>]) -> Recorder {
    let reference = Reference::with_budget(checkpoint, 0).unwrap();
    let mut recorder = Recorder::default();
    let mut pass = Layerwise::new(&reference, sequences, &mut recorder).unwrap();
    while pass.advance(&mut recorder).unwrap().is_some() {}
    pass.finish(&mut recorder).unwrap();
    recorder
}

/// Largest difference relative to the largest of `theirs`.
fn relative(ours: &[f32], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0f64, |m, v| m.max(v.abs()));
    assert!(largest > 0.0);
    let pairs = ours.iter().zip(theirs);
    let worst = pairs.map(|(a, b)| (f64::from(*a) - b).abs());
    worst.fold(
        0f64,
        |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) },
    ) / largest
}

fn mean_of(rows: &[Vec<f32>], f: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut sums = vec![0f64; rows[0].len()];
    for row in rows {
        sums.iter_mut()
            .zip(row)
            .for_each(|(s, v)| *s += f(f64::from(*v)));
    }
    sums.iter().map(|s| s / rows.len() as f64).collect()
}

fn assert_vectors(input: InputStats, rows: &[Vec<f32>], tolerance: f64, name: &str) {
    assert_eq!(input.rows(), rows.len() as u64, "{name}");
    let second = relative(&input.second_moment(), &mean_of(rows, |v| v * v));
    let mean = relative(&input.mean_abs(), &mean_of(rows, f64::abs));
    let all = || rows.iter().flatten().map(|v| f64::from(*v));
    let range = [
        all().fold(f64::MAX, f64::min),
        all().fold(f64::MIN, f64::max),
    ];
    let range = relative(&<[f32; 2]>::from(input.range()), &range);
    for error in [second, mean, range] {
        assert!(error <= tolerance, "{name}: off by {error:e}");
    }
}

/// Layer after layer over several sequences: the states of one forward per sequence, to the bit.
#[test]
fn layer_by_layer_is_the_forward() {
    for dir in fixtures("reference.safetensors") {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let reference = Reference::with_budget(&checkpoint, 0).unwrap();
        let sequences = two_sequences(&dir);
        let keep = Keep {
            all_logits: false,
            hidden: true,
        };
        let whole: Vec<_> = sequences
            .iter()
            .map(|ids| {
                reference
                    .forward(ids, &mut reference.cache(), keep)
                    .unwrap()
                    .hidden
            })
            .collect();
        let mut recorder = Recorder::default();
        let mut pass = Layerwise::new(&reference, &sequences, &mut recorder).unwrap();
        let layers = reference.plan().layers.len();
        for state in 0..=layers {
            for (i, states) in whole.iter().enumerate() {
                assert_eq!(
                    pass.stream(i).unwrap(),
                    states[state],
                    "{} {state}",
                    dir.display()
                );
            }
            let ran = pass.advance(&mut recorder).unwrap();
            assert_eq!(ran, (state < layers).then_some(state));
        }
        pass.finish(&mut recorder).unwrap();
        let last: Vec<f32> = recorder.inputs[names::EMBED].concat();
        assert_eq!(
            last,
            [&whole[0][layers + 1][..], &whole[1][layers + 1]].concat()
        );
    }
}

/// Projections that are said to share an input are handed the same tensor.
#[test]
fn shared_inputs_are_one_tensor() {
    for dir in fixtures("reference.safetensors") {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let sequences = &two_sequences(&dir)[1..];
        let (_dir, stats) = measured(&checkpoint, sequences, false);
        let seen: BTreeMap<_, _> = recorded(&checkpoint, sequences).last.into_iter().collect();
        let mut shared = 0;
        for (tensor, site) in stats.tensors() {
            assert_eq!(seen[tensor], seen[site], "{tensor}");
            shared += usize::from(tensor != site);
        }
        assert_eq!(
            seen.len(),
            stats.tensors().count(),
            "a linear layer without a site"
        );
        assert!(shared >= 2);
    }
}

/// The inputs that follow from transformers' states: q, k and v's, the per-layer projection's and the head's.
#[test]
fn statistics_are_those_of_transformers_states() {
    for dir in fixtures("reference.safetensors") {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let (ids, states) = stored(&dir.join("reference.safetensors"), 1);
        let (_dir, stats) = measured(&checkpoint, &[ids], false);
        let plan = gemma_coreml::gemma::ModelPlan::new(checkpoint.config()).unwrap();
        for layer in &plan.layers {
            let name = format!("{}input_layernorm.weight", layer.prefix());
            let mut gain = vec![0f32; plan.hidden];
            let view = checkpoint.tensor(&name, &[plan.hidden]).unwrap();
            view.read_f32(0..plan.hidden, &mut gain).unwrap();
            let normed: Vec<Vec<f32>> = states[layer.index]
                .iter()
                .map(|row| {
                    let square: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum();
                    let root = (square / plan.hidden as f64 + plan.eps).sqrt();
                    let scaled = row.iter().zip(&gain);
                    scaled
                        .map(|(v, g)| (f64::from(*v) / root * f64::from(*g)) as f32)
                        .collect()
                })
                .collect();
            let tensor = format!("{}self_attn.q_proj.weight", layer.prefix());
            let input = stats.input(&tensor).unwrap();
            assert_vectors(input, &normed, STORED_TOLERANCE, &tensor);
        }
        let head = stats.input(names::EMBED).unwrap();
        assert_vectors(head, states.last().unwrap(), STORED_TOLERANCE, "the head");
        match plan.ple_dim {
            0 => assert!(stats.input(names::PER_LAYER_PROJECTION).is_err()),
            _ => {
                let input = stats.input(names::PER_LAYER_PROJECTION).unwrap();
                assert_vectors(
                    input,
                    &states[0],
                    STORED_TOLERANCE,
                    "the per-layer projection",
                );
            }
        }
    }
}

/// Every site of every fixture against sums, sorting and products in plain Rust over the rows that an observer was shown.
#[test]
fn statistics_are_those_of_brute_force() {
    for dir in fixtures("reference.safetensors") {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let sequences = two_sequences(&dir);
        let (_dir, stats) = measured(&checkpoint, &sequences, true);
        let inputs = recorded(&checkpoint, &sequences).inputs;
        assert_eq!(
            stats.tokens(),
            sequences.iter().map(Vec::len).sum::<usize>() as u64
        );
        assert_eq!(stats.sequences(), 2);
        for (tensor, _) in stats.tensors() {
            let (input, rows) = (stats.input(tensor).unwrap(), &inputs[tensor]);
            assert_eq!(input.width(), rows[0].len());
            assert_vectors(input, rows, SUM_TOLERANCE, tensor);
            let mut sorted: Vec<f32> = rows.iter().flatten().map(|v| v.abs()).collect();
            sorted.sort_by(f32::total_cmp);
            for p in [0.0, 0.1, 25.0, 50.0, 99.0, 99.9, 99.99, 100.0] {
                let rank = (p / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
                let exact = f64::from(sorted[rank - 1]);
                let error = (f64::from(input.percentile(p)) - exact).abs();
                let allowed = PERCENTILE_TOLERANCE * exact + 2f64.powi(-24);
                assert!(
                    error <= allowed,
                    "{tensor}: p{p} is {exact}, off by {error}"
                );
            }
            assert_eq!(input.percentile(100.0), *sorted.last().unwrap());
            assert_matrix(input, rows, tensor);
        }
    }
}

fn assert_matrix(input: InputStats, rows: &[Vec<f32>], name: &str) {
    let moments = input.moments().expect("a full file");
    let n = moments.width();
    let second = input.second_moment();
    let largest = second.iter().fold(0f64, |m, v| m.max(f64::from(*v)));
    for i in 0..n {
        let row = moments.row(i);
        for (j, value) in row.iter().enumerate() {
            assert_eq!(*value, moments.row(j)[i], "{name}: not symmetric");
        }
        let off_diagonal = (f64::from(row[i]) - f64::from(second[i])).abs();
        assert!(
            off_diagonal <= PRODUCT_TOLERANCE * largest,
            "{name}: {off_diagonal:e}"
        );
        // Two columns of every row are enough: the sums are slow without optimization.
        for j in [(i * 7 + 1) % n, (i + n / 2) % n] {
            let product = |r: &Vec<f32>| f64::from(r[i]) * f64::from(r[j]);
            let exact = rows.iter().map(product).sum::<f64>() / rows.len() as f64;
            let error = (f64::from(row[j]) - exact).abs();
            assert!(
                error <= PRODUCT_TOLERANCE * largest,
                "{name} {i} {j}: {error:e}"
            );
        }
    }
}

/// Asking for matrices changes nothing else.
#[test]
fn a_full_file_has_the_vectors_of_one_without_matrices() {
    let dir = snapshots::fixture("moe-tiny");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let sequences = two_sequences(&dir);
    let (_a, full) = measured(&checkpoint, &sequences, true);
    let (_b, plain) = measured(&checkpoint, &sequences, false);
    assert!(full.is_full() && !plain.is_full());
    for (tensor, _) in full.tensors() {
        let (a, b) = (full.input(tensor).unwrap(), plain.input(tensor).unwrap());
        assert_eq!(a.second_moment(), b.second_moment());
        assert_eq!(a.mean_abs(), b.mean_abs());
        assert_eq!((a.range(), a.rows()), (b.range(), b.rows()));
        assert!(b.moments().is_none());
    }
    assert_ne!(full.sha256(), plain.sha256());
}

#[test]
fn every_token_counts_once_for_each_expert_it_is_given_to() {
    let dir = snapshots::fixture("moe-tiny");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let (_dir, stats) = measured(&checkpoint, &two_sequences(&dir), false);
    let top_k = checkpoint.config().moe.unwrap().top_k_experts as u64;
    let rows = |suffix: &str| stats.input(&format!("layers.1.{suffix}")).unwrap().rows();
    assert!(top_k > 1);
    assert_eq!(rows("experts.gate_up_proj"), stats.tokens() * top_k);
    assert_eq!(rows("experts.down_proj"), stats.tokens() * top_k);
    assert_eq!(rows("router.proj.weight"), stats.tokens());
}

/// The input of down_proj overflows: the error names it, and there is no file, whole or partial.
#[test]
fn an_infinite_input_is_an_error_and_leaves_nothing() {
    let dir = snapshots::edited(|t| {
        let up = snapshots::find(t, "layers.2.mlp.up_proj.weight");
        let huge = half::bf16::from_f32(3e38).to_le_bytes();
        up.bytes
            .chunks_exact_mut(2)
            .for_each(|b| b.copy_from_slice(&huge));
    });
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("stats.safetensors");
    let source = Source::Text(vec![vec![2, 110, 111]]);
    let error = calibrate(
        &checkpoint,
        &source,
        &Options::default(),
        &path,
        &NoProgress,
    );
    let error = error.expect_err("an infinity");
    let named = matches!(&error, Error::NotFinite { tensor, .. } if tensor == "layers.2.mlp.down_proj.weight");
    assert!(named, "{error}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn sources_that_cannot_be_run_are_errors() {
    let checkpoint = Checkpoint::open(&snapshots::fixture("e4b-tiny")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("stats.safetensors");
    let run = |source| {
        let done = calibrate(
            &checkpoint,
            &source,
            &Options::default(),
            &path,
            &NoProgress,
        );
        done.map(|_| ()).expect_err("no such source")
    };
    assert!(matches!(run(Source::Text(vec![])), Error::NoText));
    assert!(matches!(
        run(Source::Text(vec![vec![2], vec![]])),
        Error::Length { got: 0, .. }
    ));
    assert!(matches!(run(Source::Noise(0)), Error::Noise { got: 0, .. }));
    assert!(matches!(
        run(Source::Noise(257)),
        Error::Noise { most: 256, .. }
    ));
    assert!(matches!(
        run(Source::Text(vec![vec![2, 256]])),
        Error::Gemma(_)
    ));
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    std::fs::write(&path, "kept").unwrap();
    assert!(matches!(run(Source::Noise(1)), Error::Exists { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), b"kept");
}

/// A copy of a sound file with its header and data edited.
struct Damage {
    header: Value,
    data: Vec<u8>,
}

impl Damage {
    /// Where a tensor's data begins.
    fn at(&self, tensor: &str) -> usize {
        self.header[tensor]["data_offsets"][0].as_u64().unwrap() as usize
    }

    fn put(&mut self, tensor: &str, value: f32) {
        let at = self.at(tensor);
        self.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

#[test]
fn files_that_lie_are_refused_by_name() {
    let dir = snapshots::fixture("e4b-tiny");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let (out, stats) = measured(&checkpoint, &two_sequences(&dir), false);
    let sound = std::fs::read(stats.path()).unwrap();
    let path = out.path().join("damaged.safetensors");
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Stats::open(&path).map(|_| ())
    };
    open(&sound).expect("a copy");
    for length in [0, 7, 100, sound.len() / 2, sound.len() - 1] {
        let error = open(&sound[..length]).expect_err("truncated");
        assert!(error.to_string().contains("damaged.safetensors"), "{error}");
    }
    const Q: &str = "layers.3.self_attn.q_proj.weight";
    let name = |what: &str| format!("{Q}.{what}");
    type Edit<'a> = Box<dyn Fn(&mut Damage) + 'a>;
    let meta = |key: &'static str, value: &'static str| -> Edit {
        Box::new(move |d| d.header["__metadata__"][key] = value.into())
    };
    let value =
        |what: &'static str, value: f32| -> Edit { Box::new(move |d| d.put(&name(what), value)) };
    let cases: [(Edit, &str); 14] = [
        (meta("format", "something else"), "format"),
        (meta("tokens", "0"), "tokens"),
        (meta("tokens", "17"), "histogram"),
        (meta("source", "dreams"), "source"),
        (meta("full", "true"), "moments"),
        (meta("sites", "[]"), "sites"),
        (meta("sites", "{\"a\": \"b\"}"), "b.second_moment"),
        (value("second_moment", f32::NAN), "second_moment"),
        (value("second_moment", 1e9), "second_moment"),
        (value("mean_abs", 1e3), "second_moment"),
        (value("mean_abs", f32::INFINITY), "mean_abs"),
        (value("range", f32::NAN), "range"),
        (
            Box::new(|d| {
                let at = d.at(&name("histogram"));
                d.data[at + 9] ^= 1;
            }),
            "histogram",
        ),
        (
            Box::new(|d| d.header[name("range")]["dtype"] = "I32".into()),
            "range",
        ),
    ];
    for (i, (edit, named)) in cases.iter().enumerate() {
        let (header, data) = snapshots::split(&sound);
        let mut damage = Damage {
            header,
            data: data.to_vec(),
        };
        edit(&mut damage);
        let mut header = damage.header.to_string();
        header.push_str(&" ".repeat(8 - header.len() % 8));
        let bytes = snapshots::assemble(&header, &damage.data);
        let error = open(&bytes).expect_err("damaged").to_string();
        assert!(
            error.contains(named) && error.contains("hint: "),
            "{i}: {error}"
        );
    }
    let error = stats
        .input("layers.99.mlp.up_proj.weight")
        .map(|_| ())
        .expect_err("none");
    let text = error.to_string();
    assert!(
        text.contains("layers.99.mlp.up_proj.weight") && text.contains("more"),
        "{text}"
    );
}

/// What noise is measured on is not what a text is measured on, and the file says so.
#[test]
fn noise_needs_no_text() {
    let checkpoint = Checkpoint::open(&snapshots::fixture("nano")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let measure = |name: &str| {
        let path = out.path().join(name);
        calibrate(
            &checkpoint,
            &Source::Noise(5),
            &Options::default(),
            &path,
            &NoProgress,
        )
        .unwrap()
    };
    let (a, b) = (measure("a"), measure("b"));
    assert_eq!(a.sha256(), b.sha256());
    assert!(a.source() == "noise" && a.tokens() == 5);
    let input = a.input(names::PER_LAYER_PROJECTION).unwrap();
    // 0.1 times normal values: five of 128 have a spread of about that, and none beyond five of it.
    let spread = input
        .second_moment()
        .iter()
        .map(|v| f64::from(*v))
        .sum::<f64>()
        / input.width() as f64;
    assert!(
        (0.08..0.12).contains(&spread.sqrt()) && input.max_abs() < 0.5,
        "{spread}"
    );
}
