//! Builds everything, wires it, and declares the supervision tree.
//!
//! ```text
//! probes --KernelReading--> host --Sample--> judge --> api, store
//! ```
//!
//! Each stage is a supervised child on a thread of its own, with a bounded queue before it. What
//! a stage has learned lives outside of it, so that a stage which fails goes on where it was.

mod attacher;
mod closed;
mod inquire;
mod judge;
mod observe;
mod own;
pub(crate) mod records;

pub(crate) use self::observe::{Look, watched};
pub use self::{
    attacher::{Attacher, AttacherError, Refused},
    closed::{close, try_doors},
};

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    api::Api,
    base::{
        clock::{Clock, SystemClock},
        quality::Quality,
    },
    config::{Config, ConfigError, Strategy},
    host::{self, HostReader, Root},
    investigate::scene::Scene,
    outputs::http,
    probes::{self, Probes},
    store::{Store, StoreError},
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
    /// Traces on demand, where it could be started.
    attacher: Option<Attacher>,
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
}

impl Prepared {
    /// Does all that needs privileges, then gives them up. To be called while the process has one
    /// thread: others would keep theirs.
    pub fn new(config: Config) -> Result<Self, StartError> {
        let mut quality = Quality::default();
        let attacher = Attacher::start()
            .map_err(|why| quality.miss("attacher", why.to_string()))
            .ok();
        Store::make_directory(&config.state_dir)?;
        let cannot = |why| StartError::Listen {
            addr: config.listen,
            why,
        };
        let listener = TcpListener::bind(config.listen).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let listening = listener.local_addr().map_err(cannot)?;
        let host = HostReader::new(Root::default())?;
        let watched = watched(&host)?;
        let probes = Probes::start(&watched, &config.probes)?;
        give_memory_back();
        // Not before: reading the kernel's types would take the CPU away from those who need it.
        take_weight();
        close(&config.state_dir, &mut quality);
        Ok(Self {
            config,
            listener,
            listening,
            host,
            probes,
            quality,
            attacher,
        })
    }
}

/// Beside a greedy neighbour the agent would starve as its victims do: it gets the most weight
/// that a normal task can have; threads made later inherit it. They sleep nearly all the time.
fn take_weight() {
    // SAFETY: takes numbers only; 0 is the calling thread, the only one.
    #[expect(unsafe_code, reason = "no safe wrapper for niceness")]
    let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    if set != 0 {
        tracing::warn!("cannot raise the agent's weight: readings may come late on a busy host");
    }
}

/// Reading the kernel's types takes tens of megabytes for a moment; the allocator would keep them.
fn give_memory_back() {
    // SAFETY: takes a number, and touches only what nobody uses.
    #[expect(unsafe_code, reason = "no safe wrapper for malloc_trim")]
    let _ = unsafe { libc::malloc_trim(0) };
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
        } = prepared;
        let telemetry = Telemetry::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = Arc::new(Store::open(&config.state_dir, &telemetry)?);
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
        let supervisor = Supervisor::new("lens", telemetry.clone(), clock.clone());
        let api = Api::new(telemetry.clone(), supervisor.clone());
        api.update_status(|status| {
            status.waiting_for = Some("the first snapshot".to_owned());
            status.started_at = Some(clock.now().wall);
            status.not_closed = quality.missing;
        });
        let agent = Self {
            api,
            telemetry,
            listening,
            supervisor,
            store,
            attacher,
        };
        agent.observe(&config, clock, probes, host)?;
        let http = http::Server::new(agent.api.clone(), listener, config.http).map_err(|why| {
            StartError::Listen {
                addr: listening,
                why,
            }
        })?;
        if let Some(why) = http.shut() {
            let key = "listen".to_owned();
            agent.telemetry.emit(Event::ConfigWarning { key, why });
        }
        agent
            .supervisor
            .child(Spec::permanent("http"), move |token| {
                let http = http.clone();
                async move { http.serve(token).await }
            });
        agent.break_on_purpose();
        Ok(agent)
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
        config: &Config,
        clock: Arc<dyn Clock>,
        probes: Probes,
        host: HostReader,
    ) -> Result<(), ConfigError> {
        let (readings, kernel) = crossbeam_channel::bounded(observe::QUEUE);
        let (samples, judged) = crossbeam_channel::bounded(observe::QUEUE);
        let (inquiries, scenes) = tokio::sync::mpsc::channel(inquire::QUEUE);
        let inquiries = self
            .inquire(config, clock.clone(), scenes)?
            .then_some(inquiries);
        let judge = judge::Judge::new(
            config.anomaly.clone(),
            self.api.clone(),
            self.store.clone(),
            self.telemetry.clone(),
            clock.clone(),
            inquiries,
        );
        let judge = Shared::new(judge);
        self.supervisor
            .blocking_child(Spec::permanent("judge"), move |token| {
                observe::each(&token, &judged, |sample| judge.lock().look(&sample));
                Ok::<(), io::Error>(())
            });
        let stage = Shared::new(observe::Host::new(host, self.telemetry.clone()));
        self.supervisor
            .blocking_child(Spec::permanent("host"), move |token| {
                observe::each(&token, &kernel, |reading| {
                    // A full queue means that the judge is behind; the next sample covers the time.
                    let _ = samples.try_send(stage.lock().read(reading));
                });
                Ok::<(), io::Error>(())
            });
        let traces = self.attacher.as_ref().map(Attacher::latest);
        let stage = observe::Kernel::new(
            probes,
            traces.unwrap_or_default(),
            self.api.clone(),
            self.telemetry.clone(),
        );
        let stage = Shared::new(stage);
        let interval = config.interval;
        self.supervisor
            .blocking_child(Spec::permanent("probes"), move |token| {
                observe::on_time(&token, interval, &*clock, |now| {
                    let _ = readings.try_send(stage.lock().read(now));
                });
                Ok::<(), io::Error>(())
            });
        Ok(())
    }

    /// Whether models are asked; starts the stage that does.
    fn inquire(
        &self,
        config: &Config,
        clock: Arc<dyn Clock>,
        scenes: tokio::sync::mpsc::Receiver<Scene>,
    ) -> Result<bool, ConfigError> {
        if config.strategy == Strategy::Offline {
            return Ok(false);
        }
        let group = self.supervisor.group("investigations");
        let tools = inquire::Tools {
            supervisor: group.clone(),
            clock,
            store: self.store.clone(),
            telemetry: self.telemetry.clone(),
            api: self.api.clone(),
        };
        let inquirer = inquire::Inquirer::connect(&config.providers, config.budget, tools, scenes)?;
        let Some(inquirer) = inquirer.map(Arc::new) else {
            return Ok(false);
        };
        group.child(Spec::permanent("coordinator"), move |token| {
            let inquirer = inquirer.clone();
            async move {
                inquirer.run(token).await;
                Ok::<(), io::Error>(())
            }
        });
        Ok(true)
    }

    /// Runs until `stop` is cancelled, then ends everything.
    pub async fn run_until(self, stop: CancellationToken) {
        stop.cancelled().await;
        let stopped = self.supervisor.shutdown(SHUTDOWN).await;
        for child in stopped.aborted {
            tracing::warn!(child, "did not end in time");
        }
        let store = self.store;
        // Waits for the disk.
        let flushed = tokio::task::spawn_blocking(move || store.flush()).await;
        if let Ok(Err(why)) = flushed {
            self.telemetry.emit(Event::StoreError {
                why: why.to_string(),
            });
        }
    }
}

/// What a stage keeps over a failure of its own.
#[derive(Debug)]
struct Shared<T>(Mutex<T>);

impl<T> Shared<T> {
    fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
