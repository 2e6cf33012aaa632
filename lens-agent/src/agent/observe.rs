//! The stages that read: the kernel's counters, then the host's files.

use std::{collections::VecDeque, fs, path::PathBuf, sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use tokio_util::sync::CancellationToken;

use super::{StartError, attacher::Latest, needed::Needed, own::OwnClock};
use crate::{
    api::{Api, ProbeState, ProbeStatus, ProgramStatus, TargetStatus},
    base::{
        clock::{Clock, Moment},
        quality::Quality,
    },
    host::{self, Cgroup, HostReader},
    probes::{
        self, FunctionReading, KernelReading, LogLevel, LogLine, Measured, OomKill, Probes,
        ProgramCost, ledger::Costs, lifecycle::AbnormalExit,
    },
    skills::{OwnCost, Sample},
    telemetry::{Event, Telemetry},
};

/// Readings that may wait for a stage.
pub(super) const QUEUE: usize = 4;
/// How often a waiting stage looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(200);

/// Calls `take` for everything that comes, until `token` is cancelled.
pub(super) fn each<T>(token: &CancellationToken, from: &Receiver<T>, mut take: impl FnMut(T)) {
    while !token.is_cancelled() {
        match from.recv_timeout(GLANCE) {
            Ok(item) => take(item),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What it is time for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Beat {
    /// The next reading comes soon.
    Ahead,
    /// A reading.
    Now(Moment),
}

/// What programs cost is counted in this part of each interval, within these bounds.
const WINDOW_PART: u32 = 16;
const WINDOW_LEAST: Duration = Duration::from_millis(50);
const WINDOW_MOST: Duration = Duration::from_secs(1);

/// Calls `beat` every `interval`, on a grid: one that comes late moves none after it. And a while
/// ahead of each.
pub(super) fn on_time(
    token: &CancellationToken,
    interval: Duration,
    clock: &dyn Clock,
    mut beat: impl FnMut(Beat),
) {
    let window = (interval / WINDOW_PART).clamp(WINDOW_LEAST, WINDOW_MOST);
    let mut next = clock.now().mono;
    let mut announced = true;
    while !token.is_cancelled() {
        let now = clock.now();
        let left = next.saturating_sub(now.mono);
        if !left.is_zero() {
            let ahead = left.saturating_sub(window);
            if !announced && ahead.is_zero() {
                announced = true;
                beat(Beat::Ahead);
                continue;
            }
            let until = if announced { left } else { ahead };
            std::thread::park_timeout(until.min(GLANCE));
            continue;
        }
        beat(Beat::Now(now));
        announced = false;
        next += interval;
        if next < now.mono {
            // Too late for more than one: what is missed is not made up for.
            next = now.mono + interval;
        }
    }
}

/// The hierarchy whose cgroups are targets.
pub(crate) fn watched(reader: &HostReader) -> Result<probes::Watched, StartError> {
    let hierarchy = reader.hierarchy().ok_or(StartError::NoCgroups)?;
    let mount = hierarchy.watched_mount().ok_or(StartError::NoCgroups)?;
    let root: PathBuf = reader.root().path(&mount.dir);
    match &hierarchy.watched {
        host::Watched::V2 => Ok(probes::Watched {
            root,
            v1: None,
            id: 0,
        }),
        host::Watched::V1(controller) => {
            let id = v1_id(reader, controller).ok_or(StartError::NoCgroups)?;
            Ok(probes::Watched {
                root,
                v1: Some(controller.clone()),
                id,
            })
        }
    }
}

/// The kernel's number of a v1 hierarchy: the first field of its line in `/proc/self/cgroup`.
fn v1_id(reader: &HostReader, controller: &str) -> Option<u32> {
    let lines = fs::read_to_string(reader.root().path("/proc/self/cgroup")).ok()?;
    lines.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers) = (fields.next()?, fields.next()?);
        controllers
            .split(',')
            .any(|c| c == controller)
            .then(|| id.parse().ok())?
    })
}

/// Reads the probes.
#[derive(Debug)]
pub(super) struct Kernel {
    probes: Probes,
    traces: Latest,
    readings: Sender<Reading>,
    /// What of a reading that found no room cannot be read again.
    left: Left,
    api: Api,
    telemetry: Telemetry,
    needed: Needed,
    /// What kernel programs took in the last window that was measured.
    cost: OwnCost,
    lost: Quality,
    own: OwnClock,
}

/// Counters are read again; this is not.
#[derive(Debug, Default)]
struct Left {
    abnormal: Vec<AbnormalExit>,
    killed: Vec<OomKill>,
    function: Option<Arc<FunctionReading>>,
}

/// The name under which readings that a stage had no room for are counted as lost.
const SKIPPED: &str = "agent.readings";

/// A reading of the kernel, and what the agent itself has cost.
#[derive(Debug)]
pub(super) struct Reading {
    at: Moment,
    kernel: KernelReading,
    own: OwnCost,
}

impl Kernel {
    pub(super) fn new(
        (probes, needed): (Probes, Needed),
        traces: Latest,
        readings: Sender<Reading>,
        api: Api,
        telemetry: Telemetry,
    ) -> Self {
        let own = OwnClock::default();
        Self {
            probes,
            traces,
            readings,
            left: Left::default(),
            api,
            telemetry,
            needed,
            cost: OwnCost::default(),
            lost: Quality::default(),
            own,
        }
    }

    /// Reads everything once, and hands it on.
    pub(super) fn read(&mut self, now: Moment) {
        let mut kernel = self.probes.read();
        let left = std::mem::take(&mut self.left);
        kernel.function = self.traces.take().or(left.function);
        if let Some(lifecycle) = &mut kernel.lifecycle {
            lifecycle.abnormal.splice(..0, left.abnormal);
        }
        if let Some(reclaim) = &mut kernel.reclaim {
            reclaim.killed.splice(..0, left.killed);
        }
        self.probes.take_log().iter().for_each(say);
        for (map, n) in &kernel.quality.lost {
            let before = self.lost.lost.insert(map.clone(), *n).unwrap_or_default();
            if *n > before {
                let n = *n - before;
                self.telemetry.emit(Event::EventsLost {
                    map: map.clone(),
                    n,
                });
            }
        }
        let targets = kernel.targets.iter();
        self.api.put_targets(
            targets
                .map(|(id, path)| TargetStatus {
                    path: path.clone(),
                    id: *id,
                })
                .collect(),
        );
        self.govern(now);
        let own = self.show_probes(now);
        let reading = Reading {
            at: now,
            kernel,
            own,
        };
        if let Err(TrySendError::Full(reading)) = self.readings.try_send(reading) {
            skipped(&self.telemetry);
            let (lifecycle, reclaim) = (reading.kernel.lifecycle, reading.kernel.reclaim);
            self.left = Left {
                abnormal: lifecycle.map(|l| l.abnormal).unwrap_or_default(),
                killed: reclaim.map(|r| r.killed).unwrap_or_default(),
                function: reading.kernel.function,
            };
        }
    }

    /// A reading comes soon: until then the kernel counts what its programs cost.
    pub(super) fn open_window(&mut self) {
        self.probes.open_window();
    }

    /// Keeps the programs within their budget.
    fn govern(&mut self, now: Moment) {
        let Some(step) = self.probes.govern(now.mono, &self.needed.get()) else {
            return;
        };
        let probe = step.probe.to_owned();
        let to = step.reduction.map_or_else(
            || "everything".to_owned(),
            |reduction| reduction.to_string(),
        );
        self.telemetry.emit(if step.is_relief {
            Event::ProbeRelieved { probe, to }
        } else {
            Event::ProbeReduced { probe, to }
        });
    }

    /// Shows the probes, with what they cost in the window that the last reading closed.
    fn show_probes(&mut self, now: Moment) -> OwnCost {
        let own = self.own.cost(now);
        if let Some(measured) = self.probes.measured() {
            let shown: Vec<ProbeStatus> = probes::REGISTRY
                .iter()
                .map(|definition| self.show(definition, measured))
                .collect();
            let programs = || shown.iter().flat_map(|p| &p.programs);
            self.cost = OwnCost {
                kernel_cpu_percent: programs().map(|p| p.cpu_percent).sum(),
                kernel_runs_per_sec: programs().map(|p| p.runs_per_sec).sum(),
                map_bytes: shown.iter().map(|p| p.map_bytes).sum(),
                reduced_probes: shown.iter().filter(|p| !p.reductions.is_empty()).count(),
                ..own
            };
            self.api.put_probes(shown);
        }
        let cost = OwnCost {
            agent_cpu_percent: own.agent_cpu_percent,
            rss_bytes: own.rss_bytes,
            ..self.cost
        };
        self.api.update_status(|status| status.cost = cost);
        cost
    }

    fn show(&self, definition: &probes::Definition, measured: &Measured) -> ProbeStatus {
        let name = definition.name;
        let of = |costs: &Costs| costs.get(name).cloned().unwrap_or_default();
        let before = of(&measured.before);
        let then = |program: &str| before.iter().find(|b| b.program == program);
        let programs = of(&measured.after).into_iter().map(|now| {
            let then = then(&now.program);
            program(now, then, measured.elapsed)
        });
        let refused = self.probes.refused().iter().find(|r| r.probe == name);
        let state = if refused.is_some() {
            ProbeState::Refused
        } else if self.probes.running().any(|p| p == name) {
            ProbeState::Attached
        } else {
            ProbeState::Off
        };
        let reductions = self.probes.reductions(name).iter();
        ProbeStatus {
            name: name.to_owned(),
            title: definition.title.to_owned(),
            state,
            why: refused.map(|r| r.why.to_string()),
            blind: definition.blind.to_owned(),
            reductions: reductions.map(ToString::to_string).collect(),
            map_bytes: self.probes.map_bytes(name),
            programs: programs.collect(),
        }
    }
}

/// A stage is behind. The next reading covers the time, but not its maxima.
fn skipped(telemetry: &Telemetry) {
    telemetry.emit(Event::EventsLost {
        map: SKIPPED.to_owned(),
        n: 1,
    });
}

fn program(now: ProgramCost, then: Option<&ProgramCost>, elapsed: Duration) -> ProgramStatus {
    let ns = elapsed.as_nanos() as f64;
    let runs = now.runs.saturating_sub(then.map_or(0, |t| t.runs)) as f64;
    let run_ns = now.run_ns.saturating_sub(then.map_or(0, |t| t.run_ns)) as f64;
    let over = |amount: f64| {
        if ns > 0.0 && then.is_some() {
            amount / ns
        } else {
            0.0
        }
    };
    ProgramStatus {
        name: now.program,
        runs: now.runs,
        run_ns: now.run_ns,
        runs_per_sec: over(runs * 1e9),
        ns_per_run: (runs > 0.0).then(|| run_ns / runs),
        cpu_percent: over(run_ns * 100.0),
        verified_instructions: now.verified,
    }
}

/// Hands a line of the kernel programs on to the log.
fn say(line: &LogLine) {
    let (object, text) = (line.object, line.text.as_str());
    match line.level {
        LogLevel::Error => tracing::error!(object, "{text}"),
        LogLevel::Warn => tracing::warn!(object, "{text}"),
        // Who asked for them wants to see them, whatever else is logged.
        LogLevel::Info | LogLevel::Debug | LogLevel::Trace => tracing::info!(object, "{text}"),
    }
}

/// Reads the host's files for what the kernel reading is about.
#[derive(Debug)]
pub(super) struct Host {
    look: Look,
    samples: Sender<Arc<Sample>>,
    /// A trace whose sample found no room.
    function: Option<Arc<FunctionReading>>,
    telemetry: Telemetry,
}

impl Host {
    pub(super) fn new(
        reader: HostReader,
        samples: Sender<Arc<Sample>>,
        telemetry: Telemetry,
    ) -> Self {
        Self {
            look: Look::new(reader),
            samples,
            function: None,
            telemetry,
        }
    }

    /// Completes a reading, and hands it on.
    pub(super) fn read(&mut self, mut reading: Reading) {
        let function = self.function.take();
        reading.kernel.function = reading.kernel.function.or(function);
        let sample = self
            .look
            .complete(reading.kernel, reading.at, Some(reading.own));
        for missing in &sample.host.quality.missing {
            let (source, why) = (missing.probe.clone(), missing.why.clone());
            self.telemetry.emit(Event::ReadFailed { source, why });
        }
        // Abnormal exits and kills are remembered for longer than one sample.
        if let Err(TrySendError::Full(sample)) = self.samples.try_send(sample) {
            skipped(&self.telemetry);
            self.function.clone_from(&sample.kernel.function);
        }
    }
}

/// Completes kernel readings to samples.
#[derive(Debug)]
pub(crate) struct Look {
    reader: HostReader,
    abnormal: LastMinute<AbnormalExit>,
    killed: LastMinute<OomKill>,
}

/// What readings of the last minute brought, each with the time of its reading.
#[derive(Debug)]
struct LastMinute<T>(VecDeque<(Moment, T)>);

impl<T: Clone> LastMinute<T> {
    const LENGTH: Duration = Duration::from_mins(1);
    const MOST: usize = 1024;

    fn add<'a>(&mut self, at: Moment, new: impl Iterator<Item = &'a T>) -> Vec<T>
    where
        T: 'a,
    {
        self.0.extend(new.map(|one| (at, one.clone())));
        while self.0.len() > Self::MOST
            || self
                .0
                .front()
                .is_some_and(|(seen, _)| at.since(seen) > Self::LENGTH)
        {
            self.0.pop_front();
        }
        self.0.iter().map(|(_, one)| one.clone()).collect()
    }
}

