//! What compressed-tensors did: groups of modules with one way of storing them each.

use serde_json::Value;

use super::pattern::Pattern;
use crate::checkpoint::error::Result;
use crate::checkpoint::fields::{Fields, shorten};

/// Ways of storing integers that are read. Two names for integers in bytes of their own.
const FORMATS: [&str; 4] = [
    "pack-quantized",
    "int-quantized",
    "naive-quantized",
    "mixed-precision",
];

/// Groups of modules, and what is in none.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::checkpoint) struct CompressedTensors {
    groups: Vec<Group>,
    /// What each group is of, sorted as compressed-tensors looks at them.
    targets: Vec<(Target, usize)>,
    ignored: Vec<Target>,
    /// Whether the keys and values in the cache are rounded.
    pub rounds_cache: bool,
}

/// How the weights of some modules are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::checkpoint) struct Group {
    /// Its name in the file.
    pub name: String,
    /// 2, 4 or 8.
    pub nbits: u8,
    /// Inputs a step, `None` where a row has one.
    pub block: Option<usize>,
    /// Whether the input of a module is rounded to int8.
    pub input: bool,
    /// Whether its output is.
    pub output: bool,
}

/// What a module is to the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) enum Targeted<'a> {
    In(&'a Group),
    Ignored,
    No,
}

/// The name of a module or of its class, or a pattern for the beginning of a module's name.
#[derive(Debug, Clone, PartialEq)]
enum Target {
    Name(String),
    Pattern(String, Pattern),
}

impl Target {
    fn new(fields: &Fields, field: &str, text: &str) -> Result<Self> {
        Ok(match text.strip_prefix("re:") {
            None => Self::Name(text.to_string()),
            Some(pattern) => {
                let pattern = Pattern::new(fields, field, format!("^(?:{pattern})"))?;
                Self::Pattern(text.to_string(), pattern)
            }
        })
    }

    fn text(&self) -> &str {
        match self {
            Self::Name(text) | Self::Pattern(text, _) => text,
        }
    }

    fn is_name_of(&self, module: &str) -> bool {
        match self {
            Self::Name(name) => name == module,
            Self::Pattern(_, pattern) => pattern.find(module).is_some(),
        }
    }

    fn is_class_of(&self, classes: &[&str]) -> bool {
        matches!(self, Self::Name(name) if classes.contains(&name.as_str()))
    }
}

impl CompressedTensors {
    pub(super) fn parse(own: &Fields) -> Result<Self> {
        format(own)?;
        match own.string_opt("quantization_status")? {
            None | Some("compressed") => {}
            Some(_) => return Err(own.unsupported("quantization_status", "\"compressed\"")),
        }
        none_of(own, "sparsity_config", |v| v["format"] == "dense")?;
        none_of(own, "transform_config", |v| is_empty(&v["config_groups"]))?;
        none_of(own, "moe_sparsity_config", |_| false)?;
        let rounds_cache = own.object("kv_cache_scheme")?;
        let rounds_cache = rounds_cache
            .map(|scheme| activations(&scheme))
            .transpose()?;
        let all = own
            .object("config_groups")?
            .ok_or_else(|| own.missing("config_groups", "an object of groups"))?;
        let (mut groups, mut targets) = (Vec::new(), Vec::<(Target, usize)>::new());
        for (name, value) in all.iter() {
            if !value.is_object() {
                return Err(all.unsupported(
                    name,
                    "groups that are written out, as `save_pretrained` does",
                ));
            }
            let Some(group) = all.object(name)? else {
                continue;
            };
            for text in group.strings("targets")?.unwrap_or_default() {
                let target = Target::new(&group, "targets", &text)?;
                // The last group of a target has it.
                match targets.iter_mut().find(|(known, _)| known.text() == text) {
                    Some((_, of)) => *of = groups.len(),
                    None => targets.push((target, groups.len())),
                }
            }
            groups.push(Group::parse(name, &group)?);
        }
        if groups.is_empty() {
            return Err(own.invalid("config_groups", "at least one group", "none"));
        }
        targets.sort_by(|(a, _), (b, _)| {
            let key = |target: &Target| (target.text().contains("re:"), target.text().to_string());
            key(a).cmp(&key(b))
        });
        let ignored = own.strings("ignore")?.unwrap_or_default();
        let ignored = ignored.iter().map(|text| Target::new(own, "ignore", text));
        Ok(Self {
            groups,
            targets,
            ignored: ignored.collect::<Result<_>>()?,
            rounds_cache: rounds_cache.is_some(),
        })
    }

    /// What a module of these classes is. Names go before patterns, and both before classes.
    pub fn targeted(&self, module: &str, classes: &[&str]) -> Targeted<'_> {
        let named = self.targets.iter().find(|(t, _)| t.is_name_of(module));
        let of_class = || self.targets.iter().find(|(t, _)| t.is_class_of(classes));
        let Some((_, group)) = named.or_else(of_class) else {
            return Targeted::No;
        };
        let mut ignored = self.ignored.iter();
        match ignored.any(|t| t.is_name_of(module) || t.is_class_of(classes)) {
            true => Targeted::Ignored,
            false => Targeted::In(&self.groups[*group]),
        }
    }
}

