//! Checkpoints with steps of activations: what packages compute with them, in every form, against the f32 reference and its
//! integers; recipes that leave them out.

mod points;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::coremltools_validate;
use crate::helpers::*;
use gemma_coreml::bundle::{Bundle, Provenance};
use gemma_coreml::checkpoint::{ActivationScales, Checkpoint};
use gemma_coreml::convert::{Error, Fault, Options, Report, forecast};
use gemma_coreml::evaluate::batched::{Batched, BundleWeights};
use gemma_coreml::evaluate::metrics::{cosine, kl_divergence};
use gemma_coreml::evaluate::{ExactRows, RowSource, open_decoder};
use gemma_coreml::gemma::reference::{Keep, Layerwise, Reference};
use gemma_coreml::gemma::{LayerKind, Observer};
use gemma_coreml::recipe::Recipe;
use gemma_coreml::runtime::{DecodeOptions, Decoder, Precision};
use half::f16;
use points::{Point, around, points};

const IDS: [u32; 12] = [2, 110, 45, 190, 7, 7, 81, 160, 33, 99, 140, 12];

fn qat(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/qat")
        .join(name)
}

fn mobile() -> PathBuf {
    qat("mobile")
}

/// A copy of the checkpoint with other numbers in its weight file.
fn edited(to: &Path, change: impl FnOnce(&mut Safetensors)) -> PathBuf {
    let model = to.join("edited");
    std::fs::create_dir_all(&model).unwrap();
    for (name, bytes) in contents(&mobile()) {
        std::fs::write(model.join(name), bytes).unwrap();
    }
    let mut file = Safetensors::read(&model.join("model.safetensors"));
    change(&mut file);
    file.write();
    model
}

/// A copy whose numbers fp16 holds: steps of activations are powers of two, those of weights have few digits. So sums are
/// all that rounds, and nothing but a value at a tie can be another integer than the reference's.
fn exact(to: &Path, change: impl FnOnce(&mut Safetensors)) -> PathBuf {
    edited(to, |file| {
        for key in file.header.keys().cloned().collect::<Vec<_>>() {
            let scale = file.header[&key]["data_offsets"].clone();
            let [start, end] = [0, 1].map(|i| scale[i].as_u64().unwrap_or(0) as usize);
            for bytes in file.data[start..end].as_chunks_mut::<4>().0 {
                let value = f32::from_le_bytes(*bytes);
                let new = if key.ends_with("activation_scale") && value != 0.0 {
                    value.log2().round().exp2()
                } else if key.ends_with(".weight_scale") {
                    f32::from_bits(value.to_bits() & 0xffff_0000)
                } else {
                    continue;
                };
                *bytes = new.to_le_bytes();
            }
        }
        change(file);
    })
}

/// A built-in recipe in two chunks: the tiny checkpoints own K and V in two layers, too few for four.
fn builtin(name: &str) -> Recipe {
    changed(name, |text| text)
}

fn changed(name: &str, change: impl FnOnce(String) -> String) -> Recipe {
    let text = change(Recipe::builtin(name).unwrap().source);
    assert!(text.contains("layout = \"swa4\""));
    Recipe::parse(
        name,
        &text.replace("layout = \"swa4\"", "layout = \"swa2\""),
    )
    .unwrap()
}

/// `qat-mobile` that leaves the steps out.
fn left_out() -> Recipe {
    changed("qat-mobile", |text| {
        let asked = "ranges = \"checkpoint\"";
        assert!(text.contains(asked));
        text.replace(asked, "ranges = \"none\"")
    })
}

fn made(model: &Path, name: &str, out: &Path, options: &Options) -> Report {
    run_recipe(model, &builtin(name), out, options).unwrap()
}

fn decoder(bundle: &Path, model: &Path, precision: Precision, keep: Vec<String>) -> Decoder {
    let checkpoint = Arc::new(Checkpoint::open(model).unwrap());
    let rows = RowSource::Exact(ExactRows::new(checkpoint).unwrap());
    let bundle = Arc::new(Bundle::open(bundle).unwrap());
    let options = DecodeOptions {
        threads: 1,
        keep,
        ..DecodeOptions::default()
    };
    open_decoder(&bundle, precision, &rows, options).unwrap()
}

/// The logits after every id.
fn logits(bundle: &Path, model: &Path, precision: Precision) -> Vec<Vec<f32>> {
    let mut decoder = decoder(bundle, model, precision, vec!["logits".into()]);
    let step = |id: &u32| {
        let kept = decoder.step(*id).unwrap().kept;
        kept["logits"].as_f32().unwrap().to_vec()
    };
    IDS.iter().map(step).collect()
}

