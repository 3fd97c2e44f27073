//! Conversions that end at a failpoint, by a signal that no process survives, and the runs after them.

use crate::helpers::*;
use gemma_coreml::bundle::{Bundle, Error as BundleError};
use gemma_coreml::convert::{Error, Options};
use gemma_coreml::failpoint;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const MODEL: &str = "nano";
/// Units of a bundle of it: four packages, two row tables, the per-layer projection, RoPE, the tokenizer.
const UNITS: usize = 9;
/// Units that a run has in work at a time.
const LANES: usize = 2;
/// Conversions at a time.
const WORKERS: usize = 3;
/// Kills that must have happened.
const LEAST: usize = 50;

/// What a child process does: the work, the point at which it dies, the how manieth time there, the output, and a file to
/// which it writes a line per unit begun. One a line.
const CHILD: &str = "GEMMA_COREML_TEST_KILL";

/// A kind of conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    /// Nothing at the output.
    Fresh,
    /// A bundle of another recipe is replaced.
    Force,
    /// A bundle is rewritten for another context.
    Context,
    /// A package of a bundle is rebuilt with another recipe.
    Only,
}

use Work::{Context, Force, Fresh, Only};

impl Work {
    const ALL: [Work; 4] = [Fresh, Force, Context, Only];

    fn recipe(self) -> &'static str {
        match self {
            Fresh | Force | Context => "swa4-int4",
            Only => "swa4-fp16",
        }
    }

    fn options(self) -> Options {
        let default = options();
        match self {
            Fresh => default,
            Force => Options {
                force: true,
                ..default
            },
            Context => Options {
                context: Some(96),
                ..default
            },
            Only => Options {
                only: Some("chunk4".to_string()),
                context: None,
                ..default
            },
        }
    }

    fn run(self, out: &Path) -> Result<gemma_coreml::convert::Report, Error> {
        run(&fixture(MODEL), self.recipe(), out, &self.options())
    }
}

/// One output, and the deaths on the way to it: point and the how manieth time there.
type Case = (Work, &'static [(&'static str, usize)]);

const CASES: &[Case] = &[
    (Fresh, &[("resume.cleared", 1)]),
    (Fresh, &[("journal.torn", 1)]),
    (Fresh, &[("journal.line", 1)]),
    (Fresh, &[("unit.made", 1)]),
    (Fresh, &[("unit.made", 5)]),
    (Fresh, &[("unit.made", 9)]),
    (Fresh, &[("blob.begun", 1)]),
    (Fresh, &[("blob.begun", 40)]),
    (Fresh, &[("blob.data", 2)]),
    (Fresh, &[("blob.data", 90)]),
    (Fresh, &[("weights.unpatched", 1)]),
    (Fresh, &[("weights.unpatched", 4)]),
    (Fresh, &[("package.model", 2)]),
    (Fresh, &[("table.tile", 1)]),
    (Fresh, &[("table.scales", 2)]),
    (Fresh, &[("rope.table", 3)]),
    (Fresh, &[("unit.written", 1)]),
    (Fresh, &[("unit.written", 7)]),
    (Fresh, &[("unit.synced", 2)]),
    (Fresh, &[("unit.synced", 9)]),
    (Fresh, &[("unit.moving", 1)]),
    (Fresh, &[("unit.moving", 4)]),
    (Fresh, &[("unit.moved", 1)]),
    (Fresh, &[("unit.moved", 6)]),
    (Fresh, &[("unit.moved", 9)]),
    (Fresh, &[("journal.torn", 2)]),
    (Fresh, &[("journal.torn", 5)]),
    (Fresh, &[("journal.torn", 10)]),
    (Fresh, &[("journal.line", 2)]),
    (Fresh, &[("journal.line", 6)]),
    (Fresh, &[("journal.line", 10)]),
    (Fresh, &[("facts.config", 1)]),
    (Fresh, &[("facts.provenance", 1)]),
    (Fresh, &[("facts.checked", 1)]),
    (Fresh, &[("install.done", 1)]),
    (Fresh, &[("discard.cleared", 1)]),
    // Killed on the way back, and again.
    (
        Fresh,
        &[
            ("journal.torn", 3),
            ("resume.verified", 1),
            ("journal.torn", 2),
            ("unit.moving", 2),
            ("facts.config", 1),
            ("facts.checked", 1),
            ("install.done", 1),
        ],
    ),
    // No unit is finished but those that earlier runs have finished.
    (
        Fresh,
        &[
            ("unit.moved", 1),
            ("unit.moved", 1),
            ("blob.data", 30),
            ("journal.line", 3),
            ("unit.synced", 1),
            ("resume.verified", 1),
            ("unit.moved", 2),
            ("unit.written", 2),
        ],
    ),
    (Force, &[("blob.data", 50)]),
    (Force, &[("unit.moved", 4)]),
    (Force, &[("facts.provenance", 1)]),
    (Force, &[("install.between", 1)]),
    (Force, &[("install.done", 1)]),
    (Force, &[("discard.cleared", 1)]),
    (
        Force,
        &[
            ("journal.torn", 6),
            ("unit.written", 2),
            ("install.between", 1),
            ("resume.verified", 1),
            ("install.between", 1),
            ("install.done", 1),
        ],
    ),
    (Context, &[("package.linked", 1)]),
    (Context, &[("package.linked", 4)]),
    (Context, &[("package.model", 3)]),
    (Context, &[("unit.moving", 2)]),
    (Context, &[("journal.torn", 4)]),
    (Context, &[("facts.checked", 1)]),
    (Context, &[("install.between", 1)]),
    (Context, &[("install.done", 1)]),
    (
        Context,
        &[
            ("unit.moved", 3),
            ("package.linked", 1),
            ("install.between", 1),
            ("facts.config", 1),
            ("discard.cleared", 1),
        ],
    ),
    (Only, &[("blob.data", 20)]),
    (Only, &[("weights.unpatched", 1)]),
    (Only, &[("unit.moved", 2)]),
    (Only, &[("journal.line", 7)]),
    (Only, &[("install.between", 1)]),
    (Only, &[("install.done", 1)]),
    (
        Only,
        &[
            ("journal.torn", 5),
            ("unit.made", 2),
            ("install.between", 1),
            ("discard.cleared", 1),
        ],
    ),
];

