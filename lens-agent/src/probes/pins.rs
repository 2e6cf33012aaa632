//! A BPF file system that is mounted nowhere: objects share maps by paths in it.
//!
//! aya shares a map between objects only by a path, and `/sys/fs/bpf` may not be mounted, nor is
//! it ours to write to. A detached mount has no place in any mount tree; it lives as long as this.

use std::{
    ffi::CStr,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The mount.
#[derive(Debug)]
pub struct Pins(OwnedFd);

impl Pins {
    /// Makes it. Needs `CAP_SYS_ADMIN`.
    pub fn new() -> std::io::Result<Self> {
        const BPF: &CStr = c"bpf";
        let context = fsopen(BPF, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let mount = fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        Ok(Self(mount))
    }

    /// Where the pin `name` is, for this program only.
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}
