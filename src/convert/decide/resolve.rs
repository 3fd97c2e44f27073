//! Which scheme each weight gets, and how many bytes that makes. Reads no weights.

use crate::checkpoint::{Checkpoint, Grid};
use crate::convert::error::{Error, Result};
use crate::gemma::ModelPlan;
use crate::graph::{ChunkSpec, LinearActivations, WeightBinding, chunk_weights, packages};
use crate::mil::{DType, DeferredConst};
use crate::package::{BoxError, Shards, Storage, WEIGHT_FILE_LIMIT};
use crate::quantize::sparse::kept;
use crate::quantize::{Grouping, PaletteForm, Scheme};
use crate::recipe::{Candidate, Given, Recipe};
use std::collections::BTreeMap;

/// One weight of one package with the scheme it is stored in.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The package, `chunk1.mlpackage`.
    pub package: String,
    /// Constant, checkpoint tensor and what it is.
    pub binding: WeightBinding,
    /// The scheme.
    pub scheme: Scheme,
    /// What chose it: `default`, `rule ...`, `otherwise (...)`.
    pub reason: String,
    /// How the package stores it.
    pub storage: Storage,
    /// Number of values.
    pub elements: u64,
    /// Bytes of data, LUT and scales, before padding and sharing.
    pub bytes: u64,
    /// What all values are multiplied by: what turns activations into counts of their steps and back, where that is folded.
    pub factor: f32,
}

impl Resolved {
    /// The same weight in another scheme, which must fit its shape.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`].
    pub fn in_scheme(&self, scheme: Scheme) -> Result<Self> {
        fits(&self.binding, scheme).map_err(|source| Error::DoesNotFit {
            tensor: self.binding.tensor.clone(),
            shape: self.binding.source_shape.clone(),
            scheme,
            source,
        })?;
        let other = resolved(&self.package, &self.binding, (scheme, self.reason.clone()))?;
        Ok(Self {
            factor: self.factor,
            ..other
        })
    }

    /// Bytes of the parts of the weight that are blobs of a weight file, without metadata and padding.
    ///
    /// # Errors
    /// [`Error::Package`] for a storage that does not fit the constant.
    pub fn blobs(&self) -> Result<Vec<u64>> {
        let parts = self.storage.parts(&self.binding.konst);
        let parts = parts.map_err(|source| package_error(&self.package, source))?;
        let blobs = parts.iter().filter(|part| !part.is_immediate());
        Ok(blobs.map(|part| part.bytes).collect())
    }
}

/// Packages that have weights of their own: all but those that share another's file.
pub fn own_weights(chunks: &[ResolvedChunk]) -> impl Iterator<Item = &ResolvedChunk> {
    let numbered = chunks.iter().enumerate();
    numbered
        .filter(|(i, c)| !chunks[..*i].iter().any(|earlier| earlier.has_weights_of(c)))
        .map(|(_, c)| c)
}

/// Bytes of all weight files of a bundle: those of [`own_weights`], within [`WEIGHT_FILE_LIMIT`]. Where tensors have the same
/// bytes, the files share them and are smaller.
///
/// # Errors
/// [`Error::Package`] for a storage that does not fit its constant, or a weight that no file has room for.
pub fn weight_bytes(chunks: &[ResolvedChunk]) -> Result<u64> {
    let mut total = 0u64;
    for chunk in own_weights(chunks) {
        let mut files = Shards::new(WEIGHT_FILE_LIMIT);
        for weight in &chunk.weights {
            let (konst, failed) = (&weight.binding.konst, |e| package_error(&weight.package, e));
            let parts = weight.storage.parts(konst).map_err(failed)?;
            files.add(konst, &parts, None).map_err(failed)?;
        }
        total = total.saturating_add(files.bytes());
    }
    Ok(total)
}

/// One package with its weights in blob order.
#[derive(Debug, Clone)]
pub struct ResolvedChunk {
    /// Layers and name.
    pub spec: ChunkSpec,
    /// Its weights.
    pub weights: Vec<Resolved>,
    /// How activations around its linear layers are rounded to the checkpoint's own steps, by tensor.
    pub activations: BTreeMap<String, LinearActivations>,
}

