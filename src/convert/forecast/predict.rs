//! What a conversion will make and take, predicted from headers and vectors: of matrices a few groups are read at most.

use super::estimate;
use super::types::{
    FileForecast, Forecast, PackageForecast, SchemeForecast, SchemeTotal, TableForecast, note,
};
use crate::bundle::error::at;
use crate::bundle::provenance::{FileRecord, GridRecord, TensorRecord};
use crate::bundle::{layout, npy};
use crate::checkpoint::{Checkpoint, StoredDType};
use crate::convert::decide::{
    ByConst, Job, Origin, PackageUnit, Resolved, ResolvedChunk, Task, Unit, checked_plan,
    grid_record, matrix, own_weights, package_error, table_grid_record, tensor_record,
};
use crate::convert::error::Result;
use crate::convert::options::Options;
use crate::gemma::names;
use crate::mil::DeferredConst;
use crate::package::{MIN_BLOB_ELEMENTS, PackageSpec, WEIGHTS_DIR, forecast_package};
use crate::quantize::{ErrorStats, Scheme, TableScheme};
use crate::recipe::Recipe;
use half::f16;
use std::collections::{BTreeMap, BTreeSet};

/// Predicts a conversion anew. Statistics of a calibration are not needed where only the values of weights depend on them.
///
/// # Errors
/// As [`crate::convert::convert`], before it reads a matrix.
pub fn forecast(checkpoint: &Checkpoint, recipe: &Recipe, options: &Options) -> Result<Forecast> {
    let plan = checked_plan(checkpoint)?;
    let task = Task::planned((checkpoint, &plan), recipe, options)?;
    let job = Job {
        checkpoint,
        plan: &plan,
        task: &task,
    };
    job.forecast(options.threads)
}

