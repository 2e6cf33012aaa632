//! `cargo xtask vm`: every probe and the kernel tests on other kernels than this machine's.
//!
//! Each kernel boots in QEMU, on a machine of nothing but cgroup v2, as PID 1 of which a script
//! ([`image`]) has `lens doctor` load and attach every probe, and then runs the same tests as the
//! part `kernel` of `cargo xtask test`. [`kernel`] finds the kernels, [`boot`] runs them, and
//! [`verdict`] reads what they said.

mod boot;
mod image;
mod kernel;
mod verdict;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

use self::{boot::Logs, image::Guest, kernel::Kernel, verdict::Verdict};
use crate::{build, counts::Counts, setup, step::Step, workspace};

/// Tests that stay outside, by the beginning of their names.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "story::",
        "what is normal has to be learned on a machine that keeps time",
    ),
    (
        "governed::",
        "what is normal has to be learned on a machine that keeps time",
    ),
    (
        "model::",
        "what is normal has to be learned on a machine that keeps time",
    ),
    (
        "block::whose_requests",
        "four processes have four times the requests of one where they run at the same time; the \
         CPUs of a guest take turns",
    ),
    (
        "trouble::",
        "the agent is the same on all kernels, and its many threads run code while the kernel \
         changes it, which QEMU before 8.1 may get wrong",
    ),
];

/// How many of the last lines of what a guest said are shown when it fails.
const TAIL: usize = 150;

/// Which kernels, and which tests on them.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Choice {
    /// Only the newest kernel of this series, like 6.12
    #[arg(long = "kernel", value_name = "SERIES")]
    kernels: Vec<String>,
    /// Only tests whose names hold this, also such as are left out otherwise
    #[arg(long, value_name = "FILTER")]
    only: Vec<String>,
}

/// What came of one kernel.
#[derive(Debug)]
pub(crate) enum Outcome {
    NotRun {
        what: String,
        why: &'static str,
    },
    Ran {
        counts: Counts,
        /// The kernel, and what is wrong with it.
        broken: Option<String>,
    },
}

pub(crate) fn vm(choice: &Choice) -> Result<ExitCode> {
    if let Some(why) = hindrance() {
        bail!("kernels cannot be tried here: {why}");
    }
    setup::ensure_build()?;
    if workspace::is_root() {
        setup::ensure_test()?;
    }
    let mut fine = true;
    for outcome in matrix(&build::release()?, choice)? {
        match outcome {
            Outcome::NotRun { what, why } => {
                eprintln!("NOT RUN: {what} ({why})");
                fine = false;
            }
            Outcome::Ran { broken, .. } => fine &= broken.is_none(),
        }
    }
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Why no other kernel can be tried here, whatever root could install.
pub(crate) fn hindrance() -> Option<&'static str> {
    if !workspace::is_debian() {
        return Some("the kernels are Debian's packages, and this is another system");
    }
    let there = workspace::succeeds(workspace::program(boot::QEMU).arg("--version"));
    (!there && !workspace::is_root()).then_some("there is no QEMU, and only root can install it")
}

/// Tries every kernel that was chosen, one after the other: each wants the whole machine.
pub(crate) fn matrix(lens: &Path, choice: &Choice) -> Result<Vec<Outcome>> {
    let guest = Guest::build(lens)?;
    let mut arguments = choice.only.clone();
    if arguments.is_empty() {
        for (name, why) in LEFT_OUT {
            eprintln!("left out of all guests: {name} ({why})");
            arguments.extend(["--skip".to_owned(), (*name).to_owned()]);
        }
    }
    let all = || kernel::SERIES.iter().map(|series| (*series).to_owned());
    let chosen = if choice.kernels.is_empty() {
        all().collect()
    } else {
        choice.kernels.clone()
    };
    chosen
        .iter()
        .map(|series| try_newest(series, &guest, &arguments))
        .collect()
}

fn try_newest(series: &str, guest: &Guest, arguments: &[String]) -> Result<Outcome> {
    let folder = workspace::target_dir().join("vm");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let Some(kernel) = Kernel::newest(series, &folder)? else {
        return Ok(Outcome::NotRun {
            what: format!("kernel {series}"),
            why: "apt offers none of that series",
        });
    };
    let log = |what| -> PathBuf { folder.join(format!("{series}.{what}.log")) };
    let logs = Logs {
        console: log("console"),
        tests: log("tests"),
    };
    let disk = folder.join(format!("{series}.disk"));
    guest.image(&kernel, arguments, &disk)?;
    let what = format!("kernel {}", kernel.release);
    let ended = Step::new(&what).check(|| boot::boot(&kernel, &disk, &logs));
    fs::remove_file(&disk)?;
    let said = fs::read_to_string(&logs.tests)?;
    let verdict = Verdict::parse(&said);
    for line in &verdict.not_run {
        eprintln!("{what}: {line}");
    }
    for lacking in &verdict.lacking {
        eprintln!("{what} lacks {lacking}");
    }
    let broken = ended.err().map(|why| format!("{why:#}"));
    let trouble: Vec<_> = broken.into_iter().chain(verdict.trouble()).collect();
    let Counts { passed, failed } = verdict.counts;
    if trouble.is_empty() {
        println!("{what}: ok. {passed} passed; {failed} failed");
    } else {
        show(&logs.tests, &said);
        show(&logs.console, &fs::read_to_string(&logs.console)?);
        println!(
            "{what}: FAILED. {passed} passed; {failed} failed; {}",
            trouble.join("; ")
        );
    }
    Ok(Outcome::Ran {
        counts: verdict.counts,
        broken: (!trouble.is_empty()).then(|| format!("{what}: {}", trouble.join("; "))),
    })
}

fn show(log: &Path, said: &str) {
    let lines: Vec<_> = said.lines().collect();
    eprintln!("the end of {}:", log.display());
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        eprintln!("    {}", line.trim_end());
    }
}
