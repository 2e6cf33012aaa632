//! Requests to a device are those that a program made, and who waited is told behind whom.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lens_agent::probes::{BlockCounters, DeviceIo, DeviceNumber, Holder, KernelReading};
use lens_tests::{cgroup::Cgroup, disk::Loop, not_run, root_or_say_not_run};

use crate::objects::{Nest, Work};

/// What `direct` transfers at once.
const BLOCK: u64 = 64 * 1024;
/// Length of the device.
const LENGTH: u64 = 64 << 20;

/// What the kernel says of a device: reads and writes that ended, bytes of both.
fn said(disk: &Loop) -> Result<[u64; 4]> {
    let stat = fs::read_to_string(format!("/sys/block/{}/stat", disk.name()))?;
    let fields: Vec<u64> = stat
        .split_ascii_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok([fields[0], fields[4], fields[2] * 512, fields[6] * 512])
}

fn device() -> Result<Option<Loop>> {
    if !root_or_say_not_run()? {
        return Ok(None);
    }
    let device = Loop::new(LENGTH)?;
    if device.is_none() {
        not_run("no loop device can be made")?;
    }
    Ok(device)
}

fn of(reading: &KernelReading, cgroup: &Cgroup) -> Result<BlockCounters> {
    let block = reading.block.as_ref().context("no reading")?;
    let counters = block.cgroups.get(&cgroup.id()?);
    Ok(counters.cloned().unwrap_or_default())
}

fn on(counters: &BlockCounters, device: DeviceNumber) -> DeviceIo {
    counters.devices.get(&device).cloned().unwrap_or_default()
}

/// The row of a cgroup sums to what its requests took.
fn check_row(counters: &BlockCounters) -> Result<()> {
    let row: u64 = counters.served.values().sum::<u64>() + counters.other_ns;
    let wait = counters.wait_ns();
    ensure!(row.abs_diff(wait) * 100 <= wait, "{row} of {wait}");
    Ok(())
}

#[test]
fn requests_are_those_that_were_made() -> Result<()> {
    let Some(disk) = device()? else {
        return Ok(());
    };
    let mut nest = Nest::new("block")?;
    let (busy, idle) = (nest.top.child("busy")?, nest.top.child("idle")?);
    let mut work = Work::start(&busy)?;
    let mut beside = Work::start(&idle)?;
    beside.run("calls 10 10")?;
    let (before, then) = (of(&nest.read(), &busy)?, said(&disk)?);
    work.run(&format!("direct {} 300 200", disk.device()))?;
    let now = said(&disk)?;
    let reading = nest.read();
    let counters = of(&reading, &busy)?;
    let io = on(&counters, disk.number()?);
    assert_eq!(on(&before, disk.number()?), DeviceIo::default());
    println!("{io:?}");
    assert_eq!((io.ios[0], io.ios[1]), (300, 200));
    assert_eq!((io.bytes[0], io.bytes[1]), (300 * BLOCK, 200 * BLOCK));
    let served = [0, 1, 2, 3].map(|i| now[i] - then[i]);
    assert_eq!(served, [io.ios[0], io.ios[1], io.bytes[0], io.bytes[1]]);
    assert_eq!((io.errors, io.under_way), (0, 0));
    assert!(io.device_ns > 0 && io.device_ns <= io.wait_ns, "{io:?}");
    assert_eq!(
        io.hist.iter().sum::<u64>(),
        io.ios.iter().sum::<u64>(),
        "a length for each"
    );
    check_row(&counters)?;
    let own = Holder::Cgroup(busy.id()?);
    let held = counters.served.get(&own).copied().unwrap_or_default();
    assert!(held * 10 >= counters.wait_ns() * 9, "alone: {counters:?}");
    // Where this host has its programs is its own affair.
    let beside_it = on(&of(&reading, &idle)?, disk.number()?);
    assert_eq!(beside_it, DeviceIo::default());
    nest.print_costs();
    work.end()?;
    beside.end()
}

#[test]
fn whose_requests_were_served_meanwhile() -> Result<()> {
    let Some(disk) = device()? else {
        return Ok(());
    };
    let mut nest = Nest::new("block")?;
    let (one, many) = (nest.top.child("one")?, nest.top.child("many")?);
    let mut victim = Work::start(&one)?;
    let mut others = (0..4)
        .map(|_| Work::start(&many))
        .collect::<Result<Vec<_>>>()?;
    for other in &mut others {
        other.begin(&format!("direct {} 900 900", disk.device()))?;
    }
    let before = of(&nest.read(), &one)?;
    victim.run(&format!("direct {} 300 300", disk.device()))?;
    let reading = nest.read();
    for other in &mut others {
        other.finish()?;
    }
    let counters = of(&reading, &one)?;
    check_row(&counters)?;
    let behind = |cgroup: &Cgroup| -> Result<u64> {
        let holder = Holder::Cgroup(cgroup.id()?);
        let of = |c: &BlockCounters| c.served.get(&holder).copied().unwrap_or_default();
        Ok(of(&counters).saturating_sub(of(&before)))
    };
    let (own, theirs) = (behind(&one)?, behind(&many)?);
    println!("own {own}, theirs {theirs} of {}", counters.wait_ns());
    assert!(theirs > own, "four to one: own {own}, theirs {theirs}");
    for other in others {
        other.end()?;
    }
    victim.end()
}
