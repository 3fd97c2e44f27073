//! A bundle that is there, of which parts are kept.

use crate::bundle::error::{at, writing};
use crate::bundle::provenance::{RecipeRecord, TensorRecord};
use crate::bundle::{BundleConfig, Provenance, layout};
use crate::checkpoint::MergedAdapter;
use crate::convert::error::{Error, Result};
use crate::package::link_or_copy;
use crate::recipe::Recipe;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name and version of this converter: what decides the bytes beside checkpoint and recipe.
pub(in crate::convert) const TOOL: &str =
    concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// The recipe that the bundle in `dir` was made with, rules that were added included.
///
/// # Errors
/// There is no bundle, or its recipe is not one that this version reads.
pub fn bundle_recipe(dir: &Path) -> Result<Recipe> {
    let record = Provenance::read(dir)?.recipe;
    Ok(parse(&record)?)
}

fn parse(record: &RecipeRecord) -> crate::recipe::Result<Recipe> {
    Recipe::parse(
        &format!("{}, recipe {}", layout::PROVENANCE, record.name),
        &record.text,
    )
}

/// A bundle of which parts are kept. Each file is compared with what its provenance says when it is taken over.
#[derive(Debug)]
pub(in crate::convert) struct Base {
    pub dir: PathBuf,
    pub config: BundleConfig,
    pub provenance: Provenance,
    pub recipe: Recipe,
    pub packages: BTreeMap<String, Recipe>,
}

impl Base {
    pub fn read(dir: &Path) -> Result<Self> {
        let provenance = Provenance::read(dir)?;
        let packages = provenance.packages.iter();
        Ok(Self {
            dir: dir.to_path_buf(),
            config: BundleConfig::read(dir)?,
            recipe: parse(&provenance.recipe)?,
            packages: packages
                .map(|(name, record)| Ok((name.clone(), parse(record)?)))
                .collect::<Result<_>>()?,
            provenance,
        })
    }

    pub fn other(&self, what: &'static str, expected: String, got: String) -> Error {
        Error::OtherBundle {
            path: self.dir.clone(),
            what,
            expected,
            got,
        }
    }

    /// Another version may write other bytes.
    pub fn check_tool(&self) -> Result<()> {
        let tool = &self.provenance.tool;
        let got = format!("{} {}", tool.name, tool.version);
        match TOOL == got {
            true => Ok(()),
            false => Err(self.other("tool", TOOL.to_string(), got)),
        }
    }

    /// Whether the bundle was made with adapters of the same content, in the same order. The fingerprint says so too, but not
    /// what differs.
    pub fn check_adapters(&self, adapters: &[MergedAdapter]) -> Result<()> {
        let given: Vec<&str> = adapters
            .iter()
            .map(|a| a.about.weights_sha256.as_str())
            .collect();
        let there = self.provenance.adapters.iter();
        let there: Vec<&str> = there.map(|a| a.weights_sha256.as_str()).collect();
        let text = |list: &[&str]| match list {
            [] => "none".to_string(),
            list => list.join(", "),
        };
        match given == there {
            true => Ok(()),
            false => Err(self.other("adapters", text(&given), text(&there))),
        }
    }

    /// Whether the bundle was made from this checkpoint.
    pub fn check_checkpoint(&self, fingerprint: &str) -> Result<()> {
        let got = &self.provenance.checkpoint.sha256;
        match got == fingerprint {
            true => Ok(()),
            false => Err(self.other("checkpoint", fingerprint.to_string(), got.clone())),
        }
    }

    /// Takes the bundle's files below these first path components over into `dir`.
    pub fn take(&self, tops: &[String], dir: &Path) -> Result<()> {
        for file in self.provenance.files.keys().filter(|f| below(f, tops)) {
            let (from, to) = (self.dir.join(file), dir.join(file));
            if !from.is_file() {
                return Err(at(&from)(std::io::ErrorKind::NotFound.into()).into());
            }
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(writing(parent))?;
            }
            link_or_copy(&from, &to).map_err(writing(&to))?;
        }
        Ok(())
    }

    /// The bundle's files below these first path components, with their bytes.
    pub fn sizes(&self, tops: &[String]) -> Vec<(String, u64)> {
        let files = self.provenance.files.iter().filter(|(f, _)| below(f, tops));
        files.map(|(f, record)| (f.clone(), record.bytes)).collect()
    }

    /// The records of the tensors in these files or packages.
    pub fn tensors(&self, tops: &[String]) -> Vec<TensorRecord> {
        let tensors = self.provenance.tensors.iter();
        tensors.filter(|t| below(&t.file, tops)).cloned().collect()
    }
}

fn below(file: &str, tops: &[String]) -> bool {
    let top = file.split('/').next().unwrap_or(file);
    tops.iter().any(|t| t == top)
}
