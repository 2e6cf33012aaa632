//! What a script in the sandbox can ask: read-only, bounded, over the scene.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    anomaly::Ranges as _,
    base::scope::Scope,
    investigate::scene::Scene,
    sandbox::{Callback, Host},
};

/// Values of a series that are handed out.
const VALUES: usize = 64;
/// Stacks of a scope, and frames of each, that are handed out.
const STACKS: usize = 8;
const FRAMES: usize = 16;

/// The functions over `scene`.
pub(super) fn host(scene: &Arc<Scene>) -> Host {
    let of = |scene: &Arc<Scene>, run: fn(&Scene, &[Value]) -> Result<Value, String>| {
        let scene = scene.clone();
        move |arguments: &[Value]| run(&scene, arguments)
    };
    Host::new(vec![
        Callback::new(
            "get_current_time",
            "",
            "The time of the newest snapshot, RFC 3339.",
            of(scene, time),
        ),
        Callback::new(
            "get_node_info",
            "",
            "CPUs and memory of this host.",
            of(scene, node),
        ),
        Callback::new(
            "scopes",
            "",
            "Every scope that has snapshots.",
            of(scene, scopes),
        ),
        Callback::new(
            "snapshot",
            "scope",
            "All metrics of a scope now: name to number.",
            of(scene, snapshot),
        ),
        Callback::new(
            "series",
            "scope, metric",
            "The last 64 values of a metric, oldest first.",
            of(scene, series),
        ),
        Callback::new(
            "pairs",
            "scope, metric",
            "Who caused a wait: a list of {by, value}.",
            of(scene, pairs),
        ),
        Callback::new(
            "top_stacks",
            "scope",
            "Where CPU time went: a list of {percent, pid, comm, truncated, frames}, frames from the innermost on.",
            of(scene, top_stacks),
        ),
        Callback::new(
            "normal",
            "scope, metric",
            "What is normal: {low, high, median}; nil if not known.",
            of(scene, normal),
        ),
    ])
}

fn text(arguments: &[Value], i: usize, name: &str) -> Result<String, String> {
    let found = arguments.get(i).and_then(Value::as_str);
    found
        .map(str::to_owned)
        .ok_or_else(|| format!("argument {} is `{name}`, a string", i + 1))
}

fn scope(arguments: &[Value]) -> Result<Scope, String> {
    text(arguments, 0, "scope")?
        .parse()
        .map_err(|why: crate::base::scope::ScopeError| why.to_string())
}

#[expect(clippy::unnecessary_wraps, reason = "callbacks are of one type")]
fn time(scene: &Scene, _: &[Value]) -> Result<Value, String> {
    Ok(json!(scene.sample.at.wall.to_string()))
}

#[expect(clippy::unnecessary_wraps, reason = "callbacks are of one type")]
fn node(scene: &Scene, _: &[Value]) -> Result<Value, String> {
    let host = &scene.sample.host.host;
    let cpus = host.stat.as_ref().map(|s| s.per_cpu.len());
    let memory = host.memory.as_ref().map(|m| m.total_bytes);
    Ok(json!({ "cpus": cpus, "memory_bytes": memory }))
}

fn scopes(scene: &Scene, _: &[Value]) -> Result<Value, String> {
    let newest = scene.ticks.last().ok_or("there is no snapshot")?;
    Ok(json!(
        newest.scopes.keys().map(Scope::as_str).collect::<Vec<_>>()
    ))
}

fn snapshot(scene: &Scene, arguments: &[Value]) -> Result<Value, String> {
    let scope = scope(arguments)?;
    let newest = scene.ticks.last().ok_or("there is no snapshot")?;
    let of_scope = newest
        .scopes
        .get(&scope)
        .ok_or_else(|| format!("there is no scope `{scope}`"))?;
    let metrics = of_scope.iter().flat_map(|s| &s.metrics);
    Ok(metrics
        .map(|(name, value)| (name.to_string(), json!(value)))
        .collect::<serde_json::Map<_, _>>()
        .into())
}

fn series(scene: &Scene, arguments: &[Value]) -> Result<Value, String> {
    let (scope, metric) = (scope(arguments)?, text(arguments, 1, "metric")?);
    let values: Vec<f64> = scene
        .ticks
        .iter()
        .filter_map(|t| t.value(&scope, &metric))
        .collect();
    Ok(json!(values[values.len().saturating_sub(VALUES)..]))
}

fn pairs(scene: &Scene, arguments: &[Value]) -> Result<Value, String> {
    let (scope, metric) = (scope(arguments)?, text(arguments, 1, "metric")?);
    let newest = scene.ticks.last().ok_or("there is no snapshot")?;
    let rows = newest
        .pairs(&scope, &metric)
        .map(|p| json!({ "by": p.by.as_str(), "value": p.value }));
    Ok(rows.collect::<Vec<_>>().into())
}

fn top_stacks(scene: &Scene, arguments: &[Value]) -> Result<Value, String> {
    let scope = scope(arguments)?;
    let of_scope = scene
        .stacks
        .iter()
        .filter(|s| scope.path().is_none_or(|path| *path == *s.cgroup));
    let all: u64 = of_scope.clone().map(|s| s.times).sum();
    let rows = of_scope.take(STACKS).map(|s| {
        let frames = s.stack.frames.iter().rev().take(FRAMES);
        json!({
            "percent": 100.0 * s.times as f64 / all as f64,
            "pid": s.tgid,
            "comm": s.comm,
            "truncated": s.stack.truncated,
            "frames": frames.map(|f| &*f.name).collect::<Vec<_>>(),
        })
    });
    Ok(rows.collect::<Vec<_>>().into())
}

fn normal(scene: &Scene, arguments: &[Value]) -> Result<Value, String> {
    let (scope, metric) = (scope(arguments)?, text(arguments, 1, "metric")?);
    let range = scene.ranges.expected(&scope, &metric, scene.sample.at);
    Ok(range.map_or(Value::Null, |(e, _)| {
        json!({ "low": e.low.is_finite().then_some(e.low), "high": e.high, "median": e.median })
    }))
}