/// Not a test of its own: the body of the child processes below.
#[test]
fn child() {
    let Ok(task) = std::env::var(CHILD) else {
        return;
    };
    let lines: Vec<&str> = task.lines().collect();
    let [work, point, nth, out, log] = lines[..] else {
        panic!("{task}");
    };
    let work = Work::ALL
        .into_iter()
        .find(|w| format!("{w:?}") == work)
        .unwrap();
    let (point, nth) = (point.to_owned(), nth.parse::<usize>().unwrap());
    let log = fs::File::create(log).unwrap();
    let passed = AtomicUsize::new(0);
    assert!(failpoint::on_reach(move |at| {
        if at == "unit.made" {
            (&log).write_all(b"begun\n").unwrap();
        }
        if at == point && passed.fetch_add(1, Ordering::SeqCst) + 1 == nth {
            // SAFETY: raise has no preconditions.
            unsafe { libc::raise(libc::SIGKILL) };
        }
    }));
    work.run(Path::new(out)).unwrap();
}

/// What is at the outputs of a kind of work: before, unless nothing is, and after.
type References = BTreeMap<Work, (Option<PathBuf>, PathBuf)>;

fn references(dir: &Path) -> References {
    let [int4, fp16, longer, mixed] =
        ["int4", "fp16", "longer", "mixed"].map(|name| dir.join(name));
    Fresh.run(&int4).unwrap();
    run(&fixture(MODEL), "swa4-fp16", &fp16, &options()).unwrap();
    // Not rewritten: converted in whole.
    run(
        &fixture(MODEL),
        Context.recipe(),
        &longer,
        &Context.options(),
    )
    .unwrap();
    copy(&int4, &mixed);
    Only.run(&mixed).unwrap();
    BTreeMap::from([
        (Fresh, (None, int4.clone())),
        (Force, (Some(fp16), int4.clone())),
        (Context, (Some(int4.clone()), longer)),
        (Only, (Some(int4), mixed)),
    ])
}

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in contents(from) {
        let file = to.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
}

/// Names of the units that the journal has a whole line of.
fn journaled(partial: &Path) -> BTreeSet<String> {
    let text = fs::read(partial.join("journal")).unwrap_or_default();
    text.split_inclusive(|&b| b == b'\n')
        .skip(1)
        .filter_map(|line| serde_json::from_slice(line.strip_suffix(b"\n")?).ok())
        .map(|unit: serde_json::Value| unit["unit"].as_str().unwrap().to_owned())
        .collect()
}

