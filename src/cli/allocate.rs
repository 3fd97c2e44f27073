//! `allocate`: a width for each tensor under a budget.

use std::path::PathBuf;
use std::str::FromStr;

use super::Threads;
use super::adapters::Adapters;
use super::console::{Console, human_bytes, table};
use super::conversion::with_fault;
use super::failure::{Code, Failure, OrFail, Result};
use super::recipes::load_recipe;
use super::source::{encode, open_model, read_text};
use crate::allocate::{
    self, Allocation, Budget, Error, PROBE, Settings, TOKENS, Unit, WIDTHS, choose, measure,
    measure_or_read,
};
use crate::calibrate::Stats;
use crate::gemma::ModelPlan;

const NOTES: &str = "\
Every tensor with a palette of single weights in RECIPE gets a width; all else stays as RECIPE has it. What a width costs is \
measured: the error of its palettes, weighted by the statistics, times the KL divergence from the f32 model that the tensor \
alone causes when it is quantized at --probe bits, over the first --tokens tokens of the text. That is one forward pass for \
each tensor: seconds for a small model, hours for one of billions of weights. --fast runs none and takes the relative error of \
each tensor's output, times its share of the weights, as its cost: it knows nothing of what the model makes of that error.
The text should be one to calibrate with, not the one that is evaluated on. --measurements keeps what was measured, for another \
budget.";

#[derive(Debug, clap::Args)]
#[command(after_help = NOTES)]
#[command(group = clap::ArgGroup::new("spend").required(true).args(["budget", "bpw"]))]
pub struct Args {
    /// A local snapshot directory or a hub id (`google/gemma-4-E2B-it`, `...@REVISION`)
    model: String,

    #[command(flatten)]
    adapters: Adapters,

    /// A built-in recipe (see `recipes list`) or a path to a TOML file
    #[arg(short, long)]
    recipe: String,

    /// Statistics of the model's activations, made by `calibrate`
    #[arg(long, value_name = "FILE")]
    calibration: PathBuf,

    /// The text to measure sensitivities over
    #[arg(long, value_name = "FILE", required_unless_present = "fast")]
    text: Option<PathBuf>,

    /// Use the first N tokens of the text
    #[arg(long, value_name = "N", default_value_t = TOKENS)]
    tokens: usize,

    /// Bytes of all weight.bin together: `1100000000`, `1.1GB`, `1.1GiB`, `300MiB`, `900KB`
    #[arg(long, value_name = "BYTES")]
    budget: Option<Bytes>,

    /// Bits per weight, over all weights of the packages, palettes counted: as `sweep` reports them
    #[arg(long, value_name = "BITS")]
    bpw: Option<f64>,

    /// Widths to choose from
    #[arg(long, value_name = "BITS,...", value_delimiter = ',', default_values_t = WIDTHS)]
    widths: Vec<u8>,

    /// Width at which sensitivities are measured
    #[arg(long, value_name = "BITS", default_value_t = PROBE)]
    probe: u8,

    /// No forward passes: a tensor's cost is the relative error of its output, times its share of the weights
    #[arg(long, conflicts_with_all = ["text", "tokens"])]
    fast: bool,

    /// Keep what is measured in this file, and use what is there already
    #[arg(long, value_name = "FILE.json")]
    measurements: Option<PathBuf>,

    /// Name of the new recipe [default: `mixed-` and the bits per weight]
    #[arg(long)]
    name: Option<String>,

    /// The recipe to write
    #[arg(short, long, value_name = "RECIPE.toml")]
    output: PathBuf,

    /// Replace a file that is there already
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    threads: Threads,
}

