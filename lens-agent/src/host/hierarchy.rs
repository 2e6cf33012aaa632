//! Which cgroup hierarchies there are, and which of them names a cgroup.
//!
//! Three kinds of hosts: v2 alone at `/sys/fs/cgroup`; v1 controllers with v2 beside them
//! (hybrid); v1 alone. A cgroup is its path in *one* hierarchy, the watched one:
//!
//! - v2, wherever it is mounted. Also while it is still empty: services are put there later.
//! - Except where v2 has no child at all, and the service manager puts processes into children of a
//!   v1 hierarchy of its own (`name=systemd`): then nobody uses v2.
//! - In v1 the first of `memory`, `pids` and `name=...` that has processes below its root.
//!
//! Mounts and paths are as this process sees them. In a container lens needs the host's pid
//! namespace and the host's hierarchies mounted. A cgroup namespace of its own would show every
//! path as seen from the container's cgroup (`/../../shop/cart`): so lens enters the one of the
//! first process, before it looks.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsStr,
    fs,
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::{ReadError, Root, mounts, pid, root::unless_gone};
use crate::base::text::clean;

/// The v1 hierarchies that can be watched, the first that is in use.
const V1_CHOICE: [&str; 2] = ["memory", "pids"];
/// Processes that are looked at to find out what is in use.
const MAX_LOOKED_AT: usize = 4096;

/// The hierarchy in which a cgroup's path is its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Watched {
    /// v2.
    V2,
    /// The v1 hierarchy of this controller (`memory`, `name=systemd`).
    V1(String),
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted, below the root of all files.
    pub dir: PathBuf,
    /// What of the hierarchy is mounted there; `/` is all of it.
    pub top: String,
}

impl Mount {
    /// The directory of the cgroup at `path`, which is not cleaned; `None` if it is not mounted.
    pub fn dir_of(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(&self.top).ok()?;
        // What lies outside of the agent's cgroup namespace is shown as `/../x`.
        let escapes = below
            .components()
            .any(|c| c == std::path::Component::ParentDir);
        (!escapes).then(|| self.dir.join(below))
    }
}

/// The hierarchies of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// v2, if it is mounted.
    pub v2: Option<Mount>,
    /// v1, by controller.
    pub v1: BTreeMap<String, Mount>,
    /// Which of them names a cgroup.
    pub watched: Watched,
}

/// A cgroup of the watched hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its path, cleaned; `/` is the root cgroup.
    pub path: Arc<str>,
    /// Its inode, which is its kernfs id and what BPF calls the cgroup id.
    pub id: u64,
    /// Its directory, below the root of all files.
    pub dir: PathBuf,
}

/// The cgroups that a walk has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Parents before their children, siblings by name.
    pub cgroups: Vec<Cgroup>,
    /// Whether there are more than were asked for.
    pub more: bool,
}

impl Hierarchy {
    /// Looks at what is mounted, and chooses. `None` where no cgroups are mounted.
    ///
    /// On the machine's own root the calling thread, and those that it starts later, see cgroups
    /// as the first process does from here on.
    pub fn detect(root: &Root) -> Result<Option<Self>, ReadError> {
        if root.path("/") == Path::new("/") {
            see_as_the_first_process_does();
        }
        let (mut v2, mut v1) = (None, BTreeMap::new());
        let mut mounts = mounts::read(root, &mut Vec::new())?;
        // Of several mounts of one hierarchy the one that shows all of it.
        mounts.sort_by_key(|mount| mount.top != "/");
        for mounts::CgroupMount {
            dir,
            top,
            controllers,
        } in mounts
        {
            let mount = Mount { dir, top };
            match controllers {
                None => v2 = v2.or(Some(mount)),
                Some(controllers) => {
                    for controller in controllers {
                        v1.entry(controller).or_insert_with(|| mount.clone());
                    }
                }
            }
        }
        let v2_has_children = match &v2 {
            Some(mount) => has_children(&root.path(&mount.dir)),
            None => false,
        };
        let watched = if v2_has_children {
            Watched::V2
        } else {
            let in_use = if v1.is_empty() {
                Vec::new()
            } else {
                controllers_in_use(root)?
            };
            let a_service_manager_uses_v1 = in_use.iter().any(|c| c.starts_with("name="));
            if v2.is_some() && !a_service_manager_uses_v1 {
                Watched::V2
            } else if let Some(controller) = choose(&v1, &in_use) {
                Watched::V1(controller)
            } else if v2.is_some() {
                Watched::V2
            } else {
                return Ok(None);
            }
        };
        Ok(Some(Self { v2, v1, watched }))
    }

    /// The watched hierarchy; `None` only for a value that [`Self::detect`] did not make.
    pub fn watched_mount(&self) -> Option<&Mount> {
        match &self.watched {
            Watched::V2 => self.v2.as_ref(),
            Watched::V1(controller) => self.v1.get(controller),
        }
    }

