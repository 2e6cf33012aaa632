//! `cargo xtask setup`: what building and linting lens need, installed where that is possible.
//!
//! First it looks what is missing. A [`Plan`] is the list of commands that would install it: it is
//! either run, or printed to be typed where this program may not or cannot run it.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};

use crate::{
    step::{Step, quoted},
    workspace,
};

/// A compiler with a prebuilt `core` for the BPF target.
const COMPILER_PACKAGES: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "rust-web-llvm",
];
/// What bpf-linker is built with.
const LINKER_PACKAGES: &[&str] = &[
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
];
/// What the tests and the exam use.
const TEST_PACKAGES: &[&str] = &[
    "stress-ng",
    "libbpf-tools",
    "prometheus",
    // deploy/: the image, a pod's network, the unit, and Python for those that check manifests
    "buildah",
    "iproute2",
    "systemd",
    "strace",
    "ca-certificates",
    "python3",
    "python3-venv",
    // guests with other kernels
    "qemu-system-x86",
    "busybox-static",
    "e2fsprogs",
];
/// What the benchmarks measure besides: servers and their clients.
const BENCH_PACKAGES: &[&str] = &[
    "redis-server",
    "redis-tools",
    "nginx-light",
    "wrk",
    "postgresql",
    "fio",
];
/// What checks manifests, as no distribution packages it.
const CHECKERS: &str = "tests/deploy/requirements.txt";

/// Where Debian's compiler has the `core` of the BPF target.
const PREBUILT_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none";

/// Packages are installed without questions, and no daemon starts because of it.
const QUIET: &[(&str, &str)] = &[("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1")];

pub(crate) fn setup() -> Result<ExitCode> {
    let build = ensure_build()?;
    let lint = ensure_lint()?;
    let said = if build || lint {
        "setup is complete"
    } else {
        "nothing is missing"
    };
    eprintln!("{said}");
    Ok(ExitCode::SUCCESS)
}

/// Whether anything had to be installed before lens can be built with its kernel programs.
pub(crate) fn ensure_build() -> Result<bool> {
    ensure(|| plan_build(&Machine::look()))
}

/// Whether anything had to be installed before lens can be linted.
pub(crate) fn ensure_lint() -> Result<bool> {
    ensure(|| {
        let lacks = |command| !workspace::succeeds(workspace::cargo().args([command, "--version"]));
        let components = [("fmt", "rustfmt"), ("clippy", "clippy")];
        let lacking = components.into_iter().filter(|(command, _)| lacks(command));
        plan_lint(lacking.map(|(_, component)| component).collect())
    })
}

/// Whether anything had to be installed before the tests can run. Elsewhere than on Debian nothing
/// is: there, a test whose tool is missing says so.
pub(crate) fn ensure_test() -> Result<bool> {
    ensure_packages(TEST_PACKAGES)
}

/// The same for the benchmarks.
pub(crate) fn ensure_bench() -> Result<bool> {
    Ok(ensure_test()? | ensure_packages(BENCH_PACKAGES)?)
}

