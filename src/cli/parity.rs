//! `parity`: a bundle against its reference.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::Threads;
use super::adapters::Adapters;
use super::console::{Console, table};
use super::failure::{Code, Failure, OrFail, Result};
use super::source::{
    PrecisionArg, check_ids, encode, open_bundle, open_model, overflow_lines, read_text, row_source,
};
use crate::bundle::Bundle;
use crate::evaluate::parity::{
    Comparer, Comparison, F16_MEAN, F16_MIN, F32_MEAN, F32_MIN, Gate, follow,
};
use crate::evaluate::reference_file::ReferenceFile;
use crate::evaluate::text::{TextReport, evaluate_text};
use crate::evaluate::{
    BundleSubject, ReferenceSubject, RowSource, Subject, Trace, is_unquantized, subject,
};
use crate::progress::Progress;
use crate::runtime::{Overflow, Precision};

/// Prompts for a MODEL reference when none is given.
const PROMPTS: [&str; 3] = [
    "Once upon a time there was a little girl who",
    "The capital of France is",
    "One, two, three, four,",
];

/// First positions whose hidden states are compared with a MODEL reference.
const STATE_POSITIONS: usize = 8;

const GATES: &str = "\
The bundle is fed the reference's ids, whatever it would have chosen; the greedy column says how far a free run follows.
Gates: unquantized weights with --exact-tables must keep a mean cosine of 0.99999 and a minimum of 0.9995 at f32 (0.999 and \
0.99 at f16), logits and hidden states alike. Other bundles are measured, and gated by --gate-mean and --gate-min only. \
A gate that fails exits with code 4.";

#[derive(Debug, clap::Args)]
#[command(after_help = GATES)]
pub struct Args {
    /// The bundle
    bundle: PathBuf,

    /// A reference file (.safetensors), or a checkpoint to run in f32
    #[arg(long, value_name = "REF|MODEL")]
    reference: String,

    /// How activations are carried
    #[arg(long, value_enum, default_value = "f32")]
    precision: PrecisionArg,

    /// Take embedding and per-layer rows from this checkpoint; what the bundle's tables lose is then shown apart
    #[arg(long, value_name = "MODEL")]
    exact_tables: Option<String>,

    #[command(flatten)]
    adapters: Adapters,

    /// Prompt for a MODEL reference, repeatable [default: three short ones]
    #[arg(short, long, value_name = "PROMPT", conflicts_with = "text")]
    prompt: Vec<String>,

    /// Tokens that a MODEL reference generates per prompt
    #[arg(short = 'n', long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,

    /// Compare over the tokens of this text instead: KL from the f32 MODEL, perplexity
    #[arg(long, value_name = "FILE", conflicts_with_all = ["gate_mean", "gate_min"])]
    text: Option<PathBuf>,

    /// Put the text or the prompts into the chat template as one turn of the user
    #[arg(long)]
    chat: bool,

    /// Use at most the first N tokens of the text
    #[arg(long, value_name = "N", requires = "text")]
    max_tokens: Option<usize>,

    /// Least mean cosine of logits and hidden states
    #[arg(long, value_name = "C", value_parser = cosine)]
    gate_mean: Option<f64>,

    /// Least cosine of any step
    #[arg(long, value_name = "C", value_parser = cosine)]
    gate_min: Option<f64>,

    /// Measure only
    #[arg(long, conflicts_with_all = ["gate_mean", "gate_min"])]
    no_gate: bool,

    #[command(flatten)]
    threads: Threads,
}

/// A limit for cosines. NaN would pass everything.
fn cosine(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(c) if (-1.0..=1.0).contains(&c) => Ok(c),
        _ => Err("expected a number from -1 to 1".into()),
    }
}

