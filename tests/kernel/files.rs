//! What is waited for at file systems, and what they refuse, as the work itself measures it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use lens_agent::{
    base::clock::{Clock as _, SystemClock},
    host::{HostReader, Root, filesystems::Filesystem},
    probes::{FileCounters, FileDeviceCounters, KernelReading, SyncCounters},
};
use lens_tests::{
    cgroup::Cgroup,
    disk::{Loop, Mounted, file_of, forget},
    not_run, root_or_say_not_run,
};

use crate::objects::{Nest, Work};

const PROGRAM: &str = env!("CARGO_BIN_EXE_load_files");
const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

const WRITE: u32 = 1;
const FSYNC: u32 = 74;
const ENOSPC: u32 = 28;

fn of(reading: &KernelReading, cgroup: &Cgroup) -> Result<FileCounters> {
    let files = reading.files.as_ref().context("no reading")?;
    let counters = files.cgroups.get(&cgroup.id()?);
    Ok(counters.cloned().unwrap_or_default())
}

fn syncs_of(reading: &KernelReading, cgroup: &Cgroup) -> Result<SyncCounters> {
    let syncs = reading.syncs.as_ref().context("no reading")?;
    let counters = syncs.cgroups.get(&cgroup.id()?);
    Ok(counters.cloned().unwrap_or_default())
}

/// How often a call has failed with an error.
fn failed(reading: &KernelReading, cgroup: &Cgroup, nr: u32, errno: u32) -> Result<u64> {
    let calls = reading.syscalls.as_ref().context("no reading")?;
    let calls = calls.cgroups.get(&cgroup.id()?);
    let call = calls.and_then(|calls| calls.by_number.get(&nr));
    let n = call.and_then(|call| call.errnos.get(&errno));
    Ok(n.copied().unwrap_or_default())
}

fn on(reading: &KernelReading, disk: &Loop) -> Result<FileDeviceCounters> {
    let files = reading.files.as_ref().context("no reading")?;
    let counters = files.devices.get(&disk.number()?);
    Ok(counters.cloned().unwrap_or_default())
}

fn with_calls() -> Result<Nest> {
    Nest::with("files", |config| config.only.push("syscalls".to_owned()))
}

fn disk(bytes: u64) -> Result<Option<Mounted>> {
    if !root_or_say_not_run()? {
        return Ok(None);
    }
    let disk = Mounted::ext4(bytes)?;
    if disk.is_none() {
        not_run("no ext4 can be made and mounted")?;
    }
    Ok(disk)
}

/// A cgroup whose process does nothing while others work.
fn idle(nest: &Nest) -> Result<(Cgroup, Work)> {
    let cgroup = nest.top.child("idle")?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    work.run("idle")?;
    Ok((cgroup, work))
}

fn number(said: &serde_json::Value, name: &str) -> Result<u64> {
    said[name].as_u64().context("not said")
}

