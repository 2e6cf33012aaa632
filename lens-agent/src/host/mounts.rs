//! `/proc/self/mountinfo`: where the cgroup hierarchies are mounted.

use std::path::PathBuf;

use super::{ReadError, Root};

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CgroupMount {
    /// Where it is mounted, as this process sees it.
    pub(super) dir: PathBuf,
    /// What of the hierarchy is mounted there; `/` is all of it.
    pub(super) top: String,
    /// Its v1 controllers (`memory`, `name=systemd`); `None` for v2.
    pub(super) controllers: Option<Vec<String>>,
}

/// Mount options of v1 that are no controllers (`cgroup1_show_options` and the flags of every file
/// system). What else stands there is a controller's name, which modules could add.
const OPTIONS: [&str; 8] = [
    "rw",
    "ro",
    "xattr",
    "noprefix",
    "clone_children",
    "cpuset_v2_mode",
    "favordynmods",
    "seclabel",
];

/// All of them, in the order in which they were mounted (`proc_pid_mountinfo(5)`).
pub(super) fn read(root: &Root, buffer: &mut Vec<u8>) -> Result<Vec<CgroupMount>, ReadError> {
    let text = root.read("proc/self/mountinfo", buffer)?;
    let mut mounts = Vec::new();
    for line in text.lines() {
        let mut fields = line.fields();
        let top = unescape(fields.skip(3).word("root")?);
        let dir = PathBuf::from(unescape(fields.word("mount point")?));
        // Optional fields come before the hyphen, any number of them.
        while fields.word("separator")? != "-" {}
        let controllers = match fields.word("file system type")? {
            "cgroup2" => None,
            "cgroup" => {
                let options = fields.skip(1).word("super options")?.split(',');
                let named = options
                    .filter(|o| !OPTIONS.contains(o) && !o.starts_with("release_agent="))
                    .map(str::to_owned);
                Some(named.collect())
            }
            _ => continue,
        };
        mounts.push(CgroupMount {
            dir,
            top,
            controllers,
        });
    }
    Ok(mounts)
}

/// Spaces and the like are written as `\040` (`mangle` in `fs/proc_namespace.c`).
pub(super) fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::text::tests::root_with;

    #[test]
    fn cgroup_mounts_only() {
        let text = "23 1 0:21 / /proc rw,relatime - proc proc rw\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
            40 31 0:37 /a\\040b /run/my\\040cgroups rw - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";
        let (_dir, root) = root_with(&[("proc/self/mountinfo", text)]);
        let mounts = read(&root, &mut Vec::new()).unwrap();
        let mount = |dir: &str, top: &str, controllers: Option<&[&str]>| CgroupMount {
            dir: dir.into(),
            top: top.into(),
            controllers: controllers.map(|c| c.iter().map(|&c| c.to_owned()).collect()),
        };
        assert_eq!(
            mounts,
            [
                mount("/sys/fs/cgroup/memory", "/", Some(&["memory"])),
                mount("/run/my cgroups", "/a b", Some(&["name=systemd"])),
                mount("/sys/fs/cgroup/unified", "/", None),
            ]
        );
    }

    #[test]
    fn a_cut_line_is_an_error() {
        let (_dir, root) = root_with(&[("proc/self/mountinfo", "23 1 0:21 / /proc rw,relatime\n")]);
        let error = read(&root, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("mountinfo:1: separator"), "{error}");
    }
}
