//! The files of one cgroup, wherever its controllers are.
//!
//! On a hybrid host the files of a v1 controller are not in the cgroup's directory, but at another
//! path in the controller's own hierarchy. That path is taken from the processes in the cgroup (the
//! controller's line in `/proc/PID/cgroup`). Where they are at the controller's root nothing is
//! reported: its numbers are those of everybody.
//!
//! The files: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    Cgroup, Hierarchy, Root, Watched,
    hierarchy::clean_path,
    pressure::{self, Pressure},
    reading::Notes,
    scan::{CgroupProcesses, Scan},
    text::Text,
};

/// What v1 shows for a memory limit that is none: `PAGE_COUNTER_MAX` pages, which depends on the
/// page size and is above this with each.
const V1_NO_LIMIT: u64 = 1 << 62;

/// Where a controller's numbers come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The path in the controller's hierarchy, cleaned. In v2 the cgroup's own.
    pub path: Arc<str>,
    /// Other watched cgroups whose processes are at the same path: the numbers, and the limit, are
    /// theirs too.
    pub shared_with: u32,
}

/// CPU time, with that of processes that have ended and of cgroups below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupCpu {
    /// All of it.
    pub usage_us: u64,
    /// In user mode.
    pub user_us: Option<u64>,
    /// In the kernel.
    pub system_us: Option<u64>,
}

/// The CPU bandwidth limit and what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuQuota {
    /// Where these are from.
    pub place: Place,
    /// CPU time in each period; `None` is without limit.
    pub quota_us: Option<u64>,
    /// The period.
    pub period_us: Option<u64>,
    /// Periods in which the cgroup ran.
    pub periods: u64,
    /// Periods in which it used up its quota.
    pub throttled_periods: u64,
    /// Time for which it was held back, added up over CPUs.
    pub throttled_us: u64,
}

/// Memory, with that of cgroups below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMemory {
    /// Where these are from.
    pub place: Place,
    /// In use.
    pub current_bytes: u64,
    /// The cgroup's own limit; `None` is without one. One further up may be lower.
    pub limit_bytes: Option<u64>,
    /// Anonymous pages.
    pub anon_bytes: Option<u64>,
    /// Page cache, tmpfs and shared memory included.
    pub file_bytes: Option<u64>,
    /// tmpfs and shared memory.
    pub shmem_bytes: Option<u64>,
    /// To be written to disk.
    pub dirty_bytes: Option<u64>,
    /// Being written to disk.
    pub writeback_bytes: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that had to wait for a disk.
    pub major_faults: Option<u64>,
    /// Pages that were reclaimed and then missed.
    pub refaulted_pages: Option<u64>,
    /// Times that the limit was hit, so that pages were reclaimed.
    pub limit_hits: Option<u64>,
    /// Times that the limit was hit, and nothing could be reclaimed (v2).
    pub ooms: Option<u64>,
    /// Processes killed for it.
    pub oom_kills: Option<u64>,
}

/// Processes and threads, with those of cgroups below.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPids {
    /// Where these are from.
    pub place: Place,
    /// Tasks (threads) there are.
    pub current: u64,
    /// The limit; `None` is without one.
    pub limit: Option<u64>,
    /// Forks that were refused.
    pub refused: Option<u64>,
}

/// What the files of one cgroup say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CgroupFiles {
    /// CPU time.
    pub cpu: Option<CgroupCpu>,
    /// CPU bandwidth.
    pub quota: Option<CpuQuota>,
    /// Memory.
    pub memory: Option<CgroupMemory>,
    /// Processes and threads.
    pub pids: Option<CgroupPids>,
    /// Waits for CPU (v2, whichever controllers it has).
    pub cpu_pressure: Option<Pressure>,
    /// Waits for memory.
    pub memory_pressure: Option<Pressure>,
    /// Waits for I/O.
    pub io_pressure: Option<Pressure>,
    /// Whether there are processes here or below (v2). Zombies do not count.
    pub populated: Option<bool>,
    /// Whether all processes are frozen.
    pub frozen: Option<bool>,
}

/// Reads the files of `cgroup`. What cannot be read is noted; what isn't there is `None`.
pub(super) fn read(
    root: &Root,
    hierarchy: &Hierarchy,
    cgroup: &Cgroup,
    scan: Option<&Scan>,
    notes: &mut Notes,
    buffer: &mut Vec<u8>,
) -> CgroupFiles {
    let processes = scan.and_then(|scan| scan.cgroups.get(&cgroup.path));
    let mut reader = Reader {
        root,
        hierarchy,
        cgroup,
        scan,
        processes,
        notes,
        buffer,
    };
    let (cpu, quota) = reader.cpu();
    let (populated, frozen) = reader.state();
    CgroupFiles {
        cpu,
        quota,
        memory: reader.memory(),
        pids: reader.pids(),
        cpu_pressure: reader.pressure("cpu.pressure"),
        memory_pressure: reader.pressure("memory.pressure"),
        io_pressure: reader.pressure("io.pressure"),
        populated,
        frozen,
    }
}

