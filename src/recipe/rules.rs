//! Quantization rules: which scheme each weight gets.

use std::fmt;

use regex::Regex;
use serde::{Deserialize, Deserializer};

use super::activations::Activations;
use super::error::{Error, Result};
use super::given::{Given, GivenForm};
use crate::graph::WeightKind;
use crate::quantize::{Scheme, TableScheme};

/// Elements up to which a weight stays fp16 when a recipe does not say: coremltools' `weight_threshold`.
const DEFAULT_THRESHOLD: usize = 2048;

/// The `[quantize]` table of a recipe.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantRules {
    /// Scheme of every projection and of the head, unless a rule says otherwise.
    pub default: Scheme,
    /// Scheme for a weight that the scheme chosen for it does not fit (its channels do not divide into groups).
    /// Without it such a weight is an error.
    pub otherwise: Option<Scheme>,
    /// A weight of at most this many elements stays fp16, unless a rule names it.
    #[serde(default = "default_threshold")]
    pub threshold: usize,
    /// Scheme of the embedding and per-layer row tables.
    pub tables: TableScheme,
    /// Scheme of the per-layer row table, where it is another one.
    pub per_layer_tables: Option<TableScheme>,
    /// How activations before quantized layers are quantized; not at all when absent.
    pub activations: Option<Activations>,
    /// Palettes are fitted with each weight counted by the second moment of its input.
    #[serde(default)]
    pub importance: bool,
    /// Channels are scaled by powers of two, folded into the tensor before them, so that a palette serves them better.
    #[serde(default)]
    pub scale: bool,
    /// Indices are chosen so that weights make up for each other's errors.
    pub compensate: Option<Compensate>,
    /// Weights that the checkpoint stores as integers get the scheme of this form that keeps them, unless a rule names them; the
    /// default and the threshold are for the others. Tables of integers get the rows that keep them.
    pub given: Option<GivenForm>,
    /// Exceptions; the last one that matches a tensor wins.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// How errors are compensated; see [`crate::quantize::compensate`].
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compensate {
    /// Rounds of coordinate descent and of new palettes after the first pass.
    #[serde(default)]
    pub rounds: usize,
    /// Share of the mean second moment that is added to every one.
    #[serde(default = "default_damping")]
    pub damping: f64,
}

/// One exception: tensors whose name the pattern finds get this scheme.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Searched in HF tensor names without prefix (`layers.3.mlp.up_proj.weight`); anchors are the writer's to add.
    pub pattern: Pattern,
    /// What the matching weights get, whatever their size.
    pub scheme: Scheme,
}

impl Rule {
    /// A rule from the two halves of `--set 'regex=scheme'`.
    ///
    /// # Errors
    /// When the pattern is not a regular expression.
    pub fn new(pattern: &str, scheme: Scheme) -> Result<Self> {
        Ok(Self {
            pattern: Pattern::new(pattern)?,
            scheme,
        })
    }
}

/// A compiled regular expression that remembers its text.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// When it is not a regular expression.
    pub fn new(pattern: &str) -> Result<Self> {
        Regex::new(pattern).map(Self).map_err(|e| Error::Pattern {
            pattern: pattern.to_owned(),
            // The parser's report draws the pattern over several lines; its last line is the reason.
            message: e
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned(),
        })
    }

    /// The text as written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether the pattern is found in a tensor name.
    pub fn finds(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// A weight to be given a scheme.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// HF tensor name without prefix.
    pub name: &'a str,
    /// Number of elements.
    pub elements: usize,
    /// What the weight is; only projections and the head are quantized.
    pub kind: WeightKind,
    /// The integers that the checkpoint stores it as, if it does.
    pub given: Option<Given>,
}

/// Why a weight got its scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The recipe's default.
    Default,
    /// Norm weights and scalars stay fp16.
    NotAProjection,
    /// At most this many elements stay fp16.
    Threshold(usize),
    /// The checkpoint's own integers, in the recipe's form.
    Given(GivenForm),
    /// The rule with this pattern.
    Rule(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::NotAProjection => write!(f, "norm or scalar"),
            Self::Threshold(n) => write!(f, "at most {n} elements"),
            Self::Given(form) => write!(f, "given ({})", form.name()),
            Self::Rule(p) => write!(f, "rule `{p}`"),
        }
    }
}

