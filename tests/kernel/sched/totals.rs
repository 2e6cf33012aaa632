//! Numbers and sums of waits.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use lens_agent::probes::{Holder, KernelReading, Reduction, SchedCounters};
use lens_tests::{cgroup::Cgroup, load::Load, not_run, root_or_say_not_run};

use super::{between, close, of, ready, run, watch};

/// Runs `loads`, each in a cgroup of its own, and holds every cgroup's counters against what the
/// kernel says of its tasks.
fn agree(loads: &[&str]) -> Result<()> {
    let mut probes = watch(&[])?;
    let mut cgroups = Vec::new();
    for i in 0..loads.len() {
        cgroups.push(Cgroup::new(&format!("totals-{i}"))?);
    }
    let mut running = Vec::new();
    for (cgroup, load) in cgroups.iter().zip(loads) {
        running.push(ready(cgroup, load)?);
    }
    let before = probes.read();
    let truth: Vec<_> = running.iter().map(Load::waited).collect::<Result<_>>()?;
    run(&mut running.iter_mut().collect::<Vec<_>>())?;
    let after = probes.read();
    for (i, load) in running.iter().enumerate() {
        let seen = between(&before, &after, &cgroups[i])?;
        seen.show(loads[i]);
        let now = load.waited()?;
        assert_eq!(seen.waits, now.waits - truth[i].waits, "{}", loads[i]);
        close(
            "wait",
            seen.wait_ns as f64,
            (now.wait_ns - truth[i].wait_ns) as f64,
            0.1,
        );
        close("row", seen.row(), seen.wait_ns as f64, 1.0);
    }
    Ok(())
}

#[test]
fn waits_on_one_cpu_are_those_that_the_kernel_counts() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    agree(&[
        "sleeper --for 1500 --cpu 1 --threads 4 --burn 300 --sleep 700",
        "burn --for 1500 --cpu 1",
        "pingpong --for 1500 --cpu 1 --threads 2",
    ])
}

#[test]
fn waits_on_all_cpus_are_those_that_the_kernel_counts() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    agree(&[
        "sleeper --for 1500 --threads 6 --burn 300 --sleep 700",
        "burn --for 1500 --threads 3",
        "pingpong --for 1500 --threads 4",
    ])
}

#[test]
fn an_unwatched_cgroup_is_not_counted_but_named_as_an_aggressor() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let victim = Cgroup::new("watched")?;
    let aggressor = Cgroup::new("unwatched")?;
    let mut probes = watch(&[victim.path()])?;
    let mut load = ready(&victim, "burn --for 800 --cpu 1")?;
    let mut other = ready(&aggressor, "burn --for 2000 --cpu 1")?;
    other.go()?;
    let (before, then) = (probes.read(), aggressor.usage_ns()?);
    run(&mut [&mut load])?;
    let (now, after) = (aggressor.usage_ns()?, probes.read());
    let seen = between(&before, &after, &victim)?;
    seen.show("victim");
    let truth = (now - then) as f64;
    close("behind", seen.behind_cgroup(&aggressor)?, truth, 5.0);
    assert_eq!(of(&after, &aggressor)?, SchedCounters::default());
    assert!(!after.targets.contains_key(&aggressor.id()?));
    let name = after.names.get(&aggressor.id()?).context("no name")?;
    assert_eq!(&**name, aggressor.path());
    let sched = after.sched.context("no reading")?;
    assert!(!sched.cgroups.contains_key(&0), "{:?}", sched.cgroups);
    Ok(())
}

#[test]
fn waits_that_nobody_saw_are_not_booked_when_the_probe_comes_back() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let victim = Cgroup::new("watched")?;
    let aggressor = Cgroup::new("unwatched")?;
    let mut probes = watch(&[victim.path()])?;
    let mut other = ready(&aggressor, "burn --for 4000 --cpu 1")?;
    let mut load = ready(&victim, "burn --for 500 --cpu 1")?;
    let mut again = ready(&victim, "burn --for 500 --cpu 1")?;
    let mut sleeps = ready(&victim, "burn --for 800 --cpu 1")?;
    other.go()?;
    run(&mut [&mut load])?;
    let detached = 1
        + (1..9)
            .position(|to| {
                probes.reduce("sched", to);
                probes.reductions("sched").last() == Some(&Reduction::Detached)
            })
            .context("is never detached")?;
    run(&mut [&mut again])?;
    assert!(probes.read().sched.is_none());
    probes.reduce("sched", detached - 1);
    probes.reduce("sched", 0);
    let (before, then) = (probes.read(), aggressor.usage_ns()?);
    run(&mut [&mut sleeps])?;
    let (now, after) = (aggressor.usage_ns()?, probes.read());
    let seen = between(&before, &after, &victim)?;
    seen.show("victim");
    let truth = (now - then) as f64;
    close("behind", seen.behind_cgroup(&aggressor)?, truth, 5.0);
    close("row", seen.row(), seen.wait_ns as f64, 1.0);
    // Where waits from before the programs were back would be booked.
    let unattributed = seen.behind(Holder::Unattributed);
    assert!(unattributed < truth / 50.0, "{unattributed}");
    Ok(())
}

