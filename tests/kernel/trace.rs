//! The calls of one function: exact, within every limit, and by a process that cannot attach.

use std::{
    io::{BufRead as _, BufReader},
    os::fd::AsFd as _,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lens_agent::{
    base::clock::{Clock as _, SystemClock},
    probes::{
        Ended, FunctionReading, KernelFunctionError, Means, TraceError, TraceRequest, Watched,
        trace, traceable,
    },
};
use lens_tests::{
    cgroup::{Cgroup, Hierarchy},
    commands::{Said, command, said as said_by},
    http, root_or_say_not_run,
    running::Running,
    until,
};

use crate::objects::Work;

const PROGRAM: &str = env!("CARGO_BIN_EXE_load_function");

fn request(function: &str) -> TraceRequest {
    TraceRequest {
        file: Some(PathBuf::from(PROGRAM)),
        function: function.to_owned(),
        span: Duration::from_secs(30),
        max_hits: 1_000_000,
        cgroups: Vec::new(),
        returns: true,
        single_step: false,
        force_fallback: false,
    }
}

fn watched() -> Result<Watched> {
    Ok(Watched {
        root: Hierarchy::of_host()?.root,
        v1: None,
        id: 0,
    })
}

/// Traces, and does `meanwhile` from when the first call counts; then, unless a limit has ended
/// it, stops the trace.
fn traced<T>(
    request: &TraceRequest,
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(Result<FunctionReading, TraceError>, T)> {
    let watched = watched()?;
    let (stop, stopper) = UnixStream::pair()?;
    let (attached, is_attached) = mpsc::channel();
    std::thread::scope(|scope| {
        let tracing = scope.spawn(|| {
            trace(request, &watched, stop.as_fd(), || {
                let _ = attached.send(());
            })
        });
        // Ends the trace also when the work has failed.
        let stopper = stopper;
        // A trace that is refused never attaches.
        let done = if is_attached.recv_timeout(Duration::from_mins(1)).is_ok() {
            meanwhile()
        } else {
            Err(anyhow::anyhow!("never attached"))
        };
        drop(stopper);
        let reading = tracing.join().ok().context("the trace panicked")?;
        match done {
            Ok(done) => Ok((reading, done)),
            Err(why) => Err(why.context(format!("{:?}", reading.err()))),
        }
    })
}

/// Calls `function` as `work` says while it is traced.
fn traced_work(request: &TraceRequest, work: &[&str]) -> Result<FunctionReading> {
    let cgroup = Cgroup::new("trace")?;
    let mut process = Work::of(PROGRAM, &cgroup)?;
    let (reading, ()) = traced(request, || {
        for line in work {
            process.run(line)?;
        }
        Ok(())
    })?;
    process.end()?;
    let reading = reading?;
    let of_cgroup = reading.cgroups.get(cgroup.path());
    ensure!(
        of_cgroup.map(|c| c.calls) == Some(reading.calls),
        "{reading:?}"
    );
    ensure!(reading.quality.lost.is_empty(), "{reading:?}");
    Ok(reading)
}

#[test]
fn calls_are_exact_and_times_are_those_of_the_function() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let reading = traced_work(&request("traced_push"), &["call traced_push 500 200"])?;
    assert_eq!((reading.calls, reading.ended), (500, Ended::Stopped));
    assert_eq!((reading.traps, reading.overshoot), (500, 0));
    assert_eq!(
        (reading.nested, reading.missing, reading.under_way),
        (0, 0, 0)
    );
    let calls = reading.cgroups.values().next().context("nobody")?;
    assert_eq!((calls.returns, calls.hist.iter().sum()), (500, 500));
    let mean = calls.total_ns / 500;
    // From below it is exact; on a busy machine a thread may lose its CPU in the middle.
    assert!((200_000..20_000_000).contains(&mean), "{mean}");
    // 200 µs lie in the bucket that begins at 131.
    assert_eq!(calls.hist[..17], [0; 17]);
    println!("mean {mean} ns of calls that take 200 µs");
    Ok(())
}

#[test]
fn calls_are_counted_where_they_cannot_be_timed() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let request = TraceRequest {
        returns: false,
        ..request("traced_sub")
    };
    let reading = traced_work(&request, &["call traced_sub 700 0"])?;
    assert_eq!((reading.calls, reading.timed), (700, false));
    let place = reading.place.context("no place")?;
    assert_eq!(place.instruction, "call");
    Ok(())
}