/// A controller's directory.
struct Located {
    dir: PathBuf,
    is_v1: bool,
    place: Place,
}

struct Reader<'a> {
    root: &'a Root,
    hierarchy: &'a Hierarchy,
    cgroup: &'a Cgroup,
    scan: Option<&'a Scan>,
    processes: Option<&'a CgroupProcesses>,
    notes: &'a mut Notes,
    buffer: &'a mut Vec<u8>,
}

impl Reader<'_> {
    /// Where a controller keeps this cgroup's files; `None` if it has none for it alone.
    fn locate(&self, controller: &str) -> Option<Located> {
        let own = |is_v1| Located {
            dir: self.cgroup.dir.clone(),
            is_v1,
            place: Place {
                path: Arc::clone(&self.cgroup.path),
                shared_with: 0,
            },
        };
        match self.hierarchy.v1.get(controller) {
            // In v2 the root has no files for what it would count of everybody.
            None => (self.hierarchy.watched == Watched::V2).then(|| own(false)),
            Some(mount) if self.hierarchy.watched_mount() == Some(mount) => {
                (&*self.cgroup.path != "/").then(|| own(true))
            }
            Some(mount) => {
                let path = self.processes?.v1_path(controller)?;
                let dir = mount.dir_of(path).filter(|_| path != "/")?;
                let sharers = self.scan.map_or(0, |scan| scan.sharers(controller, path));
                let place = Place {
                    path: clean_path(path),
                    shared_with: sharers.saturating_sub(1),
                };
                Some(Located {
                    dir,
                    is_v1: true,
                    place,
                })
            }
        }
    }

    /// Reads one file; `None` if it isn't there, or cannot be read, which is noted.
    fn file<T>(
        &mut self,
        dir: &Path,
        name: &str,
        parse: impl FnOnce(&Text<'_>) -> Result<T, super::ReadError>,
    ) -> Option<T> {
        let parsed = self
            .root
            .read(dir.join(name), self.buffer)
            .and_then(|text| parse(&text));
        self.notes.unless_gone(&format!("cgroup {name}"), parsed)
    }

    fn number(&mut self, dir: &Path, name: &str) -> Option<u64> {
        self.file(dir, name, |text| text.number(name))
    }

    /// The numbers of these keys in a file of pairs.
    fn pairs<const N: usize>(
        &mut self,
        dir: &Path,
        name: &str,
        keys: [&str; N],
    ) -> [Option<u64>; N] {
        let mut values = [None; N];
        let read = self.file(dir, name, |text| {
            text.each_pair(|key, n| {
                if let Some(place) = keys.iter().position(|wanted| *wanted == key) {
                    values[place] = Some(n);
                }
            })
        });
        if read.is_some() { values } else { [None; N] }
    }

    fn cpu(&mut self) -> (Option<CgroupCpu>, Option<CpuQuota>) {
        let dir = self.cgroup.dir.clone();
        let [
            usage,
            user_us,
            system_us,
            periods,
            throttled_periods,
            throttled_us,
        ] = self.pairs(
            &dir,
            "cpu.stat",
            [
                "usage_usec",
                "user_usec",
                "system_usec",
                "nr_periods",
                "nr_throttled",
                "throttled_usec",
            ],
        );
        let cpu = match usage {
            Some(usage_us) => Some(CgroupCpu {
                usage_us,
                user_us,
                system_us,
            }),
            None => self.v1_usage(),
        };
        let quota = self
            .locate("cpu")
            .and_then(|Located { dir, is_v1, place }| {
                if is_v1 {
                    return self.v1_quota(&dir, place);
                }
                let (quota_us, period_us) = self.file(&dir, "cpu.max", |text| {
                    let mut fields = text.first_line().fields();
                    Ok((fields.limit("quota")?, fields.number("period")?))
                })?;
                Some(CpuQuota {
                    place,
                    quota_us,
                    period_us: Some(period_us),
                    periods: periods?,
                    throttled_periods: throttled_periods?,
                    throttled_us: throttled_us?,
                })
            });
        (cpu, quota)
    }

    fn v1_usage(&mut self) -> Option<CgroupCpu> {
        let Located { dir, .. } = self.locate("cpuacct").filter(|located| located.is_v1)?;
        let mut micros = |name| self.number(&dir, name).map(|nanos| nanos / 1000);
        Some(CgroupCpu {
            usage_us: micros("cpuacct.usage")?,
            user_us: micros("cpuacct.usage_user"),
            system_us: micros("cpuacct.usage_sys"),
        })
    }

    fn v1_quota(&mut self, dir: &Path, place: Place) -> Option<CpuQuota> {
        let [periods, throttled_periods, throttled_ns] = self.pairs(
            dir,
            "cpu.stat",
            ["nr_periods", "nr_throttled", "throttled_time"],
        );
        let quota_us = self.file(dir, "cpu.cfs_quota_us", |text| {
            // -1 is without limit.
            let quota: i64 = text.first_line().fields().number("quota")?;
            Ok(u64::try_from(quota).ok())
        })?;
        Some(CpuQuota {
            place,
            quota_us,
            period_us: self.number(dir, "cpu.cfs_period_us"),
            periods: periods?,
            throttled_periods: throttled_periods?,
            throttled_us: throttled_ns? / 1000,
        })
    }

    fn memory(&mut self) -> Option<CgroupMemory> {
        let Located { dir, is_v1, place } = self.locate("memory")?;
        if is_v1 {
            return self.v1_memory(&dir, place);
        }
        let current_bytes = self.number(&dir, "memory.current")?;
        let limit_bytes = self.file(&dir, "memory.max", |text| text.limit("memory.max"))?;
        let keys = [
            "anon",
            "file",
            "shmem",
            "file_dirty",
            "file_writeback",
            "pgfault",
            "pgmajfault",
            "workingset_refault_anon",
            "workingset_refault_file",
        ];
        let stat = self.pairs(&dir, "memory.stat", keys);
        let [limit_hits, ooms, oom_kills] =
            self.pairs(&dir, "memory.events", ["max", "oom", "oom_kill"]);
        let memory = CgroupMemory {
            place,
            current_bytes,
            limit_bytes,
            limit_hits,
            ooms,
            oom_kills,
            ..CgroupMemory::default()
        };
        Some(memory.with_stat(stat))
    }

    fn v1_memory(&mut self, dir: &Path, place: Place) -> Option<CgroupMemory> {
        let current_bytes = self.number(dir, "memory.usage_in_bytes")?;
        let limit = self.number(dir, "memory.limit_in_bytes")?;
        let keys = [
            "total_rss",
            "total_cache",
            "total_shmem",
            "total_dirty",
            "total_writeback",
            "total_pgfault",
            "total_pgmajfault",
            "total_workingset_refault_anon",
            "total_workingset_refault_file",
        ];
        let stat = self.pairs(dir, "memory.stat", keys);
        let [oom_kills] = self.pairs(dir, "memory.oom_control", ["oom_kill"]);
        // With the same limit for memory and swap together it is that one which is hit.
        let with_swap = self.number(dir, "memory.memsw.failcnt");
        let hits = self.number(dir, "memory.failcnt");
        let memory = CgroupMemory {
            place,
            current_bytes,
            limit_bytes: Some(limit).filter(|&limit| limit < V1_NO_LIMIT),
            limit_hits: hits.map(|n| n.saturating_add(with_swap.unwrap_or_default())),
            ooms: None,
            oom_kills,
            ..CgroupMemory::default()
        };
        Some(memory.with_stat(stat))
    }

    fn pids(&mut self) -> Option<CgroupPids> {
        // The files are the same in v1 and v2.
        let Located { dir, place, .. } = self.locate("pids")?;
        let current = self.number(&dir, "pids.current")?;
        let limit = self.file(&dir, "pids.max", |text| text.limit("pids.max"))?;
        let [refused] = self.pairs(&dir, "pids.events", ["max"]);
        Some(CgroupPids {
            place,
            current,
            limit,
            refused,
        })
    }

    fn pressure(&mut self, name: &str) -> Option<Pressure> {
        if self.hierarchy.watched != Watched::V2 {
            return None;
        }
        let read = pressure::read(self.root, self.cgroup.dir.join(name), self.buffer);
        self.notes
            .unless_gone(&format!("cgroup {name}"), read)
            .flatten()
    }

    /// Whether it is populated, and whether it is frozen, by v2 or by the v1 controller.
    fn state(&mut self) -> (Option<bool>, Option<bool>) {
        let dir = self.cgroup.dir.clone();
        let [populated, frozen] = self.pairs(&dir, "cgroup.events", ["populated", "frozen"]);
        let v1_frozen = self
            .locate("freezer")
            .filter(|located| located.is_v1)
            .and_then(|Located { dir, .. }| {
                self.file(&dir, "freezer.state", |text| {
                    Ok(u64::from(
                        text.first_line().fields().word("state")? == "FROZEN",
                    ))
                })
            });
        (
            populated.map(|n| n != 0),
            frozen.max(v1_frozen).map(|n| n != 0),
        )
    }
}

impl CgroupMemory {
    /// With the numbers of `memory.stat`, in the order in which both hierarchies are asked.
    fn with_stat(self, stat: [Option<u64>; 9]) -> Self {
        let [
            anon,
            file,
            shmem,
            dirty,
            writeback,
            faults,
            major,
            refault_anon,
            refault_file,
        ] = stat;
        Self {
            anon_bytes: anon,
            file_bytes: file,
            shmem_bytes: shmem,
            dirty_bytes: dirty,
            writeback_bytes: writeback,
            page_faults: faults,
            major_faults: major,
            refaulted_pages: refault_anon
                .zip(refault_file)
                .map(|(anon, file)| anon.saturating_add(file)),
            ..self
        }
    }
}