/// What runqlat says: the number of waits, and bounds of their sum in µs.
#[derive(Debug, Default)]
struct Runqlat {
    waits: u64,
    least_us: u64,
    most_us: u64,
}

impl Runqlat {
    /// Lines like `4 -> 7 : 120 |*****|`.
    fn parse(text: &str) -> Self {
        let mut seen = Self::default();
        for line in text.lines() {
            let Some((bounds, rest)) = line.split_once(" : ") else {
                continue;
            };
            let (Some((low, high)), Some(n)) = (
                bounds.split_once("->"),
                rest.split_ascii_whitespace().next(),
            ) else {
                continue;
            };
            if let (Ok(low), Ok(high), Ok(n)) = (
                low.trim().parse::<u64>(),
                high.trim().parse::<u64>(),
                n.parse::<u64>(),
            ) {
                seen.waits += n;
                seen.least_us += n * low;
                seen.most_us += n * (high + 1);
            }
        }
        seen
    }
}

fn agree_with_runqlat(load: &str) -> Result<()> {
    const RUNQLAT: &str = "/usr/sbin/runqlat";
    if !root_or_say_not_run()? {
        return Ok(());
    }
    if !std::path::Path::new(RUNQLAT).exists() {
        return not_run("no runqlat here: it is in Debian's libbpf-tools");
    }
    let cgroup = Cgroup::new("runqlat")?;
    let neighbour = Cgroup::new("runqlat-neighbour")?;
    let mut probes = watch(&[])?;
    let mut loads = [
        ready(&cgroup, load)?,
        ready(&neighbour, "burn --for 1500 --threads 2")?,
    ];
    let mut runqlat = Command::new("stdbuf")
        .args(["-oL", RUNQLAT, "-p", &loads[0].pid().to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(runqlat.stdout.take().context("no output")?);
    let mut text = String::new();
    said.read_line(&mut text)?;
    assert!(text.starts_with("Tracing"), "{text}");
    let before = probes.read();
    run(&mut loads.iter_mut().collect::<Vec<_>>())?;
    let after = probes.read();
    let pid = rustix::process::Pid::from_raw(runqlat.id().try_into()?).context("no pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    said.read_to_string(&mut text)?;
    runqlat.wait()?;
    let theirs = Runqlat::parse(&text);
    let ours = between(&before, &after, &cgroup)?;
    ours.show(load);
    println!("{theirs:?}");
    // A switch that the tracepoint does not tell costs runqlat the wait of the task that comes,
    // and where the task that leaves was preempted also that one's next.
    let unseen = |reading: &KernelReading| -> u64 {
        let cgroups = reading.sched.iter().flat_map(|s| s.cgroups.values());
        cgroups.map(|c| c.unseen).sum()
    };
    let untold = unseen(&after).saturating_sub(unseen(&before));
    println!("{untold} switches untold");
    assert!(ours.waits.abs_diff(theirs.waits) <= 10 + 2 * untold);
    let us = ours.wait_ns / 1000;
    assert!(theirs.least_us * 97 / 100 <= us && us <= theirs.most_us * 103 / 100);
    Ok(())
}

#[test]
fn waits_on_one_cpu_are_those_that_runqlat_sees() -> Result<()> {
    agree_with_runqlat("sleeper --for 1500 --cpu 1 --threads 6 --burn 300 --sleep 700")
}

#[test]
fn waits_on_all_cpus_are_those_that_runqlat_sees() -> Result<()> {
    agree_with_runqlat("sleeper --for 1500 --threads 6 --burn 300 --sleep 700")
}