/// A number of bytes as it is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bytes(u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        const UNITS: [(&str, f64); 7] = [
            ("KiB", 1024.0),
            ("MiB", 1048576.0),
            ("GiB", 1073741824.0),
            ("KB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("B", 1.0),
        ];
        let text = text.trim();
        let unit = UNITS.iter().find_map(|(unit, size)| {
            let number = text.strip_suffix(unit)?;
            Some((number.trim_end(), *size))
        });
        let (number, size) = unit.unwrap_or((text, 1.0));
        let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let bytes = number
            .parse::<f64>()
            .ok()
            .filter(|_| plain)
            .map(|n| n * size);
        match bytes.filter(|b| (1.0..u64::MAX as f64).contains(b)) {
            Some(bytes) => Ok(Self(bytes as u64)),
            None => Err("expected a number of bytes, with B, KB, MB, GB, KiB, MiB or GiB".into()),
        }
    }
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    allocate::check_free(&args.output, args.force).map_err(failure)?;
    let recipe = load_recipe(&args.recipe)?;
    let calibration = Stats::open(&args.calibration).or_invalid()?;
    let checkpoint = open_model(&args.model, &args.adapters, console)?;
    let plan = ModelPlan::new(checkpoint.config()).or_invalid()?;
    let ids = match &args.text {
        None => None,
        Some(path) => {
            let mut ids = encode(checkpoint.dir(), &read_text(path)?, false)?;
            ids.truncate(args.tokens);
            Some(ids)
        }
    };
    let settings = Settings {
        recipe: &recipe,
        calibration: &calibration,
        ids: ids.as_deref(),
        widths: &args.widths,
        probe: args.probe,
        threads: args.threads.threads,
    };
    let measured = match &args.measurements {
        Some(file) => measure_or_read(&checkpoint, &settings, file, console),
        None => measure(&checkpoint, &settings, console),
    };
    let budget = match (args.budget, args.bpw) {
        (Some(Bytes(bytes)), _) => Budget::Bytes(bytes),
        (None, bits) => Budget::BitsPerWeight(bits.unwrap_or(f64::NAN)),
    };
    let name = args.name.as_deref();
    let made = measured.and_then(|measured| choose(&plan, &recipe, &measured, budget, name));
    let made = made.map_err(failure)?;
    allocate::write(&made.recipe, &args.output, args.force).map_err(failure)?;
    print(&made, args, console)
}

fn failure(error: Error) -> Failure {
    let failure = Failure::from_error(Code::Invalid, &error);
    match &error {
        Error::Convert(source) => with_fault(failure, source),
        Error::Run(source) => match **source {
            crate::sweep::Error::Io { .. } | crate::sweep::Error::Json { .. } => {
                failure.with_code(Code::Unexpected)
            }
            _ => failure,
        },
        Error::Exists { .. } => failure.hint("--force replaces a file; or choose another --output"),
        Error::Width { .. } | Error::NoWidths => failure.hint("give other --widths or --probe"),
        Error::Unexpressed { .. } => failure.with_code(Code::Unexpected),
        _ => failure,
    }
}

fn print(made: &Allocation, args: &Args, console: &Console) -> Result<()> {
    if console.json() {
        let mut value = serde_json::to_value(made).or_unexpected()?;
        value["output"] = args.output.display().to_string().into();
        return console.json_value(&value);
    }
    let (cost, share) = match made.unit {
        Unit::Kl => (">KL alone", ">share of KL"),
        Unit::RelativeError => (">error", ">share of error"),
    };
    let header = [
        "tensor", cost, ">at bits", ">bits", "scheme", ">bytes", share,
    ];
    let row = |t: &allocate::Chosen| {
        vec![
            t.tensor.clone(),
            format!("{:.3e}", t.sensitivity),
            t.probe.map_or("-".into(), |bits| bits.to_string()),
            t.bits.to_string(),
            t.scheme.to_string(),
            t.bytes.to_string(),
            format!("{:.2}%", 100.0 * t.share),
        ]
    };
    let rows: Vec<Vec<String>> = made.tensors.iter().map(row).collect();
    console.print(&table(&header, &rows))?;
    for (name, size) in [(&made.from, made.given), (&made.name, made.size)] {
        console.line(&format!(
            "{name}: {} of weights, {:.4} bits per weight, {} {:.4e}",
            human_bytes(size.weight_bytes),
            size.bits_per_weight,
            match made.unit {
                Unit::Kl => "sum of KL",
                Unit::RelativeError => "mean relative error",
            },
            size.cost
        ))?;
    }
    console.line(&args.output.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_their_unit() {
        for (text, bytes) in [
            ("1", 1),
            ("12B", 12),
            ("1.5KB", 1500),
            ("2KiB", 2048),
            ("900 MB", 900_000_000),
            ("0.5MiB", 524_288),
            ("3GB", 3_000_000_000),
            ("1.1GiB", 1_181_116_006),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in [
            "", "GB", "1.1.1GB", "-1MB", "1e3", "0", "inf", "nan", "5 TB", "1G",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