#[derive(Serialize)]
struct Report {
    precision: &'static str,
    prompts: usize,
    /// Rows from the checkpoint; absent without `--exact-tables`.
    #[serde(skip_serializing_if = "Option::is_none")]
    exact_tables: Option<Comparison>,
    /// Rows from the bundle's tables.
    bundle_tables: Comparison,
    /// The bundle with its tables against the bundle with exact rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    tables_alone: Option<Comparison>,
    gate: Option<Gate>,
    failures: Vec<String>,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let has_model = !is_file_of_references(&args.reference) || args.exact_tables.is_some();
    if !args.adapters.is_empty() && !has_model {
        return Err(Failure::new(
            Code::Usage,
            "--adapter needs a MODEL, as reference or for --exact-tables: a reference file is of one model",
        ));
    }
    let bundle = open_bundle(&args.bundle)?;
    if let Some(text) = &args.text {
        return over_text(args, console, &bundle, text);
    }
    let references = references(args, console, &bundle)?;
    for trace in &references {
        check_ids(&trace.prompt_ids, bundle.config().vocab_size)?;
        check_ids(&trace.generated_ids, bundle.config().vocab_size)?;
    }
    let exact = match &args.exact_tables {
        None => None,
        Some(model) => Some(row_source(Some(model), &args.adapters, console)?),
    };
    let states = references.iter().any(|t| t.hidden.is_some());
    let open = |rows: &RowSource| {
        BundleSubject::open(
            &bundle,
            args.precision.into(),
            rows,
            states,
            args.threads.threads,
        )
        .or_invalid()
    };
    let mut with_tables = open(&RowSource::Bundle)?;
    let mut with_exact = exact.as_ref().map(open).transpose()?;
    let (mut tables, mut exact, mut alone) = <(Comparer, Comparer, Comparer)>::default();
    let runs = if with_exact.is_some() { 2 } else { 1 };
    let steps: usize = references.iter().map(steps_of).sum::<usize>() * runs;
    console.begin_steps("running the bundle", steps);
    for reference in &references {
        let run = follow(&mut with_tables, reference, &mut || console.advance(1)).or_invalid()?;
        tables.add(reference, &run).or_invalid().map_err(|f| {
            f.hint("the reference must be of the model that the bundle was made from")
        })?;
        if let Some(model) = &mut with_exact {
            let ideal = follow(model, reference, &mut || console.advance(1)).or_invalid()?;
            exact.add(reference, &ideal).or_invalid()?;
            alone.add_pair(&ideal.trace, &run.trace).or_invalid()?;
        }
    }
    console.end();
    let mut overflows = with_tables.overflows();
    if let Some(model) = &mut with_exact {
        overflows.extend(model.overflows());
    }
    warn_of(&overflows, console);
    let mut report = Report {
        precision: match args.precision {
            PrecisionArg::F32 => "f32",
            PrecisionArg::F16 => "f16",
        },
        prompts: references.len(),
        exact_tables: with_exact.as_ref().map(|_| exact.finish()),
        bundle_tables: tables.finish(),
        tables_alone: with_exact.as_ref().map(|_| alone.finish()),
        gate: None,
        failures: Vec::new(),
    };
    report.gate = gate(args, &bundle);
    if let Some(gate) = report.gate {
        let gated = report.exact_tables.as_ref();
        report.failures = gate.failures(gated.unwrap_or(&report.bundle_tables));
    }
    print(&report, console)?;
    if report.failures.is_empty() {
        return Ok(());
    }
    let mut failure = Failure::new(Code::Gate, "the parity gate failed");
    failure.causes = report.failures;
    Err(failure.hint("--no-gate measures only; --gate-mean and --gate-min set other limits"))
}

fn warn_of(overflows: &[(String, Overflow)], console: &Console) {
    for line in overflow_lines(overflows.iter().map(|(chunk, o)| (chunk.as_str(), o))) {
        console.warn(&line);
    }
}

fn steps_of(t: &Trace) -> usize {
    let states = t.hidden.as_ref().map_or(0, |h| h.positions);
    Trace::positions_to_run(t.prompt_ids.len(), t.generated_ids.len(), states)
}

/// The gate asked for, or the default one where it makes sense.
fn gate(args: &Args, bundle: &Arc<Bundle>) -> Option<Gate> {
    if args.no_gate {
        return None;
    }
    let default = match Precision::from(args.precision) {
        Precision::F32 => Gate {
            mean: F32_MEAN,
            min: F32_MIN,
        },
        Precision::F16 => Gate {
            mean: F16_MEAN,
            min: F16_MIN,
        },
    };
    if args.gate_mean.is_some() || args.gate_min.is_some() {
        return Some(Gate {
            mean: args.gate_mean.unwrap_or(f64::NEG_INFINITY),
            min: args.gate_min.unwrap_or(f64::NEG_INFINITY),
        });
    }
    (args.exact_tables.is_some() && is_unquantized(bundle)).then_some(default)
}

/// Whether a reference is a file rather than a MODEL.
fn is_file_of_references(reference: &str) -> bool {
    let extension = Path::new(reference).extension();
    extension.is_some_and(|e| e == "safetensors")
}

fn references(args: &Args, console: &Console, bundle: &Arc<Bundle>) -> Result<Vec<Trace>> {
    let path = Path::new(&args.reference);
    if is_file_of_references(&args.reference) {
        if !args.prompt.is_empty() || args.chat {
            return Err(Failure::new(
                Code::Usage,
                "--prompt and --chat need a MODEL as reference: a reference file has its own prompts",
            ));
        }
        return ReferenceFile::open(path)
            .and_then(|file| file.read_all())
            .or_invalid()
            .map_err(|f| f.hint("`decode --trace FILE` writes a reference file; a checkpoint directory is a reference too"));
    }
    let checkpoint = open_model(&args.reference, &args.adapters, console)?;
    let prompts: Vec<String> = match args.prompt.is_empty() {
        true => PROMPTS.iter().map(|p| p.to_string()).collect(),
        false => args.prompt.clone(),
    };
    let count = args.tokens as usize;
    let mut encoded = Vec::new();
    for prompt in &prompts {
        let ids = encode(&bundle.hf_dir(), prompt, args.chat)?;
        check_ids(&ids, bundle.config().vocab_size)?;
        encoded.push(ids);
    }
    let steps = encoded.iter().map(|ids| ids.len() + count - 1).sum();
    console.begin_steps("running the f32 reference", steps);
    let mut model = ReferenceSubject::load(&checkpoint).or_invalid()?;
    let mut traces = Vec::new();
    for ids in &encoded {
        let positions = STATE_POSITIONS.min(ids.len() + count - 1);
        let mut step = || console.advance(1);
        traces.push(subject::greedy(&mut model, ids, count, positions, &mut step).or_invalid()?);
    }
    console.end();
    Ok(traces)
}

