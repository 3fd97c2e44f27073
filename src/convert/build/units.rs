//! The units of a conversion: how large each is, where it comes from, and how it is written.

use super::pipeline::Build;
use super::tables::{self, TableSpec};
use crate::bundle::layout;
use crate::bundle::provenance::{FileRecord, TensorRecord};
use crate::convert::decide::activations;
use crate::convert::decide::facts::Job;
use crate::convert::decide::resolve::ResolvedChunk;
use crate::convert::error::{Error, Result, disk_full};
use crate::convert::weights::levers::Levers;
use crate::convert::weights::source::{Weights, tensor_record};
use crate::gemma::names;
use crate::graph::{ChunkGraph, build_chunk};
use crate::package::{
    ModelDescription, Package, PackageSpec, WEIGHTS_DIR, rewrite_package, write_package,
};
use crate::quantize::ErrorStats;
use std::collections::BTreeMap;
use std::path::Path;

/// What is resumed as a whole.
pub(in crate::convert) enum Unit<'a> {
    Package(PackageUnit<'a>),
    Table(TableSpec),
    PerLayer,
    Rope,
    TokenFiles,
}

/// A package to be written.
pub(in crate::convert) struct PackageUnit<'a> {
    pub chunk: &'a ResolvedChunk,
    /// The package (`chunk1`), earlier in the order of the units, whose weights this one has. Its tensors stand for both.
    pub weights_of: Option<String>,
}

/// Where a unit comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::convert) enum Origin {
    /// The checkpoint and the recipe.
    Anew,
    /// A program of its own over the weights of the base's package.
    Rewritten,
    /// The base, as it is there.
    Kept,
}

