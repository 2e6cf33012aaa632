//! The unit of systemd: whether it is valid, and whether it leaves the agent what it needs.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lens_tests::{http, until};

use super::{image::START, process::Process, tools};

fn unit() -> Result<String> {
    Ok(fs::read_to_string(
        tools::deploy().join("systemd/lens.service"),
    )?)
}

/// The words of all lines of a directive.
fn words<'u>(unit: &'u str, directive: &str) -> Vec<&'u str> {
    let values = unit
        .lines()
        .filter_map(|line| line.strip_prefix(directive)?.strip_prefix('='));
    values.flat_map(str::split_whitespace).collect()
}

#[test]
fn the_unit_is_verified_without_a_word() -> Result<()> {
    let Some([analyze]) = tools::need(["systemd-analyze"])? else {
        return Ok(());
    };
    let unit = unit()?;
    assert_eq!(words(&unit, "ExecStart"), ["/usr/local/bin/lens", "run"]);
    // It wants to see the program, which is not installed here.
    let built = lens_tests::lens()?;
    let built = built
        .get_program()
        .to_str()
        .context("a path that is no text")?;
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("lens.service");
    fs::write(
        &copy,
        unit.replace("/usr/local/bin/lens run", &format!("{built} run")),
    )?;
    let output = tools::said(
        Command::new(analyze)
            .args(["verify", "--man=no"])
            .arg(&copy),
    )?;
    // Of an unknown directive it only warns.
    assert_eq!(String::from_utf8(output.stderr)?, "");
    Ok(())
}

/// What the doctor found to be as it should.
fn found_by(doctor: &mut Command) -> Result<BTreeSet<String>> {
    let output = doctor.args(["doctor", "--json"]).output()?;
    let checks: Vec<serde_json::Value> =
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let fine = checks.iter().filter(|check| check["ok"] == true);
    Ok(fine.map(|check| check["name"].to_string()).collect())
}

#[test]
fn the_capabilities_of_the_unit_are_enough_for_every_probe() -> Result<()> {
    if !lens_tests::root_or_say_not_run()? {
        return Ok(());
    }
    let Some([setpriv]) = tools::need(["setpriv"])? else {
        return Ok(());
    };
    let unit = unit()?;
    let kept = words(&unit, "CapabilityBoundingSet");
    let known = tools::run(&setpriv, ["--list-caps"])?;
    let lost = known.lines().filter(|cap| {
        let name = format!("CAP_{}", cap.to_ascii_uppercase());
        !kept.contains(&name.as_str())
    });
    let lost: Vec<String> = lost.map(|cap| format!("-{cap}")).collect();
    let mut less = Command::new(setpriv);
    less.arg(format!("--bounding-set={}", lost.join(",")));
    less.arg("--no-new-privs")
        .arg(lens_tests::lens()?.get_program());
    assert_eq!(found_by(&mut less)?, found_by(&mut lens_tests::lens()?)?);
    Ok(())
}

/// The calls in a set of systemd's, and in the sets that it is made of.
fn calls(analyze: &Path, set: &str, into: &mut BTreeSet<String>) -> Result<()> {
    let text = tools::run(analyze, ["syscall-filter", set])?;
    for word in text.lines().skip(1).map(str::trim) {
        if word.starts_with('@') {
            calls(analyze, word, into)?;
        } else if !word.starts_with('#') {
            into.insert(word.to_owned());
        }
    }
    Ok(())
}

/// The calls in a summary of strace, once it is complete.
fn made(summary: &str) -> Option<BTreeSet<&str>> {
    let (_, table) = summary.split_once("---\n")?;
    let (table, total) = table.split_once("\n---")?;
    total.ends_with(" total\n").then_some(())?;
    table
        .lines()
        .map(|line| line.split(' ').next_back())
        .collect()
}

#[test]
fn the_unit_allows_every_call_that_the_agent_makes() -> Result<()> {
    if !lens_tests::root_or_say_not_run()? {
        return Ok(());
    }
    let Some([analyze, strace]) = tools::need(["systemd-analyze", "strace"])? else {
        return Ok(());
    };
    let mut allowed = BTreeSet::new();
    for word in words(&unit()?, "SystemCallFilter") {
        if word.starts_with('@') {
            calls(&analyze, word, &mut allowed)?;
        } else {
            allowed.insert(word.to_owned());
        }
    }
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("calls");
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    // With -D the process that is started is the agent.
    let mut agent = Command::new(strace);
    agent.args(["-D", "-f", "-c", "-o"]).arg(&log);
    agent.arg(lens_tests::lens()?.get_program());
    agent.args([
        "run",
        "--interval",
        "500ms",
        "--listen",
        &address.to_string(),
    ]);
    agent.arg("--state-dir").arg(folder.path().join("state"));
    agent.stdin(Stdio::null()).stdout(Stdio::null());
    let words = folder.path().join("words");
    let mut agent = Process(agent.stderr(File::create(&words)?).spawn()?);
    let ready = until("ready", START, || {
        http::ask(address, "/readyz").is_ok_and(|answer| answer.status == 200)
    });
    ready.with_context(|| fs::read_to_string(&words).unwrap_or_default())?;
    let code = agent.stop()?;
    ensure!(code == Some(0), "the agent ended with {code:?}");
    let summary = || fs::read_to_string(&log).unwrap_or_default();
    until("the summary", START, || made(&summary()).is_some())?;
    let summary = summary();
    let made = made(&summary).context("no summary")?;
    ensure!(made.len() > 30, "strange: {made:?}");
    let refused: Vec<_> = made
        .iter()
        .filter(|call| !allowed.contains(**call))
        .collect();
    assert_eq!(refused, Vec::<&&str>::new());
    Ok(())
}

#[test]
fn calls_are_read_from_a_summary() {
    let whole = "% time     seconds  usecs/call     calls    errors syscall\n\
        ------ ----------- ----------- --------- --------- ----------------\n \
        70.00    0.000010          10         1         1 bpf\n \
        30.00    0.000005           5         1           openat\n\
        ------ ----------- ----------- --------- --------- ----------------\n\
        100.00    0.000015           7         2         1 total\n";
    assert_eq!(made(whole), Some(BTreeSet::from(["bpf", "openat"])));
    assert_eq!(made(&whole[..whole.len() - 40]), None);
}
