//! Writing data to stdout: text for people, or JSON.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::Trouble;

/// Where data goes.
pub(super) struct Out(Box<dyn Write + Send>);

impl Out {
    pub(super) fn stdout() -> Self {
        Self(Box::new(io::stdout()))
    }

    /// One line of text.
    pub(super) fn line(&mut self, text: impl AsRef<str>) -> Result<(), Trouble> {
        writeln!(self.0, "{}", text.as_ref())?;
        self.0.flush()?;
        Ok(())
    }

    /// One JSON value on a line of its own.
    pub(super) fn json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Trouble> {
        let text = serde_json::to_string(value).map_err(io::Error::from)?;
        self.line(text)
    }

    /// Rows under headings, aligned.
    pub(super) fn table(&mut self, head: &[&str], rows: Vec<Vec<String>>) -> Result<(), Trouble> {
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(head.iter().map(|h| h.to_uppercase()));
        for row in rows {
            table.add_row(row);
        }
        let text = table.to_string();
        let trimmed: Vec<&str> = text
            .lines()
            .map(|l| l.trim_end().trim_start_matches(' '))
            .collect();
        self.line(trimmed.join("\n"))
    }
}

/// A number as people read it: four digits that matter.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if size >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}
