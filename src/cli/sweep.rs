//! `sweep`: several recipes side by side.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Threads;
use super::adapters::Adapters;
use super::console::{Console, human_bytes, table};
use super::conversion::with_fault;
use super::failure::{Code, Failure, OrFail, Result};
use super::recipes::load_recipe;
use super::source::{encode, hub_id, open_model, read_text};
use crate::calibrate::Stats;
use crate::gemma::ModelPlan;
use crate::recipe::{DEFAULT_CONTEXT, Recipe};
use crate::sweep::{
    self, Calibrations, EvaluationPath, Event, RecipeResult, Settings, Sweep, read_recall,
};

/// Prompt of the samples when none is given, plain and with `--chat`.
const PROMPTS: [&str; 2] = ["Once there was a girl named Zoe.", "Why is the sky blue?"];

const NOTES: &str = "\
The KL divergence is from the f32 model, over the logits after every token of the text. Recipes that no other beats in bytes \
and KL are marked *; they are run op by op as well over the first --check-tokens tokens, and where the two mean KLs differ \
the sweep exits with code 4. Running again in the same directory keeps what is there and computes what changed.";

#[derive(Debug, clap::Args)]
#[command(after_help = NOTES)]
pub struct Args {
    /// A local snapshot directory or a hub id (`google/gemma-4-E2B-it`, `...@REVISION`)
    model: String,

    #[command(flatten)]
    adapters: Adapters,

    /// Built-in recipes (see `recipes list`) or paths to TOML files
    #[arg(short, long, value_name = "RECIPE", num_args = 1.., required = true)]
    recipes: Vec<String>,

    /// The text to compare over
    #[arg(long, value_name = "FILE")]
    text: PathBuf,

    /// The directory for results, table and page
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Use at most the first N tokens of the text
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,

    /// Positions of a window of the text, and of the bundles [default: at most 2048]
    #[arg(long, value_name = "N")]
    context: Option<usize>,

    /// Put text and prompt into the chat template as one turn of the user
    #[arg(long)]
    chat: bool,

    /// What the samples continue [default: the beginning of a story; with --chat, a question]
    #[arg(short, long, value_name = "PROMPT")]
    prompt: Option<String>,

    /// Tokens of a sample; 0 for none
    #[arg(long, value_name = "N", default_value_t = 96)]
    sample_tokens: usize,

    /// A recall set: contexts with questions, a JSON object per line
    #[arg(long, value_name = "FILE")]
    recall: Option<PathBuf>,

    /// Statistics made by `calibrate`, for the recipes that ask for some; with a name, for that recipe alone. May be repeated
    #[arg(long, value_name = "[RECIPE=]FILE")]
    calibration: Vec<String>,

    /// Tokens of the text that the best recipes are run over op by op
    #[arg(long, value_name = "N", default_value_t = 512)]
    check_tokens: usize,

    /// Keep the bundles
    #[arg(long)]
    keep: bool,

    #[command(flatten)]
    threads: Threads,
}

/// The statistics named. What stands before an equals sign is a recipe's name, if there is such a recipe.
fn calibrations(named: &[String], recipes: &[Recipe]) -> Result<Calibrations> {
    let mut found = Calibrations::default();
    for text in named {
        let named = text.split_once('=');
        let named = named.filter(|(name, _)| recipes.iter().any(|r| r.name == *name));
        let path = Path::new(named.map_or(text.as_str(), |(_, path)| path));
        let stats = Arc::new(Stats::open(path).or_invalid()?);
        match named {
            Some((name, _)) => {
                found.by_recipe.insert(name.to_string(), stats);
            }
            None => found.default = Some(stats),
        }
    }
    Ok(found)
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let recipes = args.recipes.iter().map(|name| load_recipe(name));
    let recipes = recipes.collect::<Result<Vec<_>>>()?;
    let text = read_text(&args.text)?;
    let recall = match &args.recall {
        Some(path) => read_recall(path).or_invalid()?,
        None => Vec::new(),
    };
    let checkpoint = open_model(&args.model, &args.adapters, console)?;
    let plan = ModelPlan::new(checkpoint.config()).or_invalid()?;
    let mut ids = encode(checkpoint.dir(), &text, args.chat)?;
    ids.truncate(args.max_tokens.unwrap_or(usize::MAX));
    let prompt = args.prompt.as_deref();
    let prompt = prompt
        .unwrap_or(PROMPTS[usize::from(args.chat)])
        .to_string();
    let prompt_ids = encode(checkpoint.dir(), &prompt, args.chat)?;
    let id = hub_id(&args.model);
    let name = || {
        Path::new(&args.model)
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
    };
    let calibration = calibrations(&args.calibration, &recipes)?;
    let settings = Settings {
        model: id
            .clone()
            .or_else(name)
            .unwrap_or_else(|| args.model.clone()),
        model_id: id,
        recipes,
        ids,
        context: args
            .context
            .unwrap_or(DEFAULT_CONTEXT.min(plan.max_positions)),
        prompt: (prompt, prompt_ids),
        sample_tokens: args.sample_tokens,
        recall,
        check_tokens: args.check_tokens,
        calibration,
        keep: args.keep,
        threads: args.threads.threads,
    };
    let mut tell = |event: Event<'_>| match event {
        Event::Begun { name, number, of } => console.note(&format!("{name} ({number} of {of})")),
        Event::Kept(r) => console.note(&format!("{}: kept from an earlier run", r.name)),
        Event::Done(r) => console.note(&format!("{}: {}", r.name, one_line(r))),
    };
    let result = sweep::sweep(&checkpoint, &settings, &args.output, console, &mut tell);
    let result = result.map_err(failure)?;
    print(&result, &args.output, console)?;
    if result.disagree.is_empty() {
        return Ok(());
    }
    Err(disagreement(&result))
}

