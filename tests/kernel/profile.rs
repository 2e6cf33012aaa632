//! Where time goes: the functions that had it, in their order, as much as they had; and no names that
//! are not theirs.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lens_agent::probes::{
    NamedSample, ProfileCounters, ProfileKind, ProfileRequest, Profiled, Reduction, Watched,
    profile::{PERIOD_NS, profile},
};
use lens_tests::{
    cgroup::{Cgroup, Hierarchy},
    commands::said as said_by,
    not_run, root_or_say_not_run, until,
};
use serde_json::Value;

use crate::objects::{Nest, Work};

const PROGRAM: &str = env!("CARGO_BIN_EXE_load_profile");

/// Profiles `cgroup`, and does `meanwhile` from when it has begun.
fn profiled<T>(
    kind: ProfileKind,
    cgroup: &Cgroup,
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(Profiled, T)> {
    let watched = Watched {
        root: Hierarchy::of_host()?.root,
        v1: None,
        id: 0,
    };
    let request = ProfileRequest {
        kind,
        span: Duration::from_mins(2),
        cgroups: vec![cgroup.path().to_owned()],
    };
    let (stop, stopper) = UnixStream::pair()?;
    let (attached, is_attached) = mpsc::channel();
    std::thread::scope(|scope| {
        let profiling = scope.spawn(|| {
            profile(&request, &watched, stop.as_fd(), || {
                let _ = attached.send(());
            })
        });
        // Ends the profile also when the work has failed.
        let stopper = stopper;
        let done = match is_attached.recv_timeout(Duration::from_mins(1)) {
            Ok(()) => meanwhile(),
            Err(why) => Err(why.into()),
        };
        drop(stopper);
        let profiled = profiling.join().ok().context("the profile panicked")?;
        let profiled = profiled.with_context(|| format!("{:?}", done.as_ref().err()))?;
        ensure!(
            profiled.quality.lost.is_empty() && profiled.quality.missing.is_empty(),
            "{:?}",
            profiled.quality
        );
        for sample in profiled.samples.iter().take(4) {
            println!("{}", told(sample));
        }
        Ok((profiled, done?))
    })
}

fn told(sample: &NamedSample) -> String {
    format!(
        "{} x, {} ms, {} {}: {}{}",
        sample.times,
        sample.ns / 1_000_000,
        sample.cgroup,
        sample.comm,
        if sample.stack.truncated { "..." } else { "" },
        names(sample).join(";")
    )
}

/// The outermost first.
fn names(sample: &NamedSample) -> Vec<&str> {
    sample.stack.frames.iter().map(|f| &*f.name).collect()
}

/// Whether these functions are called in this order, one by the other.
fn calls(sample: &NamedSample, chain: &[&str]) -> bool {
    names(sample).windows(chain.len()).any(|w| w == chain)
}

/// Of all samples, the part that `wanted` is true of, and their number.
fn part(profiled: &Profiled, wanted: impl Fn(&NamedSample) -> bool) -> (f64, u64) {
    let sum = |wanted: &dyn Fn(&NamedSample) -> bool| {
        let wanted = profiled.samples.iter().filter(|s| wanted(s));
        wanted.map(|s| s.times).sum::<u64>()
    };
    let (found, all) = (sum(&wanted), sum(&|_| true));
    (found as f64 / all as f64, found)
}

fn ms(said: &Value, name: &str) -> Result<f64> {
    said[name].as_f64().with_context(|| said.to_string())
}

#[test]
fn functions_are_in_their_order_as_often_as_they_ran() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let (cgroup, neighbour) = (Cgroup::new("burns")?, Cgroup::new("neighbour")?);
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let mut other = Work::of(PROGRAM, &neighbour)?;
    let (profiled, cpu_ms) = profiled(ProfileKind::Cpu, &cgroup, || {
        other.begin("burn 1000")?;
        let said = work.run("burn 6000")?;
        other.finish()?;
        ms(&said, "cpu_ms")
    })?;
    let chain = ["profiled_outer", "profiled_middle", "profiled_inner"];
    let (share, samples) = part(&profiled, |s| calls(s, &chain));
    let expected = cpu_ms * 1e6 / PERIOD_NS as f64;
    println!("{samples} samples of {expected:.0}, {share:.3} with all names");
    assert!(share > 0.9, "{share}");
    let of_all = profiled.samples.iter().map(|s| s.times).sum::<u64>() as f64 / expected;
    assert!((0.9..1.1).contains(&of_all), "{of_all}");
    // A thread's first function is called by the C library alone.
    let (whole, _) = part(&profiled, |s| !s.stack.truncated);
    assert!(whole > 0.9, "{whole}");
    assert!(
        profiled
            .samples
            .iter()
            .all(|s| &*s.cgroup == cgroup.path() && s.tgid == work.pid()),
        "somebody else"
    );
    work.end()?;
    other.end()
}

