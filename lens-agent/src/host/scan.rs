//! All processes, looked at once and summed up by cgroup.
//!
//! Of each process `stat` is read; `cgroup` only while the process is young and at every tenth
//! scan thereafter, because a process seldom moves later than just after its start. 1,000 processes
//! take about 10 ms, and 20 ms while all are young (measured on a virtual machine, Linux 6.18).
//!
//! What ends between two scans is not seen here: these sums fall when a process ends, and are no
//! counters. For CPU time over short-lived processes there is the cgroup's own `cpu.stat`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    ReadError, Root, Watched,
    hierarchy::{clean_path, split_line},
    pid::{self, PidStat, TaskState},
    root::unless_gone,
};

/// Processes that are looked at; the rest are counted as unread.
const MAX_PROCESSES: usize = 65_536;
/// Processes named in each list of a summary.
const NAMED: usize = 5;
/// A process is young for so many scans.
const YOUNG: u64 = 3;
/// After that its cgroup is read again every so many scans.
const REVISIT: u64 = 10;
/// v1 controllers whose files are read for a cgroup.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "freezer"];

/// One process, as far as it is named in a summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// The main thread's name, cleaned.
    pub comm: String,
    /// The main thread's state.
    pub state: TaskState,
    /// CPU time since its start.
    pub cpu_ms: u64,
    /// CPU time since the previous scan; `None` in the first.
    pub ran_ms: Option<u64>,
    /// Pages in memory.
    pub rss_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// When it was started, in milliseconds since boot.
    pub started_ms: u64,
}

/// Processes of one scope, kernel threads not included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSummary {
    /// Processes, zombies included.
    pub processes: u64,
    /// Threads.
    pub threads: u64,
    /// Processes whose main thread runs or waits for a CPU.
    pub running: u64,
    /// Processes whose main thread sleeps.
    pub sleeping: u64,
    /// Processes whose main thread sleeps, and no signal wakes it.
    pub blocked: u64,
    /// Processes that were stopped by a signal or a debugger.
    pub stopped: u64,
    /// Processes that have ended, and whose parents have not taken notice.
    pub zombies: u64,
    /// Pages in memory; those that several processes share count for each.
    pub rss_bytes: u64,
    /// Address space.
    pub virtual_bytes: u64,
    /// CPU time in user mode of the processes that are there now, since each one's start.
    pub user_ms: u64,
    /// CPU time in the kernel of the processes that are there now, since each one's start.
    pub system_ms: u64,
    /// Page faults of the processes that are there now, since each one's start.
    pub page_faults: u64,
    /// Of these, those that had to wait for a disk.
    pub major_faults: u64,
    /// Who used most CPU time since the previous scan (in the first one: since its start).
    pub most_cpu: Vec<Process>,
    /// Who has most pages in memory.
    pub most_memory: Vec<Process>,
    /// Some that are blocked, stopped or zombies.
    pub halted: Vec<Process>,
}

/// What a scan has seen.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Over all cgroups.
    pub host: ProcessSummary,
    /// By the cgroup that each process is in itself; those of cgroups below are not included.
    pub cgroups: BTreeMap<Arc<str>, CgroupProcesses>,
    /// Kernel threads.
    pub kernel_threads: u64,
    /// Kernel threads that sleep, and no signal wakes them.
    pub kernel_threads_blocked: u64,
    /// Processes that were there, but could not be read, and the first reason.
    pub unread: Option<(u64, String)>,
    sharers: HashMap<(String, String), u32>,
}

/// The processes of one cgroup.
#[derive(Clone, Debug, Default)]
pub struct CgroupProcesses {
    /// In numbers.
    pub summary: ProcessSummary,
    memberships: Vec<(Arc<Membership>, u64)>,
}

/// Where a process is: what `/proc/PID/cgroup` says.
#[derive(Debug, PartialEq, Eq)]
struct Membership {
    /// Its cgroup in the watched hierarchy, cleaned.
    cgroup: Arc<str>,
    /// Its paths by v1 controller, as they are.
    v1: BTreeMap<String, String>,
}