fn failure(error: sweep::Error) -> Failure {
    let failure = Failure::from_error(Code::Invalid, &error);
    match &error {
        sweep::Error::Convert { source, .. } => with_fault(failure, source),
        sweep::Error::Io { .. } | sweep::Error::Json { .. } => failure.with_code(Code::Unexpected),
        _ => failure,
    }
}

fn disagreement(result: &Sweep) -> Failure {
    let names = result.disagree.join(", ");
    let mut failure = Failure::new(
        Code::Gate,
        format!(
            "{names}: the packages, run op by op, do not give the KL of the batched evaluation"
        ),
    );
    let recipes = result.recipes.iter();
    for recipe in recipes.filter(|r| result.disagree.contains(&r.name)) {
        if let Some(check) = recipe.check {
            failure.causes.push(format!(
                "{}: mean KL {:.5e} op by op, {:.5e} batched, over {} tokens",
                recipe.name, check.kl_interpreter, check.kl_batched, check.tokens
            ));
        }
    }
    failure.hint("`parity BUNDLE --reference MODEL` shows where a bundle (kept with --keep) leaves the model")
}

fn one_line(r: &RecipeResult) -> String {
    format!(
        "KL {:.3e} ± {:.1e} nats, {}",
        r.figures.kl_mean,
        r.figures.kl_stderr,
        human_bytes(r.weights.bundle_bytes)
    )
}

fn print(result: &Sweep, dir: &Path, console: &Console) -> Result<()> {
    if console.json() {
        return console.json_value(result);
    }
    console.print(&results_table(result))?;
    let bound = match result.kl_is_exact {
        true => String::new(),
        false => format!(
            "; KL of the top {} ids and the rest, a lower bound",
            result.top
        ),
    };
    console.line(&format!(
        "{} tokens in windows of {}, perplexity of the f32 model {:.4}{bound}",
        result.tokens, result.context, result.perplexity
    ))?;
    console.line(&format!("{}", dir.join("sweep.html").display()))
}

fn results_table(result: &Sweep) -> String {
    let header = [
        "recipe",
        ">weights",
        ">bundle",
        ">bits",
        ">SQNR dB",
        ">KL mean",
        ">± se",
        ">KL p99",
        ">top-1",
        ">perplexity",
        ">recall",
        ">convert s",
        ">memory",
        "run",
    ];
    let rows: Vec<Vec<String>> = result
        .recipes
        .iter()
        .map(|r| recipe_row(r, result.front.contains(&r.name)))
        .collect();
    table(&header, &rows)
}

fn recipe_row(r: &RecipeResult, on_front: bool) -> Vec<String> {
    let (f, w) = (&r.figures, &r.weights);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    vec![
        format!("{}{}", r.name, if on_front { " *" } else { "" }),
        human_bytes(w.weight_bytes),
        human_bytes(w.bundle_bytes),
        format!("{:.3}", w.bits_per_weight),
        or_dash(w.sqnr_db.map(|db| format!("{db:.2}"))),
        format!("{:.3e}", f.kl_mean),
        format!("{:.1e}", f.kl_stderr),
        format!("{:.2e}", f.kl_p99),
        format!("{:.4}", f.top1_agreement),
        format!("{:.4}", f.perplexity),
        or_dash(r.recall.as_ref().map(|c| format!("{}/{}", c.right, c.of))),
        format!("{:.1}", r.conversion.seconds),
        or_dash(r.conversion.memory.added().map(human_bytes)),
        match &r.path {
            EvaluationPath::Batched => "batched".into(),
            EvaluationPath::Interpreter(_) => "op by op".into(),
        },
    ]
}
