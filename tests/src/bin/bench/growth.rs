//! What an event and a reading cost with few and with many cgroups: a byte goes round through so many
//! processes, each in a cgroup of its own, all on one CPU.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Write as _},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use aya::programs::ProgramInfo;
use lens_agent::{
    base::clock::{Clock as _, SystemClock},
    probes::{Config, Globs, KernelReading, Probes},
};
use lens_tests::cgroup::Cgroup;
use serde_json::{Value, json};

use crate::{
    loops::{pin, unpin},
    table::{Figures, markdown},
    watching::{Empty, hooks_of, watched},
};

/// Cgroups that the byte goes through; the targets with numbers of their own are about 500.
const CGROUPS: [usize; 4] = [10, 100, 500, 1000];
/// Hops of one measurement.
const HOPS: usize = 60_000;
/// Programs whose runs are frequent enough here to be told.
const PROGRAMS: [&str; 3] = ["sched_switch", "sys_exit", "sys_enter"];

/// A ring of processes that hand a byte on; the bench itself closes it.
struct Ring {
    first: File,
    last: File,
    members: Vec<Child>,
    /// They go before the one that holds them.
    cgroups: Vec<Cgroup>,
    top: Cgroup,
}

impl Ring {
    fn of(n: usize) -> Result<Self> {
        let top = Cgroup::new("ring")?;
        let (mut from, first) = rustix::pipe::pipe()?;
        let (mut members, mut cgroups) = (Vec::new(), Vec::new());
        pin()?;
        for i in 0..n {
            let cgroup = top.child(&format!("member-{i}"))?;
            let (next, to) = rustix::pipe::pipe()?;
            let mut command = Command::new("cat");
            command.stdin(Stdio::from(from)).stdout(Stdio::from(to));
            members.push(cgroup.spawn(&mut command)?);
            cgroups.push(cgroup);
            from = next;
        }
        unpin()?;
        Ok(Self {
            first: first.into(),
            last: from.into(),
            members,
            cgroups,
            top,
        })
    }

    /// Hands a byte round until it has made so many hops.
    fn turn(&mut self, hops: usize) -> Result<()> {
        let mut byte = [7];
        for _ in 0..hops.div_ceil(self.cgroups.len()) {
            self.first.write_all(&byte)?;
            self.last.read_exact(&mut byte)?;
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for member in &mut self.members {
            // Our own child; it may have ended.
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// ns a run of each program in [`PROGRAMS`], as the kernel counts it.
type Runs = BTreeMap<&'static str, (u64, u64)>;

fn of_lens(probes: &mut Probes) -> Runs {
    let costs = probes.costs();
    let found = |name| {
        let cost = costs.values().flatten().find(|cost| cost.program == name)?;
        Some((name, (cost.runs, cost.run_ns)))
    };
    PROGRAMS.into_iter().filter_map(found).collect()
}

fn of_empty(empty: &Empty) -> Runs {
    let found = |name| {
        let info: ProgramInfo = empty.0.program(name)?.info().ok()?;
        let ns = u64::try_from(info.run_time().as_nanos()).ok()?;
        Some((name, (info.run_count(), ns)))
    };
    PROGRAMS.into_iter().filter_map(found).collect()
}

/// ns a run of `name` between the two.
fn between(before: &Runs, after: &Runs, name: &str) -> Option<f64> {
    let (before, after) = (before.get(name)?, after.get(name)?);
    let runs = after.0.checked_sub(before.0).filter(|runs| *runs != 0)?;
    Some(after.1.saturating_sub(before.1) as f64 / runs as f64)
}

/// What was measured with so many cgroups.
struct Row {
    cgroups: usize,
    lens: BTreeMap<&'static str, Figures>,
    empty: BTreeMap<&'static str, Figures>,
    reading_us: Figures,
    tables: KernelReading,
}

fn row(n: usize, rounds: usize) -> Result<Row> {
    let mut ring = Ring::of(n)?;
    let empty = Empty::at(hooks_of(&[])?)?;
    let config = Config {
        globs: Globs::new(&[format!("{}/**", ring.top.path())])?,
        // Nothing is reduced, whatever it costs.
        cpu_budget_percent: Some(100.0),
        ..Config::default()
    };
    let mut probes = Probes::start(&watched()?, &config)?;
    ring.turn(10 * n)?;
    let mut row = Row {
        cgroups: n,
        lens: BTreeMap::new(),
        empty: BTreeMap::new(),
        reading_us: Figures::default(),
        tables: probes.read(),
    };
    for _ in 0..rounds {
        probes.open_window();
        let (lens, nothing) = (of_lens(&mut probes), of_empty(&empty));
        ring.turn(HOPS)?;
        let (lens_after, nothing_after) = (of_lens(&mut probes), of_empty(&empty));
        for name in PROGRAMS {
            if let Some(ns) = between(&lens, &lens_after, name) {
                row.lens.entry(name).or_default().push(ns);
            }
            if let Some(ns) = between(&nothing, &nothing_after, name) {
                row.empty.entry(name).or_default().push(ns);
            }
        }
        let began = SystemClock.now();
        row.tables = probes.read();
        let took = SystemClock.now().since(&began);
        row.reading_us.push(took.as_nanos() as f64 / 1e3);
    }
    Ok(row)
}

/// Measures; what it prints, and the same as JSON.
pub(crate) fn measure(rounds: usize) -> Result<(String, Value)> {
    let mut rows = Vec::new();
    for n in CGROUPS {
        crate::say(&format!("growth: {n} cgroups"));
        rows.push(row(n, rounds)?);
    }
    let of_program = |name: &str| [format!("{name}, ns a run"), "of an empty one".to_owned()];
    let mut head = vec!["cgroups".to_owned()];
    head.extend(PROGRAMS.iter().flat_map(|name| of_program(name)));
    head.extend(["a reading of all probes, us", "middle half"].map(str::to_owned));
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let (mut lines, mut values) = (Vec::new(), Vec::new());
    for row in &rows {
        let mut line = vec![row.cgroups.to_string()];
        let mut programs = BTreeMap::new();
        for name in PROGRAMS {
            let lens = row.lens.get(name).context("no runs")?.median();
            let empty = row.empty.get(name).context("no runs")?.median();
            line.extend([format!("{lens:.0}"), format!("{empty:.0}")]);
            programs.insert(name, json!({ "lens_ns": lens, "empty_ns": empty }));
        }
        let (median, q1, q3) = row.reading_us.middle();
        line.extend([format!("{median:.0}"), format!("{q1:.0} to {q3:.0}")]);
        lines.push(line);
        values.push(json!({
            "cgroups": row.cgroups,
            "programs": programs,
            "reading_us": { "median": median, "q1": q1, "q3": q3 },
            "targets": row.tables.targets.len(),
            "lost": row.tables.quality.lost,
        }));
    }
    Ok((markdown(&head, lines), Value::Array(values)))
}
