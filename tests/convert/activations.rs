//! Quantized activations: where they are written, what they compute, and what a conversion needs for them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::common::{coremltools_python, coremltools_validate};
use crate::helpers::*;
use gemma_coreml::bundle::{Bundle, Provenance};
use gemma_coreml::calibrate::{self, Source, Stats};
use gemma_coreml::checkpoint::Checkpoint;
use gemma_coreml::convert::{Error, Fault, Options};
use gemma_coreml::evaluate::{RowSource, open_decoder};
use gemma_coreml::package::{Binding, ReadFunction, ReadOp};
use gemma_coreml::progress::NoProgress;
use gemma_coreml::recipe::Recipe;
use gemma_coreml::runtime::{DecodeOptions, Decoder, Precision};
use half::f16;

/// Recipes that quantize activations.
const RECIPES: [&str; 3] = ["w8a8", "w8a8-naive", "w4a8"];
/// A convolution against the same sum in f64, relative to the largest result: sums in f32 of up to 512 terms.
const SUM_TOLERANCE: f64 = 1e-5;
/// Prefill against decode, largest difference of a logit (softcap 30). None was seen.
const OTHER_ORDER: f32 = 1e-3;

/// Statistics of a fixture on the ids of a short text, in `dir`.
fn statistics(model: &Path, dir: &Path) -> Arc<Stats> {
    let checkpoint = Checkpoint::open(model).unwrap();
    let vocab = checkpoint.config().vocab_size as u32;
    let ids = std::iter::once(2).chain((0..60).map(|i| 3 + (i * 37 + i * i) % (vocab - 3)));
    let source = Source::Text(vec![ids.collect()]);
    let out = dir.join("stats.safetensors");
    let options = calibrate::Options {
        replace: true,
        ..Default::default()
    };
    Arc::new(calibrate::calibrate(&checkpoint, &source, &options, &out, &NoProgress).unwrap())
}

fn with(stats: &Arc<Stats>) -> Options {
    Options {
        calibration: Some(stats.clone()),
        ..options()
    }
}

/// A scalar in fp16, written in place or as a constant.
fn scalar(ops: &BTreeMap<&str, &ReadOp>, op: &ReadOp, arg: &str) -> f32 {
    let value = match op.input(arg) {
        Some(Binding::Value(value)) => value,
        Some(Binding::Name(name)) => ops[name.as_str()].value.as_ref().unwrap(),
        None => panic!("{}: no {arg}", op.name),
    };
    assert_eq!(value.ty().shape, [0usize; 0], "{}", op.name);
    let bytes = value.bytes();
    assert_eq!(bytes.len(), 2, "{}: not fp16", op.name);
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn name_of<'a>(op: &'a ReadOp, arg: &str) -> &'a str {
    match op.input(arg) {
        Some(Binding::Name(name)) => name,
        other => panic!("{}: {arg}: {other:?}", op.name),
    }
}

/// A convolution behind a pair: names of what goes in, what comes out of the pair, what comes out of the convolution.
struct Chain<'a> {
    x: &'a str,
    scale: f32,
    rounded: &'a str,
    conv: &'a ReadOp,
    weight: &'a ReadOp,
}

/// Checks the form of every pair of a function, and gives the convolutions behind pairs.
fn chains(function: &ReadFunction) -> Vec<Chain<'_>> {
    let by_output: BTreeMap<&str, &ReadOp> = function
        .ops
        .iter()
        .flat_map(|op| op.outputs.iter().map(move |(name, _)| (name.as_str(), op)))
        .collect();
    let mut chains = Vec::new();
    for conv in function.ops.iter().filter(|op| op.op_type.name() == "conv") {
        let weight = by_output[name_of(conv, "weight")];
        let rounded = name_of(conv, "x");
        let dequantize = by_output
            .get(rounded)
            .filter(|op| op.op_type.name() == "dequantize");
        let is_quantized = weight.op_type.is_constexpr();
        assert_eq!(dequantize.is_some(), is_quantized, "{}", conv.name);
        let Some(dequantize) = dequantize else {
            continue;
        };
        let quantize = by_output[name_of(dequantize, "input")];
        assert_eq!(quantize.op_type.name(), "quantize");
        for op in [quantize, dequantize] {
            assert!(op.input("zero_point").is_none() && op.input("axis").is_none());
        }
        assert_eq!(quantize.outputs[0].1.dtype.name(), "int8");
        let scale = scalar(&by_output, quantize, "scale");
        assert_eq!(scale, scalar(&by_output, dequantize, "scale"));
        chains.push(Chain {
            x: name_of(quantize, "input"),
            scale,
            rounded,
            conv,
            weight,
        });
    }
    chains
}

