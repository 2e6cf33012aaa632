//! What watching costs, beside nothing, programs that do nothing, and the peers that do the same job.
//! Run by `cargo xtask bench`; prints tables, and last one line of JSON.
//!
//! Absolute times are a machine's own. What holds elsewhere are ratios of one run: in each round every
//! observer has its turn, and the figures are medians over the rounds, with the range of the middle half.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports to a person"
)]

mod agent;
mod growth;
mod loops;
mod mixes;
mod table;
mod watching;

use std::env;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

/// Everything that is measured, in this order.
const PARTS: [&str; 4] = ["loops", "mixes", "growth", "agent"];

/// Says how far it has come.
fn say(what: &str) {
    eprintln!("{what}");
}

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let rounds: usize = arguments.next().context("how many rounds?")?.parse()?;
    let chosen: Vec<String> = arguments.collect();
    if let Some(unknown) = chosen.iter().find(|c| !PARTS.contains(&c.as_str())) {
        bail!(
            "there is no part `{unknown}`; there are: {}",
            PARTS.join(", ")
        );
    }
    let wants = |part: &str| chosen.is_empty() || chosen.iter().any(|c| c == part);
    let mut all = Map::new();
    all.insert("rounds".to_owned(), json!(rounds));
    for part in PARTS.into_iter().filter(|part| wants(part)) {
        let (text, value) = match part {
            "loops" => shown(&loops::measure(rounds)?),
            "mixes" => shown(&mixes::measure(rounds)?),
            "agent" => agent::measure()?,
            _ => growth::measure(rounds)?,
        };
        println!("{text}");
        all.insert(part.to_owned(), value);
    }
    println!("{}", Value::Object(all));
    Ok(())
}

fn shown(series: &[table::Series]) -> (String, Value) {
    let text: Vec<String> = series.iter().map(table::Series::markdown).collect();
    let values: Vec<Value> = series.iter().map(table::Series::json).collect();
    (text.join("\n"), Value::Array(values))
}
