//! Writes to the store in the directory that is named until it is killed; says when the first
//! incident and its insight are durable.

use std::path::Path;

use anyhow::{Context as _, Result};
use lens_agent::{store::Store, telemetry::Telemetry};
use lens_tests::sample;

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).context("which directory?")?;
    let store = Store::open(Path::new(&dir), &Telemetry::new())?;
    for n in 0_u64.. {
        let id = format!("killed-{n}");
        let incident = sample::incident(&id, "open")?;
        let insight = sample::insight(&id)?;
        let at = incident.opened_at;
        let bytes = serde_json::to_vec(&incident)?;
        store.put_now(sample::INCIDENT, &id, 1, at, bytes)?;
        let bytes = serde_json::to_vec(&insight)?;
        store.put_now(sample::INSIGHT, &insight.id, 1, at, bytes)?;
        if n == 0 {
            say("written")?;
        }
    }
    Ok(())
}

fn say(word: &str) -> Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout();
    writeln!(out, "{word}")?;
    Ok(out.flush()?)
}