#[test]
fn recursion_and_returns_that_do_not_come_are_told() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    // Four calls deep, a hundred times; then eleven, of which three are too deep.
    let work = ["call traced_deep 100 3", "call traced_deep 1 10"];
    let reading = traced_work(&request("traced_deep"), &work)?;
    assert_eq!((reading.calls, reading.nested), (411, 310));
    assert_eq!(
        (reading.deep, reading.missing, reading.under_way),
        (3, 0, 0)
    );
    let returns: u64 = reading.cgroups.values().map(|c| c.returns).sum();
    assert_eq!(returns, 408);
    // All but the last are known to be gone when the next one comes.
    let reading = traced_work(&request("traced_escape"), &["call let_escape 50 0"])?;
    assert_eq!((reading.calls, reading.missing), (50, 49));
    assert_eq!((reading.under_way, reading.nested), (1, 0));
    Ok(())
}

#[test]
fn enough_calls_end_it() -> Result<()> {
    const MOST: u64 = 1000;
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let limited = TraceRequest {
        max_hits: MOST,
        ..request("traced_push")
    };
    // Without a pause: what comes until the agent has woken up is not counted by cgroup.
    let cgroup = Cgroup::new("limit")?;
    let mut process = Work::of(PROGRAM, &cgroup)?;
    let (stop, _stopper) = UnixStream::pair()?;
    let mut started = Ok(serde_json::Value::Null);
    let reading = trace(&limited, &watched()?, stop.as_fd(), || {
        started = process.run("flood traced_push");
    })?;
    started?;
    let flooded = process.run("stop")?;
    process.end()?;
    println!("overshoot {} of {MOST}, {flooded}", reading.overshoot);
    assert_eq!((reading.calls, reading.ended), (MOST, Ended::Hits));
    assert_eq!(reading.cgroups[cgroup.path()].calls, MOST);
    assert!(reading.overshoot < 100_000, "{}", reading.overshoot);
    Ok(())
}

#[test]
fn its_time_ends_it() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let request = TraceRequest {
        span: Duration::from_millis(300),
        ..request("traced_push")
    };
    let (reading, took) = traced_until_over(&request)?;
    let reading = reading?;
    assert_eq!((reading.calls, reading.ended), (0, Ended::Time));
    assert!(reading.elapsed >= request.span, "{:?}", reading.elapsed);
    assert!(took < Duration::from_secs(10), "{took:?}");
    Ok(())
}

/// Traces without anything that would stop it; how long that took.
fn traced_until_over(
    request: &TraceRequest,
) -> Result<(Result<FunctionReading, TraceError>, Duration)> {
    let watched = watched()?;
    let (stop, _stopper) = UnixStream::pair()?;
    let start = SystemClock.now();
    let reading = trace(request, &watched, stop.as_fd(), || {});
    Ok((reading, SystemClock.now().since(&start)))
}

#[test]
fn a_hot_function_is_refused_with_its_rate() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("hot")?;
    let mut process = Work::of(PROGRAM, &cgroup)?;
    process.run("flood traced_push")?;
    let (reading, took) = traced_until_over(&request("traced_push"))?;
    let flooded = process.run("stop")?;
    process.end()?;
    let why = reading.err().context("it was traced")?;
    println!("{why}; {took:?}, {flooded}");
    let TraceError::Hot { rate, allowed, .. } = why else {
        anyhow::bail!("{why}");
    };
    assert!(rate > allowed, "{rate} {allowed}");
    Ok(())
}