impl Job<'_> {
    /// Predicts this conversion on so many threads; one per core when `None`.
    pub fn forecast(&self, threads: Option<usize>) -> Result<Forecast> {
        let mut all = Collected::default();
        let units = self.units();
        for (name, unit) in &units {
            self.add_unit(name, unit, &mut all)?;
        }
        self.add_facts(&mut all)?;
        let files = all.files;
        let sizes = files.iter().map(|(name, file)| (name, file.bytes));
        let threads = estimate::threads(threads);
        Ok(Forecast {
            recipe: self.task.recipe.name.clone(),
            context: self.task.context,
            schemes: schemes(self.written_chunks()),
            tables: self.tables(&units),
            bytes: files.values().map(|file| file.bytes).sum(),
            disk: estimate::disk(files.values().filter(|f| f.written).map(|f| f.bytes)),
            memory: estimate::memory(self, &units, &files, &all.ops, threads),
            time: estimate::time(self, &units, written(&files), threads),
            notes: sizes
                .filter_map(|(name, bytes)| note(name, bytes))
                .chain(self.task.notes(self.checkpoint))
                .chain(self.grid_note()?)
                .collect(),
            packages: all.packages,
            files,
        })
    }

    /// Packages whose weights or programs are written.
    fn written_chunks(&self) -> Vec<ResolvedChunk> {
        let only = &self.task.only;
        let chunks = self.task.chunks.iter();
        let written = chunks.filter(|c| only.as_ref().is_none_or(|o| *o == c.spec.name));
        written.cloned().collect()
    }

    fn tables(&self, units: &[(String, Unit<'_>)]) -> Vec<TableForecast> {
        let mut tables = Vec::new();
        for (_, unit) in units {
            match unit {
                Unit::Table(spec) => tables.push(TableForecast {
                    tensor: spec.tensor.to_string(),
                    rows: spec.rows,
                    dim: spec.dim,
                    scheme: spec.scheme.to_string(),
                    bytes: spec.bytes(),
                }),
                Unit::PerLayer => {
                    let rows = self.plan.layers.len() * self.plan.ple_dim;
                    tables.push(TableForecast {
                        tensor: names::PER_LAYER_PROJECTION.to_string(),
                        rows,
                        dim: self.plan.hidden,
                        scheme: "fp16".to_string(),
                        bytes: (rows * self.plan.hidden * 2) as u64,
                    });
                }
                _ => {}
            }
        }
        tables
    }

    fn add_unit(&self, name: &str, unit: &Unit<'_>, all: &mut Collected) -> Result<()> {
        if let Unit::Package(package) = unit {
            return self.add_package(name, unit, package, all);
        }
        if self.origin(name, unit) != Origin::Anew {
            self.add_kept(name, unit, all);
            return Ok(());
        }
        let mut files = BTreeMap::new();
        match unit {
            Unit::Package(_) => {}
            Unit::Table(spec) => {
                let data = layout::table_data(spec.stem, spec.scheme);
                let scales = layout::table_scales(spec.stem, spec.scheme);
                let scale_bytes = spec.scale_bytes();
                let size = (spec.rows as u64 * spec.dim as u64, spec.bytes());
                let exact = spec.scheme == TableScheme::RowsFp16
                    && self.is_fp16(spec.tensor, &[spec.rows, spec.dim])?;
                all.record(spec.tensor, &data, &spec.scheme.to_string(), size, exact);
                let shape = [spec.rows, spec.dim];
                let stored = self.checkpoint.tensor(spec.tensor, &shape)?.grid();
                all.grid(table_grid_record(spec.scheme, shape, stored));
                files.insert(data, spec.bytes() - scale_bytes);
                files.extend(scales.map(|file| (file, scale_bytes)));
            }
            Unit::PerLayer => {
                let width = (self.plan.layers.len() * self.plan.ple_dim) as u64;
                let (values, gains) = (width * self.plan.hidden as u64, self.plan.ple_dim as u64);
                let tensor = names::PER_LAYER_PROJECTION;
                let file = layout::PER_LAYER_PROJECTION;
                let shape = [width as usize, self.plan.hidden];
                let exact = self.is_fp16(tensor, &shape)?;
                all.record(tensor, file, "fp16", (values, values * 2), exact);
                files.insert(file.to_string(), values * 2);
                let (tensor, file) = (names::PER_LAYER_NORM, layout::PER_LAYER_NORM);
                all.record(tensor, file, "fp32", (gains, gains * 4), true);
                files.insert(file.to_string(), gains * 4);
            }
            Unit::Rope => files.extend(self.rope_files()?),
            Unit::TokenFiles => {
                for path in self.checkpoint.token_files() {
                    let bytes = std::fs::metadata(&path).map_err(at(&path))?.len();
                    let file = path.file_name().unwrap_or_default().to_string_lossy();
                    files.insert(format!("{}/{file}", layout::HF_DIR), bytes);
                }
            }
        }
        for (file, bytes) in files {
            all.file(file, bytes, true);
        }
        Ok(())
    }

    /// What is taken from the bundle that is there, as its provenance has it.
    fn add_kept(&self, name: &str, unit: &Unit<'_>, all: &mut Collected) {
        let Some(base) = &self.task.base else {
            return;
        };
        let tops = self.tops(name, unit);
        for (file, bytes) in base.sizes(&tops) {
            all.file(file, bytes, false);
        }
        all.tensors.extend(base.tensors(&tops));
    }

    fn rope_files(&self) -> Result<BTreeMap<String, u64>> {
        let rows = layout::rope_rows(self.task.context);
        let dims = [self.plan.sliding.head_dim, self.plan.full.head_dim];
        let mut files = BTreeMap::new();
        for (i, name) in layout::ROPE.iter().enumerate() {
            let mut header = Vec::new();
            npy::write_header(&mut header, rows, dims[i / 2]).map_err(at(name.as_ref()))?;
            let values = (rows as u64).saturating_mul(dims[i / 2] as u64 * 2);
            let bytes = values.saturating_add(header.len() as u64);
            files.insert((*name).to_string(), bytes);
        }
        Ok(files)
    }

    fn add_package(
        &self,
        dir: &str,
        unit: &Unit<'_>,
        package: &PackageUnit<'_>,
        all: &mut Collected,
    ) -> Result<()> {
        let (chunk, origin) = (package.chunk, self.origin(dir, unit));
        let first = all.files.len();
        if origin == Origin::Kept {
            self.add_kept(dir, unit, all);
        } else {
            let shared = origin == Origin::Rewritten || package.weights_of.is_some();
            for (file, bytes) in self.package_files(chunk, &mut all.ops)? {
                let written = !(shared && file.starts_with(WEIGHTS_DIR));
                all.file(format!("{dir}/{file}"), bytes, written);
            }
            if origin == Origin::Rewritten && self.task.base.is_some() {
                // The weight files are the base's, as they are.
                let tensors = self.keep_weights(dir, all);
                all.tensors.extend(tensors);
            } else if package.weights_of.is_none() {
                for weight in &chunk.weights {
                    let binding = &weight.binding;
                    let exact = weight.scheme == Scheme::Fp16
                        && self.is_fp16(&binding.tensor, &binding.source_shape)?;
                    let grid = self.expected_grid(weight, &chunk.spec.name)?;
                    all.weight(weight, exact, grid);
                }
            }
        }
        debug_assert!(all.files.len() > first);
        let below = |file: &String| file.starts_with(&format!("{dir}/"));
        let own = all.files.iter().filter(|(file, _)| below(file));
        let sizes: Vec<(bool, u64)> = own
            .map(|(file, size)| (file.contains(WEIGHTS_DIR), size.bytes))
            .collect();
        let spec = &chunk.spec;
        let functions = spec.functions.iter();
        all.packages.push(PackageForecast {
            name: spec.name.clone(),
            first_layer: spec.layers.start,
            end_layer: spec.layers.end,
            functions: functions.map(|f| f.function_name()).collect(),
            weights: chunk.weights.len(),
            values: chunk.weights.iter().map(|w| w.elements).sum(),
            schemes: scheme_totals(&chunk.weights),
            weight_bytes: sizes.iter().filter(|s| s.0).map(|s| s.1).sum(),
            bytes: sizes.iter().map(|s| s.1).sum(),
            weights_of: package.weights_of.clone(),
            kept: origin != Origin::Anew,
        });
        Ok(())
    }

    /// Replaces the weight files of a package by those of the base; gives the records of its tensors.
    fn keep_weights(&self, dir: &str, all: &mut Collected) -> Vec<TensorRecord> {
        let Some(base) = &self.task.base else {
            return Vec::new();
        };
        let weights = format!("{dir}/{WEIGHTS_DIR}/");
        all.files.retain(|file, _| !file.starts_with(&weights));
        let tops = [dir.to_string()];
        for (file, bytes) in base.sizes(&tops) {
            if file.starts_with(&weights) {
                all.file(file, bytes, false);
            }
        }
        base.tensors(&tops)
    }

    /// Files of a package that is written, by path in it.
    fn package_files(
        &self,
        chunk: &ResolvedChunk,
        ops: &mut BTreeMap<String, usize>,
    ) -> Result<BTreeMap<String, u64>> {
        let (graph, order) = self.graph(chunk)?;
        let spec = PackageSpec {
            program: &graph.program,
            description: self.description(chunk),
            blob_order: &order,
            file_limit: self.task.file_limit,
        };
        let weights = ByConst::new(&chunk.weights);
        let storage = |c: &DeferredConst| Ok(weights.find(c)?.storage.clone());
        let vectors = self.vectors(chunk)?;
        let mut data = |c: &DeferredConst| Ok(vectors.get(c.id.as_str()).cloned());
        let predicted = forecast_package(&spec, &storage, &mut data)
            .map_err(|e| package_error(&layout::package_dir(&chunk.spec.name), e))?;
        let functions = graph.program.functions.values();
        let package = layout::package_dir(&chunk.spec.name);
        ops.insert(package, functions.map(|f| f.ops.len()).sum());
        Ok(predicted.files)
    }

    /// The bytes of the vectors of a package, by constant, that are stored as the checkpoint has them: not of those that folds may
    /// divide.
    fn vectors<'c>(&self, chunk: &'c ResolvedChunk) -> Result<BTreeMap<&'c str, Vec<u8>>> {
        let rules = &self.task.recipe_of(&chunk.spec.name).quantize;
        let mut folded = BTreeSet::new();
        if rules.scale {
            let palettes: BTreeSet<&str> = chunk
                .weights
                .iter()
                .filter(|w| matches!(w.scheme, Scheme::Palette { .. }))
                .map(|w| w.binding.tensor.as_str())
                .collect();
            for layer in &self.plan.layers[chunk.spec.layers.clone()] {
                let mut folds = self.plan.folds(layer);
                folds.retain(|f| f.consumers.iter().any(|c| palettes.contains(c.as_str())));
                folded.extend(folds.into_iter().map(|fold| fold.source));
            }
        }
        let vectors = chunk.weights.iter().filter(|w| {
            w.scheme == Scheme::Fp16
                && w.binding.source_shape.len() == 1
                && w.elements >= MIN_BLOB_ELEMENTS as u64
                && !folded.contains(&w.binding.tensor)
        });
        let mut bytes = BTreeMap::new();
        for weight in vectors {
            let binding = &weight.binding;
            let view = self
                .checkpoint
                .tensor(&binding.tensor, &binding.source_shape)?;
            let mut values = vec![f16::ZERO; view.len()];
            view.read_f16(0..view.len(), &mut values)?;
            let stored = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            bytes.insert(binding.konst.id.as_str(), stored);
        }
        Ok(bytes)
    }

    /// The record of integers that a weight's scheme keeps, nothing counted.
    fn expected_grid(&self, weight: &Resolved, package: &str) -> Result<Option<GridRecord>> {
        let binding = &weight.binding;
        let view = self
            .checkpoint
            .tensor(&binding.tensor, &binding.source_shape)?;
        let rules = &self.task.recipe_of(package).quantize;
        let tuned = rules.importance || rules.compensate.is_some();
        Ok(grid_record(
            weight.scheme,
            matrix(binding),
            view.grid(),
            tuned,
        ))
    }

    /// Whether a tensor is likely to be fp16 without an error: it is stored so, or has few values in bf16, which only those below
    /// 2^-16 are too fine for.
    fn is_fp16(&self, tensor: &str, shape: &[usize]) -> Result<bool> {
        let view = self.checkpoint.tensor(tensor, shape)?;
        Ok(match view.dtype() {
            StoredDType::F16 => true,
            StoredDType::Bf16 => view.len() <= FEW,
            StoredDType::F32 => false,
        })
    }

    /// `model_config.json`, and `provenance.json` with records of everything that was collected.
    fn add_facts(&self, all: &mut Collected) -> Result<()> {
        let config = self.config().to_json()?.len() as u64;
        all.file(layout::MODEL_CONFIG.to_string(), config, true);
        let sha256 = UNKNOWN_SHA256.to_string();
        let record = |bytes: u64| FileRecord {
            bytes,
            sha256: sha256.clone(),
        };
        let files = all.files.iter();
        let records = files
            .map(|(name, file)| (name.clone(), record(file.bytes)))
            .collect();
        let tensors = std::mem::take(&mut all.tensors);
        let mut provenance = self.provenance(UNKNOWN_SHA256, tensors, records);
        for recipe in
            std::iter::once(&mut provenance.recipe).chain(provenance.packages.values_mut())
        {
            // Statistics that are not there yet will be named by their hash.
            if recipe.calibration.is_none() && self.task.recipe.quantize.calibrated_by().is_some() {
                recipe.calibration = Some(sha256.clone());
            }
        }
        let bytes = provenance.to_json()?.len() as u64;
        let file = FileForecast {
            bytes,
            exact: false,
            written: true,
        };
        all.files.insert(layout::PROVENANCE.to_string(), file);
        Ok(())
    }
}

