//! From a cgroup's id to its path, without a walk.

#![expect(unsafe_code, reason = "open_by_handle_at has no safe wrapper")]

use std::{
    fs,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
};

use super::{Cgroup, Hierarchy, ReadError, Root, root::unless_gone};

/// `FILEID_KERNFS` of include/linux/exportfs.h: the handle is the 64-bit id.
const FILEID_KERNFS: i32 = 0xfe;

/// `struct file_handle` with the id for a handle.
#[repr(C)]
struct KernfsHandle {
    bytes: u32,
    kind: i32,
    id: u64,
}

/// Opens directories by their ids, on the watched hierarchy.
#[derive(Debug)]
pub struct ById {
    mount: fs::File,
}

impl ById {
    /// Ready to look up. Works on the machine's own root only.
    pub fn new(root: &Root, hierarchy: &Hierarchy) -> Result<Option<Self>, ReadError> {
        let Some(mount) = hierarchy.watched_mount() else {
            return Ok(None);
        };
        let path = root.path(&mount.dir);
        match fs::File::open(&path) {
            Ok(mount) => Ok(Some(Self { mount })),
            Err(source) => Err(ReadError::Io { path, source }),
        }
    }

    /// The cgroup with that id; `None` if there is none (any more). About 50 us.
    ///
    /// Needs `CAP_DAC_READ_SEARCH`, and a kernel that exports kernfs ids (5.5).
    pub fn cgroup(
        &self,
        root: &Root,
        hierarchy: &Hierarchy,
        id: u64,
    ) -> Result<Option<Cgroup>, ReadError> {
        let path = PathBuf::from(format!("cgroup id {id}"));
        let opened = match self.open(id) {
            Ok(opened) => opened,
            Err(source) if source.raw_os_error() == Some(libc::ESTALE) => return Ok(None),
            Err(source) => return Err(ReadError::Io { path, source }),
        };
        let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
        let dir = fs::read_link(&link).map_err(|source| ReadError::Io {
            path: link.into(),
            source,
        });
        let Some(dir) = unless_gone(dir)? else {
            return Ok(None);
        };
        // One that was removed meanwhile has another name here, and is not found.
        Ok(hierarchy
            .cgroup_at(root, dir)?
            .filter(|cgroup| cgroup.id == id))
    }

    fn open(&self, id: u64) -> std::io::Result<OwnedFd> {
        let mut handle = KernfsHandle {
            bytes: 8,
            kind: FILEID_KERNFS,
            id,
        };
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        // SAFETY: `handle` has the layout of a file_handle with 8 bytes of handle, as its first
        // field says, and lives over the call, which does not keep it.
        let fd = unsafe {
            libc::open_by_handle_at(self.mount.as_raw_fd(), (&raw mut handle).cast(), flags)
        };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the kernel has just opened it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_cgroup_by_its_id() {
        let root = Root::default();
        let Some(hierarchy) = Hierarchy::detect(&root).unwrap() else {
            eprintln!("SKIPPED: no cgroups are mounted here");
            return;
        };
        let top = hierarchy.cgroup(&root, "/").unwrap().unwrap();
        let by_id = ById::new(&root, &hierarchy).unwrap().unwrap();
        match by_id.cgroup(&root, &hierarchy, top.id) {
            Ok(found) => assert_eq!(found, Some(top)),
            Err(ReadError::Io { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("SKIPPED: no CAP_DAC_READ_SEARCH");
                return;
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(by_id.cgroup(&root, &hierarchy, 1 << 40).unwrap(), None);
    }
}
