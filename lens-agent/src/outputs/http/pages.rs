//! The pages: health and metrics for everybody, `/api/v1` behind the door.

use axum::{
    Json, Router,
    extract::{
        FromRequest, FromRequestParts, Path, Query, Request, State,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
        request::Parts,
    },
    response::{IntoResponse, Response},
    routing::{get, post},
};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::problem::problem;
use crate::{
    api::{self, Api, InvestigationRequest, Refused, SinceError, skill_entries},
    base::{
        clock::{Clock as _, SystemClock},
        scope::Scope,
        snapshot::SnapshotId,
    },
    outputs::prometheus::{self, Format},
    probes::TraceRequest,
};

/// What is answered to everybody who can reach the address.
pub(super) fn for_everybody() -> Router<Api> {
    Router::new()
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

/// What tells about the host; also what is answered when there is no such page.
pub(super) fn behind_the_door() -> Router<Api> {
    Router::new()
        .route(
            "/api/v1/status",
            get(async |State(api): State<Api>| Json(api.status())),
        )
        .route("/api/v1/incidents", get(incidents))
        .route("/api/v1/insights", get(insights))
        .route("/api/v1/insights/{id}", get(insight))
        .route("/api/v1/snapshots", get(snapshots))
        .route(
            "/api/v1/investigations",
            get(async |State(api): State<Api>| Json(api.investigations())).post(investigate),
        )
        .route("/api/v1/investigations/{id}", get(investigation))
        .route(
            "/api/v1/targets",
            get(async |State(api): State<Api>| Json(api.targets())),
        )
        .route(
            "/api/v1/probes",
            get(async |State(api): State<Api>| Json(api.probes())),
        )
        .route("/api/v1/skills", get(async || Json(skill_entries())))
        .route(
            "/api/v1/tree",
            get(async |State(api): State<Api>| Json(api.tree())),
        )
        .fallback(async || problem(StatusCode::NOT_FOUND, "there is no such page"))
        .method_not_allowed_fallback(no_such_method)
}

async fn no_such_method() -> Response {
    let why = "this page does not take that method";
    problem(StatusCode::METHOD_NOT_ALLOWED, why)
}

/// What takes as long as it is asked to.
pub(super) fn that_take_their_time() -> Router<Api> {
    Router::new()
        .route("/api/v1/trace", post(trace))
        .method_not_allowed_fallback(no_such_method)
}

/// A stage that has failed for good is mended by a restart only.
async fn healthy(State(api): State<Api>) -> Response {
    let tree = api.tree();
    let failed = tree.failed();
    if failed.is_empty() {
        return "ok\n".into_response();
    }
    let why = format!("failed for good: {}\n", failed.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

/// Readings that may be missing, and the least time, before nobody sees any more.
const LATE: u32 = 10;
const LATE_LEAST: Duration = Duration::from_secs(30);

async fn ready(State(api): State<Api>) -> Response {
    let status = api.status();
    let patience = (Duration::from_millis(status.interval_ms) * LATE).max(LATE_LEAST);
    let now = SystemClock.now().wall;
    let is_late = |at: Timestamp| now.duration_since(at).unsigned_abs() > patience;
    if status.seen_at.is_some_and(is_late) {
        let why = "no reading for a while\n";
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    }
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

async fn metrics(State(api): State<Api>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|a| a.to_str().ok());
    let format = Format::accepted(accept);
    match prometheus::metrics(&api, format) {
        Ok(page) => ([(CONTENT_TYPE, format.content_type())], page).into_response(),
        Err(why) => problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the metrics cannot be written: {why}"),
        ),
    }
}

/// The parameters of a page.
trait Parameters: DeserializeOwned {
    /// Which there are, for who asked wrongly.
    const KNOWN: &'static str;
}

/// The parameters of a request; what cannot be understood is answered with what could.
struct Asked<T>(T);

impl<S: Sync, T: Parameters> FromRequestParts<S> for Asked<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(why) => Err(misunderstood::<T>(&why)),
        }
    }
}