#[test]
fn time_in_the_kernel_has_the_kernel_s_functions() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("reads")?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let (profiled, _) = profiled(ProfileKind::Cpu, &cgroup, || work.run("kernel 1500"))?;
    let (share, _) = part(&profiled, |s| {
        let frames = &s.stack.frames;
        let user = frames.iter().position(|f| &*f.name == "profiled_read");
        let kernel = frames
            .iter()
            .position(|f| &*f.name == "ksys_read" && f.kernel);
        user.zip(kernel).is_some_and(|(user, kernel)| user < kernel)
    });
    println!("{share:.3} in read(2)");
    assert!(share > 0.8, "{share}");
    work.end()
}

#[test]
fn a_stack_without_frame_pointers_is_cut_and_says_so() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("bare")?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let (profiled, _) = profiled(ProfileKind::Cpu, &cgroup, || work.run("bare 1500"))?;
    let (share, _) = part(&profiled, |s| {
        names(s) == ["profiled_bare"] && s.stack.truncated
    });
    println!("{share:.3} cut");
    assert!(share > 0.9, "{share}");
    // What looks like a caller is none: not the place in data, nor the one inside a function.
    let (junk, _) = part(&profiled, |s| {
        let names = names(s);
        names.contains(&"profiled_bare")
            && names
                .iter()
                .any(|n| n.contains("junk") || *n == "profiled_inner")
    });
    assert!(junk == 0.0, "{junk}");
    work.end()
}

#[test]
fn sleeps_are_charged_to_where_they_are_slept() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("sleeps")?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    // Long ones, and so many short ones that not of each a stack is taken.
    for (line, sleeps) in [("nap 20 50000", 20_u64), ("nap 20000 20", 20_000)] {
        let (profiled, slept_ms) = profiled(ProfileKind::OffCpu, &cgroup, || {
            ms(&work.run(line)?, "wall_ms")
        })?;
        let is_nap = |s: &&NamedSample| {
            names(s).contains(&"profiled_nap")
                && s.stack
                    .frames
                    .last()
                    .is_some_and(|f| f.kernel && &*f.name == "__schedule")
        };
        let naps: Vec<&NamedSample> = profiled.samples.iter().filter(is_nap).collect();
        let times: u64 = naps.iter().map(|s| s.times).sum();
        let charged = naps.iter().map(|s| s.ns).sum::<u64>() as f64 / 1e6;
        let (exact, exact_ns) = profiled.sleeps[cgroup.path()];
        println!(
            "{line}: {charged:.1} ms of {slept_ms:.1}, {times} sleeps of {exact}; all {:.1} ms",
            exact_ns as f64 / 1e6
        );
        if sleeps == 20 {
            assert!(
                (charged / slept_ms - 1.0).abs() < 0.05,
                "{charged} {slept_ms}"
            );
            assert_eq!(times, sleeps);
        } else {
            // By chance, and right on average. Of those that a busy machine made long not all have
            // a user stack; their time is charged all the same.
            let exact_ms = exact_ns as f64 / 1e6;
            let all = profiled.samples.iter().map(|s| s.ns).sum::<u64>() as f64 / 1e6;
            println!("{all:.1} ms charged in all");
            assert!((all / exact_ms - 1.0).abs() < 0.1, "{all} {exact_ms}");
            assert!(charged > exact_ms / 2.0, "{charged} {exact_ms}");
            assert!((times as f64 / sleeps as f64 - 1.0).abs() < 0.1, "{times}");
        }
    }
    work.end()
}

