//! What processes allocate of the C library and do not free, on demand and bounded in time and in
//! what it may cost them.
//!
//! Breakpoints are where the allocator's functions begin, at an instruction that the kernel emulates,
//! and where they return, by a changed return address: C does not look at it, and nothing unwinds
//! through `malloc`. They are in the chosen processes only. First nothing but hits is counted: that
//! tells how often they come, and so whether all addresses can be followed, or one in so many, or
//! the breakpoints alone would cost too much. The kernel writes a record at the hit that reaches
//! the limit, which ends it.

mod target;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use aya::maps::{HashMap, MapData, RingBuf};
use lens_common::{
    function::LimitEvent,
    heap::{Heaping, Site},
    stacks::Place as At,
};
use serde::{Deserialize, Serialize};

use self::target::Target;
use super::{
    GlobError, Globs, KernelTypes, KernelTypesError, NamedStack, ObjectError, Watched, batch,
    function::names,
    keyed::{empty, store},
    mapped::Mapped,
    object::{Attached, Losses, Machine, Object, Plan, bytes},
    prologue::{self, PlaceError, Stepping},
    records::plain,
    stacks::{StackSample, Stacks},
    symbols::Symbols,
    trap,
    waiting::{now, sleep},
};
use crate::base::quality::Quality;

/// What a trace may cost, as a percentage of the CPU time of the processes, if nothing else is said.
pub const BUDGET_PERCENT: f64 = 10.0;
/// Of those that hardly run it may take that much of a CPU all the same.
const LEAST: f64 = 0.01;
/// How long it is looked how much CPU time they take, and then how often they call the allocator.
const TRIAL: Duration = Duration::from_millis(200);
/// Hits after which a trial has seen enough.
const TRIED: u64 = 2_000;
/// How often it is looked what the processes have taken, and the limit is moved on.
const WINDOW: Duration = Duration::from_millis(200);
/// No sooner than this: the kernel books the time of who runs at its ticks.
const SOONEST: Duration = Duration::from_millis(20);
/// The time whose allowance may be used at once: a burst is not yet a rate.
const SAVED: Duration = Duration::from_secs(1);
/// The part of the budget that is planned with.
const PLANNED: f64 = 0.8;
/// The fewest addresses that are followed: one in so many.
const FEWEST: u64 = 1024;
/// The longest trace.
const LONGEST: Duration = Duration::from_mins(2);
/// Processes at once.
const PROCESSES: usize = 8;

/// The allocator's functions, and the programs there. Without the first two nothing can be said.
/// `reallocarray` goes on in `realloc`.
const FUNCTIONS: [(&str, &str); 7] = [
    ("malloc", "malloc"),
    ("free", "free"),
    ("calloc", "calloc"),
    ("realloc", "realloc"),
    ("aligned_alloc", "aligned_alloc"),
    ("memalign", "aligned_alloc"),
    ("posix_memalign", "posix_memalign"),
];

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeapRequest {
    /// Of these processes.
    pub pids: Vec<u32>,
    /// And of all in cgroups whose paths match these patterns.
    pub cgroups: Vec<String>,
    /// For how long at most.
    pub span: Duration,
    /// At most so much of their CPU time, in percent.
    pub budget_percent: f64,
    /// Follows at most one address in so many, a power of two.
    pub one_in: u64,
}

/// What ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeapEnded {
    /// Its time was over.
    Time,
    /// It would have cost more than it may.
    Hot,
    /// Somebody stopped it.
    Stopped,
    /// The processes are gone.
    Gone,
}

