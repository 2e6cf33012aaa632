//! What an agent may have found, in the words of the JSON contract.

use std::sync::Arc;

use anyhow::Result;
use lens_agent::{anomaly::Incident, investigate::Insight, store::Kind};
use serde_json::{Value, json};

/// The kinds under which an agent keeps them.
pub const INCIDENT: Kind = Kind("incident");
/// See [`INCIDENT`].
pub const INSIGHT: Kind = Kind("insight");

/// The kind under which an agent keeps the snapshots that an insight cites.
pub const SNAPSHOT: Kind = Kind("snapshot");

/// An incident of `/shop/cart`; `state` is `open` or `closed`.
pub fn incident(id: &str, state: &str) -> Result<Incident> {
    let closed_at = (state == "closed").then_some("2026-01-31T12:05:00Z");
    Ok(serde_json::from_value(json!({
        "id": id,
        "opened_at": "2026-01-31T12:00:00.123456789Z",
        "reopened_at": null,
        "closed_at": closed_at,
        "state": state,
        "severity": "warning",
        "series": [{
            "scope": "/shop/cart",
            "metric": "runq_wait_ms_per_sec",
            "expected": {"low": null, "high": 9.0},
            "seen": 412.0,
            "deviation": 7.5,
            "since": "2026-01-31T11:59:55Z",
            "baseline": "own",
        }],
        "insights": [insight_id(id)],
    }))?)
}

/// The answer to the incident with this id.
pub fn insight(incident: &str) -> Result<Insight> {
    let evidence = |by: Value, value: f64, seen: f64| {
        json!({
            "snapshot": "18342/scheduler//shop/cart", "scope": "/shop/cart",
            "metric": "runq_wait_ms_per_sec", "by": by, "relation": ">", "value": value,
            "seen": seen, "holds": true,
        })
    };
    let actor = |cgroup: &str, comm: &str| {
        json!({
            "cgroup": cgroup, "comm": comm, "pid": 7, "container": null, "pod": null, "unit": null,
        })
    };
    Ok(serde_json::from_value(json!({
        "id": insight_id(incident),
        "incident": incident,
        "supersedes": null,
        "opened_at": "2026-01-31T12:00:00.123456789Z",
        "created_at": "2026-01-31T12:00:05.5Z",
        "verdict": "cause",
        "category": "cpu_contention",
        "summary": "/shop/cart waited 412 ms/s for a CPU. Behind it: /batch/nightly.",
        "culprit": actor("/batch/nightly", "crunch"),
        "victims": [actor("/shop/cart", "cartd")],
        "correlation": "causal",
        "claims": [{
            "kind": "pair",
            "text": "/shop/cart waited 412 ms/s (usual: under 9); 71 % of it behind /batch/nightly.",
            "evidence": [
                evidence(Value::Null, 9.0, 412.0),
                evidence(json!("/batch/nightly"), 206.0, 293.0),
            ],
        }],
        "hypotheses": [],
        "next_steps": ["Give /batch/nightly a lower cpu.weight."],
        "confidence": 0.8,
        "quality": {"lost": {}, "sampled": {}, "missing": [], "censored": 0},
        "strategy": "offline",
        "provider": null,
        "model": null,
        "tokens": {"input": 0, "cached": 0, "output": 0},
        "cost_usd": 0.0,
        "duration_ms": 3,
    }))?)
}

/// The id of the answer to the incident with this id.
pub fn insight_id(incident: &str) -> Arc<str> {
    format!("{incident}-1").into()
}
