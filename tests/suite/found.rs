//! `lens incidents` and `lens insights`: from an agent, from what one has left, and going on.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use jiff::Timestamp;
use lens_agent::store::Store;
use lens_tests::{
    commands::{NOBODY, command, said},
    sample,
    served::Served,
    until,
};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(20);

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn an_open_incident_is_a_finding_and_a_closed_one_is_not() {
    let served = Served::new().unwrap();
    let url = served.url();
    let ask = |json: &[&str]| said(&[&["incidents", "--url", &url], json].concat()).unwrap();
    assert_eq!(
        (ask(&[]).code, ask(&[]).out),
        (Some(0), "no incidents\n".to_owned())
    );
    assert_eq!(
        (ask(&["--json"]).code, ask(&["--json"]).out),
        (Some(0), "[]\n".to_owned())
    );
    let at = time("2026-01-31T12:05:00Z");
    served
        .api
        .put_incident(sample::incident("i1", "closed").unwrap(), at);
    assert_eq!(ask(&[]).code, Some(0));
    served
        .api
        .put_incident(sample::incident("i2", "open").unwrap(), at);
    let told = ask(&[]);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert_eq!(
        lines(&told.out),
        [
            "OPENED                STATE   SEVERITY  INCIDENT  WORST",
            "2026-01-31T12:00:00Z  open    warning   i2        runq_wait_ms_per_sec of /shop/cart \
             is 412 (usual: under 9)",
            "2026-01-31T12:00:00Z  closed  warning   i1        runq_wait_ms_per_sec of /shop/cart \
             is 412 (usual: under 9)",
        ]
    );
    let json: Value = serde_json::from_str(&ask(&["--json"]).out).unwrap();
    assert_eq!(json[0]["state"], "open");
    assert_eq!(json[1]["series"][0]["expected"]["low"], Value::Null);
}

#[test]
fn since_selects_by_the_last_change() {
    let served = Served::new().unwrap();
    for (id, at) in [
        ("i1", "2026-01-31T12:00:00Z"),
        ("i2", "2026-01-31T13:00:00Z"),
    ] {
        let incident = sample::incident(id, "closed").unwrap();
        served.api.put_incident(incident, time(at));
    }
    let ids = |since: &str| {
        let url = served.url();
        let told = said(&["incidents", "--json", "--url", &url, "--since", since]).unwrap();
        let json: Value = serde_json::from_str(&told.out).unwrap();
        let ids = json.as_array().unwrap().iter();
        ids.map(|i| i["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids("2026-01-31T12:30:00Z"), ["i2"]);
    assert_eq!(ids("2026-01-31T14:30:00+02:00"), ["i2"]);
    assert_eq!(ids("2026-01-31T12:00:00Z"), ["i2", "i1"]);
    assert_eq!(ids("2000000h"), ["i2", "i1"]);
    assert_eq!(ids("1s"), Vec::<String>::new());
}

#[test]
fn an_insight_reads_as_one_who_is_on_call_needs_it() {
    let served = Served::new().unwrap();
    served.api.put_insight(sample::insight("i1").unwrap());
    let url = served.url();
    let told = said(&["insights", "--url", &url]).unwrap();
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(
        lines(&told.out),
        [
            "2026-01-31T12:00:05Z  cpu_contention  80 % sure  i1-1",
            "  /shop/cart waited 412 ms/s for a CPU. Behind it: /batch/nightly.",
            "  culprit  /batch/nightly (crunch)",
            "  victim   /shop/cart (cartd)",
            "  - /shop/cart waited 412 ms/s (usual: under 9); 71 % of it behind /batch/nightly.",
            "  > Give /batch/nightly a lower cpu.weight.",
        ]
    );
    assert_eq!(
        said(&["insights", "i1-1", "--url", &url]).unwrap().out,
        told.out
    );
    let missing = said(&["insights", "a/b c", "--url", &url]).unwrap();
    assert_eq!(missing.code, Some(2), "{missing:?}");
}

/// Lines of a command, as they come.
struct Following {
    process: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Following {
    fn new(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let from = BufReader::new(process.stdout.take().unwrap());
        let (to, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in from.lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        Self { process, lines }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(LONG).expect("a line")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn following_writes_what_is_new_or_has_changed() {
    let served = Served::new().unwrap();
    let at = time("2026-01-31T12:05:00Z");
    served
        .api
        .put_incident(sample::incident("i1", "open").unwrap(), at);
    let url = served.url();
    let mut json = command(&["incidents", "--follow", "--json", "--url", &url]).unwrap();
    let mut text = command(&["incidents", "--follow", "--url", &url]).unwrap();
    let (json, text) = (Following::new(&mut json), Following::new(&mut text));
    let state = || {
        let object: Value = serde_json::from_str(&json.next()).unwrap();
        format!(
            "{} {}",
            object["id"].as_str().unwrap(),
            object["state"].as_str().unwrap()
        )
    };
    assert_eq!(state(), "i1 open");
    assert!(
        text.next()
            .starts_with("2026-01-31T12:00:00Z  open  warning  i1  runq_wait")
    );
    served
        .api
        .put_incident(sample::incident("i1", "closed").unwrap(), at);
    assert_eq!(state(), "i1 closed");
    served
        .api
        .put_incident(sample::incident("i2", "open").unwrap(), at);
    assert_eq!(state(), "i2 open");
    assert!(text.next().contains("  closed  "));
}

#[test]
fn following_ends_when_the_reader_goes_although_nothing_happens() {
    let served = Served::new().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = command(&["insights", "--follow", "--url", &served.url()]).unwrap();
    let mut process = command.stdout(writer).spawn().unwrap();
    drop((command, reader));
    let mut ended = None;
    let waited = until("the command ends", LONG, || {
        ended = process.try_wait().unwrap();
        ended.is_some()
    });
    if waited.is_err() {
        process.kill().unwrap();
    }
    waited.unwrap();
    assert_eq!(ended.unwrap().code(), Some(0));
}

#[test]
fn what_was_written_before_a_kill_is_there_and_the_note_is_on_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let mut writer = Command::new(env!("CARGO_BIN_EXE_write_store"));
    let mut writer = Following::new(writer.arg(state));
    assert_eq!(writer.next(), "written");
    // SIGKILL, in the middle of writing.
    writer.process.kill().unwrap();
    writer.process.wait().unwrap();
    let ask = |list| {
        let told = said(&[list, "--json", "--state-dir", state, "--url", NOBODY]).unwrap();
        assert!(
            told.err.contains("no agent answers at") && told.err.contains(state),
            "{told:?}"
        );
        (told.code, serde_json::from_str::<Value>(&told.out).unwrap())
    };
    let (code, incidents) = ask("incidents");
    assert_eq!(code, Some(1));
    let (code, insights) = ask("insights");
    assert_eq!(code, Some(0));
    let has = |list: &Value, id: &str| list.as_array().unwrap().iter().any(|i| i["id"] == id);
    assert!(has(&incidents, "killed-0") && has(&insights, "killed-0-1"));
    let reopened = Store::open(dir.path(), &lens_agent::telemetry::Telemetry::new()).unwrap();
    assert_eq!(reopened.moved_aside(), None);
}