/// As long as any SHA-256 in hex.
const UNKNOWN_SHA256: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Values of which in weights of common size (0.02) one is below 2^-16, about.
const FEW: usize = 2048;

/// Errors of a tensor with as many digits as most have: six.
const TYPICAL: (f64, f64) = (20.1234, 0.012_345_6);

/// What units add up to.
#[derive(Default)]
struct Collected {
    files: BTreeMap<String, FileForecast>,
    tensors: Vec<TensorRecord>,
    packages: Vec<PackageForecast>,
    /// Ops of the program of each package that is written.
    ops: BTreeMap<String, usize>,
}

impl Collected {
    fn file(&mut self, name: String, bytes: u64, written: bool) {
        let file = FileForecast {
            bytes,
            exact: true,
            written,
        };
        self.files.insert(name, file);
    }

    fn weight(&mut self, weight: &Resolved, lossless: bool, grid: Option<GridRecord>) {
        let chosen = (weight.scheme.to_string(), weight.reason.clone());
        let size = (weight.elements, weight.bytes);
        let (tensor, file) = (&weight.binding.tensor, &weight.package);
        self.tensor(tensor, file, chosen, size, lossless);
        self.grid(grid);
    }

    /// The integers of the last tensor, their groups counted as if all were alike.
    fn grid(&mut self, grid: Option<GridRecord>) {
        if let Some(record) = self.tensors.last_mut() {
            record.grid = grid.map(|grid| GridRecord {
                on: grid.groups,
                ..grid
            });
        }
    }

