//! From start to the final rename.

use super::journal::{Done, Journal};
use super::lanes;
use super::report::{Report, Stages, notes, peak_rss, totals};
use super::work::Build;
use crate::bundle::provenance::FileRecord;
use crate::bundle::staging::Staging;
use crate::bundle::{Bundle, files, layout};
use crate::checkpoint::Checkpoint;
use crate::convert::decide::{Job, TOOL, Task, Unit, checked_plan};
use crate::convert::error::{Error, Result};
use crate::convert::forecast::Forecast;
use crate::convert::options::Options;
use crate::convert::room::{self, Room};
use crate::failpoint;
use crate::gemma::ModelPlan;
use crate::progress::Progress;
use crate::recipe::Recipe;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Converts `checkpoint` as `recipe` says into the bundle directory `out`.
///
/// `out` does not exist until the bundle is complete and checked. An existing bundle there is an error unless
/// `options.force`; with `options.context` it is rewritten for that context, its weights and tables kept, if it was made from
/// the same checkpoint with the same recipe and version; with `options.only` one package of it is rebuilt. A second process
/// on the same output gets [`crate::bundle::Error::Locked`]. After an interruption or an error the same call goes on with
/// the first unfinished file. What the disk or the memory has no room for is refused at once.
pub fn convert(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    out: &Path,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report> {
    Conversion::prepare(checkpoint, recipe, out, options)?.run(progress)
}

/// A conversion that is ready to begin: the output is locked, every scheme decided, and what it takes predicted.
#[derive(Debug)]
pub struct Conversion<'a> {
    checkpoint: &'a Checkpoint,
    plan: ModelPlan,
    task: Task,
    staging: Staging,
    forecast: Forecast,
    grid_note: Option<String>,
    threads: Option<usize>,
    room: Option<Room>,
}

impl<'a> Conversion<'a> {
    /// Locks the output and decides what to do.
    ///
    /// # Errors
    /// Those of [`convert`] that no weight has to be read for.
    pub fn prepare(
        checkpoint: &'a Checkpoint,
        recipe: &Recipe,
        out: &Path,
        options: &Options,
    ) -> Result<Self> {
        let plan = checked_plan(checkpoint)?;
        let staging = Staging::lock(out, options.replaces())?;
        let decided =
            Task::new((checkpoint, &plan), recipe, staging.output(), options).and_then(|task| {
                let job = Job {
                    checkpoint,
                    plan: &plan,
                    task: &task,
                };
                let (forecast, note) = (job.forecast(options.threads)?, job.grid_note()?);
                Ok((task, forecast, note))
            });
        match decided {
            Ok((task, forecast, grid_note)) => Ok(Self {
                checkpoint,
                plan,
                task,
                staging,
                forecast,
                grid_note,
                threads: options.threads,
                room: options.room,
            }),
            Err(e) => {
                staging.discard_if_empty();
                Err(e)
            }
        }
    }

    /// What it will make and take.
    pub fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    /// Gives the output up. What an interrupted run left stays for another.
    pub fn cancel(self) {
        self.staging.discard_if_empty();
    }

    /// Builds the bundle.
    ///
    /// # Errors
    /// As [`convert`].
    pub fn run(self, progress: &dyn Progress) -> Result<Report> {
        let start = Instant::now();
        let output = self.staging.output();
        let room = self.room.unwrap_or_else(|| Room::measure(output));
        // What an earlier run left is used again or makes room.
        let staged = room::removable(self.staging.root());
        let disk = self.forecast.disk.saturating_sub(staged);
        let ready = room.check(output, disk, self.forecast.memory);
        let pool = match ready.and_then(|()| thread_pool(self.threads)) {
            Ok(pool) => pool,
            Err(e) => {
                self.cancel();
                return Err(e);
            }
        };
        let job = Job {
            checkpoint: self.checkpoint,
            plan: &self.plan,
            task: &self.task,
        };
        let build = Build {
            job,
            staging: self.staging,
            pool: &pool,
            progress,
            stages: Stages::default(),
        };
        match build.run() {
            Ok(built) => {
                let mut report = build.finish(built, start.elapsed())?;
                report.notes.extend(self.grid_note);
                Ok(report)
            }
            Err(e) => {
                build.give_up();
                Err(e)
            }
        }
    }
}

/// Threads for rayon; one per core when `None`.
pub(crate) fn thread_pool(threads: Option<usize>) -> Result<rayon::ThreadPool> {
    let threads = threads.unwrap_or(0);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::Threads {
            threads,
            reason: e.to_string(),
        })
}

/// A complete bundle, still in the staging directory.
pub(super) struct Built {
    files: BTreeMap<String, FileRecord>,
    pub done: Vec<Done>,
    /// Units of an earlier run.
    pub resumed: Vec<String>,
    /// Units taken over from the bundle that was there, weights at least.
    kept: Vec<String>,
}

