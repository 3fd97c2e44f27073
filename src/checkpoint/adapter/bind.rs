//! Which tensors of a model an adapter changes, and how.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;

use super::super::error::{AdapterError as Error, Result};
use super::merge::{Change, Factor, LowRank, Magnitude, Step};
use super::names::{self, Place};
use super::notice::AdapterNotice;
use super::opened::Adapter;
use super::parts::{Module, Shape};
use super::patterns;
use super::settings::{AdapterFormat, Config, setting};
use super::stored::{Stored, wrong};

/// The embedding table, which is the head too in a model that has none of its own.
const EMBED: &str = "embed_tokens.weight";
/// A head of its own.
const HEAD: &str = "lm_head.weight";
/// The per-layer embedding table.
const PER_LAYER_EMBED: &str = "embed_tokens_per_layer.weight";

/// What of a model decides where an adapter's tensors belong.
pub(in crate::checkpoint) struct Base<'a> {
    pub dir: &'a Path,
    pub layers: usize,
    /// First layer without K and V of its own.
    pub first_shared: usize,
    /// Shapes of the text tensors by name.
    pub shapes: BTreeMap<&'a str, &'a [usize]>,
}

/// The changes of all adapters, by tensor.
pub(in crate::checkpoint) type Changes = BTreeMap<String, Change>;

/// Adds what an adapter does to a model to what others did before. Returns the tensors that it changes and what a user
/// should know.
pub(super) fn bind(
    adapter: &Adapter,
    base: &Base<'_>,
    changes: &mut Changes,
) -> Result<(Vec<String>, Vec<AdapterNotice>)> {
    let mut binding = Binding {
        adapter,
        base,
        steps: BTreeMap::new(),
        towers: 0,
        shared: 0,
        embed: Trained::default(),
    };
    binding.whole()?;
    // The head after the table, as in the model.
    let is_head = |path: &str| names::inner(path) == "lm_head";
    for head in [false, true] {
        let modules = adapter.modules.iter();
        for (path, module) in modules.filter(|(path, _)| is_head(path) == head) {
            binding.module(path, module)?;
        }
    }
    binding.finish(changes)
}

/// What of the embedding table and its head an adapter holds.
#[derive(Default)]
struct Trained {
    table: bool,
    head: bool,
}

struct Binding<'a> {
    adapter: &'a Adapter,
    base: &'a Base<'a>,
    steps: BTreeMap<String, Vec<Step>>,
    towers: usize,
    shared: usize,
    embed: Trained,
}