/// The reference with the cos and sin of a bundle.
fn reference<'a>(checkpoint: &'a Checkpoint, bundle: &'a Bundle) -> Reference<'a> {
    let angles = |kind, position, cos: &mut [f32], sin: &mut [f32]| {
        let rope = bundle.rope();
        let (cosines, sines) = match kind {
            LayerKind::Sliding => (&rope.cos_sliding, &rope.sin_sliding),
            LayerKind::Full => (&rope.cos_full, &rope.sin_full),
        };
        cosines.row(position, cos)?;
        sines.row(position, sin)?;
        Ok(())
    };
    let reference = Reference::load(checkpoint).unwrap();
    reference.with_rotary(Box::new(angles))
}

fn all_logits(reference: &Reference) -> Vec<Vec<f32>> {
    let keep = Keep {
        all_logits: true,
        hidden: false,
    };
    let out = reference.forward(&IDS, &mut reference.cache(), keep);
    out.unwrap().logits
}

/// Mean KL, least cosine, tokens with another best logit.
fn apart(reference: &[Vec<f32>], got: &[Vec<f32>]) -> (f64, f64, usize) {
    assert_eq!(reference.len(), got.len());
    let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    let pairs = || reference.iter().zip(got);
    let kl: f64 = pairs().map(|(r, g)| kl_divergence(r, g)).sum();
    let least = pairs().map(|(r, g)| cosine(r, g)).fold(1.0, f64::min);
    let other = pairs().filter(|(r, g)| best(r) != best(g)).count();
    (kl / got.len() as f64, least, other)
}

/// The inputs that the reference multiplies, by tensor, over the ids.
#[derive(Default)]
struct Inputs(BTreeMap<String, Vec<f32>>);

impl Observer for Inputs {
    fn input(&mut self, tensor: &str, x: &candle_core::Tensor) -> candle_core::Result<()> {
        let values = x.flatten_all()?.to_vec1()?;
        self.0.insert(tensor.to_string(), values);
        Ok(())
    }
}

fn inputs(reference: &Reference) -> BTreeMap<String, Vec<f32>> {
    let mut seen = Inputs::default();
    let mut pass = Layerwise::new(reference, &[IDS.to_vec()], &mut seen).unwrap();
    while pass.advance(&mut seen).unwrap().is_some() {}
    seen.0
}

/// What is folded is not in the program; everything else is, once for each value that is rounded.
#[test]
fn factors_are_folded_into_norms_and_weights() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let report = made(&mobile(), "qat-mobile", &out, &options());
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    let checkpoint = Checkpoint::open(&mobile()).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    let around = around(&bundle);
    let near = |value: f32| f16::from_f32(value).to_f32();
    let mut layers = 0;
    for (constant, [input, output]) in &around {
        let mut names = checkpoint.names();
        let name = names
            .find(|name| name.replace('.', "_") == *constant)
            .unwrap();
        let Some(scales) = checkpoint.activation_scales(name) else {
            assert!(input.is_none() && output.is_none(), "{name}");
            continue;
        };
        let fed = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"];
        let fed = fed.iter().any(|part| name.contains(part));
        let before = if fed { 1.0 } else { near(1.0 / scales.input) };
        let factors = |point: &Option<Point>| point.as_ref().map(|p| p.factors);
        assert_eq!(factors(input), Some([before, 1.0]), "{name}");
        assert_eq!(factors(output), Some([1.0, near(scales.output)]), "{name}");
        layers += 1;
    }
    let functions = bundle.chunks().iter().map(|chunk| {
        let name = chunk.package.default_function();
        points(&chunk.package.functions()[name]).len()
    });
    // An output for each; q, k and v share an input, and so do gate and up. Layer 0 has no steps around `o_proj`.
    assert_eq!(layers, 4 * 7 + 2 * 2 - 1);
    assert_eq!(functions.sum::<usize>(), layers + 4 * 6 - 1);
}

