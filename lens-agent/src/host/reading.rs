//! All host files, once a tick.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Cgroup, Hierarchy, ReadError, Root, Watched,
    cgroup::{self, CgroupFiles},
    diskstats::{self, DiskStats},
    filesystems::{self, Filesystem},
    loadavg::{self, LoadAvg},
    meminfo::{self, MemInfo},
    pressure::{self, Pressure},
    scan::{ProcessSummary, Scan, Scanner},
    stat::{self, HostStat},
    vmstat::{self, VmStat},
};
use crate::base::{clock::Moment, quality::Quality};

/// What the host's files say at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostReading {
    /// When the reading was begun.
    pub taken_at: Timestamp,
    /// The same on the monotonic clock, in milliseconds since boot.
    pub monotonic_ms: u64,
    /// The whole machine.
    pub host: HostWide,
    /// The targets that were there, by path.
    pub cgroups: BTreeMap<Arc<str>, CgroupReading>,
    /// Which files could not be read.
    pub quality: Quality,
}

/// What belongs to the whole machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostWide {
    /// CPU time, switches, forks.
    pub stat: Option<HostStat>,
    /// Where the memory is.
    pub memory: Option<MemInfo>,
    /// Faults, reclaim and swap.
    pub vm: Option<VmStat>,
    /// Load averages.
    pub load: Option<LoadAvg>,
    /// Block devices by name.
    pub disks: Option<BTreeMap<String, DiskStats>>,
    /// Local file systems by where they are mounted.
    pub filesystems: Option<BTreeMap<String, Filesystem>>,
    /// Waits for CPU.
    pub cpu_pressure: Option<Pressure>,
    /// Waits for memory.
    pub memory_pressure: Option<Pressure>,
    /// Waits for I/O.
    pub io_pressure: Option<Pressure>,
    /// All processes, those of no target too.
    pub processes: Option<ProcessSummary>,
    /// Kernel threads.
    pub kernel_threads: Option<u64>,
    /// Kernel threads that sleep, and no signal wakes them.
    pub kernel_threads_blocked: Option<u64>,
}

/// What belongs to one cgroup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CgroupReading {
    /// Its id. A path that was removed and made again has another one.
    pub id: u64,
    /// What its files say.
    pub files: CgroupFiles,
    /// The processes in it, not in those below it; `None` if no process could be read.
    pub processes: Option<ProcessSummary>,
}

/// Reads the host's files; keeps what makes the next reading cheaper.
#[derive(Debug)]
pub struct HostReader {
    root: Root,
    hierarchy: Option<Hierarchy>,
    scanner: Scanner,
    buffer: Vec<u8>,
}

impl HostReader {
    /// Finds out which cgroup hierarchies there are.
    pub fn new(root: Root) -> Result<Self, ReadError> {
        let hierarchy = Hierarchy::detect(&root)?;
        let watched = hierarchy
            .as_ref()
            .map_or(Watched::V2, |h| h.watched.clone());
        Ok(Self {
            root,
            hierarchy,
            scanner: Scanner::new(watched),
            buffer: Vec::new(),
        })
    }

    /// The cgroup hierarchies; `None` on a host without cgroups.
    pub fn hierarchy(&self) -> Option<&Hierarchy> {
        self.hierarchy.as_ref()
    }

    /// Where the files are.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// One reading, begun at `now`. Never fails: what cannot be read is absent, and `quality` says
    /// why. Targets that have vanished are absent.
    pub fn read(&mut self, targets: &[Cgroup], now: Moment) -> HostReading {
        let mut notes = Notes::default();
        let scanned = self.scanner.scan(&self.root, &mut self.buffer);
        let scan = notes.take("/proc", scanned);
        if let Some((n, why)) = scan.as_ref().and_then(|scan| scan.unread.as_ref()) {
            notes.note("/proc/PID", format!("{n} processes: {why}"));
        }
        let host = self.host_wide(scan.as_ref(), &mut notes);
        let mut cgroups = BTreeMap::new();
        for target in targets {
            if let Some(reading) = self.cgroup(target, scan.as_ref(), &mut notes) {
                cgroups.insert(Arc::clone(&target.path), reading);
            }
        }
        HostReading {
            taken_at: now.wall,
            monotonic_ms: u64::try_from(now.mono.as_millis()).unwrap_or(u64::MAX),
            host,
            cgroups,
            quality: notes.into(),
        }
    }

