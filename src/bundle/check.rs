//! Whether the packages of a bundle agree with its config and with each other: context, window, KV shapes, widths, slots.

use super::chunk::Chunk;
use super::config::BundleConfig;
use super::error::{Error, Result};
use crate::mil::{DType, TensorType};
use crate::package::ReadFunction;

/// Inputs (states apart) and outputs of a function, in declaration order.
#[derive(Debug, Clone, Default)]
struct Features {
    inputs: Vec<(String, TensorType)>,
    states: Vec<(String, TensorType)>,
    outputs: Vec<(String, TensorType)>,
}

impl Features {
    fn of(function: &ReadFunction) -> Self {
        let named = |states: bool| {
            let inputs = function.inputs.iter();
            let inputs = inputs.filter(move |input| input.is_state == states);
            inputs
                .map(|input| (input.name.clone(), input.ty.clone()))
                .collect()
        };
        let outputs = function.outputs.iter();
        Self {
            inputs: named(false),
            states: named(true),
            outputs: outputs
                .filter_map(|n| function.type_of(n).map(|t| (n.clone(), t.clone())))
                .collect(),
        }
    }

    fn input(&self, name: &str) -> Option<&TensorType> {
        find(&self.inputs, name)
    }

    fn output(&self, name: &str) -> Option<&TensorType> {
        find(&self.outputs, name)
    }
}

fn find<'a>(list: &'a [(String, TensorType)], name: &str) -> Option<&'a TensorType> {
    list.iter().find(|(n, _)| n == name).map(|(_, t)| t)
}

/// What a function is, by its name in a package of decode or of prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Decode,
    Prefill,
    Verify,
}

impl Role {
    fn of(function: &str, in_prefill: bool) -> Self {
        match function {
            _ if in_prefill || function.starts_with("prefill_b") => Self::Prefill,
            "verify_qK" => Self::Verify,
            _ => Self::Decode,
        }
    }
}

/// One function through all packages that have it.
struct Chain<'a> {
    config: &'a BundleConfig,
    role: Role,
    /// Tokens of a call.
    width: usize,
    /// Package and features.
    chunks: Vec<(String, Features)>,
}

/// K and V that a chunk gives to later ones.
const SHARED: [&str; 4] = ["kv13_k", "kv13_v", "kv14_k", "kv14_v"];

/// Checks every function of all packages.
pub(super) fn packages(config: &BundleConfig, decode: &[Chunk], prefill: &[Chunk]) -> Result<()> {
    for (chunks, in_prefill) in [(decode, false), (prefill, true)] {
        let Some(first) = chunks.first() else {
            continue;
        };
        for name in first.package.functions().keys() {
            let mut with = Vec::with_capacity(chunks.len());
            for chunk in chunks {
                let functions = chunk.package.functions();
                let Some(function) = functions.get(name) else {
                    let expected = format!("a function, as {} has it", first.name);
                    return wrong(&chunk.name, name, &expected, "none of that name");
                };
                with.push((chunk.name.clone(), Features::of(function)));
            }
            let extra = chunks.iter().find_map(|chunk| {
                let functions = chunk.package.functions().keys();
                let mut unknown = functions.filter(|n| !first.package.functions().contains_key(*n));
                Some((chunk, unknown.next()?))
            });
            if let Some((chunk, extra)) = extra {
                let expected = format!("a function of {} too", first.name);
                return wrong(&chunk.name, extra, &expected, "none of that name there");
            }
            Chain::new(config, Role::of(name, in_prefill), with)?.check()?;
        }
    }
    Ok(())
}

impl<'a> Chain<'a> {
    fn new(config: &'a BundleConfig, role: Role, chunks: Vec<(String, Features)>) -> Result<Self> {
        let hidden = chunks.first().and_then(|(_, f)| f.input("hidden_states"));
        let width = match (role, hidden.map(|t| t.shape.as_slice())) {
            (Role::Decode, _) => 1,
            (_, Some(&[1, tokens, _])) if tokens > 0 => tokens,
            (_, got) => {
                let got = format!("{got:?}");
                let first = chunks.first().map(|(n, _)| n.as_str()).unwrap_or_default();
                wrong(first, "hidden_states", "[1, tokens, hidden size]", &got)?;
                1
            }
        };
        Ok(Self {
            config,
            role,
            width,
            chunks,
        })
    }