/// Counts are what is on the way, in every point, in both precisions; they are those of the reference, and so are the logits.
#[test]
fn every_point_has_the_integers_of_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (exact(dir.path(), |_| {}), dir.path().join("b"));
    made(&model, "qat-mobile", &out, &options());
    let checkpoint = Checkpoint::open(&model).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    let around = around(&bundle);
    let points = || around.values().flatten().flatten();
    let keep = points().flat_map(|p| [p.from.clone(), p.counts.clone()]);
    let keep: BTreeSet<String> = keep.collect();
    let theirs = inputs(&reference(&checkpoint, &bundle));
    for precision in [Precision::F32, Precision::F16] {
        let mut decoder = decoder(&out, &model, precision, keep.iter().cloned().collect());
        let [mut same, mut all] = [0, 0];
        for (at, id) in IDS.iter().enumerate() {
            let kept = decoder.step(*id).unwrap().kept;
            let values = |name: &str| kept[name].as_f32().unwrap();
            for point in points() {
                let counts = values(&point.counts);
                for (x, q) in values(&point.from).iter().zip(counts) {
                    let x = x * point.factors[0];
                    let x = match precision {
                        Precision::F32 => x,
                        Precision::F16 => f16::from_f32(x).to_f32(),
                    };
                    let expected = x.round_ties_even().clamp(-128.0, 127.0);
                    assert_eq!(*q, expected, "{} {x}", point.from);
                }
            }
            for (constant, [input, _]) in &around {
                let Some(input) = input else { continue };
                let mut tensors = theirs.keys();
                let tensor = tensors.find(|t| t.replace('.', "_") == *constant).unwrap();
                let step = checkpoint.activation_scales(tensor).unwrap().input;
                let counts = values(&input.counts);
                let row = &theirs[tensor][at * counts.len()..][..counts.len()];
                let equal = row.iter().zip(counts).filter(|(x, q)| *x / step == **q);
                same += equal.count();
                all += counts.len();
            }
        }
        println!("{precision:?}: {same} of {all} integers are the reference's");
        // In fp16 values cross ties, and each that does changes others.
        if precision == Precision::F32 {
            assert!(same * 10_000 >= all * 9_999, "{same} of {all}");
        }
    }
}

/// Both forms compute the model that was trained; leaving the steps out computes the other. In fp16, and with numbers that fp16
/// has to round, values cross ties, and each that does changes others: there the comparison is with what rounding itself does.
#[test]
fn both_forms_follow_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let exact = exact(dir.path(), |_| {});
    let mut packages = Vec::new();
    for (of, model) in [("published", mobile()), ("exact", exact)] {
        let checkpoint = Checkpoint::open(&model).unwrap();
        for (name, recipe) in [
            ("arithmetic", builtin("qat-mobile")),
            ("quantize", builtin("qat-mobile-quantize")),
            ("none", left_out()),
        ] {
            let out = dir.path().join(format!("{of}-{name}"));
            run_recipe(&model, &recipe, &out, &options()).unwrap();
            let bundle = Arc::new(Bundle::open(&out).unwrap());
            packages.extend(bundle.packages().map(|c| c.path.clone()));
            let with = reference(&checkpoint, &bundle);
            let without = reference(&checkpoint, &bundle).without_activation_scales();
            let [with, without] = [with, without].map(|r| all_logits(&r));
            let (difference, ..) = apart(&with, &without);
            let expected = if name == "none" { &without } else { &with };
            for precision in [Precision::F32, Precision::F16] {
                let got = logits(&out, &model, precision);
                let (kl, cosine, other) = apart(expected, &got);
                println!(
                    "{of} {name} {precision:?}: KL {kl:.2e} (without steps {difference:.2e}), cosine {cosine:.6}, {other} other tokens"
                );
                let rounded = of == "published" || precision == Precision::F16;
                let limit = match name {
                    "none" => difference / 100.0,
                    _ if rounded => difference * 2.0,
                    _ => 1e-6,
                };
                assert!(kl < limit, "{of} {name} {precision:?}: {kl} {limit}");
            }
            let plain = Reference::load(&checkpoint).unwrap();
            match BundleWeights::find(&bundle, plain.plan()).unwrap() {
                Batched::Unfit(reason) => {
                    let op = if name == "quantize" {
                        "quantize"
                    } else {
                        "round"
                    };
                    assert!(name != "none" && reason.contains(op), "{name}: {reason}");
                }
                Batched::Fit(weights) => {
                    assert_eq!(name, "none");
                    let got = all_logits(&weights.reference(&checkpoint).unwrap());
                    let (kl, ..) = apart(&without, &got);
                    // The bundle's rows are int8.
                    assert!(kl < difference / 5.0, "{kl} {difference}");
                }
            }
        }
    }
    coremltools_validate(&packages);
}