#[test]
fn syncs_take_as_long_as_who_calls_them_says() -> Result<()> {
    const N: u64 = 60;
    let Some(disk) = disk(64 * MIB)? else {
        return Ok(());
    };
    let mut nest = with_calls()?;
    let cgroup = nest.top.child("syncs")?;
    let outside = Cgroup::new("outside")?;
    let (beside, _idle) = idle(&nest)?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let path = |name: &str| disk.file(name).display().to_string();
    Work::of(PROGRAM, &outside)?.run(&format!("sync {} 10", path("outside")))?;
    let before = nest.read();
    assert_eq!(syncs_of(&before, &cgroup)?, SyncCounters::default());
    let commits = disk.commits()?;
    let said = work.run(&format!("sync {} {N}", path("file")))?;
    let reading = nest.read();
    let commits = disk.commits()? - commits;
    let fsync = syncs_of(&reading, &cgroup)?.of_file().clone();
    let (ns, longest) = (number(&said, "ns")?, number(&said, "longest")?);
    println!("{fsync:?} of {ns}, longest {longest}");
    assert_eq!((fsync.ended, fsync.under_way), (N, 0));
    // Who calls measures the way there and back as well.
    assert!(fsync.ns <= ns && fsync.ns * 10 > ns * 9, "{fsync:?} {ns}");
    assert!(fsync.max_ns <= longest && fsync.max_ns * 10 > longest * 9);
    assert_eq!(fsync.hist.iter().sum::<u64>(), N);
    assert_eq!(number(&said, "failed")?, 0);
    assert_eq!(syncs_of(&reading, &beside)?, SyncCounters::default());
    assert_eq!(of(&reading, &beside)?, of(&before, &beside)?);
    let (was, is) = (on(&before, disk.disk()?)?, on(&reading, disk.disk()?)?);
    println!("{is:?}, {commits} commits");
    if reading.files.as_ref().is_some_and(|f| f.has_journals) {
        // One may be under way on either side.
        let counted = is.commits - was.commits;
        assert!(counted.abs_diff(commits) <= 1, "{counted} of {commits}");
        assert!(commits > 0 && is.commit_ns > was.commit_ns, "{is:?}");
        assert!(is.locked_ns <= is.commit_ns, "{is:?}");
        assert_eq!(is.hist.iter().sum::<u64>(), is.commits);
    }
    assert!(reading.quality.lost.is_empty(), "{:?}", reading.quality);
    nest.print_costs();
    work.end()
}

#[test]
fn each_call_that_waits_for_a_device_counts_as_what_it_is() -> Result<()> {
    const N: u64 = 7;
    let Some(disk) = disk(64 * MIB)? else {
        return Ok(());
    };
    let mut nest = with_calls()?;
    let cgroup = nest.top.child("each")?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    work.run(&format!("each {} {N}", disk.file("file").display()))?;
    let counters = syncs_of(&nest.read(), &cgroup)?;
    // `msync` only if it waits.
    assert_eq!(counters.of_file().ended, 4 * N);
    assert_eq!(counters.of_all().ended, N);
    for waits in [counters.of_file(), counters.of_all()] {
        assert!(waits.ns >= waits.max_ns && waits.max_ns > 0, "{waits:?}");
    }
    work.end()
}

#[test]
fn syncs_are_absent_while_calls_are_untimed_and_exact_again() -> Result<()> {
    const N: u64 = 20;
    let Some(disk) = disk(64 * MIB)? else {
        return Ok(());
    };
    let mut nest = with_calls()?;
    let cgroup = nest.top.child("syncs")?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let sync = format!("sync {} {N}", disk.file("file").display());
    work.run(&sync)?;
    let before = syncs_of(&nest.read(), &cgroup)?.of_file().clone();
    assert_eq!(before.ended, N);
    nest.probes.reduce("syscalls", 1);
    work.run(&sync)?;
    let reading = nest.read();
    assert_eq!(reading.syncs, None);
    let missing = &reading.quality.missing;
    assert!(
        missing.iter().any(|m| m.probe == "files.sync"),
        "{missing:?}"
    );
    nest.probes.reduce("syscalls", 0);
    work.run(&sync)?;
    let after = syncs_of(&nest.read(), &cgroup)?.of_file().clone();
    assert_eq!((after.ended, after.under_way), (2 * N, 0));
    work.end()
}

/// What the host's reader says of it.
fn said_of(disk: &Mounted) -> Result<Filesystem> {
    let mut reader = HostReader::new(Root::default())?;
    let reading = reader.read(&[], SystemClock.now());
    let all = reading.host.filesystems.context("no file systems")?;
    let found = all.get(&*disk.path().to_string_lossy());
    found.cloned().with_context(|| format!("{all:?}"))
}

