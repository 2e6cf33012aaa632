//! Page faults and resident pages agree with what the kernel says of the process.

use std::{fs, io::Write as _, time::Duration};

use anyhow::{Context as _, Result};
use lens_agent::probes::{KernelReading, MemoryCounters, ResidentPages};
use lens_tests::{cgroup::Cgroup, root_or_say_not_run, until};

use crate::objects::{Nest, Work, do_in};

fn of(reading: &KernelReading, cgroup: &Cgroup) -> Result<MemoryCounters> {
    let memory = reading.memory.as_ref().context("no reading")?;
    let counters = memory.cgroups.get(&cgroup.id()?);
    Ok(counters.cloned().unwrap_or_default())
}

#[test]
fn faults_are_those_of_getrusage() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("memory")?;
    let cgroup = nest.top.child("faults")?;
    let outside = Cgroup::new("outside")?;
    let mut work = Work::start(&cgroup)?;
    // Once before, so that the code itself is in memory.
    work.run("touch 10 10")?;
    let (before, truth) = (of(&nest.read(), &cgroup)?, work.faults()?);
    work.run("touch 5000 3000")?;
    let truth = work.faults()?.0 - truth.0;
    do_in(&outside, "touch 5000 3000")?;
    let reading = nest.read();
    let after = of(&reading, &cgroup)?;
    let user = after.user_faults - before.user_faults;
    let kernel = after.kernel_faults - before.kernel_faults;
    assert_eq!(user + kernel, truth);
    assert!((5000..5050).contains(&user), "{user}");
    assert!((3000..3050).contains(&kernel), "{kernel}");
    assert_eq!(after.major_faults, before.major_faults);
    assert!(after.alloc_pages - before.alloc_pages >= 8000);
    assert_eq!(of(&reading, &outside)?, MemoryCounters::default());
    assert_eq!(
        reading.quality.lost.keys().count(),
        0,
        "{:?}",
        reading.quality
    );
    nest.print_costs();
    Ok(())
}

#[test]
fn faults_that_wait_for_a_disk_are_major() -> Result<()> {
    const PAGES: usize = 256;
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("memory")?;
    let cgroup = nest.top.child("major")?;
    // Beside the test's program: the folder for temporary files may be in memory.
    let program = std::env::current_exe()?;
    let beside = program.parent().context("no folder")?;
    let mut file = tempfile::NamedTempFile::new_in(beside)?;
    file.write_all(&vec![7; PAGES * 4096])?;
    file.as_file().sync_all()?;
    let path = file.path().display();
    let mut work = Work::start(&cgroup)?;
    work.run(&format!("file {path}"))?;
    let (before, truth) = (of(&nest.read(), &cgroup)?, work.faults()?);
    work.run(&format!("file {path}"))?;
    let (minor, major) = work.faults()?;
    let after = of(&nest.read(), &cgroup)?;
    let majors = |c: &MemoryCounters| c.major_faults.context("no major faults");
    assert_eq!(majors(&after)? - majors(&before)?, major - truth.1);
    assert!(major > truth.1);
    let minors = |c: &MemoryCounters| c.minor_faults().context("no major faults");
    assert_eq!(minors(&after)? - minors(&before)?, minor - truth.0);
    Ok(())
}

#[test]
fn resident_pages_are_those_of_the_process_and_go_with_it() -> Result<()> {
    const PAGES: i64 = 20_000;
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("memory")?;
    let cgroup = nest.top.child("grows")?;
    let outside = Cgroup::new("outside")?;
    // What each CPU keeps to itself.
    let cpus = i64::try_from(std::thread::available_parallelism()?.get())?;
    let error = 32.max(2 * cpus) * cpus;
    let mut work = Work::start(&cgroup)?;
    work.run(&format!("touch {PAGES} 0"))?;
    let said = fs::read_to_string(format!("/proc/{}/status", work.pid()))?;
    let kib = |name: &str| -> Result<i64> {
        let line = said.lines().find_map(|l| l.strip_prefix(name));
        Ok(line
            .context("no such line")?
            .trim_end_matches("kB")
            .trim()
            .parse()?)
    };
    let resident = of(&nest.read(), &cgroup)?.resident.context("not counted")?;
    let (anon, file) = (kib("RssAnon:")? / 4, kib("RssFile:")? / 4);
    assert!((resident.anon - anon).abs() <= error, "{resident:?} {anon}");
    assert!((resident.file - file).abs() <= error, "{resident:?} {file}");
    // Children count, and leave nothing behind; nor do crashes and programs started.
    work.run("fork 200 20 0")?;
    work.run("exec 20")?;
    work.run("group 20 4")?;
    do_in(&outside, "touch 20000 0")?;
    work.end()?;
    let mut last = ResidentPages::default();
    until("nothing resident", Duration::from_secs(5), || {
        let of = of(&nest.read(), &cgroup).ok().and_then(|c| c.resident);
        last = of.unwrap_or_default();
        last == ResidentPages::default()
    })
    .with_context(|| format!("{last:?}"))?;
    nest.print_costs();
    Ok(())
}

#[test]
fn pages_from_before_the_start_count() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    // Declared first, to be dropped after what is in it.
    let mut nest;
    let top = Cgroup::new("before")?;
    let old = top.child("old")?;
    let mut work = Work::start(&old)?;
    work.run("touch 5000 0")?;
    nest = Nest::around(top, "memory", |_| {})?;
    let found = of(&nest.read(), &old)?.resident.context("not counted")?;
    assert!((4900..6000).contains(&found.anon), "{found:?}");
    work.run("touch 1000 0")?;
    let grown = of(&nest.read(), &old)?.resident.context("not counted")?;
    assert!(
        (900..1200).contains(&(grown.anon - found.anon)),
        "{grown:?}"
    );
    work.end()?;
    let left = of(&nest.read(), &old)?.resident;
    assert_eq!(left, Some(ResidentPages::default()));
    Ok(())
}

#[test]
fn pages_move_with_the_process() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("memory")?;
    let (from, to) = (nest.top.child("from")?, nest.top.child("to")?);
    let mut work = Work::start(&from)?;
    work.run("touch 5000 0")?;
    let before = of(&nest.read(), &from)?.resident.context("not counted")?;
    assert!(before.anon > 4000, "{before:?}");
    fs::write(to.dir().join("cgroup.procs"), work.pid().to_string())?;
    work.run("touch 1000 0")?;
    let reading = nest.read();
    let moved = of(&reading, &to)?.resident.context("not counted")?;
    assert!(moved.anon > before.anon, "{moved:?}");
    assert_eq!(
        of(&reading, &from)?.resident,
        Some(ResidentPages::default())
    );
    work.end()
}

#[test]
fn sampled_faults_have_a_stack() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::with("memory", |config| config.memory.fault_stack_one_in = 4)?;
    let cgroup = nest.top.child("stacks")?;
    let mut work = Work::start(&cgroup)?;
    work.run("touch 8000 0")?;
    let reading = nest.read();
    let stacks = reading.memory.context("no reading")?.fault_stacks;
    assert_eq!(
        reading.quality.lost.keys().count(),
        0,
        "{:?}",
        reading.quality
    );
    let hottest = stacks.first().context("no stacks")?;
    assert_eq!((hottest.cgroup, hottest.tgid), (cgroup.id()?, work.pid()));
    assert!((1500..2500).contains(&hottest.samples), "{hottest:?}");
    assert!(!hottest.user.is_empty() && hottest.comm == "load_objects");
    assert_eq!(reading.quality.sampled.get("memory.fault_stacks"), Some(&4));
    nest.print_costs();
    Ok(())
}
