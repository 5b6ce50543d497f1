//! Control groups of the test bed: one folder in every hierarchy, with one for each node below.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// How long a group may stay busy after its last process was killed.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Controllers that kubelet wants to use, where there is one hierarchy for all.
const CONTROLLERS: &str = "+cpu +cpuset +memory +pids +io";

/// Groups below one name.
#[derive(Debug, Clone)]
pub struct Groups {
    name: String,
}

impl Groups {
    /// Refers to them; they need not exist.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// kubelet's `cgroupRoot` of a node.
    pub fn root_of(&self, node: &str) -> String {
        format!("/{}/{node}", self.name)
    }

    /// Makes the groups of a node.
    ///
    /// # Errors
    /// When there are no hierarchies, or the kernel refuses.
    pub fn create(&self, node: &str) -> anyhow::Result<()> {
        for hierarchy in hierarchies()? {
            let mut at = hierarchy.path.clone();
            for part in [self.name.as_str(), node] {
                if hierarchy.unified {
                    allow(&at)?;
                }
                let below = at.join(part);
                fs::create_dir_all(&below).with_context(|| below.display().to_string())?;
                if hierarchy.cpuset {
                    // Empty at first, and useless then.
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        let value = fs::read_to_string(at.join(file))?;
                        fs::write(below.join(file), value.trim())
                            .with_context(|| below.join(file).display().to_string())?;
                    }
                }
                at = below;
            }
            if hierarchy.unified {
                allow(&at)?;
            }
        }
        Ok(())
    }

    /// Removes them all. Processes in them must have been killed.
    ///
    /// # Errors
    /// When one is still busy after a while.
    pub async fn remove(&self) -> anyhow::Result<()> {
        remove_all(self.left()?).await
    }

    /// Removes those of a node, which must be switched off.
    ///
    /// # Errors
    /// As for [`Groups::remove`].
    pub async fn remove_node(&self, node: &str) -> anyhow::Result<()> {
        let tops = self.left()?.into_iter().map(|top| top.join(node));
        remove_all(tops.collect()).await
    }

    /// What there is of them, one folder per hierarchy.
    ///
    /// # Errors
    /// When there are no hierarchies.
    pub fn left(&self) -> anyhow::Result<Vec<PathBuf>> {
        let tops = hierarchies()?.into_iter().map(|h| h.path.join(&self.name));
        Ok(tops.filter(|top| top.exists()).collect())
    }
}

async fn remove_all(groups: Vec<PathBuf>) -> anyhow::Result<()> {
    let end = Instant::now() + LIMIT;
    for group in groups {
        loop {
            match remove_below(&group) {
                Ok(()) => break,
                Err(error) if Instant::now() >= end => {
                    return Err(error).with_context(|| format!("remove {}", group.display()));
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }
    Ok(())
}

struct Hierarchy {
    path: PathBuf,
    unified: bool,
    cpuset: bool,
}

fn hierarchies() -> anyhow::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let found = mounts.lines().filter_map(hierarchy).collect::<Vec<_>>();
    anyhow::ensure!(!found.is_empty(), "no control groups are mounted");
    Ok(found)
}

/// A line of /proc/self/mounts: device, place, type, options.
fn hierarchy(line: &str) -> Option<Hierarchy> {
    let mut words = line.split_whitespace().skip(1);
    let (path, kind, options) = (words.next()?, words.next()?, words.next()?);
    let path = PathBuf::from(path);
    match kind {
        "cgroup" => Some(Hierarchy {
            path,
            unified: false,
            cpuset: options.split(',').any(|option| option == "cpuset"),
        }),
        "cgroup2" => Some(Hierarchy {
            // Beside others it has no controllers, and nobody asks it for any.
            unified: path == Path::new("/sys/fs/cgroup"),
            path,
            cpuset: false,
        }),
        _ => None,
    }
}

fn allow(group: &Path) -> anyhow::Result<()> {
    let file = group.join("cgroup.subtree_control");
    fs::write(&file, CONTROLLERS).with_context(|| file.display().to_string())
}

fn remove_below(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_kinds_are_told_apart() {
        let line = "cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0";
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0";
        let beside = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0";

        assert!(hierarchy(line).unwrap().cpuset);
        assert!(hierarchy(unified).unwrap().unified);
        assert!(!hierarchy(beside).unwrap().unified);
        assert!(hierarchy("proc /proc proc rw 0 0").is_none());
    }
}