/// Allocations of one process at one stack; scaled where not all addresses were followed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeapSite {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub comm: Arc<str>,
    /// Bytes that were allocated meanwhile and not freed.
    pub outstanding_bytes: u64,
    /// Allocations of which that is so.
    pub outstanding: u64,
    /// Bytes that were allocated.
    pub bytes: u64,
    /// Allocations.
    pub allocs: u64,
    /// Where.
    pub stack: NamedStack,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeapReading {
    /// The processes.
    pub pids: Vec<u32>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: f64,
    /// What ended it.
    pub ended: HeapEnded,
    /// One address in so many was followed; of these, what sites say was scaled by it.
    pub one_in: u64,
    /// Allocations in all, exactly.
    pub allocs: u64,
    /// Bytes that they asked for.
    pub bytes: u64,
    /// Frees, exactly.
    pub frees: u64,
    /// Of them, about how many were of what had been allocated before; their sizes are not known.
    pub older_frees: u64,
    /// Bytes that were allocated a second.
    pub bytes_per_sec: f64,
    /// Bytes that were allocated and not freed, of all sites.
    pub outstanding_bytes: u64,
    /// Allocations of which that is so.
    pub outstanding: u64,
    /// Breakpoints hit while it counted.
    pub traps: u64,
    /// What a hit costs, in nanoseconds, trap and program, on average as planned: measured on this
    /// machine before.
    pub hit_ns: u64,
    /// What all of them have cost, in milliseconds.
    pub cost_ms: f64,
    /// The CPU time that the processes had meanwhile, the cost included.
    pub cpu_ms: f64,
    /// The most outstanding bytes first.
    pub sites: Vec<HeapSite>,
    /// What was not seen.
    pub quality: Quality,
}

/// Why there is nothing.
#[derive(Debug, thiserror::Error)]
pub enum HeapError {
    /// A pattern cannot be understood.
    #[error(transparent)]
    Glob(#[from] GlobError),
    /// The request makes no sense.
    #[error("{0}")]
    Usage(String),
    /// There is no such process.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// It allocates by something else.
    #[error(
        "allocations of {pid} ({comm}) cannot be followed: {why}; what can be is malloc and its relatives of a shared C library (glibc, musl)"
    )]
    Unsupported {
        /// The process.
        pid: u32,
        /// Its name.
        comm: String,
        /// What it does.
        why: String,
    },
    /// There is no place for a breakpoint.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It would cost too much.
    #[error(
        "they allocate too often to be followed: about {rate:.0} hits of breakpoints a second, at {hit_ns} ns each, would cost {:.0} % of a CPU, and {:.1} % is allowed ({budget_percent} % of the CPU time that they take); sampling does not avoid the breakpoints",
        .rate * *hit_ns as f64 / 1e7, .allowed * 100.0
    )]
    Hot {
        /// Hits a second.
        rate: f64,
        /// What one costs at the least.
        hit_ns: u64,
        /// CPUs that may be taken.
        allowed: f64,
        /// By what share of their time.
        budget_percent: f64,
    },
    /// No BTF.
    #[error(transparent)]
    Types(#[from] KernelTypesError),
    /// The kernel refused.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The system refused something else.
    #[error("{what}: {why}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The answer.
        why: io::Error,
    },
}

impl HeapError {
    /// Whether the request is at fault, not the system.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Glob(_) | Self::Usage(_))
    }
}

