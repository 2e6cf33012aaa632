//! Sleeps that cannot be interrupted, and tasks that are stopped.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lens_agent::probes::SchedCounters;
use lens_tests::{cgroup::Cgroup, root_or_say_not_run, until};

use super::{of, watch};
use crate::objects::{Work, do_in};

/// The state of `pid`, by its letter.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Uninterruptible sleep (ms) that `now` has more than `then`.
fn grown(now: &SchedCounters, then: &SchedCounters) -> f64 {
    (now.sleep_ns[1] - then.sleep_ns[1]) as f64 / 1e6
}

#[test]
fn a_long_uninterruptible_sleep_is_known_with_where_it_was() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let (stalls, idle) = (Cgroup::new("stalls")?, Cgroup::new("idle")?);
    let mut probes = watch(&[stalls.path(), idle.path()])?;
    let mut work = Work::start(&stalls)?;
    do_in(&idle, "calls 10 10")?;
    let before = of(&probes.read(), &stalls)?;
    work.run("vfork 300")?;
    let reading = probes.read();
    let after = of(&reading, &stalls)?;
    let ms = grown(&after, &before);
    assert!((299.0..400.0).contains(&ms), "{ms}");
    let stall = after.longest_stall.context("no stall")?;
    println!("{stall:?}");
    assert_eq!((stall.tid, &*stall.comm), (work.pid(), "load_objects"));
    assert!(stall.ns >= 299_000_000, "{}", stall.ns);
    assert!(
        stall.stack.iter().any(|at| at.contains("clone")),
        "{stall:?}"
    );
    assert_eq!((after.stalled, after.stopped), (0, 0));
    let beside = of(&reading, &idle)?;
    assert_eq!((beside.longest_stall, beside.stalled), (None, 0));
    // It is told once.
    assert_eq!(of(&probes.read(), &stalls)?.longest_stall, None);
    work.end()
}

#[test]
fn a_sleep_that_does_not_end_counts_as_far_as_it_has_come() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let stalls = Cgroup::new("under-way")?;
    let mut probes = watch(&[stalls.path()])?;
    let mut child = stalls.spawn(
        Command::new(env!("CARGO_BIN_EXE_load_objects"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null()),
    )?;
    let before = of(&probes.read(), &stalls)?;
    let mut input = child.stdin.take().context("no input")?;
    writeln!(input, "vfork 2000")?;
    until("asleep", Duration::from_secs(5), || {
        state(child.id()) == Some('D')
    })?;
    let mut seen = SchedCounters::default();
    until("a stall under way", Duration::from_secs(2), || {
        seen = of(&probes.read(), &stalls).unwrap_or_default();
        seen.longest_stall
            .as_ref()
            .is_some_and(|s| s.ns > 500_000_000)
    })?;
    assert_eq!(seen.stalled, 1);
    let stall = seen.longest_stall.clone().context("no stall")?;
    assert_eq!(stall.tid, child.id());
    assert!(
        stall.stack.iter().any(|at| at.contains("clone")),
        "{stall:?}"
    );
    let far = grown(&seen, &before);
    assert!((500.0..2000.0).contains(&far), "{far}");
    drop(input);
    assert!(child.wait()?.success());
    let after = of(&probes.read(), &stalls)?;
    let whole = grown(&after, &before);
    assert!((1999.0..2200.0).contains(&whole), "counted once: {whole}");
    assert_eq!(after.stalled, 0);
    Ok(())
}

#[test]
fn stopped_tasks_are_counted() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("stopped")?;
    let mut probes = watch(&[cgroup.path()])?;
    let work = Work::start(&cgroup)?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(work.pid())?).context("a pid")?;
    assert_eq!(of(&probes.read(), &cgroup)?.stopped, 0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
    until("stopped", Duration::from_secs(5), || {
        state(work.pid()) == Some('T')
    })?;
    let seen = of(&probes.read(), &cgroup)?;
    assert_eq!((seen.stopped, seen.stalled), (1, 0));
    rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    work.end()?;
    assert_eq!(of(&probes.read(), &cgroup)?.stopped, 0);
    Ok(())
}