impl ResolvedChunk {
    /// Whether the weights of another package of the bundle are these, stored in the same way.
    pub fn has_weights_of(&self, other: &Self) -> bool {
        let mut pairs = self.weights.iter().zip(&other.weights);
        self.weights.len() == other.weights.len()
            && pairs.all(|(a, b)| {
                a.binding == b.binding && a.storage == b.storage && a.factor == b.factor
            })
    }
}

/// Weights of a package by the constants that they fill.
pub(in crate::convert) struct ByConst<'a>(BTreeMap<&'a str, &'a Resolved>);

impl<'a> ByConst<'a> {
    pub fn new(weights: &'a [Resolved]) -> Self {
        let ids = weights.iter().map(|w| (w.binding.konst.id.as_str(), w));
        Self(ids.collect())
    }

    /// The weight of a constant.
    pub fn find(&self, c: &DeferredConst) -> std::result::Result<&'a Resolved, BoxError> {
        let found = self.0.get(c.id.as_str()).copied();
        found.ok_or_else(|| format!("constant {} has no tensor", c.id).into())
    }
}

/// The tensors that a checkpoint stores as integers and steps.
#[derive(Debug, Clone, Default)]
pub struct Grids(BTreeMap<String, (Grid, usize)>);

impl Grids {
    /// Those of a checkpoint.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let mut grids = BTreeMap::new();
        for name in checkpoint.names() {
            let shape = checkpoint.shape(name).unwrap_or_default();
            if let Some(grid) = checkpoint.tensor(name, shape)?.grid() {
                let inputs = shape.last().copied().unwrap_or(1);
                grids.insert(name.to_string(), (grid, inputs));
            }
        }
        Ok(Self(grids))
    }

    /// The integers of a tensor.
    pub(super) fn given(&self, tensor: &str) -> Option<Given> {
        let (grid, inputs) = self.0.get(tensor)?;
        Some(Given {
            nbits: grid.nbits,
            block: Some(grid.block).filter(|block| block != inputs),
        })
    }
}

/// Resolves the recipe's rules for every weight of a model. A rule that matches nothing is an error, and so is a scheme
/// that does not fit unless the recipe says what to use `otherwise`. Recipes that keep integers of the checkpoint look into
/// `grids`.
pub fn resolve(plan: &ModelPlan, recipe: &Recipe, grids: &Grids) -> Result<Vec<ResolvedChunk>> {
    let options = recipe.graph_options(recipe.context_for(None, plan.max_positions));
    let specs = packages(plan, &options)?;
    let bindings: Vec<Vec<WeightBinding>> = specs
        .iter()
        .map(|s| chunk_weights(plan, s, &options))
        .collect::<std::result::Result<_, _>>()?;
    let candidates: Vec<Candidate<'_>> = bindings
        .iter()
        .flatten()
        .map(|binding| candidate(binding, grids))
        .collect();
    let mut choices = recipe
        .quantize
        .resolve(&recipe.name, &candidates)?
        .into_iter();
    let mut chunks = Vec::with_capacity(specs.len());
    for (spec, list) in specs.into_iter().zip(&bindings) {
        let package = crate::bundle::layout::package_dir(&spec.name);
        let mut weights = Vec::with_capacity(list.len());
        for (binding, choice) in list.iter().zip(&mut choices) {
            let chosen = fit(
                binding,
                choice.scheme,
                choice.reason.to_string(),
                recipe.quantize.otherwise,
            )?;
            weights.push(resolved(&package, binding, chosen)?);
        }
        chunks.push(ResolvedChunk {
            spec,
            weights,
            activations: BTreeMap::new(),
        });
    }
    Ok(chunks)
}

fn candidate<'b>(binding: &'b WeightBinding, grids: &Grids) -> Candidate<'b> {
    Candidate {
        name: &binding.tensor,
        elements: binding.source_shape.iter().product(),
        kind: binding.kind,
        given: grids.given(&binding.tensor),
    }
}

