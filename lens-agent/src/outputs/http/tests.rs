//! What only shows over a real connection.

use std::{net::SocketAddr, sync::Arc};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{base::clock::SystemClock, supervise::Supervisor, telemetry::Telemetry};

/// A server with these limits that ends with the test.
struct Served {
    addr: SocketAddr,
    stop: CancellationToken,
    server: JoinSet<io::Result<()>>,
}

impl Served {
    fn new(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let telemetry = Telemetry::new();
        let supervisor = Supervisor::new("lens", telemetry.clone(), Arc::new(SystemClock));
        let api = Api::new(telemetry, supervisor);
        let server = Server {
            limits,
            ..Server::new(api, listener, Config::default()).unwrap()
        };
        let stop = CancellationToken::new();
        let token = stop.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { server.serve(token).await });
        Self {
            addr,
            stop,
            server: tasks,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// All that is answered to `request` until the connection ends.
    async fn ask(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read(&mut stream).await
    }

    async fn get(&self, path: &str) -> String {
        let head = "Host: localhost\r\nConnection: close";
        self.ask(&format!("GET {path} HTTP/1.1\r\n{head}\r\n\r\n"))
            .await
    }
}

async fn read(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let all = stream.read_to_end(&mut bytes);
    let ended = tokio::time::timeout(Duration::from_secs(20), all).await;
    // A reset after the answer is an end too.
    let _ = ended.expect("the server ends the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn an_error_is_json_that_says_what_to_do() {
    let served = Served::new(LIMITS);
    for (path, status, wanted) in [
        ("/api/v1/nothing", "404", "there is no such page"),
        ("/nothing", "404", "there is no such page"),
        ("/api/v1/insights/7", "404", "there is no insight 7"),
        ("/api/v1/insights/%FF", "400", "UTF-8"),
        ("/api/v1/incidents?sinse=2h", "400", "unknown field `sinse`"),
        (
            "/api/v1/incidents?sinse=2h",
            "400",
            "this page takes `since`",
        ),
        (
            "/api/v1/incidents?since=soon",
            "400",
            "2026-01-31T12:00:00Z",
        ),
        ("/api/v1/insights?all=maybe", "400", "true or false"),
        ("/api/v1/snapshots?scope=shop", "400", "begins with `/`"),
        ("/api/v1/snapshots?id=1/host/host", "404", "no snapshot"),
    ] {
        let answer = served.get(path).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {answer}"
        );
        assert!(answer.contains("{\"error\":\""), "{path}: {answer}");
        assert!(answer.contains(wanted), "{path}: {answer}");
    }
    let post = "POST /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = served.ask(post).await;
    assert!(
        answer.starts_with("HTTP/1.1 401 ") && answer.contains("{\"error\""),
        "who may not command is told nothing of what there is: {answer}"
    );
}

#[tokio::test]
async fn a_span_of_time_selects_too() {
    let served = Served::new(LIMITS);
    for query in ["since=2h", "since=2026-01-31T12:00:00%2B02:00", "all=true"] {
        let answer = served.get(&format!("/api/v1/insights?{query}")).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("[]"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_long_address_and_a_long_head_are_refused() {
    let served = Served::new(LIMITS);
    let answer = served
        .get(&format!(
            "/api/v1/incidents?since={}",
            "1".repeat(URI_BYTES)
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 414 "), "{answer}");
    let cookie = "a".repeat(2 * HEAD_BYTES);
    let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n");
    let answer = served.ask(&request).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
}

#[tokio::test]
async fn a_client_that_dawdles_loses_its_place_to_one_that_waits() {
    let served = Served::new(Limits {
        connections: 2,
        head: Duration::from_millis(300),
        ..LIMITS
    });
    let mut idle = served.connect().await;
    let mut slow = served.connect().await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: loc")
        .await
        .unwrap();
    let answer = served.get("/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    read(&mut idle).await;
    read(&mut slow).await;
}

#[tokio::test]
async fn the_end_of_the_server_ends_idle_connections() {
    let mut served = Served::new(LIMITS);
    let mut idle = served.connect().await;
    let answer = served.get("/healthz").await;
    assert!(answer.ends_with("ok\n"), "{answer}");
    served.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), served.server.join_next()).await;
    ended.unwrap().unwrap().unwrap().unwrap();
    assert_eq!(read(&mut idle).await, "");
}

#[tokio::test]
async fn metrics_are_for_everybody_and_the_rest_is_not() {
    let served = Served::new(LIMITS);
    let from =
        |path| format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    for (path, status) in [
        ("/metrics", "200"),
        ("/healthz", "200"),
        ("/readyz", "503"),
        ("/api/v1/incidents", "403"),
        ("/", "403"),
        ("/nothing", "403"),
    ] {
        let answer = served.ask(&from(path)).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {answer}"
        );
    }
}
