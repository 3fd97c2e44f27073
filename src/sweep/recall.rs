//! Recall sets: contexts with facts, and questions about them whose answers are single tokens.
//!
//! A line of the file is a JSON object: `ids` (a context), `asks` (`key`, `value`: the id that the context is followed by, and
//! the id that should come next) and, optionally, `kind`, by which results are also counted.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result, io};

/// One context with its questions.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RecallContext {
    /// What kind of context, as the file calls it.
    #[serde(default)]
    pub kind: String,
    /// The context.
    pub ids: Vec<u32>,
    /// Questions about it.
    pub asks: Vec<Ask>,
}

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Ask {
    /// The id that follows the context.
    pub key: u32,
    /// The id that should follow the key.
    pub value: u32,
}

/// Questions answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Answers that are right.
    pub right: usize,
    /// Questions.
    pub of: usize,
    /// Right answers and questions by kind.
    pub kinds: BTreeMap<String, [usize; 2]>,
}

impl Recall {
    /// Adds the answers to the questions of one context.
    pub fn add(&mut self, context: &RecallContext, answers: &[u32]) {
        let pairs = context.asks.iter().zip(answers);
        let right = pairs.filter(|(ask, answer)| ask.value == **answer).count();
        self.right += right;
        self.of += context.asks.len();
        if !context.kind.is_empty() {
            let kind = self.kinds.entry(context.kind.clone()).or_default();
            kind[0] += right;
            kind[1] += context.asks.len();
        }
    }

    /// Share of right answers; NaN when nothing was asked.
    pub fn share(&self) -> f64 {
        self.right as f64 / self.of as f64
    }
}

/// Reads a recall set.
///
/// # Errors
/// The file, or the first line that is not a context with questions.
pub fn read(path: &Path) -> Result<Vec<RecallContext>> {
    let text = std::fs::read_to_string(path).map_err(io(path))?;
    let fault = |line: usize, message: String| Error::Recall {
        path: path.to_path_buf(),
        line,
        message,
    };
    let mut contexts = Vec::new();
    for (i, line) in text
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty())
    {
        let context: RecallContext =
            serde_json::from_str(line).map_err(|e| fault(i + 1, e.to_string()))?;
        if context.ids.is_empty() || context.asks.is_empty() {
            return Err(fault(i + 1, "expected at least one id and one ask".into()));
        }
        contexts.push(context);
    }
    match contexts.is_empty() {
        true => Err(fault(1, "expected at least one context".into())),
        false => Ok(contexts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_faults_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recall.jsonl");
        let good = r#"{"kind":"far","ids":[1,2],"asks":[{"key":3,"value":4,"distance":7}]}"#;
        std::fs::write(&path, format!("{good}\n\n{good}\n")).unwrap();
        let contexts = read(&path).unwrap();
        assert_eq!(contexts.len(), 2);
        let mut recall = Recall::default();
        recall.add(&contexts[0], &[4]);
        recall.add(&contexts[1], &[5]);
        assert_eq!((recall.right, recall.of), (1, 2));
        assert_eq!(recall.kinds["far"], [1, 2]);
        for (text, line) in [("", 1), ("{\"ids\":[1],\"asks\":[]}", 1), ("\n{", 2)] {
            std::fs::write(&path, text).unwrap();
            match read(&path) {
                Err(Error::Recall { line: got, .. }) => assert_eq!(got, line, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