impl<'a> Job<'a> {
    /// All units with their names, in the order they are built.
    pub fn units(&self) -> Vec<(String, Unit<'a>)> {
        let (plan, task) = (self.plan, self.task);
        let scheme = task.recipe.quantize.tables;
        let package = |(i, chunk): (usize, &'a ResolvedChunk)| {
            let earlier = task.chunks[..i].iter().find(|c| c.has_weights_of(chunk));
            let unit = PackageUnit {
                chunk,
                weights_of: earlier.map(|c| c.spec.name.clone()),
            };
            (layout::package_dir(&chunk.spec.name), Unit::Package(unit))
        };
        let chunks = task.chunks.iter().enumerate();
        let mut units: Vec<(String, Unit<'a>)> = chunks.map(package).collect();
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

    pub fn origin(&self, name: &str, unit: &Unit<'_>) -> Origin {
        let task = self.task;
        match (&task.base, &task.only, unit) {
            (None, ..) => Origin::Anew,
            (_, Some(only), Unit::Package(p)) if p.weights_of.as_ref() == Some(only) => {
                Origin::Anew
            }
            (_, Some(only), _) if name == layout::package_dir(only) => Origin::Anew,
            (_, Some(_), _) => Origin::Kept,
            (_, None, Unit::Package(p)) if p.weights_of.is_none() => Origin::Rewritten,
            (_, None, Unit::Package(_) | Unit::Rope | Unit::TokenFiles) => Origin::Anew,
            (_, None, Unit::Table(_) | Unit::PerLayer) => Origin::Kept,
        }
    }

    /// Names of the units whose weights or files are the base's.
    pub fn kept(&self, units: &[(String, Unit<'_>)]) -> Vec<String> {
        let kept = units.iter();
        kept.filter(|(name, unit)| self.origin(name, unit) != Origin::Anew)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// What a unit's files begin with.
    pub fn tops(&self, name: &str, unit: &Unit<'_>) -> Vec<String> {
        match unit {
            Unit::Package(_) | Unit::TokenFiles => vec![name.to_string()],
            Unit::Table(spec) => [layout::table_data(spec.stem, spec.format())]
                .into_iter()
                .chain(layout::table_scales(spec.stem, spec.format()))
                .collect(),
            Unit::PerLayer => [layout::PER_LAYER_PROJECTION, layout::PER_LAYER_NORM]
                .map(str::to_string)
                .to_vec(),
            Unit::Rope => layout::ROPE.map(str::to_string).to_vec(),
        }
    }

    /// Values read for a unit: the measure of progress.
    pub fn elements(&self, name: &str, unit: &Unit<'_>) -> u64 {
        let plan = self.plan;
        if self.origin(name, unit) != Origin::Anew {
            return 0;
        }
        match unit {
            Unit::Package(p) if p.weights_of.is_some() => 0,
            Unit::Package(p) => p.chunk.weights.iter().map(|w| w.elements).sum(),
            Unit::Table(spec) => spec.rows as u64 * spec.dim as u64,
            Unit::PerLayer => {
                let width = (plan.layers.len() * plan.ple_dim) as u64;
                width * plan.hidden as u64 + plan.ple_dim as u64
            }
            Unit::Rope | Unit::TokenFiles => 0,
        }
    }

    /// The program of a package and the order of its weights.
    pub fn graph(&self, chunk: &ResolvedChunk) -> Result<(ChunkGraph, Vec<String>)> {
        let (task, recipe) = (self.task, self.task.recipe_of(&chunk.spec.name));
        let mut options = recipe.graph_options(task.context);
        options.activation_scales = activations::scales(task, chunk)?;
        let graph = build_chunk(self.plan, &chunk.spec, &options)?;
        let order = graph.weights.iter().map(|w| w.konst.id.clone()).collect();
        Ok((graph, order))
    }

    pub fn description(&self, chunk: &ResolvedChunk) -> ModelDescription {
        let (layers, task) = (&chunk.spec.layers, self.task);
        let recipe = task.recipe_of(&chunk.spec.name);
        let user = [
            (
                "gemma_coreml_version",
                env!("CARGO_PKG_VERSION").to_string(),
            ),
            ("gemma_coreml_recipe", recipe.name.clone()),
            ("context_length", task.context.to_string()),
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
}

impl Build<'_> {
    /// Compares what was taken over with what the base's provenance says of it.
    pub fn check_kept(
        &self,
        name: &str,
        unit: &Unit<'_>,
        records: &BTreeMap<String, FileRecord>,
    ) -> Result<()> {
        let origin = self.job.origin(name, unit);
        let Some(base) = &self.job.task.base else {
            return Ok(());
        };
        let weights = format!("{name}/{WEIGHTS_DIR}/");
        for (file, got) in records {
            let kept = match origin {
                Origin::Anew => false,
                Origin::Rewritten => file.starts_with(&weights),
                Origin::Kept => true,
            };
            let expected = base.provenance.files.get(file);
            if kept && expected != Some(got) {
                let text = |r: &FileRecord| format!("{} ({} bytes)", r.sha256, r.bytes);
                return Err(crate::bundle::Error::Content {
                    path: base.dir.join(file),
                    what: "sha256",
                    expected: expected.map_or("no such file".to_string(), text),
                    got: text(got),
                }
                .into());
            }
        }
        Ok(())
    }

    /// Writes a unit into `dir`; earlier ones are in `content`.
    pub fn write(
        &self,
        name: &str,
        unit: &Unit<'_>,
        content: &Path,
        dir: &Path,
    ) -> Result<Vec<TensorRecord>> {
        let (plan, checkpoint) = (self.job.plan, self.job.checkpoint);
        let origin = self.job.origin(name, unit);
        if let (Some(base), true) = (&self.job.task.base, origin != Origin::Anew) {
            let tops = self.job.tops(name, unit);
            match unit {
                Unit::Package(p) if origin == Origin::Rewritten => {
                    self.rewrite_chunk(p.chunk, &base.dir.join(name), dir)?
                }
                _ => base.take(&tops, dir)?,
            }
            return Ok(base.tensors(&tops));
        }
        match unit {
            Unit::Package(p) => match &p.weights_of {
                None => self.write_chunk(p.chunk, dir),
                Some(donor) => {
                    let donor = content.join(layout::package_dir(donor));
                    self.rewrite_chunk(p.chunk, &donor, dir)?;
                    Ok(Vec::new())
                }
            },
            Unit::Table(spec) => Ok(vec![tables::write_table(
                dir,
                spec,
                checkpoint,
                self.progress,
            )?]),
            Unit::PerLayer => self.write_per_layer(dir),
            Unit::Rope => {
                let full = plan.full.rope;
                let full = if self.job.task.recipe.compat {
                    full.all_pairs()
                } else {
                    full
                };
                let rows = layout::rope_rows(self.job.task.context);
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
        let (graph, order) = self.job.graph(chunk)?;
        let package = layout::package_dir(&chunk.spec.name);
        let (job, weights) = (&self.job, &chunk.weights);
        let rules = &job.task.recipe_of(&chunk.spec.name).quantize;
        let levers = job
            .task
            .calibration
            .as_deref()
            .map(|stats| Levers::new(job.checkpoint, job.plan, rules, stats, weights));
        let source = Weights::new(job.checkpoint, weights, levers, self.progress);
        let mut source = source.with_palettes(job.task.palettes.clone());
        let spec = PackageSpec {
            program: &graph.program,
            description: self.job.description(chunk),
            blob_order: &order,
            file_limit: self.job.task.file_limit,
        };
        let written = write_package(&dir.join(&package), &spec, &mut source);
        match (written, source.failed.take()) {
            (_, Some(ours)) => Err(ours),
            (Ok(_), None) => Ok(source.records),
            (Err(source), None) => Err(package_error(package, source)),
        }
    }

    /// Writes a package over the weights of the one at `donor`.
    fn rewrite_chunk(&self, chunk: &ResolvedChunk, donor: &Path, dir: &Path) -> Result<()> {
        let (graph, order) = self.job.graph(chunk)?;
        let package = layout::package_dir(&chunk.spec.name);
        let spec = PackageSpec {
            program: &graph.program,
            description: self.job.description(chunk),
            blob_order: &order,
            file_limit: self.job.task.file_limit,
        };
        let donor = Package::open(donor).map_err(|source| crate::bundle::Error::Package {
            chunk: donor
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            source: Box::new(source),
        })?;
        let written = rewrite_package(&dir.join(&package), &spec, &donor);
        match written {
            Ok(_) => Ok(()),
            Err(source) => Err(package_error(package, source)),
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
