//! Units built side by side: while one is brought to the disk and hashed, another is computed.

use super::journal::{Done, Journal};
use super::work::Build;
use crate::bundle::error::writing;
use crate::bundle::files;
use crate::convert::decide::Unit;
use crate::convert::error::{Error, Result};
use crate::convert::limits::LANES;
use crate::failpoint;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A unit and its name.
type Named<'u, 'a> = &'u (String, Unit<'a>);

/// What the lanes share.
struct Shared<'u, 'a> {
    /// What is left to do, the next one last.
    left: Vec<Named<'u, 'a>>,
    journal: Journal,
    /// The first failure; no unit is begun after it.
    failed: Option<Error>,
}

impl<'a> Build<'a> {
    /// Builds every unit that is not `resumed` into `content`, each recorded in the journal as soon as it is on the disk.
    /// Units over the weights of others come after those.
    pub(super) fn build_all(
        &self,
        units: &[(String, Unit<'a>)],
        resumed: &[String],
        content: &Path,
        mut journal: Journal,
    ) -> Result<Journal> {
        let (kept, left): (Vec<Named<'_, 'a>>, Vec<Named<'_, 'a>>) =
            units.iter().partition(|(name, _)| resumed.contains(name));
        for (name, unit) in kept {
            self.progress.advance(self.job.elements(name, unit));
        }
        let (heirs, own): (Vec<_>, Vec<_>) = left
            .into_iter()
            .partition(|(_, unit)| matches!(unit, Unit::Package(p) if p.weights_of.is_some()));
        for mut left in [own, heirs] {
            // The largest first, so that the lanes end together.
            left.sort_by_key(|(name, unit)| Reverse(self.job.elements(name, unit)));
            left.reverse();
            journal = self.side_by_side(left, content, journal)?;
        }
        Ok(journal)
    }

    fn side_by_side(
        &self,
        left: Vec<Named<'_, 'a>>,
        content: &Path,
        journal: Journal,
    ) -> Result<Journal> {
        let lanes = left.len().min(LANES);
        let shared = Mutex::new(Shared {
            left,
            journal,
            failed: None,
        });
        let lane = |lane: usize| {
            while let Some((name, unit)) = take(&shared) {
                let built = self.build(name, unit, content, &aside(lane));
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let noted = built.and_then(|done| Ok(shared.journal.append(done)?));
                if let Err(e) = noted {
                    shared.failed.get_or_insert(e);
                }
            }
        };
        std::thread::scope(|scope| {
            for i in 1..lanes {
                scope.spawn(move || lane(i));
            }
            lane(0);
        });
        let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        match shared.failed {
            None => Ok(shared.journal),
            Some(e) => Err(e),
        }
    }

    /// Builds a unit aside, brings it to the disk, and moves it into `content`.
    fn build(&self, name: &str, unit: &Unit<'_>, content: &Path, aside: &str) -> Result<Done> {
        let aside = content.with_file_name(aside);
        std::fs::create_dir(&aside).map_err(writing(&aside))?;
        failpoint::reach("unit.made");
        let write = || self.write(name, unit, content, &aside);
        let write = || self.pool.install(write);
        let tensors = self.stages.time(name, write)?;
        failpoint::reach("unit.written");
        let to_disk = || -> Result<BTreeMap<_, _>> {
            files::sync_tree(&aside)?;
            let records = files::list(&aside)?.into_iter();
            records
                .map(|file| Ok((file.clone(), files::record(&aside.join(&file))?)))
                .collect()
        };
        let records = self.stages.time(&format!("{name} to disk"), to_disk)?;
        failpoint::reach("unit.synced");
        self.check_kept(name, unit, &records)?;
        let entries = std::fs::read_dir(&aside).map_err(writing(&aside))?;
        for (i, entry) in entries.enumerate() {
            let entry = entry.map_err(writing(&aside))?;
            let target = content.join(entry.file_name());
            if i > 0 {
                failpoint::reach("unit.moving");
            }
            files::remove(&target)?;
            std::fs::rename(entry.path(), &target).map_err(writing(&target))?;
        }
        files::sync_dir(content)?;
        files::remove(&aside)?;
        failpoint::reach("unit.moved");
        Ok(Done {
            unit: name.to_string(),
            files: records,
            tensors,
        })
    }
}

/// The next unit, unless one has failed.
fn take<'u, 'a>(shared: &Mutex<Shared<'u, 'a>>) -> Option<Named<'u, 'a>> {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    match shared.failed {
        None => shared.left.pop(),
        Some(_) => None,
    }
}

/// Removes what an earlier run left of units it did not finish.
pub(super) fn clear(content: &Path) -> Result<()> {
    for lane in 0..LANES {
        files::remove(&content.with_file_name(aside(lane)))?;
    }
    Ok(())
}

/// The directory beside the content in which a lane builds.
fn aside(lane: usize) -> String {
    format!("unit{lane}")
}
