//! What the workload programs share that do one work after the other.

use std::io::{BufRead as _, Write as _};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// One line of a program's input: which work, and what it needs for it.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a>(&'a [&'a str]);

impl<'a> Line<'a> {
    /// The work's name.
    pub fn work(&self) -> &'a str {
        self.0.first().copied().unwrap_or_default()
    }

    /// The word behind it with this number, from 1 on.
    pub fn word(&self, i: usize) -> Result<&'a str> {
        self.0.get(i).copied().context("too few words")
    }

    /// The same, as a number.
    pub fn number(&self, i: usize) -> Result<u64> {
        Ok(self.word(i)?.parse()?)
    }
}

/// Says `ready`; then has each line of the input done, and answers with one line of JSON; ends with
/// the input.
pub fn serve(mut doing: impl FnMut(Line<'_>) -> Result<Value>) -> Result<()> {
    let out = std::io::stdout();
    writeln!(out.lock(), "ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let said = doing(Line(&words))?;
        writeln!(out.lock(), "{said}")?;
    }
    Ok(())
}
