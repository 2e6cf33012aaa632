//! The metrics, as Prometheus itself understands them. Needs Debian's package `prometheus`.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use lens_tests::{http, not_run, served::Served, until};

/// Prometheus takes seconds to start on a busy machine, and scrapes every second.
const LONG: Duration = Duration::from_secs(90);

/// Whether the program is there; says so if it isn't.
fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        not_run(&format!(
            "there is no {program}: install the package prometheus"
        ))
        .unwrap();
    }
    there
}

#[test]
fn promtool_has_nothing_to_say_against_the_metrics() {
    if !has("promtool") {
        return;
    }
    let served = Served::new().unwrap();
    served.fill();
    let page = http::ask(served.addr, "/metrics").unwrap();
    assert!(
        page.headers
            .contains("content-type: text/plain; version=0.0.4"),
        "{page:?}"
    );
    let mut check = Command::new("promtool");
    check.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut check = check
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(page.body.as_bytes())
        .unwrap();
    let said = check.wait_with_output().unwrap();
    let text = [said.stdout, said.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(
        said.status.success() && text.is_empty(),
        "{text}\n{}",
        page.body
    );
}

/// A Prometheus that scrapes one address every second; it ends with this value.
struct Prometheus {
    process: Child,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn scraping(target: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: lens\n    \
                 static_configs: [{{targets: ['{target}']}}]\n"
            ),
        )
        .unwrap();
        // Free now; nobody else is told of it.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("tsdb").display()
            ))
            .arg(format!("--web.listen-address={addr}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process,
            addr,
            _dir: dir,
        }
    }

    /// The value of the one series that `query` selects, if it knows one.
    fn value(&self, query: &str) -> Option<String> {
        let answer = http::ask(self.addr, &format!("/api/v1/query?query={query}")).ok()?;
        let json = answer.json().ok()?;
        let value = &json["data"]["result"][0]["value"][1];
        value.as_str().map(str::to_owned)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_real_prometheus_scrapes_the_metrics() {
    if !has("prometheus") {
        return;
    }
    let served = Served::new().unwrap();
    served.fill();
    let prometheus = Prometheus::scraping(served.addr);
    until("Prometheus knows a metric", LONG, || {
        prometheus.value("lens_program_runs_total").is_some()
    })
    .unwrap();
    for (query, wanted) in [
        ("up", "1"),
        ("lens_ready", "1"),
        ("lens_program_runs_total", "123456"),
        ("lens_model_refusals_total", "1"),
        ("sum(lens_model_tokens_total)", "1050"),
        ("lens_map_limit_entries{map=\"target_slots\"}", "512"),
    ] {
        assert_eq!(prometheus.value(query).as_deref(), Some(wanted), "{query}");
    }
}