impl Group {
    fn parse(name: &str, group: &Fields) -> Result<Self> {
        const KNOWN: [&str; 5] = [
            "targets",
            "weights",
            "input_activations",
            "output_activations",
            "format",
        ];
        only(group, &KNOWN)?;
        format(group)?;
        let weights = group
            .object("weights")?
            .ok_or_else(|| group.unsupported("weights", "integers of 2, 4 or 8 bits"))?;
        arguments(&weights)?;
        let nbits = match weights.count_opt("num_bits", 64)? {
            None => 8,
            Some(bits @ (2 | 4 | 8)) => bits as u8,
            Some(_) => return Err(weights.unsupported("num_bits", "2, 4, 8")),
        };
        let size = match weights.get("group_size") {
            Some(v) if v.as_i64() == Some(-1) => None,
            _ => weights.count_opt("group_size", 1 << 28)?,
        };
        let inferred = match (size, weights.get("group_size")) {
            (Some(_), _) => "group",
            (None, Some(_)) => "channel",
            (None, None) => "tensor",
        };
        let block = match (weights.string_opt("strategy")?.unwrap_or(inferred), size) {
            ("group", Some(size)) => Some(size),
            ("group", None) => return Err(weights.missing("group_size", "inputs a step")),
            ("channel", None) => None,
            ("channel", Some(_)) => {
                return Err(weights.unsupported("group_size", "null with the strategy \"channel\""));
            }
            _ => return Err(weights.unsupported("strategy", "\"group\", \"channel\"")),
        };
        let rounded = |key: &str| match group.object(key)? {
            None => Ok(false),
            Some(own) => activations(&own).map(|()| true),
        };
        Ok(Self {
            name: name.to_string(),
            nbits,
            block,
            input: rounded("input_activations")?,
            output: rounded("output_activations")?,
        })
    }
}

/// Refuses what neither weights nor activations may be.
fn arguments(own: &Fields) -> Result<()> {
    const KNOWN: [&str; 12] = [
        "num_bits",
        "type",
        "symmetric",
        "group_size",
        "strategy",
        "block_structure",
        "dynamic",
        "actorder",
        "scale_dtype",
        "zp_dtype",
        "observer",
        "observer_kwargs",
    ];
    only(own, &KNOWN)?;
    match own.string_opt("type")? {
        None | Some("int") => {}
        Some(_) => return Err(own.unsupported("type", "\"int\"")),
    }
    if !own.flag("symmetric", true)? {
        return Err(own.unsupported("symmetric", "true: zero points are not read"));
    }
    match own.get("dynamic") {
        None | Some(Value::Bool(false)) => {}
        Some(_) => return Err(own.unsupported("dynamic", "false")),
    }
    // The order of the columns while they were rounded, which leaves no trace; the others permute them.
    match own.get("actorder") {
        None | Some(Value::Bool(false)) => {}
        Some(Value::String(order)) if order == "weight" || order == "static" => {}
        Some(_) => return Err(own.unsupported("actorder", "null, \"weight\", \"static\"")),
    }
    match own.get("block_structure") {
        None => Ok(()),
        Some(_) => Err(own.unsupported("block_structure", "null")),
    }
}

/// Activations that are rounded to int8, with one step that is known.
fn activations(own: &Fields) -> Result<()> {
    arguments(own)?;
    if own.count_opt("num_bits", 64)?.unwrap_or(8) != 8 {
        return Err(own.unsupported("num_bits", "8"));
    }
    match (own.string_opt("strategy")?, own.get("group_size")) {
        (Some("tensor"), None) | (None, None) => Ok(()),
        (Some("tensor") | None, Some(_)) => Err(own.unsupported("group_size", "null")),
        _ => Err(own.unsupported("strategy", "\"tensor\"")),
    }
}

fn format(own: &Fields) -> Result<()> {
    match own.string_opt("format")? {
        None => Ok(()),
        Some(name) if FORMATS.contains(&name) => Ok(()),
        Some(_) => Err(own.unsupported("format", &FORMATS.map(|f| format!("{f:?}")).join(", "))),
    }
}

/// Refuses a field that is there and does something.
fn none_of(own: &Fields, name: &str, harmless: impl Fn(&Value) -> bool) -> Result<()> {
    match own.get(name) {
        Some(value) if !is_empty(value) && !harmless(value) => Err(own.unsupported(name, "null")),
        _ => Ok(()),
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(|map| map.is_empty())
}

/// Refuses a field that is not known, as it may say something that matters.
fn only(own: &Fields, known: &[&str]) -> Result<()> {
    let unknown = own
        .iter()
        .find(|(name, value)| !value.is_null() && !known.contains(&name.as_str()));
    match unknown {
        None => Ok(()),
        Some((name, value)) => Err(own.invalid(name, "no such field", shorten(value))),
    }
}
