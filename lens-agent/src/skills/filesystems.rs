//! Who waits for file systems, and which are full or broken.

use std::{collections::BTreeMap, sync::Arc};

use lens_common::hist::Hist;

use super::{Look, Skill, View, quantile_us};
use crate::{
    base::{
        metric::{Bad, Metric, Unit, gauge, quantile, rate},
        scope::Scope,
    },
    host::filesystems::Filesystem,
    probes::{
        DeviceNumber, FileCounters, FileDeviceCounters, SyncCounters, SyscallCounters, Waits,
    },
};

/// The skill.
#[derive(Debug)]
pub(super) struct Filesystems;

const USED: &str = "filesystem_used_max_percent";
const INODES: &str = "filesystem_inodes_used_max_percent";
const READ_ONLY: &str = "filesystems_read_only_count";
const COMMITS: &str = "journal_commit_ms_per_sec";
const ERRORS: &str = "writeback_errors_per_sec";

const METRICS: &[Metric] = &[
    gauge(
        USED,
        Unit::Percent,
        Bad::High,
        3.0,
        "Used of the fullest local file system that takes writes, of what anybody may use.",
    )
    .never_normal(99.0),
    gauge(
        INODES,
        Unit::Percent,
        Bad::High,
        3.0,
        "Used inodes of the local file system that has the smallest part of them left.",
    )
    .never_normal(99.0),
    gauge(
        READ_ONLY,
        Unit::Count,
        Bad::High,
        0.5,
        "Local file systems that take no writes, also because of an error.",
    ),
    rate(
        "sync_wait_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        200.0,
        "Time in fsync, fdatasync, msync, sync, syncfs and sync_file_range, summed over threads.",
    ),
    rate(
        "syncs_per_sec",
        Unit::PerSec,
        Bad::Never,
        200.0,
        "Such calls that returned.",
    ),
    quantile(
        "sync_p99_us",
        Unit::Micros,
        Bad::Never,
        20_000.0,
        "99th percentile of the time such a call takes.",
    ),
    quantile(
        "sync_max_ms",
        Unit::Millis,
        Bad::High,
        1000.0,
        "The longest such call that returned, or is under way.",
    ),
    rate(
        "sync_errors_per_sec",
        Unit::PerSec,
        Bad::High,
        1.0,
        "Such calls that returned an error.",
    ),
    rate(
        "writeback_stall_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        200.0,
        "Time for which writers were made to pause because writeback does not keep up, summed over threads.",
    ),
    rate(
        "writeback_stalls_per_sec",
        Unit::PerSec,
        Bad::Never,
        20.0,
        "Such pauses.",
    ),
    rate(
        "page_cache_read_misses_per_sec",
        Unit::PerSec,
        Bad::Never,
        2000.0,
        "Pages that had to be put into the page cache to be read, those read ahead included.",
    ),
    rate(
        "page_cache_fault_misses_per_sec",
        Unit::PerSec,
        Bad::Never,
        2000.0,
        "Pages that page faults put there.",
    ),
    rate(
        "page_cache_written_pages_per_sec",
        Unit::PerSec,
        Bad::Never,
        5000.0,
        "Pages put there to be written.",
    ),
    rate(
        "no_space_errors_per_sec",
        Unit::PerSec,
        Bad::High,
        0.5,
        "Calls that write or make files and failed because there is no room, or no quota left.",
    ),
    rate(
        "read_only_errors_per_sec",
        Unit::PerSec,
        Bad::High,
        1.0,
        "The same because the file system takes no writes.",
    ),
    rate(
        "write_io_errors_per_sec",
        Unit::PerSec,
        Bad::High,
        0.5,
        "The same with EIO: the device failed, or a terminal is gone.",
    ),
    rate(
        "journal_held_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        50.0,
        "Time for which commits of journals waited for operations of this cgroup to end.",
    ),
    rate(
        COMMITS,
        Unit::MillisPerSec,
        Bad::Never,
        300.0,
        "Time in which journals were being committed.",
    ),
    rate(
        "journal_commits_per_sec",
        Unit::PerSec,
        Bad::Never,
        50.0,
        "Commits of journals that ended.",
    ),
    quantile(
        "journal_commit_p99_us",
        Unit::Micros,
        Bad::Never,
        100_000.0,
        "99th percentile of the time that a commit takes.",
    ),
    rate(
        "journal_locked_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        50.0,
        "Time in which commits waited for operations to end, and new ones for the commit.",
    ),
    gauge(
        "journal_commit_oldest_ms",
        Unit::Millis,
        Bad::High,
        2000.0,
        "For how long the oldest commit has been under way; absent if none is.",
    ),
    rate(
        ERRORS,
        Unit::PerSec,
        Bad::High,
        0.1,
        "Times that data which was written back did not get to its device.",
    ),
];

