//! A server in this process over a view that is filled by hand: no kernel, no root.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
};

use anyhow::Result;
use lens_agent::{
    api::{Api, ProbeState, ProbeStatus, ProgramStatus},
    base::clock::{Clock as _, SystemClock},
    outputs::http::{Config, Server},
    supervise::Supervisor,
    telemetry::{Event, ModelOutcome, Refusal, Telemetry},
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// The server; it ends with this value.
#[derive(Debug)]
pub struct Served {
    /// Where to ask.
    pub addr: SocketAddr,
    /// What it shows.
    pub api: Api,
    /// What the agent would have said of itself.
    pub telemetry: Telemetry,
    runtime: Option<Runtime>,
}

impl Served {
    /// Bound to loopback.
    pub fn new() -> Result<Self> {
        Self::at(Ipv4Addr::LOCALHOST, Config::default())
    }

    /// Bound to every address; to be asked on loopback.
    pub fn to_everybody(config: Config) -> Result<Self> {
        Self::at(Ipv4Addr::UNSPECIFIED, config)
    }

    fn at(ip: Ipv4Addr, config: Config) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0))?;
        listener.set_nonblocking(true)?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr()?.port()));
        let telemetry = Telemetry::new();
        let supervisor = Supervisor::new("lens", telemetry.clone(), Arc::new(SystemClock));
        let api = Api::new(telemetry.clone(), supervisor);
        let server = Server::new(api.clone(), listener, config)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        runtime.spawn(async move { server.serve(CancellationToken::new()).await });
        Ok(Self {
            addr,
            api,
            telemetry,
            runtime: Some(runtime),
        })
    }

    /// What `--url` takes.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Lets everything happen once that is counted, so that every metric has a value.
    pub fn fill(&self) {
        let program = ProgramStatus {
            name: "sched_switch".to_owned(),
            runs: 123_456,
            run_ns: 98_765_432,
            runs_per_sec: 1000.0,
            ns_per_run: Some(800.0),
            cpu_percent: 0.08,
            verified_instructions: Some(40_000),
        };
        let probe = |name: &str, state, programs| ProbeStatus {
            name: name.to_owned(),
            title: "what it measures".to_owned(),
            state,
            why: (state == ProbeState::Refused).then(|| "no BTF".to_owned()),
            blind: "what is not seen without it".to_owned(),
            reductions: Vec::new(),
            map_bytes: 4096,
            programs,
        };
        self.api.put_probes(vec![
            probe("sched", ProbeState::Attached, vec![program]),
            probe("block", ProbeState::Refused, Vec::new()),
        ]);
        self.api.update_status(|status| {
            status.ready = true;
            status.started_at = Some(SystemClock.now().wall);
            status.ticks = 12;
            status.series = 340;
            status.learned = 0.25;
            status.targets = 7;
            status.history = (12, 34_567);
            status.cost.rss_bytes = 30 << 20;
            status.quality.miss("block", "no BTF");
        });
        for event in events() {
            self.telemetry.emit(event);
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn events() -> Vec<Event> {
    let text = |text: &str| text.to_owned();
    vec![
        Event::ProbeAttached {
            probe: text("sched"),
        },
        Event::ProbeFailed {
            probe: text("block"),
            why: text("no BTF"),
        },
        Event::EventsLost {
            map: text("PAIRS"),
            n: 3,
        },
        Event::ChildRestarted {
            child: text("lens/judge"),
            why: text("it panicked"),
            restarts: 1,
        },
        Event::ChildGaveUp {
            child: text("lens/http"),
            why: text("it panicked"),
        },
        Event::IncidentOpened { id: text("1") },
        Event::InsightProduced {
            id: text("1-1"),
            verdict: text("cause"),
            strategy: text("offline"),
        },
        Event::ModelCall {
            provider: text("local"),
            model: text("a \"small\" one"),
            input_tokens: 1000,
            output_tokens: 50,
            outcome: ModelOutcome::Error,
        },
        Event::ModelRefused {
            why: Refusal::RateLimit,
        },
        Event::ReadFailed {
            source: text("/proc/pressure/cpu"),
            why: text("gone"),
        },
    ]
}
