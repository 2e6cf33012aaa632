//! What the suites share.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// The built binary: the one that `LENS_BIN` names, else the one in the target folder.
pub fn lens() -> Result<Command> {
    let built = || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let target = root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
        let found = ["release/lens", "debug/lens"].map(|name| target.join(name));
        found.into_iter().find(|path| path.exists())
    };
    let path = env::var_os("LENS_BIN").map(PathBuf::from).or_else(built);
    Ok(Command::new(path.context(
        "there is no lens to test: `cargo xtask build` builds it",
    )?))
}