/// Numbers of calls that write to files, make or change them: `write`, `open`, `sendfile`, `truncate`,
/// `ftruncate`, `rename`, `mkdir`, `creat`, `link`, `unlink`, `symlink`, `mknod`, `setxattr` and their kin
/// (`arch/x86/entry/syscalls/syscall_64.tbl`).
const WRITES: [u32; 37] = [
    1, 2, 18, 20, 40, 76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 94, 132, 133, 188, 189, 190,
    257, 258, 259, 263, 264, 265, 266, 275, 285, 296, 316, 326, 328, 437,
];
const ENOSPC: u32 = 28;
const EROFS: u32 = 30;
const EDQUOT: u32 = 122;
const EIO: u32 = 5;

impl Skill for Filesystems {
    fn id(&self) -> &'static str {
        "filesystems"
    }

    fn title(&self) -> &'static str {
        "File systems"
    }

    fn description(&self) -> &'static str {
        "Who waits for file systems, and which are full or broken. Calls that wait until data is on its \
         device (fsync and its kin) are timed one by one in the kernel, those under way as far as they have \
         come; a slow one waits for the device (disk), for the journal, or for what others have dirtied. \
         Writers who dirty pages faster than they are written back are made to pause: that time is told \
         by the kernel with each pause. Pages that were not in the page cache are counted by who put them \
         there, told apart by the call; io_uring's count as read, and reads that were answered from the \
         cache are not counted, so there is no ratio. Errors of writing calls are those of the syscalls \
         skill by errno. A journal (ext4) is committed by one thread for everybody: while a commit waits \
         for operations that are under way, new ones wait for it, and the time is told of whose operations \
         ended last. Space, inodes and read-only mounts are of the host, by mount; only local file \
         systems are asked, because others may never answer, and Quality names those that were not. What \
         is free for root alone counts as used. Not seen: files opened with O_SYNC, journals of other \
         file systems, and journals where ext4 is a module."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["files", "syscalls"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let mut look = Look::default();
        if *view.scope == Scope::Host {
            mounts(view, &mut look);
            devices(view, &mut look);
        }
        syncs(view, &mut look);
        errors(view, &mut look);
        files(view, &mut look);
        Some(look)
    }
}

/// How full what is mounted is.
fn mounts(view: &View<'_>, look: &mut Look) {
    let host = &view.now.host;
    let Some(all) = &host.host.filesystems else {
        return;
    };
    let of = |percent: fn(&Filesystem) -> Option<f64>| -> Vec<(Arc<str>, f64)> {
        let written = all.iter().filter(|(_, found)| !found.is_read_only);
        written
            .filter_map(|(name, found)| Some((name.as_str().into(), percent(found)?)))
            .collect()
    };
    for (metric, items) in [
        (USED, of(Filesystem::used_percent)),
        (INODES, of(Filesystem::used_inodes_percent)),
    ] {
        look.set(metric, items.iter().map(|(_, v)| *v).reduce(f64::max));
        look.items(metric, items);
    }
    let read_only = all.iter().filter(|(_, found)| found.is_read_only);
    let read_only: Vec<_> = read_only
        .map(|(name, _)| (Arc::from(name.as_str()), 1.0))
        .collect();
    look.set(READ_ONLY, read_only.len() as f64);
    look.items(READ_ONLY, read_only);
    for missing in &host.quality.missing {
        if missing.probe == "filesystems" {
            look.quality().miss(&missing.probe, &missing.why);
        }
    }
}

