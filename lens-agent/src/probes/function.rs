//! The calls of one function, of a program or of the kernel, on demand and bounded in time, in hits
//! and in what it may cost whoever calls it.
//!
//! The kernel counts every breakpoint hit and writes a record at the very hit that reaches a
//! limit; this wakes up, and takes the breakpoint away. Time is cut into windows, and in each the
//! function may be hit as often as its callers can bear, and as often as it was not before: a
//! function that is hotter than that in the first window is refused, one that becomes so later
//! ends its trace.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aya::maps::{HashMap, MapData, RingBuf};
use lens_common::{
    function::{Calls, HITS, LimitEvent, TRAPS, Tracing},
    hist::{BUCKETS, Hist},
};
use serde::{Deserialize, Serialize};

use super::{
    GlobError, Globs, KernelTypes, KernelTypesError, ObjectError, Watched,
    kernel_function::{self, Home, KernelFunctionError},
    mapped::Mapped,
    object::{Attached, Losses, Machine, Object, Plan, bytes},
    prologue::{self, Place, PlaceError, Stepping},
    records::plain,
    targets::{cgroup_constants, walk},
    trap,
    waiting::{now, sleep},
};
use crate::base::quality::Quality;

/// What the callers of a function may lose to its trace, as a share of one CPU. A trace is asked
/// for by a person and lasts seconds, so it may take more than what always runs; above this the
/// numbers begin to tell of the trace instead of the function.
pub const MAY_COST: f64 = 0.05;
/// How often that is looked at. The kernel tells at once when a window's allowance is used up.
const WINDOW: Duration = Duration::from_millis(200);
/// Windows whose allowance may be used at once by a function that was called less before: a burst
/// is not yet heat.
const SAVED: u64 = 5;
/// What a hit costs, from above: of the measured range, by what is done there.
const EMULATED_NS: u64 = 1_200;
const SINGLE_STEP_NS: u64 = 30_000;
/// What timing a call costs beyond that: the second trap, at the return.
const RETURN_NS: u64 = 1_500;
/// The same of the kernel's functions, where nothing is measured: as calls, and as breakpoints.
const FENTRY_NS: u64 = 250;
const FEXIT_NS: u64 = 350;
const KPROBE_NS: u64 = 1_500;
const KRETPROBE_NS: u64 = 2_000;

/// The longest trace.
pub const LONGEST: Duration = Duration::from_mins(10);

/// What is to be traced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRequest {
    /// A program or library; the kernel if there is none.
    pub file: Option<PathBuf>,
    /// The symbol, as the file spells it, or the kernel's list of symbols.
    pub function: String,
    /// For how long at most.
    pub span: Duration,
    /// For how many calls at most.
    pub max_hits: u64,
    /// Whose calls count, as patterns of cgroup paths; everybody's if empty.
    pub cgroups: Vec<String>,
    /// Whether calls are timed, too: by a second breakpoint, at the return. While a call is under
    /// way its return address is not its caller's. What reads it (an exception or a panic that
    /// unwinds through the frame, a runtime that moves stacks) ends the program.
    pub returns: bool,
    /// Whether a place will do where each call costs some twenty times as much.
    pub single_step: bool,
    /// Does without `fentry`: to try on any kernel what runs on one that has none.
    #[serde(default)]
    pub force_fallback: bool,
}

/// By what calls are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// A breakpoint in a program.
    Uprobe,
    /// A call that the kernel puts where its function begins, and another where it ends.
    Fentry,
    /// A breakpoint in the kernel.
    Kprobe,
}

/// What ended a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Its time was over.
    Time,
    /// It had as many calls as it was asked for.
    Hits,
    /// The function became hotter than a trace may be.
    Hot,
    /// Somebody stopped it.
    Stopped,
}

/// The calls of one cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCalls {
    /// Calls.
    pub calls: u64,
    /// Returns that were timed.
    pub returns: u64,
    /// Their time in all.
    pub total_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// By time: a bucket for each power of two nanoseconds.
    pub hist: Hist,
}

