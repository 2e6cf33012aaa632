//! What an agent takes for itself, with many cgroups and many tasks in them.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lens_agent::base::clock::{Clock as _, SystemClock};
use lens_tests::{cgroup::Cgroup, http::ask, running::Running, until_every};
use serde_json::{Value, json};

use crate::table::markdown;

/// Targets, and tasks in each.
const TARGETS: usize = 200;
const TASKS: usize = 10;
/// Readings that are measured, 10 s apart.
const READINGS: u64 = 12;
const INTERVAL: &str = "10s";
/// How long the readings may take.
const PATIENCE: Duration = Duration::from_mins(5);

/// A shell whose children sleep and wake up now and then.
struct Workers(Vec<(Child, Cgroup)>);

impl Workers {
    fn new(top: &Cgroup) -> Result<Self> {
        let mut workers = Self(Vec::new());
        for i in 0..TARGETS {
            let cgroup = top.child(&format!("service-{i}"))?;
            let mut shell = Command::new("sh");
            // Each task is a process; the shell is one of them.
            let script = format!(
                "for i in $(seq {}); do (while read -r line; do echo $line > /dev/null; done) & done; cat > /dev/null; kill 0",
                TASKS - 1
            );
            shell.args(["-c", &script]).stdin(Stdio::piped());
            workers.0.push((cgroup.spawn(&mut shell)?, cgroup));
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (shell, cgroup) in &mut self.0 {
            // What it started is in its cgroup.
            let _ = cgroup.kill();
            let _ = shell.wait();
        }
    }
}

/// A line of `/proc/PID/status`, in KiB.
fn status_kib(pid: u32, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_ascii_whitespace().nth(1));
    Ok(number.context(name.to_owned())?.parse()?)
}

/// CPU time of a process and its children that were waited for, in seconds.
fn cpu_s(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("stat")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // utime and stime are fields 14 and 15, in clock ticks (proc(5)).
    let ticks = |i: usize| -> Result<f64> { Ok(fields.get(i).context("stat")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / rustix::param::clock_ticks_per_second() as f64)
}

/// Measures; what it prints, and the same as JSON.
pub(crate) fn measure() -> Result<(String, Value)> {
    let top = Cgroup::new("services")?;
    let workers = Workers::new(&top)?;
    let state = tempfile::tempdir()?;
    let agent = Running::start(state.path(), &["--interval", INTERVAL])?;
    let pid = agent.pid();
    let status = || -> Result<Value> { ask(agent.addr, "/api/v1/status")?.json() };
    let ticks = || status().ok()?["ticks"].as_u64();
    let begun = ticks().context("the agent tells no ticks")?;
    crate::say("agent: the first readings");
    let wait = |ticked: u64| {
        // Asking is work for the agent, too.
        until_every(Duration::from_secs(5), "readings", PATIENCE, || {
            ticks().is_some_and(|n| n >= ticked)
        })
    };
    wait(begun + 2)?;
    let (began, used) = (SystemClock.now(), cpu_s(pid)?);
    crate::say(&format!("agent: {READINGS} readings, {INTERVAL} apart"));
    wait(begun + 2 + READINGS)?;
    let took = SystemClock.now().since(&began).as_secs_f64();
    let percent = 100.0 * (cpu_s(pid)? - used) / took;
    let (rss, peak) = (status_kib(pid, "VmRSS")?, status_kib(pid, "VmHWM")?);
    let series = status()?["series"].clone();
    drop(agent);
    drop(workers);
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    let head = format!("agent, {TARGETS} targets of {TASKS} tasks, every {INTERVAL}");
    let row = |name: &str, figure: String| vec![name.to_owned(), figure];
    let text = markdown(
        &[&head, "figure"],
        [
            row("CPU", format!("{percent:.2} % of one")),
            row("RSS", mib(rss)),
            row("its peak", mib(peak)),
            row("series", series.to_string()),
        ],
    );
    let value = json!({
        "targets": TARGETS, "tasks": TARGETS * TASKS, "interval": INTERVAL, "cpu_percent": percent,
        "rss_kib": rss, "peak_rss_kib": peak, "series": series,
    });
    Ok((text, value))
}
