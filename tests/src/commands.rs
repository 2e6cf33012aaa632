//! Running the built binary: what it says, and how it ends.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::lens;

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: Option<i32>,
    /// Data.
    pub out: String,
    /// Everything else.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The binary with these arguments. No setting of whoever runs the tests comes in, and no agent
/// that may run here is asked, unless the arguments say so.
pub fn command(arguments: &[&str]) -> Result<Command> {
    let mut command = lens()?;
    apart(&mut command).args(arguments);
    Ok(command)
}

fn apart(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .env("LENS_URL", NOBODY)
        .env("LENS_STATE_DIR", "/no/such/state")
        .stdin(Stdio::null())
}

/// The binary on a kernel with other types: sees the file `btf` in place of the kernel's own, or
/// none. In a mount namespace of its own.
pub fn command_with_btf(btf: Option<&Path>) -> Result<Command> {
    const HERE: &str = "/sys/kernel/btf";
    let hide = match btf {
        Some(file) => format!("mount --bind '{}' {HERE}/vmlinux", file.display()),
        None => format!("mount -t tmpfs none {HERE}"),
    };
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(format!("{hide} && exec \"$0\" \"$@\""));
    command.arg(lens()?.get_program());
    apart(&mut command).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    Ok(command)
}

/// An address at which nobody listens: the port of a service that has not been seen for decades.
pub const NOBODY: &str = "http://127.0.0.1:1";

/// What the binary says to these arguments.
pub fn said(arguments: &[&str]) -> Result<Said> {
    Ok(command(arguments)?.output()?.into())
}

/// The binary as somebody who isn't root starts it.
#[derive(Debug)]
pub struct Anybody {
    binary: PathBuf,
    // Where the binary is may be hidden from others than root.
    copy: Option<TempDir>,
}

/// The user `nobody`.
const NOBODY_ID: u32 = 65534;

impl Anybody {
    /// Whoever runs the tests; `nobody` if that is root.
    pub fn new() -> Result<Self> {
        let binary = PathBuf::from(lens()?.get_program());
        if !rustix::process::geteuid().is_root() {
            let copy = None;
            return Ok(Self { binary, copy });
        }
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let copy = dir.path().join("lens");
        fs::copy(&binary, &copy).with_context(|| binary.display().to_string())?;
        Ok(Self {
            binary: copy,
            copy: Some(dir),
        })
    }

    /// What the binary says to these arguments.
    pub fn said(&self, arguments: &[&str]) -> Result<Said> {
        let mut command = Command::new(&self.binary);
        apart(&mut command).args(arguments);
        if self.copy.is_some() {
            command.uid(NOBODY_ID).gid(NOBODY_ID);
        }
        Ok(command.output()?.into())
    }
}