/// Inputs with steps of their own, weights whose steps would leave fp16, a step of 0 on one side, a gain that would be too small:
/// what is not folded is in the program, and the model is the same.
#[test]
fn what_cannot_be_folded_is_written() {
    const FAR: f32 = 8192.0;
    let dir = tempfile::tempdir().unwrap();
    let model = exact(dir.path(), |file| {
        let mut set = |name: &str, value| file.set(&format!("layers.{name}"), 0, value);
        set("1.self_attn.k_proj.input_activation_scale", 0.0625);
        set("0.mlp.down_proj.output_activation_scale", FAR);
        set("2.mlp.gate_proj.input_activation_scale", 0.0);
        set("3.per_layer_projection.output_activation_scale", 0.0);
        set("3.input_layernorm.weight", 1e-7);
    });
    let out = dir.path().join("b");
    made(&model, "qat-mobile", &out, &options());
    let bundle = Bundle::open(&out).unwrap();
    let around = around(&bundle);
    let of = |name: &str| around.get(&format!("layers_{name}_weight")).unwrap();
    let factors = |point: &Option<Point>| point.as_ref().map(|p| p.factors);
    let checkpoint = Checkpoint::open(&model).unwrap();
    let scales = |name: &str| -> ActivationScales {
        let name = format!("layers.{name}.weight");
        checkpoint.activation_scales(&name).unwrap()
    };
    // q, k and v have two steps between them, so the norm keeps its gain; in layer 3 it has one that fp16 barely holds.
    for (layer, part) in [(1, "q"), (1, "k"), (1, "v"), (3, "q")] {
        let step = scales(&format!("{layer}.self_attn.{part}_proj")).input;
        let [input, _] = of(&format!("{layer}_self_attn_{part}_proj"));
        assert_eq!(factors(input), Some([1.0 / step, 1.0]), "{layer} {part}");
    }
    let [input, output] = of("0_mlp_down_proj");
    let step = scales("0.mlp.down_proj").input;
    assert_eq!(factors(input), Some([1.0 / step, step]));
    assert_eq!(factors(output), Some([1.0 / FAR, FAR]));
    let [input, output] = of("2_mlp_gate_proj");
    let step = scales("2.mlp.gate_proj").output;
    assert_eq!((factors(input), factors(output)), (None, Some([1.0, step])));
    let [input, _] = of("2_mlp_up_proj");
    let step = scales("2.mlp.up_proj").input;
    assert_eq!(factors(input), Some([1.0 / step, 1.0]));
    let [input, output] = of("3_per_layer_projection");
    assert!(input.is_some() && output.is_none());

    let expected = all_logits(&reference(&checkpoint, &bundle));
    let (kl, cosine, _) = apart(&expected, &logits(&out, &model, Precision::F32));
    println!("not folded: KL {kl:.2e}, cosine {cosine:.6}");
    assert!(kl < 1e-6 && cosine > 0.99999, "{kl} {cosine}");
}

#[test]
fn a_recipe_must_say_what_becomes_of_the_steps() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    for name in ["swa4-int4", "swa4-fp16", "w8a8", "w8a8-naive", "qat-int8"] {
        for error in [
            run(&mobile(), name, &out, &options()).unwrap_err(),
            forecast(
                &Checkpoint::open(&mobile()).unwrap(),
                &Recipe::builtin(name).unwrap(),
                &options(),
            )
            .unwrap_err(),
        ] {
            assert!(matches!(error, Error::ActivationsLeftOut { .. }), "{error}");
            assert!(matches!(error.fault(), Fault::Input));
            let text = error.to_string();
            for part in [
                "86 %",
                "48 %",
                "`qat-mobile`",
                "ranges = \"checkpoint\"",
                "\"none\"",
                name,
            ] {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert_eq!(
                text.contains("which has `activations`"),
                name.starts_with("w8a8")
            );
        }
    }
    assert!(!out.exists());
    let left_out = left_out();
    let report = run_recipe(&mobile(), &left_out, &out, &options()).unwrap();
    let [note] = &report.notes[..] else {
        panic!("{:?}", report.notes)
    };
    assert!(
        note.contains("31 linear layers") && note.contains("48 %"),
        "{note}"
    );
    let planned = forecast(&Checkpoint::open(&mobile()).unwrap(), &left_out, &options());
    assert_eq!(planned.unwrap().notes, report.notes);
    for chunk in Bundle::open(&out).unwrap().packages() {
        let functions = chunk.package.functions().values();
        assert!(functions.flat_map(points).next().is_none());
    }
}