/// What a trace has seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionReading {
    /// The file; none of the kernel's.
    pub file: Option<PathBuf>,
    /// The function.
    pub function: String,
    /// By what its calls were seen.
    pub by: Means,
    /// Where the breakpoint was, in a file.
    pub place: Option<Place>,
    /// What a hit costs whoever calls, in nanoseconds: trap and program, as measured on this machine
    /// before the trace with everything in the caches. Not known of the kernel's functions.
    pub hit_ns: Option<u64>,
    /// Whether calls were timed.
    pub timed: bool,
    /// How long it took.
    pub elapsed: Duration,
    /// What ended it.
    pub ended: Ended,
    /// Breakpoints hit, whoever hit them.
    pub traps: u64,
    /// Calls of those who were asked for: exact.
    pub calls: u64,
    /// Calls that came after the last one that counts, until the breakpoint was gone.
    pub overshoot: u64,
    /// Calls by cgroup; where a cgroup is gone, by its id in the kernel.
    pub cgroups: BTreeMap<Arc<str>, FunctionCalls>,
    /// Calls within a call of the same function, by the same thread.
    pub nested: u64,
    /// Of those, calls so deep that they were not timed.
    pub deep: u64,
    /// Returns that something jumped over.
    pub missing: u64,
    /// Calls that were still under way at the end: their time is not known.
    pub under_way: u64,
    /// What was not seen.
    pub quality: Quality,
}

impl FunctionReading {
    /// `calls` a second over the time of the trace.
    pub fn per_sec(&self, calls: u64) -> f64 {
        calls as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// What it has cost whoever called, if that is known.
    pub fn cost(&self) -> Option<Duration> {
        Some(Duration::from_nanos(
            self.hit_ns?.saturating_mul(self.traps),
        ))
    }

    /// The same as a percentage of one CPU's time.
    pub fn cost_percent(&self) -> Option<f64> {
        let cost = self.cost()?.as_secs_f64();
        Some(100.0 * cost / self.elapsed.as_secs_f64().max(1e-9))
    }
}

/// Why nothing was traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// There is no place for a breakpoint.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It is none of the kernel's functions that can be traced.
    #[error(transparent)]
    Kernel(#[from] KernelFunctionError),
    /// A pattern cannot be understood.
    #[error(transparent)]
    Glob(#[from] GlobError),
    /// Nobody would be traced.
    #[error("no cgroup matches `{0}`")]
    NoCgroup(String),
    /// The time is out of range.
    #[error("a trace of {0:?} is out of range: up to {LONGEST:?}")]
    Span(Duration),
    /// The number of hits is out of range.
    #[error("a trace of no hits shows nothing")]
    NoHits,
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
    /// The function is called too often.
    #[error(
        "`{function}` is too hot to trace: {hits} hits within {} ms are {rate:.0} a second; at up to {} ns a hit that would cost its callers {:.0} % of a CPU, and {:.0} % is allowed ({allowed:.0} a second)",
        .within.as_millis(), cost_ns, rate * *cost_ns as f64 / 1e7, MAY_COST * 100.0
    )]
    Hot {
        /// The function.
        function: String,
        /// Hits in the trial.
        hits: u64,
        /// How long they took.
        within: Duration,
        /// The same a second.
        rate: f64,
        /// What a hit is taken to cost.
        cost_ns: u64,
        /// How often a second it could be called.
        allowed: f64,
    },
}

impl TraceError {
    /// Whether the request is at fault, not the system.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Glob(_) | Self::Span(_) | Self::NoHits)
    }
}

/// Traces until something ends it; `stop` becoming readable (or closed) does. Calls `attached` when
/// the next call will count.
pub fn trace(
    request: &TraceRequest,
    watched: &Watched,
    stop: BorrowedFd<'_>,
    attached: impl FnOnce(),
) -> Result<FunctionReading, TraceError> {
    if request.span.is_zero() || request.span > LONGEST {
        return Err(TraceError::Span(request.span));
    }
    if request.max_hits == 0 {
        return Err(TraceError::NoHits);
    }
    let globs = Globs::new(&request.cgroups)?;
    let site = Site::find(request)?;
    let names = names(watched);
    if let Some(glob) = globs.unmatched(names.values()).first() {
        return Err(TraceError::NoCgroup(glob.clone()));
    }
    let types = KernelTypes::of_running_kernel()?;
    let mut programs = Programs::load(&types, site.returns(request), &request.cgroups, watched)?;
    let hit_ns = match &site {
        Site::File { place, .. } => programs.calibrate(place.stepping, names.keys().copied())?,
        Site::Kernel(_) => None,
    };
    for (id, _) in names.iter().filter(|(_, path)| globs.matches(path)) {
        programs.ask_for(*id, &globs);
    }
    let (by, cost_ns, links) = programs.attach(&site, request, hit_ns, &types)?;
    let allowance = allowance(cost_ns);
    drop(types);
    super::give_memory_back();
    attached();
    let waiting = Waiting {
        programs: &mut programs,
        request,
        stop,
        allowance,
        cost_ns,
    };
    let over = waiting.wait();
    links.detach();
    let reading = programs.read(request, watched, names, over?)?;
    Ok(FunctionReading {
        by,
        place: site.place(),
        hit_ns,
        ..reading
    })
}

