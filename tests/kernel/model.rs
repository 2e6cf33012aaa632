//! A model investigates what a running agent has found, and code checks what it says. The model
//! follows a script: what it is told and what becomes of its answers is what is tested.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lens_tests::{
    cgroup::Cgroup,
    commands::{Said, said},
    http,
    provider::{KEY, Provider, Says, said_by},
    root_or_say_not_run, until_every,
};
use serde_json::{Value, json};

use crate::story::{Agent, IDLE, LOOK, Load, TOLD, serve, spawn};

const WAIT: &str = "runq_wait_others_ms_per_sec";
const NOISY: &str = "burn --threads 4 --cpu 1 --nice 0 --for 90000";
/// A conversation with the script takes a few turns.
const ANSWERED: Duration = Duration::from_secs(30);

/// A service beside which somebody has begun to burn CPU, and an agent that has a provider.
struct Scene {
    agent: Agent,
    _loads: [Load; 3],
    shop: Cgroup,
    batch: Cgroup,
    _parent: Cgroup,
}

impl Scene {
    fn new(name: &str, provider: &Provider) -> Result<Self> {
        let parent = Cgroup::new(name)?;
        let (shop, batch) = (parent.child("shop")?, parent.child("batch")?);
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("lens.toml");
        std::fs::write(
            &config,
            provider.table("scripted", &dir.path().join("key"))?,
        )?;
        let (service, idle) = (serve(&shop, "0")?, spawn(&batch, IDLE)?);
        let config = config.to_str().context("a path")?;
        let glob = format!("{}/*", parent.path());
        let agent = Agent::start(&glob, &["--config", config])?;
        agent.learn()?;
        let noise = spawn(&batch, NOISY)?;
        Ok(Self {
            agent,
            _loads: [service, idle, noise],
            shop,
            batch,
            _parent: parent,
        })
    }

    fn all(&self) -> Result<Vec<Value>> {
        let all = self.agent.get("insights?all=true")?;
        Ok(all.as_array().cloned().unwrap_or_default())
    }

    /// Waits for an insight of this strategy that accuses the noisy one.
    fn told_by(&self, strategy: &str, limit: Duration) -> Result<Value> {
        let mut found = None;
        until_every(LOOK, strategy, limit, || {
            let all = self.all().unwrap_or_default();
            found = all
                .into_iter()
                .find(|i| i["strategy"] == strategy && i["verdict"] == "cause");
            found.is_some()
        })
        .with_context(|| self.story())?;
        let found = found.context("found")?;
        ensure!(
            found["culprit"]["cgroup"] == *self.batch.path(),
            "accused an innocent: {found:#}"
        );
        Ok(found)
    }

    /// What was said so far, for who reads why a test failed.
    fn story(&self) -> String {
        let line = |i: &Value| {
            let (strategy, verdict) = (&i["strategy"], &i["verdict"]);
            format!("{} {strategy} {verdict} {}\n", i["incident"], i["summary"])
        };
        let told: String = self.all().unwrap_or_default().iter().map(line).collect();
        format!("{told}{}", self.agent.running.log())
    }

    fn investigate(&self, arguments: &[&str]) -> Result<Said> {
        let url = self.agent.running.url();
        let state = self.agent.state.path().to_str().context("a path")?;
        let words = ["investigate", "--json", "--url", &url, "--state-dir", state];
        said(&[&words[..], arguments].concat())
    }

    fn metric(&self, name: &str) -> Result<f64> {
        let page = http::ask(self.agent.running.addr, "/metrics")?.body;
        let values = page.lines().filter(|line| line.starts_with(name));
        let values = values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }
}

/// Victim and culprit as the brief tells them.
fn pair(body: &Value) -> Option<(String, String)> {
    let brief = said_by(body, "user");
    brief.lines().find_map(|line| {
        let (victim, rest) = line
            .strip_prefix("- ")?
            .split_once(&format!(" {WAIT} by "))?;
        let (by, _) = rest.split_once(": ")?;
        (victim.ends_with("/shop") && by.starts_with('/'))
            .then(|| (victim.to_owned(), by.to_owned()))
    })
}

fn turns(body: &Value) -> usize {
    let messages = body["messages"].as_array().into_iter().flatten();
    messages.filter(|m| m["role"] == "assistant").count()
}

