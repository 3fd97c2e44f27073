//! How each unit is written.

use super::tables;
use super::work::Build;
use crate::bundle::layout;
use crate::bundle::provenance::{FileRecord, TensorRecord};
use crate::convert::decide::{Origin, ResolvedChunk, Unit, tensor_record};
use crate::convert::error::{Error, Result, disk_full};
use crate::convert::weights::{Levers, Weights};
use crate::gemma::names;
use crate::package::{Package, PackageSpec, WEIGHTS_DIR, rewrite_package, write_package};
use crate::quantize::ErrorStats;
use std::collections::BTreeMap;
use std::path::Path;

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
