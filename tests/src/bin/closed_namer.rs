//! An agent in small: makes the child that names addresses, closes itself, and has the stacks of a
//! cgroup named, with and without the child. `closed_namer DIRECTORY CGROUP` says `ready` when closed,
//! waits for a line, and says how both came out. `closed_namer doors` closes itself as the child does,
//! and says what it can still do.

use std::{fs, io::Write as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use lens_agent::{
    agent::{Door, Namer, close, close_namer, try_doors},
    base::quality::Quality,
    probes::{Config, Globs, NamedStack, Probes, StackSample, Watched, name_stacks},
};
use lens_tests::cgroup::Hierarchy;
use serde_json::{Value, json};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let said = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["doors"] => doors()?,
        [directory, cgroup] => names(Path::new(directory), cgroup)?,
        _ => anyhow::bail!("closed_namer DIRECTORY CGROUP, or closed_namer doors"),
    };
    writeln!(std::io::stdout(), "{said}")?;
    Ok(())
}

fn doors() -> Result<Value> {
    let outside = tempfile::tempdir()?;
    let so = |open: bool| -> Vec<&'static str> {
        let tried = try_doors(outside.path());
        let so = tried.iter().filter(|door| Door::is_closed(door) != open);
        so.map(|door| door.what).collect()
    };
    let before = so(false);
    let mut open = Quality::default();
    close_namer(&mut open);
    ensure!(open == Quality::default(), "{open:?}");
    let said = json!({ "closed_before": before, "open": so(true) });
    // It cannot be removed from here any more.
    let _ = outside.keep();
    Ok(said)
}

fn names(directory: &Path, cgroup: &str) -> Result<Value> {
    let namer = Namer::start()?;
    let watched = Watched {
        root: Hierarchy::of_host()?.root,
        v1: None,
        id: 0,
    };
    let config = Config {
        globs: Globs::new(&[cgroup])?,
        only: vec!["profile".to_owned()],
        ..Config::default()
    };
    let mut probes = Probes::start(&watched, &config)?;
    let mut open = Quality::default();
    close(directory, &mut open);
    open.merge(namer.not_closed());
    ensure!(open == Quality::default(), "{open:?}");
    // What it has it can stop and start still.
    probes.reduce("profile", 2);
    probes.reduce("profile", 0);
    writeln!(std::io::stdout(), "ready")?;
    std::io::stdin().read_line(&mut String::new())?;
    let stacks = probes.read().profile.context("no reading")?.stacks;
    let own = std::process::id();
    let anon = "RssAnon:";
    let before = (kib(own, anon)?, kib(namer.pid(), anon)?);
    let named = namer.name(&stacks)?;
    let after = (kib(own, anon)?, kib(namer.pid(), anon)?);
    let most = kib(namer.pid(), "VmHWM:")?;
    Ok(json!({
        "itself": told(&stacks, &name_stacks(&stacks)),
        "by_child": told(&stacks, &named),
        "own_kib": [before.0, after.0],
        "child_kib": [before.1, most, after.1],
    }))
}

/// How often which functions were seen, the outermost first.
fn told(stacks: &[StackSample], named: &[NamedStack]) -> Vec<Value> {
    let all = stacks.iter().zip(named);
    all.map(|(stack, named)| {
        let names: Vec<&str> = named.frames.iter().map(|f| &*f.name).collect();
        json!({ "samples": stack.samples, "names": names, "gone": named.gone })
    })
    .collect()
}

/// A line of `/proc/PID/status`, in KiB.
fn kib(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|l| l.split_ascii_whitespace().next());
    Ok(value.context("no such line")?.parse()?)
}
