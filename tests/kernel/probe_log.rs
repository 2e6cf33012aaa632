//! What the kernel programs say of themselves: nothing, unless they are asked to.

use anyhow::Result;
use lens_agent::probes::{Config, LogLevel, Probes, Watched};
use lens_tests::{cgroup::Hierarchy, root_or_say_not_run};

use crate::objects::Nest;

#[test]
fn programs_say_what_they_are_asked_for() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    for (level, told) in [
        (None, false),
        (Some(LogLevel::Warn), false),
        (Some(LogLevel::Debug), true),
    ] {
        let mut nest = Nest::with("lifecycle", |config| config.log = level)?;
        let cgroup = nest.top.child("told")?;
        nest.read();
        let said = nest.probes.take_log();
        let text = format!("cgroup {} made", cgroup.id()?);
        let line = said.iter().find(|line| line.text == text);
        assert_eq!(line.is_some(), told, "{level:?}: {said:?}");
        if let Some(line) = line {
            assert_eq!((line.object, line.level), ("targets", LogLevel::Debug));
        }
        assert!(nest.probes.take_log().iter().all(|line| line.text != text));
    }
    Ok(())
}

#[test]
fn every_probe_runs_also_when_it_speaks() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let watched = Watched {
        root: Hierarchy::of_host()?.root,
        v1: None,
        id: 0,
    };
    let mut verified = Vec::new();
    for log in [None, Some(LogLevel::Error), Some(LogLevel::Trace)] {
        let mut config = Config {
            log,
            ..Config::default()
        };
        config.memory.fault_stack_one_in = 1000;
        let mut probes = Probes::start(&watched, &config)?;
        assert!(
            probes.refused().is_empty(),
            "{log:?}: {:?}",
            probes.refused()
        );
        probes.read();
        let programs = probes.costs().into_values().flatten();
        verified.push(programs.filter_map(|p| p.verified).sum::<u32>());
    }
    println!("instructions verified, without a log, with errors, with all: {verified:?}");
    Ok(())
}
