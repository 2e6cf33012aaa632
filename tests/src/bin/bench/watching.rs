//! Who watches while something is measured.

use std::{
    collections::BTreeSet,
    env,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{Btf, Ebpf, programs::BtfTracePoint};
use lens_agent::probes::{Config, KernelTypes, Probes, Watched};
use lens_tests::{cgroup::Hierarchy, running::Running, until};
use tempfile::TempDir;

/// The time in which an observer must be at work.
const ATTACHED: Duration = Duration::from_secs(30);

/// Who watches.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Observer {
    /// Nobody.
    Nothing,
    /// Programs that do nothing, at these hooks.
    Empty(&'static [&'static str]),
    /// Programs that do nothing, at all hooks of these probes; of all if there are none.
    EmptyOf(&'static [&'static str]),
    /// An agent with these flags.
    Lens(&'static [&'static str]),
    /// Another tool with these arguments, which is at work once it has attached so many programs.
    Peer(&'static str, &'static [&'static str], usize),
}

/// An observer at work; dropping it ends it.
pub(crate) struct Watching(#[expect(dead_code, reason = "at work as long as it lives")] Held);

#[expect(dead_code, reason = "at work as long as they live")]
enum Held {
    Nobody,
    Programs(Empty),
    Agent(Running, TempDir),
    Tool(Tool),
}

struct Tool(Child);

impl Drop for Tool {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        // It is our own child; SIGINT is how the tools end.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.0.wait();
    }
}

impl Observer {
    /// Has it begin.
    pub(crate) fn watch(self) -> Result<Watching> {
        Ok(Watching(match self {
            Self::Nothing => Held::Nobody,
            Self::Empty(hooks) => {
                Held::Programs(Empty::at(hooks.iter().map(|h| (*h).to_owned()).collect())?)
            }
            Self::EmptyOf(probes) => Held::Programs(Empty::at(hooks_of(probes)?)?),
            Self::Lens(flags) => {
                let state = tempfile::tempdir()?;
                let agent = Running::start(state.path(), &[&["--interval", "5s"], flags].concat())?;
                Held::Agent(agent, state)
            }
            Self::Peer(name, arguments, programs) => Held::Tool(tool(name, arguments, programs)?),
        }))
    }
}

/// What the host watches.
pub(crate) fn watched() -> Result<Watched> {
    Ok(Watched {
        root: Hierarchy::of_host()?.root,
        v1: None,
        id: 0,
    })
}

/// The tracepoints at which these probes have programs; of all probes if there are none.
pub(crate) fn hooks_of(probes: &[&str]) -> Result<BTreeSet<String>> {
    let config = Config {
        only: probes.iter().map(|p| (*p).to_owned()).collect(),
        ..Config::default()
    };
    let costs = Probes::start(&watched()?, &config)?.costs();
    let types = KernelTypes::of_running_kernel()?;
    let programs = costs.into_values().flatten().map(|cost| cost.program);
    // Iterators run when they are read, and are at no hook.
    Ok(programs
        .filter(|program| types.tracepoint_args(program).is_some())
        .collect())
}

/// Programs that do nothing.
pub(crate) struct Empty(pub(crate) Ebpf);

impl Empty {
    /// Attaches one to each of `hooks`.
    pub(crate) fn at(hooks: BTreeSet<String>) -> Result<Self> {
        let object = env::var_os("LENS_EMPTY_OBJECT").map(PathBuf::from);
        let object =
            object.context("LENS_EMPTY_OBJECT names no object; run `cargo xtask bench`")?;
        let types = Btf::from_sys_fs()?;
        let mut ebpf = Ebpf::load_file(object)?;
        for hook in hooks {
            let program = ebpf
                .program_mut(&hook)
                .with_context(|| format!("lens-ebpf/src/bin/empty.rs has no program {hook}"))?;
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(&hook, &types)?;
            program.attach()?;
        }
        Ok(Self(ebpf))
    }
}

fn tool(name: &str, arguments: &[&str], programs: usize) -> Result<Tool> {
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
    let tool = Tool(child);
    let links = || {
        let fds = std::fs::read_dir(&fds).into_iter().flatten().flatten();
        let targets = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets
            .filter(|target| target.as_os_str() == "anon_inode:bpf_link")
            .count()
    };
    until(name, ATTACHED, || links() >= programs)
        .with_context(|| format!("{name} (package libbpf-tools) attaches nothing"))?;
    Ok(tool)
}