    /// At most `max` cgroups of the watched hierarchy, the root among them.
    pub fn cgroups(&self, root: &Root, max: usize) -> Result<Found, ReadError> {
        let mut found = Found::default();
        let Some(mount) = self.watched_mount() else {
            return Ok(found);
        };
        let mut open = VecDeque::from([mount.dir.clone()]);
        while let Some(dir) = open.pop_front() {
            let Some(cgroup) = self.cgroup_at(root, dir)? else {
                continue;
            };
            if found.cgroups.len() >= max {
                found.more = true;
                break;
            }
            open.extend(children(root, &cgroup.dir)?);
            found.cgroups.push(cgroup);
        }
        Ok(found)
    }

    /// The cgroup at `path`, which is not cleaned; `None` if there is none.
    pub fn cgroup(&self, root: &Root, path: &str) -> Result<Option<Cgroup>, ReadError> {
        match self.watched_mount().and_then(|mount| mount.dir_of(path)) {
            Some(dir) => self.cgroup_at(root, dir),
            None => Ok(None),
        }
    }

    /// The cgroup whose directory is `dir`; `None` if there is none (any more).
    pub(super) fn cgroup_at(&self, root: &Root, dir: PathBuf) -> Result<Option<Cgroup>, ReadError> {
        let Some(below) = self
            .watched_mount()
            .and_then(|m| dir.strip_prefix(&m.dir).ok())
        else {
            return Ok(None);
        };
        let path = clean_path(below.as_os_str());
        let full = root.path(&dir);
        let metadata = fs::metadata(&full).map_err(|source| ReadError::Io { path: full, source });
        Ok(unless_gone(metadata)?.map(|metadata| Cgroup {
            path,
            id: metadata.ino(),
            dir,
        }))
    }
}

/// Enters the cgroup namespace of the first process, where this thread is in another one. Without
/// the privilege it stays where it is: then nothing can be counted either.
fn see_as_the_first_process_does() {
    let (first, own) = ("/proc/1/ns/cgroup", "/proc/thread-self/ns/cgroup");
    let (Ok(there), Ok(here)) = (fs::read_link(first), fs::read_link(own)) else {
        return;
    };
    if there == here {
        return;
    }
    if let Ok(namespace) = fs::File::open(first) {
        let kind = Some(LinkNameSpaceType::ControlGroup);
        // What cannot be entered is not: paths are then those of the container.
        let _ = move_into_link_name_space(namespace.as_fd(), kind);
    }
}

/// A cgroup's path, cleaned name by name so that a long path keeps its end.
pub fn clean_path(path: impl AsRef<OsStr>) -> Arc<str> {
    let path = String::from_utf8_lossy(path.as_ref().as_bytes()).into_owned();
    let names = path.split('/').filter(|name| !name.is_empty()).map(clean);
    let cleaned: String = names.flat_map(|name| ["/".to_owned(), name]).collect();
    if cleaned.is_empty() {
        "/".into()
    } else {
        cleaned.into()
    }
}

/// The directories in `dir`, sorted; none if it is gone.
fn children(root: &Root, dir: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let full = root.path(dir);
    let entries = fs::read_dir(&full).map_err(|source| ReadError::Io { path: full, source });
    let Some(entries) = unless_gone(entries)? else {
        return Ok(Vec::new());
    };
    let mut names: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| dir.join(entry.file_name()))
        .collect();
    names.sort();
    Ok(names)
}

fn has_children(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|entries| {
        entries
            .filter_map(Result::ok)
            .any(|e| e.file_type().is_ok_and(|kind| kind.is_dir()))
    })
}

/// The v1 controllers in which a process is below the root.
fn controllers_in_use(root: &Root) -> Result<Vec<String>, ReadError> {
    let mut in_use = Vec::new();
    let mut buffer = Vec::new();
    for pid in pid::all(root)?.take(MAX_LOOKED_AT) {
        let Some(text) = unless_gone(root.read(format!("proc/{pid}/cgroup"), &mut buffer))? else {
            continue;
        };
        for (controllers, path) in text.as_str().lines().filter_map(split_line) {
            if path != "/" {
                for controller in controllers.split(',').filter(|c| !c.is_empty()) {
                    if !in_use.iter().any(|known| known == controller) {
                        in_use.push(controller.to_owned());
                    }
                }
            }
        }
    }
    Ok(in_use)
}