/// What happened to journals and to data that was written back, by device.
fn devices(view: &View<'_>, look: &mut Look) {
    let (now, then) = (&view.now.kernel.files, &view.before.kernel.files);
    let Some((now, then)) = now.as_ref().zip(then.as_ref()) else {
        return;
    };
    let none = FileDeviceCounters::default();
    let both: Vec<_> = now
        .devices
        .iter()
        .map(|(number, now)| (*number, now, then.devices.get(number).unwrap_or(&none)))
        .collect();
    let items = |of: fn(&FileDeviceCounters) -> u64, per: f64| -> Vec<(Arc<str>, f64)> {
        let grown = both.iter().map(|(number, now, then)| {
            let grown = of(now).saturating_sub(of(then)) as f64;
            (name_of(view, *number), view.per_sec(grown / per))
        });
        grown.filter(|(_, value)| *value > 0.0).collect()
    };
    let sum = |items: &[(Arc<str>, f64)]| items.iter().map(|(_, v)| v).sum::<f64>();
    let failed = items(|d| d.errors.iter().sum(), 1.0);
    look.set(ERRORS, sum(&failed));
    look.items(ERRORS, failed);
    if !now.has_journals {
        return;
    }
    let committing = items(|d| d.commit_ns, 1e6);
    let mut hist = Hist::default();
    for (_, now, then) in &both {
        add_grown(&mut hist, &now.hist, &then.hist);
    }
    let oldest = both.iter().map(|(_, now, _)| now.under_way_ns).max();
    let oldest = oldest.filter(|ns| *ns != 0).map(|ns| ns as f64 / 1e6);
    look.set(COMMITS, sum(&committing))
        .set("journal_commits_per_sec", sum(&items(|d| d.commits, 1.0)))
        .set("journal_commit_p99_us", quantile_us(&hist, 0.99))
        .set(
            "journal_locked_ms_per_sec",
            sum(&items(|d| d.locked_ns, 1e6)),
        )
        .set("journal_commit_oldest_ms", oldest);
    look.items(COMMITS, committing);
}

/// What a device is called: where it is mounted, or its name, or its number.
fn name_of(view: &View<'_>, device: DeviceNumber) -> Arc<str> {
    let host = &view.now.host.host;
    let is_it = |major, minor| (major, minor) == (device.major, device.minor);
    let mounts = host.filesystems.iter().flatten();
    let mut mounts = mounts.filter(|(_, found)| is_it(found.major, found.minor));
    let disks = host.disks.iter().flatten();
    let mut disks = disks.filter(|(_, found)| is_it(found.major, found.minor));
    let name = mounts.next().map(|(name, _)| name.as_str());
    name.or_else(|| disks.next().map(|(name, _)| name.as_str()))
        .map_or_else(
            || format!("{}:{}", device.major, device.minor).into(),
            Arc::from,
        )
}

fn add_grown(sum: &mut Hist, now: &Hist, then: &Hist) {
    for (sum, (now, then)) in sum.iter_mut().zip(now.iter().zip(then)) {
        *sum += now.saturating_sub(*then);
    }
}

