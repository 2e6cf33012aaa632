//! The stages that read: the kernel's counters, then the host's files.

use std::{collections::VecDeque, fs, path::PathBuf, sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use tokio_util::sync::CancellationToken;

use super::{StartError, attacher::Latest, own::OwnClock};
use crate::{
    api::{Api, ProbeState, ProbeStatus, ProgramStatus, TargetStatus},
    base::{
        clock::{Clock, Moment},
        quality::Quality,
    },
    host::{self, Cgroup, HostReader},
    probes::{
        self, FunctionReading, KernelReading, LogLevel, LogLine, OomKill, Probes, ProgramCost,
        lifecycle::AbnormalExit,
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

/// Calls `read` every `interval`, on a grid: one that comes late moves none after it.
pub(super) fn on_time(
    token: &CancellationToken,
    interval: Duration,
    clock: &dyn Clock,
    mut read: impl FnMut(Moment),
) {
    let mut next = clock.now().mono;
    while !token.is_cancelled() {
        let now = clock.now();
        let left = next.saturating_sub(now.mono);
        if !left.is_zero() {
            std::thread::park_timeout(left.min(GLANCE));
            continue;
        }
        read(now);
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
    last: Option<(Moment, Costs)>,
    /// CPU time of all kernel programs, as a percentage of one CPU, when it was last counted.
    programs_percent: f64,
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

/// What each probe's programs have cost.
type Costs = Vec<(&'static str, Vec<ProgramCost>)>;

/// A reading of the kernel, and what the agent itself has cost.
#[derive(Debug)]
pub(super) struct Reading {
    at: Moment,
    kernel: KernelReading,
    own: OwnCost,
}

impl Kernel {
    pub(super) fn new(
        probes: Probes,
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
            last: None,
            programs_percent: 0.0,
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

    /// Shows the probes, with what they cost over the last interval in which that was counted.
    fn show_probes(&mut self, now: Moment) -> OwnCost {
        let costs = self.probes.costs();
        if self.last.is_none() || self.probes.is_measured() {
            let before = self.last.as_ref();
            let elapsed = before.map(|(at, _)| now.since(at)).unwrap_or_default();
            let none = Costs::new();
            let before = before.map_or(&none, |(_, costs)| costs);
            let shown: Vec<ProbeStatus> = probes::REGISTRY
                .iter()
                .map(|definition| self.show(definition, &costs, before, elapsed))
                .collect();
            let programs = shown.iter().flat_map(|p| &p.programs);
            self.programs_percent = programs.map(|p| p.cpu_percent).sum();
            self.api.put_probes(shown);
        }
        self.last = Some((now, costs));
        let mut cost = self.own.cost(now);
        cost.kernel_cpu_percent = self.programs_percent;
        self.api.update_status(|status| status.cost = cost);
        cost
    }

    fn show(
        &self,
        definition: &probes::Definition,
        costs: &Costs,
        before: &Costs,
        elapsed: Duration,
    ) -> ProbeStatus {
        let name = definition.name;
        let of = |costs: &Costs| {
            let own = costs.iter().find(|(probe, _)| *probe == name);
            own.map(|(_, costs)| costs.clone()).unwrap_or_default()
        };
        let before = of(before);
        let then = |program: &str| before.iter().find(|b| b.program == program);
        let programs = of(costs).into_iter().map(|now| {
            let then = then(&now.program);
            program(now, then, elapsed)
        });
        let refused = self.probes.refused().iter().find(|r| r.probe == name);
        let state = if refused.is_some() {
            ProbeState::Refused
        } else if self.probes.running().any(|p| p == name) {
            ProbeState::Attached
        } else {
            ProbeState::Off
        };
        ProbeStatus {
            name: name.to_owned(),
            title: definition.title.to_owned(),
            state,
            why: refused.map(|r| r.why.to_string()),
            blind: definition.blind.to_owned(),
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
