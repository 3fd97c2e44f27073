//! `convert`: a checkpoint to a bundle.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Threads;
use super::adapters::Adapters;
use super::console::{Console, human_bytes, table};
use super::conversion::failure;
use super::failure::{OrFail, Result};
use super::recipes::load_recipe;
use super::source::{check_place, hub_id, open_calibration, open_model};
use super::{grids, plan};
use crate::checkpoint::Checkpoint;
use crate::convert::{self, Conversion, Forecast, Options, Report};
use crate::gemma::ModelPlan;
use crate::recipe::{DEFAULT, Recipe, Rule};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A local snapshot directory or a hub id (`google/gemma-4-E2B-it`, `...@REVISION`)
    model: String,

    #[command(flatten)]
    adapters: Adapters,

    /// A built-in recipe (see `recipes list`) or a path to a TOML file [default: swa4-int4; with --only, the bundle's]
    #[arg(short, long)]
    recipe: Option<String>,

    /// Another scheme for the weights whose names REGEX finds (HF tensor names without prefix), after the recipe's own rules:
    /// the last one that matches wins; one that matches nothing is an error. May be repeated
    #[arg(long, value_name = "REGEX=SCHEME")]
    set: Vec<Rule>,

    /// The bundle to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Positions of the full-attention cache [default: the recipe's, or at most 2048]. A bundle that is there already, of the
    /// same checkpoint and recipe, is rewritten for it without quantizing again
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,

    /// Statistics of the model's activations, made by `calibrate`, for recipes that ask for them
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,

    /// Rebuild this package (`chunk4`) of the bundle that is there already; everything else is kept
    #[arg(long, value_name = "PACKAGE", conflicts_with = "force")]
    only: Option<String>,

    /// Convert everything anew and replace a bundle that is there already
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    threads: Threads,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let recipe = chosen_recipe(args)?;
    let checkpoint = open_model(&args.model, &args.adapters, console)?;
    let options = Options {
        threads: (args.threads.threads > 0).then_some(args.threads.threads),
        force: args.force,
        context: args.context.map(|n| n as usize),
        only: args.only.clone(),
        calibration: open_calibration(args.calibration.as_deref())?,
        palettes: None,
        model_id: hub_id(&args.model),
        weight_file_limit: None,
        room: None,
    };
    let conversion = Conversion::prepare(&checkpoint, &recipe, &args.output, &options);
    let conversion = conversion.map_err(failure)?;
    if let Err(failure) = announce(&recipe, conversion.forecast(), &checkpoint, console) {
        conversion.cancel();
        return Err(failure);
    }
    let forecast = conversion.forecast().clone();
    let report = conversion.run(console).map_err(failure)?;
    print(&report, &forecast, args.only.as_deref(), console)
}

/// What is about to be made.
fn announce(
    recipe: &Recipe,
    forecast: &Forecast,
    checkpoint: &Checkpoint,
    console: &Console,
) -> Result<()> {
    for note in &forecast.notes {
        console.warn(note);
    }
    if console.json() {
        return Ok(());
    }
    console.line(&format!("recipe {}: {}", recipe.name, recipe.description))?;
    console.print(&plan::tables(forecast))?;
    let model = ModelPlan::new(checkpoint.config()).or_invalid()?;
    if let Some(line) = plan::experts_line(&model) {
        console.line(&line)?;
    }
    console.print(&plan::totals(forecast))
}

/// The recipe named, or the bundle's own when one package of it is rebuilt; with the rules of `--set`.
fn chosen_recipe(args: &Args) -> Result<Recipe> {
    let recipe = match (&args.recipe, &args.only) {
        (Some(name), _) => load_recipe(name)?,
        (None, None) => load_recipe(DEFAULT)?,
        (None, Some(package)) => {
            check_place(&args.output).map_err(|f| {
                f.replace_hint(format!(
                    "--only {package} rebuilds a package of a bundle: convert the whole model first"
                ))
            })?;
            convert::bundle_recipe(&args.output).map_err(failure)?
        }
    };
    recipe.with_rules(&args.set).or_invalid()
}

fn print(
    report: &Report,
    forecast: &Forecast,
    only: Option<&str>,
    console: &Console,
) -> Result<()> {
    if console.json() {
        let mut value = serde_json::to_value(report).or_unexpected()?;
        let chunks = forecast.packages.iter();
        let chunks: Vec<Value> = chunks
            .filter(|c| only.is_none_or(|only| c.name == only))
            .map(|c| json!({ "name": c.name, "first_layer": c.first_layer, "end_layer": c.end_layer }))
            .collect();
        value["chunks"] = chunks.into();
        value["plan"] = serde_json::to_value(forecast).or_unexpected()?;
        return console.json_value(&value);
    }
    let rows: Vec<Vec<String>> = report
        .files
        .iter()
        .map(|(name, file)| vec![name.clone(), file.bytes.to_string()])
        .collect();
    let mut text = String::from("\n");
    text.push_str(&table(&["file", ">bytes"], &rows));
    if !report.resumed.is_empty() {
        let _ = writeln!(
            text,
            "kept from an interrupted run: {}",
            report.resumed.join(", ")
        );
    }
    if !report.kept.is_empty() {
        let _ = writeln!(
            text,
            "kept from the bundle that was there: {}",
            report.kept.join(", ")
        );
    }
    text.push_str(&grids::summary(&report.tensors));
    let worst = report
        .tensors
        .iter()
        .filter_map(|t| t.sqnr_db.map(|db| (db, t)))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((db, tensor)) = worst {
        let _ = writeln!(
            text,
            "lowest signal-to-noise ratio: {db:.1} dB, {} in {}",
            tensor.tensor, tensor.scheme
        );
    }
    let _ = writeln!(
        text,
        "{}: {} files, {}, context {}",
        report.output.display(),
        report.files.len(),
        human_bytes(report.bytes),
        report.context
    );
    console.print(&text)?;
    for stage in &report.stages {
        console.detail(&format!("{}: {:.1} s", stage.stage, stage.seconds));
    }
    console.detail(&format!("all: {:.1} s", report.seconds));
    if let Some(bytes) = report.peak_rss {
        console.detail(&format!("peak resident size {}", human_bytes(bytes)));
    }
    Ok(())
}
