//! Odd members of the family, as packages: opened by coremltools, and decoded against the f32 reference forward.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::gemma::reference::{Keep, Reference, Table, checkpoint_row};
use gemma_coreml::gemma::{ModelPlan, RopeSpec, rope};
use gemma_coreml::graph::{ChunkGraph, GraphOptions, Layout, WeightBinding, build_chunk, split};
use gemma_coreml::mil::DeferredConst;
use gemma_coreml::package::{
    BoxError, ConstSource, ModelDescription, Package, PackageSpec, Part, PartSink, Storage,
    WEIGHT_FILE_LIMIT, write_package,
};
use gemma_coreml::runtime::{
    ChainSpec, DecodeOptions, Decoder, Precision, RopeTable, RopeTables, TokenRows,
};
use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Least cosine of logits or of a layer's state at any position. Weights are the same fp16 values on both sides; RoPE
/// tables, scalars and epsilon in fp16 make the difference.
const LEAST_COSINE: f64 = 0.9995;
/// Least mean of these cosines over a model.
const LEAST_MEAN_COSINE: f64 = 0.99999;
/// Largest relative difference of the winning logit.
const LOGIT_TOLERANCE: f32 = 0.01;
/// Tokens fed to each model, fewer if the context ends: past every window but one.
const STEPS: usize = 24;

/// A model that the fixtures do not cover.
struct Case {
    name: &'static str,
    /// One letter per layer, `s` or `f`.
    kinds: &'static str,
    /// Fields of config.json beside small defaults.
    fields: Value,
    context: usize,
}

fn cases() -> Vec<Case> {
    let case = |name, kinds, context, fields| Case {
        name,
        kinds,
        fields,
        context,
    };
    vec![
        case(
            "no full layer in chunk1",
            "sssfsf",
            32,
            json!({"num_kv_shared_layers": 2}),
        ),
        case(
            "no sliding layer",
            "ffffff",
            32,
            json!({"num_kv_shared_layers": 2}),
        ),
        case("no sharing", "ssssf", 32, json!({})),
        case(
            "dense with K = V, no softcap",
            "sfsf",
            32,
            json!({
                "attention_k_eq_v": true, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0,
                "final_logit_softcapping": null,
            }),
        ),
        case(
            "experts beside per-layer inputs and sharing layers",
            "sfsfsfsf",
            32,
            json!({
                "num_kv_shared_layers": 4, "enable_moe_block": true, "num_experts": 6, "top_k_experts": 3,
                "moe_intermediate_size": 24,
            }),
        ),
        case(
            "one expert of one channel",
            "sfsf",
            32,
            json!({
                "enable_moe_block": true, "num_experts": 1, "top_k_experts": 1, "moe_intermediate_size": 1,
            }),
        ),
        case(
            "full heads narrower than sliding ones",
            "ssfsf",
            32,
            json!({"global_head_dim": 8, "num_key_value_heads": 4}),
        ),
        case(
            "double-wide sharing layers",
            "sfsfsfsf",
            32,
            json!({
                "num_kv_shared_layers": 4, "use_double_wide_mlp": true, "num_key_value_heads": 1,
            }),
        ),
        case(
            "context shorter than the window",
            "sfsfsf",
            16,
            json!({"sliding_window": 40}),
        ),
        case(
            "window and context of one token",
            "ssfsfsf",
            1,
            json!({
                "sliding_window": 1, "num_kv_shared_layers": 2,
            }),
        ),
    ]
}

fn config(case: &Case) -> Value {
    let kind = |c| {
        if c == 's' {
            "sliding_attention"
        } else {
            "full_attention"
        }
    };
    let types: Vec<_> = case.kinds.chars().map(kind).collect();
    let mut config = json!({
        "model_type": "gemma4_text", "vocab_size": 96, "vocab_size_per_layer_input": 96, "hidden_size": 64,
        "num_hidden_layers": types.len(), "layer_types": types, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32, "sliding_window": 8, "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8, "max_position_embeddings": 64, "final_logit_softcapping": 30.0,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
        },
    });
    for (key, value) in case.fields.as_object().expect("fields are an object") {
        config[key] = value.clone();
    }
    config
}

