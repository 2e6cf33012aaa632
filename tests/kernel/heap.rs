//! What is allocated and not freed: exact, scaled where it is sampled, and within its budget.

use std::{os::fd::AsFd as _, os::unix::net::UnixStream, sync::mpsc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lens_agent::base::clock::{Clock as _, SystemClock};
use lens_agent::probes::{
    Watched,
    heap::{HeapEnded, HeapError, HeapReading, HeapRequest, HeapSite, heap, possible},
};
use lens_tests::{
    cgroup::{Cgroup, Hierarchy},
    root_or_say_not_run,
};

use crate::objects::Work;

const PROGRAM: &str = env!("CARGO_BIN_EXE_load_heap");

fn request(pid: u32) -> HeapRequest {
    HeapRequest {
        pids: vec![pid],
        cgroups: Vec::new(),
        span: Duration::from_secs(30),
        // What hardly runs may be asked often: the tests call in bursts.
        budget_percent: 100.0,
        one_in: 1,
    }
}

fn watched() -> Result<Watched> {
    Ok(Watched {
        root: Hierarchy::of_host()?.root,
        v1: None,
        id: 0,
    })
}

/// Looks at allocations, does `meanwhile` from when they count, and stops then.
fn looked_at<T>(
    request: &HeapRequest,
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(HeapReading, T)> {
    let watched = watched()?;
    let (stop, stopper) = UnixStream::pair()?;
    let (counting, counts) = mpsc::channel();
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            heap(request, &watched, stop.as_fd(), move || {
                let _ = counting.send(());
            })
        });
        // What is refused never counts, and has dropped its end.
        let done = counts
            .recv()
            .context("it was refused")
            .and_then(|()| meanwhile());
        drop(stopper);
        let reading = looking.join().ok().context("it panicked")?;
        match (reading, done) {
            (Ok(reading), Ok(done)) => Ok((reading, done)),
            (Err(why), _) => Err(why.into()),
            (_, Err(why)) => Err(why),
        }
    })
}

/// What was allocated by the function of this name itself.
fn by(reading: &HeapReading, function: &str) -> HeapSite {
    let mut sum = HeapSite {
        pid: 0,
        comm: "".into(),
        outstanding_bytes: 0,
        outstanding: 0,
        bytes: 0,
        allocs: 0,
        stack: lens_agent::probes::NamedStack::default(),
    };
    let is_it = |site: &&HeapSite| {
        let innermost = site.stack.frames.last();
        innermost.is_some_and(|frame| frame.name.contains(function))
    };
    for site in reading.sites.iter().filter(is_it) {
        sum.outstanding_bytes += site.outstanding_bytes;
        sum.outstanding += site.outstanding;
        sum.bytes += site.bytes;
        sum.allocs += site.allocs;
    }
    sum
}

/// A process that allocates by a shared C library; none where the tests are linked statically, as in
/// guests: then sees to it that it is refused.
fn process(cgroup: &Cgroup) -> Result<Option<Work>> {
    // The kernel takes the programs, whatever there is to look at.
    possible()?;
    let process = Work::of(PROGRAM, cgroup)?;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.pid()))?;
    if maps.contains("/libc.so") {
        return Ok(Some(process));
    }
    let (stop, _stopper) = UnixStream::pair()?;
    let seen = heap(&request(process.pid()), &watched()?, stop.as_fd(), || {});
    process.end()?;
    let why = seen.err().context("it was looked at")?.to_string();
    ensure!(
        why.contains("no C library (linked statically") && why.contains("glibc, musl"),
        "{why}"
    );
    println!("NOT RUN: allocations (the tests are linked statically here)");
    Ok(None)
}

#[test]
fn what_is_not_freed_is_exact_by_site() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("heap")?;
    let Some(mut process) = process(&cgroup)? else {
        return Ok(());
    };
    process.run("leak 300 1000")?;
    let (reading, ()) = looked_at(&request(process.pid()), || {
        // Of before: 300 frees whose sizes are not known.
        process.run("release")?;
        process.run("leak 500 2048")?;
        process.run("tidy 700 4096")?;
        process.run("relatives 50 512")?;
        Ok(())
    })?;
    process.end()?;
    assert_eq!((reading.one_in, reading.ended), (1, HeapEnded::Stopped));
    let leaking = by(&reading, "leaking");
    assert_eq!(
        (leaking.outstanding, leaking.outstanding_bytes),
        (500, 500 * 2048)
    );
    assert_eq!((leaking.allocs, leaking.bytes), (500, 500 * 2048));
    let tidy = by(&reading, "tidy");
    assert_eq!((tidy.outstanding, tidy.outstanding_bytes), (0, 0));
    assert_eq!((tidy.allocs, tidy.bytes), (700, 700 * 4096));
    // Each round allocates seven times, twice by half as many bytes or through another function, and
    // keeps one.
    let relatives = by(&reading, "by_relatives");
    assert_eq!(
        (relatives.outstanding, relatives.outstanding_bytes),
        (50, 50 * 512)
    );
    assert_eq!(
        (relatives.allocs, relatives.bytes),
        (7 * 50, 50 * (6 * 512 + 256))
    );
    assert!(
        reading.older_frees >= 300 && reading.older_frees < 350,
        "{}",
        reading.older_frees
    );
    assert!(reading.quality.lost.is_empty(), "{:?}", reading.quality);
    println!(
        "{} hits of {} ns, {:.2} ms of {:.2} ms",
        reading.traps, reading.hit_ns, reading.cost_ms, reading.cpu_ms
    );
    Ok(())
}