#[test]
fn only_those_count_who_were_asked_for() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let (asked, other) = (Cgroup::new("asked")?, Cgroup::new("other")?);
    let mut request = request("traced_push");
    request.cgroups = vec![asked.path().to_owned()];
    let mut of_asked = Work::of(PROGRAM, &asked)?;
    let mut of_other = Work::of(PROGRAM, &other)?;
    let (reading, ()) = traced(&request, || {
        of_asked.run("call traced_push 300 0")?;
        of_other.run("call traced_push 400 0")?;
        Ok(())
    })?;
    let reading = reading?;
    assert_eq!((reading.calls, reading.traps), (300, 700));
    assert_eq!(reading.cgroups.len(), 1, "{:?}", reading.cgroups);
    assert_eq!(reading.cgroups[asked.path()].calls, 300);
    request.cgroups = vec!["/no/such/cgroup".to_owned()];
    let (refused, _) = traced_until_over(&request)?;
    assert!(
        matches!(refused, Err(TraceError::NoCgroup(_))),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_traced_is_said() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let why = |request: &TraceRequest| -> Result<String> {
        let (reading, _) = traced_until_over(request)?;
        Ok(reading.err().context("it was traced")?.to_string())
    };
    let bare = why(&request("traced_bare"))?;
    assert!(
        bare.contains("lea") && bare.contains("--single-step"),
        "{bare}"
    );
    let near = why(&request("traced_pusch"))?;
    assert!(
        near.contains("no such function") && near.contains("`traced_push`"),
        "{near}"
    );
    let script = TraceRequest {
        file: Some(PathBuf::from("/proc/self/cmdline")),
        ..request("main")
    };
    let script = why(&script)?;
    assert!(script.contains("no x86-64 program"), "{script}");
    // All the same, where it is asked for.
    let all_the_same = TraceRequest {
        single_step: true,
        ..request("traced_bare")
    };
    let reading = traced_work(&all_the_same, &["call traced_bare 50 1"])?;
    assert_eq!(reading.calls, 50);
    Ok(())
}