/// Looks at allocations until the time is over or `stop` becomes readable or closed. Calls `counting`
/// when the next one counts.
pub fn heap(
    request: &HeapRequest,
    watched: &Watched,
    stop: BorrowedFd<'_>,
    counting: impl FnOnce(),
) -> Result<HeapReading, HeapError> {
    request.check()?;
    let targets = request.targets(watched)?;
    let types = KernelTypes::of_running_kernel()?;
    let mut programs = Programs::load(&types)?;
    drop(types);
    super::give_memory_back();
    let costs = programs.calibrate()?;
    let mut waiting = Waiting {
        stop,
        targets: &targets,
    };
    let before = waiting.cpu_time();
    let began = now();
    waiting.sleep(&programs, began + TRIAL)?;
    let share = waiting.share_since(began, before);
    let allowed = (share * request.budget_percent / 100.0).max(LEAST);
    let mut symbols = Symbols::with_lines();
    symbols.meet(&waiting.samples(), true);
    let hot = |rate| HeapError::Hot {
        rate,
        hit_ns: costs.hit_ns,
        allowed,
        budget_percent: request.budget_percent,
    };
    let may = |rate| {
        let is_allowed = costs.of(rate, FEWEST) <= allowed;
        is_allowed.then_some(()).ok_or_else(|| hot(rate))
    };
    // A breakpoint is there until its call to take it away has returned, a tenth of a second later, and
    // they wait for each other. So first it is one; an allocation that is freed is three hits.
    let tried = programs.attach_one(&targets)?;
    let rate = 3.0 * waiting.rate(&mut programs)?;
    drop(tried);
    may(rate)?;
    let links = programs.attach(&targets, may)?;
    let rate = waiting.rate(&mut programs)?;
    let one_in = costs.one_in(rate, PLANNED * allowed, request.one_in);
    let one_in = one_in.ok_or_else(|| hot(rate))?;
    let mut spending = Spending {
        part: request.budget_percent / 100.0,
        left: allowed * SAVED.as_secs_f64(),
        hit_ns: costs.hit_ns_at(one_in),
    };
    let (tried, cpu_before) = (programs.state().traps, waiting.cpu_time());
    programs.limit(tried + spending.hits());
    programs.set_word(std::mem::offset_of!(Heaping, one_in), one_in);
    counting();
    let began = now();
    let ended = waiting.wait(&mut programs, began + request.span, &mut spending);
    // Nothing that comes now is followed any more, nor what is freed.
    programs.set_word(std::mem::offset_of!(Heaping, one_in), 0);
    let elapsed = now().saturating_sub(began);
    let cpu = waiting.cpu_time().saturating_sub(cpu_before);
    symbols.meet(&waiting.samples(), true);
    drop(links);
    let over = Over {
        ended: ended?,
        elapsed,
        cpu,
        tried,
        one_in,
        hit_ns: spending.hit_ns,
    };
    programs.read(&targets, &mut symbols, &over)
}

/// Whether this kernel takes the programs; attaches nothing.
pub fn possible() -> Result<(), HeapError> {
    let mut programs = Programs::load(&KernelTypes::of_running_kernel()?)?;
    let all = FUNCTIONS.iter().map(|(_, program)| *program);
    for program in all.chain(["returned"]) {
        programs.object.for_code(program)?;
    }
    Ok(())
}

/// How it ended.
struct Over {
    ended: HeapEnded,
    elapsed: Duration,
    /// CPU time of the processes meanwhile.
    cpu: Duration,
    /// Hits before anything counted.
    tried: u64,
    one_in: u64,
    hit_ns: u64,
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl HeapRequest {
    fn check(&self) -> Result<(), HeapError> {
        let wrong = |why: String| Err(HeapError::Usage(why));
        if self.span.is_zero() || self.span > LONGEST {
            return wrong(format!(
                "a heap trace of {:?} is out of range: up to {LONGEST:?}",
                self.span
            ));
        }
        if !(0.1..=100.0).contains(&self.budget_percent) {
            return wrong("the budget is 0.1 to 100 % of the processes' CPU time".to_owned());
        }
        if !self.one_in.is_power_of_two() || self.one_in > FEWEST {
            return wrong(format!(
                "one in {}: a power of two up to {FEWEST} is needed",
                self.one_in
            ));
        }
        if self.pids.is_empty() && self.cgroups.is_empty() {
            return wrong("say which processes: PID, or --cgroup GLOB".to_owned());
        }
        Ok(())
    }

    fn targets(&self, watched: &Watched) -> Result<Vec<Target>, HeapError> {
        let mut pids: BTreeSet<u32> = self.pids.iter().copied().collect();
        if !self.cgroups.is_empty() {
            let globs = Globs::new(&self.cgroups)?;
            let names = names(watched);
            if let Some(glob) = globs.unmatched(names.values()).first() {
                return Err(HeapError::Usage(format!("no cgroup matches `{glob}`")));
            }
            for path in names.values().filter(|path| globs.matches(path)) {
                let procs = watched.root.join(path.trim_start_matches('/'));
                let procs = std::fs::read_to_string(procs.join("cgroup.procs"));
                pids.extend(
                    procs
                        .unwrap_or_default()
                        .lines()
                        .filter_map(|l| l.parse::<u32>().ok()),
                );
            }
        }
        match pids.len() {
            0 => Err(HeapError::Usage(
                "no process is in these cgroups".to_owned(),
            )),
            n if n > PROCESSES => Err(HeapError::Usage(format!(
                "{n} processes are too many: up to {PROCESSES} at once"
            ))),
            _ => pids.into_iter().map(Target::look).collect(),
        }
    }
}

/// What hits cost on this machine.
#[derive(Clone, Copy, Debug)]
struct Costs {
    /// A hit of which nothing comes.
    hit_ns: u64,
    /// What following an allocation costs beyond that: its stack, and remembering it.
    follow_ns: u64,
}

impl Costs {
    /// What a hit costs on average if one address in so many is followed. An allocation that is freed is
    /// three hits: its beginning, its return, and the free.
    fn hit_ns_at(self, one_in: u64) -> u64 {
        self.hit_ns + self.follow_ns / (3 * one_in)
    }

