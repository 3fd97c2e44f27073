//! `pack` and `unpack`: a bundle as one reproducible zip archive.

use std::path::PathBuf;

use super::console::{Console, human_bytes};
use super::failure::{OrFail, Result};
use crate::bundle::archive::{self, ArchiveReport};

#[derive(Debug, clap::Args)]
pub struct PackArgs {
    /// The bundle
    bundle: PathBuf,

    /// The archive to write; it must not exist
    #[arg(short, long, value_name = "FILE.zip")]
    output: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct UnpackArgs {
    /// The archive
    archive: PathBuf,

    /// The bundle to write; it must not exist
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

pub fn pack(args: &PackArgs, console: &Console) -> Result<()> {
    report(
        &archive::pack(&args.bundle, &args.output, false, console).or_invalid()?,
        console,
    )
}

pub fn unpack(args: &UnpackArgs, console: &Console) -> Result<()> {
    report(
        &archive::unpack(&args.archive, &args.output, false, console).or_invalid()?,
        console,
    )
}

fn report(report: &ArchiveReport, console: &Console) -> Result<()> {
    if console.json() {
        return console.json_value(report);
    }
    console.line(&format!(
        "{} ({} files, {})",
        report.output.display(),
        report.files,
        human_bytes(report.bytes)
    ))
}
