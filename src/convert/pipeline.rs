//! From start to the final rename.

use super::Options;
use super::error::{Error, Result, disk_full};
use super::facts::Job;
use super::journal::{Done, Journal};
use super::report::{Report, Stages, peak_rss, totals};
use super::resolve::{ResolvedChunk, resolve};
use super::source::{Weights, tensor_record};
use super::tables::{self, TableSpec};
use crate::bundle::error::writing;
use crate::bundle::provenance::{FileRecord, TensorRecord};
use crate::bundle::staging::Staging;
use crate::bundle::{Bundle, files, layout};
use crate::checkpoint::{Checkpoint, Tokenizer, stop_ids};
use crate::gemma::{ModelPlan, names};
use crate::graph::{ChunkSpec, build_chunk};
use crate::package::{ModelDescription, PackageSpec, write_package};
use crate::progress::Progress;
use crate::quantize::ErrorStats;
use crate::recipe::Recipe;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Room left for what the byte count leaves out: programs, alignment, JSON, directories.
const SPACE_MARGIN: u64 = 16 << 20;
/// Name in `model_config.json` when the caller gives none.
const MODEL_ID: &str = "gemma4";

/// Converts `checkpoint` as `recipe` says into the bundle directory `out`.
///
/// `out` does not exist until the bundle is complete and checked. An existing bundle there is an error unless
/// `options.force`. A second process on the same output gets [`crate::bundle::Error::Locked`]. After an interruption or an
/// error the same call goes on with the first unfinished file.
pub fn convert(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    out: &Path,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report> {
    let plan = ModelPlan::new(checkpoint.config())?;
    plan.check(checkpoint)?;
    let context = recipe.context_for(options.context, plan.max_positions);
    if context == 0 || context > plan.max_positions {
        return Err(Error::Context {
            context,
            max: plan.max_positions,
        });
    }
    check_token_files(checkpoint)?;
    let chunks = resolve(&plan, recipe)?;
    let model_id = options.model_id.as_deref().unwrap_or(MODEL_ID);
    let job = Job {
        checkpoint,
        recipe,
        plan: &plan,
        context,
        model_id,
    };
    let pool = thread_pool(options.threads)?;
    let staging = Staging::lock(out, options.force)?;
    let mut build = Build {
        job,
        chunks,
        staging,
        progress,
        stages: Stages::default(),
    };
    match pool.install(|| build.run()) {
        Ok(built) => build.finish(built),
        Err(e) => {
            build.give_up();
            Err(e)
        }
    }
}

fn thread_pool(threads: Option<usize>) -> Result<rayon::ThreadPool> {
    let threads = threads.unwrap_or(0);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::Threads {
            threads,
            reason: e.to_string(),
        })
}

fn check_token_files(checkpoint: &Checkpoint) -> Result<()> {
    for file in layout::HF_REQUIRED {
        if !checkpoint.dir().join(file).is_file() {
            return Err(crate::checkpoint::Error::MissingFile {
                dir: checkpoint.dir().to_path_buf(),
                file: file.to_string(),
                hint: "the device's tokenizer needs it; download the whole snapshot".to_string(),
            }
            .into());
        }
    }
    // What `decode` opens must open. A chat template is for the host alone, and may use what only Python's jinja knows.
    Tokenizer::open(checkpoint.dir())?;
    stop_ids(checkpoint.dir())?;
    Ok(())
}

/// What is resumed as a whole.
enum Unit<'a> {
    Package(&'a ResolvedChunk),
    Table(TableSpec),
    PerLayer,
    Rope,
    TokenFiles,
}

/// A complete bundle, still in the staging directory.
struct Built {
    files: BTreeMap<String, FileRecord>,
    done: Vec<Done>,
    /// Units of an earlier run.
    resumed: Vec<String>,
}

struct Build<'a> {
    job: Job<'a>,
    chunks: Vec<ResolvedChunk>,
    staging: Staging,
    progress: &'a dyn Progress,
    stages: Stages,
}

