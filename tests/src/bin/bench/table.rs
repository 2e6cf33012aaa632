//! Rows of figures, and how they are shown.

use serde_json::{Value, json};

/// What several measurements of one thing were.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// Median, and the range of the middle half.
    pub(crate) fn middle(&self) -> (f64, f64, f64) {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |part: usize| {
            let i = (sorted.len().saturating_sub(1)) * part / 4;
            sorted.get(i).copied().unwrap_or(f64::NAN)
        };
        (at(2), at(1), at(3))
    }

    pub(crate) fn median(&self) -> f64 {
        self.middle().0
    }

    /// Each against the one of the same round: what drifts from round to round is gone then.
    pub(crate) fn against(&self, base: &Self, how: impl Fn(f64, f64) -> f64) -> Self {
        let pairs = self.0.iter().zip(&base.0);
        Self(pairs.map(|(a, b)| how(*a, *b)).collect())
    }

    fn json(&self) -> Value {
        let (median, q1, q3) = self.middle();
        json!({ "median": median, "q1": q1, "q3": q3 })
    }
}

/// One thing that was measured beside several observers; the first of them is nobody.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) rows: Vec<(String, Figures)>,
}

impl Series {
    pub(crate) fn new(what: &str, unit: &'static str, observers: &[&str]) -> Self {
        let rows = observers.iter();
        Self {
            what: what.to_owned(),
            unit,
            rows: rows
                .map(|name| ((*name).to_owned(), Figures::default()))
                .collect(),
        }
    }

    fn base(&self) -> Figures {
        let first = self.rows.first();
        first
            .map(|(_, figures)| figures.clone())
            .unwrap_or_default()
    }

    /// As a table: the figure, what the observer adds to it and by what ratio, round by round.
    pub(crate) fn markdown(&self) -> String {
        let what = format!("{} ({})", self.what, self.unit);
        let middle = "middle half";
        let head = [&what, "median", middle, "added", middle, "ratio", middle];
        let base = self.base();
        let row = |(name, figures): &(String, Figures)| {
            let (median, q1, q3) = figures.middle();
            let (added, a1, a3) = figures.against(&base, |a, b| a - b).middle();
            let (ratio, r1, r3) = figures.against(&base, |a, b| a / b).middle();
            vec![
                name.clone(),
                format!("{median:.1}"),
                format!("{q1:.1} to {q3:.1}"),
                format!("{added:+.1}"),
                format!("{a1:+.1} to {a3:+.1}"),
                format!("{ratio:.3}"),
                format!("{r1:.3} to {r3:.3}"),
            ]
        };
        markdown(&head, self.rows.iter().map(row))
    }

    pub(crate) fn json(&self) -> Value {
        let base = self.base();
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(name, figures)| {
                json!({
                    "observer": name,
                    "figure": figures.json(),
                    "added": figures.against(&base, |a, b| a - b).json(),
                    "ratio": figures.against(&base, |a, b| a / b).json(),
                })
            })
            .collect();
        json!({ "what": self.what, "unit": self.unit, "rows": rows })
    }
}

/// A table of `rows` below a `head`.
pub(crate) fn markdown(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let mut lines = vec![
        line(head.iter().map(|&cell| cell.to_owned()).collect()),
        format!("|{}", "---|".repeat(head.len())),
    ];
    lines.extend(rows.into_iter().map(line));
    lines.join("\n") + "\n"
}
