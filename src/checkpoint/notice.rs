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
    /// The config has keys and values rounded in the cache.
    CacheNotRounded {
        /// The snapshot directory.
        dir: PathBuf,
    },
    /// Adapters are merged into matrices that were trained to be rounded.
    OffGrid {
        /// Their names, the last of many left out.
        tensors: String,
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
            Self::CacheNotRounded { dir } => write!(
                f,
                "{}: config.json rounds keys and values in the cache (`kv_cache_scheme`), which is not done",
                dir.display()
            ),
            Self::OffGrid { tensors } => write!(
                f,
                "the checkpoint was trained to be rounded, and with an adapter merged these are no longer on its grid: {tensors}"
            ),
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