#[test]
fn a_full_file_system_refuses_the_one_who_writes() -> Result<()> {
    const REFUSED: u64 = 25;
    let Some(disk) = disk(32 * MIB)? else {
        return Ok(());
    };
    let mut nest = with_calls()?;
    let cgroup = nest.top.child("fills")?;
    let (beside, _idle) = idle(&nest)?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let empty = said_of(&disk)?;
    assert!(empty.used_percent() < Some(50.0), "{empty:?}");
    work.run(&format!("fill {} {REFUSED}", disk.file("all").display()))?;
    let reading = nest.read();
    assert_eq!(failed(&reading, &cgroup, WRITE, ENOSPC)?, REFUSED);
    assert_eq!(failed(&reading, &beside, WRITE, ENOSPC)?, 0);
    let full = said_of(&disk)?;
    assert!(full.used_percent() > Some(99.0), "{full:?}");
    assert!(full.used_inodes_percent() < Some(50.0), "{full:?}");
    let number = disk.disk()?.number()?;
    assert_eq!((full.major, full.minor), (number.major, number.minor));
    assert_eq!((&*full.kind, full.is_read_only), ("ext4", false));
    fs::remove_file(disk.file("all"))?;
    let folder = disk.path().display().to_string();
    let left = said_of(&disk)?.free_inodes.context("no inodes")?;
    work.run(&format!("make {folder} {left}"))?;
    let full = said_of(&disk)?;
    assert_eq!(full.free_inodes, Some(0), "{full:?}");
    assert_eq!(full.used_inodes_percent(), Some(100.0), "{full:?}");
    work.end()
}

#[test]
fn pages_that_were_not_cached_are_counted() -> Result<()> {
    const BYTES: u64 = 8 * MIB;
    /// Where the file lies on its device has to be read as well.
    const MORE: u64 = 16;
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let file = file_of(BYTES)?;
    let mut nest = Nest::new("files")?;
    let cgroup = nest.top.child("reads")?;
    let (beside, _idle) = idle(&nest)?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let path = file.path().display().to_string();
    // Programs that start are read, too.
    let before = nest.read();
    let mut last = of(&before, &cgroup)?;
    let mut run = |what: String| -> Result<(u64, u64, u64)> {
        work.run(&what)?;
        let now = of(&nest.read(), &cgroup)?;
        let grown = (
            now.read_pages - last.read_pages,
            now.faulted_pages - last.faulted_pages,
            now.written_pages - last.written_pages,
        );
        println!("{what}: {grown:?}");
        last = now;
        Ok(grown)
    };
    let is_all = |pages: u64| (BYTES / PAGE..=BYTES / PAGE + MORE).contains(&pages);
    forget(file.path())?;
    let (read, faulted, written) = run(format!("read {path}"))?;
    assert!(is_all(read) && faulted <= MORE && written == 0);
    let (read, faulted, written) = run(format!("read {path}"))?;
    assert_eq!((read, faulted, written), (0, 0, 0), "it is cached");
    forget(file.path())?;
    let (read, faulted, written) = run(format!("map {path}"))?;
    assert!(read <= MORE && is_all(faulted) && written == 0);
    let (read, faulted, written) = run(format!("map {path}"))?;
    assert_eq!((read, faulted, written), (0, 0, 0), "it is cached");
    let new = tempfile::tempdir_in(file.path().parent().context("no folder")?)?;
    let new = new.path().join("new").display().to_string();
    let (read, _, written) = run(format!("write {new} {BYTES}"))?;
    assert!(read <= MORE && is_all(written));
    let reading = nest.read();
    assert_eq!(of(&reading, &beside)?, of(&before, &beside)?);
    assert!(reading.quality.lost.is_empty(), "{:?}", reading.quality);
    nest.print_costs();
    Ok(())
}

/// A setting of a backing device; as it was before when it goes.
struct Setting {
    file: PathBuf,
    before: String,
}

