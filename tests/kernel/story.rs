//! The first paragraph of the README, on a real kernel: a noisy neighbour starves a service, and
//! the agent says who did it, to whom, with evidence.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lens_agent::store::Store;
use lens_tests::{
    cgroup::Cgroup, http, lens, root_or_say_not_run, running::Running, sample, until_every,
};
use serde_json::Value;

const LOAD: &str = env!("CARGO_BIN_EXE_load");
/// Time between two looks at the agent.
pub(crate) const LOOK: Duration = Duration::from_millis(500);
/// A service that does next to nothing.
pub(crate) const IDLE: &str = "sleeper --burn 100 --sleep 50000 --for 120000";
/// How long a series is watched before it trusts itself.
const LEARN: &str = "12s";
/// Ticks, two a second, after which it does.
const LEARNED: u64 = 32;
/// An incident must be decided this soon after the onset.
const DETECTED: Duration = Duration::from_secs(10);
/// An insight may wait for a second look.
pub(crate) const TOLD: Duration = Duration::from_secs(20);

/// A running agent that watches the cgroups of one test.
pub(crate) struct Agent {
    pub(crate) running: Running,
    pub(crate) state: tempfile::TempDir,
}

impl Agent {
    pub(crate) fn start(glob: &str, more: &[&str]) -> Result<Self> {
        Self::of(&[&["--cgroup", glob], more].concat())
    }

    /// One that watches all of the host.
    pub(crate) fn of_host() -> Result<Self> {
        Self::of(&[])
    }

    fn of(arguments: &[&str]) -> Result<Self> {
        let state = tempfile::tempdir()?;
        let arguments = [&["--learn", LEARN], arguments].concat();
        Ok(Self {
            running: Running::start(state.path(), &arguments)?,
            state,
        })
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        http::ask(self.running.addr, &format!("/api/v1/{path}"))?.json()
    }

    fn ticks(&self) -> u64 {
        self.get("status")
            .ok()
            .and_then(|s| s["ticks"].as_u64())
            .unwrap_or_default()
    }

    /// Whether there is an incident; asked as a script would ask.
    fn has_incident(&self) -> bool {
        let output = lens().and_then(|mut lens| {
            Ok(lens
                .args(["incidents", "--json", "--url", &self.running.url()])
                .output()?)
        });
        // 1 is a finding: an incident is open.
        output.is_ok_and(|o| o.status.code() == Some(1))
    }

    pub(crate) fn causes(&self) -> Result<Vec<Value>> {
        let insights = self
            .get("insights")?
            .as_array()
            .cloned()
            .unwrap_or_default();
        Ok(insights
            .into_iter()
            .filter(|i| i["verdict"] == "cause")
            .collect())
    }

    /// Waits until the series of the cgroups, which were there first, trust themselves.
    pub(crate) fn learn(&self) -> Result<()> {
        until_every(LOOK, "a baseline", Duration::from_mins(1), || {
            self.ticks() >= LEARNED
        })?;
        let causes = self.causes()?;
        ensure!(
            causes.is_empty(),
            "accused somebody while all was well: {causes:#?}"
        );
        Ok(())
    }
}

/// A service that works for half of the time. With three or more neighbours of no less weight its
/// share of the CPU is a quarter at most, so that it has to wait, however clever the scheduler.
pub(crate) fn serve(cgroup: &Cgroup, nice: &str) -> Result<Load> {
    spawn(
        cgroup,
        &format!("sleeper --burn 10000 --sleep 10000 --cpu 1 --for 120000 --nice {nice}"),
    )
}

/// A load that ends with this value.
pub(crate) struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn spawn(cgroup: &Cgroup, words: &str) -> Result<Load> {
    let mut command = Command::new(LOAD);
    command
        .args(words.split(' '))
        .args(["--gate", "no"])
        .stdin(Stdio::null());
    Ok(Load(cgroup.spawn(command.stdout(Stdio::null()))?))
}

/// A healthy service, then `neighbour` beside it; the insight that names it.
fn story(name: &str, nice: &str, neighbour: &str) -> Result<Option<Value>> {
    if !root_or_say_not_run()? {
        return Ok(None);
    }
    let parent = Cgroup::new(name)?;
    let (shop, batch) = (parent.child("shop")?, parent.child("batch")?);
    let _service = serve(&shop, nice)?;
    let _idle = spawn(&batch, IDLE)?;
    let agent = Agent::start(&format!("{}/*", parent.path()), &[])?;
    agent.learn()?;
    let _noisy = spawn(&batch, neighbour)?;
    until_every(LOOK, "an incident", DETECTED, || agent.has_incident())?;
    let told = until_every(LOOK, "an insight", TOLD, || {
        agent.causes().is_ok_and(|c| !c.is_empty())
    });
    if let Err(why) = told {
        bail!(
            "{why}: {:#} {:#}",
            agent.get("incidents")?,
            agent.get("insights")?
        );
    }

    let causes = agent.causes()?;
    for cause in &causes {
        ensure!(
            cause["culprit"]["cgroup"] == batch.path(),
            "accused an innocent: {cause:#}"
        );
    }
    let first = causes.first().cloned().context("an insight")?;
    // Where it is told what the culprit does, suffering may not have been measured yet.
    if first["category"] == "cpu_contention" {
        let victims = first["victims"].as_array().context("victims")?;
        ensure!(
            victims.iter().any(|v| v["cgroup"] == shop.path()),
            "no word of the victim: {first:#}"
        );
    }
    check_evidence(&agent, &first)?;
    let Agent { running, state } = agent;
    running.kill()?;
    check_kept(state.path(), &first)?;
    Ok(Some(first))
}