impl Build<'_> {
    /// Builds everything in the staging directory and checks it.
    fn run(&mut self) -> Result<Built> {
        let (checkpoint, progress) = (self.job.checkpoint, self.progress);
        let fingerprint = self
            .stages
            .time("hash", || checkpoint.fingerprint(progress))?;
        let key = self.key(&fingerprint)?;
        let content = self.staging.content()?;
        let mut journal = self.open_journal(&key, &content)?;
        let resumed: Vec<String> = journal.done().iter().map(|d| d.unit.clone()).collect();
        let chunks = std::mem::take(&mut self.chunks);
        let units = self.units(&chunks);
        self.check_space(&units, &resumed)?;
        let total = units.iter().map(|(_, u)| self.elements(u)).sum();
        self.progress.begin("convert", total);
        let built: Result<()> = units.iter().try_for_each(|(name, unit)| {
            if resumed.contains(name) {
                self.progress.advance(self.elements(unit));
                return Ok(());
            }
            let done = self.build(name, unit, &content)?;
            Ok(journal.append(done)?)
        });
        self.progress.end();
        built?;
        // In the order of the units, whatever the order they were finished in.
        let done: Vec<Done> = units
            .iter()
            .filter_map(|(name, _)| journal.done().iter().find(|d| d.unit == *name).cloned())
            .collect();
        let specs: Vec<ChunkSpec> = chunks.iter().map(|c| c.spec.clone()).collect();
        let files = self.write_facts(&content, &specs, &fingerprint, &done)?;
        self.stages.time("check", || Bundle::open(&content))?;
        Ok(Built {
            files,
            done,
            resumed,
        })
    }

    /// What decides the bytes, hashed. A journal with another key is of no use.
    fn key(&self, fingerprint: &str) -> Result<String> {
        let job = &self.job;
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(concat!(
            env!("CARGO_PKG_NAME"),
            " ",
            env!("CARGO_PKG_VERSION")
        ));
        add(fingerprint);
        // The text as provenance.json keeps it, and what was made of it, overrides included.
        add(&job.recipe.source);
        add(&format!("{:?}", job.recipe));
        add(&job.context.to_string());
        add(job.model_id);
        for path in job.checkpoint.token_files() {
            add(&files::record(&path)?.sha256);
        }
        Ok(files::hex(&hash.finalize()))
    }

    fn open_journal(&self, key: &str, content: &Path) -> Result<Journal> {
        let path = self.staging.journal();
        if let Some(mut journal) = Journal::resume(&path, key)? {
            journal.verify(content)?;
            return Ok(journal);
        }
        self.staging.clear()?;
        self.staging.content()?;
        Ok(Journal::create(&path, key)?)
    }

    /// All units with their names, in the order they are built.
    fn units<'c>(&self, chunks: &'c [ResolvedChunk]) -> Vec<(String, Unit<'c>)> {
        let (plan, scheme) = (self.job.plan, self.job.recipe.quantize.tables);
        let mut units: Vec<(String, Unit<'c>)> = chunks
            .iter()
            .map(|c| (layout::package_dir(&c.spec.name), Unit::Package(c)))
            .collect();
        let embed = TableSpec {
            tensor: names::EMBED,
            stem: layout::EMBED_STEM,
            rows: plan.vocab,
            dim: plan.hidden,
            scheme,
            factor: plan.embed_scale,
        };
        units.push((layout::EMBED_STEM.to_string(), Unit::Table(embed)));
        if plan.ple_dim > 0 {
            let table = TableSpec {
                tensor: names::PER_LAYER_EMBED,
                stem: layout::PER_LAYER_STEM,
                rows: plan.ple_vocab,
                dim: plan.layers.len() * plan.ple_dim,
                scheme,
                factor: plan.ple_embed_scale,
            };
            units.push((layout::PER_LAYER_STEM.to_string(), Unit::Table(table)));
            units.push(("per_layer".to_string(), Unit::PerLayer));
        }
        units.push(("rope".to_string(), Unit::Rope));
        units.push((layout::HF_DIR.to_string(), Unit::TokenFiles));
        units
    }

    /// Values read for a unit: the measure of progress.
    fn elements(&self, unit: &Unit<'_>) -> u64 {
        let plan = self.job.plan;
        match unit {
            Unit::Package(chunk) => chunk.weights.iter().map(|w| w.elements).sum(),
            Unit::Table(spec) => spec.rows as u64 * spec.dim as u64,
            Unit::PerLayer => {
                let width = (plan.layers.len() * plan.ple_dim) as u64;
                width * plan.hidden as u64 + plan.ple_dim as u64
            }
            Unit::Rope | Unit::TokenFiles => 0,
        }
    }

    /// Bytes a unit will take, near enough.
    fn bytes(&self, unit: &Unit<'_>) -> u64 {
        let plan = self.job.plan;
        match unit {
            Unit::Package(chunk) => chunk.weights.iter().map(|w| w.bytes).sum(),
            Unit::Table(spec) => spec.bytes(),
            Unit::PerLayer => self.elements(unit) * 2,
            Unit::Rope => {
                let dims = plan.sliding.head_dim + plan.full.head_dim;
                layout::rope_rows(self.job.context) as u64 * dims as u64 * 4
            }
            Unit::TokenFiles => {
                let sizes = self.job.checkpoint.token_files();
                sizes
                    .iter()
                    .filter_map(|p| std::fs::metadata(p).ok())
                    .map(|m| m.len())
                    .sum()
            }
        }
    }

    /// Refuses to begin what will not fit.
    fn check_space(&self, units: &[(String, Unit<'_>)], resumed: &[String]) -> Result<()> {
        let left = units.iter().filter(|(name, _)| !resumed.contains(name));
        let needed: u64 = left.map(|(_, u)| self.bytes(u)).sum::<u64>() + SPACE_MARGIN;
        let path = self.staging.output().to_path_buf();
        match path.parent().and_then(files::free_space) {
            Some(free) if free < needed => Err(Error::Space { path, needed, free }),
            _ => Ok(()),
        }
    }

    /// Builds a unit aside, brings it to the disk, and moves it into `content`.
    fn build(&mut self, name: &str, unit: &Unit<'_>, content: &Path) -> Result<Done> {
        let aside = content.with_file_name("unit");
        files::remove(&aside)?;
        std::fs::create_dir(&aside).map_err(writing(&aside))?;
        let mut stages = std::mem::take(&mut self.stages);
        let tensors = stages.time(name, || self.write(unit, &aside));
        self.stages = stages;
        let tensors = tensors?;
        files::sync_tree(&aside)?;
        let mut records = BTreeMap::new();
        for file in files::list(&aside)? {
            let record = files::record(&aside.join(&file))?;
            records.insert(file, record);
        }
        for entry in std::fs::read_dir(&aside).map_err(writing(&aside))? {
            let entry = entry.map_err(writing(&aside))?;
            let target = content.join(entry.file_name());
            files::remove(&target)?;
            std::fs::rename(entry.path(), &target).map_err(writing(&target))?;
        }
        files::sync_dir(content)?;
        files::remove(&aside)?;
        Ok(Done {
            unit: name.to_string(),
            files: records,
            tensors,
        })
    }

    fn write(&self, unit: &Unit<'_>, dir: &Path) -> Result<Vec<TensorRecord>> {
        let (plan, checkpoint) = (self.job.plan, self.job.checkpoint);
        match unit {
            Unit::Package(chunk) => self.write_chunk(chunk, dir),
            Unit::Table(spec) => Ok(vec![tables::write_table(
                dir,
                spec,
                checkpoint,
                self.progress,
            )?]),
            Unit::PerLayer => self.write_per_layer(dir),
            Unit::Rope => {
                let full = plan.full.rope;
                let full = if self.job.recipe.compat {
                    full.all_pairs()
                } else {
                    full
                };
                let rows = layout::rope_rows(self.job.context);
                tables::write_rope(dir, &plan.sliding.rope, &full, rows)?;
                Ok(Vec::new())
            }
            Unit::TokenFiles => {
                tables::copy_token_files(dir, checkpoint)?;
                Ok(Vec::new())
            }
        }
    }

    fn write_chunk(&self, chunk: &ResolvedChunk, dir: &Path) -> Result<Vec<TensorRecord>> {
        let options = self.job.recipe.graph_options(self.job.context);
        let graph = build_chunk(self.job.plan, &chunk.spec, &options)?;
        let order: Vec<String> = graph.weights.iter().map(|w| w.konst.id.clone()).collect();
        let package = layout::package_dir(&chunk.spec.name);
        let mut source = Weights::new(self.job.checkpoint, &chunk.weights, self.progress);
        let spec = PackageSpec {
            program: &graph.program,
            description: self.description(chunk),
            blob_order: &order,
        };
        let written = write_package(&dir.join(&package), &spec, &mut source);
        match (written, source.failed.take()) {
            (_, Some(ours)) => Err(ours),
            (Ok(_), None) => Ok(source.records),
            (Err(source), None) => Err(package_error(package, source)),
        }
    }

    fn description(&self, chunk: &ResolvedChunk) -> ModelDescription {
        let (layers, recipe) = (&chunk.spec.layers, self.job.recipe);
        let user = [
            (
                "gemma_coreml_version",
                env!("CARGO_PKG_VERSION").to_string(),
            ),
            ("gemma_coreml_recipe", recipe.name.clone()),
            ("context_length", self.job.context.to_string()),
            ("layers", format!("{}..{}", layers.start, layers.end)),
        ];
        ModelDescription {
            short_description: format!(
                "Gemma 4 decoder, layers {} to {}",
                layers.start,
                layers.end - 1
            ),
            user_defined: user.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
            ..ModelDescription::default()
        }
    }

    fn write_per_layer(&self, dir: &Path) -> Result<Vec<TensorRecord>> {
        let (plan, checkpoint) = (self.job.plan, self.job.checkpoint);
        let (name, width) = (
            names::PER_LAYER_PROJECTION,
            plan.layers.len() * plan.ple_dim,
        );
        let view = checkpoint.tensor(name, &[width, plan.hidden])?;
        let stats = tables::write_fp16(
            &dir.join(layout::PER_LAYER_PROJECTION),
            &view,
            self.progress,
        )?;
        let record = |tensor: &str,
                      file: &str,
                      scheme: &str,
                      elements: usize,
                      bytes: usize,
                      stats: &ErrorStats| {
            let chosen = (scheme.to_string(), "table".to_string());
            tensor_record(
                tensor,
                file,
                chosen,
                (elements as u64, (elements * bytes) as u64),
                stats,
            )
        };
        let projection = record(
            name,
            layout::PER_LAYER_PROJECTION,
            "fp16",
            width * plan.hidden,
            2,
            &stats,
        );
        let name = names::PER_LAYER_NORM;
        let view = checkpoint.tensor(name, &[plan.ple_dim])?;
        tables::write_fp32(&dir.join(layout::PER_LAYER_NORM), &view, self.progress)?;
        let exact = ErrorStats::default();
        let norm = record(
            name,
            layout::PER_LAYER_NORM,
            "fp32",
            plan.ple_dim,
            4,
            &exact,
        );
        Ok(vec![projection, norm])
    }

    /// Writes `model_config.json` and `provenance.json`; returns every file of the bundle.
    fn write_facts(
        &self,
        content: &Path,
        packages: &[ChunkSpec],
        fingerprint: &str,
        done: &[Done],
    ) -> Result<BTreeMap<String, FileRecord>> {
        let path = content.join(layout::MODEL_CONFIG);
        files::write_synced(&path, self.job.config(packages).to_json()?.as_bytes())?;
        let config = Done {
            unit: "config".to_string(),
            files: BTreeMap::from([(layout::MODEL_CONFIG.to_string(), files::record(&path)?)]),
            tensors: Vec::new(),
        };
        let all: Vec<&Done> = done.iter().chain([&config]).collect();
        let provenance = self.job.provenance(fingerprint, &all);
        let path = content.join(layout::PROVENANCE);
        files::write_synced(&path, provenance.to_json()?.as_bytes())?;
        let mut files_written = provenance.files;
        files_written.insert(layout::PROVENANCE.to_string(), files::record(&path)?);
        Ok(files_written)
    }

    fn finish(self, built: Built) -> Result<Report> {
        let Built {
            files,
            done,
            resumed,
        } = built;
        let output: PathBuf = self.staging.output().to_path_buf();
        self.staging.install()?;
        let all: Vec<&Done> = done.iter().collect();
        Ok(Report {
            output,
            context: self.job.context,
            bytes: files.values().map(|f| f.bytes).sum(),
            files,
            schemes: totals(&all),
            tensors: done
                .iter()
                .flat_map(|d| d.tensors.iter().cloned())
                .collect(),
            stages: self.stages.0,
            resumed,
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

fn package_error(package: String, source: crate::package::Error) -> Error {
    if disk_full(&source) {
        let source = std::io::Error::new(std::io::ErrorKind::StorageFull, source);
        return Error::Bundle(crate::bundle::Error::DiskFull {
            path: package.into(),
            source,
        });
    }
    let source = Box::new(source);
    Error::Package { package, source }
}