/// Writes a checkpoint with random fp16 weights of about unit gain.
fn write_checkpoint(dir: &Path, case: &Case) -> Checkpoint {
    let config = serde_json::to_vec(&config(case)).unwrap();
    let path = dir.join("config.json");
    std::fs::write(&path, &config).unwrap();
    let parsed = gemma_coreml::checkpoint::TextConfig::parse(&path, &config).unwrap();
    let plan = ModelPlan::new(&parsed).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, shape) in plan.tensors() {
        let (center, spread) = match shape.as_slice() {
            // Uniform on (-1, 1) has variance 1/3.
            [.., _, inputs] => (0.0, (3.0 / *inputs as f32).sqrt()),
            _ => (0.9, 0.3),
        };
        let values =
            (0..shape.iter().product()).map(|_| center + spread * rng.random_range(-1.0f32..1.0));
        let bytes = values
            .flat_map(|v| f16::from_f32(v).to_le_bytes())
            .collect();
        tensors.insert(format!("model.{name}"), (shape, bytes));
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (
            name,
            TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap(),
        )
    });
    std::fs::write(
        dir.join("model.safetensors"),
        safetensors::serialize(views, None).unwrap(),
    )
    .unwrap();
    Checkpoint::open(dir).unwrap()
}

/// Every weight of a chunk as it is in the checkpoint, in fp16.
struct Dense<'a> {
    checkpoint: &'a Checkpoint,
    weights: &'a [WeightBinding],
}

impl ConstSource for Dense<'_> {
    fn storage(&self, _: &DeferredConst) -> Result<Storage, BoxError> {
        Ok(Storage::Dense)
    }

    fn stream(&mut self, c: &DeferredConst, sink: &mut dyn PartSink) -> Result<(), BoxError> {
        let weight = self
            .weights
            .iter()
            .find(|w| w.konst.id == c.id)
            .ok_or("no such weight")?;
        let tensor = self
            .checkpoint
            .tensor(&weight.tensor, &weight.source_shape)?;
        let mut values = vec![f16::ZERO; tensor.len()];
        tensor.read_f16(0..tensor.len(), &mut values)?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(sink.write(Part::Data, &bytes)?)
    }
}

fn write_chunk(dir: &Path, graph: &ChunkGraph, checkpoint: &Checkpoint) -> PathBuf {
    let path = dir.join(format!("{}.mlpackage", graph.name));
    let order: Vec<String> = graph.weights.iter().map(|w| w.konst.id.clone()).collect();
    let spec = PackageSpec {
        program: &graph.program,
        description: ModelDescription::default(),
        blob_order: &order,
        file_limit: WEIGHT_FILE_LIMIT,
    };
    let mut source = Dense {
        checkpoint,
        weights: &graph.weights,
    };
    write_package(&path, &spec, &mut source).unwrap();
    path
}

/// Writes the chunks of a case; each reads back with the features of its graph.
fn write_chunks(dir: &Path, case: &Case, checkpoint: &Checkpoint) -> Vec<(String, PathBuf)> {
    let plan = ModelPlan::new(checkpoint.config()).unwrap();
    let mut packages = Vec::new();
    for spec in split::chunks(&plan, Layout::Swa4).unwrap() {
        let graph = build_chunk(&plan, &spec, &GraphOptions::decode(case.context)).unwrap();
        let path = write_chunk(dir, &graph, checkpoint);
        let package = Package::open(&path).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let (read, main) = (
            &package.functions()["main"],
            &graph.program.functions["main"],
        );
        assert_eq!(read.inputs, main.inputs, "{}", case.name);
        assert_eq!(read.outputs, main.outputs, "{}", case.name);
        packages.push((graph.name, path));
    }
    packages
}

#[test]
fn coremltools_opens_every_package() {
    let root = tempfile::tempdir().unwrap();
    let mut packages = Vec::new();
    for (i, case) in cases().iter().enumerate() {
        let dir = root.path().join(format!("case{i}"));
        std::fs::create_dir(&dir).unwrap();
        let checkpoint = write_checkpoint(&dir, case);
        packages.extend(
            write_chunks(&dir, case, &checkpoint)
                .into_iter()
                .map(|(_, path)| path),
        );
    }
    common::coremltools_validate(&packages);
}

