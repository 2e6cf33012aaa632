//! The HTTP server.
//!
//! ```text
//! connection -> bounds -> /metrics, /healthz, /readyz: for everybody
//!                     `-> door (Host, Origin, token) -> /api/v1
//! ```
//!
//! Whoever can reach the address can also be slow, many, or a web page in somebody's browser: so
//! connections are bounded in number and in time, and what tells about the host stands behind
//! the door.

mod door;
mod pages;
mod problem;

use std::{
    io,
    net::{IpAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::Response,
};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

pub use self::door::{Token, TokenError};
use self::{door::Door, problem::problem};
use crate::api::Api;

/// Who is let in.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// What must be shown where the address is not the host's own.
    pub token: Option<Token>,
    /// What a client may show in its place to have something done; without one of the two nothing
    /// is.
    pub command_token: Option<Token>,
    /// Names by which the agent may be called, besides its address and `localhost`.
    pub hosts: Vec<String>,
}

/// What a client may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at once; others wait until they are accepted.
    connections: usize,
    /// Time for the head of a request, and between two requests.
    head: Duration,
    /// Time until an answer begins.
    answer: Duration,
    /// The same where the client chooses how long that takes.
    long_answer: Duration,
    /// Time in which a client must have taken what was sent to it.
    taken: Duration,
    /// Time for answers under way when the server ends.
    last_words: Duration,
}

const LIMITS: Limits = Limits {
    connections: 64,
    head: Duration::from_secs(10),
    answer: Duration::from_secs(30),
    long_answer: Duration::from_mins(6),
    taken: Duration::from_secs(30),
    last_words: Duration::from_secs(1),
};

/// Bytes of a request's line and headers.
const HEAD_BYTES: usize = 16 << 10;
/// Bytes of a request's address.
const URI_BYTES: usize = 4 << 10;
/// Bytes of a request's body.
const BODY_BYTES: usize = 64 << 10;
/// How long to wait when no connection can be accepted, because files run out for example.
const BREATH: Duration = Duration::from_millis(500);

/// The server; a clone serves the same address.
#[derive(Clone, Debug)]
pub struct Server {
    api: Api,
    listener: Arc<TcpListener>,
    door: Arc<Door>,
    limits: Limits,
}

/// The address that a connection came in at.
#[derive(Clone, Copy, Debug)]
struct CameInAt(IpAddr);

impl Server {
    /// Serves `api` on an address that is bound already, without blocking.
    pub fn new(api: Api, listener: TcpListener, config: Config) -> io::Result<Self> {
        let bound = listener.local_addr()?;
        Ok(Self {
            api,
            listener: Arc::new(listener),
            door: Arc::new(Door::new(bound, config)),
            limits: LIMITS,
        })
    }

    /// Why nobody gets anything but metrics and health, if that is so.
    pub fn shut(&self) -> Option<String> {
        self.door.shut()
    }

    /// Serves until `stop` is cancelled.
    pub async fn serve(&self, stop: CancellationToken) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener.try_clone()?)?;
        let room = Arc::new(Semaphore::new(self.limits.connections));
        let router = self.router();
        // Those that are still here when this future is dropped end with it.
        let mut connections = JoinSet::new();
        loop {
            let next = async {
                // Never closed, so this is an error never.
                let place = room.clone().acquire_owned().await.ok();
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = stop.cancelled() => break,
                next = next => next,
            };
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(BREATH).await;
                continue;
            };
            let (router, stop, limits) = (router.clone(), stop.clone(), self.limits);
            connections.spawn(async move {
                converse(stream, router, limits, stop).await;
                drop(place);
            });
        }
        let all = async { while connections.join_next().await.is_some() {} };
        // What is under way after that is cut off.
        let _ = tokio::time::timeout(self.limits.last_words, all).await;
        Ok(())
    }

    fn router(&self) -> Router {
        let Limits {
            answer,
            long_answer,
            ..
        } = self.limits;
        let bounded = |pages: Router<Api>, time| {
            pages.layer(middleware::from_fn_with_state(Answer { time }, bounds))
        };
        let door = middleware::from_fn_with_state(self.door.clone(), door::enter);
        bounded(pages::behind_the_door(), answer)
            .merge(bounded(pages::that_take_their_time(), long_answer))
            .layer(door)
            .merge(bounded(pages::for_everybody(), answer))
            .layer(DefaultBodyLimit::max(BODY_BYTES))
            .with_state(self.api.clone())
    }
}

/// Answers what comes over one connection.
async fn converse(stream: TcpStream, router: Router, limits: Limits, stop: CancellationToken) {
    let Ok(at) = stream.local_addr() else { return };
    let taken = u32::try_from(limits.taken.as_millis()).unwrap_or(u32::MAX);
    // Without it a client that stops reading keeps its place for ever.
    if rustix::net::sockopt::set_tcp_user_timeout(&stream, taken).is_err() {
        return;
    }
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(CameInAt(at.ip()));
        router.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // A connection that breaks is its client's affair.
    tokio::select! {
        _ = &mut connection => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// The time until an answer begins.
#[derive(Clone, Copy, Debug)]
struct Answer {
    time: Duration,
}

async fn bounds(State(limits): State<Answer>, request: Request, next: Next) -> Response {
    let uri = request.uri();
    if uri
        .path_and_query()
        .is_some_and(|p| p.as_str().len() > URI_BYTES)
    {
        let why = format!("an address has at most {URI_BYTES} bytes");
        return problem(StatusCode::URI_TOO_LONG, why);
    }
    match tokio::time::timeout(limits.time, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "the answer took too long; ask again, or for less",
        ),
    }
}

#[cfg(test)]
mod tests;