/// What of the functions can be traced here.
#[derive(Debug)]
pub struct Traceable {
    /// Those of programs, or why not.
    pub programs: Result<(), String>,
    /// Those of the kernel, by what, or why not by anything.
    pub kernel: Result<Vec<Means>, KernelFunctionError>,
}

/// Tries what can be traced, at a function of the kernel that nobody calls.
pub fn traceable(watched: &Watched) -> Result<Traceable, TraceError> {
    let types = KernelTypes::of_running_kernel()?;
    let mut programs = Programs::load(&types, true, &[], watched)?;
    let fentry = programs.try_fentry(&types);
    let kprobe = kernel_function::has_kprobes();
    let kernel = match (fentry, kprobe) {
        (Err(fentry), Err(kprobe)) => Err(KernelFunctionError::NoMeans { fentry, kprobe }),
        (fentry, kprobe) => Ok([
            fentry.ok().map(|()| Means::Fentry),
            kprobe.ok().map(|()| Means::Kprobe),
        ]
        .into_iter()
        .flatten()
        .collect()),
    };
    Ok(Traceable {
        programs: kernel_function::has_uprobes(),
        kernel,
    })
}

/// Hits that a window may have.
fn allowance(cost_ns: u64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small positive number"
    )]
    let hits = (WINDOW.as_nanos() as f64 * MAY_COST) as u64 / cost_ns;
    hits.max(1)
}

/// Where calls are seen.
enum Site {
    File {
        file: PathBuf,
        place: Place,
        /// Whether calls can be timed from there.
        timed: bool,
    },
    Kernel(Home),
}

impl Site {
    fn find(request: &TraceRequest) -> Result<Self, TraceError> {
        let Some(file) = &request.file else {
            return Ok(Self::Kernel(kernel_function::find(&request.function)?));
        };
        let file = std::fs::canonicalize(file).map_err(|why| PlaceError::Read {
            file: file.display().to_string(),
            why: why.to_string(),
        })?;
        let (place, timed) = place(request, &file)?;
        Ok(Self::File { file, place, timed })
    }

    /// Whether returns are seen, too.
    fn returns(&self, request: &TraceRequest) -> bool {
        match self {
            Self::File { timed, .. } => *timed,
            Self::Kernel(_) => request.returns,
        }
    }

    /// What a hit costs, from above.
    fn cost_ns(&self, by: Means, returns: bool) -> u64 {
        let (entry, at_return) = match (self, by) {
            (Self::File { place, .. }, _) => match place.stepping {
                Stepping::Emulated => (EMULATED_NS, RETURN_NS),
                // Whether this kernel does is not known.
                Stepping::EmulatedLately | Stepping::Single => (SINGLE_STEP_NS, RETURN_NS),
            },
            (Self::Kernel(_), Means::Fentry) => (FENTRY_NS, FEXIT_NS),
            (Self::Kernel(_), _) => (KPROBE_NS, KRETPROBE_NS),
        };
        entry + if returns { at_return } else { 0 }
    }

    fn place(self) -> Option<Place> {
        match self {
            Self::File { place, .. } => Some(place),
            Self::Kernel(_) => None,
        }
    }
}

/// Where to stop, and whether calls can be timed from there.
fn place(request: &TraceRequest, file: &Path) -> Result<(Place, bool), PlaceError> {
    let function = prologue::find(file, &request.function)?;
    let wanted = request.returns;
    if wanted && function.moves_stacks {
        return Err(PlaceError::MovesStacks(request.function.clone()));
    }
    let first = match prologue::choose(&function, wanted) {
        Ok(place) => return Ok((place, wanted)),
        Err(first) => first,
    };
    if request.single_step {
        return Ok((prologue::first(&function), wanted));
    }
    Err(PlaceError::SingleStep {
        function: request.function.clone(),
        first,
    })
}

/// The paths of all cgroups by id.
pub(super) fn names(watched: &Watched) -> BTreeMap<u64, Arc<str>> {
    let mut found = Vec::new();
    walk(&watched.root, "/", &mut found);
    found
        .into_iter()
        .map(|(id, path, _)| (id, path.into()))
        .collect()
}

