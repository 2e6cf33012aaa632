//! What watching costs: interleaved rounds of two loops, beside nothing, empty programs, lens and
//! its peers. Run by `cargo xtask bench`; prints one JSON object and a table.
//!
//! The loops: a byte there and back between two processes through two pipes on one CPU (two
//! switches, two wakeups), and `getppid`. In each round every observer has its turn, so that what
//! drifts on the machine drifts for all; the figures are medians over the rounds.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports to a person"
)]

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aya::{Btf, Ebpf, programs::BtfTracePoint};
use lens_agent::base::clock::{Clock as _, SystemClock};
use lens_tests::until;
use rustix::{
    pipe::pipe,
    thread::{CpuSet, sched_setaffinity},
};
use serde_json::json;

/// Round trips and calls of one measurement: about a second each.
const TRIPS: u64 = 150_000;
const CALLS: u64 = 4_000_000;
/// The time in which an observer must be at work.
const ATTACHED: Duration = Duration::from_secs(30);
/// The CPU that the loops run on.
const CPU: usize = 1;

/// Who watches meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Observer {
    Nothing,
    EmptySched,
    EmptySyscalls,
    LensSched,
    LensAll,
    Runqlat,
    SyscountLatency,
}

impl Observer {
    const ALL: [Self; 7] = [
        Self::Nothing,
        Self::EmptySched,
        Self::EmptySyscalls,
        Self::LensSched,
        Self::LensAll,
        Self::Runqlat,
        Self::SyscountLatency,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::EmptySched => "empty programs, sched_switch + sched_wakeup",
            Self::EmptySyscalls => "empty programs, sys_enter + sys_exit",
            Self::LensSched => "lens --probe sched",
            Self::LensAll => "lens, all defaults",
            Self::Runqlat => "libbpf-tools runqlat",
            Self::SyscountLatency => "libbpf-tools syscount -L",
        }
    }
}

/// An observer at work; dropping it ends it.
enum Watching {
    Nobody,
    Programs(#[expect(dead_code, reason = "attached as long as it lives")] Ebpf),
    Process(
        Child,
        #[expect(dead_code, reason = "its state, as long as it runs")] Option<tempfile::TempDir>,
    ),
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Self::Process(child, _) = self {
            let pid = rustix::process::Pid::from_child(child);
            // It is our own child; SIGINT is how the tools end.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
            let _ = child.wait();
        }
    }
}

fn watch(observer: Observer) -> Result<Watching> {
    match observer {
        Observer::Nothing => Ok(Watching::Nobody),
        Observer::EmptySched => empty(&["sched_switch", "sched_wakeup"]),
        Observer::EmptySyscalls => empty(&["sys_enter", "sys_exit"]),
        Observer::LensSched => lens(&["--probe", "sched"]),
        Observer::LensAll => lens(&[]),
        Observer::Runqlat => tool("runqlat", &["1000"], 3),
        Observer::SyscountLatency => tool("syscount", &["-L", "-i", "1000"], 2),
    }
}

fn empty(programs: &[&str]) -> Result<Watching> {
    let object = env::var_os("LENS_EMPTY_OBJECT").map(PathBuf::from);
    let object = object.context("LENS_EMPTY_OBJECT names no object; run `cargo xtask bench`")?;
    let btf = Btf::from_sys_fs()?;
    let mut ebpf = Ebpf::load_file(object)?;
    for name in programs {
        let program = ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?;
        let program: &mut BtfTracePoint = program.try_into()?;
        program.load(name, &btf)?;
        program.attach()?;
    }
    Ok(Watching::Programs(ebpf))
}

fn lens(flags: &[&str]) -> Result<Watching> {
    let state = tempfile::tempdir()?;
    let mut command = lens_tests::lens()?;
    command
        .args(["run", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(state.path())
        .args(flags);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    let mut lines = BufReader::new(output).lines();
    // The last line of its greeting: the first snapshot is taken.
    if !lines
        .by_ref()
        .any(|line| line.is_ok_and(|line| line.contains("url")))
    {
        bail!("lens ended before it was ready");
    }
    std::thread::spawn(move || lines.for_each(drop));
    Ok(Watching::Process(child, Some(state)))
}

/// A tool that is at work once it has attached so many programs.
fn tool(name: &str, arguments: &[&str], programs: usize) -> Result<Watching> {
    const TRACEFS: &str = "/sys/kernel/tracing";
    // Some attach by tracefs, which need not be mounted: in a mount namespace of its own it is.
    let script = format!(
        "mountpoint -q {TRACEFS} || mount -t tracefs tracefs {TRACEFS}; exec /usr/sbin/{name} \"$@\""
    );
    let child = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, name])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let fds = PathBuf::from(format!("/proc/{}/fd", child.id()));
    let watching = Watching::Process(child, None);
    let links = || {
        let fds = std::fs::read_dir(&fds).into_iter().flatten().flatten();
        let targets = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets
            .filter(|target| target.as_os_str() == "anon_inode:bpf_link")
            .count()
    };
    until(name, ATTACHED, || links() >= programs)
        .with_context(|| format!("{name} (package libbpf-tools) attaches nothing"))?;
    Ok(watching)
}