impl CgroupProcesses {
    /// The path, not cleaned, where most of these processes are in the hierarchy of a v1 controller.
    pub fn v1_path(&self, controller: &str) -> Option<&str> {
        let mut votes: BTreeMap<&str, u64> = BTreeMap::new();
        for (membership, n) in &self.memberships {
            if let Some(path) = membership.v1.get(controller) {
                *votes.entry(path).or_default() += n;
            }
        }
        votes
            .into_iter()
            .max_by_key(|(_, n)| *n)
            .map(|(path, _)| path)
    }

    fn add(&mut self, membership: &Arc<Membership>) {
        match self
            .memberships
            .iter_mut()
            .find(|(known, _)| Arc::ptr_eq(known, membership))
        {
            Some((_, n)) => *n += 1,
            None => self.memberships.push((Arc::clone(membership), 1)),
        }
    }
}

impl Scan {
    /// In how many watched cgroups there are processes that are at `path` in the hierarchy of a v1
    /// controller.
    pub fn sharers(&self, controller: &str, path: &str) -> u32 {
        let key = (controller.to_owned(), path.to_owned());
        self.sharers.get(&key).copied().unwrap_or_default()
    }

    fn count_sharers(&mut self) {
        for processes in self.cgroups.values() {
            let mut places: Vec<_> = processes
                .memberships
                .iter()
                .flat_map(|(membership, _)| &membership.v1)
                .collect();
            places.sort();
            places.dedup();
            for (controller, path) in places {
                *self
                    .sharers
                    .entry((controller.clone(), path.clone()))
                    .or_default() += 1;
            }
        }
    }
}

#[derive(Debug)]
struct Known {
    started_ms: u64,
    cpu_ms: u64,
    membership: Arc<Membership>,
    first_scan: u64,
    last_scan: u64,
}

/// Scans, and remembers what does not change from one scan to the next.
#[derive(Debug)]
pub struct Scanner {
    watched: Watched,
    known: HashMap<u32, Known>,
    /// By the text of `/proc/PID/cgroup`, which most processes have in common with others.
    memberships: HashMap<String, Arc<Membership>>,
    scans: u64,
}

impl Scanner {
    /// Names cgroups by their paths in `watched`.
    pub fn new(watched: Watched) -> Self {
        Self {
            watched,
            known: HashMap::new(),
            memberships: HashMap::new(),
            scans: 0,
        }
    }

    /// Looks at all processes. Fails only when `/proc` itself cannot be read.
    pub fn scan(&mut self, root: &Root, buffer: &mut Vec<u8>) -> Result<Scan, ReadError> {
        let mut scan = Scan::default();
        self.scans += 1;
        for (n, pid) in pid::all(root)?.enumerate() {
            let looked_at = if n < MAX_PROCESSES {
                self.look_at(root, pid, &mut scan, buffer)
            } else {
                Err(format!("more than {MAX_PROCESSES} processes"))
            };
            if let Err(why) = looked_at {
                scan.unread.get_or_insert((0, why)).0 += 1;
            }
        }
        let now = self.scans;
        self.known.retain(|_, known| known.last_scan == now);
        self.memberships
            .retain(|_, membership| Arc::strong_count(membership) > 1);
        scan.count_sharers();
        Ok(scan)
    }

