//! Trouble that needs a running agent, or what only root gets to.

use std::{fs, net::TcpListener, path::Path, process::Command, time::Duration};

use lens_agent::{store::Store, telemetry::Telemetry};
use lens_tests::{
    cgroup::Cgroup,
    commands::{Said, command_with_btf, said},
    http::ask,
    root_or_say_not_run,
    running::Running,
    sample, until,
};
use serde_json::Value;

const LONG: Duration = Duration::from_mins(1);

fn json(addr: std::net::SocketAddr, path: &str) -> Value {
    ask(addr, path).unwrap().json().unwrap()
}

#[test]
fn a_port_that_is_taken_is_named() {
    if !root_or_say_not_run().unwrap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let state = dir.path().to_str().unwrap();
    let said = said(&["run", "--state-dir", state, "--listen", &addr]).unwrap();
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.err.contains(&addr) && said.err.contains("--listen"),
        "{said:?}"
    );
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    if !root_or_say_not_run().unwrap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    // Root may write everywhere but where there is no directory.
    for state in [file.as_path(), &file.join("state"), Path::new("/proc/lens")] {
        let state = state.to_str().unwrap();
        let said = said(&["run", "--state-dir", state, "--listen", "127.0.0.1:0"]).unwrap();
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(
            said.err.contains(state) && said.err.contains("--state-dir"),
            "{said:?}"
        );
    }
}

#[test]
fn a_damaged_database_is_moved_aside_and_the_agent_goes_on() {
    if !root_or_say_not_run().unwrap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("lens.db"), "no database ".repeat(1000)).unwrap();
    let agent = Running::start(dir.path(), &[]).unwrap();
    assert!(
        agent.log().contains("the database was damaged"),
        "{}",
        agent.log()
    );
    assert_eq!(
        json(agent.addr, "/api/v1/incidents"),
        Value::Array(Vec::new())
    );
    let aside = fs::read_dir(dir.path()).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        fs::read_to_string(path).is_ok_and(|text| text.starts_with("no database"))
    });
    assert!(aside, "the damaged file is kept");
    assert_eq!(agent.stop().unwrap(), Some(0));
}

#[test]
fn what_an_agent_found_outlives_its_kill() {
    if !root_or_say_not_run().unwrap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path(), &Telemetry::new()).unwrap();
        let incident = sample::incident("i1", "open").unwrap();
        let insight = sample::insight("i1").unwrap();
        let put = |kind, id: &str, bytes| store.put_now(kind, id, 1, incident.opened_at, bytes);
        put(
            sample::INCIDENT,
            "i1",
            serde_json::to_vec(&incident).unwrap(),
        )
        .unwrap();
        put(
            sample::INSIGHT,
            &insight.id,
            serde_json::to_vec(&insight).unwrap(),
        )
        .unwrap();
    }
    for _ in 0..2 {
        let agent = Running::start(dir.path(), &[]).unwrap();
        let incidents = json(agent.addr, "/api/v1/incidents");
        let known = incidents
            .as_array()
            .unwrap()
            .iter()
            .find(|i| i["id"] == "i1");
        // Nobody watched it while no agent ran.
        assert_eq!(known.unwrap()["state"], "closed", "{incidents}");
        assert_eq!(json(agent.addr, "/api/v1/insights/i1-1")["incident"], "i1");
        agent.kill().unwrap();
        let state = dir.path().to_str().unwrap();
        let said = said(&["insights", "i1-1", "--json", "--state-dir", state]).unwrap();
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.err.contains("no agent answers"), "{said:?}");
    }
    let state = dir.path().to_str().unwrap();
    for (list, wanted) in [("probes", "\"sched\""), ("targets", "\"path\"")] {
        let said = said(&[list, "--json", "--state-dir", state]).unwrap();
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.out.contains(wanted), "{said:?}");
    }
}

#[test]
fn a_glob_that_matches_nothing_ends_a_snapshot_and_makes_the_agent_wait() {
    if !root_or_say_not_run().unwrap() {
        return;
    }
    let glob = format!("/lens-test-{}-*/late", std::process::id());
    let told = said(&["snapshot", "--for", "1s", "--cgroup", &glob]).unwrap();
    assert_eq!(told.code, Some(2), "{told:?}");
    assert!(
        told.err.contains(&format!("no cgroup matches `{glob}`")),
        "{told:?}"
    );
    let dir = tempfile::tempdir().unwrap();
    let agent = Running::start(dir.path(), &["--cgroup", &glob]).unwrap();
    assert!(agent.log().contains("no cgroup matches"), "{}", agent.log());
    let missed = || json(agent.addr, "/api/v1/status")["quality"]["missing"].to_string();
    assert!(missed().contains(&glob), "{}", missed());
    assert_eq!(
        json(agent.addr, "/api/v1/targets"),
        Value::Array(Vec::new())
    );
    let parent = Cgroup::new("trouble").unwrap();
    let late = parent.child("late").unwrap();
    let mut load = late
        .spawn(Command::new("cat").stdin(std::process::Stdio::piped()))
        .unwrap();
    until("the agent takes up the cgroup that came late", LONG, || {
        json(agent.addr, "/api/v1/targets")
            .to_string()
            .contains(late.path())
    })
    .unwrap();
    until("nothing is missing any more", LONG, || {
        !missed().contains(&glob)
    })
    .unwrap();
    load.kill().unwrap();
    load.wait().unwrap();
}

