//! The guest's disk: a file system with the kernel's modules, lens, the tests, and what these use.
//!
//! Everything that the tests know by path lies there at the same path as here.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};

use super::kernel::Kernel;
use crate::{
    build,
    step::{Step, quoted},
    workspace,
};

/// Room for what tests write, besides what is there; a hole until then.
const SIZE: u64 = 2 << 30;

const INIT: &str = include_str!("init.sh");

/// Programs of this machine: the one that init wants, and those that tests start and busybox does not
/// have, or not like this. Where one of these is missing, the tests that want it say so.
const PROGRAMS: &[&str] = &[
    "/bin/busybox",
    "/usr/sbin/runqlat",
    "/usr/bin/stdbuf",
    "/usr/libexec/coreutils/libstdbuf.so",
    "/usr/sbin/ip",
    "/usr/sbin/tc",
    "/usr/sbin/losetup",
    "/usr/sbin/mkfs.ext4",
];

/// What runs in a guest.
#[derive(Debug)]
pub(super) struct Guest {
    lens: PathBuf,
    /// The kernel tests.
    tests: PathBuf,
    /// The programs that they start.
    loads: Vec<PathBuf>,
}

impl Guest {
    /// Builds lens and the tests, without any library that a guest would have to have.
    pub(super) fn build(lens: &Path) -> Result<Self> {
        let mut cargo = build::static_cargo("test");
        cargo.args(["--package=lens-tests", "--test=kernel", "--no-run"]);
        cargo.arg("--message-format=json-render-diagnostics");
        let said = Step::new("build the kernel tests for a guest").check(|| {
            let done = cargo.stderr(Stdio::inherit()).output();
            let done = done.context("cargo cannot be started")?;
            ensure!(done.status.success(), "cargo: {}", done.status);
            Ok(String::from_utf8(done.stdout)?)
        })?;
        let (mut tests, loads): (Vec<_>, Vec<_>) = executables(&said)?
            .into_iter()
            .partition(|built| built.is_test);
        let tests = tests.pop().context("cargo has built no tests")?.path;
        let loads = loads.into_iter().map(|built| built.path).collect();
        Ok(Self {
            lens: lens.to_owned(),
            tests,
            loads,
        })
    }

    /// Makes the disk of a guest with this `kernel`, which hands `arguments` to the tests.
    pub(super) fn image(&self, kernel: &Kernel, arguments: &[String], disk: &Path) -> Result<()> {
        let root = &kernel.root;
        for folder in [
            "bin", "dev", "etc", "proc", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin",
        ] {
            fs::create_dir_all(root.join(folder))?;
        }
        ensure!(Path::new(PROGRAMS[0]).exists(), "busybox is not installed");
        for program in PROGRAMS
            .iter()
            .map(Path::new)
            .filter(|program| program.exists())
        {
            place(program, root)?;
            for library in libraries(program)? {
                place(&library, root)?;
            }
        }
        for program in self.loads.iter().chain([&self.lens, &self.tests]) {
            place(program, root)?;
        }
        fs::write(root.join("settings"), self.settings(arguments))?;
        let init = root.join("init");
        fs::write(&init, INIT)?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        let file = fs::File::create(disk).with_context(|| disk.display().to_string())?;
        file.set_len(SIZE)?;
        Step::new("make the guest's disk").run(
            workspace::program("mke2fs")
                .args(["-q", "-t", "ext4", "-d"])
                .arg(root)
                .arg(disk),
        )
    }

    /// What init is told.
    fn settings(&self, arguments: &[String]) -> String {
        let arguments: Vec<_> = arguments.iter().map(|word| quoted(word)).collect();
        let must_run = env::var("LENS_TESTS_MUST_RUN").unwrap_or_default();
        let settings = [
            ("LENS_BIN", self.lens.to_string_lossy().into_owned()),
            ("TESTS", self.tests.to_string_lossy().into_owned()),
            ("ARGUMENTS", arguments.join(" ")),
            ("LENS_TESTS_MUST_RUN", must_run),
        ];
        let lines = settings.map(|(name, value)| format!("export {name}={}\n", quoted(&value)));
        lines.concat()
    }
}

/// A program that cargo has built.
#[derive(Debug, PartialEq)]
struct Built {
    path: PathBuf,
    is_test: bool,
}

/// The programs that cargo's messages tell of.
fn executables(messages: &str) -> Result<Vec<Built>> {
    let mut found = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if let Some(path) = message["executable"].as_str() {
            found.push(Built {
                path: path.into(),
                is_test: message["target"]["kind"][0] == "test",
            });
        }
    }
    Ok(found)
}

/// The libraries of a dynamic program, and what loads them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let said = workspace::program("ldd").arg(program).output();
    let said = said.context("ldd cannot be started")?;
    Ok(paths(&String::from_utf8_lossy(&said.stdout)))
}

/// Of lines like `libz.so.1 => /lib/libz.so.1 (0x7f...)` and `/lib64/ld-linux.so.2 (0x7f...)`.
fn paths(ldd: &str) -> Vec<PathBuf> {
    let words = ldd.split_ascii_whitespace();
    words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// Puts a file of this machine into the file system below `root`.
fn place(file: &Path, root: &Path) -> Result<()> {
    let to = root.join(file.strip_prefix("/")?);
    fs::create_dir_all(to.parent().unwrap_or(root))?;
    fs::copy(file, &to).with_context(|| format!("{} to {}", file.display(), to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_has_built_is_told_apart() -> Result<()> {
        let messages = r#"
{"reason":"compiler-artifact","target":{"kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"]},"executable":"/t/load"}
{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":"/t/deps/kernel-1"}
{"reason":"build-finished","success":true}"#;
        let built = |path: &str, is_test| Built {
            path: path.into(),
            is_test,
        };
        let found = [built("/t/load", false), built("/t/deps/kernel-1", true)];
        assert_eq!(executables(messages)?, found);
        Ok(())
    }

    #[test]
    fn libraries_are_those_with_a_path() {
        let said = "\tlinux-vdso.so.1 (0x7ffc)\n\
            \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x7f1)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x7f2)\n";
        let found = [
            "/lib/x86_64-linux-gnu/libz.so.1",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(paths(said), found.map(PathBuf::from));
    }
}
