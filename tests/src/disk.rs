//! Block devices and file systems that a test makes for itself, and that are gone when it is.

use std::{
    fs,
    io::Write as _,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use lens_agent::probes::DeviceNumber;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A file of so many bytes (of whole MiB) whose pages can be dropped: beside the test's program,
/// because the folder for temporary files may be in memory.
pub fn file_of(bytes: u64) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new_in(beside()?)?;
    let chunk = vec![7; 1 << 20];
    for _ in 0..bytes >> 20 {
        file.write_all(&chunk)?;
    }
    file.as_file().sync_all()?;
    Ok(file)
}

/// Drops what is cached of it: pages stay with the cgroup that read them first.
pub fn forget(path: &Path) -> Result<()> {
    let file = fs::File::open(path)?;
    // SAFETY: an open file.
    #[expect(unsafe_code, reason = "posix_fadvise has no safe wrapper")]
    let dropped = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    ensure!(dropped == 0, "posix_fadvise: {dropped}");
    Ok(())
}

/// The folder of the test's program.
fn beside() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.parent().context("no folder")?.to_owned())
}

/// A block device on a file.
#[derive(Debug)]
pub struct Loop {
    device: String,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    /// One of so many bytes, beside the test's program: the folder for temporary files may be in
    /// memory. `None` where there are no such devices.
    pub fn new(bytes: u64) -> Result<Option<Self>> {
        Self::in_folder(&beside()?, bytes)
    }

    /// The same with its file in `folder`.
    pub fn in_folder(folder: &Path, bytes: u64) -> Result<Option<Self>> {
        let file = tempfile::NamedTempFile::new_in(folder)?;
        file.as_file().set_len(bytes)?;
        let made = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=off"])
            .arg(file.path())
            .output();
        let Ok(made) = made else {
            return Ok(None);
        };
        if !made.status.success() {
            return Ok(None);
        }
        let device = String::from_utf8(made.stdout)?.trim_end().to_owned();
        Ok(Some(Self {
            device,
            _file: file,
        }))
    }

    /// Where it is in `/dev`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// What the kernel calls it.
    pub fn name(&self) -> &str {
        self.device.trim_start_matches("/dev/")
    }

    /// Its number.
    pub fn number(&self) -> Result<DeviceNumber> {
        let rdev = fs::metadata(&self.device)?.rdev();
        Ok(DeviceNumber {
            major: rustix::fs::major(rdev),
            minor: rustix::fs::minor(rdev),
        })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Nothing can be done about it here.
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// Something mounted on a folder of its own.
#[derive(Debug)]
pub struct Mounted {
    folder: tempfile::TempDir,
    /// Goes after it is unmounted.
    disk: Option<Loop>,
}

impl Mounted {
    /// An ext4 of so many bytes with a journal. `None` where it cannot be made.
    pub fn ext4(bytes: u64) -> Result<Option<Self>> {
        match Loop::new(bytes)? {
            Some(disk) => Self::ext4_on(disk),
            None => Ok(None),
        }
    }

    /// The same on a device.
    pub fn ext4_on(disk: Loop) -> Result<Option<Self>> {
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=1"])
            .arg(disk.device())
            .output();
        if !made.is_ok_and(|made| made.status.success()) {
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        if mount(
            disk.device(),
            folder.path(),
            "ext4",
            MountFlags::empty(),
            None,
        )
        .is_err()
        {
            return Ok(None);
        }
        Ok(Some(Self {
            folder,
            disk: Some(disk),
        }))
    }

    /// Memory, at most so many bytes.
    pub fn tmpfs(bytes: u64) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let size = std::ffi::CString::new(format!("size={bytes}"))?;
        let none = MountFlags::empty();
        mount("tmpfs", folder.path(), "tmpfs", none, Some(size.as_c_str()))?;
        Ok(Self { folder, disk: None })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Its device.
    pub fn disk(&self) -> Result<&Loop> {
        self.disk.as_ref().context("on no device")
    }

    /// Commits of its journal, as the kernel says.
    pub fn commits(&self) -> Result<u64> {
        // Which inode the journal is: 8, unless it is on another device.
        let name = self.disk()?.name();
        let info = fs::read_to_string(format!("/proc/fs/jbd2/{name}-8/info"))?;
        let first = info.split_ascii_whitespace().next().context("empty")?;
        let commits = first.parse()?;
        ensure!(info.contains(" transactions "), "{info}");
        Ok(commits)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What was to be written to a device that takes nothing is given up.
        let _ = unmount(self.folder.path(), UnmountFlags::empty());
    }
}
