//! `compile`: `xcrun coremlcompiler compile` over every package of a bundle.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use super::console::Console;
use super::failure::{Code, Failure, OrFail, Result};
use super::source::open_bundle;
use crate::progress::Progress;

const NO_XCRUN: &str = "coremlcompiler comes with Xcode on macOS: run `gemma-coreml pack BUNDLE -o FILE.zip`, copy the \
                        archive to a Mac with Xcode, and run `gemma-coreml compile` there; or load the .mlpackage \
                        directories in an app, which compiles them on the device";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The bundle
    bundle: PathBuf,

    /// Where the .mlmodelc directories go [default: into the bundle]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Compiled {
    package: String,
    compiled: PathBuf,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let bundle = open_bundle(&args.bundle)?;
    let output = args.output.as_ref().unwrap_or(&args.bundle);
    std::fs::create_dir_all(output).or_unexpected()?;
    let mut done = Vec::new();
    for chunk in bundle.packages() {
        console.begin(&format!("compiling {}", chunk.name), 0);
        let compiled = compile(&chunk.name, &chunk.path, output)?;
        console.end();
        done.push(Compiled {
            package: chunk.name.clone(),
            compiled,
        });
    }
    if console.json() {
        return console.json_value(&done);
    }
    for one in &done {
        console.line(&one.compiled.display().to_string())?;
    }
    Ok(())
}

fn compile(name: &str, package: &Path, output: &Path) -> Result<PathBuf> {
    let result = Command::new("xcrun")
        .args(["coremlcompiler", "compile"])
        .arg(package)
        .arg(output)
        .stdin(Stdio::null())
        .output();
    let run = match result {
        Ok(run) => run,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Failure::new(Code::Invalid, "`xcrun` was not found").hint(NO_XCRUN));
        }
        Err(e) => return Err(Failure::from_error(Code::Unexpected, &e)),
    };
    if !run.status.success() {
        let mut failure = Failure::new(
            Code::Invalid,
            format!("coremlcompiler failed on package `{name}` ({})", run.status),
        );
        for stream in [&run.stderr, &run.stdout] {
            let text = String::from_utf8_lossy(stream);
            failure.causes.extend(text.lines().map(str::to_string));
        }
        let text = failure.causes.join("\n");
        if text.contains("unable to find utility") {
            failure = failure.hint(
                "install Xcode (the command line tools alone lack coremlcompiler) and select it with `xcode-select`",
            );
        }
        return Err(failure);
    }
    let stem = package.file_stem().unwrap_or(name.as_ref());
    let compiled = output.join(stem).with_extension("mlmodelc");
    if !compiled.is_dir() {
        return Err(Failure::new(
            Code::Unexpected,
            format!(
                "coremlcompiler reported success but there is no {}",
                compiled.display()
            ),
        ));
    }
    Ok(compiled)
}
