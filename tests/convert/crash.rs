//! Processes that are killed, run out of disk, or meet each other.

use crate::helpers::*;
use gemma_coreml::bundle::{Bundle, Error as BundleError};
use gemma_coreml::convert::{Error, Fault, Options};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MODEL: &str = "nano";
const RECIPE: &str = "swa4-int4";
/// Tells this test binary to be a conversion: the output's path.
const CHILD_OUT: &str = "GEMMA_COREML_TEST_CHILD_OUT";
/// What a child prints before it fails for want of disk.
const FULL: &str = "fault: space";
/// How long a child may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Not a test of its own: the body of the child processes below.
#[test]
fn child() {
    let Ok(out) = std::env::var(CHILD_OUT) else {
        return;
    };
    match run(&fixture(MODEL), RECIPE, Path::new(&out), &options()) {
        Ok(_) => {}
        Err(e) if e.fault() == Fault::Space => {
            println!("{FULL}: {e}");
            std::process::exit(5);
        }
        Err(e) => panic!("{e}"),
    }
}

/// A conversion in a process of its own, started by `sh` after `setup`.
fn spawn(out: &Path, setup: &str) -> Child {
    let binary = std::env::current_exe().unwrap();
    Command::new("sh")
        .args([
            "-c",
            &format!("{setup} exec \"$0\" crash::child --exact --nocapture"),
        ])
        .arg(binary)
        .env(CHILD_OUT, out)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn journal(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap().to_str().unwrap();
    out.with_file_name(format!(".{name}.partial"))
        .join("journal")
}

fn units(out: &Path) -> usize {
    std::fs::read(journal(out)).map_or(0, |t| {
        t.iter().filter(|b| **b == b'\n').count().saturating_sub(1)
    })
}

/// Kills a conversion that has finished so many units and not all.
fn interrupt(out: &Path, finished: usize) {
    loop {
        let mut child = spawn(out, "");
        let start = Instant::now();
        while units(out) < finished && child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !out.exists() {
            return;
        }
        std::fs::remove_dir_all(out).unwrap();
    }
}

/// After a crash: nothing at the output, or all of it; and running again keeps every unit in the journal and gives the
/// reference's bytes. Returns how many units were kept.
fn finishes(out: &Path, reference: &Path) -> usize {
    if out.exists() {
        Bundle::open(out).unwrap();
        assert_same(out, reference);
        return 0;
    }
    let finished = units(out);
    let report = run(&fixture(MODEL), RECIPE, out, &options()).unwrap();
    assert_same(out, reference);
    assert_eq!(report.resumed.len(), finished);
    assert!(!journal(out).parent().unwrap().exists());
    report.resumed.len()
}

#[test]
fn killed_after_every_unit() {
    let dir = tempfile::tempdir().unwrap();
    let reference = dir.path().join("reference");
    run(&fixture(MODEL), RECIPE, &reference, &options()).unwrap();
    let mut kept = Vec::new();
    for stop in 0..9 {
        let out = dir.path().join(format!("b{stop}"));
        let mut child = spawn(&out, "");
        let start = Instant::now();
        while units(&out) < stop && child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kept.push(finishes(&out, &reference));
    }
    assert!(
        kept.iter().any(|&k| k > 0 && k < 9),
        "no run was caught in the middle: {kept:?}"
    );
}

#[test]
fn killed_at_many_moments_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let (reference, out) = (dir.path().join("reference"), dir.path().join("b"));
    let start = Instant::now();
    assert!(spawn(&reference, "").wait().unwrap().success());
    let whole = start.elapsed();
    // One output, killed over and over at growing moments: each run goes on with what the others left.
    for step in 1..=12 {
        let mut child = spawn(&out, "");
        std::thread::sleep(whole * step / 24);
        child.kill().unwrap();
        child.wait().unwrap();
        if out.exists() {
            break;
        }
    }
    finishes(&out, &reference);
}

#[test]
fn full_disk_at_many_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let reference = dir.path().join("reference");
    run(&fixture(MODEL), RECIPE, &reference, &options()).unwrap();
    let largest = contents(&reference).values().map(Vec::len).max().unwrap();
    let limits = [0, 512, 4096, 40_000, largest / 2, largest - 512];
    let cases = limits.map(|limit| (limit, 0)).into_iter();
    // What was finished before the disk was full is kept.
    for (limit, finished) in cases.chain([(0, 3), (4096, 5)]) {
        let out = dir.path().join(format!("b{limit}-{finished}"));
        if finished > 0 {
            interrupt(&out, finished);
        }
        // A limit on the size of any one file, in blocks of 512 bytes; the signal is ignored, so that write fails.
        let child = spawn(&out, &format!("trap '' XFSZ; ulimit -f {};", limit / 512));
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            output.status.code(),
            Some(5),
            "{limit}: {text} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(text.contains(FULL), "{text}");
        assert!(!out.exists());
        let kept = finishes(&out, &reference);
        assert!(kept >= finished, "{kept} of {finished} at {limit}");
    }
}

#[test]
fn two_processes_on_one_output() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let lock = gemma_coreml::bundle::staging::Staging::lock(&out, false).unwrap();
    let error = run(&fixture(MODEL), RECIPE, &out, &options()).unwrap_err();
    assert!(
        matches!(error, Error::Bundle(BundleError::Locked { .. })),
        "{error}"
    );
    let mut child = spawn(&out, "");
    assert_eq!(child.wait().unwrap().code(), Some(101));
    drop(lock);
    assert!(spawn(&out, "").wait().unwrap().success());
    Bundle::open(&out).unwrap();
}

#[test]
fn other_recipe_or_context_starts_afresh() {
    let dir = tempfile::tempdir().unwrap();
    let (reference, out) = (dir.path().join("reference"), dir.path().join("b"));
    let longer = Options {
        context: Some(96),
        ..options()
    };
    run(&fixture(MODEL), RECIPE, &reference, &longer).unwrap();
    interrupt(&out, 3);
    let report = run(&fixture(MODEL), RECIPE, &out, &longer).unwrap();
    assert!(report.resumed.is_empty());
    assert_same(&out, &reference);
}