/// Every quantized convolution of every fixture is behind one pair, pairs are shared by those with one input, and the scales
/// are those of the statistics. coremltools takes the packages.
#[test]
fn pairs_stand_before_quantized_layers_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut packages = Vec::new();
    for model in fixtures() {
        let stats = statistics(&fixture(&model), dir.path());
        for recipe in RECIPES {
            let out = dir.path().join(format!("{model}-{recipe}"));
            run(&fixture(&model), recipe, &out, &with(&stats)).unwrap();
            let bundle = Bundle::open(&out).unwrap();
            let activations = Recipe::builtin(recipe)
                .unwrap()
                .quantize
                .activations
                .unwrap();
            let scale = |tensor: &str| {
                let largest = stats
                    .input(tensor)
                    .unwrap()
                    .percentile(activations.percentile().unwrap());
                f16::from_f32(largest / 127.0).to_f32()
            };
            let mut quantized = 0;
            for chunk in bundle.packages() {
                packages.push(chunk.path.clone());
                for function in chunk.package.functions().values() {
                    let chains = chains(function);
                    let pairs: BTreeSet<&str> = chains.iter().map(|c| c.rounded).collect();
                    let inputs: BTreeSet<&str> = chains.iter().map(|c| c.x).collect();
                    let count = function
                        .ops
                        .iter()
                        .filter(|op| op.op_type.name() == "quantize");
                    assert_eq!((pairs.len(), pairs.len()), (inputs.len(), count.count()));
                    for chain in &chains {
                        let id = &chain.weight.outputs[0].0;
                        let mut tensors = stats.tensors().map(|(tensor, _)| tensor);
                        let tensor = tensors.find(|t| t.replace('.', "_") == *id).unwrap();
                        assert_eq!(chain.scale, scale(tensor), "{tensor}");
                    }
                    quantized += chains.len();
                }
            }
            let facts = Provenance::read(&out).unwrap();
            let linear = facts.tensors.iter();
            let linear = linear.filter(|t| t.file.ends_with(".mlpackage") && t.scheme != "fp16");
            assert_eq!(quantized, linear.count(), "{model} {recipe}");
            assert!(quantized > 0);
            assert_eq!(facts.recipe.calibration.unwrap(), stats.sha256());
        }
    }
    coremltools_validate(&packages);
}

fn decoder(bundle: &Path, keep: Vec<String>) -> Decoder {
    let bundle = Arc::new(Bundle::open(bundle).unwrap());
    let options = DecodeOptions {
        threads: 1,
        keep,
        ..DecodeOptions::default()
    };
    open_decoder(&bundle, Precision::F32, &RowSource::Bundle, options).unwrap()
}

/// Every quantized convolution of a whole model at work, against plain code: the pair rounds half to even, saturates, and
/// scales back, exactly; the convolution is the sum over the unpacked weight.
#[test]
fn the_interpreter_computes_what_the_pair_says() {
    let dir = tempfile::tempdir().unwrap();
    let stats = statistics(&fixture("nano"), dir.path());
    // Ranges that half of the values exceed, so that saturation is seen.
    let text = Recipe::builtin("w8a8").unwrap().source;
    let line = text
        .lines()
        .find(|l| l.starts_with("activations"))
        .unwrap()
        .to_string();
    let narrow = text.replace(
        &line,
        "activations = { ranges = \"percentile\", percentile = 50 }",
    );
    let narrow = Recipe::parse("narrow", &narrow).unwrap();
    for (recipe, saturates) in [(Recipe::builtin("w8a8").unwrap(), false), (narrow, true)] {
        let out = dir.path().join("b");
        run_recipe(
            &fixture("nano"),
            &recipe,
            &out,
            &Options {
                force: true,
                ..with(&stats)
            },
        )
        .unwrap();
        let bundle = Bundle::open(&out).unwrap();
        let functions: Vec<&ReadFunction> = bundle
            .packages()
            .map(|c| &c.package.functions()[c.package.default_function()])
            .collect();
        let chains: Vec<Chain> = functions.iter().flat_map(|f| chains(f)).collect();
        let names = |c: &Chain| {
            [
                c.x.to_string(),
                c.rounded.into(),
                c.conv.outputs[0].0.clone(),
            ]
        };
        // Automatic names repeat between chunks, those in a layer do not.
        let chains: Vec<Chain> = chains
            .into_iter()
            .filter(|c| c.rounded.starts_with("layer_"))
            .collect();
        let keep: BTreeSet<String> = chains.iter().flat_map(names).collect();
        let mut model = decoder(&out, keep.into_iter().collect());
        let mut outside = 0;
        for id in [2, 459, 366, 561] {
            let kept = model.step(id).unwrap().kept;
            for chain in &chains {
                let [x, rounded, y] = names(chain).map(|n| kept[&n].as_f32().unwrap().to_vec());
                for (x, rounded) in x.iter().zip(&rounded) {
                    let q = (x / chain.scale).round_ties_even().clamp(-128.0, 127.0);
                    assert_eq!(*rounded, q * chain.scale, "{}", chain.rounded);
                    outside += usize::from((x / chain.scale).abs() > 129.0);
                }
                let sums = product(chain.weight, &rounded);
                let largest = sums.iter().fold(0f64, |m, v| m.max(v.abs()));
                assert_eq!(sums.len(), y.len());
                for (sum, y) in sums.iter().zip(&y) {
                    let error = (sum - f64::from(*y)).abs();
                    assert!(
                        error <= SUM_TOLERANCE * largest,
                        "{}: {error}",
                        chain.conv.name
                    );
                }
            }
        }
        assert!(chains.len() >= 10 * 7, "{}", chains.len());
        assert_eq!(outside > 1000, saturates, "{outside}");
    }
}

