//! `adapter_config.json`: what an adapter says about itself. PEFT's settings are read in `peft`, mlx-lm's here.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::super::error::{Error as CheckpointError, Result};
use super::super::fields::{Fields, parse_json, shorten};
use super::super::pointer::check_file;
use super::notice::AdapterNotice;
use super::patterns::Modules;
use super::peft;
use super::settings::{
    AdapterFormat, AdapterMethod, Config, MAX_RANK, Scaling, Targets, number, setting, strings,
};
use super::stored::hex;

/// Reads and checks the file.
pub(super) fn read(path: &Path) -> Result<Config> {
    check_file(path)?;
    let bytes = std::fs::read(path).map_err(|source| CheckpointError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    let root = parse_json(path, &bytes)?;
    let top = Fields::top(path, &root)?;
    let sha256 = hex(&Sha256::digest(&bytes));
    if top.get("peft_type").is_some() {
        return peft::read(path, &top, sha256);
    }
    let mlx = ["fine_tune_type", "lora_parameters"];
    if mlx.iter().any(|name| top.get(name).is_some()) {
        return mlx_lm(path, &top, sha256);
    }
    let expected = "\"LORA\" (PEFT), or `fine_tune_type` or `lora_parameters` (mlx-lm)";
    Err(top.missing("peft_type", expected))
}
/// Settings of mlx-lm, which keeps all those of the training beside those of the adapter.
fn mlx_lm(path: &Path, top: &Fields<'_>, sha256: String) -> Result<Config> {
    let method = match top.string_opt("fine_tune_type")? {
        None | Some("lora") => AdapterMethod::Lora,
        Some("dora") => AdapterMethod::Dora,
        Some("full") => AdapterMethod::Full,
        Some(other) => {
            return Err(setting(path, "fine_tune_type", other, "lora, dora and full are").into());
        }
    };
    let mut notices = Vec::new();
    let mut modules = None;
    let scaling = match (method, top.object("lora_parameters")?) {
        (AdapterMethod::Full, _) => Scaling::Plain {
            rank: 0,
            scale: 0.0,
        },
        (_, None) => return Err(top.missing("lora_parameters", "an object with rank and scale")),
        (_, Some(parameters)) => {
            if let Some(alpha) = parameters.get("alpha") {
                notices.push(AdapterNotice::Setting {
                    path: path.to_path_buf(),
                    field: "lora_parameters.alpha".into(),
                    got: shorten(alpha),
                    meaning: "not used, as in mlx-lm: `scale` alone is the factor",
                });
            }
            if parameters.get("keys").is_some() {
                modules = Some(Modules::Ends(strings(&parameters, "keys")?));
            }
            Scaling::Plain {
                rank: parameters.count("rank", MAX_RANK)?,
                scale: number(&parameters, "scale")?
                    .ok_or_else(|| parameters.missing("scale", "a number"))?,
            }
        }
    };
    Ok(Config {
        path: path.to_path_buf(),
        sha256,
        format: AdapterFormat::MlxLm,
        method,
        base_model: top.string_opt("model")?.map(str::to_string),
        scaling,
        targets: Targets {
            modules,
            ..Targets::default()
        },
        tokens: Vec::new(),
        tied: true,
        notices,
    })
}
