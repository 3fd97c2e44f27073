//! What a user should know about a snapshot that is read all the same.

use std::fmt;
use std::path::PathBuf;

/// Something in a snapshot's folder that has no part in what is read, though one may think so. Its text is one sentence or
/// two, for a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// An adapter lies beside the full weights.
    AdapterNotApplied {
        /// The adapter's weights, or its config where there are none.
        path: PathBuf,
        /// `base_model_name_or_path` of its config.
        base: Option<String>,
    },
    /// A head in the files differs from the embedding table, though the config ties them.
    OwnHead {
        /// Its full name.
        tensor: String,
    },
    /// Model weights, or an index, that lie beside those that are read.
    WeightsNotRead {
        /// The snapshot directory.
        dir: PathBuf,
        /// Names of the files that are read.
        read: String,
        /// Names of those that are not.
        unread: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AdapterNotApplied { path, base } => {
                write!(f, "{}: an adapter", path.display())?;
                if let Some(base) = base {
                    write!(f, " for {base}")?;
                }
                f.write_str(
                    " lies beside the weights and is not applied to them; `--adapter` applies it",
                )
            }
            Self::OwnHead { tensor } => write!(
                f,
                "{tensor} differs from the embedding table, though config.json ties them: it is used as the head"
            ),
            Self::WeightsNotRead { dir, read, unread } => {
                write!(
                    f,
                    "{}: weights are read from {read}, not from {unread}",
                    dir.display()
                )
            }
        }
    }
}
