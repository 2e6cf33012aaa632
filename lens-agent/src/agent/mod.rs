//! Builds everything, wires it, and declares the supervision tree.
//!
//! ```text
//! probes --KernelReading--> host --Sample--> judge --> api, store
//! ```
//!
//! Each stage is a supervised child on a thread of its own, with a bounded queue before it. What
//! a stage has learned lives outside of it, so that a stage which fails goes on where it was.

mod attacher;
mod child;
mod closed;
mod inquire;
mod judge;
mod namer;
mod needed;
mod observe;
mod on_demand;
mod own;
pub(crate) mod records;

pub use self::{
    attacher::{Attacher, AttacherError, Refused},
    closed::{Door, close, close_namer, try_doors},
    namer::Namer,
};
pub(crate) use self::{
    inquire::{Inquirer, Inquiry, Tools},
    observe::{Look, watched},
};
use self::{judge::Judge, needed::Needed};

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    api::Api,
    base::{
        clock::{Clock, SystemClock},
        quality::Quality,
    },
    config::{Config, ConfigError, TOKEN_FILE},
    host::{self, HostReader, Root},
    investigate::{Insight, Strategy},
    outputs::http::{self, Token},
    probes::{self, Probes},
    store::{Store, StoreError, Writing},
    supervise::{Spec, Supervisor},
    telemetry::{Event, Telemetry},
};

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel's files cannot be read.
    #[error(transparent)]
    Host(#[from] host::ReadError),
    /// There is nothing to watch.
    #[error(
        "no cgroup hierarchy is mounted: lens counts by cgroup (mount cgroup2 on /sys/fs/cgroup)"
    )]
    NoCgroups,
    /// No probe can run.
    #[error(transparent)]
    Probes(#[from] probes::StartError),
    /// Nothing can be remembered.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A provider cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nobody could reach it.
    #[error(
        "cannot listen on {addr}: {why}; another agent may be running (choose another address with --listen)"
    )]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The system's answer.
        why: io::Error,
    },
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// The view of it.
    pub api: Api,
    /// Where it says what happens.
    pub telemetry: Telemetry,
    /// Where it listens.
    pub listening: SocketAddr,
    supervisor: Supervisor,
    store: Arc<Store>,
    writing: Arc<Writing>,
    /// Traces on demand, where it could be started.
    attacher: Option<Arc<Attacher>>,
    /// Names stacks, where a model may ask for them.
    namer: Option<Arc<Namer>>,
    judge: Arc<Shared<Judge>>,
}

/// Children that are to fail once, separated by commas.
const BREAK: &str = "LENS_INJECT_PANIC";
/// How long children may take to end.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// An agent with its probes attached and its address bound, closed for everything else, that
/// does not run yet.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    listener: TcpListener,
    listening: SocketAddr,
    host: HostReader,
    probes: Probes,
    quality: Quality,
    attacher: Option<Attacher>,
    namer: Option<Namer>,
}

impl Prepared {
    /// Does all that needs privileges, then gives them up. To be called while the process has one
    /// thread: others would keep theirs.
    pub fn new(mut config: Config) -> Result<Self, StartError> {
        let mut quality = Quality::default();
        let attacher = Attacher::start()
            .map_err(|why| quality.miss("attacher", why.to_string()))
            .ok();
        if let Some(attacher) = &attacher {
            quality.merge(attacher.not_closed());
        }
        let asks_models = config.strategy != Strategy::Offline && !config.providers.is_empty();
        let namer = asks_models.then(Namer::start).and_then(|namer| {
            namer
                .map_err(|why| quality.miss("namer", why.to_string()))
                .ok()
        });
        if let Some(namer) = &namer {
            quality.merge(namer.not_closed());
        }
        Store::make_directory(&config.state_dir)?;
        let cannot = |why| StartError::Listen {
            addr: config.listen,
            why,
        };
        let listener = TcpListener::bind(config.listen).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let listening = listener.local_addr().map_err(cannot)?;
        // Not before: another agent that has the address has left its own there.
        let token = config.state_dir.join(TOKEN_FILE);
        config.http.command_token = Token::make(&token)
            .map_err(|why| quality.miss("commands", format!("{}: {why}", token.display())))
            .ok();
        let host = HostReader::new(Root::default())?;
        let watched = watched(&host)?;
        let probes = Probes::start(&watched, &config.probes)?;
        probes::give_memory_back();
        close(&config.state_dir, &mut quality);
        Ok(Self {
            config,
            listener,
            listening,
            host,
            probes,
            quality,
            attacher,
            namer,
        })
    }
}

