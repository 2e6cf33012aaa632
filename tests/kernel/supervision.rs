//! A failure in each stage of a running agent costs that stage alone, and is seen.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lens_agent::supervise::Node;
use lens_tests::{http, root_or_say_not_run, running::Running, until};
use serde_json::Value;

const STAGES: [&str; 6] = [
    "store",
    "probes",
    "host",
    "judge",
    "http",
    "investigations/coordinator",
];

fn get(agent: &Running, path: &str) -> Result<Value> {
    http::ask(agent.addr, &format!("/api/v1/{path}"))?.json()
}

#[test]
fn a_panic_in_each_stage_costs_that_stage_alone() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let state = tempfile::tempdir()?;
    // A provider that nobody asks: a coordinator is there only where there is one.
    let config = state.path().join("lens.toml");
    let provider = "[[provider]]\nname = \"none\"\nkind = \"ollama\"\nmodel = \"none\"\n";
    std::fs::write(&config, provider)?;
    let config = config.to_str().context("a path")?;
    let names = "store,probes,host,judge,http,coordinator";
    let injected = [("LENS_INJECT_PANIC", names)];
    let agent = Running::start_with(state.path(), &["--config", config], &injected)?;
    let tree: Node = serde_json::from_value(get(&agent, "tree")?)?;
    for stage in STAGES {
        let node = serde_json::to_value(tree.find(stage).context(stage)?)?;
        ensure!(
            node["restarts"] == 1 && node["state"] == "running",
            "{node}"
        );
        let why = node["last_failure"]["why"].as_str().unwrap_or_default();
        ensure!(why.contains("injected"), "{node}");
    }
    // All that is behind them goes on: ticks come, and the failures are counted.
    let ticks = || {
        get(&agent, "status")
            .ok()
            .and_then(|s| s["ticks"].as_u64())
            .unwrap_or_default()
    };
    let began = ticks();
    until("more ticks", Duration::from_secs(20), || {
        ticks() >= began + 3
    })?;
    let metrics = http::ask(agent.addr, "/metrics")?.body;
    for stage in STAGES {
        let line = format!("lens_child_restarts_total{{child=\"lens/{stage}\"}} 1");
        ensure!(metrics.contains(&line), "no `{line}` in {metrics}");
    }
    Ok(())
}
