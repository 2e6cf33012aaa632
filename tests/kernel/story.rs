//! The first paragraph of the README, on a real kernel: a noisy neighbour starves a service, and
//! the agent says who did it, to whom, with evidence.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lens_tests::{cgroup::Cgroup, lens, root_or_say_not_run, until};
use serde_json::Value;

const LOAD: &str = env!("CARGO_BIN_EXE_load");
/// How long a series is watched before it trusts itself.
const LEARN: &str = "12s";
/// An incident must be decided this soon after the onset.
const DETECTED: Duration = Duration::from_secs(10);
/// An insight may wait for a second look.
const TOLD: Duration = Duration::from_secs(20);

/// A running agent that watches the cgroups of one test.
struct Agent {
    child: Child,
    url: String,
    _state: tempfile::TempDir,
}

impl Agent {
    fn start(glob: &str) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let state = tempfile::tempdir()?;
        let child = lens()?
            .args(["run", "--interval", "1s", "--learn", LEARN, "--cgroup", glob])
            .arg("--state-dir")
            .arg(state.path())
            .arg("--listen")
            .arg(port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let agent = Self { child, url: format!("http://{port}"), _state: state };
        until("the agent is ready", Duration::from_secs(30), || is_ready(port))?;
        Ok(agent)
    }