#[test]
fn sleeps_that_go_on_count_as_far_as_they_have_come() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("goes-on")?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let (profiled, ()) = profiled(ProfileKind::OffCpu, &cgroup, || {
        work.begin("nap 1 2000000")?;
        std::thread::park_timeout(Duration::from_millis(700));
        Ok(())
    })?;
    let elapsed = profiled.elapsed.as_secs_f64() * 1e3;
    let of = |name: &str| {
        let found = profiled.samples.iter().filter(|s| names(s).contains(&name));
        found.map(|s| s.ns).sum::<u64>() as f64 / 1e6
    };
    let nap = of("profiled_nap");
    println!("{nap} ms of {elapsed}");
    assert!(nap > 500.0 && nap <= elapsed + 1.0, "{nap} {elapsed}");
    work.finish()?;
    work.end()
}

#[test]
fn a_process_that_is_gone_has_no_names_or_its_own() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("gone")?;
    let (profiled, pids) = profiled(ProfileKind::Cpu, &cgroup, || {
        let mut pids = Vec::new();
        for _ in 0..40 {
            let mut work = Work::of(PROGRAM, &cgroup)?;
            work.run("burn 10")?;
            pids.push(work.pid());
            work.end()?;
        }
        Ok(pids)
    })?;
    let mut gone = 0;
    for sample in profiled.samples.iter().filter(|s| s.stack.gone) {
        let user = sample.stack.frames.iter().filter(|f| !f.kernel);
        let user: Vec<_> = user.map(|f| &*f.name).collect();
        assert_eq!(user, ["[gone]"]);
        // Its name was taken with the sample.
        if pids.contains(&sample.tgid) && &*sample.comm == "load_profile" {
            gone += sample.times;
        }
    }
    // Who was met has its names, although it is gone now.
    let (foreign, _) = part(&profiled, |s| {
        !s.stack.gone && names(s).contains(&"profiled_inner") && &*s.comm != "load_profile"
    });
    let (of_gone, _) = part(&profiled, |s| s.stack.gone);
    println!("{gone} samples of processes that were gone, {of_gone:.2} of all");
    assert!(gone > 0, "all lived long enough");
    assert!(foreign == 0.0, "{foreign}");
    Ok(())
}

const SCRIPT: &str = "
function hotInner(n) { let x = 0; for (let i = 0; i < n; i++) x = (x * 31 + i) % 1000003; return x; }
function hotOuter(n) { let s = 0; for (let i = 0; i < 1000; i++) s += hotInner(n); return s; }
const end = Date.now() + 4000;
let sum = 0;
while (Date.now() < end) sum += hotOuter(2000);
process.stdout.write('done ' + (sum > 0) + '\\n');
";

