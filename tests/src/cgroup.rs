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
    /// The mount of the v1 controller `memory`, where v1 has it.
    pub memory_v1: Option<PathBuf>,
}

impl Hierarchy {
    /// This host's.
    pub fn of_host() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo")?)
    }

    fn parse(mountinfo: &str) -> Result<Self> {
        let (mut root, mut cpu_v1, mut memory_v1) = (None, None, None);
        for line in mountinfo.lines() {
            let Some((mount, fs)) = line.split_once(" - ") else {
                continue;
            };
            let at = mount.split(' ').nth(4).map(PathBuf::from);
            let mut fs = fs.split(' ');
            match (fs.next(), fs.nth(1)) {
                (Some("cgroup2"), _) => root = root.or(at),
                (Some("cgroup"), Some(options)) => {
                    let has = |controller| options.split(',').any(|o| o == controller);
                    cpu_v1 = cpu_v1.or_else(|| at.clone().filter(|_| has("cpu")));
                    memory_v1 = memory_v1.or_else(|| at.filter(|_| has("memory")));
                }
                _ => {}
            }
        }
        Ok(Self {
            root: root.context("no cgroup2 is mounted")?,
            cpu_v1,
            memory_v1,
        })
    }

    /// The mounts in which a cgroup is made; those of v1 may be one.
    fn mounts(&self) -> Vec<&PathBuf> {
        let mut mounts = vec![&self.root];
        mounts.extend(&self.cpu_v1);
        let apart = self
            .memory_v1
            .iter()
            .filter(|m| Some(*m) != self.cpu_v1.as_ref());
        mounts.extend(apart);
        mounts
    }
}

/// A fresh cgroup; where v1 has the controllers `cpu` and `memory`, also one of the same name
/// there, so that its limits bind as they do on a host without v1.
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
        made.enable_controllers();
        for dir in made.dirs() {
            fs::create_dir(&dir).with_context(|| format!("mkdir {}", dir.display()))?;
        }
        Ok(made)
    }

    /// Hands controllers down; those that v1 or somebody else has are refused, and so are their
    /// limits. Where memory or I/O are handed down there may be no processes, except in the root.
    fn enable_controllers(&self) {
        let mut at = self.hierarchy.root.clone();
        let mut controllers = &["cpu", "pids", "memory", "io"][..];
        for segment in self.path.split('/') {
            at.push(segment);
            for controller in controllers {
                let _ = fs::write(at.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            controllers = &["cpu", "pids"];
        }
    }

    /// Whether cgroup2 has `controller` for it.
    pub fn has(&self, controller: &str) -> Result<bool> {
        let controllers = fs::read_to_string(self.dir().join("cgroup.controllers"))?;
        let mut controllers = controllers.split_ascii_whitespace();
        Ok(controllers.any(|found| found == controller))
    }

    /// Sets one of its limits in cgroup2.
    pub fn limit(&self, file: &str, value: &str) -> Result<()> {
        let path = self.dir().join(file);
        fs::write(&path, value).with_context(|| format!("{value} > {}", path.display()))
    }

    fn dirs(&self) -> Vec<PathBuf> {
        let mounts = self.hierarchy.mounts().into_iter();
        mounts.map(|mount| self.under(mount)).collect()
    }

    fn under(&self, mount: &Path) -> PathBuf {
        mount.join(self.path.trim_start_matches('/'))
    }

    /// Its directory in cgroup2.
    pub fn dir(&self) -> PathBuf {
        self.under(&self.hierarchy.root)
    }

    fn cpu_dir(&self) -> PathBuf {
        let own = self.hierarchy.cpu_v1.as_ref();
        self.under(own.unwrap_or(&self.hierarchy.root))
    }

    fn memory_dir(&self) -> PathBuf {
        let own = self.hierarchy.memory_v1.as_ref();
        self.under(own.unwrap_or(&self.hierarchy.root))
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

    /// Whether the memory controller is a v1 one.
    pub fn memory_is_v1(&self) -> bool {
        self.hierarchy.memory_v1.is_some()
    }

    /// Its id in the kernel where the memory controller is.
    pub fn memory_id(&self) -> Result<u64> {
        Ok(fs::metadata(self.memory_dir())?.ino())
    }

    /// Lets it have so much memory, and no swap. On v2 there may be no processes in those above it, but
    /// for the root.
    pub fn set_memory_limit(&self, bytes: u64) -> Result<()> {
        if !self.memory_is_v1() {
            let mut at = self.hierarchy.root.clone();
            for segment in self.path.split('/').filter(|name| !name.is_empty()) {
                let door = at.join("cgroup.subtree_control");
                fs::write(&door, "+memory").with_context(|| door.display().to_string())?;
                at.push(segment);
            }
        }
        let (limit, swap, most) = if self.memory_is_v1() {
            (
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                bytes,
            )
        } else {
            ("memory.max", "memory.swap.max", 0)
        };
        let path = self.memory_dir().join(limit);
        fs::write(&path, bytes.to_string()).with_context(|| path.display().to_string())?;
        // Not where there is none: some kernels then count the wrong limit's hits.
        let has_swap = fs::read_to_string("/proc/swaps")?.lines().count() > 1;
        let swap = self.memory_dir().join(swap);
        if has_swap && swap.exists() {
            fs::write(swap, most.to_string())?;
        }
        Ok(())
    }

    /// How often it was at its limit.
    pub fn memory_limit_hits(&self) -> Result<u64> {
        let dir = self.memory_dir();
        if self.memory_is_v1() {
            let mut hits = 0;
            // Without swap apart from memory it is the limit of both that is hit.
            for file in ["memory.failcnt", "memory.memsw.failcnt"] {
                let n = fs::read_to_string(dir.join(file)).unwrap_or_else(|_| "0".to_owned());
                hits += n.trim_end().parse::<u64>()?;
            }
            return Ok(hits);
        }
        field(&dir.join("memory.events"), "max")
    }

    /// How many of its processes were killed for want of memory.
    pub fn oom_kills(&self) -> Result<u64> {
        let file = if self.memory_is_v1() {
            "memory.oom_control"
        } else {
            "memory.events"
        };
        field(&self.memory_dir().join(file), "oom_kill")
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
                      37 31 0:34 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        let found = Hierarchy::parse(hybrid).unwrap();
        assert_eq!(found.root, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(
            found.cpu_v1.as_deref(),
            Some(Path::new("/sys/fs/cgroup/cpu"))
        );
        assert_eq!(
            found.memory_v1.as_deref(),
            Some(Path::new("/sys/fs/cgroup/memory"))
        );
        let plain = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Hierarchy::parse(plain).unwrap();
        assert_eq!((&found.cpu_v1, &found.memory_v1), (&None, &None));
        assert_eq!(found.root, Path::new("/sys/fs/cgroup"));
        assert!(Hierarchy::parse("").is_err());
    }
}
