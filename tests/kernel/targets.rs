//! The table of targets: who has which slot, through ten thousand cgroups that come and go.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use lens_agent::probes::{Config, Globs, Probes, Watched};
use lens_tests::{
    cgroup::{Cgroup, Hierarchy},
    root_or_say_not_run, until,
};

const LOAD: &str = env!("CARGO_BIN_EXE_load");

fn watch(globs: &[&str]) -> Result<Probes> {
    let watched = Watched {
        root: Hierarchy::of_host()?.root,
        v1: None,
        id: 0,
    };
    Ok(Probes::start(
        &watched,
        &Config {
            globs: Globs::new(globs)?,
            only: vec!["sched".to_owned()],
            ..Config::default()
        },
    )?)
}

/// Reads until what was removed has had its last reading and its slot is free again.
#[track_caller]
fn settled(probes: &mut Probes) {
    for _ in 0..3 {
        probes.read();
    }
    let audit = probes.audit_targets();
    assert!(audit.is_ok(), "{audit:?}");
}

#[test]
fn ten_thousand_cgroups_leave_no_slot_behind() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let forest = Cgroup::new("forest")?;
    let stays = forest.child("stays")?;
    let mut probes = watch(&[&format!("{}/*", forest.path())])?;
    settled(&mut probes);
    let live = probes.targets().live().clone();
    assert_eq!(live.len(), 1);
    let tree = |name: &str| forest.dir().join(name);
    // Read now and then; or so seldom that events get lost, and the table is full meanwhile.
    for (count, every) in [(4000, 100), (3000, 1500), (3000, usize::MAX)] {
        for i in 0..count {
            let dir = tree(&format!("c{i}"));
            fs::create_dir(&dir)?;
            // Below one that is asked for, and itself not.
            let below = dir.join("below");
            if i % 4 == 0 {
                fs::create_dir(&below)?;
                fs::remove_dir(&below)?;
            }
            fs::remove_dir(&dir)?;
            if i % every == every - 1 {
                probes.read();
            }
        }
        settled(&mut probes);
        assert_eq!(probes.targets().live(), &live);
    }
    // All at once, more than there are slots; then none.
    let dirs: Vec<_> = (0..700).map(|i| tree(&format!("t{i}"))).collect();
    dirs.iter().try_for_each(fs::create_dir)?;
    settled(&mut probes);
    assert_eq!(probes.targets().live().len(), 701);
    let quality = probes.read().quality;
    assert!(
        quality
            .missing
            .iter()
            .any(|m| m.why.contains("beyond the limit"))
    );
    dirs.iter().try_for_each(fs::remove_dir)?;
    settled(&mut probes);
    assert_eq!(probes.targets().live(), &live);
    drop(stays);
    Ok(())
}

#[test]
fn a_cgroup_that_lives_for_an_instant_has_its_own_numbers_and_keeps_its_name() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let forest = Cgroup::new("instant")?;
    let mut probes = watch(&[&format!("{}/**", forest.path())])?;
    probes.read();
    let brief = forest.child("brief")?;
    let (id, path) = (brief.id()?, brief.path().to_owned());
    let mut load = Command::new(LOAD);
    load.args(["sleeper", "--for", "40", "--burn", "500", "--sleep", "500"]);
    load.args(["--gate", "no"])
        .stdout(std::process::Stdio::null());
    assert!(brief.spawn(&mut load)?.wait()?.success());
    drop(brief);
    let reading = probes.read();
    assert_eq!(&*reading.targets[&id], path);
    let sched = reading.sched.context("no reading")?;
    let seen = sched.cgroups.get(&id).context("no numbers")?;
    println!("{} waits, {} sleeps", seen.waits, seen.sleeps[0]);
    assert!(seen.waits >= 10 && seen.sleeps[0] >= 10, "{seen:?}");
    assert!(
        !sched.cgroups.contains_key(&0),
        "nothing is beyond the limit"
    );
    settled(&mut probes);
    assert!(!probes.read().targets.contains_key(&id));
    assert_eq!(probes.targets().name_of(id).map(|n| &**n), Some(&*path));
    Ok(())
}

/// It was there before, empty, and is a target as soon as something runs in it; its parent, which
/// was not asked for, is none, whatever runs there.
#[test]
fn a_cgroup_that_was_empty_counts_from_its_first_process() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let parent = Cgroup::new("parent")?;
    let child = parent.child("child")?;
    let mut probes = watch(&[&format!("{}/*", parent.path())])?;
    let run_in = |cgroup: &Cgroup| -> Result<()> {
        let mut load = Command::new(LOAD);
        load.args(["sleeper", "--for", "40", "--burn", "500", "--sleep", "500"]);
        load.args(["--gate", "no"])
            .stdout(std::process::Stdio::null());
        assert!(cgroup.spawn(&mut load)?.wait()?.success());
        Ok(())
    };
    run_in(&child)?;
    run_in(&parent)?;
    let sched = probes.read().sched.context("no reading")?;
    assert!(sched.cgroups[&child.id()?].waits >= 10, "{sched:?}");
    assert_eq!(
        sched.cgroups.keys().copied().collect::<Vec<_>>(),
        [child.id()?]
    );
    let (id, mut gone) = (child.id()?, false);
    drop(child);
    until("its last reading", Duration::from_secs(5), || {
        gone = !probes.read().targets.contains_key(&id);
        gone
    })?;
    settled(&mut probes);
    Ok(())
}