/// The object with its maps.
struct Programs {
    timed: bool,
    object: Object,
    losses: Losses,
    tracing: Mapped<Tracing>,
    callers: HashMap<MapData, u64, [u64; CALLS]>,
    asked: HashMap<MapData, u64, u64>,
    events: RingBuf<MapData>,
}

/// A [`Calls`] in words.
const CALLS: usize = size_of::<Calls>() / 8;

impl Programs {
    /// Hands them to the kernel; with patterns, only the calls count of those who are asked for.
    fn load(
        types: &KernelTypes,
        timed: bool,
        cgroups: &[String],
        watched: &Watched,
    ) -> Result<Self, TraceError> {
        let machine = Machine::new(None, None).map_err(|why| TraceError::System {
            what: "cannot tell the number of CPUs",
            why,
        })?;
        let mut plan = Plan::new("function", bytes!("function"), types, &machine);
        cgroup_constants(&mut plan, types, watched)?;
        plan.without("TARGETS").without("NEAR");
        plan.constant("FILTERED", u32::from(!cgroups.is_empty()));
        plan.constant("TIMED", u32::from(timed));
        let mut object = plan.load()?;
        let mut callers: HashMap<MapData, u64, [u64; CALLS]> = object.take_map("CALLER")?;
        // Those that find no room.
        let room = callers.insert(0, [0; CALLS], 0);
        room.map_err(|why| ObjectError::Load {
            object: "function",
            why: why.to_string(),
        })?;
        Ok(Self {
            timed,
            losses: Losses::of(&object)?,
            tracing: object.mapped_once("TRACING", 1)?,
            callers,
            asked: object.take_map("ASKED_FOR")?,
            events: object.take_map("EVENTS")?,
            object,
        })
    }

    /// Lets the calls of a cgroup count, where not all do.
    fn ask_for(&mut self, id: u64, globs: &Globs) {
        if !globs.is_everything() {
            // A full table is said in Quality.
            let _ = self.asked.insert(id, 1, 0);
        }
    }

    /// What a hit costs whoever calls, the callers of all these cgroups counting; leaves nothing counted.
    fn calibrate(
        &mut self,
        stepping: Stepping,
        cgroups: impl Iterator<Item = u64>,
    ) -> Result<Option<u64>, TraceError> {
        let cgroups: Vec<u64> = cgroups.collect();
        for id in &cgroups {
            let _ = self.asked.insert(id, 1, 0);
        }
        self.limit(u64::MAX, u64::MAX);
        let timed = self.timed;
        let object = &mut self.object;
        let hit_ns = trap::hit_ns(stepping, |file, offset| {
            let at =
                |object: &mut Object, program| object.attach_to_code(program, file, offset, None);
            let returned = timed.then(|| at(object, "returned")).transpose()?;
            Ok(Links {
                entered: at(object, "entered")?,
                returned,
            })
        })?;
        for id in &cgroups {
            let _ = self.asked.remove(id);
        }
        let counted: Vec<u64> = self.callers.keys().flatten().collect();
        for id in counted.iter().filter(|id| **id != 0) {
            let _ = self.callers.remove(id);
        }
        if let Some(at) = self.tracing.at(0, 0) {
            for word in 0..size_of::<Tracing>() / 8 {
                super::keyed::store(at.cast::<u64>().wrapping_add(word), 0);
            }
        }
        Ok(hit_ns)
    }

