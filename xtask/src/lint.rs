//! `cargo xtask lint`: what a machine can see of the code's quality. All checks run; those that
//! failed are named at the end.

use std::{
    fs,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{layers, setup, step::Step, workspace};

/// What no tracked file holds. In two pieces, for this file is tracked as well.
const FORBIDDEN: &[(&[&str], &str)] = &[
    (&["/wo", "rk/"], "a path of one machine"),
    (&["/ro", "ot/"], "a path of one machine"),
    (&["tod", "o!"], "unfinished work"),
    (&["#[ign", "ore"], "a test that never runs"),
];

pub(crate) fn lint() -> Result<ExitCode> {
    setup::ensure_lint()?;
    setup::ensure_build()?;
    let checks = [
        Step::new("formatting")
            .advice("`cargo fmt --all` mends it")
            .run(workspace::cargo().args(["fmt", "--all", "--check"])),
        Step::new("clippy").run(workspace::cargo().args([
            "clippy",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ])),
        Step::new("clippy of the kernel programs").run(&mut kernel_clippy()),
        Step::new("layers")
            .check(|| nothing(&layers::check(&workspace::root().join("lens-agent/src"))?)),
        Step::new("machine paths and unfinished work").check(|| nothing(&tracked_files()?)),
    ];
    let failed: Vec<_> = checks.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let lines: Vec<_> = failed.iter().map(ToString::to_string).collect();
    bail!("{}", lines.join("\nerror: "))
}

/// Clippy knows no BPF target, so it looks at the kernel programs as if they were for the host:
/// without a panic handler of std's, and with the unstable features that they need.
fn kernel_clippy() -> Command {
    let mut clippy = workspace::cargo();
    clippy.args([
        "clippy",
        "--package",
        "lens-ebpf",
        "--lib",
        "--bins",
        "--target-dir",
    ]);
    clippy.arg(workspace::target_dir().join("ebpf-lint"));
    clippy.args(["--", "--deny", "warnings"]);
    clippy
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-C panic=abort");
    clippy.env_remove("CARGO_ENCODED_RUSTFLAGS");
    clippy
}

fn nothing(found: &[String]) -> Result<()> {
    ensure!(found.is_empty(), "\n  {}", found.join("\n  "));
    Ok(())
}

fn tracked_files() -> Result<Vec<String>> {
    let mut git = workspace::program("git");
    // The check also runs as root in somebody else's checkout.
    let listed = git
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .output();
    let listed = listed.context("git cannot be started")?;
    ensure!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr).trim()
    );
    let mut found = Vec::new();
    for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
        // A deleted file is listed until that is committed; a link has no text of its own.
        if let Ok(bytes) = fs::read(workspace::root().join(name)) {
            found.extend(forbidden(name, &String::from_utf8_lossy(&bytes)));
        }
    }
    Ok(found)
}

fn forbidden(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (pieces, why) in FORBIDDEN {
        let word = pieces.concat();
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| line.contains(&word));
        found.extend(lines.map(|(at, _)| format!("{name}:{}: `{word}`: {why}", at + 1)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_words_are_found_with_their_line() {
        let text = format!("fine\nlet x = {}o!();\n", "tod");
        let word = format!("{}o!", "tod");
        assert_eq!(
            forbidden("a.rs", &text),
            [format!("a.rs:2: `{word}`: unfinished work")]
        );
        assert!(forbidden("a.rs", "the word alone: todo").is_empty());
    }
}