/// An int8 weight with a scale for each row, times a vector. In f32 the runtime does not round the weights to fp16.
fn product(weight: &ReadOp, x: &[f32]) -> Vec<f64> {
    let [data, scale] = ["data", "scale"].map(|arg| match weight.input(arg) {
        Some(Binding::Value(value)) => value.bytes().to_vec(),
        other => panic!("{}: {arg}: {other:?}", weight.name),
    });
    let scales = scale
        .as_chunks()
        .0
        .iter()
        .map(|&b| f16::from_le_bytes(b).to_f64());
    let rows = data.chunks(x.len()).zip(scales);
    let sum = |row: &[u8]| -> f64 {
        let terms = row.iter().zip(x);
        terms
            .map(|(q, x)| f64::from(*q as i8) * f64::from(*x))
            .sum()
    };
    rows.map(|(row, scale)| scale * sum(row)).collect()
}

/// Prefill has the same pairs: the same tokens give the same logits, whichever way they come in.
#[test]
fn prefill_is_decode() {
    let dir = tempfile::tempdir().unwrap();
    let stats = statistics(&fixture("nano"), dir.path());
    let text = Recipe::builtin("w8a8").unwrap().source;
    let text = text.replace("[\"decode\"]", "[\"decode\", \"prefill-40\", \"verify-3\"]");
    let out = dir.path().join("b");
    let recipe = Recipe::parse("w8a8-prefill", &text).unwrap();
    run_recipe(&fixture("nano"), &recipe, &out, &with(&stats)).unwrap();
    let mut counts = Vec::new();
    for chunk in Bundle::open(&out).unwrap().packages() {
        let functions = chunk.package.functions().values();
        counts.extend(functions.map(|f| chains(f).len()));
    }
    assert_eq!(counts.len(), 4 * 3, "{counts:?}");
    let logits = |kept: &BTreeMap<String, gemma_coreml::runtime::Tensor>| {
        kept["logits"].as_f32().unwrap().to_vec()
    };
    let prompt: Vec<u32> = (0..40).map(|i| 2 + (i * 37 + i * i) % 200).collect();
    let [mut serial, mut whole] = [(); 2].map(|()| decoder(&out, vec!["logits".into()]));
    let mut last = Vec::new();
    for &id in &prompt {
        let step = serial.step(id).unwrap();
        last = logits(&step.kept);
    }
    let (count, step) = whole.prefill(&prompt).unwrap();
    assert_eq!(count, prompt.len());
    let mut got = logits(&step.kept);
    for id in [300, 301, 302] {
        let pairs = last.iter().zip(&got).map(|(a, b)| (a - b).abs());
        let worst = pairs.fold(0f32, f32::max);
        assert!(worst <= OTHER_ORDER, "{worst}");
        last = logits(&serial.step(id).unwrap().kept);
        got = logits(&whole.step(id).unwrap().kept);
    }
}