#[test]
fn a_kernel_without_btf_is_named() {
    if !root_or_say_not_run().unwrap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut run = command_with_btf(None).unwrap();
    run.args(["run", "--listen", "127.0.0.1:0", "--state-dir"]);
    let ran = Said::from(run.arg(dir.path()).output().unwrap());
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("CONFIG_DEBUG_INFO_BTF"), "{ran:?}");
    let mut doctor = command_with_btf(None).unwrap();
    let told = Said::from(doctor.arg("doctor").output().unwrap());
    assert_eq!(told.code, Some(1), "a finding: {told:?}");
    assert!(
        told.out.contains("CONFIG_DEBUG_INFO_BTF") && told.out.contains("without it"),
        "{told:?}"
    );
}

/// The kernel's types, with one tracepoint called by another name, as on a kernel that does not
/// have it.
fn types_without(tracepoint: &str, into: &Path) {
    let mut types = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    let name = format!("\0btf_trace_{tracepoint}\0").into_bytes();
    let at = types.windows(name.len()).position(|w| w == name).unwrap();
    types[at + name.len() - 2] = b'_';
    fs::write(into, types).unwrap();
}

/// What the doctor finds wrong on a kernel with these types.
fn failed_with(types: &Path) -> Vec<String> {
    let mut doctor = command_with_btf(Some(types)).unwrap();
    let told = Said::from(doctor.arg("doctor").output().unwrap());
    assert_eq!(told.code, Some(1), "a finding: {told:?}");
    let failed = told.out.lines().filter(|line| line.starts_with("FAILED"));
    failed.map(str::to_owned).collect()
}

#[test]
fn a_probe_that_is_refused_is_named_and_the_others_run() {
    if !root_or_say_not_run().unwrap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let types = dir.path().join("vmlinux");
    types_without("sched_process_exec", &types);
    let failed = failed_with(&types);
    assert!(
        failed.len() == 1
            && failed[0].contains("lifecycle")
            && failed[0].contains("sched_process_exec"),
        "{failed:?}"
    );
    let state = dir.path().join("state");
    let command = command_with_btf(Some(&types)).unwrap();
    let agent = Running::start_by(command, &state, &[]).unwrap();
    let probes = json(agent.addr, "/api/v1/probes");
    let state_of = |name: &str| {
        let probe = probes
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["name"] == name);
        probe.unwrap()["state"].clone()
    };
    assert_eq!(state_of("lifecycle"), "refused", "{probes:#}");
    assert_eq!(state_of("sched"), "attached", "{probes:#}");
    let missing = json(agent.addr, "/api/v1/status")["quality"]["missing"].to_string();
    assert!(missing.contains("sched_process_exec"), "{missing}");
    let page = ask(agent.addr, "/metrics").unwrap().body;
    assert!(
        page.contains("lens_probe_attached{probe=\"lifecycle\"} 0"),
        "{page}"
    );
    // What cannot be seen is absent, not 0.
    let seen = json(agent.addr, "/api/v1/snapshots?scope=host").to_string();
    assert!(!seen.contains("execs_per_sec"), "{seen}");
    assert!(seen.contains("runq_wait_ms_per_sec"), "{seen}");
}

#[test]
fn a_probe_that_sees_only_a_part_says_which() {
    if !root_or_say_not_run().unwrap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let types = dir.path().join("vmlinux");
    types_without("rss_stat", &types);
    let failed = failed_with(&types);
    assert!(
        failed.len() == 1 && failed[0].contains("memory.resident"),
        "{failed:?}"
    );
}

#[test]
fn a_running_agent_shows_its_probes_to_prometheus() {
    if !root_or_say_not_run().unwrap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let agent = Running::start(dir.path(), &["--probe", "sched"]).unwrap();
    let line = |name: &str| {
        let page = ask(agent.addr, "/metrics").unwrap().body;
        let line = page
            .lines()
            .find(|l| l.starts_with(name))
            .map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {name} in\n{page}"))
    };
    assert_eq!(line("lens_ready"), "lens_ready 1.0");
    assert_eq!(
        line("lens_probe_attached{probe=\"sched\"}"),
        "lens_probe_attached{probe=\"sched\"} 1.0"
    );
    let runs = || -> f64 {
        let line = line("lens_program_runs_total{probe=\"sched\",program=\"sched_switch\"}");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    // Some wait is behind somebody on any machine that runs this.
    let used = line("lens_map_used_entries{map=\"sched.pairs\"}");
    assert!(!used.ends_with(" 0.0"), "{used}");
    let before = runs();
    until("the probe has counted more", LONG, || runs() > before).unwrap();
    assert_eq!(agent.stop().unwrap(), Some(0));
}