#[test]
fn what_is_sampled_is_scaled() -> Result<()> {
    const TIMES: u64 = 20_000;
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("heap-sampled")?;
    let Some(mut process) = process(&cgroup)? else {
        return Ok(());
    };
    let sampled = HeapRequest {
        pids: Vec::new(),
        cgroups: vec![cgroup.path().to_owned()],
        one_in: 4,
        ..request(process.pid())
    };
    let (reading, ()) = looked_at(&sampled, || {
        // A little at a time, so that it stays below what a window may have.
        for _ in 0..TIMES / 500 {
            process.run("leak 500 512")?;
            process.run("tidy 500 512")?;
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(())
    })?;
    process.end()?;
    assert_eq!(reading.quality.sampled.get("heap"), Some(&reading.one_in));
    assert!(reading.one_in >= 4, "{}", reading.one_in);
    let leaking = by(&reading, "leaking");
    let ratio = leaking.outstanding_bytes as f64 / (TIMES * 512) as f64;
    println!("1 in {}: {ratio} of what it is", reading.one_in);
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
    let tidy = by(&reading, "tidy");
    assert_eq!((tidy.outstanding, tidy.outstanding_bytes), (0, 0));
    Ok(())
}

/// CPU time of a process's threads, in nanoseconds.
fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let told = std::fs::read_to_string(task?.path().join("schedstat"))?;
        sum += told.split(' ').next().context("no time")?.parse::<u64>()?;
    }
    Ok(sum)
}

/// Has a process allocate all the time meanwhile: how often it did in a second of CPU time.
fn flooded(process: &mut Work, meanwhile: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = cpu_ns(process.pid())?;
    process.run("flood 0")?;
    meanwhile()?;
    let took = cpu_ns(process.pid())? - before;
    let said = process.run("calls")?;
    let calls = said["calls"].as_u64().context("no calls")?;
    Ok(calls as f64 * 1e9 / took as f64)
}

#[test]
fn who_allocates_all_the_time_is_refused_and_loses_little() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("heap-hot")?;
    let Some(mut process) = process(&cgroup)? else {
        return Ok(());
    };
    let hot = HeapRequest {
        budget_percent: 10.0,
        ..request(process.pid())
    };
    let mut refused = None;
    let mut took = Duration::ZERO;
    let with = flooded(&mut process, || {
        let began = SystemClock.now();
        refused = looked_at(&hot, || Ok(())).err();
        took = SystemClock.now().since(&began);
        Ok(())
    })?;
    let without = flooded(&mut process, || {
        std::thread::park_timeout(took);
        Ok(())
    })?;
    process.end()?;
    let refused = refused.context("it was allowed")?;
    let why = refused.downcast_ref::<HeapError>();
    ensure!(
        matches!(why, Some(HeapError::Hot { rate, .. }) if *rate > 100_000.0),
        "{refused:#}"
    );
    println!(
        "{refused:#}; in the {took:?} until then it did {:.2} of its work",
        with / without
    );
    // All of it with breakpoints would be a tenth.
    assert!(with > 0.6 * without, "{with} {without}");
    Ok(())
}

#[test]
fn a_trace_stays_within_its_budget() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("heap-budget")?;
    let Some(mut process) = process(&cgroup)? else {
        return Ok(());
    };
    // Some tens of thousands of allocations in a second of CPU time.
    process.run("flood 5000")?;
    let budgeted = HeapRequest {
        budget_percent: 10.0,
        span: Duration::from_secs(2),
        ..request(process.pid())
    };
    let (stop, _stopper) = UnixStream::pair()?;
    let looked = heap(&budgeted, &watched()?, stop.as_fd(), || {});
    process.run("calls")?;
    process.end()?;
    match looked {
        Ok(reading) => {
            let share = reading.cost_ms / reading.cpu_ms;
            println!(
                "1 in {}, {:?}: {} hits of {} ns are {:.2} % of its CPU time",
                reading.one_in,
                reading.ended,
                reading.traps,
                reading.hit_ns,
                100.0 * share
            );
            // A window's burst beyond it is allowed.
            assert!(share < 0.15, "{share}");
        }
        Err(HeapError::Hot {
            rate,
            hit_ns,
            allowed,
            ..
        }) => {
            println!("refused at {rate:.0} hits a second of {hit_ns} ns");
            assert!(
                rate * hit_ns as f64 / 1e9 > 0.5 * allowed,
                "{rate} {allowed}"
            );
        }
        Err(why) => return Err(why.into()),
    }
    Ok(())
}

#[test]
fn other_allocators_are_refused() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let (stop, _stopper) = UnixStream::pair()?;
    let why = |pid| -> Result<String> {
        let seen = heap(&request(pid), &watched()?, stop.as_fd(), || {});
        Ok(seen.err().context("it was looked at")?.to_string())
    };
    // The kernel's own thread maps nothing.
    let kernel = why(2)?;
    ensure!(kernel.contains("no C library"), "{kernel}");
    let nobody = why(u32::MAX - 1)?;
    ensure!(nobody.contains("no process"), "{nobody}");
    Ok(())
}