impl Build<'_> {
    /// Builds everything in the staging directory and checks it.
    fn run(&self) -> Result<Built> {
        let (checkpoint, progress) = (self.job.checkpoint, self.progress);
        let hash = || self.pool.install(|| checkpoint.fingerprint(progress));
        let fingerprint = self.stages.time("hash", hash)?;
        if let Some(base) = &self.job.task.base {
            base.check_adapters(checkpoint.adapters())?;
            base.check_checkpoint(&fingerprint)?;
        }
        if let Some(stats) = &self.job.task.calibration
            && stats.checkpoint() != fingerprint
        {
            return Err(Error::OtherCalibration {
                path: stats.path().to_path_buf(),
                expected: fingerprint,
                got: stats.checkpoint().to_string(),
            });
        }
        let units = self.job.units();
        self.make(&fingerprint, &units)
    }

    /// Builds these units, the facts, and checks the whole.
    pub fn make(&self, fingerprint: &str, units: &[(String, Unit<'_>)]) -> Result<Built> {
        let key = self.key(fingerprint)?;
        let content = self.staging.content()?;
        let journal = self.open_journal(&key, &content)?;
        let resumed: Vec<String> = journal.done().iter().map(|d| d.unit.clone()).collect();
        let total = units.iter().map(|(n, u)| self.job.elements(n, u)).sum();
        self.progress.begin("convert", total);
        let built = self.build_all(units, &resumed, &content, journal);
        self.progress.end();
        let journal = built?;
        // In the order of the units, whatever the order they were finished in.
        let done: Vec<Done> = units
            .iter()
            .filter_map(|(name, _)| journal.done().iter().find(|d| d.unit == *name).cloned())
            .collect();
        let files = self.write_facts(&content, fingerprint, &done)?;
        self.stages.time("check", || Bundle::open(&content))?;
        failpoint::reach("facts.checked");
        Ok(Built {
            files,
            done,
            resumed,
            kept: self.job.kept(units),
        })
    }

    /// What decides the bytes, hashed. A journal with another key is of no use.
    fn key(&self, fingerprint: &str) -> Result<String> {
        let (job, task) = (&self.job, self.job.task);
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(TOOL);
        add(fingerprint);
        // The text as provenance.json keeps it, and what was made of it, overrides included.
        for recipe in std::iter::once(&task.recipe).chain(task.packages.values()) {
            add(&recipe.source);
            add(&format!("{recipe:?}"));
        }
        for record in std::iter::once(&task.record).chain(task.records.values()) {
            add(record.calibration.as_deref().unwrap_or_default());
        }
        add(&task.context.to_string());
        add(&task.model_id);
        add(&task.file_limit.to_string());
        for path in job.checkpoint.token_files() {
            add(&files::record(&path)?.sha256);
        }
        task.packages.keys().for_each(|name| add(name));
        // Rewriting for another context gives what a whole conversion gives; this does not.
        if let (Some(only), Some(base)) = (&task.only, &task.base) {
            add(only);
            add(&base.provenance.to_json()?);
        }
        Ok(files::hex(&hash.finalize()))
    }

    fn open_journal(&self, key: &str, content: &Path) -> Result<Journal> {
        let path = self.staging.journal();
        if let Some(mut journal) = Journal::resume(&path, key)? {
            // Before the room on the disk is measured.
            lanes::clear(content)?;
            journal.verify(content)?;
            failpoint::reach("resume.verified");
            return Ok(journal);
        }
        self.staging.clear()?;
        self.staging.content()?;
        failpoint::reach("resume.cleared");
        let journal = Journal::create(&path, key)?;
        self.staging.sync()?;
        Ok(journal)
    }

    /// Writes `model_config.json` and `provenance.json`; returns every file of the bundle.
    fn write_facts(
        &self,
        content: &Path,
        fingerprint: &str,
        done: &[Done],
    ) -> Result<BTreeMap<String, FileRecord>> {
        let path = content.join(layout::MODEL_CONFIG);
        files::write_synced(&path, self.job.config().to_json()?.as_bytes())?;
        failpoint::reach("facts.config");
        let config = Done {
            unit: "config".to_string(),
            files: BTreeMap::from([(layout::MODEL_CONFIG.to_string(), files::record(&path)?)]),
            tensors: Vec::new(),
        };
        let all: Vec<&Done> = done.iter().chain([&config]).collect();
        let tensors = all.iter().flat_map(|d| d.tensors.iter().cloned());
        let recorded = all.iter().flat_map(|d| &d.files);
        let recorded = recorded.map(|(k, v)| (k.clone(), v.clone())).collect();
        let provenance = self
            .job
            .provenance(fingerprint, tensors.collect(), recorded);
        let path = content.join(layout::PROVENANCE);
        files::write_synced(&path, provenance.to_json()?.as_bytes())?;
        failpoint::reach("facts.provenance");
        let mut files_written = provenance.files;
        files_written.insert(layout::PROVENANCE.to_string(), files::record(&path)?);
        Ok(files_written)
    }

    fn finish(self, built: Built, time: Duration) -> Result<Report> {
        let Built {
            files,
            done,
            resumed,
            kept,
        } = built;
        let output: PathBuf = self.staging.output().to_path_buf();
        let notes = [notes(&files), self.job.task.notes(self.job.checkpoint)].concat();
        self.staging.install()?;
        let all: Vec<&Done> = done.iter().collect();
        Ok(Report {
            output,
            context: self.job.task.context,
            bytes: files.values().map(|f| f.bytes).sum(),
            notes,
            files,
            schemes: totals(&all),
            tensors: done
                .iter()
                .flat_map(|d| d.tensors.iter().cloned())
                .collect(),
            stages: self.stages.into_inner(),
            seconds: time.as_secs_f64(),
            resumed,
            kept,
            peak_rss: peak_rss(),
        })
    }

    /// After an error: what is worth keeping for another run stays, the rest goes.
    fn give_up(self) {
        let content = self.staging.content().ok();
        let empty = content
            .and_then(|c| std::fs::read_dir(c).ok())
            .is_none_or(|mut d| d.next().is_none());
        if empty {
            // The error that brought us here is the one to report.
            let _ = self.staging.discard();
        }
    }
}
