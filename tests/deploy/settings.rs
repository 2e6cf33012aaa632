//! deploy/lens.toml: all that can be set, with its default, and nothing else.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use lens_agent::config::Settings;
use lens_tests::commands::{Said, command};

use super::tools;

/// A setting that stands in the file as a comment.
#[derive(Debug, PartialEq)]
struct Setting {
    /// The line of its table, such as `[budget]`; empty at the top.
    table: String,
    key: String,
    line: String,
}

/// Lines such as `#key = value`; a comment has a space after its `#`.
fn settings(text: &str) -> Vec<Setting> {
    let mut table = String::new();
    let mut found = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix('#')) {
        if line.starts_with('[') {
            line.clone_into(&mut table);
        } else if !line.starts_with(' ')
            && let Some((key, _)) = line.split_once(" = ")
        {
            found.push(Setting {
                table: table.clone(),
                key: key.to_owned(),
                line: line.to_owned(),
            });
        }
    }
    found
}

/// The keys that lens knows in a table, by its own words on one that it does not.
fn known(table: &str) -> Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("lens.toml");
    fs::write(&file, format!("{table}\nno_such_key = 1\n"))?;
    let why = Settings::from_file(Some(&file)).err();
    let why = why.context("an unknown key is no error")?.to_string();
    let (_, keys) = why.split_once("expected one of ").context(why.clone())?;
    Ok(keys
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect())
}

fn check(file: &Path) -> Result<Said> {
    let mut check = command(&["config", "check", "--config"])?;
    check.arg(file).env("LENS_TOKEN", "secret");
    Ok(check.output()?.into())
}

#[test]
fn every_setting_is_in_the_file() -> Result<()> {
    let there = settings(&fs::read_to_string(tools::deploy().join("lens.toml"))?);
    for table in ["", "[budget]", "[[provider]]"] {
        let of_table = there.iter().filter(|setting| setting.table == table);
        let mut there: Vec<&str> = of_table.map(|setting| setting.key.as_str()).collect();
        let known = known(table)?;
        // Tables are settings too.
        let is_table = |key: &&str| ["budget", "provider"].contains(key);
        let mut known: Vec<&str> = known.iter().map(String::as_str).collect();
        known.retain(|key| !(table.is_empty() && is_table(key)));
        known.sort_unstable();
        there.sort_unstable();
        assert_eq!(there, known, "settings of table `{table}`");
    }
    Ok(())
}

#[test]
fn every_setting_of_the_file_is_accepted() -> Result<()> {
    let path = tools::deploy().join("lens.toml");
    let said = check(&path)?;
    ensure!(said.code == Some(0), "{said:?}");
    let text = fs::read_to_string(path)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("lens.toml");
    let token = folder.path().join("token");
    fs::write(&token, "secret\n")?;
    let token = format!("token_file = {token:?}");
    // Of two places for one secret, one at a time.
    for without in [["token_env", "api_key_env"], ["token_file", "api_key_file"]] {
        let (mut lines, mut table) = (Vec::new(), String::new());
        for setting in settings(&text) {
            if setting.table != table {
                table.clone_from(&setting.table);
                lines.push(setting.table);
            }
            match setting.key.as_str() {
                key if without.contains(&key) => {}
                "token_file" => lines.push(token.clone()),
                _ => lines.push(setting.line),
            }
        }
        fs::write(&file, lines.join("\n"))?;
        let said = check(&file)?;
        ensure!(said.code == Some(0), "{said:?}\n{}", lines.join("\n"));
    }
    Ok(())
}

#[test]
fn the_values_are_the_defaults() -> Result<()> {
    let text = fs::read_to_string(tools::deploy().join("lens.toml"))?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("lens.toml");
    let examples = ["probe_log", "token_file", "token_env", "usd_per_day"];
    let (mut lines, mut table) = (Vec::new(), String::new());
    for setting in settings(&text) {
        if setting.table == "[[provider]]" || examples.contains(&setting.key.as_str()) {
            continue;
        }
        if setting.table != table {
            table.clone_from(&setting.table);
            lines.push(setting.table);
        }
        lines.push(setting.line);
    }
    fs::write(&file, lines.join("\n"))?;
    let written = Settings::from_file(Some(&file))?.resolve()?;
    let default = Settings::default().resolve()?;
    assert_eq!(format!("{written:#?}"), format!("{default:#?}"));
    Ok(())
}
