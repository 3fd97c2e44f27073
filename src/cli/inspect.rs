//! `inspect`: what is in a safetensors file, a package, a bundle or a recipe.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::console::{Console, human_bytes, table};
use super::failure::{Code, Failure, OrFail, Result};
use super::package_view as view;
use super::recipes::load_recipe;
use super::source::{open_bundle, open_snapshot};
use crate::checkpoint::{Adapter, MapError, MappedSafetensors};
use crate::package::Package;

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").args(["ops", "weights", "mil"])))]
pub struct Args {
    /// A .safetensors file, a .mlpackage, a bundle, a recipe (.toml file or built-in name), a checkpoint directory, or the folder
    /// of an adapter
    path: PathBuf,

    /// How often each op type occurs
    #[arg(long)]
    ops: bool,

    /// Every weight: type, shape, storage, bytes
    #[arg(long)]
    weights: bool,

    /// The program as MIL text
    #[arg(long)]
    mil: bool,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let path = args.path.as_path();
    let of_package = args.ops || args.weights || args.mil;
    let extension = path.extension().and_then(|e| e.to_str());
    if path.is_dir() && path.join("Manifest.json").is_file() {
        let package = Package::open(path).or_invalid()?;
        return packages(&[(name_of(path), &package)], args, console);
    }
    if path.is_dir() && path.join("model_config.json").is_file() {
        return bundle(path, args, console);
    }
    if of_package {
        return Err(Failure::new(
            Code::Usage,
            format!(
                "{}: --ops, --weights and --mil are for packages and bundles",
                path.display()
            ),
        ));
    }
    if path.join("adapter_config.json").is_file() && !path.join("config.json").is_file() {
        return adapter(path, console);
    }
    if path.is_dir() {
        return checkpoint(path, console);
    }
    if extension == Some("safetensors") {
        return tensors(path, console);
    }
    if extension == Some("toml") || !(path.exists() || path.is_symlink()) {
        return recipe(path, console);
    }
    crate::checkpoint::check_file(path).or_invalid()?;
    Err(Failure::new(
        Code::Invalid,
        format!(
            "{}: expected a .safetensors file, a .mlpackage, a bundle, a checkpoint, an adapter or a recipe",
            path.display()
        ),
    ))
}

fn name_of(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn recipe(path: &Path, console: &Console) -> Result<()> {
    let recipe = load_recipe(&path.to_string_lossy())?;
    if console.json() {
        return console.json_value(&json!({
            "kind": "recipe", "name": recipe.name, "status": recipe.status,
            "description": recipe.description, "toml": recipe.source,
        }));
    }
    console.print(&recipe.source)
}

fn checkpoint(path: &Path, console: &Console) -> Result<()> {
    let checkpoint = open_snapshot(path, console)?;
    let names: Vec<&str> = checkpoint.names().collect();
    let rows: Vec<(String, Vec<usize>)> = names
        .iter()
        .map(|n| {
            (
                n.to_string(),
                checkpoint.shape(n).unwrap_or_default().to_vec(),
            )
        })
        .collect();
    let passed = checkpoint.passed_over();
    if console.json() {
        let tensors: Vec<Value> = rows
            .iter()
            .map(|(name, shape)| json!({ "name": name, "shape": shape }))
            .collect();
        return console.json_value(&json!({
            "kind": "checkpoint",
            "model_type": checkpoint.config().model_type,
            "text_bytes": checkpoint.text_bytes(),
            "passed_over": { "vision": passed.vision, "audio": passed.audio,
                             "shared_kv": passed.shared_kv, "other": passed.other },
            "unknown": checkpoint.unknown().map_or(0, |(count, _)| count),
            "quantization": checkpoint.quantization().map(|q| q.to_string()),
            "tensors": tensors,
        }));
    }
    let cells: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, shape)| vec![name, format!("{shape:?}")])
        .collect();
    let mut text = table(&["tensor", ">shape"], &cells);
    let _ = writeln!(
        text,
        "{}: {} text tensors, {}; passed over: {} vision, {} audio, {} unused K/V, {} other",
        checkpoint.config().model_type,
        cells.len(),
        human_bytes(checkpoint.text_bytes()),
        passed.vision,
        passed.audio,
        passed.shared_kv,
        passed.other
    );
    if let Some(quantization) = checkpoint.quantization() {
        let _ = writeln!(text, "weights: {quantization}");
    }
    if let Some((count, first)) = checkpoint.unknown() {
        let _ = writeln!(text, "unknown: {count}, the first is {first}");
    }
    console.print(&text)
}

/// An adapter, or why a folder holds none.
fn adapter(path: &Path, console: &Console) -> Result<()> {
    let adapter = Adapter::open(path).or_invalid()?;
    let about = adapter.about();
    if console.json() {
        return console.json_value(&json!({
            "kind": "adapter", "format": about.format.name(), "method": about.method.name(),
            "ranks": about.ranks, "factor": about.factor, "base_model": about.base_model,
            "tensors": about.tensors, "weights_sha256": about.weights_sha256,
            "config_sha256": about.config_sha256,
        }));
    }
    console.line(&format!(
        "adapter {}: {about}; {} tensors, sha256 {}",
        adapter.path().display(),
        about.tensors,
        about.weights_sha256
    ))
}

