//! The command line: one file per verb, arguments in, calls into the library, results out.
//!
//! stdout carries results only, as tables or (`--format json`) as JSON; progress and notes go to stderr. Exit codes are
//! those of [`failure::Code`], and 130 after Ctrl-C.

mod adapters;
mod allocate;
mod bench;
mod calibrate;
mod compile;
mod completions;
mod console;
mod conversion;
mod convert;
mod decode;
pub mod failure;
mod grids;
mod inspect;
mod interrupt;
mod pack;
mod package_view;
mod parity;
mod plan;
mod recipes;
mod source;
mod sweep;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use console::{Console, Format};
use failure::Failure;

/// Converts Gemma 4 checkpoints to Core ML bundles and checks them on the CPU.
#[derive(Debug, Parser)]
#[command(
    name = "gemma-coreml",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 ok, 1 unexpected, 2 usage, 3 input invalid, 4 a gate of parity or sweep failed, \
                  5 not enough memory or disk, 130 interrupted."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,

    /// How results are printed on stdout
    #[arg(long, global = true, value_enum, default_value = "human")]
    format: Format,

    /// No progress and no notes on stderr
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// More on stderr
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Predict what a conversion makes and takes: bytes, disk, memory, time; reads no matrix
    Plan(plan::Args),
    /// Convert a checkpoint to a bundle
    Convert(convert::Args),
    /// Measure what goes into the linear layers of a checkpoint, for quantizers
    Calibrate(calibrate::Args),
    /// Choose a palette width for each tensor under a byte budget, by what it was measured to cost
    Allocate(allocate::Args),
    /// Show what is in a .safetensors file, a package, a bundle or a recipe
    Inspect(inspect::Args),
    /// Generate text with a bundle on the CPU
    Decode(decode::Args),
    /// Measure how fast a bundle decodes, and how fast this machine could
    Bench(bench::Args),
    /// Compare a bundle with its checkpoint or with reference outputs
    Parity(parity::Args),
    /// Convert by several recipes and compare what they cost and lose
    Sweep(sweep::Args),
    /// Put a bundle into one reproducible zip archive
    Pack(pack::PackArgs),
    /// Unpack and check an archive made by `pack`
    Unpack(pack::UnpackArgs),
    /// Compile every package with Xcode's coremlcompiler (macOS)
    Compile(compile::Args),
    /// List, show and check recipes
    Recipes(recipes::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// Worker threads, for the verbs that compute.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Threads {
    /// Worker threads; 0 means one per core. Results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

/// Runs the program with these arguments (the first is the program's name) and gives its exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version to stdout, usage errors to stderr. Nothing can be done when that fails.
            let _ = error.print();
            return error.exit_code();
        }
    };
    interrupt::install();
    let console = Console::new(cli.format, cli.quiet, cli.verbose);
    let result = match cli.verb {
        Verb::Plan(args) => plan::run(&args, &console),
        Verb::Convert(args) => convert::run(&args, &console),
        Verb::Calibrate(args) => calibrate::run(&args, &console),
        Verb::Inspect(args) => inspect::run(&args, &console),
        Verb::Decode(args) => decode::run(&args, &console),
        Verb::Bench(args) => bench::run(&args, &console),
        Verb::Parity(args) => parity::run(&args, &console),
        Verb::Allocate(args) => allocate::run(&args, &console),
        Verb::Sweep(args) => sweep::run(&args, &console),
        Verb::Pack(args) => pack::pack(&args, &console),
        Verb::Unpack(args) => pack::unpack(&args, &console),
        Verb::Compile(args) => compile::run(&args, &console),
        Verb::Recipes(args) => recipes::run(&args, &console),
        Verb::Completions(args) => completions::run(&args, &console),
    };
    match result {
        Ok(()) => 0,
        Err(failure) => report(&console, &failure),
    }
}

fn report(console: &Console, failure: &Failure) -> i32 {
    console.failure(failure);
    failure.code as i32
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn flags_do_not_collide() {
        super::Cli::command().debug_assert();
    }
}
