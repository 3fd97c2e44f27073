//! Manifest.json: which files belong to the package.
//!
//! Four-space JSON with sorted keys and a newline at the end, as Core ML's own tools write it. Ids
//! look like UUIDs and are made of the content, so that equal packages are equal byte for byte.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{Error, Result};

/// The author that coremltools looks for.
const AUTHOR: &str = "com.apple.CoreML";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub file_format_version: String,
    pub item_info_entries: BTreeMap<String, Item>,
    pub root_model_identifier: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Item {
    pub author: String,
    pub description: String,
    pub name: String,
    /// Relative to `Data/`.
    pub path: String,
}

impl Manifest {
    /// The manifest of a package with this model and weights; `content` is a hash of both.
    pub fn new(content: &[u8; 32]) -> Self {
        let item = |name: &str, description: &str| Item {
            author: AUTHOR.to_owned(),
            description: description.to_owned(),
            name: name.to_owned(),
            path: format!("{AUTHOR}/{name}"),
        };
        let model = identifier(content, "model");
        Manifest {
            file_format_version: "1.0.0".to_owned(),
            item_info_entries: BTreeMap::from([
                (
                    model.clone(),
                    item("model.mlmodel", "CoreML Model Specification"),
                ),
                (
                    identifier(content, "weights"),
                    item("weights", "CoreML Model Weights"),
                ),
            ]),
            root_model_identifier: model,
        }
    }

    /// The text of the file.
    pub fn to_json(&self) -> Result<String> {
        let mut out = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
        let written = self.serialize(&mut serializer).map_err(|e| e.to_string());
        let text = written.and_then(|()| String::from_utf8(out).map_err(|e| e.to_string()));
        text.map(|text| text + "\n")
            .map_err(|message| Error::Manifest {
                path: "Manifest.json".into(),
                message,
            })
    }

    /// Reads and checks the manifest of the package in `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("Manifest.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io("cannot read", &path))?;
        let fault = |message: String| Error::Manifest {
            path: path.clone(),
            message,
        };
        let manifest: Manifest = serde_json::from_str(&text).map_err(|e| fault(e.to_string()))?;
        if manifest.file_format_version != "1.0.0" {
            return Err(fault(format!(
                "fileFormatVersion `{}`, expected `1.0.0`",
                manifest.file_format_version
            )));
        }
        for (id, item) in &manifest.item_info_entries {
            let inside = Path::new(&item.path)
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            if item.path.is_empty() || !inside {
                return Err(fault(format!(
                    "item {id}: path `{}` leaves Data/",
                    item.path
                )));
            }
            let file = dir.join("Data").join(&item.path);
            if !file.exists() {
                return Err(fault(format!("item {id}: there is no `{}`", item.path)));
            }
        }
        if manifest.root().is_none() {
            return Err(fault(format!(
                "rootModelIdentifier `{}` names no item",
                manifest.root_model_identifier
            )));
        }
        Ok(manifest)
    }

    fn root(&self) -> Option<&Item> {
        self.item_info_entries.get(&self.root_model_identifier)
    }

    /// The model file, relative to `Data/`.
    pub fn model_path(&self) -> PathBuf {
        self.root()
            .map(|item| item.path.clone())
            .unwrap_or_default()
            .into()
    }

    /// The weights directory, relative to `Data/`: the item that coremltools looks for.
    pub fn weights_path(&self) -> Option<PathBuf> {
        let mut items = self.item_info_entries.values();
        let item = items.find(|item| item.name == "weights" && item.author == AUTHOR)?;
        Some(PathBuf::from(&item.path))
    }
}

/// A version-8 UUID (custom content) of the hash and a name.
fn identifier(content: &[u8; 32], name: &str) -> String {
    let hash = Sha256::new()
        .chain_update(content)
        .chain_update(name)
        .finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let cuts = [0, 8, 12, 16, 20, 32];
    let groups: Vec<&str> = cuts.windows(2).map(|w| &hex[w[0]..w[1]]).collect();
    groups.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_text() {
        let text = Manifest::new(&[7; 32]).to_json().unwrap();
        assert!(text.starts_with("{\n    \"fileFormatVersion\": \"1.0.0\",\n    \"itemInfo"));
        assert!(text.ends_with("\"\n}\n"));
        let model = identifier(&[7; 32], "model");
        assert_eq!(model.len(), 36);
        assert_eq!(model.as_bytes()[14], b'8');
        assert!(text.contains(&format!("\"rootModelIdentifier\": \"{model}\"")));
        assert_eq!(text, Manifest::new(&[7; 32]).to_json().unwrap());
    }
}
