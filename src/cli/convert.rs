//! `convert`: a checkpoint to a bundle.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Threads;
use super::console::{Console, human_bytes, table};
use super::failure::{Code, Failure, OrFail, Result};
use super::recipes::load_recipe;
use super::source::{hub_id, open_model};
use crate::bundle;
use crate::convert::{self, Fault, Options, Report, ResolvedChunk};
use crate::gemma::ModelPlan;
use crate::recipe::DEFAULT;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A local snapshot directory or a hub id (`google/gemma-4-E2B-it`, `...@REVISION`)
    model: String,

    /// A built-in recipe (see `recipes list`) or a path to a TOML file
    #[arg(short, long, default_value = DEFAULT)]
    recipe: String,

    /// The bundle to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Positions of the full-attention cache [default: the recipe's, or at most 2048]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,

    /// Replace a bundle that is there already
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    threads: Threads,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let recipe = load_recipe(&args.recipe)?;
    let checkpoint = open_model(&args.model, console)?;
    let plan = ModelPlan::new(checkpoint.config()).or_invalid()?;
    let chunks = convert::resolve(&plan, &recipe).map_err(failure)?;
    if !console.json() {
        console.line(&format!("recipe {}: {}", recipe.name, recipe.description))?;
        console.print(&scheme_table(&chunks))?;
        if let Some(line) = experts_line(&plan) {
            console.line(&line)?;
        }
    }
    let options = Options {
        threads: (args.threads.threads > 0).then_some(args.threads.threads),
        force: args.force,
        context: args.context.map(|n| n as usize),
        model_id: hub_id(&args.model),
    };
    let report =
        convert::convert(&checkpoint, &recipe, &args.output, &options, console).map_err(failure)?;
    print(&report, &chunks, console)
}

fn failure(error: convert::Error) -> Failure {
    let failure = Failure::from_error(Code::Invalid, &error);
    let failure = match &error {
        convert::Error::Bundle(bundle::Error::Exists { .. }) => {
            failure.replace_hint("--force replaces a bundle; or choose another --output")
        }
        convert::Error::Context { .. } => failure.hint("give a --context in that range"),
        _ => failure,
    };
    match error.fault() {
        Fault::Input => failure,
        Fault::Space => failure.with_code(Code::Resources),
        Fault::Unexpected => failure.with_code(Code::Unexpected),
    }
}

/// One row per scheme and reason; a weight that did not fit its scheme has a row of its own.
fn scheme_table(chunks: &[ResolvedChunk]) -> String {
    let mut groups: BTreeMap<(String, String, String), (usize, u64, u64)> = BTreeMap::new();
    for weight in chunks.iter().flat_map(|c| &c.weights) {
        let alone = weight.reason.starts_with("otherwise");
        let tensor = match alone {
            true => weight.binding.tensor.clone(),
            false => String::new(),
        };
        let key = (weight.scheme.to_string(), weight.reason.clone(), tensor);
        let sum = groups.entry(key).or_default();
        sum.0 += 1;
        sum.1 += weight.elements;
        sum.2 += weight.bytes;
    }
    let rows: Vec<Vec<String>> = groups
        .into_iter()
        .map(|((scheme, reason, tensor), (count, elements, bytes))| {
            vec![
                scheme,
                count.to_string(),
                elements.to_string(),
                bytes.to_string(),
                match tensor.as_str() {
                    "" => reason,
                    name => format!("{reason}: {name}"),
                },
            ]
        })
        .collect();
    table(
        &["scheme", ">weights", ">values", ">bytes", "chosen by"],
        &rows,
    )
}

/// What it costs that a package computes every expert, for a model that has experts.
fn experts_line(plan: &ModelPlan) -> Option<String> {
    let (moe, cost) = (plan.moe?, plan.moe_cost()?);
    Some(format!(
        "all {} experts of each layer are in the graph: every token computes their {} weights, of {} in the model; \
         top-{} needs only {}",
        moe.experts, cost.all, cost.model, moe.top_k, cost.chosen
    ))
}

fn print(report: &Report, chunks: &[ResolvedChunk], console: &Console) -> Result<()> {
    if console.json() {
        let mut value = serde_json::to_value(report).or_unexpected()?;
        let chunks: Vec<Value> = chunks
            .iter()
            .map(|c| json!({ "name": c.spec.name, "first_layer": c.spec.layers.start, "end_layer": c.spec.layers.end }))
            .collect();
        value["chunks"] = chunks.into();
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
    if let Some(bytes) = report.peak_rss {
        console.detail(&format!("peak resident size {}", human_bytes(bytes)));
    }
    Ok(())
}