/// The id at the end of an address.
struct Id(String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(why) => Err(bad(PathRejection::body_text(&why))),
        }
    }
}

/// The body of a request, JSON.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(why) => Err(problem(
                JsonRejection::status(&why),
                JsonRejection::body_text(&why),
            )),
        }
    }
}

fn misunderstood<T: Parameters>(why: &QueryRejection) -> Response {
    bad(format!("{}; this page takes {}", why.body_text(), T::KNOWN))
}

fn bad(why: impl Into<String>) -> Response {
    problem(StatusCode::BAD_REQUEST, why)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Selection {
    since: Option<String>,
    #[serde(default)]
    all: bool,
}

impl Parameters for Selection {
    const KNOWN: &'static str = "`since` (a time like 2026-01-31T12:00:00Z, or a span of time back \
                                 from now like 2h) and `all` (true or false)";
}

impl Selection {
    fn since(&self) -> Result<Option<Timestamp>, SinceError> {
        let since = self.since.as_ref();
        let since = since.map(|text| api::since(text, SystemClock.now().wall));
        since.transpose()
    }
}

async fn incidents(State(api): State<Api>, Asked(of): Asked<Selection>) -> Response {
    match of.since() {
        Ok(since) => Json(api.incidents(since)).into_response(),
        Err(why) => bad(why.to_string()),
    }
}

async fn insights(State(api): State<Api>, Asked(of): Asked<Selection>) -> Response {
    match of.since() {
        Ok(since) => Json(api.insights(since, of.all)).into_response(),
        Err(why) => bad(why.to_string()),
    }
}

async fn insight(State(api): State<Api>, Id(id): Id) -> Response {
    one(api.insight(&id), "insight", &id)
}

/// Answers at once; how it goes is asked by its id.
async fn investigate(
    State(api): State<Api>,
    Body(request): Body<InvestigationRequest>,
) -> Response {
    match api.investigate(request, SystemClock.now().wall) {
        Ok(investigation) => (StatusCode::ACCEPTED, Json(investigation)).into_response(),
        Err(why) => refused(&why),
    }
}

async fn investigation(State(api): State<Api>, Id(id): Id) -> Response {
    one(api.investigation(&id), "investigation", &id)
}

/// Answers when the trace is over; a client that goes away ends it.
async fn trace(State(api): State<Api>, Body(request): Body<TraceRequest>) -> Response {
    match api.trace(request).await {
        Ok(traced) => Json(traced).into_response(),
        Err(why) => refused(&why),
    }
}

/// The one with this id, if there is one.
fn one<T: Serialize>(found: Option<T>, what: &str, id: &str) -> Response {
    match found {
        Some(found) => Json(found).into_response(),
        None => problem(StatusCode::NOT_FOUND, format!("there is no {what} {id}")),
    }
}

fn refused(why: &Refused) -> Response {
    let status = match why {
        Refused::Usage(_) => StatusCode::BAD_REQUEST,
        Refused::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
        Refused::Cannot(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    problem(status, why.to_string())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    scope: Option<String>,
    id: Option<String>,
}

impl Parameters for Which {
    const KNOWN: &'static str = "`scope` (`host`, or a cgroup path that begins with `/`) or `id` \
                                 (TICK/SKILL/SCOPE)";
}

async fn snapshots(State(api): State<Api>, Asked(of): Asked<Which>) -> Response {
    if let Some(id) = of.id {
        return match api.snapshot(&SnapshotId::from(id.as_str())) {
            Some(snapshot) => Json(vec![snapshot]).into_response(),
            None => problem(StatusCode::NOT_FOUND, format!("there is no snapshot {id}")),
        };
    }
    match of.scope.map(|s| s.parse::<Scope>()).transpose() {
        Ok(scope) => Json(api.snapshots(scope.as_ref())).into_response(),
        Err(why) => bad(why.to_string()),
    }
}