    fn record(&mut self, tensor: &str, file: &str, scheme: &str, size: (u64, u64), exact: bool) {
        let chosen = (scheme.to_string(), "table".to_string());
        self.tensor(tensor, file, chosen, size, exact);
    }

    /// A record as `provenance.json` will have it, the errors made up.
    fn tensor(
        &mut self,
        tensor: &str,
        file: &str,
        chosen: (String, String),
        size: (u64, u64),
        lossless: bool,
    ) {
        let mut record = tensor_record(tensor, file, chosen, size, &ErrorStats::default());
        if !lossless {
            (record.sqnr_db, record.max_abs_error) = (Some(TYPICAL.0), TYPICAL.1);
        }
        self.tensors.push(record);
    }
}

fn written(files: &BTreeMap<String, FileForecast>) -> u64 {
    let written = files.values().filter(|file| file.written);
    written.map(|file| file.bytes).sum()
}

fn scheme_totals(weights: &[Resolved]) -> BTreeMap<String, SchemeTotal> {
    let mut totals: BTreeMap<String, SchemeTotal> = BTreeMap::new();
    for weight in weights {
        let total = totals.entry(weight.scheme.to_string()).or_default();
        total.tensors += 1;
        total.elements += weight.elements;
        total.bytes += weight.bytes;
    }
    totals
}

/// One row per scheme and reason; a weight that did not fit its scheme has a row of its own.
fn schemes(chunks: Vec<ResolvedChunk>) -> Vec<SchemeForecast> {
    let mut rows: BTreeMap<(String, String, Option<String>), SchemeForecast> = BTreeMap::new();
    for weight in own_weights(&chunks).flat_map(|c| &c.weights) {
        let alone = weight.reason.starts_with("otherwise");
        let tensor = alone.then(|| weight.binding.tensor.clone());
        let (scheme, reason) = (weight.scheme.to_string(), weight.reason.clone());
        let key = (scheme.clone(), reason.clone(), tensor.clone());
        let row = rows.entry(key).or_insert(SchemeForecast {
            scheme,
            reason,
            tensor,
            weights: 0,
            values: 0,
            bytes: 0,
        });
        row.weights += 1;
        row.values += weight.elements;
        row.bytes += weight.bytes;
    }
    rows.into_values().collect()
}