#[test]
fn statistics_are_asked_for_and_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (fixture("dense-tiny"), dir.path().join("b"));
    let stats = statistics(&model, dir.path());
    let refused = |recipe: &str, options: &Options| {
        let error = run(&model, recipe, &out, options).unwrap_err();
        assert!(matches!(error.fault(), Fault::Input), "{error}");
        assert!(error.to_string().contains("hint: "), "{error}");
        error
    };
    assert!(matches!(
        refused("w8a8", &options()),
        Error::NoCalibration {
            key: "activations",
            ..
        }
    ));
    let other = tempfile::tempdir().unwrap();
    let of_other = statistics(&fixture("e4b-tiny"), other.path());
    let missing = run(&fixture("nano"), "w8a8", &out, &with(&stats)).unwrap_err();
    assert!(matches!(missing, Error::Calibration(_)), "{missing}");
    let error = run(&model, "w8a8", &out, &with(&of_other)).unwrap_err();
    assert!(matches!(error, Error::OtherCalibration { .. }), "{error}");
    let changed = damaged("dense-tiny", dir.path(), |file| {
        file.set("layers.0.mlp.up_proj.weight", 0, 0.5)
    });
    let error = run(&changed, "w8a8", &out, &with(&stats)).unwrap_err();
    assert!(matches!(error, Error::OtherCalibration { .. }), "{error}");
    assert!(!out.exists());
}

/// Rewriting for another context needs the statistics again, and the same ones; then it gives what a whole conversion gives.
#[test]
fn another_context_needs_the_same_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("e4b-tiny");
    let stats = statistics(&model, dir.path());
    let (out, fresh) = (dir.path().join("b"), dir.path().join("fresh"));
    let at = |context: usize, stats: Option<&Arc<Stats>>| Options {
        context: Some(context),
        calibration: stats.cloned(),
        ..options()
    };
    run(&model, "w8a8", &out, &at(64, Some(&stats))).unwrap();
    let before = contents(&out);
    let error = run(&model, "w8a8", &out, &at(96, None)).unwrap_err();
    assert!(matches!(error, Error::NoCalibration { .. }), "{error}");
    let noise = dir.path().join("noise");
    let checkpoint = Checkpoint::open(&model).unwrap();
    let noise = calibrate::calibrate(
        &checkpoint,
        &Source::Noise(5),
        &Default::default(),
        &noise,
        &NoProgress,
    );
    let noise = Arc::new(noise.unwrap());
    let error = run(&model, "w8a8", &out, &at(96, Some(&noise))).unwrap_err();
    assert!(
        matches!(error, Error::OtherBundle { what: "recipe", .. }),
        "{error}"
    );
    assert!(contents(&out) == before);
    run(&model, "w8a8", &out, &at(96, Some(&stats))).unwrap();
    run(&model, "w8a8", &fresh, &at(96, Some(&stats))).unwrap();
    assert_same(&out, &fresh);
    // A package rebuilt in another form keeps the record of what the others were built with.
    let only = Options {
        only: Some("chunk2".into()),
        context: None,
        ..options()
    };
    let plain = Recipe::builtin("w8a8").unwrap().source;
    let line = plain
        .lines()
        .find(|l| l.starts_with("activations"))
        .unwrap()
        .to_string();
    let plain = Recipe::parse("plain", &plain.replace(&line, "")).unwrap();
    run_recipe(&model, &plain, &out, &only).unwrap();
    let facts = Provenance::read(&out).unwrap();
    assert_eq!(facts.recipe.calibration.unwrap(), stats.sha256());
    assert!(facts.packages["chunk2"].calibration.is_none());
    assert!(
        contents(&out)["chunk2.mlpackage/Data/com.apple.CoreML/model.mlmodel"]
            != contents(&fresh)["chunk2.mlpackage/Data/com.apple.CoreML/model.mlmodel"]
    );
    let again = Options {
        calibration: Some(stats.clone()),
        ..only
    };
    run(&model, "w8a8", &out, &again).unwrap();
    assert_same(&out, &fresh);
}

/// One package alone has quantized activations: another context asks for its statistics all the same.
#[test]
fn a_package_with_activations_of_its_own_is_rewritten_with_its_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("e4b-tiny");
    let stats = statistics(&model, dir.path());
    let out = dir.path().join("b");
    run(&model, "w8-linear", &out, &options()).unwrap();
    let rebuild = |context: Option<usize>, stats: Option<&Arc<Stats>>| Options {
        only: context.map_or(Some("chunk2".into()), |_| None),
        context,
        calibration: stats.cloned(),
        ..options()
    };
    run(&model, "w8a8", &out, &rebuild(None, Some(&stats))).unwrap();
    let before = contents(&out);
    let error = run(&model, "w8-linear", &out, &rebuild(Some(96), None)).unwrap_err();
    assert!(matches!(error, Error::NoCalibration { .. }), "{error}");
    let checkpoint = Checkpoint::open(&model).unwrap();
    let noise = dir.path().join("noise");
    let noise = calibrate::calibrate(
        &checkpoint,
        &Source::Noise(5),
        &Default::default(),
        &noise,
        &NoProgress,
    );
    let noise = Arc::new(noise.unwrap());
    let error = run(&model, "w8-linear", &out, &rebuild(Some(96), Some(&noise))).unwrap_err();
    let other = matches!(&error, Error::OtherBundle { what, .. } if *what == "calibration");
    assert!(other, "{error}");
    for context in [96, 64] {
        let options = rebuild(Some(context), Some(&stats));
        run(&model, "w8-linear", &out, &options).unwrap();
    }
    assert!(contents(&out) == before);
}