    /// CPUs that so many hits a second take.
    fn of(self, rate: f64, one_in: u64) -> f64 {
        rate * self.hit_ns_at(one_in) as f64 / 1e9
    }

    /// One in how many can be followed at that rate, at most one in `at_least`; `None` if none can.
    fn one_in(self, rate: f64, allowed: f64, at_least: u64) -> Option<u64> {
        let mut one_in = at_least;
        while self.of(rate, one_in) > allowed {
            one_in *= 2;
            if one_in > FEWEST {
                return None;
            }
        }
        Some(one_in)
    }
}

/// CPU time that the trace may still cost, in seconds.
#[derive(Clone, Copy, Debug)]
struct Spending {
    /// Of each second of the processes' CPU time so much.
    part: f64,
    left: f64,
    /// What a hit costs.
    hit_ns: u64,
}

impl Spending {
    /// Books a time in which the processes had so much CPU time and it has cost so much; whether there
    /// is anything left.
    fn book(&mut self, time: Duration, cpu: Duration, cost: Duration) -> bool {
        let time = time.as_secs_f64();
        let earned = (self.part * cpu.as_secs_f64()).max(LEAST * time);
        self.left += earned - cost.as_secs_f64();
        let is_left = self.left > 0.0;
        let most = earned / time.max(1e-9) * SAVED.as_secs_f64();
        self.left = self.left.min(most);
        is_left
    }

    /// Hits that it is enough for.
    fn hits(self) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        let ns = (self.left.max(0.0) * 1e9) as u64;
        (ns / self.hit_ns.max(1)).max(1)
    }
}

/// Breakpoints. Taking one away waits until all CPUs have left the programs, and the kernel does that
/// one after the other (`event_mutex`): some 100 ms each, in the order of the functions.
struct Links(Vec<Attached>);

impl Drop for Links {
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            for link in self.0.drain(..) {
                scope.spawn(move || drop(link));
            }
        });
    }
}

/// A [`At`] and a [`Site`] in words.
const AT: usize = size_of::<At>() / 8;
const SITE: usize = size_of::<Site>() / 8;

/// The object with its maps.
struct Programs {
    object: Object,
    losses: Losses,
    heaping: Mapped<Heaping>,
    allocated: HashMap<MapData, [u64; 2], [u64; 2]>,
    sites: HashMap<MapData, [u64; AT], [u64; SITE]>,
    stacks: Stacks,
    events: RingBuf<MapData>,
}

impl Programs {
    fn load(types: &KernelTypes) -> Result<Self, HeapError> {
        let machine = Machine::new(None, None).map_err(|why| HeapError::System {
            what: "cannot tell the number of CPUs",
            why,
        })?;
        let mut plan = Plan::new("heap", bytes!("heap"), types, &machine);
        Stacks::plan(&mut plan)?;
        plan.without("SEEN");
        let mut object = plan.load()?;
        Ok(Self {
            losses: Losses::of(&object)?,
            heaping: object.mapped_once("HEAPING", 1)?,
            allocated: object.take_map("ALLOCATED")?,
            sites: object.take_map("SITES")?,
            stacks: Stacks::of(&mut object)?,
            events: object.take_map("EVENTS")?,
            object,
        })
    }

    fn state(&self) -> Heaping {
        self.heaping.get(0, 0).unwrap_or_default()
    }