#[test]
fn a_closed_process_traces_through_its_child_only() -> Result<()> {
    const CALLS: u64 = 200;
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("closed")?;
    let mut process = Work::of(PROGRAM, &cgroup)?;
    let kept = tempfile::tempdir()?;
    let mut tracer = Command::new(env!("CARGO_BIN_EXE_closed_tracer"))
        .arg(kept.path())
        .args([PROGRAM, "traced_push", &CALLS.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(tracer.stdout.take().context("no output")?).lines();
    let ready = lines.next().context("it has ended")??;
    assert_eq!(ready, "ready");
    // It attaches a moment later: until it has seen enough, there are calls, but few.
    let (ended, is_over) = mpsc::channel();
    let said = std::thread::scope(|scope| -> Result<String> {
        scope.spawn(move || {
            let _ = ended.send(lines.next());
        });
        loop {
            process.run("call traced_push 1 1000")?;
            match is_over.try_recv() {
                Ok(line) => return Ok(line.context("it has ended")??),
                Err(mpsc::TryRecvError::Empty) => {}
                Err(why) => return Err(why.into()),
            }
        }
    })?;
    process.end()?;
    assert!(tracer.wait()?.success());
    let said: serde_json::Value = serde_json::from_str(&said)?;
    assert_eq!(said["calls"].as_u64(), Some(CALLS), "{said}");
    assert_eq!(said["ended"], "hits", "{said}");
    assert_eq!(said["closed_before"], serde_json::json!([]), "{said}");
    assert_eq!(said["open"], serde_json::json!([]), "{said}");
    let itself = said["itself"]
        .as_str()
        .context("it could attach by itself")?;
    assert!(itself.contains("not permitted"), "{itself}");
    Ok(())
}

#[test]
fn a_running_agent_traces_when_it_is_asked_and_its_skill_shows_it() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("agent-trace")?;
    let mut process = Work::of(PROGRAM, &cgroup)?;
    let state = tempfile::tempdir()?;
    let agent = Running::start(state.path(), &["--cgroup", cgroup.path()])?;
    let url = agent.url();
    let site = format!("{PROGRAM}:traced_push");
    let kept = state.path().to_str().context("a path")?;
    let words = [
        "trace",
        &site,
        "--agent",
        "--url",
        &url,
        "--state-dir",
        kept,
        "--json",
    ];
    // Not everybody may command the agent.
    let refused = said_by(&["trace", &site, "--agent", "--url", &url])?;
    ensure!(
        refused.code == Some(2) && refused.err.contains("token"),
        "{refused:?}"
    );
    let mut client = command(&[&words[..], &["--max-hits", "50"]].concat())?
        .stdout(Stdio::piped())
        .spawn()?;
    while client.try_wait()?.is_none() {
        process.run("call traced_push 1 1000")?;
    }
    let said = client.wait_with_output()?;
    let traced: serde_json::Value = serde_json::from_slice(&said.stdout)?;
    ensure!(
        traced["calls"] == 50 && traced["cgroups"][0]["cgroup"] == cgroup.path(),
        "{traced}"
    );
    // The judge keeps what the skill saw at the next reading.
    let snapshots = || -> Result<String> {
        let page = "/api/v1/snapshots?scope=host";
        Ok(http::ask(agent.addr, page)?.body)
    };
    until("the skill shows it", Duration::from_secs(10), || {
        snapshots().is_ok_and(|page| page.contains("traced_calls_per_sec"))
    })?;
    // A client that goes away ends its trace, and another may begin.
    let begin = || -> Result<Child> {
        let mut client = command(&[&words[..], &["--for", "4m"]].concat())?;
        Ok(client.stdout(Stdio::null()).spawn()?)
    };
    let mut gone = begin()?;
    let busy = || -> Result<Said> { said_by(&[&words[..], &["--for", "100ms"]].concat()) };
    until("the first one traces", Duration::from_mins(1), || {
        // One that only asked whether it may was there before it.
        if matches!(gone.try_wait(), Ok(Some(_)))
            && let Ok(again) = begin()
        {
            gone = again;
        }
        busy().is_ok_and(|said| said.err.contains("one at a time"))
    })?;
    gone.kill()?;
    gone.wait()?;
    until("the next one may", Duration::from_secs(20), || {
        busy().is_ok_and(|said| said.code == Some(0))
    })?;
    process.end()
}

/// A function that is a system call's own, and is on every kernel.
const GETPGID: &str = "__x64_sys_getpgid";

fn of_kernel(function: &str) -> TraceRequest {
    TraceRequest {
        file: None,
        ..request(function)
    }
}

/// How the kernel's functions can be traced here; where they cannot, sees to it that this is said.
fn means() -> Result<Vec<Means>> {
    let why = match traceable(&watched()?)?.kernel {
        Ok(means) => return Ok(means),
        Err(why) => why.to_string(),
    };
    let has_kprobes = std::path::Path::new("/sys/bus/event_source/devices/kprobe/type").exists();
    ensure!(!has_kprobes, "{why}");
    ensure!(
        why.contains("fentry: the kernel refused program `kernel_entered`")
            && why
                .contains("kprobes: this kernel has none (no /sys/bus/event_source/devices/kprobe")
            && why.contains("CONFIG_"),
        "{why}"
    );
    let (refused, _) = traced_until_over(&of_kernel(GETPGID))?;
    ensure!(
        matches!(
            refused,
            Err(TraceError::Kernel(KernelFunctionError::NoMeans { .. }))
        ),
        "{refused:?}"
    );
    println!("NOT RUN: traces of the kernel's functions ({why})");
    Ok(Vec::new())
}

/// By each of the means, and which one it is.
fn by_all_means(mut request: TraceRequest) -> Result<Vec<(Means, TraceRequest)>> {
    let means = means()?.into_iter();
    Ok(means
        .map(|by| {
            request.force_fallback = by == Means::Kprobe;
            (by, request.clone())
        })
        .collect())
}

#[test]
fn calls_of_a_kernel_function_are_exact_and_only_of_those_asked_for() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let (asked, other) = (Cgroup::new("kernel-asked")?, Cgroup::new("kernel-other")?);
    let mut of_asked = Work::of(PROGRAM, &asked)?;
    let mut of_other = Work::of(PROGRAM, &other)?;
    let request = TraceRequest {
        cgroups: vec![asked.path().to_owned()],
        ..of_kernel(GETPGID)
    };
    for (by, request) in by_all_means(request)? {
        let (reading, ()) = traced(&request, || {
            of_asked.run("call getpgid 700 0")?;
            of_other.run("call getpgid 400 0")?;
            Ok(())
        })?;
        let reading = reading?;
        assert_eq!((reading.by, reading.calls), (by, 700), "{reading:?}");
        // Others on this machine may make the call, too.
        assert!(reading.traps >= 1100, "{reading:?}");
        assert_eq!(reading.cgroups.len(), 1, "{:?}", reading.cgroups);
        let calls = &reading.cgroups[asked.path()];
        assert_eq!((calls.calls, calls.returns), (700, 700), "{reading:?}");
        assert_eq!((reading.missing, reading.under_way), (0, 0), "{reading:?}");
        assert!(reading.quality.lost.is_empty(), "{reading:?}");
        println!("{by:?}: mean {} ns", calls.total_ns / 700);
    }
    of_asked.end()?;
    of_other.end()
}

