//! The checkpoints that `make synth` writes: what the published members have, in small where they are written.

#[allow(dead_code)]
#[path = "../fixtures/synth/main.rs"]
mod synth;

use std::collections::BTreeMap;
use std::path::Path;

use gemma_coreml::bundle::Bundle;
use gemma_coreml::checkpoint::{Adapter, Checkpoint, LayerKind, Tokenizer};
use gemma_coreml::convert::{Options, convert};
use gemma_coreml::gemma::ModelPlan;
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::Recipe;

/// What a normal distribution has is 3, a logistic one 4.2.
const LEAST_KURTOSIS: f64 = 5.0;

fn plan_of(model: &str) -> ModelPlan {
    let config = synth::members::config(model, None, 1).unwrap();
    let bytes = serde_json::to_vec(&config).unwrap();
    let config = gemma_coreml::checkpoint::TextConfig::parse(Path::new("config.json"), &bytes);
    ModelPlan::new(&config.unwrap()).unwrap()
}

/// Text tensors and bytes in bf16, by the table of names and shapes. E2B's 600 tensors are those of the header on the hub.
#[test]
fn members_have_their_published_sizes() {
    for (model, tensors, bytes) in [
        ("e2b", 600, 9_294_899_782),
        ("e4b", 719, 15_036_138_068),
        ("12b", 666, 23_814_700_640),
        ("31b", 832, 61_394_690_680u64),
    ] {
        let all = synth::tensors(&plan_of(model), model);
        let sum: usize = all.iter().map(|t| 2 * t.elements()).sum();
        assert_eq!((all.len(), sum as u64), (tensors, bytes), "{model}");
    }
}

fn written(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap();
    files
        .map(|f| f.unwrap())
        .map(|f| {
            let name = f.file_name().into_string().unwrap();
            (name, std::fs::read(f.path()).unwrap())
        })
        .collect()
}

fn write(model: &str, layers: usize, dir: &Path) {
    let config = synth::members::config(model, Some(layers), 16).unwrap();
    synth::write(model, &config, dir).unwrap();
}

fn values(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Vec<f32> {
    let view = checkpoint.tensor(name, shape).unwrap();
    let mut out = vec![0.0; view.len()];
    view.read_f32(0..view.len(), &mut out).unwrap();
    out
}

#[test]
fn a_small_one_is_the_same_every_time_and_converts() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    write("e2b", 35, &a);
    write("e2b", 35, &b);
    assert!(written(&a) == written(&b));

    let checkpoint = Checkpoint::open(&a).unwrap();
    let plan = ModelPlan::new(checkpoint.config()).unwrap();
    plan.check(&checkpoint).unwrap();
    assert_eq!(checkpoint.passed_over().shared_kv, 60);
    let mut norms: BTreeMap<bool, Vec<Vec<f32>>> = BTreeMap::new();
    for layer in &plan.layers {
        let name = format!("{}self_attn.q_norm.weight", layer.prefix());
        let norm = values(&checkpoint, &name, &[layer.head_dim]);
        assert!(norm.iter().all(|w| (w - 1.0).abs() < 1.0));
        let of_kind = norms.entry(layer.kind == LayerKind::Full).or_default();
        of_kind.push(norm);
    }
    for of_kind in norms.values() {
        assert!(of_kind.iter().all(|n| *n == of_kind[0]));
    }
    let weights = values(
        &checkpoint,
        "layers.3.mlp.up_proj.weight",
        &[plan.layers[3].intermediate, plan.hidden],
    );
    let moment = |n: i32| {
        let sum: f64 = weights.iter().map(|w| f64::from(*w).powi(n)).sum();
        sum / weights.len() as f64
    };
    let kurtosis = moment(4) / moment(2).powi(2);
    assert!(kurtosis > LEAST_KURTOSIS, "{kurtosis}");

    let tokenizer = Tokenizer::open(&a).unwrap();
    assert_eq!(tokenizer.vocab_size(), plan.vocab);
    let recipe = Recipe::builtin("swa4-int4").unwrap();
    let out = dir.path().join("bundle");
    let options = Options {
        context: Some(64),
        ..Options::default()
    };
    convert(&checkpoint, &recipe, &out, &options, &NoProgress).unwrap();
    Bundle::open(&out).unwrap();
}

