//! The program of a package, and what its model file says of it.

use super::job::Job;
use super::resolve::ResolvedChunk;
use crate::convert::error::Result;
use crate::graph::{ChunkGraph, build_chunk};
use crate::package::ModelDescription;

impl Job<'_> {
    /// The program of a package and the order of its weights.
    pub fn graph(&self, chunk: &ResolvedChunk) -> Result<(ChunkGraph, Vec<String>)> {
        let (task, recipe) = (self.task, self.task.recipe_of(&chunk.spec.name));
        let mut options = recipe.graph_options(task.context);
        options.activations = task.activations(chunk)?;
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