#[test]
fn javascript_has_its_names() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    if !Command::new("node")
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success())
    {
        return not_run("there is no node");
    }
    let cgroup = Cgroup::new("node")?;
    let dir = tempfile::tempdir()?;
    let script = dir.path().join("hot.js");
    fs::write(&script, SCRIPT)?;
    let mut command = Command::new("node");
    command
        .args([
            "--perf-basic-prof",
            "--no-turbo-inlining",
            "--interpreted-frames-native-stack",
        ])
        .arg(&script)
        // It leaves a log where it runs.
        .current_dir(dir.path())
        .stdout(Stdio::null());
    let mut node = cgroup.spawn(&mut command)?;
    let map = format!("/tmp/perf-{}.map", node.id());
    let (profiled, ()) = profiled(ProfileKind::Cpu, &cgroup, || {
        let mut over = || matches!(node.try_wait(), Ok(Some(_)));
        until("a second of it", Duration::from_mins(1), || {
            cgroup.usage_ns().is_ok_and(|ns| ns > 2_000_000_000) || over()
        })
    })?;
    node.kill()?;
    node.wait()?;
    let _ = fs::remove_file(map);
    let (share, _) = part(&profiled, |s| {
        let names = names(s);
        let outer = names.iter().position(|n| n.contains("hotOuter"));
        let inner = names.iter().position(|n| n.contains("hotInner"));
        outer.zip(inner).is_some_and(|(outer, inner)| outer < inner)
    });
    println!("{share:.3} in hotInner of hotOuter");
    assert!(share > 0.5, "{share}");
    Ok(())
}

fn counters(nest: &mut Nest, cgroup: &Cgroup) -> Result<ProfileCounters> {
    let reading = nest.read().profile.context("no reading")?;
    let counters = reading.cgroups.get(&cgroup.id()?);
    Ok(counters.copied().unwrap_or_default())
}

#[test]
fn the_probe_counts_always_or_one_in_four_or_nothing() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("profile")?;
    let cgroup = nest.top.child("burns")?;
    let outside = Cgroup::new("outside")?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let mut other = Work::of(PROGRAM, &outside)?;
    other.run("burn 200")?;
    // Beside others on the same CPUs it is by chance how many of its beats fall on this load: a few
    // percent of so many.
    for (to, wanted, tolerance) in [
        (0, None, 0.15),
        (1, Some(Reduction::Sampled(4)), 0.3),
        (2, Some(Reduction::Detached), 0.0),
        (0, None, 0.15),
    ] {
        nest.probes.reduce("profile", to);
        assert_eq!(nest.probes.reductions("profile").last(), wanted.as_ref());
        let before = counters(&mut nest, &cgroup).unwrap_or_default();
        let cpu_ms = ms(&work.run("burn 4000")?, "cpu_ms")?;
        if wanted == Some(Reduction::Detached) {
            assert!(counters(&mut nest, &cgroup).is_err(), "it still counts");
            continue;
        }
        let reading = nest.read();
        let profile = reading.profile.context("no reading")?;
        let after = profile.cgroups[&cgroup.id()?];
        let user = after.user - before.user;
        let expected = cpu_ms * 1e6 / PERIOD_NS as f64;
        println!("{wanted:?}: {user} of {expected:.0}");
        assert!(
            (user as f64 / expected - 1.0).abs() < tolerance,
            "{user} {expected}"
        );
        let hottest = profile.stacks.first().context("no stacks")?;
        assert_eq!((hottest.cgroup, hottest.tgid), (cgroup.id()?, work.pid()));
        assert!(
            !hottest.user.is_empty() && hottest.comm == "load_profile",
            "{hottest:?}"
        );
        assert!(!profile.cgroups.contains_key(&outside.id()?));
        assert!(reading.quality.lost.is_empty(), "{:?}", reading.quality);
    }
    nest.print_costs();
    println!("{} KiB of maps", nest.probes.map_bytes("profile") / 1024);
    assert!(nest.probes.map_bytes("profile") < 3 << 20);
    work.end()?;
    other.end()
}