#[test]
fn a_kernel_function_that_sleeps_is_timed_until_it_returns() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("kernel-sleeps")?;
    let mut process = Work::of(PROGRAM, &cgroup)?;
    let request = TraceRequest {
        cgroups: vec![cgroup.path().to_owned()],
        ..of_kernel("__x64_sys_clock_nanosleep")
    };
    for (by, request) in by_all_means(request)? {
        let (reading, ()) = traced(&request, || process.run("sleep 20 3000").map(drop))?;
        let reading = reading?;
        let calls = reading.cgroups.get(cgroup.path()).context("nobody")?;
        assert_eq!(
            (calls.calls, calls.returns),
            (20, 20),
            "{by:?}: {reading:?}"
        );
        let mean = calls.total_ns / 20;
        assert!((3_000_000..1_000_000_000).contains(&mean), "{by:?}: {mean}");
        // 3 ms lie in the bucket that begins at 2.1.
        assert_eq!(calls.hist[..21], [0; 21], "{by:?}");
    }
    process.end()
}

#[test]
fn limits_hold_for_kernel_functions_too() -> Result<()> {
    const MOST: u64 = 1000;
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("kernel-limit")?;
    let mut process = Work::of(PROGRAM, &cgroup)?;
    let limited = TraceRequest {
        cgroups: vec![cgroup.path().to_owned()],
        max_hits: MOST,
        ..of_kernel(GETPGID)
    };
    for (by, request) in by_all_means(limited)? {
        // No call while the kernel changes its code: QEMU before 8.1 may get that wrong.
        let (stop, _stopper) = UnixStream::pair()?;
        let mut called = Ok(serde_json::Value::Null);
        let reading = trace(&request, &watched()?, stop.as_fd(), || {
            called = process.run(&format!("call getpgid {MOST} 0"));
        });
        called?;
        process.run("call getpgid 500 0")?;
        let reading = reading?;
        let over = (reading.calls, reading.overshoot, reading.ended);
        assert_eq!(over, (MOST, 0, Ended::Hits), "{by:?}");
        assert_eq!(reading.cgroups[cgroup.path()].calls, MOST, "{by:?}");
    }
    process.end()
}

#[test]
fn what_cannot_be_traced_of_the_kernel_is_said() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let why = |function: &str| -> Result<String> {
        let (reading, _) = traced_until_over(&of_kernel(function))?;
        Ok(reading.err().context("it was traced")?.to_string())
    };
    let near = why("__x64_sys_getpgidd")?;
    assert!(
        near.contains("no such function") && near.contains("`__x64_sys_getpgid`"),
        "{near}"
    );
    if means()?.is_empty() {
        return Ok(());
    }
    // What handles the breakpoints themselves: neither ftrace nor kprobes may touch it.
    let kept_out = why("exc_int3")?;
    assert!(
        kept_out.contains("notrace") && kept_out.contains("Trace a function that calls it"),
        "{kept_out}"
    );
    Ok(())
}

#[test]
fn what_a_hit_costs_is_measured_before() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let untimed = TraceRequest {
        returns: false,
        ..request("traced_push")
    };
    let once = traced_work(&untimed, &["call traced_push 500 0"])?;
    let twice = traced_work(&request("traced_push"), &["call traced_push 500 0"])?;
    // What was counted while it was measured is not there any more.
    assert_eq!((once.calls, once.traps), (500, 500));
    assert_eq!((twice.calls, twice.traps, twice.under_way), (500, 500, 0));
    let (one, two) = (
        once.hit_ns.context("no cost")?,
        twice.hit_ns.context("no cost")?,
    );
    println!("a hit costs {one} ns, {two} ns with its return");
    assert!(one > 50 && two > one, "{one} {two}");
    let cost = once.cost().context("no cost")?;
    assert_eq!(cost, Duration::from_nanos(500 * one));
    // A breakpoint that is single-stepped is measured as one.
    let bare = TraceRequest {
        single_step: true,
        returns: false,
        ..request("traced_bare")
    };
    let single = traced_work(&bare, &["call traced_bare 50 1"])?;
    let single = single.hit_ns.context("no cost")?;
    println!("single-stepped {single} ns");
    assert!(single > one, "{single} {one}");
    Ok(())
}