    fn ask(&self, words: &[&str]) -> Result<Value> {
        let output = lens()?.args(words).args(["--json", "--url", &self.url]).output()?;
        let code = output.status.code().unwrap_or(2);
        ensure!(code < 2, "lens {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Ticks so far, and the part of the series that trust themselves.
    fn has_learned(&self, scope: &str) -> bool {
        let ticks = self.status().ok().and_then(|s| s["ticks"].as_u64()).unwrap_or_default();
        let targets = self.ask(&["targets"]).unwrap_or_default();
        let known = targets.as_array().into_iter().flatten().any(|t| t["path"] == scope);
        // The series begin with the first tick that sees the cgroup.
        known && ticks >= 20
    }

    fn status(&self) -> Result<Value> {
        let mut stream = TcpStream::connect(self.url.trim_start_matches("http://"))?;
        std::io::Write::write_all(
            &mut stream,
            b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let body = text.split_once("\r\n\r\n").context("no body")?.1;
        Ok(serde_json::from_str(body)?)
    }

    fn causes(&self) -> Result<Vec<Value>> {
        let insights = self.ask(&["insights"])?;
        let insights = insights.as_array().cloned().unwrap_or_default();
        Ok(insights.into_iter().filter(|i| i["verdict"] == "cause").collect())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // SIGTERM, as a service manager would; it is our own child.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

fn is_ready(addr: SocketAddr) -> bool {
    let ask = || -> Result<bool> {
        let mut stream = TcpStream::connect(addr)?;
        std::io::Write::write_all(
            &mut stream,
            b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

/// A service that works for a fifth of the time, in short bursts.
fn serve(cgroup: &Cgroup, nice: &str) -> Result<Child> {
    spawn(cgroup, &format!("sleeper --burn 1000 --sleep 4000 --cpu 1 --for 120000 --nice {nice}"))
}

fn spawn(cgroup: &Cgroup, words: &str) -> Result<Child> {
    let mut command = Command::new(LOAD);
    command.args(words.split(' ')).args(["--gate", "no"]).stdin(Stdio::null());
    cgroup.spawn(command.stdout(Stdio::null()))
}

/// A healthy service, then `neighbour` beside it; the insight that names it.
fn story(name: &str, nice: &str, neighbour: &str) -> Result<Option<Value>> {
    if !root_or_say_not_run()? {
        return Ok(None);
    }
    let parent = Cgroup::new(name)?;
    let (shop, batch) = (parent.child("shop")?, parent.child("batch")?);
    let (service, idle) = (serve(&shop, nice)?, spawn(&batch, "sleeper --burn 100 --sleep 50000 --for 120000")?);
    let agent = Agent::start(&format!("{}/*", parent.path()))?;
    until("a baseline", Duration::from_secs(60), || agent.has_learned(shop.path()))?;
    ensure!(agent.causes()?.is_empty(), "accused somebody while all was well");
    let noisy = spawn(&batch, neighbour)?;
    let open = || agent.ask(&["incidents"]).is_ok_and(|i| i.as_array().is_some_and(|i| !i.is_empty()));
    until("an incident", DETECTED, open)?;
    until("an insight", TOLD, || agent.causes().is_ok_and(|c| !c.is_empty()))?;
    let causes = agent.causes()?;
    drop((service, idle, noisy));
    for cause in &causes {
        ensure!(cause["culprit"]["cgroup"] == batch.path(), "accused an innocent: {cause:#}");
    }
    let first = causes.first().cloned().context("an insight")?;
    let victims = first["victims"].as_array().cloned().unwrap_or_default();
    ensure!(victims.iter().any(|v| v["cgroup"] == shop.path()), "no word of the victim: {first:#}");
    check_evidence(&agent, &first)?;
    Ok(Some(first))
}

/// Every claim holds, cites a snapshot that is still there, and has the number that stands in it.
fn check_evidence(agent: &Agent, insight: &Value) -> Result<()> {
    let claims = insight["claims"].as_array().context("claims")?;
    ensure!(!claims.is_empty());
    let kinds: Vec<&str> = claims.iter().filter_map(|c| c["kind"].as_str()).collect();
    ensure!(kinds.contains(&"pair") && kinds.contains(&"change"), "{kinds:?}");
    for evidence in claims.iter().flat_map(|c| c["evidence"].as_array().into_iter().flatten()) {
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
    let status = agent.status()?;
    ensure!(status["quality"]["lost"].as_object().is_none_or(serde_json::Map::is_empty), "{status}");
    Ok(())
}

fn number(of: &Value, key: &str) -> Result<f64> {
    of[key].as_f64().with_context(|| format!("{key} of {of}"))
}

#[test]
fn a_noisy_neighbour_is_named_with_evidence() -> Result<()> {
    // Ten steps of niceness are a weight of about ten to one.
    let told = story("story-neighbour", "10", "burn --threads 4 --cpu 1 --nice 0 --for 60000")?;
    if let Some(insight) = told {
        assert_eq!(insight["category"], "cpu_contention", "{insight:#}");
    }
    Ok(())
}

#[test]
fn a_neighbour_of_equal_weight_is_named_too() -> Result<()> {
    let told = story("story-equal", "0", "burn --threads 8 --cpu 1 --nice 0 --for 60000")?;
    if let Some(insight) = told {
        assert_eq!(insight["category"], "cpu_contention", "{insight:#}");
    }
    Ok(())
}

#[test]
fn a_pinned_ping_pong_is_named_too() -> Result<()> {
    let told = story("story-pingpong", "0", "pingpong --threads 3 --cpu 1 --nice 0 --for 60000")?;
    if let Some(insight) = told {
        let category = insight["category"].as_str().unwrap_or_default();
        assert!(["cpu_contention", "syscall_storm"].contains(&category), "{insight:#}");
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
    let service = spawn(&shop, "sleeper --burn 200 --sleep 20000 --for 120000")?;
    let idle = spawn(&batch, "sleeper --burn 100 --sleep 50000 --for 120000")?;
    let agent = Agent::start(&format!("{}/*", parent.path()))?;
    until("a baseline", Duration::from_secs(60), || agent.has_learned(shop.path()))?;
    let ticks = |agent: &Agent| agent.status().ok().and_then(|s| s["ticks"].as_u64()).unwrap_or_default();
    let began = ticks(&agent);
    // The least weight that a normal task can have: they take what nobody wants.
    let spinners = spawn(&batch, "burn --threads 8 --nice 19 --for 60000")?;
    until("fifteen readings", Duration::from_secs(40), || ticks(&agent) >= began + 15)?;
    let causes = agent.causes()?;
    drop((service, idle, spinners));
    ensure!(causes.is_empty(), "accused somebody: {causes:#?}");
    Ok(())
}
