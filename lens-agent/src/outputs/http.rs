//! The HTTP server: health, metrics, and `/api/v1`.

use std::{io, net::TcpListener, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Api, skill_infos},
    base::{scope::Scope, snapshot::SnapshotId},
};

/// The server; a clone serves the same address.
#[derive(Clone, Debug)]
pub struct Server {
    api: Api,
    listener: Arc<TcpListener>,
}

/// What went wrong, as JSON.
#[derive(Debug, Serialize)]
struct Problem {
    error: String,
}

fn problem(status: StatusCode, error: impl Into<String>) -> Response {
    (
        status,
        Json(Problem {
            error: error.into(),
        }),
    )
        .into_response()
}

impl Server {
    /// Serves `api` on an address that is bound already, without blocking.
    pub fn new(api: Api, listener: TcpListener) -> Self {
        Self {
            api,
            listener: Arc::new(listener),
        }
    }

    /// Serves until `stop` is cancelled.
    pub async fn serve(&self, stop: CancellationToken) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener.try_clone()?)?;
        let router = router(self.api.clone());
        axum::serve(listener, router)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
    }
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route(
            "/api/v1/status",
            get(async |State(api): State<Api>| Json(api.status())),
        )
        .route("/api/v1/incidents", get(incidents))
        .route("/api/v1/insights", get(insights))
        .route("/api/v1/insights/{id}", get(insight))
        .route("/api/v1/snapshots", get(snapshots))
        .route(
            "/api/v1/targets",
            get(async |State(api): State<Api>| Json(api.targets())),
        )
        .route(
            "/api/v1/probes",
            get(async |State(api): State<Api>| Json(api.probes())),
        )
        .route("/api/v1/skills", get(async || Json(skill_infos())))
        .route(
            "/api/v1/tree",
            get(async |State(api): State<Api>| Json(api.tree())),
        )
        .fallback(async || problem(StatusCode::NOT_FOUND, "there is no such page"))
        .with_state(api)
}

async fn ready(State(api): State<Api>) -> Response {
    let status = api.status();
    if status.ready {
        return "ready\n".into_response();
    }
    let why = status.waiting_for.unwrap_or_else(|| "starting".to_owned());
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("waiting for {why}\n"),
    )
        .into_response()
}

/// `?since=` (RFC 3339) and `?all=true`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Selection {
    since: Option<Timestamp>,
    #[serde(default)]
    all: bool,
}

async fn incidents(State(api): State<Api>, Query(of): Query<Selection>) -> Response {
    Json(api.incidents(of.since)).into_response()
}

async fn insights(State(api): State<Api>, Query(of): Query<Selection>) -> Response {
    Json(api.insights(of.since, of.all)).into_response()
}

async fn insight(State(api): State<Api>, Path(id): Path<String>) -> Response {
    match api.insight(&id) {
        Some(insight) => Json(insight).into_response(),
        None => problem(StatusCode::NOT_FOUND, format!("there is no insight {id}")),
    }
}

/// `?scope=` or `?id=`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    scope: Option<String>,
    id: Option<String>,
}

async fn snapshots(State(api): State<Api>, Query(of): Query<Which>) -> Response {
    if let Some(id) = of.id {
        return match api.snapshot(&SnapshotId::from(id.as_str())) {
            Some(snapshot) => Json(vec![snapshot]).into_response(),
            None => problem(StatusCode::NOT_FOUND, format!("there is no snapshot {id}")),
        };
    }
    match of.scope.map(|s| s.parse::<Scope>()).transpose() {
        Ok(scope) => Json(api.snapshots(scope.as_ref())).into_response(),
        Err(why) => problem(StatusCode::BAD_REQUEST, why.to_string()),
    }
}
