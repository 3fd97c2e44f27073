//! `plan`: what a conversion would make and take, without making it.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::Threads;
use super::adapters::{Adapters, adapters_json};
use super::console::{Console, human_bytes, table};
use super::conversion::failure;
use super::failure::{OrFail, Result};
use super::recipes::load_recipe;
use super::source::{hub_id, open_calibration, open_model};
use crate::convert::{self, Forecast, Options, PackageForecast};
use crate::gemma::ModelPlan;
use crate::recipe::{DEFAULT, Rule};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A local snapshot directory or a hub id (`google/gemma-4-E2B-it`, `...@REVISION`), which is downloaded
    model: String,

    #[command(flatten)]
    adapters: Adapters,

    /// A built-in recipe (see `recipes list`) or a path to a TOML file
    #[arg(short, long, default_value = DEFAULT)]
    recipe: String,

    /// Another scheme for the weights whose names REGEX finds, as for `convert`. May be repeated
    #[arg(long, value_name = "REGEX=SCHEME")]
    set: Vec<Rule>,

    /// Positions of the full-attention cache [default: the recipe's, or at most 2048]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,

    /// Statistics of the model's activations; only recipes that quantize activations need them here
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,

    #[command(flatten)]
    threads: Threads,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let recipe = load_recipe(&args.recipe)?;
    let recipe = recipe.with_rules(&args.set).or_invalid()?;
    let checkpoint = open_model(&args.model, &args.adapters, console)?;
    let options = Options {
        threads: (args.threads.threads > 0).then_some(args.threads.threads),
        context: args.context.map(|n| n as usize),
        calibration: open_calibration(args.calibration.as_deref())?,
        model_id: hub_id(&args.model),
        ..Options::default()
    };
    let forecast = convert::forecast(&checkpoint, &recipe, &options).map_err(failure)?;
    for note in &forecast.notes {
        console.warn(note);
    }
    if console.json() {
        let mut value = serde_json::to_value(&forecast).or_unexpected()?;
        if !checkpoint.adapters().is_empty() {
            value["adapters"] = adapters_json(&checkpoint);
        }
        if let Some(quantization) = checkpoint.quantization() {
            value["quantization"] = quantization.to_string().into();
        }
        return console.json_value(&value);
    }
    let plan = ModelPlan::new(checkpoint.config()).or_invalid()?;
    if let Some(quantization) = checkpoint.quantization() {
        console.line(&format!("weights of the checkpoint: {quantization}"))?;
    }
    console.line(&format!("recipe {}: {}", recipe.name, recipe.description))?;
    console.print(&tables(&forecast))?;
    if let Some(line) = experts_line(&plan) {
        console.line(&line)?;
    }
    console.print(&format!("\n{}{}", files(&forecast), totals(&forecast)))
}

/// Packages, schemes and row tables.
pub(super) fn tables(forecast: &Forecast) -> String {
    let packages: Vec<Vec<String>> = forecast.packages.iter().map(package_row).collect();
    let mut text = table(
        &[
            "package",
            "layers",
            "functions",
            ">weights",
            ">values",
            ">weight bytes",
            ">bytes",
            "schemes",
        ],
        &packages,
    );
    let schemes: Vec<Vec<String>> = forecast
        .schemes
        .iter()
        .map(|row| {
            vec![
                row.scheme.clone(),
                row.weights.to_string(),
                row.values.to_string(),
                row.bytes.to_string(),
                match &row.tensor {
                    None => row.reason.clone(),
                    Some(tensor) => format!("{}: {tensor}", row.reason),
                },
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&table(
        &["scheme", ">weights", ">values", ">bytes", "chosen by"],
        &schemes,
    ));
    let rows: Vec<Vec<String>> = forecast
        .tables
        .iter()
        .map(|t| {
            vec![
                t.tensor.clone(),
                t.rows.to_string(),
                t.dim.to_string(),
                t.bytes.to_string(),
                t.scheme.clone(),
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&table(
        &["table", ">rows", ">values a row", ">bytes", "scheme"],
        &rows,
    ));
    text
}

fn package_row(package: &PackageForecast) -> Vec<String> {
    let schemes = package.schemes.iter();
    let mut schemes = schemes
        .map(|(scheme, total)| format!("{} {scheme}", total.tensors))
        .collect::<Vec<_>>()
        .join(", ");
    if let Some(donor) = &package.weights_of {
        schemes = format!("weights of {donor}");
    }
    if package.kept {
        schemes.push_str(" (kept)");
    }
    vec![
        package.name.clone(),
        format!("{}..{}", package.first_layer, package.end_layer),
        package.functions.join(", "),
        package.weights.to_string(),
        package.values.to_string(),
        package.weight_bytes.to_string(),
        package.bytes.to_string(),
        schemes,
    ]
}

/// Every file; sizes that are not exact begin with `~`.
fn files(forecast: &Forecast) -> String {
    let rows: Vec<Vec<String>> = forecast
        .files
        .iter()
        .map(|(name, file)| {
            let sign = if file.exact { "" } else { "~" };
            vec![name.clone(), format!("{sign}{}", file.bytes)]
        })
        .collect();
    table(&["file", ">bytes"], &rows)
}

/// What it comes to.
pub(super) fn totals(forecast: &Forecast) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} files, {}, context {}",
        forecast.files.len(),
        human_bytes(forecast.bytes),
        forecast.context
    );
    let _ = writeln!(
        text,
        "needs {} free on disk and at most {} of memory; about {} on {} threads (an estimate)",
        human_bytes(forecast.disk),
        human_bytes(forecast.memory),
        duration(forecast.time.seconds),
        forecast.time.threads
    );
    text
}

/// What it costs that a package computes every expert, for a model that has experts.
pub(super) fn experts_line(plan: &ModelPlan) -> Option<String> {
    let (moe, cost) = (plan.moe?, plan.moe_cost()?);
    Some(format!(
        "all {} experts of each layer are in the graph: every token computes their {} weights, of {} in the model; \
         top-{} needs only {}",
        moe.experts, cost.all, cost.model, moe.top_k, cost.chosen
    ))
}

/// Seconds for people: `0.4 s`, `48 s`, `12 min`, `3.5 h`.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        for (seconds, text) in [
            (0.42, "0.4 s"),
            (48.2, "48 s"),
            (720.0, "12 min"),
            (12_600.0, "3.5 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