/// After kill -9: the insight is there, and each snapshot that it cites, with the number it saw.
fn check_kept(state: &Path, insight: &Value) -> Result<()> {
    let store = Store::open_read_only(state)?;
    let kept = |kind, id: &str| -> Result<Value> {
        let record = store.get(kind, id)?;
        let record = record.with_context(|| format!("{id} is not kept"))?;
        Ok(serde_json::from_slice(&record.bytes)?)
    };
    let id = insight["id"].as_str().context("an id")?;
    ensure!(kept(sample::INSIGHT, id)? == *insight);
    let claims = insight["claims"].as_array().into_iter().flatten();
    let evidence = claims.flat_map(|c| c["evidence"].as_array().into_iter().flatten());
    for evidence in evidence {
        let cited = evidence["snapshot"].as_str().context("a snapshot")?;
        let snapshot = kept(sample::SNAPSHOT, cited)?;
        let metric = evidence["metric"].as_str().context("a metric")?;
        let seen = if evidence["by"].is_null() {
            number(&snapshot["metrics"], metric)?
        } else {
            let pairs = snapshot["pairs"].as_array().into_iter().flatten();
            let pair = pairs
                .filter(|pair| pair["metric"] == metric)
                .find(|pair| pair["by"] == evidence["by"]);
            number(pair.context("a pair")?, "value")?
        };
        let told = number(evidence, "seen")?;
        ensure!(
            (seen - told).abs() < 1e-6,
            "{cited} {metric}: {seen}, told {told}"
        );
    }
    Ok(())
}

/// Every claim holds, cites a snapshot that is still there, and has the number that stands in it.
fn check_evidence(agent: &Agent, insight: &Value) -> Result<()> {
    let claims = insight["claims"].as_array().context("claims")?;
    ensure!(!claims.is_empty());
    let kinds: Vec<&str> = claims.iter().filter_map(|c| c["kind"].as_str()).collect();
    ensure!(
        kinds.contains(&"change") && kinds.iter().any(|k| ["pair", "share"].contains(k)),
        "{kinds:?}"
    );
    for evidence in claims
        .iter()
        .flat_map(|c| c["evidence"].as_array().into_iter().flatten())
    {
        ensure!(evidence["holds"] == true, "{evidence}");
        let (seen, value) = (number(evidence, "seen")?, number(evidence, "value")?);
        let holds = match evidence["relation"].as_str().context("a relation")? {
            ">" => seen > value,
            ">=" => seen >= value,
            "<" => seen < value,
            "<=" => seen <= value,
            other => bail!("relation {other}"),
        };
        ensure!(holds, "says that it holds and does not: {evidence}");
    }
    let status = agent.get("status")?;
    ensure!(
        status["quality"]["lost"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty),
        "{status}"
    );
    Ok(())
}

fn number(of: &Value, key: &str) -> Result<f64> {
    of[key].as_f64().with_context(|| format!("{key} of {of}"))
}

#[test]
fn a_noisy_neighbour_is_named_with_evidence() -> Result<()> {
    // Ten steps of niceness are a weight of about ten to one.
    let noisy = "burn --threads 3 --cpu 1 --nice 0 --for 60000";
    if let Some(insight) = story("story-neighbour", "10", noisy)? {
        assert_eq!(insight["category"], "cpu_contention", "{insight:#}");
    }
    Ok(())
}

#[test]
fn a_neighbour_of_equal_weight_is_named_too() -> Result<()> {
    let noisy = "burn --threads 4 --cpu 1 --nice 0 --for 60000";
    if let Some(insight) = story("story-equal", "0", noisy)? {
        assert_eq!(insight["category"], "cpu_contention", "{insight:#}");
    }
    Ok(())
}

#[test]
fn a_pinned_ping_pong_is_named_too() -> Result<()> {
    let noisy = "pingpong --threads 8 --cpu 1 --nice 0 --for 60000";
    if let Some(insight) = story("story-pingpong", "0", noisy)? {
        let category = insight["category"].as_str().unwrap_or_default();
        assert!(
            ["cpu_contention", "syscall_storm"].contains(&category),
            "{insight:#}"
        );
    }
    Ok(())
}

#[test]
fn eight_spinners_that_hurt_nobody_are_nobodys_fault() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let parent = Cgroup::new("story-spinners")?;
    let (shop, batch) = (parent.child("shop")?, parent.child("batch")?);
    let _service = spawn(&shop, "sleeper --burn 200 --sleep 20000 --for 120000")?;
    let _idle = spawn(&batch, IDLE)?;
    let agent = Agent::start(&format!("{}/*", parent.path()), &[])?;
    agent.learn()?;
    let began = agent.ticks();
    let _spinners = spawn(&batch, "burn --threads 8 --for 60000")?;
    until_every(LOOK, "fifteen readings", Duration::from_secs(40), || {
        agent.ticks() >= began + 15
    })?;
    let causes = agent.causes()?;
    ensure!(causes.is_empty(), "accused somebody: {causes:#?}");
    Ok(())
}
