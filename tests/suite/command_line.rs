//! Trouble at the command line: what is typed wrongly, what is not allowed, who stops reading.

use std::fs;

use lens_tests::commands::{Anybody, command, said};

/// Checks an exit code, and that stderr says all of `wanted`.
fn check(arguments: &[&str], code: i32, wanted: &[&str]) {
    let said = said(arguments).unwrap();
    assert_eq!(said.code, Some(code), "{arguments:?}: {said:?}");
    for words in wanted {
        assert!(
            said.err.contains(words),
            "{arguments:?}: no {words:?} in {}",
            said.err
        );
    }
    assert_eq!(said.out, "", "{arguments:?}: data beside an error");
}

#[test]
fn the_binary_says_its_version() {
    let said = said(&["--version"]).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.out, concat!("lens ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn an_unknown_command_is_a_usage_error() {
    check(&["incident"], 64, &["incident", "incidents"]);
    check(&[], 64, &["Usage: lens"]);
    check(&["skills", "--yaml"], 64, &["--yaml"]);
}

#[test]
fn an_unknown_configuration_key_is_named_with_its_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lens.toml");
    fs::write(&path, "interval = \"5s\"\n\nintervall = \"5s\"\n").unwrap();
    let path = path.to_str().unwrap();
    for command in [&["config", "check"][..], &["run"]] {
        let arguments = [command, &["--config", path]].concat();
        check(&arguments, 64, &[path, "line 3", "`intervall`"]);
    }
}

#[test]
fn the_settings_that_hold_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lens.toml");
    fs::write(&path, "interval = \"2s\"\nlearn = \"3m\"\n").unwrap();
    let file = [
        "config",
        "--config",
        path.to_str().unwrap(),
        "--interval",
        "7s",
    ];
    let shown = said(&file).unwrap();
    assert_eq!(shown.code, Some(0), "{shown:?}");
    // A flag, the file, a default.
    for line in [
        "interval = \"7s\"",
        "learn = \"3m\"",
        "listen = \"127.0.0.1:9700\"",
    ] {
        assert!(
            shown.out.lines().any(|l| l == line),
            "no {line} in {}",
            shown.out
        );
    }
    // What is shown is a file that means the same.
    fs::write(&path, &shown.out).unwrap();
    let again = said(&["config", "--config", path.to_str().unwrap(), "--json"]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!(json["interval"], "7s", "{json}");
    let state = json["state_dir"].as_str();
    assert_eq!(state, Some("/no/such/state"), "of the environment: {json}");
}

#[test]
fn a_configuration_file_that_is_not_there_is_a_configuration_error() {
    check(
        &["config", "check", "--config", "/no/such.toml"],
        64,
        &["/no/such.toml"],
    );
}

#[test]
fn an_interval_that_makes_no_sense_is_refused_with_what_would() {
    check(&["run", "--interval", "1ms"], 64, &["1ms", "200ms"]);
    check(&["run", "--interval", "soon"], 64, &["soon", "`5s`"]);
    check(&["run", "--interval=-5s"], 64, &["-5s"]);
}

#[test]
fn an_unknown_probe_is_refused_with_those_there_are() {
    check(&["run", "--probe", "shed"], 64, &["`shed`", "sched"]);
    check(&["run", "--no-probe", "shed"], 64, &["`shed`", "sched"]);
}

#[test]
fn an_unknown_skill_is_a_usage_error() {
    check(
        &["skills", "scheduling"],
        64,
        &["`scheduling`", "lens skills"],
    );
    check(
        &["snapshot", "scheduling"],
        64,
        &["`scheduling`", "lens skills"],
    );
}

#[test]
fn an_address_or_a_time_that_is_none_is_a_usage_error() {
    check(
        &["probes", "--url", "localhost:9700"],
        64,
        &["http://127.0.0.1:9700"],
    );
    check(
        &["incidents", "--since", "yesterday"],
        64,
        &["yesterday", "2h"],
    );
}

#[test]
fn a_token_that_cannot_be_read_is_a_configuration_error() {
    check(
        &["run", "--token-file", "/no/such/token"],
        64,
        &["/no/such/token"],
    );
    check(&["run", "--token-env", "NO_SUCH"], 64, &["NO_SUCH"]);
    check(
        &["probes", "--token-file", "/no/such/token"],
        64,
        &["/no/such/token"],
    );
}

#[test]
fn without_root_the_line_to_type_is_printed() {
    let anybody = Anybody::new().unwrap();
    let said = anybody.said(&["run", "--cgroup", "/shop/*"]).unwrap();
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("  sudo "), "{said:?}");
    assert!(said.err.contains(" run --cgroup '/shop/*'\n"), "{said:?}");
    let said = anybody.said(&["snapshot", "--for", "1s"]).unwrap();
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.err.contains("  sudo ") && said.out.is_empty(),
        "{said:?}"
    );
}

#[test]
fn with_no_agent_and_no_state_there_is_nothing_to_show() {
    let advice = ["http://127.0.0.1:1", "/no/such/state", "lens run", "--url"];
    for list in ["incidents", "insights", "probes", "targets"] {
        check(&[list], 2, &advice);
        check(&[list, "--json"], 2, &advice);
    }
    check(&["agent", "tree"], 2, &advice);
}

#[test]
fn a_reader_who_has_gone_is_no_error() {
    for arguments in [&["skills"][..], &["skills", "--json"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = command(arguments).unwrap();
        let status = command.stdout(writer).status().unwrap();
        assert_eq!(status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn lists_are_one_array() {
    let said = said(&["skills", "--json"]).unwrap();
    let skills: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let ids: Vec<&str> = skills
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["id"].as_str().unwrap())
        .collect();
    assert!(ids.contains(&"scheduler"), "{ids:?}");
    assert_eq!(said.out.lines().count(), 1);
}
