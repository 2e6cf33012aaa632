//! `enter_container SPEC`: becomes the program of a container; SPEC is a `Container` as JSON.

mod container;

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let spec = std::env::args().nth(1).context("no container is named")?;
    let container: container::Container = serde_json::from_str(&spec)?;
    match container.enter()? {}
}