/// A model that does its work.
fn diligent(body: &Value) -> Says {
    let Some((victim, by)) = pair(body) else {
        return Says::Raw(400, format!("no pair in {}", said_by(body, "user")));
    };
    let is_operator = said_by(body, "system").contains("You are the operator");
    let call = match (is_operator, turns(body)) {
        (true, 0) => ("take_snapshot", json!({ "scope": victim })),
        (true, 1) => {
            let seen = said_by(body, "tool");
            let id = seen.split('"').find(|part| part.contains("/scheduler//"));
            let Some(id) = id else {
                return Says::Raw(400, format!("no snapshot id in {seen}"));
            };
            let notification = json!({
                "severity": "warning", "context": "since the onset",
                "observation": format!("{victim} waits behind {by}"), "snapshot_ids": [id],
            });
            ("send_notification", notification)
        }
        (false, 0) => (
            "invoke_operators",
            json!({ "skills": ["scheduler"], "question": "who holds the CPU?" }),
        ),
        (false, 1) => ("get_notifications", json!({})),
        (false, 2) => {
            let insight = json!({
                "verdict": "cause", "category": "cpu_contention", "culprit": by, "victims": [victim],
                "claims": [
                    { "kind": "change", "scope": victim, "metric": WAIT, "direction": "up" },
                    { "kind": "pair", "victim": victim, "metric": WAIT, "by": by, "least": 0.3 },
                    // A lie.
                    { "kind": "change", "scope": by, "metric": "major_faults_per_sec", "direction": "up" },
                ],
                "summary": format!("{victim} waits for a CPU that {by} holds."),
                "hypotheses": [],
            });
            ("produce_insight", insight)
        }
        _ => ("done", json!({})),
    };
    Says::Calls(vec![call])
}

#[test]
fn a_model_investigates_the_same_incident_and_code_checks_it() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let provider = Provider::start(diligent)?;
    let scene = Scene::new("model", &provider)?;
    let offline = scene.told_by("offline", TOLD)?;
    let told = scene.told_by("agent-loop", ANSWERED);
    provider.check()?;
    let told = told?;
    ensure!(told["incident"] == offline["incident"], "{told:#}");
    let superseded = told["supersedes"].as_str().context("supersedes")?;
    ensure!(
        scene
            .all()?
            .iter()
            .any(|i| i["id"] == superseded && i["strategy"] == "offline"),
        "the offline insight came first: {told:#}"
    );
    ensure!(
        told["provider"] == "scripted" && told["model"] == lens_tests::provider::MODEL,
        "{told:#}"
    );
    ensure!(
        told["victims"][0]["cgroup"] == *scene.shop.path(),
        "{told:#}"
    );
    let claims = told["claims"].as_array().context("claims")?;
    ensure!(claims.len() == 2, "the lie is struck out: {told:#}");
    ensure!(told["tokens"]["input"].as_u64() >= Some(700), "{told:#}");
    ensure!(scene.metric("lens_model_calls_total")? >= 7.0);
    ensure!(scene.metric("lens_model_tokens_total")? >= 770.0);

    let checked = scene.investigate(&["--strategy", "offline"])?;
    ensure!(checked.code == Some(1), "a finding: {checked:?}");
    let reason = "checkout is slow";
    let asked = [reason, "--strategy", "agent-loop", "--provider", "scripted"];
    let asked = scene.investigate(&asked)?;
    ensure!(asked.code == Some(1), "{asked:?}");
    let insights: Value = serde_json::from_str(&asked.out)?;
    ensure!(insights[0]["strategy"] == "agent-loop", "{insights:#}");
    let requests = provider.requests();
    ensure!(
        requests
            .iter()
            .any(|body| said_by(body, "user").contains(reason)),
        "the model is told why"
    );
    let refused = scene.investigate(&["--provider", "nobody"])?;
    ensure!(
        refused.code == Some(64) && refused.err.contains("scripted"),
        "{refused:?}"
    );
    ensure!(
        requests.iter().all(|body| !body.to_string().contains(KEY)),
        "the key is in no text"
    );
    provider.check()
}

#[test]
fn a_malformed_answer_and_a_provider_that_is_down_leave_the_offline_insight() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut provider = Provider::start(|_| Says::Raw(200, "{\"choices\": 7".to_owned()))?;
    let scene = Scene::new("malformed", &provider)?;
    scene.told_by("offline", TOLD)?;
    until_every(LOOK, "the malformed answer is counted", ANSWERED, || {
        scene
            .metric("lens_model_calls_total{")
            .is_ok_and(|n| n >= 1.0)
    })?;
    provider.check()?;
    provider.stop();
    let asked = scene.investigate(&["--strategy", "agent-loop"])?;
    ensure!(asked.code == Some(1), "{asked:?}");
    ensure!(
        asked.err.contains("the model came to no insight") && asked.err.contains("scripted"),
        "{asked:?}"
    );
    let insights: Value = serde_json::from_str(&asked.out)?;
    ensure!(insights[0]["strategy"] == "offline", "{insights:#}");
    let models = scene.all()?;
    ensure!(
        models.iter().all(|i| i["strategy"] == "offline"),
        "{models:#?}"
    );
    Ok(())
}
