//! Running coremltools.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Python that has coremltools: `GEMMA_COREML_PYTHON`, or `.venv-coremltools` in the
/// repository root.
///
/// # Panics
/// When neither is there; a test that needs coremltools does not pass without it.
pub fn coremltools_python() -> PathBuf {
    let python = match std::env::var_os("GEMMA_COREML_PYTHON") {
        Some(path) => PathBuf::from(path),
        None => root().join(".venv-coremltools/bin/python"),
    };
    assert!(
        python.exists(),
        "no Python with coremltools at {}; run `make venv`, or set GEMMA_COREML_PYTHON",
        python.display()
    );
    python
}

fn run_validate(args: &[&std::ffi::OsStr]) -> Vec<serde_json::Value> {
    let output = Command::new(coremltools_python())
        .arg(root().join("tests/coremltools/validate.py"))
        .args(args)
        .output()
        .expect("the Python of coremltools starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let lines = stdout.lines().filter(|line| line.starts_with('{'));
    let results: Vec<serde_json::Value> = lines
        .map(|line| serde_json::from_str(line).expect("validate.py writes JSON lines"))
        .collect();
    assert!(
        !results.is_empty(),
        "validate.py gave no result ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    results
}

/// What coremltools and the checks beside it say of each package, in one process: `package`, `ok`,
/// `ops` or `error`.
pub fn coremltools_results(packages: &[PathBuf]) -> Vec<serde_json::Value> {
    let args: Vec<_> = packages.iter().map(|path| path.as_os_str()).collect();
    let results = run_validate(&args);
    assert_eq!(results.len(), packages.len(), "one result per package");
    results
}

fn assert_ok(results: &[serde_json::Value]) {
    for result in results {
        assert!(
            result["ok"] == true,
            "{}: {}",
            result["package"],
            result["error"].as_str().unwrap_or("no error is given")
        );
    }
}

/// Opens every package with coremltools, in one process.
///
/// # Panics
/// When one is refused.
pub fn coremltools_validate(packages: &[PathBuf]) {
    assert_ok(&coremltools_results(packages));
}

/// Validates every package and decompresses its weights with coremltools into
/// `out/NAME.safetensors`, as `FUNCTION/VALUE`, for every constant of 10 and more elements.
///
/// # Panics
/// When a package is refused.
pub fn coremltools_dump_weights(packages: &[PathBuf], out: &Path) {
    let mut args = vec!["--dump-weights".as_ref(), out.as_os_str()];
    args.extend(packages.iter().map(|path| path.as_os_str()));
    assert_ok(&run_validate(&args));
}
