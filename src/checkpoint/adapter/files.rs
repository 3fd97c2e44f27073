//! Where the two files of an adapter are.

use std::path::{Path, PathBuf};

use super::super::error::{AdapterError as Error, Error as CheckpointError, Result};

/// The settings of an adapter, PEFT's and mlx-lm's alike.
pub(in crate::checkpoint) const CONFIG: &str = "adapter_config.json";
/// Weights as PEFT names them.
pub(in crate::checkpoint) const PEFT_WEIGHTS: &str = "adapter_model.safetensors";
/// Weights as mlx-lm names them.
pub(in crate::checkpoint) const MLX_WEIGHTS: &str = "adapters.safetensors";
/// Weights of PEFT in a format that runs code when it is read.
pub(in crate::checkpoint) const PICKLED: &str = "adapter_model.bin";
/// An adapter's folder.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    /// Settings.
    pub config: PathBuf,
    /// The weights, where they were named rather than their folder.
    weights: Option<PathBuf>,
}

impl Place {
    /// Finds the adapter that `path` means: its folder, a folder with one adapter in it, or its weights.
    pub fn find(path: &Path) -> Result<Self> {
        let Ok(about) = std::fs::metadata(path) else {
            return Err(place(
                path,
                "not there",
                "the folder of an adapter",
                "an adapter is a folder with adapter_config.json and its weights, or the hub id of one",
            ));
        };
        match about.is_dir() {
            true => Self::of_dir(path),
            false => Self::of_file(path),
        }
    }

    fn of_file(path: &Path) -> Result<Self> {
        let dir = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == CONFIG {
            return Self::of_dir(dir);
        }
        if !name.ends_with(".safetensors") {
            let found = match name.ends_with(".gguf") {
                true => "a GGUF file".to_string(),
                false => format!("the file {name}"),
            };
            return Err(place(path, &found, SAFETENSORS, HINT_CONVERT));
        }
        let config = dir.join(CONFIG);
        if !config.is_file() {
            return Err(no_config(
                dir,
                &format!("{name} without {CONFIG} beside it"),
            ));
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            config,
            weights: Some(path.to_path_buf()),
        })
    }

    fn of_dir(dir: &Path) -> Result<Self> {
        let config = dir.join(CONFIG);
        if config.is_file() {
            return Ok(Self {
                dir: dir.to_path_buf(),
                config,
                weights: None,
            });
        }
        if let Some(weights) = [PEFT_WEIGHTS, MLX_WEIGHTS, PICKLED]
            .iter()
            .find(|name| dir.join(name).is_file())
        {
            return Err(no_config(dir, &format!("{weights} without {CONFIG}")));
        }
        let inside = folders_with_adapters(dir)?;
        match inside.as_slice() {
            [one] => Self::of_dir(one),
            [] if dir.join("config.json").is_file() => Err(place(
                dir,
                "a checkpoint",
                "the folder of an adapter",
                "convert a merged or fully trained checkpoint as the model itself, without --adapter",
            )),
            [] => Err(no_config(dir, &format!("no {CONFIG}"))),
            several => {
                let names = several.iter().filter_map(|d| d.file_name());
                let names: Vec<_> = names.map(|n| n.to_string_lossy().into_owned()).collect();
                Err(place(
                    dir,
                    &format!("{} adapters ({})", names.len(), names.join(", ")),
                    "one adapter",
                    "give the folder of the one that is meant",
                ))
            }
        }
    }

    /// The file of the weights, `name` where none was given.
    pub fn weights(&self, name: &str) -> Result<PathBuf> {
        if let Some(given) = &self.weights {
            return Ok(given.clone());
        }
        let path = self.dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let pickled = self.dir.join(PICKLED);
        match name == PEFT_WEIGHTS && pickled.is_file() {
            true => Err(place(&pickled, "a PyTorch file", SAFETENSORS, HINT_CONVERT)),
            false => Err(place(
                &self.dir,
                &format!("{CONFIG} without {name}"),
                name,
                "fetch or copy the whole folder of the adapter",
            )),
        }
    }
}

const SAFETENSORS: &str = "weights in safetensors";
const HINT_CONVERT: &str =
    "load the adapter with PEFT and call save_pretrained, which writes adapter_model.safetensors";

fn place(path: &Path, found: &str, expected: &str, hint: &str) -> CheckpointError {
    let error = Error::Place {
        path: path.to_path_buf(),
        found: found.to_string(),
        expected: expected.to_string(),
        hint: hint.to_string(),
    };
    error.into()
}

fn no_config(dir: &Path, found: &str) -> CheckpointError {
    place(
        dir,
        found,
        "the folder of an adapter of PEFT or mlx-lm",
        "such a folder holds adapter_config.json and adapter_model.safetensors (PEFT) or adapters.safetensors (mlx-lm)",
    )
}

/// Folders right below `dir` that hold an adapter's config, in name order.
fn folders_with_adapters(dir: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| CheckpointError::Io {
        path: dir.to_path_buf(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.join(CONFIG).is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