    fn set_word(&self, offset: usize, value: u64) {
        if let Some(at) = self.heaping.at(0, 0) {
            store(at.cast::<u64>().wrapping_add(offset / 8), value);
        }
    }

    /// Says at how many hits the kernel tells.
    fn limit(&self, traps: u64) {
        self.set_word(std::mem::offset_of!(Heaping, trap_limit), traps);
    }

    fn next_event(&mut self) -> Option<LimitEvent> {
        plain(&self.events.next()?)
    }

    /// What hits cost; leaves nothing counted.
    fn calibrate(&mut self) -> Result<Costs, HeapError> {
        let mut pair = |one_in| -> Result<u64, ObjectError> {
            self.limit(u64::MAX);
            self.set_word(std::mem::offset_of!(Heaping, one_in), one_in);
            let object = &mut self.object;
            let ns = trap::hit_ns(Stepping::Emulated, |file, offset| {
                let returned = object.attach_to_code("returned", file, offset, None)?;
                let entered = object.attach_to_code("malloc", file, offset, None)?;
                Ok((entered, returned))
            })?;
            Ok(ns.unwrap_or(UNKNOWN_NS))
        };
        let bare = pair(0)?;
        let followed = pair(1)?;
        for word in 0..size_of::<Heaping>() / 8 {
            self.set_word(8 * word, 0);
        }
        empty(&mut self.allocated);
        empty(&mut self.sites);
        Ok(Costs {
            hit_ns: bare / 2,
            follow_ns: followed.saturating_sub(bare),
        })
    }

    /// Puts the program of `malloc` into all of them.
    fn attach_one(&mut self, targets: &[Target]) -> Result<Links, HeapError> {
        let mut links = Links(Vec::new());
        for target in targets {
            let place = places(target)?.into_iter().next();
            if let Some((program, offset)) = place {
                let (file, process) = (target.file(), Some(target.pid));
                let link = self
                    .object
                    .attach_to_code(program, &file, offset, process)?;
                links.0.push(link);
            }
        }
        Ok(links)
    }

    /// Puts the programs into all of them; `may` is asked in between whether it may go on, with the hits
    /// a second so far.
    fn attach(
        &mut self,
        targets: &[Target],
        may: impl Fn(f64) -> Result<(), HeapError>,
    ) -> Result<Links, HeapError> {
        let mut links = Links(Vec::new());
        let (began, before) = (now(), self.state().traps);
        for target in targets {
            let places = places(target)?;
            let file = target.file();
            for (program, offset) in places {
                let mut at = |program| {
                    let process = Some(target.pid);
                    self.object.attach_to_code(program, &file, offset, process)
                };
                // The return first: what is noted is then seen to return.
                let returned = (program != "free").then(|| at("returned")).transpose()?;
                links.0.extend(returned);
                links.0.push(at(program)?);
                let hits = self.state().traps - before;
                let so_far = now().saturating_sub(began);
                if hits > TRIED {
                    may(hits as f64 / so_far.as_secs_f64())?;
                }
            }
        }
        Ok(links)
    }