impl Setting {
    fn set(file: &Path, to: &str) -> Result<Self> {
        let before = fs::read_to_string(file)?;
        let setting = Self {
            file: file.to_owned(),
            before: before.trim_end().to_owned(),
        };
        fs::write(file, to).with_context(|| file.display().to_string())?;
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // Nothing can be done about it here.
        let _ = fs::write(&self.file, &self.before);
    }
}

#[test]
fn who_writes_faster_than_is_written_back_pauses() -> Result<()> {
    /// The longest there is: of kernels with 100 ticks a second.
    const TICK_NS: u64 = 10_000_000;
    let Some(disk) = disk(512 * MIB)? else {
        return Ok(());
    };
    let device = disk.disk()?.number()?;
    let bdi = PathBuf::from(format!("/sys/class/bdi/{}:{}", device.major, device.minor));
    if !bdi.join("strict_limit").exists() {
        return not_run("this kernel knows no strict limit for a device");
    }
    // So that it has no more than a small part of what may be dirty.
    let _strict = Setting::set(&bdi.join("strict_limit"), "1")?;
    let _part = Setting::set(&bdi.join("max_bytes"), &(4 * MIB).to_string())?;
    let mut nest = Nest::new("files")?;
    let cgroup = nest.top.child("writes")?;
    let (beside, _idle) = idle(&nest)?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let path = disk.file("file").display().to_string();
    let before = of(&nest.read(), &beside)?;
    let said = work.run(&format!("write {path} {}", 256 * MIB))?;
    let reading = nest.read();
    if reading
        .quality
        .missing
        .iter()
        .any(|m| m.probe == "files.pauses")
    {
        return not_run("this kernel does not tell of pauses");
    }
    let pauses = of(&reading, &cgroup)?.pauses;
    let (ns, slept) = (number(&said, "ns")?, number(&said, "slept")?);
    println!("{pauses:?} of {slept} asleep in {ns}");
    assert!(pauses.ended > 0, "{pauses:?}");
    // A pause ends with a tick: up to one sooner or later than told, and whoever was told so sleeps.
    let ticks = pauses.ended * TICK_NS;
    assert!(pauses.ns <= slept + ticks, "{pauses:?} {slept}");
    // What else it sleeps for is the less.
    assert!(pauses.ns + ticks > slept / 2, "{pauses:?} {slept}");
    assert!(pauses.max_ns <= 200_000_000, "{pauses:?}");
    assert_eq!(pauses.hist.iter().sum::<u64>(), pauses.ended);
    assert_eq!(of(&reading, &beside)?, before);
    nest.print_costs();
    work.end()
}

#[test]
fn what_cannot_be_written_back_is_an_error_of_its_device() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    // A device that says it has more room than there is.
    let memory = Mounted::tmpfs(24 * MIB)?;
    let disk = match Loop::in_folder(memory.path(), 128 * MIB)? {
        Some(disk) => Mounted::ext4_on(disk)?,
        None => None,
    };
    let Some(disk) = disk else {
        return not_run("no ext4 can be made and mounted");
    };
    let mut nest = with_calls()?;
    let cgroup = nest.top.child("writes")?;
    let (beside, _idle) = idle(&nest)?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let before = on(&nest.read(), disk.disk()?)?;
    let path = disk.file("file").display().to_string();
    work.run(&format!("write {path} {}", 48 * MIB))?;
    let said = work.run(&format!("again {path}"))?;
    let reading = nest.read();
    let after = on(&reading, disk.disk()?)?;
    println!("{before:?} {after:?}");
    assert_eq!(before.errors.iter().sum::<u64>(), 0);
    assert!(after.errors.iter().sum::<u64>() > 0, "{after:?}");
    // Which one depends on what the device says of it.
    let errno = u32::try_from(number(&said, "errno")?)?;
    assert_ne!(errno, 0, "{said}");
    assert_eq!(failed(&reading, &cgroup, FSYNC, errno)?, 1);
    assert_eq!(failed(&reading, &beside, FSYNC, errno)?, 0);
    work.end()
}
