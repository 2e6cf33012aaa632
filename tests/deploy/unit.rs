//! The unit of systemd.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::tools;

const UNIT: &str = "systemd/lens.service";

#[test]
fn the_unit_is_verified_without_a_word() -> Result<()> {
    let Some([analyze]) = tools::need(["systemd-analyze"])? else {
        return Ok(());
    };
    let unit = fs::read_to_string(tools::deploy().join(UNIT))?;
    let installed = "/usr/local/bin/lens";
    ensure!(
        unit.contains(&format!("ExecStart={installed} run\n")),
        "another ExecStart"
    );
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
        unit.replace(&format!("={installed} "), &format!("={built} ")),
    )?;
    let mut command = std::process::Command::new(analyze);
    let output = tools::said(command.args(["verify", "--man=no"]).arg(&copy))?;
    // Of an unknown directive it only warns.
    let words = String::from_utf8(output.stderr)?;
    assert_eq!(words, "");
    Ok(())
}