/// The scheme if it fits the tensor, else the recipe's other one.
fn fit(
    binding: &WeightBinding,
    scheme: Scheme,
    reason: String,
    otherwise: Option<Scheme>,
) -> Result<(Scheme, String)> {
    let Err(source) = fits(binding, scheme) else {
        return Ok((scheme, reason));
    };
    let does_not_fit = |scheme, source| Error::DoesNotFit {
        tensor: binding.tensor.clone(),
        shape: binding.source_shape.clone(),
        scheme,
        source,
    };
    let Some(other) = otherwise.filter(|o| *o != scheme) else {
        return Err(does_not_fit(scheme, source));
    };
    match fits(binding, other) {
        Ok(()) => Ok((other, format!("otherwise ({scheme}: {source})"))),
        Err(e) => Err(does_not_fit(other, e)),
    }
}

fn fits(binding: &WeightBinding, scheme: Scheme) -> crate::quantize::Result<()> {
    let [outputs, inputs] = matrix(binding);
    scheme.channel_groups(outputs)?;
    scheme.input_blocks(inputs)?;
    Ok(())
}

/// Output channels of a weight, which lie along axis 0 of its shape in the graph, and values per channel.
pub(in crate::convert) fn matrix(binding: &WeightBinding) -> [usize; 2] {
    match binding.konst.shape.as_slice() {
        [] => [1, 1],
        [outputs, inputs @ ..] => [*outputs, inputs.iter().product()],
    }
}

pub(in crate::convert) fn package_error(package: &str, source: crate::package::Error) -> Error {
    Error::Package {
        package: package.to_string(),
        source: Box::new(source),
    }
}

fn resolved(package: &str, binding: &WeightBinding, chosen: (Scheme, String)) -> Result<Resolved> {
    let (scheme, reason) = chosen;
    let storage = storage(binding, scheme);
    let parts = storage.parts(&binding.konst);
    let parts = parts.map_err(|source| package_error(package, source))?;
    Ok(Resolved {
        package: package.to_string(),
        elements: binding.source_shape.iter().map(|&n| n as u64).product(),
        bytes: parts.iter().map(|p| p.bytes).sum(),
        binding: binding.clone(),
        scheme,
        reason,
        storage,
        factor: 1.0,
    })
}

/// How a package stores a weight in a scheme that fits it: groups and scales lie along axis 0, blocks along axis 1.
fn storage(binding: &WeightBinding, scheme: Scheme) -> Storage {
    let shape = &binding.konst.shape;
    let ones = |first: usize, second: usize| -> Vec<usize> {
        let sizes = [first, second];
        (0..shape.len())
            .map(|axis| sizes.get(axis).copied().unwrap_or(1))
            .collect()
    };
    let outputs = shape.first().copied().unwrap_or(1);
    match scheme {
        Scheme::Fp16 => Storage::Dense,
        Scheme::Palette { nbits, group, form } => {
            let groups = match group {
                Grouping::Tensor => 1,
                Grouping::Channels(n) => outputs / n.max(1),
            };
            let (vector, vector_axis) = match form {
                PaletteForm::Vector(size) => (size, Some(0)),
                _ => (1, None),
            };
            let mut lut_shape = ones(groups, 1);
            lut_shape.extend([1 << nbits, vector]);
            match form {
                PaletteForm::Scalar | PaletteForm::Vector(_) => Storage::Palette {
                    nbits,
                    lut_shape,
                    vector_axis,
                },
                PaletteForm::Sparse(percent) => {
                    let length = shape.iter().product::<usize>() / groups.max(1);
                    Storage::PaletteSparse {
                        nbits,
                        lut_shape,
                        vector_axis,
                        nonzero: groups * kept(length, percent),
                    }
                }
                PaletteForm::Lut8 => Storage::PaletteInt8 { nbits, lut_shape },
            }
        }
        Scheme::Linear { nbits, block, .. } => {
            let inputs = shape.get(1).copied().unwrap_or(1);
            let blocks = block.map_or(1, |block| inputs / block.max(1));
            Storage::Blockwise {
                data: if nbits == 4 { DType::Int4 } else { DType::Int8 },
                scale_shape: ones(outputs, blocks),
                offset: false,
            }
        }
    }
}