/// coremltools' own pass over one convolution: the form and the scale that it writes, and what its value inference computes.
const PASS: &str = r#"
import json, logging, sys
logging.disable(logging.CRITICAL)
import numpy as np
import coremltools as ct
import coremltools.optimize as cto
from coremltools.converters.mil.mil import Builder as mb, types
from coremltools.optimize.coreml import _quantization_passes as passes

@mb.program(input_specs=[mb.TensorSpec((1, 4, 1, 3), types.fp16)], opset_version=ct.target.iOS18)
def prog(x):
    return mb.conv(x=x, weight=np.ones((2, 4, 1, 1), np.float16), name="y")

out = []
for largest in json.loads(sys.argv[1]):
    import copy
    p = copy.deepcopy(prog)
    config = cto.coreml.OptimizationConfig(global_config=cto.coreml.OpLinearQuantizerConfig(mode="linear_symmetric"))
    one = passes.insert_prefix_quantize_dequantize_pair(config)
    one.activation_stats = {"x": {"rmin": np.float32(-largest / 2), "rmax": np.float32(largest)}}
    one.apply(p)
    ops = [op for op in p.functions["main"].operations if op.op_type != "const"]
    q, d = ops[0], ops[1]
    out.append({"ops": [op.op_type for op in ops], "scale": float(q.scale.val), "same": float(d.scale.val),
                "dtype": str(q.scale.val.dtype), "rank": q.scale.rank, "zero_point": q.zero_point is not None,
                "output": q.output_dtype.val})
values = np.array(json.loads(sys.argv[2]), np.float32)
rounded = []
for scale in json.loads(sys.argv[3]):
    scale = np.float32(np.float16(scale))
    @mb.program(input_specs=[], opset_version=ct.target.iOS18)
    def one():
        q = mb.quantize(input=values, scale=scale, output_dtype="int8")
        rounded.append(q.val.astype(int).tolist())
        return mb.dequantize(input=q, scale=scale)
print(json.dumps({"passes": out, "rounded": rounded}))
"#;

#[test]
fn the_form_is_that_of_coremltools() {
    let largest = [127.0f32, 1.0, 3.37, 886.8278, 0.001];
    let scales = [0.25f32, 0.1, 1.0, 7.3];
    // Halves, which round to even, values on either side of them, and values beyond both ends.
    let values: Vec<f32> = (-1200..=1200).map(|i| i as f32 / 8.0 * 0.5).collect();
    let args = [
        serde_json::json!(largest).to_string(),
        serde_json::json!(values).to_string(),
        serde_json::json!(scales).to_string(),
    ];
    let output = Command::new(coremltools_python())
        .arg("-c")
        .arg(PASS)
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|l| l.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let said: serde_json::Value = serde_json::from_str(line).unwrap();
    for (largest, pass) in largest.iter().zip(said["passes"].as_array().unwrap()) {
        assert_eq!(
            pass["ops"],
            serde_json::json!(["quantize", "dequantize", "conv"])
        );
        let scale = f64::from(f16::from_f32(largest / 127.0).to_f32());
        assert_eq!(
            (pass["scale"].as_f64(), pass["same"].as_f64()),
            (Some(scale), Some(scale))
        );
        assert_eq!(
            (&pass["dtype"], &pass["rank"]),
            (&"float16".into(), &0.into())
        );
        assert_eq!(
            (&pass["zero_point"], &pass["output"]),
            (&false.into(), &"int8".into())
        );
    }
    for (scale, rounded) in scales.iter().zip(said["rounded"].as_array().unwrap()) {
        let scale = f16::from_f32(*scale).to_f32();
        let theirs: Vec<i64> = serde_json::from_value(rounded.clone()).unwrap();
        let ours = values
            .iter()
            .map(|v| (v / scale).round_ties_even().clamp(-128.0, 127.0) as i64);
        assert_eq!(ours.collect::<Vec<_>>(), theirs, "{scale}");
    }
}
