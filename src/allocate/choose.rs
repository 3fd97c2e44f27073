//! From measurements and a budget to a recipe.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::error::{Error, Result};
use super::measure::{Measurements, TensorMeasure, decided};
use super::{Budget, Unit};
use crate::convert::{Grids, Resolved, ResolvedChunk, own_weights, resolve, weight_bytes};
use crate::gemma::ModelPlan;
use crate::package::{HEADER_BYTES, align, end_of_blob};
use crate::quantize::Scheme;
use crate::quantize::budget::{Choice, allocate};
use crate::recipe::{Recipe, Rule};

/// A choice of widths, and what is expected of it.
#[derive(Debug, Clone, Serialize)]
pub struct Allocation {
    /// The recipe that says it.
    #[serde(skip)]
    pub recipe: Recipe,
    /// Its name.
    pub name: String,
    /// The recipe that was given.
    pub from: String,
    /// What was asked.
    pub budget: Budget,
    /// What costs are measured in.
    pub unit: Unit,
    /// Tokens that they were measured over.
    pub tokens: usize,
    /// Of this choice.
    pub size: Size,
    /// Of the recipe that was given.
    pub given: Size,
    /// Every tensor with a choice, in the order of the packages.
    pub tensors: Vec<Chosen>,
}

/// Size of the packages' weights, and what they cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Size {
    /// Bytes of all weight files, as [`weight_bytes`] predicts them.
    pub weight_bytes: u64,
    /// Bits for each value, as [`Budget::BitsPerWeight`] counts them.
    pub bits_per_weight: f64,
    /// Sum of the costs of the tensors with a choice.
    pub cost: f64,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chosen {
    /// Checkpoint name without prefix.
    pub tensor: String,
    /// What it costs at the probe's width.
    pub sensitivity: f64,
    /// The width at which that was measured; none where every width is exact.
    pub probe: Option<u8>,
    /// The width chosen.
    pub bits: u8,
    /// The scheme that makes.
    pub scheme: Scheme,
    /// Bytes of data and tables, in all packages.
    pub bytes: u64,
    /// What it costs.
    pub cost: f64,
    /// Its share of the cost of all.
    pub share: f64,
}

/// Chooses a width for each tensor measured. `recipe` is the one that was measured; `name` is for the new one, `mixed-` and the
/// bits per weight without.
///
/// # Errors
/// A recipe that does not fit the model; a budget that is too small, or no number; a name that recipes cannot have.
pub fn choose(
    plan: &ModelPlan,
    recipe: &Recipe,
    measurements: &Measurements,
    budget: Budget,
    name: Option<&str>,
) -> Result<Allocation> {
    if recipe.quantize.given.is_some() {
        return Err(Error::WidthsGiven {
            recipe: recipe.name.clone(),
        });
    }
    let chunks = resolve(plan, recipe, &Grids::default())?;
    let tensors = tensors(&chunks, measurements)?;
    let taken = take(&chunks, &tensors, budget)?;
    let wanted: BTreeMap<&str, Scheme> = tensors
        .iter()
        .zip(&taken)
        .map(|(t, &i)| (t.name(), t.options[i].scheme))
        .collect();
    let size = size(&in_schemes(&chunks, &wanted)?, &tensors, &wanted)?;
    let default_name = match budget {
        Budget::BitsPerWeight(bits) => format!("mixed-{bits}"),
        Budget::Bytes(_) => format!("mixed-{:.2}", size.bits_per_weight),
    };
    let name = name.unwrap_or(&default_name);
    let how = match measurements.unit {
        Unit::Kl => format!("KL over {} tokens", measurements.tokens),
        Unit::RelativeError => "relative error".to_owned(),
    };
    let description = format!(
        "{} with a width for each tensor, by {how}: {budget} asked, {:.4} bits per weight reached, {} bytes of weights.",
        recipe.name, size.bits_per_weight, size.weight_bytes
    );
    let made = express(plan, recipe, (name, &description), &wanted)?;
    let of = |t: &Tensor<'_>, &i: &usize| Chosen {
        tensor: t.name().to_owned(),
        sensitivity: t.measure.sensitivity,
        probe: t.measure.probe,
        bits: t.options[i].bits,
        scheme: t.options[i].scheme,
        bytes: t.options[i].bytes,
        cost: t.options[i].cost,
        share: match size.cost > 0.0 {
            true => t.options[i].cost / size.cost,
            false => 0.0,
        },
    };
    let own = tensors
        .iter()
        .map(|t| (t.name(), t.weight.scheme))
        .collect();
    Ok(Allocation {
        name: made.name.clone(),
        from: recipe.name.clone(),
        budget,
        unit: measurements.unit,
        tokens: measurements.tokens,
        size,
        given: self::size(&chunks, &tensors, &own)?,
        tensors: tensors.iter().zip(&taken).map(|(t, i)| of(t, i)).collect(),
        recipe: made,
    })
}