    fn host_wide(&mut self, scan: Option<&Scan>, notes: &mut Notes) -> HostWide {
        let (root, buffer) = (&self.root, &mut self.buffer);
        let mut pressure = |resource: &str| {
            let path = format!("/proc/pressure/{resource}");
            let read = pressure::read(root, &path, buffer);
            let pressure = notes.take(&path, read)?;
            if pressure.is_none() {
                notes.note(
                    "/proc/pressure",
                    "the kernel has none, or was booted with psi=0",
                );
            }
            pressure
        };
        let (cpu_pressure, memory_pressure, io_pressure) =
            (pressure("cpu"), pressure("memory"), pressure("io"));
        HostWide {
            stat: notes.take("/proc/stat", stat::read(root, buffer)),
            memory: notes.take("/proc/meminfo", meminfo::read(root, buffer)),
            vm: notes.take("/proc/vmstat", vmstat::read(root, buffer)),
            load: notes.take("/proc/loadavg", loadavg::read(root, buffer)),
            disks: notes.take("/proc/diskstats", diskstats::read(root, buffer)),
            filesystems: filesystems(root, buffer, notes),
            cpu_pressure,
            memory_pressure,
            io_pressure,
            processes: scan.map(|scan| scan.host.clone()),
            kernel_threads: scan.map(|scan| scan.kernel_threads),
            kernel_threads_blocked: scan.map(|scan| scan.kernel_threads_blocked),
        }
    }

    fn cgroup(
        &mut self,
        target: &Cgroup,
        scan: Option<&Scan>,
        notes: &mut Notes,
    ) -> Option<CgroupReading> {
        let hierarchy = self.hierarchy.as_ref()?;
        // A path that was removed and made again is not the target any more.
        let metadata = fs::metadata(self.root.path(&target.dir)).ok()?;
        if metadata.ino() != target.id {
            return None;
        }
        let files = cgroup::read(&self.root, hierarchy, target, scan, notes, &mut self.buffer);
        let processes = scan.map(|scan| {
            scan.cgroups
                .get(&target.path)
                .map(|p| p.summary.clone())
                .unwrap_or_default()
        });
        Some(CgroupReading {
            id: target.id,
            files,
            processes,
        })
    }
}

/// What is mounted; says which file systems were not asked.
fn filesystems(
    root: &Root,
    buffer: &mut Vec<u8>,
    notes: &mut Notes,
) -> Option<BTreeMap<String, Filesystem>> {
    /// Of those that were not asked, so many are named.
    const NAMED: usize = 8;
    let mounted = notes.take("mountinfo", filesystems::read(root, buffer))?;
    if !mounted.not_asked.is_empty() {
        let mut named = mounted.not_asked;
        let left = named.len().saturating_sub(NAMED);
        named.truncate(NAMED);
        let rest = if left == 0 {
            String::new()
        } else {
            format!(" and {left} more")
        };
        notes.note(
            "filesystems",
            format!(
                "not asked, because they may not answer: {}{rest}",
                named.join(", ")
            ),
        );
    }
    Some(mounted.filesystems)
}

/// Why files could not be read: the first reason for each kind of file, so that a thousand cgroups
/// with one fault are one note.
#[derive(Debug, Default)]
pub(super) struct Notes(BTreeMap<String, String>);

impl Notes {
    pub(super) fn note(&mut self, source: &str, why: impl Into<String>) {
        if !self.0.contains_key(source) {
            self.0.insert(source.to_owned(), why.into());
        }
    }

    /// The value, or `None` and a note.
    fn take<T>(&mut self, source: &str, result: Result<T, ReadError>) -> Option<T> {
        result
            .map_err(|error| self.note(source, error.to_string()))
            .ok()
    }

    /// The same, but what is not there is worth no note.
    pub(super) fn unless_gone<T>(
        &mut self,
        source: &str,
        result: Result<T, ReadError>,
    ) -> Option<T> {
        match result {
            Err(error) if error.is_gone() || error.is_off() => None,
            result => self.take(source, result),
        }
    }
}

impl From<Notes> for Quality {
    fn from(notes: Notes) -> Self {
        let mut quality = Self::default();
        for (source, why) in notes.0 {
            quality.miss(source, why);
        }
        quality
    }
}

#[cfg(test)]
mod tests;