#[test]
fn a_large_one_is_two_files_with_the_full_layers_in_the_second() {
    let dir = tempfile::tempdir().unwrap();
    let config = synth::members::config("31b", Some(6), 64).unwrap();
    synth::write_as("31b", synth::Kind::Plain, &config, dir.path(), 1).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.weight_files().count(), 2);
    ModelPlan::new(checkpoint.config())
        .unwrap()
        .check(&checkpoint)
        .unwrap();
    let index = std::fs::read(dir.path().join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let file = |layer: usize| {
        let name = format!("model.language_model.layers.{layer}.layer_scalar");
        index["weight_map"][name].as_str().unwrap().to_string()
    };
    assert_eq!(file(4), "model-00001-of-00002.safetensors");
    assert_eq!(file(5), "model-00002-of-00002.safetensors");
}

#[test]
fn an_adapter_is_of_every_projection_and_stays_below_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let config = synth::members::config("e2b", Some(35), 16).unwrap();
    let model = dir.path().join("model");
    synth::write("e2b", &config, &model).unwrap();
    let plan = synth::plan(&config).unwrap();
    let name = "layers.3.mlp.up_proj.weight";
    let shape = [plan.layers[3].intermediate, plan.hidden];
    let plain = values(&Checkpoint::open(&model).unwrap(), name, &shape);
    for dora in [false, true] {
        let path = dir.path().join(format!("adapter-{dora}"));
        synth::adapter::write(&plan, 4, dora, &path).unwrap();
        let adapters = [Adapter::open(&path).unwrap()];
        let checkpoint = Checkpoint::open(&model).unwrap();
        let checkpoint = checkpoint.with_adapters(&adapters).unwrap();
        // 35 layers of five, and K and V of the 15 that own them.
        assert_eq!(checkpoint.adapters()[0].changed.len(), 35 * 5 + 15 * 2);
        let merged = values(&checkpoint, name, &shape);
        let size =
            |of: &mut dyn Iterator<Item = f32>| of.map(|v| f64::from(v).powi(2)).sum::<f64>();
        let moved = size(&mut merged.iter().zip(&plain).map(|(m, p)| m - p));
        let moved = (moved / size(&mut plain.iter().copied())).sqrt();
        assert!((0.01..0.7).contains(&moved), "{dora}: {moved}");
    }
}

/// Each kind is read as what it is, and its recipe keeps every integer. E2B's shapes divided by sixteen leave modules with
/// fewer than 32 inputs, which are numbers where a step is for 32.
#[test]
fn forms_of_quantization_aware_checkpoints_are_kept() {
    for (kind, says, recipe, bits) in [
        (
            synth::Kind::Q4_0,
            "stored as numbers",
            "qat-int4",
            [4].as_slice(),
        ),
        (
            synth::Kind::Ct,
            "of 4 bits, 32 inputs a step",
            "qat-int4",
            &[4],
        ),
        (
            synth::Kind::Mobile,
            "with activation scales",
            "qat-mobile",
            &[2, 4, 8],
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (model, out) = (dir.path().join("model"), dir.path().join("bundle"));
        let config = synth::members::config("e2b", Some(35), 16).unwrap();
        synth::write_as("e2b", kind, &config, &model, u64::MAX).unwrap();
        let checkpoint = Checkpoint::open(&model).unwrap();
        let plan = ModelPlan::new(checkpoint.config()).unwrap();
        plan.check(&checkpoint).unwrap();
        let format = checkpoint.quantization().unwrap().to_string();
        assert!(format.contains(says), "{format}");
        let recipe = Recipe::builtin(recipe).unwrap();
        let options = Options {
            context: Some(64),
            ..Options::default()
        };
        let report = convert(&checkpoint, &recipe, &out, &options, &NoProgress).unwrap();
        let mut found = std::collections::BTreeSet::new();
        for record in &report.tensors {
            // Those that `qat-int4` leaves in fp16 for their size, and norms.
            let small = record.elements
                <= if kind == synth::Kind::Mobile {
                    1024
                } else {
                    2048
                };
            let layer = record.tensor.starts_with("layers.") && !small;
            let Some(grid) = &record.grid else {
                assert!(!layer, "{} has no grid", record.tensor);
                continue;
            };
            // Tables of compressed-tensors are numbers that were never rounded, and so is the projection beside `mobile`.
            if layer {
                assert_eq!(grid.off, 0, "{}", record.tensor);
                assert_eq!(grid.given, kind != synth::Kind::Q4_0);
                found.insert(grid.nbits);
            }
        }
        assert_eq!(Vec::from_iter(found), bits);
    }
}
