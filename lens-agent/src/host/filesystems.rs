//! Mounted file systems, and how full they are.
//!
//! Only local ones are asked: one whose server does not answer would keep whoever asks for ever, and so
//! would a path that leads through one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rustix::fs::{StatVfs, statvfs};
use serde::{Deserialize, Serialize};

use super::{ReadError, Root, mounts::unescape};
use crate::base::text::clean;

/// File systems that are asked in one reading; those in memory come last.
const MOST: usize = 128;

/// Types that keep their data here, and can be full.
const LOCAL: [&str; 15] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "f2fs", "zfs", "jfs", "nilfs2", "reiserfs",
    "vfat", "exfat", "ntfs3", IN_MEMORY,
];
const IN_MEMORY: &str = "tmpfs";

/// Types that have no data of their own, or nothing that could become full: nobody misses them.
const QUIET: [&str; 28] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "devpts",
    "devtmpfs",
    "mqueue",
    "debugfs",
    "tracefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "bpf",
    "pstore",
    "configfs",
    "fusectl",
    "hugetlbfs",
    "binfmt_misc",
    "nsfs",
    "rpc_pipefs",
    "nfsd",
    "efivarfs",
    "ramfs",
    "rootfs",
    "overlay",
    "squashfs",
    "iso9660",
    "erofs",
];

/// A file system, however often it is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// Device number, major; 0 if it is on none.
    pub major: u32,
    /// Device number, minor.
    pub minor: u32,
    /// Its type.
    pub kind: String,
    /// Room for data in all.
    pub bytes: u64,
    /// What is free of it.
    pub free_bytes: u64,
    /// What is free of it for anybody but root.
    pub available_bytes: u64,
    /// Inodes in all; `None` where they are made as they are needed.
    pub inodes: Option<u64>,
    /// What is free of them.
    pub free_inodes: Option<u64>,
    /// Whether it takes no writes: mounted so, or made so by the kernel after an error.
    pub is_read_only: bool,
}

impl Filesystem {
    /// How much of what anybody may use is used, in percent: what `df` says.
    pub fn used_percent(&self) -> Option<f64> {
        let used = self.bytes.saturating_sub(self.free_bytes);
        percent(used, used.saturating_add(self.available_bytes))
    }

    /// How many of its inodes are used, in percent.
    pub fn used_inodes_percent(&self) -> Option<f64> {
        let (all, free) = (self.inodes?, self.free_inodes?);
        percent(all.saturating_sub(free), all)
    }
}

fn percent(part: u64, of: u64) -> Option<f64> {
    (of != 0).then(|| 100.0 * part as f64 / of as f64)
}

/// What is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mounted {
    /// By where it is mounted; of several places the first that shows all of it.
    pub(super) filesystems: BTreeMap<String, Filesystem>,
    /// Those that were not asked, and may be missed: type and place.
    pub(super) not_asked: Vec<String>,
}

/// One line of mountinfo.
struct Mount {
    dir: PathBuf,
    major: u32,
    minor: u32,
    shows_all: bool,
    kind: String,
    is_read_only: bool,
}

/// Asks all local ones: as the first process sees them, because the agent may live in a container.
pub(super) fn read(root: &Root, buffer: &mut Vec<u8>) -> Result<Mounted, ReadError> {
    const FIRST: &str = "proc/1/root";
    // Which not everybody may, and then its mounts are of no use.
    if root.path(FIRST).join(".").metadata().is_ok() {
        read_as("proc/1", FIRST, root, buffer)
    } else {
        read_as("proc/self", "", root, buffer)
    }
}

fn read_as(
    process: &str,
    top: &str,
    root: &Root,
    buffer: &mut Vec<u8>,
) -> Result<Mounted, ReadError> {
    let mounts = mounts(root, &format!("{process}/mountinfo"), buffer)?;
    let mut mounted = Mounted::default();
    let mut chosen: BTreeMap<(u32, u32), &Mount> = BTreeMap::new();
    for (i, mount) in mounts.iter().enumerate() {
        let kind = mount.kind.as_str();
        if QUIET.contains(&kind) {
            continue;
        }
        let told = || clean(&format!("{kind} {}", mount.dir.display()));
        let is_behind = |other: &Mount| {
            !LOCAL.contains(&other.kind.as_str()) && !QUIET.contains(&other.kind.as_str())
        };
        let is_covered = mounts[i + 1..]
            .iter()
            .any(|m| mount.dir.starts_with(&m.dir));
        if mounts
            .iter()
            .any(|m| is_behind(m) && mount.dir.starts_with(&m.dir))
        {
            mounted.not_asked.push(told());
        } else if !is_covered {
            let before = chosen.entry((mount.major, mount.minor)).or_insert(mount);
            if mount.shows_all && !before.shows_all {
                *before = mount;
            }
        }
    }
    let mut chosen: Vec<&Mount> = chosen.into_values().collect();
    chosen.sort_by_key(|mount| mount.kind == IN_MEMORY);
    for mount in chosen {
        let path = mount.dir.strip_prefix("/").unwrap_or(&mount.dir);
        let asked = (mounted.filesystems.len() < MOST)
            .then(|| statvfs(root.path(Path::new(top).join(path))));
        match asked {
            // Without a size nothing can be said of it.
            Some(Ok(found)) if found.f_blocks == 0 => {}
            Some(Ok(found)) => {
                let name = clean(&mount.dir.to_string_lossy());
                mounted.filesystems.insert(name, filesystem(mount, &found));
            }
            Some(Err(_)) | None => {
                let told = clean(&format!("{} {}", mount.kind, mount.dir.display()));
                mounted.not_asked.push(told);
            }
        }
    }
    Ok(mounted)
}

