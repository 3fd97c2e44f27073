//! `calibrate`: statistics of the inputs of a model's linear layers.

use std::path::PathBuf;

use serde::Serialize;

use super::adapters::Adapters;
use super::console::{Console, table};
use super::failure::{Code, Failure, OrFail, Result};
use super::source::open_model;
use crate::calibrate::{
    self, DEFAULT_NOISE, Error, Framing, Options, Source, Stats, TextOptions, calibrate,
};
use crate::checkpoint::Checkpoint;

/// Most tokens of a sequence when no length is given.
const LENGTH: usize = 1024;
/// The percentile of magnitudes that is shown.
const SHOWN_PERCENTILE: f64 = 99.9;

const NOTES: &str = "\
The model runs in f32, layer by layer: memory holds one layer's weights, and for every token its stream and per-layer inputs. \
The text is cut into sequences that each begin with the first token of the tokenizer (<bos>).
--noise is the calibration on random inputs that published conversions used. Activations of a model are nothing like it: it is \
here to measure what that costs, not to be used.";

#[derive(Debug, clap::Args)]
#[command(after_help = NOTES)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["text", "noise"]))]
pub struct Args {
    /// A local snapshot directory or a hub id (`google/gemma-4-E2B-it`, `...@REVISION`)
    model: String,

    #[command(flatten)]
    adapters: Adapters,

    /// The text to run the model over
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// Every line of the text is a text of its own
    #[arg(long, requires = "text", conflicts_with = "chat")]
    lines: bool,

    /// Every line of the text is a turn of the user, to be put into the chat template
    #[arg(long, requires = "text")]
    chat: bool,

    /// Most tokens of a sequence [default: 1024, or what the model was made for]
    #[arg(long, value_name = "N", requires = "text")]
    length: Option<usize>,

    /// Use at most N tokens of the text
    #[arg(
        long,
        value_name = "N",
        default_value_t = 16384,
        conflicts_with = "noise"
    )]
    max_tokens: usize,

    /// Run over N positions of random noise instead of a text
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = NOISE_TEXT)]
    noise: Option<usize>,

    /// Store the whole matrix of second moments of every input too; sizes grow with the square of the widths
    #[arg(long)]
    full: bool,

    /// The file to write
    #[arg(short, long, value_name = "FILE.safetensors")]
    output: PathBuf,

    /// Replace a file that is there already
    #[arg(long)]
    force: bool,
}

/// [`DEFAULT_NOISE`], as the command line has it.
const NOISE_TEXT: &str = "5";
const _: () = assert!(DEFAULT_NOISE == 5);

#[derive(Serialize)]
struct Report {
    output: PathBuf,
    sha256: String,
    checkpoint: String,
    tokens: u64,
    sequences: u64,
    source: &'static str,
    full: bool,
    sites: Vec<Row>,
}

/// One input of the table.
#[derive(Serialize)]
struct Row {
    /// Tensors of the linear layers that have the input.
    tensors: Vec<String>,
    width: usize,
    rows: u64,
    max_abs: f32,
    p99_9: f32,
    /// Largest second moment of a channel over the mean of all: 1 where all channels are alike.
    outlier: f64,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let checkpoint = open_model(&args.model, &args.adapters, console)?;
    let source = source(args, &checkpoint)?;
    let options = Options {
        full: args.full,
        replace: args.force,
    };
    let stats =
        calibrate(&checkpoint, &source, &options, &args.output, console).map_err(failure)?;
    print(&report(&stats)?, console)
}

fn source(args: &Args, checkpoint: &Checkpoint) -> Result<Source> {
    let Some(path) = &args.text else {
        return Ok(Source::Noise(args.noise.unwrap_or(DEFAULT_NOISE)));
    };
    let text = std::fs::read_to_string(path).map_err(|e| {
        let mut failure = Failure::from_error(Code::Invalid, &e);
        failure.causes.insert(0, failure.message.clone());
        failure.message = format!("{}: cannot read the text", path.display());
        failure.hint("--text takes a file of UTF-8 text")
    })?;
    let most = checkpoint.config().max_position_embeddings;
    let options = TextOptions {
        framing: match (args.lines, args.chat) {
            (_, true) => Framing::Chat,
            (true, false) => Framing::Lines,
            (false, false) => Framing::Whole,
        },
        length: args.length.unwrap_or(LENGTH.min(most)),
        max_tokens: args.max_tokens,
    };
    calibrate::sequences(checkpoint, &text, &options)
        .map(Source::Text)
        .map_err(failure)
}

fn failure(error: Error) -> Failure {
    let code = match error {
        Error::Io { .. } => Code::Unexpected,
        _ => Code::Invalid,
    };
    let failure = Failure::from_error(code, &error);
    match error {
        Error::Exists { .. } => failure.hint("--force replaces it; or choose another --output"),
        Error::NotAFile { .. } => failure.hint("choose another --output"),
        Error::Locked { .. } => failure.hint("wait for it, or choose another --output"),
        Error::NoText => failure.hint("--text takes a file of text, --max-tokens at least 2"),
        Error::Length { .. } => failure.hint("give a --length in that range"),
        Error::Noise { .. } => failure.hint("give a --noise in that range"),
        _ => failure,
    }
}

fn report(stats: &Stats) -> Result<Report> {
    let mut sites: Vec<Row> = Vec::new();
    let mut at = std::collections::BTreeMap::new();
    for (tensor, site) in stats.tensors() {
        let index = *at.entry(site).or_insert(sites.len());
        if let Some(row) = sites.get_mut(index) {
            row.tensors.push(tensor.to_string());
            continue;
        }
        let input = stats.input(tensor).or_unexpected()?;
        let second = input.second_moment();
        let mean = second.iter().map(|v| f64::from(*v)).sum::<f64>() / second.len() as f64;
        let largest = second.iter().fold(0f64, |m, v| m.max(f64::from(*v)));
        sites.push(Row {
            tensors: vec![tensor.to_string()],
            width: input.width(),
            rows: input.rows(),
            max_abs: input.max_abs(),
            p99_9: input.percentile(SHOWN_PERCENTILE),
            outlier: if mean > 0.0 { largest / mean } else { 1.0 },
        });
    }
    Ok(Report {
        output: stats.path().to_path_buf(),
        sha256: stats.sha256().to_string(),
        checkpoint: stats.checkpoint().to_string(),
        tokens: stats.tokens(),
        sequences: stats.sequences(),
        source: stats.source(),
        full: stats.is_full(),
        sites,
    })
}

fn print(report: &Report, console: &Console) -> Result<()> {
    if console.json() {
        return console.json_value(report);
    }
    let rows: Vec<Vec<String>> = report
        .sites
        .iter()
        .map(|row| {
            vec![
                row.tensors.join(", "),
                row.width.to_string(),
                row.rows.to_string(),
                format!("{:.4}", row.max_abs),
                format!("{:.4}", row.p99_9),
                format!("{:.1}", row.outlier),
            ]
        })
        .collect();
    let header = ["input of", ">width", ">rows", ">max", ">p99.9", ">outlier"];
    console.print(&table(&header, &rows))?;
    console.line(&format!(
        "{}: {} inputs, {} tokens of {} in {} sequences",
        report.output.display(),
        report.sites.len(),
        report.tokens,
        report.source,
        report.sequences
    ))
}
