//! What the suites share: the built binary ([`commands`]) and a running agent ([`running`]), a server
//! without one ([`served`]) and how to ask it ([`http`]), cgroups of a test's own ([`cgroup`]), its
//! devices and file systems ([`disk`]), workloads that know what they did ([`load`], [`work`]), a model that follows a script
//! ([`provider`]), and waiting for something to become true.

pub mod cgroup;
pub mod commands;
pub mod disk;
pub mod http;
pub mod load;
pub mod provider;
pub mod running;
pub mod sample;
pub mod served;
pub mod work;

use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lens_agent::base::clock::{Clock as _, SystemClock};

/// The built binary: the one that `LENS_BIN` names, else the one in the target folder.
pub fn lens() -> Result<Command> {
    let built = || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let target = root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
        let found = ["release/lens", "debug/lens"].map(|name| target.join(name));
        found.into_iter().find(|path| path.exists())
    };
    let path = env::var_os("LENS_BIN").map(PathBuf::from).or_else(built);
    Ok(Command::new(path.context(
        "there is no lens to test: `cargo xtask build` builds it",
    )?))
}

/// Says, past the capture of test output, that something could not be tested here; with
/// `LENS_TESTS_MUST_RUN=1` that is a failure.
pub fn not_run(why: &str) -> Result<()> {
    let test = std::thread::current();
    let test = test.name().unwrap_or("a test");
    if env::var_os("LENS_TESTS_MUST_RUN").is_some_and(|v| v == "1") {
        bail!("{test} cannot run: {why}");
    }
    writeln!(std::io::stderr(), "NOT RUN: {test} ({why})")?;
    Ok(())
}

/// Whether this is root; says so if it isn't.
pub fn root_or_say_not_run() -> Result<bool> {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        not_run("not root")?;
    }
    Ok(is_root)
}

/// Waits until `condition` holds, and fails when it still does not after `limit`.
pub fn until(what: &str, limit: Duration, condition: impl FnMut() -> bool) -> Result<()> {
    until_every(Duration::from_millis(1), what, limit, condition)
}

/// The same, for a condition that takes work to look at: looks every `step` only, so that looking
/// is not the load that is measured.
pub fn until_every(
    step: Duration,
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    let start = SystemClock.now();
    while !condition() {
        if SystemClock.now().since(&start) > limit {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::park_timeout(step);
    }
    Ok(())
}
