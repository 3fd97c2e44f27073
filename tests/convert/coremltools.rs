//! Every package that a built-in recipe makes of a fixture, opened by coremltools in one process, and its weights as
//! coremltools decompresses them against the bytes unpacked here.

use crate::common::coremltools_dump_weights;
use crate::helpers::*;
use crate::values::unpacked;
use gemma_coreml::package::Package;
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

/// Compares every constant that coremltools gave with ours, bit for bit. Returns how many.
fn compare_weights(package: &Path, dump: &Path) -> usize {
    let bytes = fs::read(dump).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let package = Package::open(package).unwrap();
    let function = &package.functions()[package.default_function()];
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
