//! Every package that a built-in recipe makes of a fixture, opened by coremltools in one process, and its weights as
//! coremltools decompresses them against the bytes unpacked here and against what the kernels of the runtime multiply.

use crate::common::coremltools_dump_weights;
use crate::helpers::*;
use crate::values::unpacked;
use gemma_coreml::package::Package;
use gemma_coreml::runtime::{Kernel, StoredWeights};
use half::f16;
use std::fs;
use std::path::{Path, PathBuf};

/// Copies the packages of a bundle to `to`, named after bundle and chunk.
fn collect_packages(bundle: &Path, label: &str, to: &Path) -> Vec<PathBuf> {
    let mut packages = Vec::new();
    for chunk in entries(bundle).iter().filter(|e| e.ends_with(".mlpackage")) {
        let copy = to.join(format!("{label}-{chunk}"));
        for (file, bytes) in contents(&bundle.join(chunk)) {
            let target = copy.join(file);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::write(target, bytes).unwrap();
        }
        packages.push(copy);
    }
    packages
}

/// Allowed difference of a kernel's product from that in f64, in f32 roundings of the sum of the terms' sizes.
const PRODUCT_ROUNDINGS: f64 = 16.0;

/// Half a unit in the last place of fp16: where scales are applied, coremltools rounds what they give, the runtime in f32
/// does not.
const HALF_ROUNDING: f64 = 1.0 / 2048.0;

/// Half the smallest fp16 step.
const HALF_STEP: f64 = 1.0 / (1 << 25) as f64;

/// Compares the products that every kernel makes of a stored weight with those of coremltools' values (fp16), in f64.
fn check_products(stored: &StoredWeights, name: &str, shape: &[usize], values: &[u8]) {
    let (rows, cols) = (shape[0], shape[1..].iter().product::<usize>());
    let halves = values.chunks_exact(2);
    let halves = halves.map(|b| f64::from(f16::from_le_bytes([b[0], b[1]]).to_f32()));
    let dense: Vec<f64> = halves.collect();
    let mut ours = vec![0.0; dense.len()];
    stored.read(name, 0, &mut ours).unwrap();
    let mut pairs = ours.iter().zip(&dense);
    let exact = pairs.all(|(&a, &b)| f64::from(a) == b);
    let mut pairs = ours.iter().zip(&dense);
    assert!(
        pairs.all(|(&a, b)| (f64::from(a) - b).abs() <= b.abs() * HALF_ROUNDING + HALF_STEP),
        "{name}"
    );
    for vectors in [1, 3] {
        let x: Vec<f32> = (0..vectors * cols)
            .map(|i| (i as f32 * 0.7).sin())
            .collect();
        for kernel in Kernel::available() {
            let mut got = vec![f32::NAN; rows * vectors];
            stored
                .multiply(name, kernel, &x, vectors, &mut got)
                .unwrap();
            for (i, &got) in got.iter().enumerate() {
                let row = &dense[i / vectors * cols..][..cols];
                let x = &x[i % vectors * cols..][..cols];
                let terms = row.iter().zip(x).map(|(w, &x)| w * f64::from(x));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                let mut allowed = PRODUCT_ROUNDINGS * size * f64::from(f32::EPSILON);
                if !exact {
                    allowed += size * HALF_ROUNDING + cols as f64 * HALF_STEP;
                }
                let off = (f64::from(got) - sum).abs();
                let what = (name, kernel.name(), vectors, i);
                assert!(off <= allowed, "{what:?}: {got} for {sum}");
            }
        }
    }
}

/// Compares every constant that coremltools gave with ours, bit for bit, and the products of weights. Returns how many.
fn compare_weights(package: &Path, dump: &Path) -> usize {
    let bytes = fs::read(dump).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let package = Package::open(package).unwrap();
    let function = &package.functions()[package.default_function()];
    let stored = StoredWeights::of(function).unwrap();
    let mut compared = 0;
    for op in &function.ops {
        let (name, ty) = match op.outputs.first() {
            Some(output) => output,
            None => continue,
        };
        let Ok(tensor) = theirs.tensor(&format!("{}/{name}", package.default_function())) else {
            let kind = op.op_type.name();
            // The results of `constexpr_lut_to_sparse` are no weights by themselves.
            assert!(
                !kind.starts_with("constexpr_") || kind == "constexpr_lut_to_sparse",
                "{name}: coremltools gave no values"
            );
            continue;
        };
        assert_eq!(tensor.shape(), ty.shape, "{name}");
        let ours = unpacked(function, op);
        let same = tensor
            .data()
            .chunks_exact(2)
            .zip(&ours)
            .all(|(b, w)| f16::from_le_bytes([b[0], b[1]]).to_f32().to_bits() == w.to_bits());
        assert!(
            same && tensor.data().len() == 2 * ours.len(),
            "{name} differs"
        );
        if stored.is_weight(name) {
            check_products(&stored, name, &ty.shape, tensor.data());
        }
        compared += 1;
    }
    assert_eq!(compared, theirs.len(), "{}", dump.display());
    compared
}

/// Compares the weights of packages with coremltools' own decompression; `dir` takes its output. Returns how many.
fn compare_all(packages: &[PathBuf], dir: &Path) -> usize {
    let dumps = dir.join("dumps");
    coremltools_dump_weights(packages, &dumps);
    let one = |package: &PathBuf| {
        let stem = package.file_stem().unwrap().to_string_lossy();
        compare_weights(package, &dumps.join(format!("{stem}.safetensors")))
    };
    packages.iter().map(one).sum()
}

/// [`compare_all`] for the packages of these bundles.
pub fn equal_to_coremltools(bundles: &[PathBuf], dir: &Path) -> usize {
    let packages = bundles.iter().flat_map(|bundle| {
        let label = bundle.file_name().unwrap().to_string_lossy();
        collect_packages(bundle, &label, dir)
    });
    compare_all(&packages.collect::<Vec<_>>(), dir)
}

#[test]
fn coremltools_opens_every_package_and_finds_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let mut packages = Vec::new();
    for model in fixtures() {
        for recipe in crate::helpers::swa4_recipes() {
            let label = format!("{model}-{}", recipe.name);
            let out = dir.path().join(&label);
            run_recipe(&fixture(&model), &recipe, &out, &options()).unwrap();
            packages.extend(collect_packages(&out, &label, dir.path()));
            fs::remove_dir_all(out).unwrap();
        }
    }
    let compared = compare_all(&packages, dir.path());
    println!("{} packages, {compared} weights", packages.len());
    assert!(packages.len() >= 4 * 8 * 4);
}
