//! Writing data to stdout: text for people, or JSON.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
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
    pub(super) fn table(
        &mut self,
        columns: &[Column],
        rows: Vec<Vec<String>>,
    ) -> Result<(), Trouble> {
        self.line(table(columns, rows))
    }
}

/// A note beside the data, on stderr.
#[expect(clippy::print_stderr, reason = "what is no data goes there")]
pub(super) fn note(text: impl AsRef<str>) {
    eprintln!("lens: {}", text.as_ref());
}

/// An error if nobody can read stdout any more. Whoever has nothing to write for hours finds out
/// no other way.
pub(super) fn need_reader() -> Result<(), Trouble> {
    let stdout = io::stdout();
    let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec::default();
    let gone = PollFlags::ERR | PollFlags::HUP;
    match poll(&mut polled, Some(&at_once)) {
        Ok(_) if polled[0].revents().intersects(gone) => Err(Trouble::Pipe),
        _ => Ok(()),
    }
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    head: &'static str,
    align: CellAlignment,
}

/// A column of words.
pub(super) const fn words(head: &'static str) -> Column {
    Column {
        head,
        align: CellAlignment::Left,
    }
}

/// A column of numbers.
pub(super) const fn numbers(head: &'static str) -> Column {
    Column {
        head,
        align: CellAlignment::Right,
    }
}

fn table(columns: &[Column], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(columns.iter().map(|c| c.head.to_uppercase()))
        .add_rows(rows);
    for (column, wanted) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2)).set_cell_alignment(wanted.align);
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// A number as people read it: three digits that matter.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if size >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.1}")
    } else if size >= 0.001 {
        format!("{value:.3}")
    } else {
        format!("{value:.0e}")
    }
}

/// The value of a metric, whose name says its unit: bytes as people read them.
pub(super) fn amount(metric: &str, value: f64) -> String {
    const STEPS: [(f64, &str); 4] = [
        (1_099_511_627_776.0, "TiB"),
        (1_073_741_824.0, "GiB"),
        (1_048_576.0, "MiB"),
        (1024.0, "KiB"),
    ];
    let bytes = metric.ends_with("_bytes") || metric.ends_with("_bytes_per_sec");
    match STEPS.iter().find(|(step, _)| bytes && value.abs() >= *step) {
        Some((step, unit)) => format!("{:.1} {unit}", value / step),
        None => number(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_keep_their_indent() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = vec![row(["sched", "attached", ""]), row(["  switch", "", "12"])];
        let columns = [words("probe"), words("state"), numbers("runs/s")];
        let wanted = "PROBE     STATE     RUNS/S\n\
                      sched     attached\n  \
                      switch                12";
        assert_eq!(table(&columns, rows), wanted);
    }

    #[test]
    fn numbers_are_short_and_never_0_when_they_are_not() {
        for (value, wanted) in [
            (0.0, "0"),
            (12_345.6, "12346"),
            (12.34, "12.3"),
            (0.5, "0.500"),
            (0.0004, "4e-4"),
            (-3.0, "-3"),
        ] {
            assert_eq!(number(value), wanted);
        }
    }

    #[test]
    fn bytes_are_told_as_people_do() {
        assert_eq!(amount("rss_bytes", 23_303_282_688.0), "21.7 GiB");
        assert_eq!(amount("read_bytes_per_sec", 512.0), "512");
        assert_eq!(amount("threads_count", 5000.0), "5000");
    }
}