fn tensors(path: &Path, console: &Console) -> Result<()> {
    let file = MappedSafetensors::open(path).map_err(|e| match e {
        MapError::Open(e) => {
            let mut failure =
                Failure::new(Code::Invalid, format!("{}: cannot open", path.display()));
            failure.causes.push(e.to_string());
            failure
        }
        MapError::Map(e) => Failure::from_error(Code::Invalid, &e),
        MapError::Header(e) => {
            if let Err(known) = crate::checkpoint::check_file(path) {
                return Failure::from_error(Code::Invalid, &known);
            }
            let mut failure = Failure::from_error(Code::Invalid, &e);
            failure.causes.insert(0, failure.message.clone());
            failure.message = format!("{}: not a valid safetensors file", path.display());
            failure
        }
    })?;
    let metadata = file.metadata;
    let mut names = metadata.offset_keys();
    names.sort();
    let infos = names
        .iter()
        .filter_map(|n| metadata.info(n).map(|info| (n, info)));
    if console.json() {
        let tensors: Vec<Value> = infos
            .map(|(name, info)| {
                json!({ "name": name, "dtype": format!("{:?}", info.dtype), "shape": info.shape,
                        "bytes": info.data_offsets.1 - info.data_offsets.0 })
            })
            .collect();
        return console.json_value(&json!({ "kind": "safetensors", "tensors": tensors }));
    }
    let rows: Vec<Vec<String>> = infos
        .map(|(name, info)| {
            vec![
                name.clone(),
                format!("{:?}", info.dtype),
                format!("{:?}", info.shape),
                (info.data_offsets.1 - info.data_offsets.0).to_string(),
            ]
        })
        .collect();
    let mut text = table(&["tensor", "dtype", ">shape", ">bytes"], &rows);
    let _ = writeln!(
        text,
        "{} tensors, {}",
        rows.len(),
        human_bytes(metadata.data_len() as u64)
    );
    console.print(&text)
}

fn bundle(path: &Path, args: &Args, console: &Console) -> Result<()> {
    let bundle = open_bundle(path)?;
    let list: Vec<(String, &Package)> = bundle
        .packages()
        .map(|c| (c.name.clone(), &c.package))
        .collect();
    if args.ops || args.weights || args.mil {
        return packages(&list, args, console);
    }
    let provenance = bundle.provenance();
    if console.json() {
        return console.json_value(&json!({
            "kind": "bundle",
            "config": bundle.config(),
            "provenance": provenance,
            "packages": list.iter().map(|(n, p)| view::summary_json(n, p)).collect::<Vec<_>>(),
        }));
    }
    let config = bundle.config();
    let others: String = provenance
        .packages
        .iter()
        .map(|(package, recipe)| format!(" ({package}: {}, rebuilt)", recipe.name))
        .collect();
    let mut text = format!(
        "recipe {}{}, checkpoint {}, {} {}\n{} layers, hidden {}, vocabulary {}, context {}, window {}\n\n",
        provenance.recipe.name,
        others,
        provenance.checkpoint.sha256,
        provenance.tool.name,
        provenance.tool.version,
        config.num_layers,
        config.hidden_size,
        config.vocab_size,
        config.context_length,
        config.sliding_window,
    );
    for adapter in &provenance.adapters {
        let ranks: Vec<String> = adapter.ranks.iter().map(usize::to_string).collect();
        let _ = writeln!(
            text,
            "adapter {}: {} of {}, rank {}, {} tensors changed",
            adapter.weights_sha256,
            adapter.method,
            adapter.format,
            ranks.join("/"),
            adapter.tensors
        );
    }
    text.push_str(&super::grids::summary(&provenance.tensors));
    let rows: Vec<Vec<String>> = list.iter().map(|(n, p)| view::summary_row(n, p)).collect();
    text.push_str(&table(&view::SUMMARY, &rows));
    text.push('\n');
    let rows: Vec<Vec<String>> = provenance
        .files
        .iter()
        .map(|(name, file)| vec![name.clone(), file.bytes.to_string()])
        .collect();
    text.push_str(&table(&["file", ">bytes"], &rows));
    let total: u64 = provenance.files.values().map(|f| f.bytes).sum();
    let _ = writeln!(text, "{} files, {}", rows.len(), human_bytes(total));
    console.print(&text)
}

fn packages(list: &[(String, &Package)], args: &Args, console: &Console) -> Result<()> {
    if console.json() {
        let all: Vec<Value> = list
            .iter()
            .map(|(name, package)| {
                if args.ops {
                    view::ops_json(name, package)
                } else if args.weights {
                    view::weights_json(name, package)
                } else if args.mil {
                    json!({ "package": name, "mil": package.mil_text() })
                } else {
                    view::summary_json(name, package)
                }
            })
            .collect();
        return console.json_value(&json!({ "kind": "package", "packages": all }));
    }
    let mut text = String::new();
    for (name, package) in list {
        if list.len() > 1 && !args.mil {
            let _ = writeln!(text, "{name}");
        }
        let part = if args.ops {
            view::ops_text(package)
        } else if args.weights {
            view::weights_text(package)
        } else if args.mil {
            format!("// {name}\n{}", package.mil_text())
        } else {
            view::summary_text(package)
        };
        text.push_str(&part);
        if list.len() > 1 {
            text.push('\n');
        }
    }
    console.print(&text)
}