fn filesystem(mount: &Mount, found: &StatVfs) -> Filesystem {
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Filesystem {
        major: mount.major,
        minor: mount.minor,
        kind: clean(&mount.kind),
        bytes: bytes(found.f_blocks),
        free_bytes: bytes(found.f_bfree),
        available_bytes: bytes(found.f_bavail),
        inodes: (found.f_files != 0).then_some(found.f_files),
        free_inodes: (found.f_files != 0).then_some(found.f_ffree),
        is_read_only: mount.is_read_only,
    }
}

/// All mounts in the order in which they were made (`proc_pid_mountinfo(5)`).
fn mounts(root: &Root, path: &str, buffer: &mut Vec<u8>) -> Result<Vec<Mount>, ReadError> {
    let text = root.read(path, buffer)?;
    let mut mounts = Vec::new();
    for line in text.lines() {
        let mut fields = line.fields();
        let device = fields.skip(2).word("device")?;
        let numbers = device.split_once(':').and_then(|(major, minor)| {
            let numbers = (major.parse().ok()?, minor.parse().ok()?);
            Some(numbers)
        });
        let (major, minor) = numbers.ok_or_else(|| line.error("device", "two numbers", device))?;
        let shows_all = fields.word("root")? == "/";
        let dir = PathBuf::from(unescape(fields.word("mount point")?));
        // Optional fields come before the hyphen, any number of them.
        while fields.word("separator")? != "-" {}
        let kind = fields.word("file system type")?.to_owned();
        let options = fields.skip(1).word("super options")?;
        // Since 6.15 ext4 says so where it takes no more writes after an error, and stays `rw`.
        let is_read_only = options
            .split(',')
            .any(|option| matches!(option, "ro" | "emergency_ro" | "shutdown"));
        mounts.push(Mount {
            dir,
            major,
            minor,
            shows_all,
            kind,
            is_read_only,
        });
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::text::tests::root_with;

    fn mounted(mountinfo: &str, dirs: &[&str]) -> Mounted {
        let keep: Vec<String> = dirs.iter().map(|dir| format!("{dir}/kept")).collect();
        let mut files = vec![("proc/self/mountinfo", mountinfo)];
        files.extend(keep.iter().map(|path| (path.as_str(), "")));
        let (_dir, root) = root_with(&files);
        read(&root, &mut Vec::new()).unwrap()
    }

    #[test]
    fn local_ones_are_asked_once_each() {
        let found = mounted(
            "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
             22 21 0:21 / /proc rw - proc proc rw\n\
             23 21 8:1 /var/pod /pod rw shared:1 - ext4 /dev/sda1 rw\n\
             24 21 8:2 /sub /bind rw - xfs /dev/sdb rw\n\
             25 21 8:2 / /my\\040data rw - xfs /dev/sdb rw,emergency_ro\n",
            &["my data", "bind", "pod"],
        );
        let names: Vec<&str> = found.filesystems.keys().map(String::as_str).collect();
        assert_eq!(names, ["/", "/my data"]);
        let data = &found.filesystems["/my data"];
        assert_eq!((data.major, data.minor, &*data.kind), (8, 2, "xfs"));
        assert!(data.is_read_only && !found.filesystems["/"].is_read_only);
        assert!(data.bytes >= data.free_bytes && data.free_bytes >= data.available_bytes);
        assert!(found.not_asked.is_empty(), "{found:?}");
    }

    #[test]
    fn what_may_hang_is_not_asked_nor_what_lies_behind_it() {
        let found = mounted(
            "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
             22 21 0:40 / /nfs rw - nfs4 server:/ rw\n\
             23 22 8:2 / /nfs/local rw - ext4 /dev/sdb rw\n\
             24 21 0:41 / /home rw - autofs systemd-1 rw\n\
             25 24 8:3 / /home/me rw - ext4 /dev/sdc rw\n\
             26 21 8:4 / /over rw - ext4 /dev/sdd rw\n\
             27 26 0:42 / /over rw - fuse.sshfs me@there rw\n\
             28 21 8:5 / /under rw - ext4 /dev/sde rw\n\
             29 28 8:6 / /under rw - ext4 /dev/sdf rw\n",
            &["nfs/local", "home/me", "over", "under"],
        );
        let names: Vec<_> = found
            .filesystems
            .iter()
            .map(|(name, fs)| (name.as_str(), fs.minor))
            .collect();
        assert_eq!(names, [("/", 1), ("/under", 6)]);
        assert_eq!(
            found.not_asked,
            [
                "nfs4 /nfs",
                "ext4 /nfs/local",
                "autofs /home",
                "ext4 /home/me",
                "ext4 /over",
                "fuse.sshfs /over",
            ]
        );
    }

    #[test]
    fn percent_is_of_what_anybody_may_use() {
        let filesystem = Filesystem {
            bytes: 1000,
            free_bytes: 100,
            available_bytes: 0,
            inodes: Some(200),
            free_inodes: Some(50),
            ..Filesystem::default()
        };
        assert_eq!(filesystem.used_percent(), Some(100.0));
        assert_eq!(filesystem.used_inodes_percent(), Some(75.0));
        assert_eq!(Filesystem::default().used_percent(), None);
        assert_eq!(Filesystem::default().used_inodes_percent(), None);
    }
}