/// The scheme chosen for one weight. Whether it fits the shape, or `otherwise` has to step in, is the caller's to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The scheme.
    pub scheme: Scheme,
    /// Why this one.
    pub reason: Reason,
}

impl QuantRules {
    /// The key that asks for statistics of a calibration, where one does.
    pub fn calibrated_by(&self) -> Option<&'static str> {
        let keys = [
            ("importance", self.importance),
            ("scale", self.scale),
            ("compensate", self.compensate.is_some()),
            (
                "activations",
                self.activations.is_some_and(|a| a.percentile().is_some()),
            ),
        ];
        keys.into_iter().find(|(_, set)| *set).map(|(key, _)| key)
    }

    /// What serde cannot see. The error is the key and what is wrong with it.
    pub(super) fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        if let Some(activations) = &self.activations {
            activations.check().map_err(|e| ("activations", e))?;
            if self.scale && *activations != (Activations::None {}) {
                let why = "activations: their ranges are those without the folds of `scale`";
                return Err(("activations", format!("{why}: leave one of them out")));
            }
        }
        match self.compensate {
            Some(c) if !(c.damping > 0.0 && c.damping <= 1.0) => Err((
                "compensate",
                format!(
                    "compensate.damping {}: expected above 0, at most 1",
                    c.damping
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Scheme of the per-layer row table.
    pub fn per_layer_tables(&self) -> TableScheme {
        self.per_layer_tables.unwrap_or(self.tables)
    }

    /// With `given`, takes the form of tables that the checkpoint stores as integers from there.
    pub fn keep_tables(&mut self, embedding: Option<Given>, per_layer: Option<Given>) {
        if self.given.is_none() {
            return;
        }
        let asked = self.per_layer_tables();
        self.per_layer_tables = Some(per_layer.map_or(asked, Given::rows));
        self.tables = embedding.map_or(self.tables, Given::rows);
    }

    /// Chooses a scheme for each weight, in the order given.
    ///
    /// # Errors
    /// [`Error::RuleMatchesNothing`] when a rule's pattern finds no projection or head among `weights`; `recipe` is the
    /// name to report.
    pub fn resolve(&self, recipe: &str, weights: &[Candidate<'_>]) -> Result<Vec<Choice>> {
        for rule in &self.rules {
            if !weights
                .iter()
                .any(|w| w.kind.is_quantizable() && rule.pattern.finds(w.name))
            {
                return Err(Error::RuleMatchesNothing {
                    recipe: recipe.to_owned(),
                    pattern: rule.pattern.as_str().to_owned(),
                    scheme: rule.scheme.to_string(),
                    hint: nothing_hint(&rule.pattern, weights),
                });
            }
        }
        Ok(weights.iter().map(|w| self.choose(w)).collect())
    }

    fn choose(&self, weight: &Candidate<'_>) -> Choice {
        if !weight.kind.is_quantizable() {
            return Choice {
                scheme: Scheme::Fp16,
                reason: Reason::NotAProjection,
            };
        }
        if let Some(rule) = self
            .rules
            .iter()
            .rev()
            .find(|r| r.pattern.finds(weight.name))
        {
            return Choice {
                scheme: rule.scheme,
                reason: Reason::Rule(rule.pattern.as_str().to_owned()),
            };
        }
        if let (Some(form), Some(given)) = (self.given, weight.given) {
            return Choice {
                scheme: form.scheme(given),
                reason: Reason::Given(form),
            };
        }
        if weight.elements <= self.threshold {
            return Choice {
                scheme: Scheme::Fp16,
                reason: Reason::Threshold(self.threshold),
            };
        }
        Choice {
            scheme: self.default,
            reason: Reason::Default,
        }
    }
}

fn nothing_hint(pattern: &Pattern, weights: &[Candidate<'_>]) -> String {
    if let Some(w) = weights.iter().find(|w| pattern.finds(w.name)) {
        return format!(
            "it finds only norms and scalars such as `{}`, which stay fp16",
            w.name
        );
    }
    let example = weights
        .iter()
        .find(|w| w.kind.is_quantizable())
        .map_or("layers.0.mlp.up_proj.weight", |w| w.name);
    format!("it is searched in tensor names without prefix, such as `{example}`")
}

fn default_damping() -> f64 {
    crate::quantize::moments::DAMPING
}

fn default_threshold() -> usize {
    DEFAULT_THRESHOLD
}
