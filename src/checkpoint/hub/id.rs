//! What a model argument names on the hub.

use super::{Error, Result};

/// Longest part of a repository's name, as the hub has it.
const LONGEST_NAME: usize = 96;
/// Longest revision that is taken; it becomes a file name.
const LONGEST_REVISION: usize = 200;

/// `org/name` and a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubId {
    pub org: String,
    pub name: String,
    pub revision: String,
}

impl HubId {
    pub fn parse(model: &str) -> Result<Self> {
        let (repo, revision) = model.split_once('@').unwrap_or((model, "main"));
        match repo.split_once('/') {
            Some((org, name)) if is_repo(org, name) && is_revision(revision) => Ok(Self {
                org: org.to_string(),
                name: name.to_string(),
                revision: revision.to_string(),
            }),
            _ => Err(Error::BadModelId {
                model: model.to_string(),
            }),
        }
    }

    pub fn repo(&self) -> String {
        format!("{}/{}", self.org, self.name)
    }

    /// True for a full commit hash, which always means the same files.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}@{}", self.org, self.name, self.revision)
    }
}

/// Whether a text is a full commit hash, in the hub's lower case.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The hub's rules for names: letters, digits, `-`, `_`, `.`; no `--` (the cache writes `/` so), no `..`, no `.git`.
fn is_repo(org: &str, name: &str) -> bool {
    let part_ok = |part: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '_';
        part.starts_with(inner)
            && part.ends_with(inner)
            && part.chars().all(|c| inner(c) || c == '-' || c == '.')
            && part.len() <= LONGEST_NAME
            && !part.contains("--")
            && !part.contains("..")
    };
    part_ok(org) && part_ok(name) && !name.ends_with(".git")
}

/// Names of branches and tags, `refs/pr/N` and commits, as git allows them and as a path below `refs/` may have them.
fn is_revision(revision: &str) -> bool {
    let char_ok = |c: char| {
        !c.is_control()
            && !c.is_whitespace()
            && !matches!(
                c,
                '~' | '^' | ':' | '?' | '*' | '[' | '\\' | '"' | '<' | '>' | '|'
            )
    };
    let part_ok =
        |part: &str| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with(".lock");
    revision.len() <= LONGEST_REVISION
        && revision.chars().all(char_ok)
        && revision.split('/').all(part_ok)
        && !revision.contains("..")
        && !revision.contains("@{")
        && !revision.ends_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids() {
        for (text, repo, revision) in [
            ("google/gemma-4-E2B-it", "google/gemma-4-E2B-it", "main"),
            ("a/b.c@refs/pr/3", "a/b.c", "refs/pr/3"),
            ("a/b@v1.0+cu#2", "a/b", "v1.0+cu#2"),
            ("a/b@feature/größe@2", "a/b", "feature/größe@2"),
        ] {
            let id = HubId::parse(text).expect("an id");
            assert_eq!((id.repo().as_str(), id.revision.as_str()), (repo, revision));
        }
        let long = format!("a/{}", "b".repeat(97));
        for bad in [
            "",
            "gemma",
            "/abs/path",
            "./here",
            "../up",
            "a/b/c",
            "a/..",
            "a/b@",
            "a/b@../x",
            "a/b@x/../y",
            "a b/c",
            "a/b@x y",
            "-a/b",
            "~/m",
            "a/b--c",
            "a/b.git",
            "a/b-",
            "a/b@x.lock",
            "a/b@.x",
            "a/b@x\u{1b}y",
            "a/b@x\\y",
            "a/bü",
            &long,
        ] {
            assert!(
                matches!(HubId::parse(bad), Err(Error::BadModelId { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn only_a_whole_lower_case_hash_is_a_commit() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert!(is_commit(commit));
        for other in [&commit[1..], &commit.to_uppercase(), "main", ""] {
            assert!(!is_commit(other), "{other}");
        }
    }
}
