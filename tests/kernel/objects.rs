//! Watching a fresh cgroup with one probe, and work in it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lens_agent::probes::{Config, Globs, KernelReading, Probes, Watched};
use lens_tests::{
    cgroup::{Cgroup, Hierarchy},
    until,
};
use serde_json::Value;

/// A cgroup whose children are watched, by one probe. The probe goes first, then the cgroup.
pub(crate) struct Nest {
    pub(crate) probes: Probes,
    pub(crate) top: Cgroup,
}

impl Nest {
    pub(crate) fn new(probe: &str) -> Result<Self> {
        Self::with(probe, |_| {})
    }

    pub(crate) fn with(probe: &str, configure: impl FnOnce(&mut Config)) -> Result<Self> {
        Self::around(Cgroup::new(probe)?, probe, configure)
    }

    /// Watches what is in `top` already, and what is made there.
    pub(crate) fn around(
        top: Cgroup,
        probe: &str,
        configure: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let mut config = Config {
            globs: Globs::new(&[format!("{}/**", top.path())])?,
            only: vec![probe.to_owned()],
            ..Config::default()
        };
        configure(&mut config);
        let watched = Watched {
            root: Hierarchy::of_host()?.root,
            v1: None,
            id: 0,
        };
        let probes = Probes::start(&watched, &config)?;
        let refused = probes.refused();
        ensure!(refused.is_empty(), "{refused:?}");
        Ok(Self { probes, top })
    }

    pub(crate) fn read(&mut self) -> KernelReading {
        let reading = self.probes.read();
        self.probes.open_window();
        reading
    }

    /// What each program has cost, for whoever runs the tests with `--nocapture`.
    pub(crate) fn print_costs(&mut self) {
        for (probe, costs) in self.probes.costs() {
            for cost in costs.iter().filter(|c| c.runs != 0) {
                let ns = cost.run_ns as f64 / cost.runs as f64;
                println!(
                    "{probe}: {} {} runs, {ns:.1} ns each, {:?} instructions verified",
                    cost.program, cost.runs, cost.verified
                );
            }
        }
    }
}

/// A running `load_objects`, or a program like it.
pub(crate) struct Work {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Work {
    pub(crate) fn start(cgroup: &Cgroup) -> Result<Self> {
        Self::of(env!("CARGO_BIN_EXE_load_objects"), cgroup)
    }

    /// Starts a program that is spoken to in the same way.
    pub(crate) fn of(program: &str, cgroup: &Cgroup) -> Result<Self> {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cgroup.spawn(&mut command)?;
        let mut work = Self {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().context("no output")?),
            child,
        };
        ensure!(work.line()? == "ready", "not ready");
        Ok(work)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the kernel says it has had of page faults: minor, major.
    pub(crate) fn faults(&self) -> Result<(u64, u64)> {
        Ok((self.stat(10)?.parse()?, self.stat(12)?.parse()?))
    }

    /// A field of its `stat`, by the number that proc(5) gives it, from 3 on.
    fn stat(&self, field: usize) -> Result<String> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // In front is the name, which may hold anything.
        let (_, fields) = stat.rsplit_once(") ").context("no name")?;
        let found = fields.split(' ').nth(field - 3);
        Ok(found.context("too short")?.to_owned())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Has `work` done; what it says of it. It is at rest then: waits for more.
    pub(crate) fn run(&mut self, work: &str) -> Result<Value> {
        self.begin(work)?;
        self.finish().with_context(|| work.to_owned())
    }

    /// Has it begin with `work`.
    pub(crate) fn begin(&mut self, work: &str) -> Result<()> {
        let input = self.input.as_mut().context("ended")?;
        writeln!(input, "{work}")?;
        Ok(())
    }

    /// Waits until it is done with what it began; what it says of it.
    pub(crate) fn finish(&mut self) -> Result<Value> {
        let line = self.line()?;
        until("at rest", Duration::from_secs(20), || {
            self.stat(3).is_ok_and(|state| state == "S")
        })?;
        serde_json::from_str(&line).with_context(|| format!("{line:?}"))
    }

    /// Lets it end.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.input.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

/// Does `work` in a fresh process in `cgroup`.
pub(crate) fn do_in(cgroup: &Cgroup, work: &str) -> Result<Value> {
    let mut process = Work::start(cgroup)?;
    let said = process.run(work)?;
    process.end()?;
    Ok(said)
}