    fn look_at(
        &mut self,
        root: &Root,
        pid: u32,
        scan: &mut Scan,
        buffer: &mut Vec<u8>,
    ) -> Result<(), String> {
        let stat = unless_gone(pid::stat(root, pid, buffer)).map_err(|error| error.to_string())?;
        let Some(stat) = stat else { return Ok(()) };
        if stat.is_kernel_thread {
            scan.kernel_threads += 1;
            scan.kernel_threads_blocked += u64::from(stat.state == TaskState::Blocked);
            return Ok(());
        }
        let known = self
            .known
            .get(&pid)
            .filter(|known| known.started_ms == stat.started_ms);
        let cpu_ms = stat.user_ms.saturating_add(stat.system_ms);
        // What was not there before has done all its work since.
        let before = known.map_or(0, |known| known.cpu_ms);
        let ran_ms = (self.scans > 1).then(|| cpu_ms.saturating_sub(before));
        let first_scan = known.map_or(self.scans, |known| known.first_scan);
        let remembered = known.filter(|known| !is_due(pid, known, self.scans));
        let membership = match remembered.map(|known| Arc::clone(&known.membership)) {
            Some(membership) => membership,
            None => match self.read_membership(root, pid, buffer)? {
                Some(membership) => membership,
                None => return Ok(()),
            },
        };
        let in_cgroup = scan
            .cgroups
            .entry(Arc::clone(&membership.cgroup))
            .or_default();
        in_cgroup.add(&membership);
        in_cgroup.summary.add(&stat, ran_ms);
        scan.host.add(&stat, ran_ms);
        let known = Known {
            started_ms: stat.started_ms,
            cpu_ms,
            membership,
            first_scan,
            last_scan: self.scans,
        };
        self.known.insert(pid, known);
        Ok(())
    }

