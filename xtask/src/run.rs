//! `cargo xtask run`: builds lens and becomes it.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Error, Result};

use crate::{build, step, workspace};

/// Not root: the agent cannot load its kernel programs.
const NOT_ROOT: u8 = 2;

pub(crate) fn run(flags: &[String]) -> Result<ExitCode> {
    let lens = build::release()?;
    let mut command = Command::new(&lens);
    command.arg("run").args(flags);
    if !workspace::is_root() {
        eprintln!("lens needs root to load its kernel programs. Type:");
        eprintln!("    sudo {}", step::line(&command));
        return Ok(ExitCode::from(NOT_ROOT));
    }
    eprintln!("==> {}", step::line(&command));
    let why = command.exec();
    Err(Error::new(why).context(format!("{} cannot be started", lens.display())))
}
