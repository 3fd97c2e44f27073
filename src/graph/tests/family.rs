//! Every pattern of seven layers, every number of sharing ones: chunks fit each other.

use std::collections::BTreeMap;

use super::*;
use crate::graph::{CacheForm, Error, FunctionKind, packages};

const LAYERS: usize = 7;

/// Features that the host makes for every chunk.
const HOST: [&str; 9] = [
    "causal_mask_full",
    "causal_mask_sliding",
    "update_mask",
    "per_layer_raw",
    "cos_s",
    "sin_s",
    "cos_f",
    "sin_f",
    "hidden_states",
];

fn patterns() -> impl Iterator<Item = String> {
    (0..1usize << (LAYERS - 1)).map(|bits| {
        let kind = |i| {
            if i + 1 == LAYERS || bits >> i & 1 == 1 {
                'f'
            } else {
                's'
            }
        };
        (0..LAYERS).map(kind).collect()
    })
}

/// Each chunk reads what the host makes, its own caches of the last step, or an output of an earlier chunk, in the same
/// shape.
fn check_chain(graphs: &[ChunkGraph]) {
    let mut made: BTreeMap<String, TensorType> = BTreeMap::new();
    for graph in graphs {
        let f = main_of(graph);
        let out: BTreeMap<&str, &TensorType> = f
            .outputs
            .iter()
            .map(|n| (n.as_str(), type_of(f, n)))
            .collect();
        for input in &f.inputs {
            let name = input.name.as_str();
            let source = match name {
                "hidden_states" if !made.is_empty() => &made["hidden_states_out"],
                "per_layer_combined" => &made["per_layer_combined_out"],
                _ if HOST.contains(&name) => continue,
                _ if name.starts_with("kv1") => &made[name],
                _ => out[name.replace("_in", "_out").as_str()],
            };
            assert_eq!(&input.ty, source, "{} {name}", graph.name);
        }
        made.extend(out.into_iter().map(|(n, ty)| (n.to_owned(), ty.clone())));
    }
    assert!(made.contains_key("token_id"));
}

#[test]
fn chunks_of_every_pattern_chain() {
    let (mut built, mut refused) = (0, 0);
    for kinds in patterns() {
        for shared in 0..LAYERS {
            let Some(plan) = try_small(&kinds, shared) else {
                continue;
            };
            match split::chunks(&plan, Layout::Swa4) {
                Ok(_) => {
                    check_chain(&swa4(&plan, 16));
                    structure::check_weights(&plan, 16);
                    built += 1;
                }
                Err(Error::TooFewLayers { .. }) => {
                    assert!(shared == 1 || shared == LAYERS - 1, "{kinds} {shared}");
                    refused += 1;
                }
                Err(Error::ProducerElsewhere { producer, .. }) => {
                    assert!(producer < (LAYERS - shared).div_ceil(2), "{kinds} {shared}");
                    refused += 1;
                }
                Err(other) => panic!("{kinds} {shared}: {other}"),
            }
        }
    }
    assert!(
        built > 100 && refused > 100,
        "{built} built, {refused} refused"
    );
}

/// Other layouts, caches and functions on every seventh pattern: each chunk takes what an earlier one gives, and nothing else
/// goes wrong.
#[test]
fn every_recipe_builds_for_patterns() {
    let recipes = crate::recipe::Recipe::list().unwrap();
    let mut built = 0;
    for (kinds, shared) in patterns().step_by(7).zip((0..LAYERS).cycle()) {
        let Some(plan) = try_small(&kinds, shared) else {
            continue;
        };
        for recipe in recipes.iter().filter(|r| !r.name.starts_with("swa4-")) {
            let mut options = recipe.graph_options(16);
            for function in &mut options.functions {
                if let FunctionKind::Prefill(n) = function {
                    // Two sizes stay two.
                    *n = if *n == 64 { 5 } else { 12 };
                }
            }
            if let CacheForm::Window(n) = &mut options.cache {
                *n = 12;
            }
            let specs = match packages(&plan, &options) {
                Ok(specs) => specs,
                Err(Error::TooFewLayers { .. } | Error::ProducerElsewhere { .. }) => continue,
                Err(other) => panic!("{kinds} {shared} {}: {other}", recipe.name),
            };
            let mut made: BTreeMap<(String, String), TensorType> = BTreeMap::new();
            for spec in specs {
                let graph = build_chunk(&plan, &spec, &options)
                    .unwrap_or_else(|e| panic!("{kinds} {shared} {}: {e}", recipe.name));
                for (name, f) in &graph.program.functions {
                    for input in f.inputs.iter().filter(|i| i.name.starts_with("kv1")) {
                        let given = &made[&(name.clone(), input.name.clone())];
                        assert_eq!(given, &input.ty, "{kinds} {shared} {}", recipe.name);
                    }
                    let outputs = f.outputs.iter();
                    made.extend(
                        outputs.map(|o| ((name.clone(), o.clone()), type_of(f, o).clone())),
                    );
                }
                built += 1;
            }
        }
    }
    assert!(built > 300, "{built}");
}
