//! A package that has the weights of another of the same bundle.

use super::pipeline::thread_pool;
use super::report::Stages;
use super::work::Build;
use crate::bundle::staging::Staging;
use crate::bundle::{files, layout};
use crate::checkpoint::Checkpoint;
use crate::convert::decide::{Job, PackageUnit, ResolvedChunk, Task, Unit};
use crate::convert::options::Options;
use crate::gemma::ModelPlan;
use crate::progress::NoProgress;
use crate::recipe::Recipe;
use std::fs;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// The chunk under another name.
fn twin(chunk: &ResolvedChunk) -> ResolvedChunk {
    let mut twin = chunk.clone();
    twin.spec.name = format!("twin_{}", chunk.spec.name);
    twin
}

/// Builds all units and a twin of each package, in `out`'s staging directory; gives the units that were resumed and where
/// the content is.
fn build(out: &Path) -> (Vec<String>, PathBuf) {
    let checkpoint = Checkpoint::open(&fixture("dense-tiny")).unwrap();
    let plan = ModelPlan::new(checkpoint.config()).unwrap();
    let recipe = Recipe::builtin("swa4-int4").unwrap();
    let options = Options {
        context: Some(64),
        ..Options::default()
    };
    let staging = Staging::lock(out, false).unwrap();
    let task = Task::new((&checkpoint, &plan), &recipe, staging.output(), &options).unwrap();
    let twins: Vec<ResolvedChunk> = task.chunks.iter().map(twin).collect();
    let pool = thread_pool(None).unwrap();
    let build = Build {
        job: Job {
            checkpoint: &checkpoint,
            plan: &plan,
            task: &task,
        },
        staging,
        pool: &pool,
        progress: &NoProgress,
        stages: Stages::default(),
    };
    let mut units = build.job.units();
    for (chunk, twin) in task.chunks.iter().zip(&twins) {
        let unit = PackageUnit {
            chunk: twin,
            weights_of: Some(chunk.spec.name.clone()),
        };
        units.push((layout::package_dir(&twin.spec.name), Unit::Package(unit)));
    }
    let built = build.make("fingerprint", &units).unwrap();
    let twins = built.done.iter().filter(|d| d.unit.starts_with("twin"));
    assert_eq!(twins.clone().count(), 4);
    assert!(
        twins.clone().all(|d| d.tensors.is_empty()),
        "they are the donor's"
    );
    (built.resumed, build.staging.content().unwrap())
}

fn bytes(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let list = files::list(dir).unwrap();
    list.into_iter()
        .map(|f| (f.clone(), fs::read(dir.join(&f)).unwrap()))
        .collect()
}

#[test]
fn a_package_over_the_weights_of_an_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("b");
    let (resumed, content) = build(&out);
    assert!(resumed.is_empty());
    for chunk in ["chunk1", "chunk2", "chunk3", "chunk4"] {
        let twin = content.join(layout::package_dir(&format!("twin_{chunk}")));
        // The same program, so the same bytes.
        assert_eq!(
            bytes(&content.join(layout::package_dir(chunk))),
            bytes(&twin)
        );
    }
    let whole = bytes(&content);
    // Everything is kept; then without the twin; then without its donor, which is written anew.
    let (resumed, _) = build(&out);
    assert_eq!(resumed.len(), 11);
    for gone in ["twin_chunk2", "chunk2"] {
        fs::remove_dir_all(content.join(layout::package_dir(gone))).unwrap();
        let (resumed, _) = build(&out);
        assert_eq!(resumed.len(), 10, "{gone}");
        assert!(bytes(&content) == whole, "{gone}");
    }
    // A weight file that changes changes under both names: both are written anew.
    let weights = crate::package::WEIGHTS_DIR;
    let file = content
        .join("chunk3.mlpackage")
        .join(weights)
        .join("weight.bin");
    let mut damaged = fs::read(&file).unwrap();
    if let Some(last) = damaged.last_mut() {
        *last ^= 1;
    }
    fs::write(&file, damaged).unwrap();
    let (resumed, _) = build(&out);
    assert_eq!(resumed.len(), 9);
    assert!(bytes(&content) == whole);
}