    /// Puts the programs there: by what, and what a hit is taken to cost.
    fn attach(
        &mut self,
        site: &Site,
        request: &TraceRequest,
        hit_ns: Option<u64>,
        types: &KernelTypes,
    ) -> Result<(Means, u64, Links), TraceError> {
        let timed = self.timed;
        let cost_ns = |by| hit_ns.unwrap_or_else(|| site.cost_ns(by, timed));
        // The limits hold from the first hit on.
        let limit = |programs: &Self, by| {
            programs.limit(allowance(cost_ns(by)), request.max_hits);
        };
        let home = match site {
            Site::File { file, place, .. } => {
                let at = |object: &mut Object, program| {
                    object.attach_to_code(program, file, place.offset, None)
                };
                limit(self, Means::Uprobe);
                let links = self.links(at, "entered", "returned")?;
                return Ok((Means::Uprobe, cost_ns(Means::Uprobe), links));
            }
            Site::Kernel(home) => home,
        };
        let function = &request.function;
        let at = |object: &mut Object, program| object.attach_to_kernel(program, function, types);
        let fentry = match home {
            // Its types are not the kernel's own.
            Home::Module(module) => Err(format!("it is in module {module}")),
            Home::Kernel if request.force_fallback => Err("not asked for".to_owned()),
            Home::Kernel => {
                limit(self, Means::Fentry);
                match self.links(at, "kernel_entered", "kernel_returned") {
                    Ok(links) => return Ok((Means::Fentry, cost_ns(Means::Fentry), links)),
                    Err(why) => Err(why.to_string()),
                }
            }
        };
        let has_kprobes = kernel_function::has_kprobes();
        let kprobe = match &has_kprobes {
            Ok(()) => {
                limit(self, Means::Kprobe);
                match self.links(at, "kernel_probed", "kernel_probe_returned") {
                    Ok(links) => return Ok((Means::Kprobe, cost_ns(Means::Kprobe), links)),
                    Err(why) => Err(why.to_string()),
                }
            }
            Err(why) => Err(why.clone()),
        };
        // Is it this function, or all of them?
        let (fentry, kprobe) = (said(fentry), said(kprobe));
        if let (Err(why), Err(_)) = (self.try_fentry(types), has_kprobes) {
            let fentry = why;
            return Err(KernelFunctionError::NoMeans { fentry, kprobe }.into());
        }
        Err(KernelFunctionError::NotTraceable {
            function: function.clone(),
            fentry,
            kprobe,
        }
        .into())
    }

    /// The return first: a call that is counted is then one whose return is seen.
    fn links(
        &mut self,
        attach: impl Fn(&mut Object, &'static str) -> Result<Attached, ObjectError>,
        entered: &'static str,
        returned: &'static str,
    ) -> Result<Links, ObjectError> {
        let object = &mut self.object;
        let returned = self.timed.then(|| attach(object, returned)).transpose()?;
        Ok(Links {
            entered: attach(object, entered)?,
            returned,
        })
    }

    /// Whether the kernel lets a program run where one of its functions begins.
    fn try_fentry(&mut self, types: &KernelTypes) -> Result<(), String> {
        let tried = kernel_function::TRIED;
        let tried = self.object.attach_to_kernel("kernel_entered", tried, types);
        tried.map(drop).map_err(|why| why.to_string())
    }

    /// Says how many hits, and how many that count, there may be.
    fn limit(&self, traps: u64, hits: u64) {
        self.set(|tracing| (tracing.trap_limit, tracing.hit_limit) = (traps, hits));
    }

    fn state(&self) -> Tracing {
        self.tracing.get(0, 0).unwrap_or_default()
    }

    /// Changes limits; of the rest only before anything counts.
    fn set(&self, change: impl FnOnce(&mut Tracing)) {
        let mut state = self.state();
        change(&mut state);
        let words: [(usize, u64); 2] = [
            (std::mem::offset_of!(Tracing, trap_limit), state.trap_limit),
            (std::mem::offset_of!(Tracing, hit_limit), state.hit_limit),
        ];
        if let Some(at) = self.tracing.at(0, 0) {
            for (offset, value) in words {
                super::keyed::store(at.cast::<u64>().wrapping_add(offset / 8), value);
            }
        }
    }

    fn next_event(&mut self) -> Option<LimitEvent> {
        plain(&self.events.next()?)
    }

    fn read(
        &self,
        request: &TraceRequest,
        watched: &Watched,
        mut paths: BTreeMap<u64, Arc<str>>,
        over: Over,
    ) -> Result<FunctionReading, TraceError> {
        let state = self.state();
        let mut quality = Quality::default();
        self.losses.tell(&mut quality);
        // Also those that were made meanwhile.
        paths.extend(names(watched));
        let mut cgroups: BTreeMap<Arc<str>, FunctionCalls> = BTreeMap::new();
        for entry in &self.callers {
            let (id, words) = entry.map_err(|why| ObjectError::Load {
                object: "function",
                why: why.to_string(),
            })?;
            let calls = calls(&words);
            if calls.calls == 0 && calls.returns == 0 {
                continue;
            }
            let name = match id {
                0 => "other".into(),
                _ => paths
                    .get(&id)
                    .cloned()
                    .unwrap_or_else(|| id.to_string().into()),
            };
            cgroups.insert(name, calls);
        }
        let counted = state.hits.min(state.hit_limit);
        let returns: u64 = cgroups.values().map(|c| c.returns).sum();
        let under_way = if self.timed {
            counted.saturating_sub(returns + state.missing + state.deep)
        } else {
            0
        };
        quality.censored = under_way;
        Ok(FunctionReading {
            file: request.file.clone(),
            function: request.function.clone(),
            by: Means::Uprobe,
            place: None,
            hit_ns: None,
            timed: self.timed,
            elapsed: over.elapsed,
            ended: over.ended,
            traps: state.traps,
            calls: counted,
            overshoot: state.hits - counted,
            cgroups,
            nested: state.nested,
            deep: state.deep,
            missing: state.missing,
            under_way,
            quality,
        })
    }
}

fn calls(words: &[u64; CALLS]) -> FunctionCalls {
    let word = |offset: usize| words[offset / 8];
    let mut hist = [0; BUCKETS];
    let from = std::mem::offset_of!(Calls, hist) / 8;
    hist.copy_from_slice(&words[from..from + BUCKETS]);
    FunctionCalls {
        calls: word(std::mem::offset_of!(Calls, calls)),
        returns: word(std::mem::offset_of!(Calls, returns)),
        total_ns: word(std::mem::offset_of!(Calls, total_ns)),
        max_ns: word(std::mem::offset_of!(Calls, max_ns)),
        hist,
    }
}

/// What came of an attempt, for a person.
fn said(tried: Result<(), String>) -> String {
    tried.err().unwrap_or_default()
}

/// The breakpoint, or what stands for it.
struct Links {
    entered: Attached,
    returned: Option<Attached>,
}

impl Links {
    /// Takes it away. Each part goes at once, but its call returns only after all CPUs have left
    /// the programs; one after the other, the second would stay that long.
    fn detach(self) {
        let Self { entered, returned } = self;
        std::thread::scope(|scope| {
            scope.spawn(move || drop(returned));
            drop(entered);
        });
    }
}

/// How a trace ended.
#[derive(Clone, Copy)]
struct Over {
    ended: Ended,
    elapsed: Duration,
}

struct Waiting<'a> {
    programs: &'a mut Programs,
    request: &'a TraceRequest,
    stop: BorrowedFd<'a>,
    allowance: u64,
    cost_ns: u64,
}