#[test]
fn the_command_shows_and_writes_what_it_saw() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("command")?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    work.begin("burn 120000")?;
    let dir = tempfile::tempdir()?;
    let file = |name: &str| dir.path().join(name).display().to_string();
    let words = ["profile", "--for", "1s", "--cgroup", cgroup.path()];
    let run = |more: &[&str]| said_by(&[&words[..], more].concat());
    let told = run(&["--output", &file("a.svg")])?;
    ensure!(told.code == Some(0), "{told:?}");
    ensure!(
        told.out.contains("profiled_inner") && told.out.contains(cgroup.path()),
        "{told:?}"
    );
    let svg = fs::read_to_string(file("a.svg"))?;
    ensure!(
        svg.contains("profiled_inner") && svg.trim_end().ends_with("</svg>"),
        "{svg}"
    );
    let json = run(&["--json", "--output", &file("a.folded")])?;
    let json: Value = serde_json::from_str(&json.out)?;
    let stack = &json["cgroups"][0]["stacks"][0];
    let innermost = stack["frames"].as_array().and_then(|f| f.last());
    ensure!(
        innermost.is_some_and(|f| f["name"] == "profiled_inner") && stack["truncated"] == false,
        "{json}"
    );
    let folded = fs::read_to_string(file("a.folded"))?;
    ensure!(
        folded.contains("profiled_outer;profiled_middle;profiled_inner "),
        "{folded}"
    );
    let nobody = said_by(&["profile", "--for", "1s", "--cgroup", "/no/such"])?;
    ensure!(
        nobody.code == Some(2) && nobody.err.contains("/no/such"),
        "{nobody:?}"
    );
    let wrong = run(&["--output", "/tmp/a.png"])?;
    ensure!(wrong.code == Some(64), "{wrong:?}");
    drop(work);
    Ok(())
}

#[test]
fn a_closed_process_has_stacks_named_by_its_child_only() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("closed")?;
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let kept = tempfile::tempdir()?;
    let mut closed = Command::new(env!("CARGO_BIN_EXE_closed_namer"))
        .arg(kept.path())
        .arg(cgroup.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(closed.stdout.take().context("no output")?).lines();
    let ready = lines.next().context("it has ended")??;
    assert_eq!(ready, "ready");
    work.run("burn 500")?;
    work.run("kernel 500")?;
    writeln!(closed.stdin.take().context("no input")?)?;
    let said = lines.next().context("it has ended")??;
    assert!(closed.wait()?.success());
    work.end()?;
    let said: Value = serde_json::from_str(&said)?;
    let chain = ["profiled_outer", "profiled_middle", "profiled_inner"];
    let has_names = |stack: &Value| {
        let names = stack["names"].as_array().map(Vec::as_slice);
        names.is_some_and(|names| names.windows(3).any(|w| w == chain))
    };
    let rows = |who: &str| said[who].as_array().cloned().unwrap_or_default();
    ensure!(rows("by_child").iter().any(has_names), "{said}");
    ensure!(
        rows("itself").iter().all(|stack| stack["gone"] == true),
        "{said}"
    );
    let kib = |who: &str, i: usize| said[who][i].as_u64().context("no number");
    println!(
        "anonymous KiB: agent {} -> {}, child {} -> at most {} with files -> {}",
        kib("own_kib", 0)?,
        kib("own_kib", 1)?,
        kib("child_kib", 0)?,
        kib("child_kib", 1)?,
        kib("child_kib", 2)?
    );
    ensure!(kib("own_kib", 1)? < kib("own_kib", 0)? + 1024, "{said}");
    // What naming took has been given back: the list of the kernel's symbols alone is more.
    let (before, most, after) = (
        kib("child_kib", 0)?,
        kib("child_kib", 1)?,
        kib("child_kib", 2)?,
    );
    ensure!(most > before + 8192 && after < before + 4096, "{said}");
    Ok(())
}

#[test]
fn the_child_that_names_can_change_nothing() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let said = Command::new(env!("CARGO_BIN_EXE_closed_namer"))
        .arg("doors")
        .env("TMPDIR", dir.path())
        .output()?;
    let said: Value = serde_json::from_slice(&said.stdout)
        .with_context(|| String::from_utf8_lossy(&said.stderr).into_owned())?;
    assert_eq!(said, serde_json::json!({ "closed_before": [], "open": [] }));
    Ok(())
}