    fn check(&self) -> Result<()> {
        let last = self.chunks.len().saturating_sub(1);
        for (i, (chunk, f)) in self.chunks.iter().enumerate() {
            self.begins(chunk, f, i)?;
            for (name, t) in &f.inputs {
                let shapes = self.shapes(name, f);
                if !shapes.is_empty() && !shapes.contains(&t.shape) {
                    let expected = shapes.iter().map(|s| format!("{s:?}"));
                    let expected = expected.collect::<Vec<_>>().join(" or ");
                    let expected = match (self.width, self.chunks.first()) {
                        (2.., Some((first, _))) => {
                            format!(
                                "{expected} as model_config.json and {first} ({} tokens) say",
                                self.width
                            )
                        }
                        _ => format!("{expected} as model_config.json says"),
                    };
                    return wrong(chunk, name, &expected, &format!("{:?}", t.shape));
                }
                if let Some(base) = name.strip_suffix("_in") {
                    self.cache(chunk, base, t, f)?;
                }
            }
            for (name, t) in &f.states {
                self.state(chunk, name, t)?;
            }
            self.ends(chunk, f, i == last)?;
            self.carried(chunk, f, &self.chunks[..i])?;
        }
        match self.role {
            Role::Prefill => Ok(()),
            Role::Decode | Role::Verify => self.slots(),
        }
    }

    /// The inputs that every chunk has.
    fn begins(&self, chunk: &str, f: &Features, index: usize) -> Result<()> {
        let per_layer = self.config.per_layer_dim > 0;
        let any = |names: &[&str]| names.iter().any(|n| f.input(n).is_some());
        let mut needed: Vec<(&str, bool)> = vec![
            (
                "hidden_states",
                any(&["hidden_states"]) || (index == 0 && any(&["input_ids"])),
            ),
            (
                "causal_mask_full",
                any(&["causal_mask_full", "causal_mask"]),
            ),
            (
                "causal_mask_sliding",
                any(&["causal_mask_sliding", "causal_mask"]),
            ),
        ];
        for name in ["cos_s", "sin_s", "cos_f", "sin_f"] {
            needed.push((name, any(&[name, "position_ids"])));
        }
        match (per_layer, index) {
            (false, _) => {}
            (true, 0) if self.combined_by_host() => {
                needed.push(("per_layer_combined", any(&["per_layer_combined"])));
            }
            (true, 0) => needed.push(("per_layer_raw", any(&["per_layer_raw"]))),
            (true, _) => needed.push(("per_layer_combined", any(&["per_layer_combined"]))),
        }
        match needed.iter().find(|(_, there)| !there) {
            Some((name, _)) => wrong(chunk, name, "an input", "none of that name"),
            None => Ok(()),
        }
    }

    /// Whether the host combines per-layer rows: in the forms with one causal mask.
    fn combined_by_host(&self) -> bool {
        let first = self.chunks.first();
        self.role == Role::Decode && first.is_some_and(|(_, f)| f.input("causal_mask").is_some())
    }

