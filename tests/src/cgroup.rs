//! Cgroups that a test makes for itself, and that are gone when it is, however it ends.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::until;

/// Where cgroups are on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// The mount of cgroup2.
    pub root: PathBuf,
}

impl Hierarchy {
    /// This host's.
    pub fn of_host() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let root = mounts.lines().find_map(|line| {
            let (mount, fs) = line.split_once(" - ")?;
            fs.starts_with("cgroup2 ").then_some(())?;
            mount.split(' ').nth(4).map(PathBuf::from)
        });
        Ok(Self {
            root: root.context("no cgroup2 is mounted")?,
        })
    }
}

/// A fresh cgroup.
#[derive(Debug)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    path: String,
}

impl Cgroup {
    /// Makes one at the top.
    pub fn new(name: &str) -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (pid, n) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        Self::at(
            Hierarchy::of_host()?,
            format!("/lens-test-{pid}-{n}-{name}"),
        )
    }

    /// Makes one below. Drop it before its parent.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::at(self.hierarchy.clone(), format!("{}/{name}", self.path))
    }

    fn at(hierarchy: Hierarchy, path: String) -> Result<Self> {
        let made = Self { hierarchy, path };
        let dir = made.dir();
        fs::create_dir(&dir).with_context(|| format!("mkdir {}", dir.display()))?;
        Ok(made)
    }

    /// Its directory in cgroup2.
    pub fn dir(&self) -> PathBuf {
        self.hierarchy.root.join(self.path.trim_start_matches('/'))
    }

    /// Its path as lens names it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its id in the kernel.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(self.dir())?.ino())
    }

    /// Starts `command` in it: the child joins before it becomes the program.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let door = self.dir().join("cgroup.procs");
        let mut door = fs::OpenOptions::new()
            .write(true)
            .open(&door)
            .with_context(|| door.display().to_string())?;
        // SAFETY: between fork and exec only `write` is called.
        #[expect(unsafe_code, reason = "the only hook between fork and exec")]
        unsafe {
            command.pre_exec(move || door.write_all(b"0"));
        }
        Ok(command.spawn()?)
    }

    /// Kills what runs in it and below, and waits until nothing does.
    pub fn kill(&self) -> Result<()> {
        fs::write(self.dir().join("cgroup.kill"), "1")?;
        let events = self.dir().join("cgroup.events");
        until("an empty cgroup", Duration::from_secs(10), || {
            fs::read_to_string(&events).is_ok_and(|text| text.contains("populated 0"))
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let gone = self
            .kill()
            .and_then(|()| fs::remove_dir(self.dir()).context("rmdir"));
        if let Err(why) = gone {
            let _ = writeln!(std::io::stderr(), "{}: {why:#}", self.path);
        }
    }
}