/// Calls that wait until data is on its device.
fn syncs(view: &View<'_>, look: &mut Look) {
    let (now, then) = (&view.now.kernel.syncs, &view.before.kernel.syncs);
    let Some((now, then)) = now.as_ref().zip(then.as_ref()) else {
        return;
    };
    let Some(rows) = view.of_scope(&now.cgroups, &then.cgroups) else {
        return;
    };
    let none = SyncCounters::default();
    let (mut ended, mut ns, mut max_ns, mut under_way) = (0, 0, 0, 0);
    let mut hist = Hist::default();
    for (_, now, then) in rows {
        let then = then.unwrap_or(&none);
        for (now, then) in [
            (now.of_file(), then.of_file()),
            (now.of_all(), then.of_all()),
        ] {
            ended += now.ended.saturating_sub(then.ended);
            ns += now.ns.saturating_sub(then.ns);
            max_ns = max_ns.max(now.max_ns);
            under_way += now.under_way;
            add_grown(&mut hist, &now.hist, &then.hist);
        }
    }
    look.set("sync_wait_ms_per_sec", view.per_sec(ns as f64 / 1e6))
        .set("syncs_per_sec", view.per_sec(ended as f64))
        .set("sync_p99_us", quantile_us(&hist, 0.99))
        .set("sync_max_ms", max_ns as f64 / 1e6);
    look.quality().censored += under_way;
}

/// What file systems refused.
fn errors(view: &View<'_>, look: &mut Look) {
    let (now, then) = (&view.now.kernel.syscalls, &view.before.kernel.syscalls);
    let Some((now, then)) = now.as_ref().zip(then.as_ref()) else {
        return;
    };
    let Some(rows) = view.of_scope(&now.cgroups, &then.cgroups) else {
        return;
    };
    let none = SyscallCounters::default();
    let mut refused: BTreeMap<u32, u64> = BTreeMap::new();
    let mut failed = 0;
    for (_, now, then) in rows {
        let then = &then.unwrap_or(&none).by_number;
        for (nr, now) in &now.by_number {
            let before = then.get(nr).cloned().unwrap_or_default();
            let waits = SyncCounters::numbers().any(|sync| sync == *nr);
            if waits {
                failed += now.errors.saturating_sub(before.errors);
            }
            if !waits && !WRITES.contains(nr) {
                continue;
            }
            for (errno, n) in &now.errnos {
                let before = before.errnos.get(errno).copied().unwrap_or_default();
                *refused.entry(*errno).or_default() += n.saturating_sub(before);
            }
        }
    }
    let per_sec = |errnos: &[u32]| {
        let n: u64 = errnos.iter().filter_map(|errno| refused.get(errno)).sum();
        view.per_sec(n as f64)
    };
    look.set("sync_errors_per_sec", view.per_sec(failed as f64))
        .set("no_space_errors_per_sec", per_sec(&[ENOSPC, EDQUOT]))
        .set("read_only_errors_per_sec", per_sec(&[EROFS]))
        .set("write_io_errors_per_sec", per_sec(&[EIO]));
}