    /// Shapes that an input of this name may have; none for a name that the config does not decide.
    fn shapes(&self, name: &str, f: &Features) -> Vec<Vec<usize>> {
        let (c, t) = (self.config, self.width);
        let (context, window) = (c.context_length, c.sliding_window);
        let one = |shape: &[usize]| vec![shape.to_vec()];
        let keys = |kv: usize, lengths: &[usize], d: usize| {
            lengths.iter().map(|&n| vec![1, kv, n, d]).collect()
        };
        // One causal mask: the caches of sliding layers are context-sized too.
        let whole = f.input("causal_mask").is_some();
        let sliding: &[usize] = match self.role {
            Role::Prefill => &[t],
            Role::Verify => &[window + t, window],
            Role::Decode if whole => &[context],
            Role::Decode => &[window],
        };
        let full = match self.role {
            Role::Prefill => t,
            _ => c.full_positions(),
        };
        match name {
            "hidden_states" | "image_embedding" => one(&[1, t, c.hidden_size]),
            "causal_mask" => one(&[
                1,
                1,
                t,
                if self.role == Role::Prefill {
                    t
                } else {
                    context
                },
            ]),
            "causal_mask_full" => one(&[1, 1, t, full]),
            "causal_mask_sliding" => sliding.iter().map(|&n| vec![1, 1, t, n]).collect(),
            "update_mask" => one(&[1, 1, context, 1]),
            "update_indicator" => one(&[1, 1, context, t]),
            "per_layer_raw" | "per_layer_combined" => one(&[1, t, c.per_layer_width()]),
            "cos_s" | "sin_s" => one(&[1, 1, t, c.head_dim]),
            "cos_f" | "sin_f" => one(&[1, 1, t, c.global_head_dim]),
            "current_pos" | "ring_pos" | "position_ids" => one(&[1]),
            "input_ids" => one(&[1, t]),
            "last_position_mask" => one(&[1, t, 1]),
            "kv13_k" | "kv13_v" => keys(c.num_key_value_heads, sliding, c.head_dim),
            "kv14_k" | "kv14_v" => keys(c.full_kv_heads(), &[full], c.global_head_dim),
            _ => Vec::new(),
        }
    }

    /// A cache `(slots, kv_heads, length, max head dim)`: decode gives it back as it came in, verify gives new rows.
    fn cache(&self, chunk: &str, base: &str, t: &TensorType, f: &Features) -> Result<()> {
        let input = format!("{base}_in");
        let slots = t.shape.first().copied().unwrap_or(0).max(1);
        self.cache_shape(chunk, &input, t, slots, "model_config.json")?;
        let output = match self.role {
            Role::Verify => format!("new_{base}"),
            _ => format!("{base}_out"),
        };
        let Some(back) = f.output(&output) else {
            return wrong(
                chunk,
                &output,
                "an output, as there is such an input",
                "none",
            );
        };
        match self.role {
            Role::Verify if back.shape.first() == t.shape.first() => Ok(()),
            Role::Verify => expect(chunk, &output, back, DType::Fp16, &t.shape[..1], &input),
            _ => expect(chunk, &output, back, DType::Fp16, &t.shape, &input),
        }
    }

    /// A state of an even number of slots.
    fn state(&self, chunk: &str, name: &str, t: &TensorType) -> Result<()> {
        let slots = t
            .shape
            .first()
            .copied()
            .unwrap_or(0)
            .next_multiple_of(2)
            .max(2);
        self.cache_shape(chunk, name, t, slots, "model_config.json")
    }

    fn cache_shape(
        &self,
        chunk: &str,
        name: &str,
        t: &TensorType,
        slots: usize,
        by: &str,
    ) -> Result<()> {
        let c = self.config;
        let (sliding, full) = (c.num_key_value_heads, c.full_kv_heads());
        let (heads, length) = match name {
            _ if name.contains("_sliding") => (sliding, c.sliding_window),
            _ if name.contains("_full") => (full, c.full_positions()),
            "K_in" | "V_in" | "kv_cache_0" => (sliding.max(full), c.context_length),
            "kv_cache_unified" => (sliding.max(full), c.context_length.max(c.sliding_window)),
            _ => return Ok(()),
        };
        let dim = c.head_dim.max(c.global_head_dim);
        let shape = [slots, c.cache_heads(heads), length, dim];
        expect(chunk, name, t, DType::Fp16, &shape, by)
    }

    /// The results that every chunk has.
    fn ends(&self, chunk: &str, f: &Features, last: bool) -> Result<()> {
        let hidden = [1, self.width, self.config.hidden_size];
        let ids = [1, self.width];
        let needed: &[(&str, DType, &[usize])] = match (last, self.role) {
            (false, _) => &[("hidden_states_out", DType::Fp16, &hidden)],
            (true, Role::Verify) => &[("token_ids", DType::Int32, &ids)],
            (true, _) => &[
                ("token_id", DType::Int32, &[1]),
                ("token_logit", DType::Fp16, &[1]),
            ],
        };
        for (name, dtype, shape) in needed {
            match f.output(name) {
                Some(t) => expect(chunk, name, t, *dtype, shape, "model_config.json")?,
                None => return wrong(chunk, name, "an output", "none of that name"),
            }
        }
        Ok(())
    }

