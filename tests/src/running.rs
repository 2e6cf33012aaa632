//! A running agent. Needs root.

use std::{
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{commands::command, until};

/// How long an agent may take to attach its probes on a busy machine.
const START: Duration = Duration::from_mins(2);

/// The agent; it is killed with this value.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    process: Child,
    log: Lines,
}

/// What has been written so far.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<String>>);

impl Lines {
    fn of(from: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let into = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let mut text = into.0.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&line);
                text.push('\n');
            }
        });
        lines
    }

    fn text(&self) -> String {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    }
}

impl Running {
    /// Starts an agent on a free port, with its state in `state`, and waits until it is ready.
    pub fn start(state: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_with(state, arguments, &[])
    }

    /// The same, with more in its environment.
    pub fn start_with(
        state: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let mut command = command(&[])?;
        command.envs(environment.iter().copied());
        Self::start_by(command, state, arguments)
    }

    /// The same, by a command that runs the binary with the arguments that are added to it.
    pub fn start_by(mut command: Command, state: &Path, arguments: &[&str]) -> Result<Self> {
        command.args(["run", "--listen", "127.0.0.1:0", "--state-dir"]);
        command.arg(state).args(arguments);
        if !arguments.contains(&"--interval") {
            command.args(["--interval", "500ms"]);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn()?;
        let said = Lines::of(process.stdout.take().context("no stdout")?);
        let log = Lines::of(process.stderr.take().context("no stderr")?);
        let address = || {
            let text = said.text();
            let url = text.lines().find_map(|l| l.trim().strip_prefix("url"))?;
            url.trim().strip_prefix("http://")?.parse().ok()
        };
        let started = until("the agent is ready", START, || {
            address().is_some() || matches!(process.try_wait(), Ok(Some(_)))
        });
        if let (Ok(()), Some(addr)) = (started, address()) {
            return Ok(Self { addr, process, log });
        }
        process.kill()?;
        process.wait()?;
        bail!("the agent does not start: {}{}", said.text(), log.text())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What `--url` takes.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Ends it as the kernel does when memory runs out: at once, and without a word.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Ends it as systemd does, and says its exit code.
    pub fn stop(mut self) -> Result<Option<i32>> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        Ok(self.process.wait()?.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
