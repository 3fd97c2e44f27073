//! What the machine has left: disk and memory.

use super::error::{Error, Result};
use crate::bundle::files;
use std::path::{Path, PathBuf};

/// What there is room for, in bytes; `None` where nobody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// Free on the disk of the output for an ordinary user.
    pub disk: Option<u64>,
    /// Memory that can be had without swapping.
    pub memory: Option<u64>,
}

impl Room {
    /// What there is now for an output at `path`: the free space of the file system that will hold it; the least of the
    /// system's available memory and what control groups leave (Linux).
    pub fn measure(path: &Path) -> Self {
        let memory = [available(), control_groups(Path::new("/"))];
        Room {
            disk: path
                .ancestors()
                .skip(1)
                .find(|dir| dir.is_dir())
                .and_then(files::free_space),
            memory: memory.into_iter().flatten().min(),
        }
    }

    /// Refuses what will not fit: an output at `path` that needs these bytes of disk and of memory.
    ///
    /// # Errors
    /// [`Error::Space`], [`Error::Memory`].
    pub(super) fn check(&self, path: &Path, disk: u64, memory: u64) -> Result<()> {
        let path = path.to_path_buf();
        match (self.disk, self.memory) {
            (Some(free), _) if free < disk => {
                let needed = disk;
                Err(Error::Space { path, needed, free })
            }
            (_, Some(free)) if free < memory => {
                let needed = memory;
                Err(Error::Memory { path, needed, free })
            }
            _ => Ok(()),
        }
    }
}

/// `MemAvailable` of the system.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kilobytes = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    kilobytes.checked_mul(1024)
}

/// What the memory limits of the process's control groups leave, cached files counted as free: the least of all groups from
/// its own to the root. `root` stands for `/`.
fn control_groups(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut least = None;
    for line in text.lines() {
        // `0::/path` (version 2) or `7:memory:/path` (version 1).
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let names = match controllers {
            "" => VERSION_2,
            _ if controllers.split(',').any(|c| c == "memory") => VERSION_1,
            _ => continue,
        };
        let mounted = root.join("sys/fs/cgroup").join(names.mounted);
        let own = mounted.join(path.trim_start_matches('/'));
        let groups = own.ancestors().take_while(|g| g.starts_with(&mounted));
        let left = groups.filter_map(|group| left(group, &names)).min();
        least = [least, left].into_iter().flatten().min();
    }
    least
}

/// Files of a control group.
struct Names {
    mounted: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Keys of `memory.stat` that count cached files.
    cached: [&'static str; 2],
}

const VERSION_2: Names = Names {
    mounted: "",
    limit: "memory.max",
    used: "memory.current",
    cached: ["inactive_file", "active_file"],
};

const VERSION_1: Names = Names {
    mounted: "memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: ["total_inactive_file", "total_active_file"],
};

/// What a group leaves; `None` where it has no limit.
fn left(group: &Path, names: &Names) -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(group.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let (limit, used) = (number(names.limit)?, number(names.used)?);
    let stat = read("memory.stat").unwrap_or_default();
    let cached: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(key, _)| names.cached.contains(key))
        .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        .sum();
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

/// Bytes on the disk that would be free if `dir` went away: files with other names elsewhere do not count.
pub(super) fn removable(dir: &Path) -> u64 {
    let mut seen: std::collections::BTreeMap<(u64, u64), (u64, u64, u64)> = Default::default();
    let mut open = vec![dir.to_path_buf()];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else {
                continue;
            };
            if meta.is_dir() {
                open.push(entry.path());
            } else {
                let (id, links, bytes) = identity(&entry.path(), &meta);
                let file = seen.entry(id).or_insert((0, links, bytes));
                file.0 += 1;
            }
        }
    }
    let gone = seen.values().filter(|(found, links, _)| found == links);
    gone.map(|(_, _, bytes)| bytes).sum()
}

/// What a file is known by, how many names it has, and the bytes it takes.
#[cfg(unix)]
fn identity(_: &PathBuf, meta: &std::fs::Metadata) -> ((u64, u64), u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let id = (meta.dev(), meta.ino());
    (id, meta.nlink(), meta.blocks() * 512)
}

/// What a file is known by, how many names it has, and the bytes it takes.
#[cfg(not(unix))]
fn identity(path: &PathBuf, meta: &std::fs::Metadata) -> ((u64, u64), u64, u64) {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    ((0, hasher.finish()), 1, meta.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn put(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_tightest_group_of_version_2_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(control_groups(root), None);
        put(root, "proc/self/cgroup", "0::/a/b\n");
        assert_eq!(control_groups(root), None);
        let group = "sys/fs/cgroup/a/b";
        put(root, &format!("{group}/memory.max"), "max\n");
        put(root, &format!("{group}/memory.current"), "900\n");
        assert_eq!(control_groups(root), None);
        put(root, &format!("{group}/memory.max"), "1000\n");
        assert_eq!(control_groups(root), Some(100));
        // Cached files can be dropped.
        let stat = "anon 300\nfile 600\nactive_file 200\ninactive_file 350\nslab 5\n";
        put(root, &format!("{group}/memory.stat"), stat);
        assert_eq!(control_groups(root), Some(650));
        // A limit further up.
        put(root, "sys/fs/cgroup/a/memory.max", "2000\n");
        put(root, "sys/fs/cgroup/a/memory.current", "1970\n");
        assert_eq!(control_groups(root), Some(30));
        // More is used than allowed.
        put(root, "sys/fs/cgroup/a/memory.max", "10\n");
        assert_eq!(control_groups(root), Some(0));
    }

    #[test]
    fn version_1_has_other_names() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(
            root,
            "proc/self/cgroup",
            "9:cpu,cpuacct:/x\n4:memory:/box\n0::/\n",
        );
        let group = "sys/fs/cgroup/memory/box";
        put(root, &format!("{group}/memory.limit_in_bytes"), "5000\n");
        put(root, &format!("{group}/memory.usage_in_bytes"), "4000\n");
        put(
            root,
            &format!("{group}/memory.stat"),
            "total_inactive_file 700\n",
        );
        assert_eq!(control_groups(root), Some(1700));
    }

    #[cfg(unix)]
    #[test]
    fn files_with_other_names_would_stay() {
        let dir = tempfile::tempdir().unwrap();
        let staged = dir.path().join("staged");
        let data = vec![1u8; 8192];
        fs::create_dir_all(staged.join("sub")).unwrap();
        fs::write(staged.join("own"), &data).unwrap();
        fs::write(dir.path().join("theirs"), &data).unwrap();
        fs::hard_link(dir.path().join("theirs"), staged.join("linked")).unwrap();
        fs::write(staged.join("sub/twice"), &data).unwrap();
        fs::hard_link(staged.join("sub/twice"), staged.join("again")).unwrap();
        let (all, file) = (removable(&staged), 8192);
        assert!(all >= 2 * file && all < 3 * file, "{all}");
        assert_eq!(removable(&dir.path().join("nowhere")), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_room() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::measure(&dir.path().join("not/there/yet"));
        assert!(room.disk.unwrap() > 0);
        assert!(room.memory.unwrap() > 1 << 20);
    }
}