    /// What was allocated where, with names.
    fn sites(
        &self,
        targets: &[Target],
        symbols: &mut Symbols,
        one_in: u64,
    ) -> Result<Vec<HeapSite>, HeapError> {
        let mut samples = Vec::new();
        let mut counted = Vec::new();
        let sites = batch::entries(&self.sites).map_err(|why| HeapError::System {
            what: "cannot read what was allocated where",
            why,
        })?;
        for (place, words) in sites {
            let [_, tgid, space, user, _] = place;
            let mut user = self.stacks.frames_of(user);
            // It is where the call returns to; what is called last in a function returns behind its end.
            if let Some(at) = user.first_mut() {
                *at -= 1;
            }
            samples.push(StackSample {
                tgid: u32::try_from(tgid).unwrap_or_default(),
                space,
                user,
                ..StackSample::default()
            });
            counted.push(words);
        }
        let named = symbols.name(&samples);
        // Lines of one function, and addresses of one line, are one.
        let mut sites: BTreeMap<(u32, NamedStack), [u64; SITE]> = BTreeMap::new();
        for ((sample, stack), words) in samples.iter().zip(named).zip(counted) {
            let sums = sites.entry((sample.tgid, stack)).or_default();
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum += word * one_in;
            }
        }
        let comm = |pid| {
            let target = targets.iter().find(|target| target.pid.get() == pid);
            target.map_or_else(Arc::default, |target| target.comm.as_str().into())
        };
        let site = |((pid, stack), words): ((u32, NamedStack), [u64; SITE])| {
            let [allocs, bytes, frees, freed_bytes] = words;
            HeapSite {
                pid,
                comm: comm(pid),
                outstanding_bytes: bytes.saturating_sub(freed_bytes),
                outstanding: allocs.saturating_sub(frees),
                bytes,
                allocs,
                stack,
            }
        };
        let mut sites: Vec<_> = sites.into_iter().map(site).collect();
        sites.sort_by_key(|site| Reverse((site.outstanding_bytes, site.bytes)));
        Ok(sites)
    }

    fn read(
        &self,
        targets: &[Target],
        symbols: &mut Symbols,
        over: &Over,
    ) -> Result<HeapReading, HeapError> {
        let one_in = over.one_in;
        let mut quality = Quality::default();
        self.losses.tell(&mut quality);
        if one_in > 1 {
            quality.sampled.insert("heap".to_owned(), one_in);
        }
        let sites = self.sites(targets, symbols, one_in)?;
        let state = self.state();
        let traps = state.traps - over.tried;
        Ok(HeapReading {
            pids: targets.iter().map(|target| target.pid.get()).collect(),
            elapsed_ms: ms(over.elapsed),
            ended: over.ended,
            one_in,
            allocs: state.allocs,
            bytes: state.bytes,
            frees: state.frees,
            older_frees: state.older_frees * one_in,
            bytes_per_sec: state.bytes as f64 / over.elapsed.as_secs_f64().max(1e-9),
            outstanding_bytes: sites.iter().map(|site| site.outstanding_bytes).sum(),
            outstanding: sites.iter().map(|site| site.outstanding).sum(),
            traps,
            hit_ns: over.hit_ns,
            cost_ms: traps as f64 * over.hit_ns as f64 / 1e6,
            cpu_ms: ms(over.cpu),
            sites,
            quality,
        })
    }
}

/// What two hits are taken to cost where that cannot be measured.
const UNKNOWN_NS: u64 = 3_000;

/// Where the programs go in a target's library. Functions that share their code are one.
fn places(target: &Target) -> Result<Vec<(&'static str, u64)>, HeapError> {
    let mut places = Vec::new();
    for (name, program) in FUNCTIONS {
        let function = match target.function(name) {
            Ok(function) => function,
            Err(PlaceError::NoFunction { .. }) if places.len() >= 2 => continue,
            Err(why) => return Err(why.into()),
        };
        let place = prologue::choose(&function, program != "free");
        let place = place.ok().filter(|place| {
            place.stepping == Stepping::Emulated && prologue::keeps_arguments(&function, place)
        });
        let Some(place) = place else {
            let why = format!(
                "its C library's `{name}` begins with nothing that the kernel emulates; each call would cost 20 to 30 µs"
            );
            return Err(HeapError::Unsupported {
                pid: target.pid.get(),
                comm: target.comm.clone(),
                why,
            });
        };
        if !places.iter().any(|(_, offset)| *offset == place.offset) {
            places.push((program, place.offset));
        }
    }
    Ok(places)
}

/// Waits, and looks at the processes meanwhile.
struct Waiting<'a> {
    stop: BorrowedFd<'a>,
    targets: &'a [Target],
}