/// Pauses of writers, the page cache, and whom journals waited for.
fn files(view: &View<'_>, look: &mut Look) {
    let (now, then) = (&view.now.kernel.files, &view.before.kernel.files);
    let Some((now, then)) = now.as_ref().zip(then.as_ref()) else {
        return;
    };
    let Some(rows) = view.of_scope(&now.cgroups, &then.cgroups) else {
        return;
    };
    let none = FileCounters::default();
    let (mut pauses, mut held) = (Waits::default(), Waits::default());
    let (mut read, mut faulted, mut written) = (0, 0, 0);
    for (_, now, then) in rows {
        let then = then.unwrap_or(&none);
        let grown = |of: fn(&FileCounters) -> u64| of(now).saturating_sub(of(then));
        pauses.ended += grown(|c| c.pauses.ended);
        pauses.ns += grown(|c| c.pauses.ns);
        held.ns += grown(|c| c.held.ns);
        read += grown(|c| c.read_pages);
        faulted += grown(|c| c.faulted_pages);
        written += grown(|c| c.written_pages);
    }
    let per_sec = |n: u64| view.per_sec(n as f64);
    let ms_per_sec = |ns: u64| view.per_sec(ns as f64 / 1e6);
    if now.has_pauses {
        look.set("writeback_stall_ms_per_sec", ms_per_sec(pauses.ns))
            .set("writeback_stalls_per_sec", per_sec(pauses.ended));
    }
    if now.has_page_cache {
        look.set("page_cache_read_misses_per_sec", per_sec(read))
            .set("page_cache_fault_misses_per_sec", per_sec(faulted))
            .set("page_cache_written_pages_per_sec", per_sec(written));
    }
    if now.has_journals {
        look.set("journal_held_ms_per_sec", ms_per_sec(held.ns));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        base::snapshot::Snapshot,
        probes::{CallCounters, FilesReading, SyncReading, SyscallsReading},
        skills::{Sample, look_everywhere, view::tests::sample},
    };

    const ROOT: DeviceNumber = DeviceNumber { major: 8, minor: 1 };

    fn filesystem(free: u64, is_read_only: bool) -> Filesystem {
        Filesystem {
            major: ROOT.major,
            minor: ROOT.minor,
            bytes: 1000,
            free_bytes: free,
            available_bytes: free,
            inodes: Some(100),
            free_inodes: Some(60),
            is_read_only,
            ..Filesystem::default()
        }
    }

    fn reading(files: FileCounters, device: FileDeviceCounters, has_all: bool) -> FilesReading {
        FilesReading {
            cgroups: [(7, files)].into(),
            devices: [(ROOT, device)].into(),
            has_pauses: has_all,
            has_page_cache: has_all,
            has_journals: has_all,
        }
    }

    /// `/shop` and the host over two seconds in which all of this came to be.
    fn look(
        files: FilesReading,
        refused: &[(u32, u32, u64)],
        mounted: &[(&str, Filesystem)],
    ) -> (Snapshot, Snapshot) {
        let mut before = sample(Duration::from_secs(10), &[(7, "/shop")]);
        let mut now = sample(Duration::from_secs(12), &[(7, "/shop")]);
        let nothing = |sample: &mut Sample| {
            sample.kernel.files = Some(FilesReading::default());
            sample.kernel.syncs = Some(SyncReading::default());
            sample.kernel.syscalls = Some(SyscallsReading::default());
        };
        nothing(&mut before);
        nothing(&mut now);
        now.kernel.files = Some(files);
        let mut calls = SyscallCounters::default();
        for (nr, errno, n) in refused {
            let call: &mut CallCounters = calls.by_number.entry(*nr).or_default();
            call.errors += n;
            call.errnos.insert(*errno, *n);
        }
        now.kernel.syscalls = Some(SyscallsReading {
            cgroups: [(7, calls)].into(),
        });
        let mounted = mounted.iter().map(|(n, f)| ((*n).to_owned(), f.clone()));
        now.host.host.filesystems = Some(mounted.collect());
        let looks = look_everywhere(1, &now, &before, &[&Filesystems]);
        let of = |scope: Scope| looks.iter().find(|s| s.scope == scope).unwrap().clone();
        (of(Scope::Host), of(Scope::cgroup("/shop")))
    }

    #[test]
    fn a_healthy_host_is_told_by_mount_and_suffers_nothing() {
        let files = reading(FileCounters::default(), FileDeviceCounters::default(), true);
        let mounted = [
            ("/", filesystem(700, false)),
            ("/data", filesystem(400, false)),
        ];
        let (host, shop) = look(files, &[], &mounted);
        assert_eq!(host.value(USED, None), Some(60.0));
        let items: Vec<_> = host.items.iter().filter(|i| &*i.metric == USED).collect();
        let names: Vec<_> = items.iter().map(|i| (&*i.item, i.value)).collect();
        assert_eq!(names, [("/data", 60.0), ("/", 30.0)]);
        assert_eq!(host.value(INODES, None), Some(40.0));
        assert_eq!(host.value(READ_ONLY, None), Some(0.0));
        assert_eq!(host.value(ERRORS, None), Some(0.0));
        assert_eq!(host.value("journal_commit_oldest_ms", None), None);
        assert_eq!(shop.value("writeback_stall_ms_per_sec", None), Some(0.0));
        assert_eq!(shop.value("no_space_errors_per_sec", None), Some(0.0));
        // Space is the host's, not a cgroup's.
        assert_eq!(shop.value(USED, None), None);
    }

    #[test]
    fn a_sick_host_is_told_by_who_suffers_and_which_device_failed() {
        let waits = |ended, ns| Waits {
            ended,
            ns,
            ..Waits::default()
        };
        let files = FileCounters {
            pauses: waits(40, 1_600_000_000),
            held: waits(2, 30_000_000),
            read_pages: 5000,
            faulted_pages: 100,
            written_pages: 20,
        };
        let device = FileDeviceCounters {
            errors: [3, 1, 0, 0],
            commits: 4,
            commit_ns: 900_000_000,
            locked_ns: 40_000_000,
            under_way_ns: 300_000_000,
            hist: {
                let mut hist = Hist::default();
                hist[27] = 4;
                hist
            },
        };
        let refused = [
            (1, ENOSPC, 60),
            (285, EDQUOT, 2),
            (257, EROFS, 8),
            (74, EIO, 4),
        ];
        // That a watch finds no room says nothing of a file system.
        let elsewhere = (254, ENOSPC, 1000);
        let refused = [&refused[..], &[elsewhere]].concat();
        let mounted = [("/", filesystem(0, false)), ("/old", filesystem(0, true))];
        let (host, shop) = look(reading(files, device, true), &refused, &mounted);
        let value = |metric| shop.value(metric, None);
        assert_eq!(value("writeback_stall_ms_per_sec"), Some(800.0));
        assert_eq!(value("writeback_stalls_per_sec"), Some(20.0));
        assert_eq!(value("page_cache_read_misses_per_sec"), Some(2500.0));
        assert_eq!(value("page_cache_fault_misses_per_sec"), Some(50.0));
        assert_eq!(value("page_cache_written_pages_per_sec"), Some(10.0));
        assert_eq!(value("journal_held_ms_per_sec"), Some(15.0));
        assert_eq!(value("no_space_errors_per_sec"), Some(31.0));
        assert_eq!(value("read_only_errors_per_sec"), Some(4.0));
        assert_eq!(value("write_io_errors_per_sec"), Some(2.0));
        assert_eq!(value("sync_errors_per_sec"), Some(2.0));
        let value = |metric| host.value(metric, None);
        assert_eq!(value(USED), Some(100.0));
        assert_eq!(value(READ_ONLY), Some(1.0));
        assert_eq!(value(COMMITS), Some(450.0));
        assert_eq!(value("journal_locked_ms_per_sec"), Some(20.0));
        assert_eq!(value("journal_commit_oldest_ms"), Some(300.0));
        assert_eq!(value(ERRORS), Some(2.0));
        let failed = host.items.iter().find(|i| &*i.metric == ERRORS).unwrap();
        assert_eq!((&*failed.item, failed.value), ("/", 2.0));
        let read_only = host.items.iter().find(|i| &*i.metric == READ_ONLY);
        assert_eq!(read_only.map(|i| &*i.item), Some("/old"));
    }

    #[test]
    fn what_a_kernel_does_not_tell_is_absent() {
        let files = reading(
            FileCounters::default(),
            FileDeviceCounters::default(),
            false,
        );
        let (host, shop) = look(files, &[], &[]);
        for metric in [
            "writeback_stall_ms_per_sec",
            "page_cache_read_misses_per_sec",
            "journal_held_ms_per_sec",
        ] {
            assert_eq!(shop.value(metric, None), None, "{metric}");
        }
        assert_eq!(host.value(COMMITS, None), None);
        assert_eq!(host.value(USED, None), None);
    }
}