impl Waiting<'_> {
    fn wait(self) -> Result<Over, TraceError> {
        let began = now();
        let end = began + self.request.span;
        let mut window = began;
        loop {
            let until = end.min(window + WINDOW);
            let stopped = self.sleep(until)?;
            while let Some(event) = self.programs.next_event() {
                let at = Duration::from_nanos(event.at_ns);
                match event.what {
                    HITS => {
                        let elapsed = at.saturating_sub(began);
                        return Ok(Over {
                            ended: Ended::Hits,
                            elapsed,
                        });
                    }
                    TRAPS => return self.too_hot(began, window, at),
                    _ => {}
                }
            }
            let now = now();
            let over = |ended| {
                Ok(Over {
                    ended,
                    elapsed: now.saturating_sub(began),
                })
            };
            if stopped {
                return over(Ended::Stopped);
            }
            if now >= end {
                return over(Ended::Time);
            }
            if now >= until {
                window = now;
                let state = self.programs.state();
                let left = state.trap_limit.saturating_sub(state.traps);
                let more = (left + self.allowance).min(SAVED * self.allowance);
                self.programs
                    .set(|limits| limits.trap_limit = state.traps + more);
            }
        }
    }

    /// Sleeps until `until`, a record, or the stop; whether it is the stop.
    fn sleep(&self, until: Duration) -> Result<bool, TraceError> {
        let events = self.programs.events.as_fd();
        sleep(self.stop, &[events], until).map_err(|why| TraceError::System {
            what: "cannot wait for the kernel's records",
            why,
        })
    }

    fn too_hot(&self, began: Duration, window: Duration, at: Duration) -> Result<Over, TraceError> {
        let elapsed = at.saturating_sub(began);
        if window != began {
            return Ok(Over {
                ended: Ended::Hot,
                elapsed,
            });
        }
        let first = Duration::from_nanos(self.programs.state().first_ns);
        let within = at.saturating_sub(first).max(Duration::from_nanos(1));
        Err(TraceError::Hot {
            function: self.request.function.clone(),
            hits: self.allowance,
            within,
            rate: self.allowance as f64 / within.as_secs_f64(),
            cost_ns: self.cost_ns,
            allowed: MAY_COST * 1e9 / self.cost_ns as f64,
        })
    }
}
