//! Cgroups that a test makes for itself, and that are gone when it is, however it ends.

use std::{
    fs,
    io::Write as _,
    os::{
        fd::AsFd as _,
        unix::{
            fs::{FileExt as _, MetadataExt as _},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Where cgroups are on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// The mount of cgroup2.
    pub root: PathBuf,
    /// The mount of the v1 controller `cpu`, where v1 has it.
    pub cpu_v1: Option<PathBuf>,
}

impl Hierarchy {
    /// This host's.
    pub fn of_host() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo")?)
    }

    fn parse(mountinfo: &str) -> Result<Self> {
        let (mut root, mut cpu_v1) = (None, None);
        for line in mountinfo.lines() {
            let Some((mount, fs)) = line.split_once(" - ") else {
                continue;
            };
            let at = mount.split(' ').nth(4).map(PathBuf::from);
            let mut fs = fs.split(' ');
            match (fs.next(), fs.nth(1)) {
                (Some("cgroup2"), _) => root = root.or(at),
                (Some("cgroup"), Some(options)) if options.split(',').any(|o| o == "cpu") => {
                    cpu_v1 = cpu_v1.or(at);
                }
                _ => {}
            }
        }
        Ok(Self {
            root: root.context("no cgroup2 is mounted")?,
            cpu_v1,
        })
    }
}

/// A fresh cgroup; where v1 has the controller `cpu`, also one of the same name there, so that
/// its limits bind as they do on a host without v1.
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
        if made.hierarchy.cpu_v1.is_none() {
            made.enable_cpu();
        }
        for dir in made.dirs() {
            fs::create_dir(&dir).with_context(|| format!("mkdir {}", dir.display()))?;
        }
        Ok(made)
    }

    /// Hands the controller down; where the kernel or somebody else has it, limits are refused.
    fn enable_cpu(&self) {
        let mut at = self.hierarchy.root.clone();
        for segment in self.path.split('/') {
            at.push(segment);
            let _ = fs::write(at.join("cgroup.subtree_control"), "+cpu");
        }
    }

    fn dirs(&self) -> Vec<PathBuf> {
        let of = |root: &PathBuf| root.join(self.path.trim_start_matches('/'));
        let mut dirs = vec![of(&self.hierarchy.root)];
        dirs.extend(self.hierarchy.cpu_v1.as_ref().map(of));
        dirs
    }

    /// Its directory in cgroup2.
    pub fn dir(&self) -> PathBuf {
        self.hierarchy.root.join(self.path.trim_start_matches('/'))
    }

    fn cpu_dir(&self) -> PathBuf {
        let root = self
            .hierarchy
            .cpu_v1
            .as_ref()
            .unwrap_or(&self.hierarchy.root);
        root.join(self.path.trim_start_matches('/'))
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
        let mut doors = Vec::new();
        for dir in self.dirs() {
            let door = dir.join("cgroup.procs");
            doors.push(
                fs::OpenOptions::new()
                    .write(true)
                    .open(&door)
                    .with_context(|| door.display().to_string())?,
            );
        }
        let join = move || doors.iter_mut().try_for_each(|door| door.write_all(b"0"));
        // SAFETY: between fork and exec only `write` is called.
        #[expect(unsafe_code, reason = "the only hook between fork and exec")]
        unsafe {
            command.pre_exec(join);
        }
        Ok(command.spawn()?)
    }

    /// CPU time its processes have had, in nanoseconds.
    pub fn usage_ns(&self) -> Result<u64> {
        Ok(field(&self.dir().join("cpu.stat"), "usage_usec")? * 1000)
    }

    /// Its share of a CPU against its siblings'; 100 is what each has.
    pub fn set_weight(&self, weight: u32) -> Result<()> {
        if self.hierarchy.cpu_v1.is_some() {
            let shares = u64::from(weight) * 1024 / 100;
            self.set_cpu("cpu.shares", &shares.to_string())
        } else {
            self.set_cpu("cpu.weight", &weight.to_string())
        }
    }

    /// Lets it run for `quota` in each `period`.
    pub fn set_quota(&self, quota: Duration, period: Duration) -> Result<()> {
        let (quota, period) = (quota.as_micros(), period.as_micros());
        if self.hierarchy.cpu_v1.is_some() {
            self.set_cpu("cpu.cfs_period_us", &period.to_string())?;
            self.set_cpu("cpu.cfs_quota_us", &quota.to_string())
        } else {
            self.set_cpu("cpu.max", &format!("{quota} {period}"))
        }
    }

    /// Lets its tasks be real-time ones, where groups need leave for that.
    pub fn allow_realtime(&self) -> Result<()> {
        if self.cpu_dir().join("cpu.rt_runtime_us").exists() {
            self.set_cpu("cpu.rt_runtime_us", "900000")?;
        }
        Ok(())
    }

    /// How often and for how long (in nanoseconds) its quota has held it, over all CPUs.
    pub fn throttled(&self) -> Result<(u64, u64)> {
        let stat = self.cpu_dir().join("cpu.stat");
        let times = field(&stat, "nr_throttled")?;
        let time = if self.hierarchy.cpu_v1.is_some() {
            field(&stat, "throttled_time")?
        } else {
            field(&stat, "throttled_usec")? * 1000
        };
        Ok((times, time))
    }

    fn set_cpu(&self, file: &str, value: &str) -> Result<()> {
        let path = self.cpu_dir().join(file);
        fs::write(&path, value).with_context(|| format!("{value} > {}", path.display()))
    }

    /// Kills what runs in it and below, and waits until nothing does.
    pub fn kill(&self) -> Result<()> {
        let dir = self.dir();
        fs::write(dir.join("cgroup.kill"), "1")?;
        let file = fs::File::open(dir.join("cgroup.events"))?;
        let mut text = [0; 256];
        for _ in 0..1000 {
            // The file counts as changed until it is read through the same descriptor.
            let n = file.read_at(&mut text, 0)?;
            if text[..n].starts_with(b"populated 0") {
                return Ok(());
            }
            let mut changed = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)];
            let limit = Timespec {
                tv_sec: 0,
                tv_nsec: 10_000_000,
            };
            poll(&mut changed, Some(&limit))?;
        }
        bail!("{} still holds processes", self.path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let gone = self.kill().and_then(|()| {
            for dir in self.dirs() {
                fs::remove_dir(&dir).with_context(|| format!("rmdir {}", dir.display()))?;
            }
            Ok(())
        });
        if let Err(why) = gone {
            let _ = writeln!(std::io::stderr(), "{why:#}");
        }
    }
}

/// The number behind `name` in a file of `name number` lines.
fn field(file: &Path, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let value = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    let value = value.with_context(|| format!("{}: no {name}", file.display()))?;
    Ok(value.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_host_are_understood() {
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      36 31 0:33 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        let found = Hierarchy::parse(hybrid).unwrap();
        assert_eq!(found.root, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(
            found.cpu_v1.as_deref(),
            Some(Path::new("/sys/fs/cgroup/cpu"))
        );
        let plain = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Hierarchy::parse(plain).unwrap();
        assert_eq!((found.root, found.cpu_v1), ("/sys/fs/cgroup".into(), None));
        assert!(Hierarchy::parse("").is_err());
    }
}