/// ns a round trip of a byte between two threads on one CPU.
fn round_trip() -> Result<f64> {
    let (there_out, there_in) = pipe()?;
    let (back_out, back_in) = pipe()?;
    let echo = std::thread::spawn(move || -> Result<()> {
        pin()?;
        let (mut from, mut to) = (std::fs::File::from(there_out), std::fs::File::from(back_in));
        let mut byte = [0];
        for _ in 0..TRIPS {
            from.read_exact(&mut byte)?;
            to.write_all(&byte)?;
        }
        Ok(())
    });
    pin()?;
    let (mut to, mut from) = (std::fs::File::from(there_in), std::fs::File::from(back_out));
    let mut byte = [7];
    let began = SystemClock.now();
    for _ in 0..TRIPS {
        to.write_all(&byte)?;
        from.read_exact(&mut byte)?;
    }
    let took = SystemClock.now().since(&began);
    match echo.join() {
        Ok(done) => done?,
        Err(_) => bail!("the echo failed"),
    }
    Ok(per(took, TRIPS))
}

/// ns a call of `getppid`.
fn syscall() -> Result<f64> {
    pin()?;
    let began = SystemClock.now();
    for _ in 0..CALLS {
        std::hint::black_box(rustix::process::getppid());
    }
    Ok(per(SystemClock.now().since(&began), CALLS))
}

fn per(took: Duration, n: u64) -> f64 {
    took.as_nanos() as f64 / n as f64
}

fn pin() -> Result<()> {
    let mut set = CpuSet::new();
    set.set(CPU);
    Ok(sched_setaffinity(None, &set)?)
}

fn unpin() -> Result<()> {
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu));
    Ok(sched_setaffinity(None, &set)?)
}

/// Median, and the range of the middle half.
fn middle(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |part: usize| values[(values.len() - 1) * part / 4];
    (at(2), at(1), at(3))
}

fn main() -> Result<()> {
    let rounds: usize = env::args().nth(1).map_or(Ok(7), |n| n.parse())?;
    let mut trips: BTreeMap<Observer, Vec<f64>> = BTreeMap::new();
    let mut calls: BTreeMap<Observer, Vec<f64>> = BTreeMap::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for observer in Observer::ALL {
            unpin()?;
            let watching = watch(observer)?;
            trips.entry(observer).or_default().push(round_trip()?);
            calls.entry(observer).or_default().push(syscall()?);
            drop(watching);
        }
    }
    let mut rows = Vec::new();
    println!(
        "| observer | ns a round trip | added | middle half | ns a getppid | added | middle half |"
    );
    println!("|---|---|---|---|---|---|---|");
    let base = (
        middle(&mut trips[&Observer::Nothing].clone()).0,
        middle(&mut calls[&Observer::Nothing].clone()).0,
    );
    for observer in Observer::ALL {
        let trip = middle(&mut trips[&observer].clone());
        let call = middle(&mut calls[&observer].clone());
        println!(
            "| {} | {:.0} | {:+.0} | {:.0} to {:.0} | {:.1} | {:+.1} | {:.1} to {:.1} |",
            observer.name(),
            trip.0,
            trip.0 - base.0,
            trip.1,
            trip.2,
            call.0,
            call.0 - base.1,
            call.1,
            call.2
        );
        rows.push(json!({
            "observer": observer.name(),
            "round_trip_ns": { "median": trip.0, "added": trip.0 - base.0, "q1": trip.1, "q3": trip.2 },
            "getppid_ns": { "median": call.0, "added": call.0 - base.1, "q1": call.1, "q3": call.2 },
        }));
    }
    println!("{}", json!({ "rounds": rounds, "rows": rows }));
    Ok(())
}