fn over_text(args: &Args, console: &Console, bundle: &Arc<Bundle>, text: &Path) -> Result<()> {
    if is_file_of_references(&args.reference) {
        return Err(Failure::new(
            Code::Usage,
            "--text needs a MODEL as reference: a reference file has fixed ids",
        ));
    }
    let content = read_text(text)?;
    let mut ids = encode(&bundle.hf_dir(), &content, args.chat)?;
    if let Some(most) = args.max_tokens {
        ids.truncate(most);
    }
    check_ids(&ids, bundle.config().vocab_size)?;
    let rows = row_source(args.exact_tables.as_deref(), &args.adapters, console)?;
    let checkpoint = open_model(&args.reference, &args.adapters, console)?;
    console.begin_steps("running both models", ids.len());
    let mut reference = ReferenceSubject::load(&checkpoint).or_invalid()?;
    let mut model = BundleSubject::open(
        bundle,
        args.precision.into(),
        &rows,
        false,
        args.threads.threads,
    )
    .or_invalid()?;
    let report = evaluate_text(
        &mut reference as &mut dyn Subject,
        &mut model,
        &ids,
        &mut || console.advance(1),
    )
    .or_invalid()?;
    console.end();
    warn_of(&model.overflows(), console);
    match console.json() {
        true => console.json_value(&report),
        false => print_text(&report, console),
    }
}

fn print_text(r: &TextReport, console: &Console) -> Result<()> {
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let rows = vec![
        row("tokens", r.tokens.to_string()),
        row(
            "KL mean",
            format!("{:.6} ± {:.6} nats", r.logits.kl_mean, r.logits.kl_stderr),
        ),
        row("KL p99", format!("{:.6} nats", r.logits.kl_p99)),
        row("top-1 agreement", format!("{:.4}", r.logits.top1_agreement)),
        row("logits cosine mean", format!("{:.7}", r.logits.cosine_mean)),
        row("logits cosine min", format!("{:.7}", r.logits.cosine_min)),
        row("perplexity", format!("{:.4}", r.perplexity)),
        row(
            "perplexity of the reference",
            format!("{:.4}", r.perplexity_reference),
        ),
        row(
            "NLL difference",
            format!(
                "{:.6} ± {:.6} nats",
                r.nll_difference, r.nll_difference_stderr
            ),
        ),
    ];
    console.print(&table(&["figure", ">value"], &rows))
}

fn print(report: &Report, console: &Console) -> Result<()> {
    if console.json() {
        return console.json_value(report);
    }
    let mut rows = Vec::new();
    if let Some(c) = &report.exact_tables {
        rows.push(comparison_row("exact tables", c));
    }
    rows.push(comparison_row("bundle tables", &report.bundle_tables));
    if let Some(c) = &report.tables_alone {
        rows.push(comparison_row("tables alone", c));
    }
    let header = [
        "rows",
        ">steps",
        ">cosine mean",
        ">cosine min",
        ">states mean",
        ">states min",
        ">KL mean",
        ">KL p99",
        ">max diff",
        ">top-1",
        ">greedy",
    ];
    console.print(&table(&header, &rows))?;
    console.line(&match report.gate {
        None => "gate: none".to_string(),
        Some(g) => format!(
            "gate: mean {} min {}: {}",
            g.mean,
            g.min,
            if report.failures.is_empty() {
                "passed"
            } else {
                "failed"
            }
        ),
    })
}

fn comparison_row(name: &str, c: &Comparison) -> Vec<String> {
    let l = &c.logits;
    let (states_mean, states_min) = match &c.states {
        None => ("-".into(), "-".into()),
        Some(s) => (
            format!("{:.7}", s.cosine_mean),
            format!("{:.7}", s.cosine_min),
        ),
    };
    let greedy: Vec<String> = c
        .greedy
        .iter()
        .map(|g| format!("{}/{}", g.equal, g.of))
        .collect();
    vec![
        name.into(),
        l.steps.to_string(),
        format!("{:.7}", l.cosine_mean),
        format!("{:.7}", l.cosine_min),
        states_mean,
        states_min,
        format!("{:.2e}", l.kl_mean),
        format!("{:.2e}", l.kl_p99),
        format!("{:.2e}", l.max_abs_diff),
        format!("{:.4}", l.top1_agreement),
        if greedy.is_empty() {
            "-".into()
        } else {
            greedy.join(" ")
        },
    ]
}