    fn read_membership(
        &mut self,
        root: &Root,
        pid: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Arc<Membership>>, String> {
        let read = unless_gone(root.read(format!("proc/{pid}/cgroup"), buffer));
        let Some(text) = read.map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        if let Some(known) = self.memberships.get(text.as_str()) {
            return Ok(Some(Arc::clone(known)));
        }
        let membership = Membership::parse(text.as_str(), &self.watched)
            .ok_or_else(|| format!("/proc/{pid}/cgroup has no line of the watched hierarchy"))?;
        let membership = Arc::new(membership);
        self.memberships
            .insert(text.as_str().to_owned(), Arc::clone(&membership));
        Ok(Some(membership))
    }
}

/// Whether a process's cgroup is to be read again; spread over the scans by the pid.
fn is_due(pid: u32, known: &Known, scan: u64) -> bool {
    scan - known.first_scan < YOUNG || (scan + u64::from(pid)).is_multiple_of(REVISIT)
}

impl Membership {
    fn parse(text: &str, watched: &Watched) -> Option<Self> {
        let (mut cgroup, mut v1) = (None, BTreeMap::new());
        for (controllers, path) in text.lines().filter_map(split_line) {
            let is_watched = match watched {
                Watched::V2 => controllers.is_empty(),
                Watched::V1(wanted) => controllers.split(',').any(|c| c == wanted),
            };
            if is_watched {
                cgroup = Some(clean_path(path));
            }
            for controller in controllers.split(',').filter(|c| CONTROLLERS.contains(c)) {
                v1.insert(controller.to_owned(), path.to_owned());
            }
        }
        Some(Self {
            cgroup: cgroup?,
            v1,
        })
    }
}

impl ProcessSummary {
    fn add(&mut self, stat: &PidStat, ran_ms: Option<u64>) {
        self.processes += 1;
        self.threads += stat.threads;
        let (count, is_halted) = match stat.state {
            TaskState::Running => (&mut self.running, false),
            TaskState::Blocked => (&mut self.blocked, true),
            TaskState::Stopped => (&mut self.stopped, true),
            TaskState::Zombie => (&mut self.zombies, true),
            TaskState::Sleeping | TaskState::Idle | TaskState::Other => (&mut self.sleeping, false),
        };
        *count += 1;
        self.rss_bytes = self.rss_bytes.saturating_add(stat.rss_bytes);
        self.virtual_bytes = self.virtual_bytes.saturating_add(stat.virtual_bytes);
        self.user_ms += stat.user_ms;
        self.system_ms += stat.system_ms;
        self.page_faults += stat.page_faults;
        self.major_faults += stat.major_faults;
        let process = || Process {
            pid: stat.pid,
            parent: stat.parent,
            comm: stat.comm.clone(),
            state: stat.state,
            cpu_ms: stat.user_ms.saturating_add(stat.system_ms),
            ran_ms,
            rss_bytes: stat.rss_bytes,
            threads: stat.threads,
            started_ms: stat.started_ms,
        };
        if is_halted && self.halted.len() < NAMED {
            self.halted.push(process());
        }
        let rss_bytes = |process: &Process| process.rss_bytes;
        keep_largest(&mut self.most_memory, stat.rss_bytes, rss_bytes, process);
        let cpu_ms = stat.user_ms.saturating_add(stat.system_ms);
        // The same for all in a scan: either all are judged by the time since, or by all of it.
        let ran = ran_ms.unwrap_or(cpu_ms);
        if ran > 0 {
            keep_largest(
                &mut self.most_cpu,
                ran,
                |process| process.ran_ms.unwrap_or(process.cpu_ms),
                process,
            );
        }
    }
}

/// Adds the process that `make` makes to the list, largest first, if it is among the largest.
fn keep_largest(
    list: &mut Vec<Process>,
    size: u64,
    size_of: impl Fn(&Process) -> u64,
    make: impl Fn() -> Process,
) {
    let place = list.partition_point(|other| size_of(other) >= size);
    if place < NAMED {
        list.insert(place, make());
        list.truncate(NAMED);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::text::tests::{root_with, write};

    fn stat(pid: u32, comm: &str, state: char, cpu_ticks: u64, started: u64) -> String {
        format!(
            "{pid} ({comm}) {state} 1 0 0 0 -1 0 10 0 2 0 {cpu_ticks} 0 0 0 20 0 3 0 {started} 5000 7 0"
        )
    }

    #[test]
    fn processes_are_summed_up_by_cgroup_zombies_too() {
        let kernel_thread = "2 (kthreadd) D 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0 0";
        let (_dir, root) = root_with(&[
            ("proc/2/stat", kernel_thread),
            ("proc/10/stat", &stat(10, "web", 'S', 10, 1)),
            (
                "proc/10/cgroup",
                "4:memory:/m1\n1:cpu,cpuacct:/\n0::/shop\n",
            ),
            ("proc/11/stat", &stat(11, "worker", 'D', 30, 1)),
            (
                "proc/11/cgroup",
                "4:memory:/m1\n1:cpu,cpuacct:/\n0::/shop\n",
            ),
            ("proc/12/stat", &stat(12, "gone", 'Z', 0, 1)),
            (
                "proc/12/cgroup",
                "4:memory:/\n1:cpu,cpuacct:/\n0::/shop (deleted)\n",
            ),
            ("proc/13/stat", &stat(13, "batch", 'R', 5, 1)),
            (
                "proc/13/cgroup",
                "4:memory:/m1\n1:cpu,cpuacct:/c\n0::/batch\n",
            ),
            ("proc/14/stat", "nonsense"),
            ("proc/self/stat", "not a pid"),
        ]);
        let mut scanner = Scanner::new(Watched::V2);
        let scan = scanner.scan(&root, &mut Vec::new()).unwrap();
        let shop = &scan.cgroups["/shop"];
        assert_eq!((shop.summary.processes, shop.summary.threads), (3, 9));
        assert_eq!(
            (
                shop.summary.sleeping,
                shop.summary.blocked,
                shop.summary.zombies
            ),
            (1, 1, 1)
        );
        assert_eq!((shop.summary.user_ms, shop.summary.page_faults), (400, 36));
        assert_eq!(shop.summary.virtual_bytes, 15_000);
        assert_eq!(shop.summary.halted.len(), 2);
        assert_eq!(
            (shop.v1_path("memory"), shop.v1_path("cpu")),
            (Some("/m1"), Some("/"))
        );
        assert_eq!(
            (scan.sharers("memory", "/m1"), scan.sharers("cpu", "/c")),
            (2, 1)
        );
        assert_eq!(scan.host.processes, 4);
        assert_eq!((scan.kernel_threads, scan.kernel_threads_blocked), (1, 1));
        let (unread, why) = scan.unread.unwrap();
        assert!(unread == 1 && why.contains("proc/14/stat:1: comm"), "{why}");
    }

    #[test]
    fn who_ran_since_the_previous_scan() {
        let (dir, root) = root_with(&[
            ("proc/10/stat", &stat(10, "old", 'S', 1000, 1)),
            ("proc/10/cgroup", "0::/a\n"),
            ("proc/11/stat", &stat(11, "busy", 'R', 10, 1)),
            ("proc/11/cgroup", "0::/a\n"),
        ]);
        let mut scanner = Scanner::new(Watched::V2);
        let first = scanner.scan(&root, &mut Vec::new()).unwrap();
        assert!(
            first
                .host
                .most_cpu
                .iter()
                .all(|process| process.ran_ms.is_none())
        );
        write(
            dir.path(),
            &[
                ("proc/11/stat", &stat(11, "busy", 'R', 60, 1)),
                ("proc/12/stat", &stat(12, "new", 'R', 3, 9)),
                ("proc/12/cgroup", "0::/b\n"),
            ],
        );
        let second = scanner.scan(&root, &mut Vec::new()).unwrap();
        let ran: Vec<_> = second
            .host
            .most_cpu
            .iter()
            .map(|p| (p.comm.as_str(), p.ran_ms))
            .collect();
        assert_eq!(ran, [("busy", Some(500)), ("new", Some(30))]);
        let most: Vec<_> = second.cgroups["/a"]
            .summary
            .most_memory
            .iter()
            .map(|p| p.pid)
            .collect();
        assert_eq!(most.len(), 2);
    }

    #[test]
    fn a_move_is_noticed_at_once_early_and_soon_later() {
        let (dir, root) = root_with(&[
            ("proc/10/stat", &stat(10, "sh", 'S', 1, 1)),
            ("proc/10/cgroup", "0::/\n"),
        ]);
        let mut scanner = Scanner::new(Watched::V2);
        let mut cgroup = |text: &str| {
            write(dir.path(), &[("proc/10/cgroup", text)]);
            let scan = scanner.scan(&root, &mut Vec::new()).unwrap();
            scan.cgroups.keys().next().unwrap().to_string()
        };
        assert_eq!(cgroup("0::/\n"), "/");
        assert_eq!(cgroup("0::/young\n"), "/young");
        assert_eq!(cgroup("0::/grown\n"), "/grown");
        assert_eq!(cgroup("0::/grown\n"), "/grown");
        let scans = (0..20)
            .position(|_| cgroup("0::/later\n") == "/later")
            .unwrap();
        assert!((1..10).contains(&scans), "{scans}");
    }

    #[test]
    fn a_pid_that_is_used_again_is_another_process() {
        let (dir, root) = root_with(&[
            ("proc/10/stat", &stat(10, "first", 'S', 500, 1)),
            ("proc/10/cgroup", "0::/a\n"),
        ]);
        let mut scanner = Scanner::new(Watched::V2);
        for _ in 0..5 {
            scanner.scan(&root, &mut Vec::new()).unwrap();
        }
        write(
            dir.path(),
            &[
                ("proc/10/stat", &stat(10, "second", 'S', 7, 99)),
                ("proc/10/cgroup", "0::/b\n"),
            ],
        );
        let scan = scanner.scan(&root, &mut Vec::new()).unwrap();
        assert_eq!(scan.cgroups["/b"].summary.most_cpu[0].ran_ms, Some(70));
        drop(scan);
        fs::remove_dir_all(dir.path().join("proc/10")).unwrap();
        let scan = scanner.scan(&root, &mut Vec::new()).unwrap();
        assert_eq!((scan.host.processes, scan.unread), (0, None));
        assert!(scanner.known.is_empty() && scanner.memberships.is_empty());
    }
}
