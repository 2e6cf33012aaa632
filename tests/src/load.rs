//! The workload program (`src/bin/load.rs`), as a test sees it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};
use serde_json::Value;

use crate::{cgroup::Cgroup, until};

/// How long a load may take to start, or to be scheduled once it has nothing to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the kernel says a task has waited for CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// How often.
    pub waits: u64,
    /// How long in all.
    pub wait_ns: u64,
}

/// A running load. It stands still, all threads asleep, until [`Load::go`] and after
/// [`Load::report`]: what is read there is whole.
#[derive(Debug)]
pub struct Load {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Load {
    /// Starts `program` (`env!("CARGO_BIN_EXE_load")`) in `cgroup`, ready to go.
    pub fn ready(program: &str, cgroup: &Cgroup, arguments: &str) -> Result<Self> {
        let mut load = Self::spawn(program, cgroup, arguments)?;
        let mut line = String::new();
        load.output.read_line(&mut line)?;
        ensure!(line == "ready\n", "load {arguments}: {line:?}");
        load.rest()?;
        Ok(load)
    }

    fn spawn(program: &str, cgroup: &Cgroup, arguments: &str) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .args(arguments.split_ascii_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = cgroup.spawn(&mut command)?;
        Ok(Self {
            input: child.stdin.take().context("no input")?,
            output: BufReader::new(child.stdout.take().context("no output")?),
            child,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it work.
    pub fn go(&mut self) -> Result<()> {
        Ok(self.input.write_all(b"go\n")?)
    }

    /// Waits until its work is done; what it says of each thread.
    pub fn report(&mut self) -> Result<Vec<Value>> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line).with_context(|| format!("{line:?}"))?;
        self.rest()?;
        Ok(said["threads"].as_array().context("no threads")?.clone())
    }

    /// Waits until all its threads sleep.
    fn rest(&self) -> Result<()> {
        // Looked at one after the other, one may just have woken another: twice, and none ran.
        let mut before = None;
        until("a load that has nothing to do sleeps", PATIENCE, || {
            let all = self
                .tids()
                .is_ok_and(|tids| self.count('S').is_ok_and(|asleep| asleep == tids.len()));
            let now = self.waited().ok().filter(|_| all);
            let still = now.is_some() && now == before;
            before = now;
            still
        })
    }

    /// Waits until `threads` of its threads run or wait for a CPU: the first to work may keep the
    /// others from starting.
    pub fn all_run(&self, threads: usize) -> Result<()> {
        until("all threads work", PATIENCE, || {
            self.count('R').is_ok_and(|running| running >= threads)
        })
    }

    /// How many of its threads are in `state`.
    fn count(&self, state: char) -> Result<usize> {
        let in_state = |tid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{}/task/{tid}/stat", self.pid()));
            stat.is_ok_and(|s| {
                s.rsplit_once(") ")
                    .is_some_and(|(_, s)| s.starts_with(state))
            })
        };
        Ok(self.tids()?.iter().filter(|tid| in_state(tid)).count())
    }

    /// Its threads.
    pub fn tids(&self) -> Result<Vec<u32>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()))?;
        let mut tids = Vec::new();
        for task in tasks {
            tids.push(task?.file_name().to_string_lossy().parse()?);
        }
        Ok(tids)
    }

    /// What the kernel's own book-keeping says of all its threads, since they were born.
    pub fn waited(&self) -> Result<Waited> {
        let mut sum = Waited::default();
        for tid in self.tids()? {
            let path = format!("/proc/{}/task/{tid}/schedstat", self.pid());
            let text = fs::read_to_string(path)?;
            let words: Vec<u64> = text
                .split_ascii_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            let [_, wait_ns, waits] = words[..] else {
                anyhow::bail!("schedstat: {text:?}");
            };
            sum.waits += waits;
            sum.wait_ns += wait_ns;
        }
        Ok(sum)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets the task `tid` run on `cpu` only.
pub fn pin(tid: u32, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    let tid = Pid::from_raw(i32::try_from(tid)?);
    Ok(sched_setaffinity(tid, &cpus)?)
}