/// A tensor with its widths.
struct Tensor<'a> {
    measure: &'a TensorMeasure,
    /// Its first place in the packages.
    weight: &'a Resolved,
    options: Vec<Width>,
}

/// One width of a tensor.
struct Width {
    bits: u8,
    scheme: Scheme,
    /// Data and tables in all packages.
    bytes: u64,
    /// Blobs with metadata and padding, once for each weight file.
    file_bytes: u64,
    cost: f64,
}

impl Tensor<'_> {
    fn name(&self) -> &str {
        &self.weight.binding.tensor
    }

    fn not_measured(weight: &Resolved) -> Error {
        Error::NotMeasured {
            tensor: weight.binding.tensor.clone(),
        }
    }

    /// What its own scheme or another that was measured costs.
    fn cost(&self, scheme: Scheme) -> Result<f64> {
        let bits = match scheme {
            Scheme::Palette { nbits, .. } => Some(nbits),
            _ => None,
        };
        let cost = bits.and_then(|bits| self.measure.cost(bits));
        cost.ok_or_else(|| Self::not_measured(self.weight))
    }
}

/// The tensors with a choice, and what each width takes and costs.
fn tensors<'a>(
    chunks: &'a [ResolvedChunk],
    measurements: &'a Measurements,
) -> Result<Vec<Tensor<'a>>> {
    let known = measurements.tensors.iter().map(|t| (t.tensor.as_str(), t));
    let known: BTreeMap<&str, &TensorMeasure> = known.collect();
    let mut tensors = Vec::new();
    for weight in decided(chunks) {
        let measure = known.get(weight.binding.tensor.as_str()).copied();
        let mut tensor = Tensor {
            measure: measure.ok_or_else(|| Tensor::not_measured(weight))?,
            weight,
            options: Vec::new(),
        };
        for &bits in &measurements.widths {
            let scheme = with_width(weight.scheme, bits);
            let (bytes, file_bytes) = bytes(chunks, weight, scheme)?;
            tensor.options.push(Width {
                bits,
                scheme,
                bytes,
                file_bytes,
                cost: tensor.cost(scheme)?,
            });
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

/// A palette of single weights at another width.
fn with_width(scheme: Scheme, nbits: u8) -> Scheme {
    match scheme {
        Scheme::Palette { group, form, .. } => Scheme::Palette { nbits, group, form },
        other => other,
    }
}

/// What a tensor takes in a scheme: in all packages, and in all weight files.
fn bytes(chunks: &[ResolvedChunk], weight: &Resolved, scheme: Scheme) -> Result<(u64, u64)> {
    let tensor = &weight.binding.tensor;
    let (mut bytes, mut file_bytes) = (0, 0);
    for chunk in own_weights(chunks) {
        let of_tensor = chunk.weights.iter().filter(|w| w.binding.tensor == *tensor);
        for (i, place) in of_tensor.enumerate() {
            let place = place.in_scheme(scheme)?;
            bytes += place.bytes;
            if i == 0 {
                file_bytes += in_file(&place, last_tensor(chunk)? == Some(tensor))?;
            }
        }
    }
    Ok((bytes, file_bytes))
}

/// Blobs of a weight with metadata, padded to where the next may begin; the last of a file is not padded at its end.
fn in_file(weight: &Resolved, last: bool) -> Result<u64> {
    let mut blobs = weight.blobs()?.into_iter();
    let end = blobs.try_fold(0, end_of_blob);
    let end = end.and_then(|end| if last { Some(end) } else { align(end) });
    Ok(end.unwrap_or(u64::MAX))
}

/// The tensor whose blobs end a weight file.
fn last_tensor(chunk: &ResolvedChunk) -> Result<Option<&String>> {
    let (mut seen, mut last) = (BTreeSet::new(), None);
    for weight in &chunk.weights {
        let tensor = &weight.binding.tensor;
        if seen.insert(tensor) && !weight.blobs()?.is_empty() {
            last = Some(tensor);
        }
    }
    Ok(last)
}

/// Bytes that no choice changes, as the budget counts them, and elements of all weights.
fn fixed(chunks: &[ResolvedChunk], tensors: &[Tensor<'_>], budget: Budget) -> Result<(u64, u64)> {
    let chosen: BTreeSet<&str> = tensors.iter().map(Tensor::name).collect();
    let (mut bytes, mut elements) = (0u64, 0u64);
    for chunk in own_weights(chunks) {
        let (mut seen, last) = (BTreeSet::new(), last_tensor(chunk)?);
        if let Budget::Bytes(_) = budget {
            bytes += HEADER_BYTES;
        }
        for weight in &chunk.weights {
            elements += weight.elements;
            let tensor = &weight.binding.tensor;
            let first = seen.insert((tensor, weight.scheme));
            if chosen.contains(tensor.as_str()) {
                continue;
            }
            bytes += match budget {
                Budget::BitsPerWeight(_) => weight.bytes,
                Budget::Bytes(_) if first => in_file(weight, last == Some(tensor))?,
                Budget::Bytes(_) => 0,
            };
        }
    }
    Ok((bytes, elements))
}

/// The index of the width of each tensor.
fn take(chunks: &[ResolvedChunk], tensors: &[Tensor<'_>], budget: Budget) -> Result<Vec<usize>> {
    let (fixed, elements) = fixed(chunks, tensors, budget)?;
    let limit = match budget {
        Budget::Bytes(bytes) => bytes,
        Budget::BitsPerWeight(bits) if bits.is_finite() && bits > 0.0 => {
            (bits * elements as f64 / 8.0) as u64
        }
        Budget::BitsPerWeight(bits) => return Err(Error::BitsPerWeight { bits }),
    };
    let choice = |w: &Width| Choice {
        bytes: match budget {
            Budget::Bytes(_) => w.file_bytes,
            Budget::BitsPerWeight(_) => w.bytes,
        },
        cost: w.cost,
    };
    let menu = tensors
        .iter()
        .map(|t| t.options.iter().map(choice).collect());
    let menu: Vec<Vec<Choice>> = menu.collect();
    let too_small = || -> Result<Vec<usize>> {
        let least = |f: &dyn Fn(&Width) -> u64| -> u64 {
            let of = |t: &Tensor<'_>| t.options.iter().map(f).min().unwrap_or(0);
            tensors.iter().map(of).sum()
        };
        let (in_files, _) = self::fixed(chunks, tensors, Budget::Bytes(0))?;
        let (in_all, _) = self::fixed(chunks, tensors, Budget::BitsPerWeight(0.0))?;
        let bits = 8.0 * (in_all + least(&|w| w.bytes)) as f64 / elements as f64;
        Err(Error::Budget {
            asked: budget,
            least_bytes: in_files + least(&|w| w.file_bytes),
            least_bits: bits,
        })
    };
    match limit.checked_sub(fixed).map(|left| allocate(&menu, left)) {
        Some(Ok(taken)) => Ok(taken),
        // Every tensor has a choice, so nothing but the budget can be wrong.
        Some(Err(_)) | None => too_small(),
    }
}

/// The packages with these schemes in place of their own.
fn in_schemes(
    chunks: &[ResolvedChunk],
    schemes: &BTreeMap<&str, Scheme>,
) -> Result<Vec<ResolvedChunk>> {
    let mut changed = chunks.to_vec();
    for weight in changed.iter_mut().flat_map(|c| &mut c.weights) {
        if let Some(scheme) = schemes.get(weight.binding.tensor.as_str()) {
            *weight = weight.in_scheme(*scheme)?;
        }
    }
    Ok(changed)
}

fn size(
    chunks: &[ResolvedChunk],
    tensors: &[Tensor<'_>],
    schemes: &BTreeMap<&str, Scheme>,
) -> Result<Size> {
    let (mut bytes, mut elements) = (0u64, 0u64);
    for weight in own_weights(chunks).flat_map(|c| &c.weights) {
        bytes += weight.bytes;
        elements += weight.elements;
    }
    let costs = tensors.iter().map(|t| t.cost(schemes[t.name()]));
    Ok(Size {
        weight_bytes: weight_bytes(chunks)?,
        bits_per_weight: 8.0 * bytes as f64 / elements as f64,
        cost: costs.sum::<Result<f64>>()?,
    })
}

/// The recipe that gives each tensor what was chosen for it and everything else what it had.
fn express(
    plan: &ModelPlan,
    recipe: &Recipe,
    (name, description): (&str, &str),
    wanted: &BTreeMap<&str, Scheme>,
) -> Result<Recipe> {
    let default = most_common(plan, recipe, wanted)?;
    let given = resolve(plan, recipe, &Grids::default())?;
    let plain = recipe.derived(name, description, default, &[])?;
    let plain = resolve(plan, &plain, &Grids::default())?;
    // What each tensor must get, and whether the default alone gives it that.
    let mut rules = Vec::new();
    let mut seen = BTreeSet::new();
    let pairs = || {
        given
            .iter()
            .zip(&plain)
            .flat_map(|(g, p)| g.weights.iter().zip(&p.weights))
    };
    for (was, is) in pairs() {
        let tensor = was.binding.tensor.as_str();
        let scheme = wanted.get(tensor).copied().unwrap_or(was.scheme);
        if is.scheme != scheme && seen.insert(tensor) {
            rules.push(Rule::new(&format!("^{}$", regex::escape(tensor)), scheme)?);
        }
    }
    let made = recipe.derived(name, description, default, &rules)?;
    let resolved = resolve(plan, &made, &Grids::default())?;
    let resolved = resolved.iter().flat_map(|c| &c.weights);
    for (was, is) in given.iter().flat_map(|c| &c.weights).zip(resolved) {
        let tensor = was.binding.tensor.as_str();
        let scheme = wanted.get(tensor).copied().unwrap_or(was.scheme);
        if is.scheme != scheme {
            return Err(Error::Unexpressed {
                tensor: tensor.to_owned(),
                expected: scheme.to_string(),
                got: is.scheme.to_string(),
            });
        }
    }
    Ok(made)
}

/// The recipe's default at the width that most of the tensors with its grouping were given, the smallest such width at a tie.
fn most_common(
    plan: &ModelPlan,
    recipe: &Recipe,
    wanted: &BTreeMap<&str, Scheme>,
) -> Result<Scheme> {
    let default = recipe.quantize.default;
    let chunks = resolve(plan, recipe, &Grids::default())?;
    let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
    for weight in decided(&chunks) {
        let chosen = wanted.get(weight.binding.tensor.as_str());
        if weight.scheme == default
            && weight.reason == "default"
            && let Some(Scheme::Palette { nbits, .. }) = chosen
        {
            *counts.entry(*nbits).or_default() += 1;
        }
    }
    let most = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    Ok(most.map_or(default, |(bits, _)| with_width(default, bits)))
}
