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

use crate::{
    build,
    counts::{self, Counts},
    setup,
    step::Step,
    vm, workspace,
};

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
    /// Every probe and the kernel tests on other kernels, in virtual machines
    Vm,
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
        match part.hindrance(only) {
            Some(why) => tally.not_run(part.name(), why),
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
            Part::Vm => tally.guests(&lens),
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
            Self::Vm => "kernel matrix",
        }
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::Kernel | Self::Deploy | Self::Exam)
    }

    /// Why this part cannot run here.
    fn hindrance(self, only: Option<Self>) -> Option<&'static str> {
        if self.needs_root() && !workspace::is_root() {
            return Some("not root");
        }
        if self == Self::Exam && exam_script().is_none() {
            return Some("LENS_SHARED names no folder with faults/exam.py");
        }
        if self == Self::Vm {
            // Guests of QEMU 7.2 have died in code that the kernel was changing: a verdict of that kind
            // is no verdict on lens.
            return if only == Some(self) {
                vm::hindrance()
            } else {
                Some("it is run by itself, by `cargo xtask vm`")
            };
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
    counts: Counts,
    /// Lines to be read again at the end.
    not_run: Vec<String>,
    broken: Vec<String>,
}

impl Tally {
    fn not_run(&mut self, what: &str, why: &str) {
        let line = format!("NOT RUN: {what} ({why})");
        eprintln!("{line}");
        self.not_run.push(line);
    }

    /// Something failed that no test counted.
    fn broke(&mut self, why: String) {
        self.counts.failed += 1;
        self.broken.push(why);
    }

    fn cargo(&mut self, part: Part, arguments: &[&str], lens: &Path) {
        let mut command = workspace::cargo();
        command.args(["test", "--no-fail-fast"]).args(arguments);
        if part != Part::Unit {
            command.env("LENS_BIN", lens);
        }
        let before = self.counts;
        let outcome = Step::new(part.name()).watch(&mut command, |line| {
            self.counts += counts::of_line(line).unwrap_or_default();
        });
        match outcome {
            Ok(()) if self.counts == before => self.not_run(part.name(), "there are none"),
            Ok(()) => {}
            Err(why) if self.counts.failed == before.failed => self.broke(format!("{why:#}")),
            Err(why) => self.broken.push(format!("{why:#}")),
        }
    }

    /// The exam counts as one test.
    fn exam(&mut self, lens: &Path) {
        match exam(lens) {
            Ok(()) => self.counts.passed += 1,
            Err(why) => self.broke(format!("{why:#}")),
        }
    }

    /// The tests of all guests count, and each guest as one more that fails if it does not do.
    fn guests(&mut self, lens: &Path) {
        match vm::matrix(lens, &vm::Choice::default()) {
            Ok(outcomes) => {
                for outcome in outcomes {
                    self.guest(outcome);
                }
            }
            Err(why) => self.broke(format!("{why:#}")),
        }
    }

    fn guest(&mut self, outcome: vm::Outcome) {
        match outcome {
            vm::Outcome::NotRun { what, why } => self.not_run(&what, why),
            vm::Outcome::Ran { counts, broken } => {
                self.counts += counts;
                match broken {
                    None => {}
                    Some(why) if counts.failed == 0 => self.broke(why),
                    Some(why) => self.broken.push(why),
                }
            }
        }
    }

    /// Says again what deserves it, and closes with one line that counts.
    fn close(mut self, must_run: bool) -> ExitCode {
        if must_run {
            self.counts.failed += self.not_run.len() as u64;
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
        println!(
            "{} passed, {} failed",
            self.counts.passed, self.counts.failed
        );
        if self.counts.failed == 0 && self.broken.is_empty() {
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

    /// Three tests have passed.
    fn some() -> Tally {
        Tally {
            counts: Counts {
                passed: 3,
                failed: 0,
            },
            ..Tally::default()
        }
    }

    #[test]
    fn what_does_not_run_fails_only_when_it_must_run() {
        for (must_run, outcome) in [(false, ExitCode::SUCCESS), (true, ExitCode::FAILURE)] {
            let mut tally = some();
            tally.not_run("kernel tests", "not root");
            assert_eq!(tally.close(must_run), outcome);
        }
    }

    #[test]
    fn what_no_test_counted_fails_too() {
        let mut tally = some();
        tally.broke("step \"suite\" failed: it does not compile".to_owned());
        assert_eq!(tally.counts.failed, 1);
        assert_eq!(tally.close(false), ExitCode::FAILURE);
    }

    #[test]
    fn a_guest_that_dies_fails_although_no_test_of_it_did() {
        for (failed, sum) in [(0, 1), (2, 2)] {
            let mut tally = some();
            let counts = Counts { passed: 1, failed };
            tally.guest(vm::Outcome::Ran {
                counts,
                broken: Some("kernel 6.1: it died".to_owned()),
            });
            assert_eq!((tally.counts.passed, tally.counts.failed), (4, sum));
            assert_eq!(tally.close(false), ExitCode::FAILURE);
        }
    }
}