fn ensure_packages(packages: &[&'static str]) -> Result<bool> {
    ensure(|| {
        let packages = if workspace::is_debian() {
            packages
        } else {
            &[]
        };
        Plan(apt(lacking(packages)))
    })
}

/// Installs what checks manifests into a folder below target, unless just that is there. Where that
/// fails, the tests that want it say so.
pub(crate) fn ensure_checkers() -> Result<()> {
    let wanted = workspace::root().join(CHECKERS);
    let folder = workspace::target_dir().join("checkers");
    let installed = folder.join("installed.txt");
    let text = fs::read(&wanted)?;
    if fs::read(&installed).is_ok_and(|there| there == text) {
        return Ok(());
    }
    Step::new("make a folder for what checks manifests")
        .advice("it takes python3 with venv (Debian: python3-venv)")
        .run(
            workspace::program("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&folder),
        )?;
    Step::new("install what checks manifests").run(
        workspace::program(folder.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(&wanted),
    )?;
    fs::write(installed, text)?;
    Ok(())
}

fn ensure(look: impl Fn() -> Plan) -> Result<bool> {
    let plan = look();
    if plan.0.is_empty() {
        return Ok(false);
    }
    plan.carry_out(workspace::is_root())?;
    let rest = look();
    if !rest.0.is_empty() {
        bail!("after all steps of the setup there is still something missing:\n{rest}");
    }
    Ok(true)
}

/// What can be seen of this machine's means to build kernel programs.
#[derive(Debug, Clone)]
struct Machine {
    debian: bool,
    /// Of [`COMPILER_PACKAGES`] and [`LINKER_PACKAGES`], those not installed.
    lacking: Vec<&'static str>,
    linker: bool,
    core: Core,
}

/// Where the `core` of the BPF target comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Core {
    Prebuilt,
    /// A rustup nightly with the component rust-src.
    Nightly,
    Nowhere,
}

impl Machine {
    fn look() -> Self {
        let debian = workspace::is_debian();
        let packages = [LINKER_PACKAGES, COMPILER_PACKAGES].concat();
        Self {
            debian,
            lacking: if debian {
                lacking(&packages)
            } else {
                Vec::new()
            },
            linker: workspace::succeeds(workspace::program("bpf-linker").arg("--version")),
            core: if Path::new(PREBUILT_CORE).exists() {
                Core::Prebuilt
            } else if nightly_has_source() {
                Core::Nightly
            } else {
                Core::Nowhere
            },
        }
    }
}

/// The same order as in lens-agent/build.rs: a linker, then Debian's `core`, then nightly's.
fn plan_build(machine: &Machine) -> Plan {
    if machine.linker && machine.core == Core::Nightly {
        return Plan::default();
    }
    if machine.debian {
        let needed = |package: &&&str| !machine.linker || COMPILER_PACKAGES.contains(*package);
        let mut actions = apt(machine.lacking.iter().filter(needed).copied().collect());
        if !machine.linker {
            actions.push(Action {
                what: "install bpf-linker (a few minutes)",
                environment: &[("LLVM_PREFIX", "/usr/lib/llvm-22")],
                words: split(
                    "cargo install bpf-linker@0.13.0 --no-default-features --features llvm-22",
                ),
                by: By::Anyone,
            });
        }
        return Plan(actions);
    }
    let mut actions = Vec::new();
    if machine.core == Core::Nowhere {
        let line = "rustup toolchain install nightly --component rust-src";
        actions.push(Action::by_hand("install core's source", line));
    }
    if !machine.linker {
        let linker = [
            "cargo install cargo-binstall",
            "cargo binstall bpf-linker@0.13.0",
        ];
        actions.extend(linker.map(|line| Action::by_hand("install bpf-linker", line)));
    }
    Plan(actions)
}

fn plan_lint(components: Vec<&'static str>) -> Plan {
    if components.is_empty() {
        return Plan::default();
    }
    Plan(vec![Action {
        what: "install rustfmt and clippy",
        environment: &[],
        words: [split("rustup component add"), components].concat(),
        by: By::Anyone,
    }])
}

fn apt(packages: Vec<&'static str>) -> Vec<Action> {
    if packages.is_empty() {
        return Vec::new();
    }
    let install = [
        split("apt-get install -y --no-install-recommends"),
        packages,
    ]
    .concat();
    let action = |what, words| Action {
        what,
        environment: QUIET,
        words,
        by: By::Root,
    };
    vec![
        action("update the list of packages", split("apt-get update")),
        action("install packages", install),
    ]
}

/// The commands that install what is missing, in order.
#[derive(Debug, Default)]
struct Plan(Vec<Action>);

#[derive(Debug)]
struct Action {
    what: &'static str,
    environment: &'static [(&'static str, &'static str)],
    words: Vec<&'static str>,
    by: By,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    Root,
    Anyone,
    /// Only by who sits here: it changes more than this project's needs.
    Hand,
}

impl Plan {
    fn carry_out(&self, root: bool) -> Result<()> {
        if self.0.iter().any(|action| action.by == By::Hand) {
            bail!("kernel programs cannot be built here yet. Type:\n{self}");
        }
        if !root && self.0.iter().any(|action| action.by == By::Root) {
            bail!("something is missing, and only root can install it. Type:\n{self}");
        }
        for action in &self.0 {
            let advice = "What else there is, and what to do without it: CONTRIBUTING.md, Set up";
            Step::new(action.what)
                .advice(advice)
                .run(&mut action.command())?;
        }
        Ok(())
    }
}

impl Action {
    fn by_hand(what: &'static str, line: &'static str) -> Self {
        Self {
            what,
            environment: &[],
            words: split(line),
            by: By::Hand,
        }
    }

    fn command(&self) -> Command {
        let mut command = match self.words.split_first() {
            Some((&"cargo", _)) | None => workspace::cargo(),
            Some((program, _)) => workspace::program(*program),
        };
        command
            .args(self.words.iter().skip(1))
            .envs(self.environment.iter().copied());
        command
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for action in &self.0 {
            writeln!(out, "    {action}")?;
        }
        write!(out, "and then the same command again.")
    }
}

/// As it is to be typed by somebody who isn't root.
impl fmt::Display for Action {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.by == By::Root {
            write!(out, "sudo ")?;
        } else {
            for (name, value) in self.environment {
                write!(out, "{name}={} ", quoted(value))?;
            }
        }
        let words: Vec<_> = self.words.iter().map(|word| quoted(word)).collect();
        write!(out, "{}", words.join(" "))
    }
}

fn split(line: &'static str) -> Vec<&'static str> {
    line.split(' ').collect()
}

/// Those of the packages that dpkg does not know as installed.
fn lacking(packages: &[&'static str]) -> Vec<&'static str> {
    let missing = |package: &&str| {
        let mut ask = workspace::program("dpkg-query");
        let said = ask
            .args(["--show", "--showformat=${db:Status-Status}", package])
            .output();
        !said.is_ok_and(|said| said.stdout == b"installed")
    };
    packages.iter().copied().filter(missing).collect()
}

fn nightly_has_source() -> bool {
    // `rustup run` installs nothing, unlike `rustc +nightly` with some versions of rustup.
    let mut ask = workspace::program("rustup");
    let said = ask
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output();
    said.is_ok_and(|said| {
        let sysroot = PathBuf::from(String::from_utf8_lossy(&said.stdout).trim());
        said.status.success()
            && sysroot
                .join("lib/rustlib/src/rust/library/Cargo.lock")
                .exists()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Machine = Machine {
        debian: true,
        lacking: Vec::new(),
        linker: false,
        core: Core::Nowhere,
    };

    fn fresh_debian() -> Machine {
        Machine {
            lacking: [LINKER_PACKAGES, COMPILER_PACKAGES].concat(),
            ..FRESH
        }
    }

    fn lines(machine: &Machine) -> Vec<String> {
        plan_build(machine)
            .0
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_fresh_debian_gets_packages_and_then_the_linker() {
        assert_eq!(
            lines(&fresh_debian()),
            [
                "sudo apt-get update",
                "sudo apt-get install -y --no-install-recommends llvm-22-dev libpolly-22-dev \
                 zlib1g-dev libzstd-dev rustc-web cargo-web libstd-rust-web-dev-bpf rust-web-llvm",
                "LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker@0.13.0 \
                 --no-default-features --features llvm-22",
            ]
        );
    }

    #[test]
    fn only_root_installs_packages() {
        let why = plan_build(&fresh_debian())
            .carry_out(false)
            .unwrap_err()
            .to_string();
        assert!(why.contains("only root can install it"), "{why}");
        assert!(why.contains("    sudo apt-get update\n"), "{why}");
    }

    #[test]
    fn a_linker_that_works_needs_nothing_to_be_built_with() {
        let machine = Machine {
            linker: true,
            ..fresh_debian()
        };
        assert_eq!(
            lines(&machine)[1..],
            [
                "sudo apt-get install -y --no-install-recommends rustc-web cargo-web \
              libstd-rust-web-dev-bpf rust-web-llvm"
            ]
        );
    }

    #[test]
    fn nothing_is_done_where_nothing_is_missing() {
        let debian = Machine {
            linker: true,
            core: Core::Prebuilt,
            ..FRESH
        };
        let nightly_on_debian = Machine {
            linker: true,
            core: Core::Nightly,
            ..fresh_debian()
        };
        let nightly = Machine {
            debian: false,
            lacking: Vec::new(),
            ..nightly_on_debian.clone()
        };
        for machine in [debian, nightly, nightly_on_debian] {
            assert!(plan_build(&machine).0.is_empty(), "{machine:?}");
        }
        assert!(plan_lint(Vec::new()).0.is_empty());
    }

    #[test]
    fn elsewhere_the_lines_are_printed_and_never_run() {
        let machine = Machine {
            debian: false,
            ..FRESH
        };
        assert_eq!(
            lines(&machine),
            [
                "rustup toolchain install nightly --component rust-src",
                "cargo install cargo-binstall",
                "cargo binstall bpf-linker@0.13.0",
            ]
        );
        assert!(plan_build(&machine).carry_out(true).is_err());
    }
}