/// Beside a greedy neighbour a stage would starve as its victims do: it gets the most weight that
/// a normal task can have. It sleeps nearly all the time. Who answers requests does not get it:
/// then whoever asks much would starve others.
fn take_weight() {
    // SAFETY: takes numbers only; 0 is the calling thread.
    #[expect(unsafe_code, reason = "no safe wrapper for niceness")]
    let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    if set != 0 {
        tracing::warn!("cannot raise a stage's weight: readings may come late on a busy host");
    }
}

/// What works from the start, and what does not.
fn tell_how_it_began(telemetry: &Telemetry, store: &Store, probes: &Probes, quality: &Quality) {
    if let Some(aside) = store.moved_aside() {
        let why = format!(
            "the database was damaged; it is kept as {}",
            aside.display()
        );
        telemetry.emit(Event::StoreError { why });
    }
    for probe in probes.running() {
        telemetry.emit(Event::ProbeAttached {
            probe: probe.to_owned(),
        });
    }
    for refusal in probes.refused() {
        let (probe, why) = (refusal.probe.to_owned(), refusal.why.to_string());
        telemetry.emit(Event::ProbeFailed { probe, why });
    }
    for glob in probes.targets().unmatched() {
        telemetry.emit(Event::TargetsMissing { glob });
    }
    for open in &quality.missing {
        let (key, why) = (open.probe.clone(), open.why.clone());
        telemetry.emit(Event::ConfigWarning { key, why });
    }
}

impl Agent {
    /// Runs a prepared agent, within a tokio runtime.
    pub fn start(prepared: Prepared) -> Result<Self, StartError> {
        let Prepared {
            config,
            listener,
            listening,
            host,
            probes,
            quality,
            attacher,
            namer,
        } = prepared;
        let telemetry = Telemetry::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (store, writing) = Store::open_without_thread(&config.state_dir, &telemetry)?;
        let (store, writing) = (Arc::new(store), Arc::new(writing));
        tell_how_it_began(&telemetry, &store, &probes, &quality);
        let supervisor = Supervisor::new("lens", telemetry.clone(), clock.clone());
        let api = Api::new(telemetry.clone(), supervisor.clone());
        api.update_status(|status| {
            status.waiting_for = Some("the first snapshot".to_owned());
            status.started_at = Some(clock.now().wall);
            status.interval_ms = u64::try_from(config.interval.as_millis()).unwrap_or(u64::MAX);
            status.not_closed = quality.missing;
        });
        let (asks, asked) = crossbeam_channel::bounded(on_demand::QUEUE);
        let (inquiries, waiting) = mpsc::channel(inquire::QUEUE);
        let has_models = config.strategy != Strategy::Offline && !config.providers.is_empty();
        let needed = Needed::default();
        let judge = Arc::new(Shared::new(Judge::new(
            config.anomaly.clone(),
            api.clone(),
            store.clone(),
            telemetry.clone(),
            clock.clone(),
            judge::Demands {
                asks: asked,
                inquiries: has_models.then_some(inquiries),
                needed: needed.clone(),
            },
        )));
        let agent = Self {
            api,
            telemetry,
            listening,
            supervisor,
            store,
            writing,
            attacher: attacher.map(Arc::new),
            namer: namer.map(Arc::new),
            judge,
        };
        let writing = agent.writing.clone();
        agent
            .supervisor
            .blocking_child(Spec::permanent("store"), move |token| {
                writing.run(&|| token.is_cancelled());
                Ok::<(), io::Error>(())
            });
        if has_models {
            agent.inquire(&config, clock.clone(), waiting)?;
        }
        let providers = config.providers.iter().map(|p| p.name.clone());
        agent.api.set_on_demand(Arc::new(on_demand::OnDemand {
            providers: providers.filter(|_| has_models).collect(),
            asks,
            attacher: agent.attacher.clone(),
        }));
        agent.observe(config.interval, clock, (probes, needed), host);
        agent.serve(listener, config.http)?;
        agent.break_on_purpose();
        Ok(agent)
    }

    fn serve(&self, listener: TcpListener, config: http::Config) -> Result<(), StartError> {
        let addr = self.listening;
        let http = http::Server::new(self.api.clone(), listener, config)
            .map_err(|why| StartError::Listen { addr, why })?;
        if let Some(why) = http.shut() {
            let key = "listen".to_owned();
            self.telemetry.emit(Event::ConfigWarning { key, why });
        }
        self.supervisor
            .child(Spec::permanent("http"), move |token| {
                let http = http.clone();
                async move { http.serve(token).await }
            });
        Ok(())
    }

