//! The memory that lens takes in the kernel.

use anyhow::{Result, ensure};
use lens_agent::probes::{Config, MapMemory, Probes, Watched};
use lens_tests::{cgroup::Hierarchy, root_or_say_not_run};

const MIB: u64 = 1 << 20;

/// What the maps of all probes take, made for so many possible CPUs.
fn memory_with(cpus: Option<usize>) -> Result<MapMemory> {
    let watched = Watched {
        root: Hierarchy::of_host()?.root,
        v1: None,
        id: 0,
    };
    let config = Config {
        force_cpus: cpus,
        ..Config::default()
    };
    let probes = Probes::start(&watched, &config)?;
    ensure!(probes.refused().is_empty(), "{:?}", probes.refused());
    Ok(probes.map_memory())
}

#[test]
fn maps_stay_within_their_bounds_and_their_formula_holds() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let here = memory_with(None)?;
    let large = memory_with(Some(256))?;
    println!("{}\n{}", here.formula(), large.formula());
    assert!(here.bytes_with(2) <= 32 * MIB, "{here:?}");
    assert!(large.bytes() <= 256 * MIB, "{large:?}");
    let reckoned = here.bytes_with(256) as f64 / large.bytes() as f64;
    assert!((0.98..1.02).contains(&reckoned), "{here:?} {large:?}");
    Ok(())
}