/// A run that dies there.
fn kill(work: Work, (point, nth): (&str, usize), out: &Path, log: &Path) {
    let task = [
        format!("{work:?}"),
        point.to_string(),
        nth.to_string(),
        out.display().to_string(),
        log.display().to_string(),
    ];
    let Output { status, stderr, .. } = Command::new(std::env::current_exe().unwrap())
        .args(["kills::child", "--exact", "--nocapture"])
        .env(CHILD, task.join("\n"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(
        status.signal(),
        Some(libc::SIGKILL),
        "not reached: {stderr}"
    );
}

/// Whether the run that died at this point had put its bundle in place; with that the output is what it must be.
fn installed(point: &str, work: Work, out: &Path, partial: &Path, references: &References) -> bool {
    let (before, after) = &references[&work];
    let installed = ["install.done", "discard.cleared"].contains(&point);
    match (before, installed, point) {
        (_, true, _) => {
            Bundle::open(out).unwrap();
            assert_same(out, after);
        }
        (None, false, _) => assert!(!out.exists()),
        (Some(before), false, "install.between") => {
            assert!(!out.exists());
            Bundle::open(&partial.join("old")).unwrap();
            assert_same(&partial.join("old"), before);
        }
        (Some(before), false, _) => {
            Bundle::open(out).unwrap();
            assert_same(out, before);
        }
    }
    installed
}

/// Runs a case; gives the number of kills.
fn play((work, deaths): Case, references: &References) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let (out, partial) = (dir.path().join("b"), dir.path().join(".b.partial"));
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("log");
    let (before, after) = &references[&work];
    if let Some(before) = before {
        copy(before, &out);
    }
    // Units that the next run keeps.
    let mut kept = BTreeSet::new();
    for &(point, nth) in deaths {
        kill(work, (point, nth), &out, &log);
        if installed(point, work, &out, &partial, references) {
            kept.clear();
            continue;
        }
        let now = journaled(&partial);
        assert!(now.is_superset(&kept), "{kept:?} {now:?}");
        let begun = fs::read_to_string(&log).unwrap().lines().count();
        let lost = begun - (now.len() - kept.len());
        assert!(lost <= LANES, "{begun} begun, {kept:?} {now:?}");
        kept = now;
    }
    let last = deaths.last().unwrap().0;
    if ["install.done", "discard.cleared"].contains(&last) {
        // Whatever the next run is for, what is left of this one goes.
        let other = Options {
            context: None,
            ..options()
        };
        let error = run(&fixture(MODEL), work.recipe(), &out, &other).unwrap_err();
        assert!(
            matches!(error, Error::Bundle(BundleError::Exists { .. })),
            "{error}"
        );
        assert_eq!(entries(dir.path()), ["b"]);
    }
    let report = work.run(&out).unwrap();
    assert_eq!(
        report.resumed.iter().cloned().collect::<BTreeSet<_>>(),
        kept
    );
    assert!(report.resumed.len() <= UNITS);
    assert_same(&out, after);
    assert_eq!(entries(dir.path()), ["b"]);
    deaths.len()
}

#[test]
fn every_failpoint_has_a_case() {
    let points = CASES.iter().flat_map(|(_, deaths)| *deaths);
    let points: BTreeSet<&str> = points.map(|(point, _)| *point).collect();
    assert_eq!(points, BTreeSet::from(failpoint::POINTS));
}

#[test]
fn killed_at_every_failpoint() {
    let dir = tempfile::tempdir().unwrap();
    let references = references(dir.path());
    let left = Mutex::new(CASES.to_vec());
    let (killed, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let next = || left.lock().unwrap().pop();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(case) = next() {
                    match std::panic::catch_unwind(|| play(case, &references)) {
                        Ok(n) => {
                            killed.fetch_add(n, Ordering::SeqCst);
                        }
                        Err(_) => failed.lock().unwrap().push(case),
                    }
                }
            });
        }
    });
    assert!(failed.lock().unwrap().is_empty(), "{failed:?}");
    let expected: usize = CASES.iter().map(|(_, deaths)| deaths.len()).sum();
    assert_eq!(killed.load(Ordering::SeqCst), expected);
    assert!(expected >= LEAST, "{expected}");
}
