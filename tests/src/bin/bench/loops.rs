//! Two loops that do nothing but what is watched: a byte there and back between two threads through
//! two pipes on one CPU (two switches, two wakeups, four system calls), and `getppid`. Told is the CPU
//! time that the bench's own threads take, so that what else runs on the machine disturbs less.

use std::io::{Read as _, Write as _};

use anyhow::{Result, bail};
use rustix::{
    pipe::pipe,
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

use crate::{
    table::Series,
    watching::Observer::{self, Empty, EmptyOf, Lens, Nothing, Peer},
};

/// Round trips and calls of one measurement: about a second each.
const TRIPS: u64 = 150_000;
const CALLS: u64 = 4_000_000;
/// The CPU that the loops run on.
const CPU: usize = 1;

/// What a wait for a CPU takes where the kernel's own books are not used.
const WAKE_AND_SWITCH: &[&str] = &["sched_switch", "sched_wakeup"];
const OF_SCHED: &[(&str, Observer)] = &[
    ("nothing", Nothing),
    ("empty, hooks of sched", EmptyOf(&["sched"])),
    (
        "empty, sched_switch and sched_wakeup",
        Empty(WAKE_AND_SWITCH),
    ),
    ("lens --probe sched", Lens(&["--probe", "sched"])),
    (
        "lens --probe sched, another cgroup watched",
        Lens(&["--probe", "sched", "--cgroup", "/nobody/**"]),
    ),
    ("empty, all hooks of lens", EmptyOf(&[])),
    ("lens", Lens(&[])),
    (
        "lens, another cgroup watched",
        Lens(&["--cgroup", "/nobody/**"]),
    ),
    ("libbpf-tools runqlat", Peer("runqlat", &["1000"], 3)),
    (
        "libbpf-tools cpudist -O",
        Peer("cpudist", &["-O", "1000"], 1),
    ),
];
const OF_SYSCALLS: &[(&str, Observer)] = &[
    ("nothing", Nothing),
    ("empty, hooks of syscalls", EmptyOf(&["syscalls"])),
    (
        "lens --probe syscalls, counts and errors",
        Lens(&["--probe", "syscalls", "--syscalls-time-one-in", "0"]),
    ),
    (
        "lens --probe syscalls, one in 8 timed",
        Lens(&["--probe", "syscalls", "--syscalls-time-one-in", "8"]),
    ),
    (
        "the same, another cgroup watched",
        Lens(&["--probe", "syscalls", "--cgroup", "/nobody/**"]),
    ),
    ("lens", Lens(&[])),
    (
        "libbpf-tools syscount",
        Peer("syscount", &["-i", "1000"], 1),
    ),
    (
        "libbpf-tools syscount -L",
        Peer("syscount", &["-L", "-i", "1000"], 2),
    ),
];

/// Both loops beside everybody.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Series>> {
    Ok(vec![
        beside("a round trip", OF_SCHED, rounds, round_trip)?,
        beside("a getppid", OF_SYSCALLS, rounds, syscall)?,
    ])
}

/// In each round every observer has its turn, so that what drifts drifts for all.
fn beside(
    what: &str,
    observers: &[(&str, Observer)],
    rounds: usize,
    work: impl Fn() -> Result<f64>,
) -> Result<Series> {
    let names: Vec<&str> = observers.iter().map(|(name, _)| *name).collect();
    let mut series = Series::new(what, "ns", &names);
    for round in 1..=rounds {
        crate::say(&format!("{what}: round {round} of {rounds}"));
        for (i, (_, observer)) in observers.iter().enumerate() {
            unpin()?;
            let watching = observer.watch()?;
            let figure = work()?;
            drop(watching);
            series.rows[i].1.push(figure);
        }
    }
    unpin()?;
    Ok(series)
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
    let began = cpu_ns();
    for _ in 0..TRIPS {
        to.write_all(&byte)?;
        from.read_exact(&mut byte)?;
    }
    let took = cpu_ns() - began;
    match echo.join() {
        Ok(done) => done?,
        Err(_) => bail!("the echo failed"),
    }
    Ok(took / TRIPS as f64)
}

/// ns a call of `getppid`.
fn syscall() -> Result<f64> {
    pin()?;
    let began = cpu_ns();
    for _ in 0..CALLS {
        std::hint::black_box(rustix::process::getppid());
    }
    Ok((cpu_ns() - began) / CALLS as f64)
}

/// CPU time of this process so far, in ns.
fn cpu_ns() -> f64 {
    let at = clock_gettime(ClockId::ProcessCPUTime);
    at.tv_sec as f64 * 1e9 + at.tv_nsec as f64
}

/// The calling thread runs on one CPU only.
pub(crate) fn pin() -> Result<()> {
    let mut set = CpuSet::new();
    set.set(CPU);
    Ok(sched_setaffinity(None, &set)?)
}

/// The calling thread runs anywhere.
pub(crate) fn unpin() -> Result<()> {
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu));
    Ok(sched_setaffinity(None, &set)?)
}