#[test]
fn a_checkpoint_without_steps_has_none_rounded_and_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    for name in ["qat-mobile", "qat-mobile-quantize"] {
        let options = Options {
            force: true,
            ..options()
        };
        let report = made(&qat("w4a16-ct"), name, &out, &options);
        let [note] = &report.notes[..] else {
            panic!("{:?}", report.notes)
        };
        assert!(note.contains("no steps of activations"), "{note}");
        for chunk in Bundle::open(&out).unwrap().packages() {
            for function in chunk.package.functions().values() {
                let mut names = function.ops.iter().map(|op| op.op_type.name());
                assert!(!names.any(|n| n == "round" || n == "quantize"));
            }
        }
    }
}

/// Each width in its own scheme, both ways; rules win; numbers have the default.
#[test]
fn given_integers_have_a_scheme_of_their_width() {
    let dir = tempfile::tempdir().unwrap();
    let rule = "\n[[quantize.rules]]\npattern = 'layers.1.mlp.up'\nscheme = \"palette6-g4\"\n";
    for (form, schemes) in [
        (
            "palette",
            ["palette2-g1", "palette4-g1", "int8-channel-full"],
        ),
        (
            "linear",
            [
                "int4-channel-full",
                "int4-channel-full",
                "int8-channel-full",
            ],
        ),
    ] {
        let out = dir.path().join(form);
        let recipe = changed("qat-mobile", |text| {
            text.replace("\"palette\"", &format!("\"{form}\"")) + rule
        });
        run_recipe(&mobile(), &recipe, &out, &options()).unwrap();
        let facts = Provenance::read(&out).unwrap();
        let mut seen = BTreeSet::new();
        for record in facts
            .tensors
            .iter()
            .filter(|t| t.file.ends_with(".mlpackage"))
        {
            let name = record.tensor.as_str();
            let expected = match name {
                "layers.1.mlp.up_proj.weight" => ("palette6-g4", "rule `layers.1.mlp.up`".into()),
                _ if name.contains("norm") || name.contains("scalar") => {
                    ("fp16", "norm or scalar".into())
                }
                "per_layer_model_projection.weight" => ("fp16", "default".into()),
                _ => {
                    let grid = record.grid.unwrap_or_else(|| panic!("{name}: no grid"));
                    assert!(grid.is_kept() && grid.given, "{name}");
                    seen.insert(grid.nbits);
                    let at = grid.nbits.ilog2() as usize - 1;
                    (schemes[at], format!("given ({form})"))
                }
            };
            assert_eq!(
                (record.scheme.as_str(), &record.reason),
                (expected.0, &expected.1),
                "{name}"
            );
        }
        assert_eq!(Vec::from_iter(seen), [2, 4, 8]);
        let tables = facts.tensors.iter().filter(|t| t.reason == "table");
        let tables: Vec<&str> = tables.map(|t| t.scheme.as_str()).collect();
        // The others are the per-layer projection and its norm.
        assert_eq!(tables[..2], ["rows-int2-row", "rows-int4-block32"]);
    }
    let out = dir.path().join("ct");
    made(&qat("w4a16-ct"), "qat-mobile", &out, &options());
    let facts = Provenance::read(&out).unwrap();
    let blocks = facts
        .tensors
        .iter()
        .filter(|t| t.scheme == "int4-block32-full");
    assert!(blocks.clone().count() > 20);
    assert!(
        blocks
            .clone()
            .all(|t| t.reason == "given (palette)" && t.grid.unwrap().is_kept())
    );
}

/// The two published forms of one model give the same packages, and another context those of a conversion anew.
#[test]
fn containers_and_contexts_give_the_same_packages() {
    let dir = tempfile::tempdir().unwrap();
    let [gemma, compressed, again] = ["gemma", "ct", "again"].map(|name| dir.path().join(name));
    made(&mobile(), "qat-mobile", &gemma, &options());
    made(&qat("mobile-ct"), "qat-mobile", &compressed, &options());
    let packages = |dir: &Path| -> BTreeMap<String, Vec<u8>> {
        let all = contents(dir).into_iter();
        all.filter(|(name, _)| name.contains(".mlpackage"))
            .collect()
    };
    assert!(packages(&gemma) == packages(&compressed));
    let at = |context| Options {
        context: Some(context),
        ..options()
    };
    made(&mobile(), "qat-mobile", &again, &at(32));
    made(&mobile(), "qat-mobile", &again, &at(64));
    assert_same(&gemma, &again);
}
