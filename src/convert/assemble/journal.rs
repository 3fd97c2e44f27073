//! What of a conversion is finished, so that an interrupted one goes on.
//!
//! The journal is a text file, one JSON object a line: first `{"journal":1,"key":...}`, then one [`Done`] per finished
//! unit, written and synced when the unit's files are on the disk and in place. A last line cut short by a crash is dropped.
//! A journal with another key belongs to another conversion.

use crate::bundle::error::{Result, writing};
use crate::bundle::files;
use crate::bundle::provenance::{FileRecord, TensorRecord};
use crate::failpoint;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Version of the journal's form.
const FORMAT: u32 = 1;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    journal: u32,
    key: String,
}

/// A finished unit: its files are in place, with this content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Done {
    pub unit: String,
    pub files: BTreeMap<String, FileRecord>,
    pub tensors: Vec<TensorRecord>,
}

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    done: Vec<Done>,
}

impl Journal {
    /// Opens the journal at `path` if it has this `key`; `None` when there is none or it has another.
    pub fn resume(path: &Path, key: &str) -> Result<Option<Self>> {
        let Ok(text) = std::fs::read(path) else {
            return Ok(None);
        };
        let head = Head {
            journal: FORMAT,
            key: key.to_string(),
        };
        let mut lines = text.split_inclusive(|&b| b == b'\n');
        match lines.next().and_then(complete::<Head>) {
            Some(found) if found == head => {}
            _ => return Ok(None),
        }
        let mut done: Vec<Done> = Vec::new();
        let mut length = text.iter().position(|&b| b == b'\n').map_or(0, |n| n + 1);
        for line in lines {
            let Some(unit) = complete::<Done>(line) else {
                break;
            };
            // A unit whose files were not as recorded has been built again.
            done.retain(|earlier| earlier.unit != unit.unit);
            done.push(unit);
            length += line.len();
        }
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(writing(path))?;
        file.set_len(length as u64).map_err(writing(path))?;
        Ok(Some(Self {
            path: path.to_path_buf(),
            file,
            done,
        }))
    }

    /// Begins a journal.
    pub fn create(path: &Path, key: &str) -> Result<Self> {
        let file = File::create(path).map_err(writing(path))?;
        let mut journal = Self {
            path: path.to_path_buf(),
            file,
            done: Vec::new(),
        };
        journal.line(&Head {
            journal: FORMAT,
            key: key.to_string(),
        })?;
        Ok(journal)
    }

    /// Finished units in the order they were finished.
    pub fn done(&self) -> &[Done] {
        &self.done
    }

    /// Records a finished unit, through to the disk.
    pub fn append(&mut self, unit: Done) -> Result<()> {
        self.line(&unit)?;
        self.done.push(unit);
        Ok(())
    }

    /// Keeps only units whose files in `content` are exactly those recorded, and removes everything else there.
    pub fn verify(&mut self, content: &Path) -> Result<()> {
        let mut kept = BTreeSet::new();
        let found = files::list(content)?;
        self.done.retain(|unit| {
            let good = intact(content, unit, &found);
            if good {
                kept.extend(unit.files.keys().map(|f| top(f).to_string()));
            }
            good
        });
        for entry in std::fs::read_dir(content).map_err(writing(content))? {
            let entry = entry.map_err(writing(content))?;
            if !kept.contains(entry.file_name().to_string_lossy().as_ref()) {
                files::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).map_err(|e| writing(&self.path)(e.into()))?;
        line.push(b'\n');
        // In two pieces, so that a test can stop between them.
        let (first, rest) = line.split_at(line.len() / 2);
        let mut write = |piece| self.file.write_all(piece).map_err(writing(&self.path));
        write(first)?;
        failpoint::reach("journal.torn");
        write(rest)?;
        self.file.sync_all().map_err(writing(&self.path))?;
        failpoint::reach("journal.line");
        Ok(())
    }
}

/// A whole line that parses.
fn complete<T: serde::de::DeserializeOwned>(line: &[u8]) -> Option<T> {
    serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
}

/// First component of a relative path.
fn top(file: &str) -> &str {
    file.split('/').next().unwrap_or(file)
}

/// Whether the unit's files, and no others under the same first components, are there as recorded.
fn intact(content: &Path, unit: &Done, found: &[String]) -> bool {
    let tops: BTreeSet<&str> = unit.files.keys().map(|f| top(f)).collect();
    found
        .iter()
        .filter(|f| tops.contains(top(f)))
        .all(|f| unit.files.contains_key(f))
        && unit
            .files
            .iter()
            .all(|(name, record)| files::verify(&content.join(name), record).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(content: &Path, name: &str) -> Done {
        std::fs::create_dir_all(content.join(name)).unwrap();
        std::fs::write(content.join(name).join("f"), name).unwrap();
        let record = files::record(&content.join(name).join("f")).unwrap();
        Done {
            unit: name.into(),
            files: BTreeMap::from([(format!("{name}/f"), record)]),
            tensors: vec![],
        }
    }

    #[test]
    fn goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let (path, content) = (dir.path().join("journal"), dir.path().join("content"));
        let mut journal = Journal::create(&path, "k").unwrap();
        let (a, b) = (unit(&content, "a"), unit(&content, "b"));
        journal.append(a.clone()).unwrap();
        journal.append(b.clone()).unwrap();
        drop(journal);
        assert!(Journal::resume(&path, "other").unwrap().is_none());
        // The crash came in the middle of a line: it and what follows is gone, and the next line stands alone.
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 9]).unwrap();
        let mut journal = Journal::resume(&path, "k").unwrap().unwrap();
        assert_eq!(journal.done(), std::slice::from_ref(&a));
        journal.append(b.clone()).unwrap();
        // A unit that was built again counts once.
        journal.append(a.clone()).unwrap();
        let journal = Journal::resume(&path, "k").unwrap().unwrap();
        assert_eq!(journal.done(), [b, a]);
    }

    #[test]
    fn believes_files_only() {
        let dir = tempfile::tempdir().unwrap();
        let (path, content) = (dir.path().join("journal"), dir.path().join("content"));
        let mut journal = Journal::create(&path, "k").unwrap();
        for name in ["good", "changed", "gone", "extra"] {
            journal.append(unit(&content, name)).unwrap();
        }
        std::fs::write(content.join("changed/f"), "changeD").unwrap();
        std::fs::remove_file(content.join("gone/f")).unwrap();
        std::fs::write(content.join("extra/g"), "").unwrap();
        std::fs::write(content.join("stray"), "").unwrap();
        journal.verify(&content).unwrap();
        assert_eq!(
            journal
                .done()
                .iter()
                .map(|d| d.unit.as_str())
                .collect::<Vec<_>>(),
            ["good"]
        );
        assert_eq!(files::list(&content).unwrap(), ["good/f"]);
    }

    #[test]
    fn anything_else_is_no_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        for text in [
            "",
            "{}",
            "{}\n",
            "\n",
            "{\"journal\":1,\"key\":\"k\"}",
            "{\"journal\":2,\"key\":\"k\"}\n",
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(Journal::resume(&path, "k").unwrap().is_none(), "{text}");
        }
    }
}