impl Binding<'_> {
    fn config(&self) -> &Config {
        &self.adapter.config
    }

    fn unmergeable(&self, tensor: &Stored, why: impl Into<String>, hint: &str) -> Error {
        Error::Unmergeable {
            path: self.adapter.path.clone(),
            tensor: tensor.name.clone(),
            why: why.into(),
            hint: hint.to_string(),
        }
    }

    /// The tensor of the model that a path means, `None` for one that has no part in it; counts those.
    fn target(&mut self, path: &str, tensors: usize) -> Option<String> {
        match names::place(path, self.base.layers, self.base.first_shared) {
            Place::Tower => self.towers += tensors,
            Place::SharedKv => self.shared += tensors,
            Place::Text(name) => return Some(name.to_string()),
        }
        None
    }

    /// Whether the model's head is not its embedding table.
    fn own_head(&self) -> bool {
        self.base.shapes.contains_key(HEAD)
    }

    fn shape(&self, tensor: &Stored, name: &str) -> Result<Vec<usize>> {
        if let Some(shape) = self.base.shapes.get(name) {
            return Ok(shape.to_vec());
        }
        let experts = name.contains(".experts.") || name.ends_with(".experts.weight");
        let (why, hint) = match experts {
            true => (
                "adapters of experts are not supported".to_string(),
                "merge the adapter with the library that trained it, and convert the merged checkpoint",
            ),
            false => (
                format!("the model has no tensor {name}"),
                "the adapter was trained on another model, or its names are of a library that is not read",
            ),
        };
        Err(self.unmergeable(tensor, why, hint).into())
    }

    /// Tensors that take the place of the model's.
    fn whole(&mut self) -> Result<()> {
        let adapter = self.adapter;
        self.check_saved()?;
        let (mut table, mut head) = (None, None);
        for (path, stored) in &adapter.whole {
            let Some(name) = self.target(path, 1) else {
                continue;
            };
            match name.as_str() {
                HEAD if !self.own_head() => head = Some(stored),
                EMBED if !self.own_head() => table = Some(stored),
                _ => self.replace(&name, stored)?,
            }
        }
        let bases = adapter.modules.iter();
        let bases = bases.filter_map(|(path, m)| Some((path, m.base.as_ref()?)));
        for (path, stored) in bases {
            match self.target(path, 0).as_deref() {
                None => {}
                Some("lm_head") if !self.own_head() => head = head.or(Some(stored)),
                Some("embed_tokens") if !self.own_head() => table = table.or(Some(stored)),
                Some(name) => self.replace(&format!("{name}.weight"), stored)?,
            }
        }
        // In PEFT a module to save is a copy, so that the head is no longer tied to the table. Everything else is written
        // into the tensor that both share.
        let copied = |path: &str| {
            let saved = self.config().targets.saved.iter();
            saved
                .into_iter()
                .any(|m| patterns::ends_with(path, path, m))
        };
        let untied = copied("embed_tokens") || copied("lm_head");
        match (table, head) {
            (None, None) => Ok(()),
            (Some(table), Some(head)) if table.equals(head) => self.replace(EMBED, table),
            (Some(one), None) | (None, Some(one)) if !untied => self.replace(EMBED, one),
            (_, Some(one)) | (Some(one), _) => {
                let why =
                    "the embedding table and the head, which the model ties, are no longer equal";
                let hint = "train with `ensure_weight_tying`, or leave embed_tokens and lm_head out of `modules_to_save`";
                Err(self.unmergeable(one, why, hint).into())
            }
        }
    }

    /// Every module that the config says was saved is there.
    fn check_saved(&self) -> Result<()> {
        let is_in = |saved: &str| {
            self.adapter.whole.keys().any(|path| {
                let dots = path.match_indices('.');
                let mut modules = dots.map(|(dot, _)| &path[..dot]);
                modules.any(|m| patterns::ends_with(m, names::inner(m), saved))
            })
        };
        let saved = &self.config().targets.saved;
        match saved.iter().find(|saved| !is_in(saved)) {
            None => Ok(()),
            Some(missing) => {
                let why = format!("{} has no tensor of it", self.adapter.path.display());
                Err(setting(&self.config().path, "modules_to_save", missing, &why).into())
            }
        }
    }

    fn replace(&mut self, name: &str, stored: &Stored) -> Result<()> {
        let expected = self.shape(stored, name)?;
        if stored.shape != expected {
            return Err(self.wrong_shape(stored, name, &expected, &expected).into());
        }
        self.push(name, Step::Whole(stored.clone()));
        Ok(())
    }

    fn wrong_shape(&self, stored: &Stored, name: &str, of: &[usize], expected: &[usize]) -> Error {
        let expected = format!("{expected:?}, for {name} of shape {of:?}");
        wrong(
            &self.adapter.path,
            stored,
            "shape",
            expected,
            format!("{:?}", stored.shape),
        )
    }

    fn push(&mut self, name: &str, step: Step) {
        self.steps.entry(name.to_string()).or_default().push(step);
    }

    /// Factors and rows of one module.
    fn module(&mut self, path: &str, module: &Module) -> Result<()> {
        let Some(target) = self.target(path, module.count()) else {
            return Ok(());
        };
        let head = target == "lm_head" && !self.own_head();
        let name = match head {
            true => EMBED.to_string(),
            false => format!("{target}.weight"),
        };
        let Some(first) = module.first() else {
            return Ok(());
        };
        let shape = self.shape(first, &name)?;
        let &[rows, columns] = shape.as_slice() else {
            let why = format!("{name} of shape {shape:?} is no matrix");
            return Err(self
                .unmergeable(first, why, "only matrices can be adapted")
                .into());
        };
        let of = Of {
            name: &name,
            rows,
            columns,
        };
        if let Some(values) = &module.token_rows {
            let step = self.token_rows(path, module, values, &of)?;
            self.push(&name, step);
            return Ok(());
        }
        let Some((a, b)) = module.factors(&self.adapter.path)? else {
            return Ok(());
        };
        self.check_targeted(path, a)?;
        let embedding = match self.config().format {
            AdapterFormat::Peft => module.shape == Shape::Embedding,
            AdapterFormat::MlxLm => [EMBED, PER_LAYER_EMBED].contains(&name.as_str()),
        };
        let product = self.product(path, (a, b), module.magnitude.as_ref(), embedding, &of)?;
        if name == EMBED && !self.own_head() {
            let tied = self.config().tied;
            let twin = head && tied && self.is_twin(&product);
            self.embed.table |= !head;
            self.embed.head |= head;
            // The head's factors are those of the table: one tensor, trained as one.
            if twin {
                self.embed.table = true;
                return Ok(());
            }
        }
        self.push(&name, Step::Product(Box::new(product)));
        Ok(())
    }

    /// Whether the table is changed by the same factors already.
    fn is_twin(&self, head: &LowRank) -> bool {
        let steps = self.steps.get(EMBED).into_iter().flatten();
        steps.into_iter().any(|step| match step {
            Step::Product(table) => {
                let plain = head.magnitude.is_none() && table.magnitude.is_none();
                plain && table.scale == head.scale && table.same_factors(head)
            }
            _ => false,
        })
    }

    /// A tensor of a module that the config leaves out would not be loaded by the library that wrote it.
    fn check_targeted(&self, path: &str, tensor: &Stored) -> Result<()> {
        let targets = &self.config().targets;
        // The head is tied to a targeted table.
        if self.config().tied && names::inner(path) == "lm_head" {
            return Ok(());
        }
        let inner = names::inner(path);
        let layer = inner
            .strip_prefix("layers.")
            .and_then(|r| r.split('.').next());
        let layer = layer.and_then(|n| n.parse::<usize>().ok());
        let in_layers = match (&targets.layers, layer) {
            (None, _) => true,
            (Some(layers), Some(layer)) => layers.contains(&layer),
            (Some(_), None) => false,
        };
        let named = targets.modules.as_ref().is_none_or(|m| m.has(path));
        let left_out = targets.exclude.as_ref().is_some_and(|m| m.has(path));
        if named && in_layers && !left_out {
            return Ok(());
        }
        let setting = match (self.config().format, named, in_layers) {
            (AdapterFormat::MlxLm, ..) => "lora_parameters.keys",
            (_, false, _) => "target_modules",
            (_, _, false) => "layers_to_transform",
            _ => "exclude_modules",
        };
        let why = format!("`{setting}` of adapter_config.json leaves the module {path} out");
        let hint = "config and weights are not of one training; the library that wrote them would pass the tensor over";
        Err(self.unmergeable(tensor, why, hint).into())
    }

    fn product(
        &self,
        path: &str,
        (a, b): (&Stored, &Stored),
        magnitude: Option<&Stored>,
        embedding: bool,
        of: &Of<'_>,
    ) -> Result<LowRank> {
        let (rank, scale) = self.config().scaling.of(path);
        let (rows, columns) = (of.rows, of.columns);
        // PEFT's linear: B A. PEFT's embedding and mlx-lm's linear: (A or a) (B or b), transposed. mlx-lm's embedding: a b.
        let peft = self.config().format == AdapterFormat::Peft;
        let (a_shape, b_shape) = match (peft, embedding) {
            (true, false) => ([rank, columns], [rows, rank]),
            (true, true) => ([rank, rows], [columns, rank]),
            (false, false) => ([columns, rank], [rank, rows]),
            (false, true) => ([rows, rank], [rank, columns]),
        };
        for (stored, expected) in [(a, a_shape), (b, b_shape)] {
            if stored.shape != expected {
                let error = self.wrong_shape(stored, of.name, &[rows, columns], &expected);
                return Err(with_rank(error, rank).into());
            }
        }
        let (left, right) = if embedding { (a, b) } else { (b, a) };
        Ok(LowRank {
            left: Factor {
                stored: left.clone(),
                transposed: peft == embedding,
            },
            right: Factor {
                stored: right.clone(),
                transposed: peft == embedding,
            },
            rank,
            scale: scale as f32,
            magnitude: magnitude
                .map(|m| self.magnitude(m, embedding && peft, of))
                .transpose()?,
        })
    }

    /// Lengths of rows; of columns for PEFT's embeddings.
    fn magnitude(&self, stored: &Stored, of_columns: bool, of: &Of<'_>) -> Result<Magnitude> {
        let expected = if of_columns { of.columns } else { of.rows };
        if stored.len() != expected || stored.shape.iter().filter(|n| **n != 1).count() > 1 {
            let shape = [of.rows, of.columns];
            return Err(self
                .wrong_shape(stored, of.name, &shape, &[expected])
                .into());
        }
        Ok(match of_columns {
            true => Magnitude::Columns {
                stored: stored.clone(),
                factors: OnceLock::new(),
            },
            false => Magnitude::Rows {
                stored: stored.clone(),
                factors: (0..expected).map(|_| AtomicU32::new(0)).collect(),
            },
        })
    }

    fn token_rows(
        &self,
        path: &str,
        module: &Module,
        values: &Stored,
        of: &Of<'_>,
    ) -> Result<Step> {
        if module.count() > 1 {
            let why = "the module has both rows of tokens and other tensors of the adapter";
            let hint = "merge the adapter with PEFT, and convert the merged checkpoint";
            return Err(self.unmergeable(values, why, hint).into());
        }
        let inner = names::inner(path);
        let named = |module: &Option<String>| match module {
            None => ["embed_tokens", "lm_head"].contains(&inner),
            Some(end) => patterns::ends_with(path, inner, end),
        };
        let tokens = self.config().tokens.iter().find(|t| named(&t.module));
        let Some(tokens) = tokens else {
            let why = "`trainable_token_indices` of adapter_config.json does not say which rows these are";
            return Err(self
                .unmergeable(values, why, "the config is of another training")
                .into());
        };
        let expected = [tokens.rows.len(), of.columns];
        if values.shape != expected {
            let shape = [of.rows, of.columns];
            return Err(self.wrong_shape(values, of.name, &shape, &expected).into());
        }
        let mut rows: Vec<(usize, usize)> = tokens.rows.iter().copied().zip(0..).collect();
        rows.sort_unstable();
        let twice = rows.windows(2).any(|pair| pair[0].0 == pair[1].0);
        if let Some((last, _)) = rows.last().filter(|(last, _)| *last >= of.rows || twice) {
            let expected = format!("ids below {}, each once", of.rows);
            let got = match twice {
                true => "an id twice".to_string(),
                false => last.to_string(),
            };
            let path = &self.adapter.path;
            return Err(wrong(path, values, "trainable_token_indices", expected, got).into());
        }
        let values = values.clone();
        Ok(Step::Rows { rows, values })
    }

    /// Hands the steps over.
    fn finish(self, changes: &mut Changes) -> Result<(Vec<String>, Vec<AdapterNotice>)> {
        let path = self.adapter.path.clone();
        if self.steps.is_empty() {
            let found = format!(
                "{} of the towers, {} of unused K and V, {} in all",
                self.towers, self.shared, self.adapter.tensors
            );
            let hint = "the adapter was trained on the towers only, or its folder is that of another training";
            let hint = hint.to_string();
            return Err(Error::NoEffect { path, found, hint }.into());
        }
        let mut notices = Vec::new();
        if self.shared > 0 {
            let (path, tensors) = (path.clone(), self.shared);
            notices.push(AdapterNotice::SharedKv { path, tensors });
        }
        if self.towers > 0 {
            let (path, tensors) = (path.clone(), self.towers);
            notices.push(AdapterNotice::Towers { path, tensors });
        }
        let trained = match (self.embed.table, self.embed.head) {
            (true, true) if !self.config().tied => Some("embed_tokens and lm_head, each by itself"),
            (true, false) if !self.config().tied => Some("embed_tokens alone"),
            (false, true) => Some("lm_head alone"),
            _ => None,
        };
        if let Some(trained) = trained {
            notices.push(AdapterNotice::TiedHead { path, trained });
        }
        let changed = self.steps.keys().cloned().collect();
        for (name, steps) in self.steps {
            let shape = self.base.shapes.get(name.as_str()).copied().unwrap_or(&[]);
            let columns = shape.last().copied().unwrap_or(1).max(1);
            let rows = shape.iter().product::<usize>() / columns;
            let change = changes.entry(name).or_insert_with(|| Change {
                rows,
                columns,
                steps: Vec::new(),
                adapters: String::new(),
            });
            change.steps.extend(steps);
            if !change.adapters.is_empty() {
                change.adapters.push_str(" and ");
            }
            change
                .adapters
                .push_str(&self.adapter.path.display().to_string());
        }
        Ok((changed, notices))
    }
}

/// The matrix that a module is.
struct Of<'a> {
    name: &'a str,
    rows: usize,
    columns: usize,
}

/// Says where the rank of an expected shape comes from.
fn with_rank(error: Error, rank: usize) -> Error {
    match error {
        Error::Tensor {
            path,
            tensor,
            what,
            expected,
            got,
        } => Error::Tensor {
            path,
            tensor,
            what,
            expected: format!("{expected} at the rank {rank} of adapter_config.json"),
            got,
        },
        other => other,
    }
}