    /// What a chunk takes from earlier ones must be given by one of them, in the same shape; the host may combine per-layer
    /// rows itself, for every chunk then.
    fn carried(&self, chunk: &str, f: &Features, earlier: &[(String, Features)]) -> Result<()> {
        let combined =
            (!self.combined_by_host()).then_some(("per_layer_combined", "per_layer_combined_out"));
        let pairs = SHARED.iter().map(|n| (*n, *n)).chain(combined);
        for (input, output) in pairs {
            let Some(t) = f.input(input) else { continue };
            let mut givers = earlier.iter().rev();
            let giver = givers.find_map(|(n, e)| e.output(output).map(|o| (n, o)));
            match giver {
                Some((n, o)) => {
                    expect(chunk, input, t, o.dtype, &o.shape, &format!("{n}'s output"))?;
                }
                None => return wrong(chunk, input, "an earlier chunk with that output", "none"),
            }
        }
        Ok(())
    }

    /// Enough cache slots for every layer that owns K and V.
    fn slots(&self) -> Result<()> {
        let c = self.config;
        let owners = &c.layer_types[..c.num_layers - c.num_kv_shared_layers];
        let count = |kind: &str| owners.iter().filter(|k| *k == kind).count();
        let (sliding, full) = (count("sliding_attention"), count("full_attention"));
        // A store of both kinds, or one of each.
        let whole: usize = ["K_in", "kv_cache_0", "kv_cache_unified"]
            .iter()
            .map(|n| self.held(n))
            .sum();
        for (name, kind, needed, found) in [
            (
                "K_sliding_in",
                "sliding_attention",
                sliding,
                self.held_by("_sliding"),
            ),
            ("K_full_in", "full_attention", full, self.held_by("_full")),
        ] {
            if whole >= owners.len() || found >= needed {
                continue;
            }
            let expected = format!("{needed} slots in all chunks, one for each {kind} layer");
            return wrong(&self.chunks[0].0, name, &expected, &found.to_string());
        }
        Ok(())
    }

    /// Slots in caches of a kind, told by a part of the name: those of K, and half of a state's.
    fn held_by(&self, part: &str) -> usize {
        let of = |(name, t): &(String, TensorType), prefix: &str| {
            let slots = t.shape.first().copied().unwrap_or(0);
            (name.starts_with(prefix) && name.contains(part)).then_some(slots)
        };
        let chunks = self.chunks.iter();
        chunks
            .map(|(_, f)| {
                let inputs: usize = f.inputs.iter().filter_map(|i| of(i, "K_")).sum();
                let states: usize = f.states.iter().filter_map(|s| of(s, "kv_")).sum();
                inputs + states / 2
            })
            .sum()
    }

    fn held(&self, name: &str) -> usize {
        let slots = |t: Option<&TensorType>| t.and_then(|t| t.shape.first().copied()).unwrap_or(0);
        let chunks = self.chunks.iter();
        chunks
            .map(|(_, f)| slots(f.input(name)) + slots(find(&f.states, name)) / 2)
            .sum()
    }
}

fn expect(
    chunk: &str,
    feature: &str,
    t: &TensorType,
    dtype: DType,
    shape: &[usize],
    by: &str,
) -> Result<()> {
    if t.dtype == dtype && t.shape == shape {
        return Ok(());
    }
    wrong(
        chunk,
        feature,
        &format!("{dtype} {shape:?} as {by} says"),
        &format!("{} {:?}", t.dtype, t.shape),
    )
}

fn wrong(chunk: &str, feature: &str, expected: &str, got: &str) -> Result<()> {
    Err(Error::Feature {
        chunk: chunk.into(),
        feature: feature.into(),
        expected: expected.into(),
        got: got.into(),
    })
}
