//! The storms that lens is there to explain are those that cost it most: it stays within its budget
//! and says who did it all the same.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lens_tests::{cgroup::Cgroup, http, root_or_say_not_run, until_every};

use crate::story::{Agent, IDLE, LOOK, TOLD, spawn};

/// How long the budget takes to be used up, and a step to be taken.
const REDUCED: Duration = Duration::from_mins(1);

impl Agent {
    /// A counter of `probe` in /metrics; 0 if it has not been raised.
    fn counter(&self, name: &str, probe: &str) -> Result<u64> {
        let page = http::ask(self.running.addr, "/metrics")?;
        let start = format!("{name}{{probe=\"{probe}\"}} ");
        let text = page.body;
        let found = text.lines().find_map(|line| line.strip_prefix(&start));
        Ok(found.map_or(Ok(0), str::parse)?)
    }
}

/// A storm by one cgroup beside an idle one, on a host that is watched whole. It is explained before
/// `probe` has to do with `steps` less, and stays so.
fn storm(name: &str, load: &str, probe: &str, steps: u64) -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let parent = Cgroup::new(name)?;
    let (shop, batch) = (parent.child("shop")?, parent.child("batch")?);
    let _service = spawn(&shop, IDLE)?;
    let _idle = spawn(&batch, IDLE)?;
    let agent = Agent::of_host()?;
    agent.learn()?;
    let _storm = spawn(&batch, load)?;
    let of_this = |causes: Vec<serde_json::Value>| -> Vec<serde_json::Value> {
        let by = |cause: &serde_json::Value, who: &Cgroup| cause["culprit"]["cgroup"] == who.path();
        let mut causes = causes;
        causes.retain(|cause| by(cause, &batch) || by(cause, &shop));
        causes
    };
    let told = until_every(LOOK, "an insight", TOLD, || {
        agent
            .causes()
            .is_ok_and(|causes| !of_this(causes).is_empty())
    });
    if let Err(why) = told {
        bail!(
            "{why}: {:#} {:#}",
            agent.get("incidents")?,
            agent.get("insights")?
        );
    }
    until_every(LOOK, "a probe that is reduced", REDUCED, || {
        let reduced = agent.counter("lens_probe_reductions_total", probe);
        reduced.is_ok_and(|n| n >= steps)
    })?;
    let status = agent.get("status")?;
    let ticks = status["ticks"].as_u64().context("no ticks")?;
    until_every(LOOK, "ten more readings", Duration::from_secs(30), || {
        let status = agent.get("status");
        status.is_ok_and(|s| s["ticks"].as_u64() >= Some(ticks + 10))
    })?;
    let causes = of_this(agent.causes()?);
    for cause in &causes {
        // Whoever else runs on this host waits behind the storm too.
        let category = cause["category"].as_str().unwrap_or_default();
        ensure!(
            cause["culprit"]["cgroup"] == batch.path()
                && ["syscall_storm", "cpu_contention"].contains(&category),
            "{cause:#}"
        );
    }
    ensure!(
        causes.iter().any(|c| c["category"] == "syscall_storm"),
        "no word of the calls: {causes:#?}"
    );
    let incidents = agent.get("incidents")?;
    let open = incidents.as_array().into_iter().flatten();
    let about =
        |incident: &&serde_json::Value| causes.iter().any(|c| c["incident"] == incident["id"]);
    ensure!(
        open.filter(about)
            .any(|incident| incident["state"] == "open"),
        "the storm goes on, and its incident does not: {incidents:#}"
    );
    let probes = agent.get("probes")?;
    let probes = probes.as_array().context("no probes")?;
    let reduced = probes.iter().find(|p| p["name"] == probe);
    let reductions = &reduced.context("no such probe")?["reductions"];
    ensure!(
        reductions.as_array().is_some_and(|held| !held.is_empty()),
        "{reductions}"
    );
    ensure!(
        reductions
            .as_array()
            .is_some_and(|held| held.iter().all(|r| r != "detached")),
        "detached a probe that the incident stands on: {reductions}"
    );
    Ok(())
}

#[test]
fn a_syscall_storm_is_explained_within_the_budget() -> Result<()> {
    storm(
        "storm-calls",
        "call --threads 2 --for 120000",
        "syscalls",
        2,
    )
}

#[test]
fn a_switch_storm_is_explained_within_the_budget() -> Result<()> {
    storm(
        "storm-switches",
        "yield --threads 8 --for 120000",
        "sched",
        2,
    )
}