impl Waiting<'_> {
    fn cpu_time(&self) -> Duration {
        self.targets.iter().map(Target::cpu_time).sum()
    }

    /// CPUs that they have taken since.
    fn share_since(&self, began: Duration, before: Duration) -> f64 {
        let took = self.cpu_time().saturating_sub(before).as_secs_f64();
        took / now().saturating_sub(began).as_secs_f64().max(1e-9)
    }

    /// Samples of nothing, by which the processes are met.
    fn samples(&self) -> Vec<StackSample> {
        let sample = |target: &Target| StackSample {
            tgid: target.pid.get(),
            space: target.space,
            ..StackSample::default()
        };
        self.targets.iter().map(sample).collect()
    }

    /// Sleeps until then, a record, or the stop; whether it is the stop.
    fn sleep(&self, programs: &Programs, until: Duration) -> Result<bool, HeapError> {
        let events = programs.events.as_fd();
        sleep(self.stop, &[events], until).map_err(|why| HeapError::System {
            what: "cannot wait for the kernel's records",
            why,
        })
    }

    /// How many hits a second there are.
    fn rate(&mut self, programs: &mut Programs) -> Result<f64, HeapError> {
        let (before, began) = (programs.state().traps, now());
        programs.limit(before + TRIED);
        self.sleep(programs, began + TRIAL)?;
        while programs.next_event().is_some() {}
        let took = now().saturating_sub(began).as_secs_f64().max(1e-9);
        Ok((programs.state().traps - before) as f64 / took)
    }

    /// Waits until something ends it.
    fn wait(
        &self,
        programs: &mut Programs,
        end: Duration,
        spending: &mut Spending,
    ) -> Result<HeapEnded, HeapError> {
        let (mut window, mut cpu, mut traps) = (now(), self.cpu_time(), programs.state().traps);
        loop {
            let until = end.min(window + WINDOW);
            if self.sleep(programs, until)? {
                return Ok(HeapEnded::Stopped);
            }
            let mut is_reached = false;
            while programs.next_event().is_some() {
                is_reached = true;
            }
            if is_reached && self.sleep(programs, end.min(window + SOONEST))? {
                return Ok(HeapEnded::Stopped);
            }
            let then = std::mem::replace(&mut window, now());
            let cpu_then = std::mem::replace(&mut cpu, self.cpu_time());
            let traps_then = std::mem::replace(&mut traps, programs.state().traps);
            let cost = Duration::from_nanos((traps - traps_then) * spending.hit_ns);
            let had = cpu.saturating_sub(cpu_then);
            let is_left = spending.book(window.saturating_sub(then), had, cost);
            if window >= end {
                return Ok(HeapEnded::Time);
            }
            if !is_left {
                return Ok(HeapEnded::Hot);
            }
            if !self.targets.iter().any(Target::lives) {
                return Ok(HeapEnded::Gone);
            }
            programs.limit(traps + spending.hits());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_used_is_saved_for_a_second() {
        let (window, ms) = (Duration::from_millis(200), Duration::from_millis);
        let mut spending = Spending {
            part: 0.1,
            left: 0.01,
            hit_ns: 1_000,
        };
        assert_eq!(spending.hits(), 10_000);
        // A burst of what sleeps otherwise.
        assert!(spending.book(window, ms(1), ms(5)));
        assert_eq!(spending.hits(), 7_000);
        assert!(!spending.book(window, ms(5), ms(20)));
        // One CPU, used all the time.
        let mut busy = Spending {
            part: 0.1,
            left: 0.1,
            hit_ns: 1_000,
        };
        assert!(busy.book(window, ms(200), ms(20)));
        assert!((busy.left - 0.1).abs() < 1e-9);
        assert!(busy.book(window, ms(200), ms(0)));
        assert!((busy.left - 0.1).abs() < 1e-9);
        assert!(busy.book(window, ms(200), ms(110)));
        assert!(!busy.book(window, ms(200), ms(110)));
    }

    #[test]
    fn as_many_addresses_are_followed_as_the_budget_allows() {
        let costs = Costs {
            hit_ns: 500,
            follow_ns: 3_000,
        };
        // 1500 ns a hit when all are followed, 500 at the least.
        assert_eq!(costs.hit_ns_at(1), 1_500);
        assert_eq!(costs.one_in(10_000.0, 0.1, 1), Some(1));
        assert_eq!(costs.one_in(100_000.0, 0.1, 1), Some(2));
        assert_eq!(costs.one_in(100_000.0, 0.1, 64), Some(64));
        assert_eq!(costs.one_in(150_000.0, 0.1, 1), Some(8));
        assert_eq!(costs.one_in(250_000.0, 0.1, 1), None);
    }
}