/// Rows of a checkpoint.
struct ExactRows(Arc<Checkpoint>, ModelPlan);

impl TokenRows for ExactRows {
    fn embed(&self, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        Ok(checkpoint_row(
            &self.0,
            &self.1,
            Table::Embedding,
            token,
            out,
        )?)
    }

    fn per_layer(&self, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        Ok(checkpoint_row(
            &self.0,
            &self.1,
            Table::PerLayer,
            token,
            out,
        )?)
    }
}

fn rope_tables(plan: &ModelPlan, rows: usize) -> RopeTables {
    let tables = |spec: &RopeSpec| {
        let (cos, sin) = rope::table(spec, rows);
        let half = |values: Vec<f32>| RopeTable {
            rows,
            dim: spec.head_dim,
            values: values.into_iter().map(f16::from_f32).collect(),
        };
        (half(cos), half(sin))
    };
    let ((cos_sliding, sin_sliding), (cos_full, sin_full)) =
        (tables(&plan.sliding.rope), tables(&plan.full.rope));
    RopeTables {
        cos_sliding,
        sin_sliding,
        cos_full,
        sin_full,
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |x: &[f32], y: &[f32]| {
        x.iter()
            .zip(y)
            .map(|(&x, &y)| f64::from(x) * f64::from(y))
            .sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn check_decode(case: &Case) {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = Arc::new(write_checkpoint(root.path(), case));
    let plan = ModelPlan::new(checkpoint.config()).unwrap();
    let steps = STEPS.min(case.context);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let ids: Vec<u32> = (0..steps)
        .map(|_| rng.random_range(0..plan.vocab as u32))
        .collect();

    let reference = Reference::load(&checkpoint).unwrap();
    let keep = Keep {
        all_logits: true,
        hidden: true,
    };
    let expected = reference
        .forward(&ids, &mut reference.cache(), keep)
        .unwrap();

    // Hidden state l+1 of the reference is what layer l gives.
    let mut names: Vec<String> = (0..plan.layers.len())
        .map(|i| format!("layer_{i}_out"))
        .collect();
    names.push("final_norm_out".to_owned());
    let mut keep = names.clone();
    keep.push("logits".to_owned());
    let chain = ChainSpec {
        chunks: write_chunks(root.path(), case, &checkpoint),
        context: case.context,
        window: plan.window,
        hidden: plan.hidden,
        per_layer: plan.layers.len() * plan.ple_dim,
        rope: rope_tables(&plan, case.context),
        ..ChainSpec::default()
    };
    let rows = Box::new(ExactRows(checkpoint.clone(), plan.clone()));
    let options = DecodeOptions {
        threads: 1,
        keep,
        ..DecodeOptions::default()
    };
    let mut decoder = Decoder::open(chain, Precision::F32, rows, options).unwrap();
    let mut cosines = Vec::new();
    for (position, &id) in ids.iter().enumerate() {
        let step = decoder.step(id).unwrap();
        let states = names
            .iter()
            .zip(&expected.hidden[1..])
            .map(|(name, state)| {
                (
                    name.as_str(),
                    &state[position * plan.hidden..(position + 1) * plan.hidden],
                )
            });
        let logits = expected.logits[position].as_slice();
        for (name, expected) in states.chain([("logits", logits)]) {
            let got = cosine(step.kept[name].as_f32().unwrap(), expected);
            assert!(
                got >= LEAST_COSINE,
                "{}: {name} at position {position}: cosine {got}",
                case.name
            );
            cosines.push(got);
        }
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        assert!(
            (step.token_logit - largest).abs() < LOGIT_TOLERANCE * largest.abs(),
            "{} {position}",
            case.name
        );
        let kept = step.kept["logits"].as_f32().unwrap();
        assert_eq!(
            kept[step.token_id as usize], step.token_logit,
            "{} {position}",
            case.name
        );
    }
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    assert!(
        mean >= LEAST_MEAN_COSINE,
        "{}: mean cosine {mean}",
        case.name
    );
}

#[test]
fn odd_models_decode_as_the_reference() {
    for case in cases() {
        check_decode(&case);
    }
}