impl Look {
    pub(crate) fn new(reader: HostReader) -> Self {
        Self {
            reader,
            abnormal: LastMinute(VecDeque::new()),
            killed: LastMinute(VecDeque::new()),
        }
    }

    /// Reads everything once.
    pub(crate) fn sample(&mut self, probes: &mut Probes, now: Moment) -> Arc<Sample> {
        let kernel = probes.read();
        self.complete(kernel, now, None)
    }

    fn complete(&mut self, kernel: KernelReading, at: Moment, own: Option<OwnCost>) -> Arc<Sample> {
        let mount = self
            .reader
            .hierarchy()
            .and_then(|h| h.watched_mount())
            .cloned();
        let dir_of = |path: &str| mount.as_ref().and_then(|m| m.dir_of(path));
        let targets: Vec<Cgroup> = kernel
            .targets
            .iter()
            .filter_map(|(id, path)| {
                let dir = dir_of(path)?;
                Some(Cgroup {
                    path: path.clone(),
                    id: *id,
                    dir,
                })
            })
            .collect();
        let host = self.reader.read(&targets, at);
        let exits = kernel.lifecycle.iter().flat_map(|l| &l.abnormal);
        let abnormal = self.abnormal.add(at, exits);
        let kills = kernel.reclaim.iter().flat_map(|r| &r.killed);
        let killed = self.killed.add(at, kills);
        Arc::new(Sample {
            at,
            kernel,
            host,
            abnormal,
            killed,
            own,
        })
    }
}
