//! `cargo xtask test`: every test there is, in parts from the quickest to the slowest.
//!
//! A part that cannot run here is said loudly, and with `LENS_TESTS_MUST_RUN=1` it fails.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::{build, setup, step::Step, workspace};

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Part {
    /// What needs only its own crate
    Unit,
    /// What needs the binary, but not root
    Suite,
    /// What loads kernel programs (root)
    Kernel,
    /// What deploy/ holds: image, manifests, unit (root)
    Deploy,
    /// One real fault, diagnosed by a running agent (root; `LENS_SHARED` names where faults/ is)
    Exam,
}

const UNIT: &[&str] = &[
    "--package=lens-common",
    "--package=lens-agent",
    "--package=lens-tests",
    "--package=xtask",
    "--lib",
    "--bins",
];
const SUITE: &[&str] = &["--package=lens-tests", "--test=suite"];
const KERNEL: &[&str] = &[
    "--package=lens-tests",
    "--test=kernel",
    "--",
    "--test-threads=1",
];
const DEPLOY: &[&str] = &["--package=lens-tests", "--test=deploy"];

/// The faults of the exam that are sat with every test run, as a regular expression.
const EXAM: &str = "^cpu_neighbour$";

pub(crate) fn test(only: Option<Part>) -> Result<ExitCode> {
    let must_run = env::var_os("LENS_TESTS_MUST_RUN").is_some_and(|value| value == "1");
    let mut tally = Tally::default();
    let parts = Part::value_variants()
        .iter()
        .filter(|part| only.is_none_or(|o| o == **part));
    let mut runnable = Vec::new();
    for part in parts {
        match part.hindrance() {
            Some(why) => tally.not_run(*part, why),
            None => runnable.push(*part),
        }
    }
    setup::ensure_build()?;
    let needs_lens = runnable.iter().any(|part| *part != Part::Unit);
    // Others than root cannot install: there, a test whose tool is missing says so.
    if needs_lens && workspace::is_root() {
        setup::ensure_test()?;
    }
    if runnable.contains(&Part::Deploy)
        && let Err(why) = setup::ensure_checkers()
    {
        eprintln!("error: {why:#}");
    }
    let lens = if needs_lens {
        build::release()?
    } else {
        PathBuf::new()
    };
    for part in runnable {
        match part {
            Part::Unit => tally.cargo(part, UNIT, &lens),
            Part::Suite => tally.cargo(part, SUITE, &lens),
            Part::Kernel => tally.cargo(part, KERNEL, &lens),
            Part::Deploy => tally.cargo(part, DEPLOY, &lens),
            Part::Exam => tally.exam(&lens),
        }
    }
    Ok(tally.close(must_run))
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit tests",
            Self::Suite => "suite",
            Self::Kernel => "kernel tests",
            Self::Deploy => "deploy",
            Self::Exam => "exam",
        }
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::Kernel | Self::Deploy | Self::Exam)
    }

    /// Why this part cannot run here.
    fn hindrance(self) -> Option<&'static str> {
        if self.needs_root() && !workspace::is_root() {
            return Some("not root");
        }
        if self == Self::Exam && exam_script().is_none() {
            return Some("LENS_SHARED names no folder with faults/exam.py");
        }
        None
    }
}

fn exam_script() -> Option<PathBuf> {
    let script = workspace::root()
        .join(env::var_os("LENS_SHARED")?)
        .join("faults/exam.py");
    script.exists().then_some(script)
}

/// What came of the tests so far.
#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    /// Lines to be read again at the end.
    not_run: Vec<String>,
    broken: Vec<String>,
}

impl Tally {
    fn not_run(&mut self, part: Part, why: &str) {
        let line = format!("NOT RUN: {} ({why})", part.name());
        eprintln!("{line}");
        self.not_run.push(line);
    }

    /// Something failed that no test counted.
    fn broke(&mut self, why: String) {
        self.failed += 1;
        self.broken.push(why);
    }

    fn cargo(&mut self, part: Part, arguments: &[&str], lens: &Path) {
        let mut command = workspace::cargo();
        command.args(["test", "--no-fail-fast"]).args(arguments);
        if part != Part::Unit {
            command.env("LENS_BIN", lens);
        }
        let before = (self.passed, self.failed);
        let outcome = Step::new(part.name()).watch(&mut command, |line| self.line(line));
        match outcome {
            Ok(()) if (self.passed, self.failed) == before => self.not_run(part, "there are none"),
            Ok(()) => {}
            Err(why) if self.failed == before.1 => self.broke(format!("{why:#}")),
            Err(why) => self.broken.push(format!("{why:#}")),
        }
    }

    /// Adds a line like `test result: FAILED. 3 passed; 1 failed; 0 ignored; …`.
    fn line(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let counts = result.split_once(". ").map_or("", |(_, counts)| counts);
        for count in counts.split("; ") {
            match count.split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                _ => {}
            }
        }
    }

    /// The exam counts as one test.
    fn exam(&mut self, lens: &Path) {
        match exam(lens) {
            Ok(()) => self.passed += 1,
            Err(why) => self.broke(format!("{why:#}")),
        }
    }

    /// Says again what deserves it, and closes with one line that counts.
    fn close(mut self, must_run: bool) -> ExitCode {
        if must_run {
            self.failed += self.not_run.len() as u64;
        }
        for line in &self.not_run {
            eprintln!(
                "{line}{}",
                if must_run {
                    ", but LENS_TESTS_MUST_RUN=1"
                } else {
                    ""
                }
            );
        }
        for line in &self.broken {
            eprintln!("error: {line}");
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 && self.broken.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn exam(lens: &Path) -> Result<()> {
    let result = workspace::target_dir().join("exam.json");
    if result.exists() {
        fs::remove_file(&result).context("the result of an earlier exam")?;
    }
    let mut command = workspace::program("python3");
    command.args(exam_script()).arg("--lens").arg(lens);
    command.args(["--only", EXAM, "--json"]).arg(&result);
    Step::new("exam")
        .advice("what the agent said stands above")
        .run(&mut command)?;
    Step::new("score of the exam").check(|| {
        let text = fs::read_to_string(&result).context("the exam's result")?;
        let outcome: serde_json::Value = serde_json::from_str(&text)?;
        let score = outcome["total"]["score"]
            .as_f64()
            .context("the exam's result has no score")?;
        ensure!(
            score >= 1.0,
            "{score:.2} instead of 1.00; the rows are in {}",
            result.display()
        );
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_binaries_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 2 tests",
            "test a ... ok",
            "test result: ok. 21 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 0.00s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 1.50s",
            "  test result: ok. 100 passed; 0 failed",
        ] {
            tally.line(line);
        }
        assert_eq!((tally.passed, tally.failed), (24, 2));
    }

    #[test]
    fn what_does_not_run_fails_only_when_it_must_run() {
        for (must_run, outcome) in [(false, ExitCode::SUCCESS), (true, ExitCode::FAILURE)] {
            let mut tally = Tally {
                passed: 3,
                ..Tally::default()
            };
            tally.not_run(Part::Kernel, "not root");
            assert_eq!(tally.close(must_run), outcome);
        }
    }

    #[test]
    fn what_no_test_counted_fails_too() {
        let mut tally = Tally {
            passed: 3,
            ..Tally::default()
        };
        tally.broke("step \"suite\" failed: it does not compile".to_owned());
        assert_eq!(tally.failed, 1);
        assert_eq!(tally.close(false), ExitCode::FAILURE);
    }
}