    /// For tests: each child that [`BREAK`] names fails once, as if it had panicked.
    fn break_on_purpose(&self) {
        let names = std::env::var(BREAK).unwrap_or_default();
        for name in names.split(',').filter(|n| !n.is_empty()) {
            if !self.supervisor.inject_panic(name) {
                tracing::warn!(name, "{BREAK} names no child");
            }
        }
    }

    fn observe(
        &self,
        interval: Duration,
        clock: Arc<dyn Clock>,
        probes: (Probes, Needed),
        host: HostReader,
    ) {
        let (readings, kernel) = crossbeam_channel::bounded(observe::QUEUE);
        let (samples, judged) = crossbeam_channel::bounded(observe::QUEUE);
        let judge = self.judge.clone();
        self.supervisor
            .blocking_child(Spec::permanent("judge"), move |token| {
                take_weight();
                observe::each(&token, &judged, |sample| judge.lock().look(&sample));
                Ok::<(), io::Error>(())
            });
        let stage = Shared::new(observe::Host::new(host, samples, self.telemetry.clone()));
        self.supervisor
            .blocking_child(Spec::permanent("host"), move |token| {
                take_weight();
                observe::each(&token, &kernel, |reading| stage.lock().read(reading));
                Ok::<(), io::Error>(())
            });
        let traces = self.attacher.as_ref().map(|attacher| attacher.latest());
        let stage = observe::Kernel::new(
            probes,
            traces.unwrap_or_default(),
            readings,
            self.api.clone(),
            self.telemetry.clone(),
        );
        let stage = Shared::new(stage);
        self.supervisor
            .blocking_child(Spec::permanent("probes"), move |token| {
                take_weight();
                observe::on_time(&token, interval, &*clock, |beat| match beat {
                    observe::Beat::Ahead => stage.lock().open_window(),
                    observe::Beat::Now(now) => stage.lock().read(now),
                });
                Ok::<(), io::Error>(())
            });
    }

    /// Starts the stage that asks models.
    fn inquire(
        &self,
        config: &Config,
        clock: Arc<dyn Clock>,
        waiting: mpsc::Receiver<Inquiry>,
    ) -> Result<(), ConfigError> {
        let group = self.supervisor.group("investigations");
        let tools = Tools {
            judge: self.judge.clone(),
            supervisor: group.clone(),
            clock,
            store: self.store.clone(),
            telemetry: self.telemetry.clone(),
            api: self.api.clone(),
            namer: self.namer.clone(),
        };
        let Some(inquirer) = Inquirer::connect(&config.providers, config.budget, tools)? else {
            return Ok(());
        };
        let stage = Arc::new((inquirer, tokio::sync::Mutex::new(waiting)));
        group.child(Spec::permanent("coordinator"), move |token| {
            let stage = stage.clone();
            async move {
                let (inquirer, waiting) = &*stage;
                let mut waiting = waiting.lock().await;
                loop {
                    let inquiry = tokio::select! {
                        () = token.cancelled() => return Ok::<(), io::Error>(()),
                        inquiry = waiting.recv() => inquiry,
                    };
                    let Some(inquiry) = inquiry else {
                        return Ok(());
                    };
                    // Each is logged, and told to who asked.
                    let _ = inquirer.work(inquiry, &token).await;
                }
            }
        });
        Ok(())
    }

    /// Runs until `stop` is cancelled, then ends everything.
    pub async fn run_until(self, stop: CancellationToken) {
        stop.cancelled().await;
        let stopped = self.supervisor.shutdown(SHUTDOWN).await;
        for child in stopped.aborted {
            tracing::warn!(child, "did not end in time");
        }
        let (writing, judge) = (self.writing, self.judge);
        // Waits for the disk.
        let kept = tokio::task::spawn_blocking(move || {
            judge.lock().keep(SystemClock.now());
            writing.finish();
        });
        if let Err(why) = kept.await {
            self.telemetry.emit(Event::StoreError {
                why: why.to_string(),
            });
        }
    }
}

/// What a stage keeps over a failure of its own.
#[derive(Debug)]
struct Shared<T>(Mutex<T>);

impl inquire::Hear for Shared<Judge> {
    fn hear(&self, insight: Insight) {
        self.lock().hear(insight);
    }
}

impl<T> Shared<T> {
    fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
