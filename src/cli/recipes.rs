//! `recipes`: what is built in, and whether a file is a recipe.

use clap::Subcommand;
use serde_json::json;

use super::console::{Console, table};
use super::failure::{OrFail, Result};
use crate::recipe::{DEFAULT, Recipe};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the built-in recipes
    List,
    /// Print a recipe's TOML
    Show {
        /// A built-in name or a path to a TOML file
        recipe: String,
    },
    /// Check that a file is a recipe
    Check {
        /// A path to a TOML file, or a built-in name
        file: String,
    },
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    match &args.what {
        What::List => list(console),
        What::Show { recipe } => show(recipe, console),
        What::Check { file } => check(file, console),
    }
}

/// A built-in recipe or the one in a file.
pub fn load_recipe(name: &str) -> Result<Recipe> {
    Recipe::load(name).or_invalid().map_err(|f| {
        f.hint(
            "`gemma-coreml recipes list` names the built-in ones, `recipes show NAME` prints one",
        )
    })
}

fn list(console: &Console) -> Result<()> {
    let recipes = Recipe::list().or_unexpected()?;
    if console.json() {
        let all: Vec<_> = recipes.iter().map(summary).collect();
        return console.json_value(&all);
    }
    let rows: Vec<_> = recipes
        .into_iter()
        .map(|r| vec![r.name, r.status, r.description])
        .collect();
    console.print(&table(&["recipe", "status", "description"], &rows))
}

fn summary(recipe: &Recipe) -> serde_json::Value {
    json!({
        "name": recipe.name,
        "default": recipe.name == DEFAULT,
        "status": recipe.status,
        "description": recipe.description,
    })
}

fn show(name: &str, console: &Console) -> Result<()> {
    let recipe = load_recipe(name)?;
    if console.json() {
        let mut value = summary(&recipe);
        value["toml"] = recipe.source.clone().into();
        return console.json_value(&value);
    }
    console.print(&recipe.source)
}

fn check(file: &str, console: &Console) -> Result<()> {
    let recipe = load_recipe(file)?;
    if console.json() {
        return console.json_value(&summary(&recipe));
    }
    console.line(&format!("{file}: recipe `{}` is valid", recipe.name))
}
