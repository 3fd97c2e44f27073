//! `pack` and `unpack`: a bundle as one reproducible zip archive.

use std::path::PathBuf;

use super::console::{Console, human_bytes};
use super::failure::{Code, Failure, Result};
use super::source::check_place;
use crate::bundle::Error;
use crate::bundle::archive::{self, ArchiveReport};

#[derive(Debug, clap::Args)]
pub struct PackArgs {
    /// The bundle; compiled models in it stay out of the archive
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
    check_place(&args.bundle)?;
    let packed = archive::pack(&args.bundle, &args.output, false, console);
    report(&packed.map_err(failure)?, console)
}

pub fn unpack(args: &UnpackArgs, console: &Console) -> Result<()> {
    let unpacked = archive::unpack(&args.archive, &args.output, false, console);
    report(&unpacked.map_err(failure)?, console)
}

fn failure(error: Error) -> Failure {
    let code = match error {
        Error::Io { .. } => Code::Unexpected,
        _ => Code::Invalid,
    };
    let failure = Failure::from_error(code, &error);
    match error {
        Error::Exists { .. } => failure.replace_hint("choose another --output, or remove it first"),
        Error::Foreign { .. } => failure
            .hint("an archive holds the files that provenance.json lists: keep others elsewhere"),
        Error::Content { .. } => failure.hint("the file was changed or damaged: convert again"),
        Error::Archive { .. } => failure.hint("fetch the archive again, or pack the bundle again"),
        Error::DiskFull { .. } => failure.replace_hint("free some space, or choose another disk"),
        _ => failure.hint("convert again, or unpack the bundle's archive again"),
    }
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