/// The controllers and the path in a line of `/proc/PID/cgroup` (cgroups(7)); for v2 the
/// controllers are empty. The path of a cgroup that was removed ends in ` (deleted)`: this is cut.
pub(super) fn split_line(line: &str) -> Option<(&str, &str)> {
    let (_id, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    Some((controllers, path.strip_suffix(" (deleted)").unwrap_or(path)))
}

fn choose(v1: &BTreeMap<String, Mount>, in_use: &[String]) -> Option<String> {
    let named = v1
        .keys()
        .filter(|controller| controller.starts_with("name="));
    let wanted: Vec<&str> = V1_CHOICE
        .into_iter()
        .chain(named.map(String::as_str))
        .collect();
    let mounted = || {
        wanted
            .iter()
            .filter(|controller| v1.contains_key(**controller))
    };
    mounted()
        .find(|controller| in_use.iter().any(|used| used == **controller))
        .or_else(|| mounted().next())
        .map(|controller| (*controller).to_owned())
        .or_else(|| v1.keys().next().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::text::tests::root_with;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
    const HYBRID: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    fn check(files: &[(&str, &str)], watched: &Watched) {
        let (_dir, root) = root_with(files);
        assert_eq!(Hierarchy::detect(&root).unwrap().unwrap().watched, *watched);
    }

    #[test]
    fn v2_alone() {
        check(
            &[
                ("proc/self/mountinfo", V2),
                ("proc/1/cgroup", "0::/init.scope\n"),
            ],
            &Watched::V2,
        );
    }

    #[test]
    fn hybrid_watches_v2_even_before_anybody_uses_it() {
        let mounts = ("proc/self/mountinfo", HYBRID);
        let confined = ("proc/9/cgroup", "4:memory:/box/1\n1:name=systemd:/\n0::/\n");
        check(&[mounts, confined], &Watched::V2);
        let child = ("sys/fs/cgroup/unified/shop/cgroup.procs", "9\n");
        let managed = ("proc/9/cgroup", "4:memory:/a\n1:name=systemd:/a\n0::/\n");
        check(&[mounts, managed, child], &Watched::V2);
    }

    #[test]
    fn hybrid_watches_v1_when_a_service_manager_ignores_v2() {
        let mounts = ("proc/self/mountinfo", HYBRID);
        let managed = "4:memory:/system.slice/a\n1:name=systemd:/system.slice/a\n0::/\n";
        check(
            &[mounts, ("proc/9/cgroup", managed)],
            &Watched::V1("memory".into()),
        );
        let unlimited = "4:memory:/\n1:name=systemd:/system.slice/a\n0::/\n";
        check(
            &[mounts, ("proc/9/cgroup", unlimited)],
            &Watched::V1("name=systemd".into()),
        );
    }

    #[test]
    fn v1_alone_and_nothing() {
        let mounts = ("proc/self/mountinfo", V1);
        check(
            &[mounts, ("proc/9/cgroup", "4:memory:/a\n")],
            &Watched::V1("memory".into()),
        );
        let (_dir, root) = root_with(&[("proc/self/mountinfo", "")]);
        assert_eq!(Hierarchy::detect(&root).unwrap(), None);
    }

    #[test]
    fn a_walk_is_bounded_and_parents_come_first() {
        let (_dir, root) = root_with(&[
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/b/y/cgroup.procs", ""),
            ("sys/fs/cgroup/a/x\u{1b}/cgroup.procs", ""),
            ("sys/fs/cgroup/cgroup.procs", ""),
        ]);
        let hierarchy = Hierarchy::detect(&root).unwrap().unwrap();
        let found = hierarchy.cgroups(&root, 100).unwrap();
        let paths: Vec<_> = found.cgroups.iter().map(|cgroup| &*cgroup.path).collect();
        assert_eq!(paths, ["/", "/a", "/b", "/a/x?", "/b/y"]);
        assert!(!found.more);
        let found = hierarchy.cgroups(&root, 2).unwrap();
        assert_eq!((found.cgroups.len(), found.more), (2, true));

        let one = hierarchy.cgroup(&root, "/b/y").unwrap().unwrap();
        let inode = fs::metadata(root.path("sys/fs/cgroup/b/y")).unwrap().ino();
        assert_eq!((&*one.path, one.id), ("/b/y", inode));
        assert_eq!(hierarchy.cgroup(&root, "/c").unwrap(), None);
        assert_eq!(hierarchy.cgroup(&root, "/../c").unwrap(), None);
    }

    #[test]
    fn a_long_path_keeps_its_end() {
        let path = format!("/{}/{}", "a".repeat(200), "b".repeat(200));
        assert_eq!(&*clean_path(&path), path);
        assert_eq!(&*clean_path(""), "/");
        assert_eq!(&*clean_path("/a\n/b"), "/a?/b");
    }

    #[test]
    fn the_line_of_a_removed_cgroup() {
        assert_eq!(split_line("0::/a/b (deleted)"), Some(("", "/a/b")));
        assert_eq!(
            split_line("3:cpu,cpuacct:/a:b"),
            Some(("cpu,cpuacct", "/a:b"))
        );
    }
}
