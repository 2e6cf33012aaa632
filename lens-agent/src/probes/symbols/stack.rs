//! Naming stacks.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

use blazesym::symbolize::{
    Input, Sym, Symbolizer,
    source::{Elf, Source},
};
use serde::{Deserialize, Serialize};

use super::{
    kernel::KernelSymbols,
    perf_map::PerfMap,
    process::{FileId, Files, Mapping, Process},
};
use crate::{base::text, probes::stacks::StackSample};

/// One function of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frame {
    /// Its name; file and offset where it has none.
    pub name: Arc<str>,
    /// Whether it is the kernel's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kernel: bool,
    /// Whether it was built into the one that called it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inlined: bool,
    /// The program, library, or what else its code is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<Arc<str>>,
    /// The source file, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<Arc<str>>,
    /// The line in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// A stack with names.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedStack {
    /// The outermost first; the kernel's behind the program's.
    pub frames: Vec<Frame>,
    /// Whether it does not reach to where its thread began: what called the first of its frames, or of
    /// those that are not the kernel's, is not known.
    pub truncated: bool,
    /// Whether the process was gone before its addresses could be named.
    pub gone: bool,
}

/// What stands for the frames of a process that is gone.
const GONE: &str = "[gone]";
/// Distance from a symbol of unknown size beyond which it is somebody else's code.
const NEAR: usize = 4096;

/// Functions in which threads and programs begin, or whose callers are a runtime's own.
const STARTS: &[&str] = &[
    "_start",
    "main",
    "clone",
    "clone3",
    "start_thread",
    "thread_start",
    "lang_start",
    "lang_start_internal",
    "execute_native_thread_routine",
    "thread_native_entry",
    "runtime.goexit",
    "runtime.goexit.abi0",
    "runtime.mstart",
    "runtime.mstart.abi0",
    "runtime.rt0_go.abi0",
];

fn is_start(name: &str) -> bool {
    let bare = name.trim_start_matches('_');
    // Of a Rust path the last part.
    let last = name.rsplit("::").next().unwrap_or(name);
    STARTS.contains(&name)
        || STARTS.contains(&bare)
        || STARTS.contains(&last)
        || bare.starts_with("libc_start")
        || bare.starts_with("clone3")
        || name.contains("JSEntry")
}

/// Names addresses, of processes also when they have ended meanwhile, if they were met before. Takes
/// much memory, until it is dropped.
#[derive(Default)]
pub(in crate::probes) struct Symbols {
    kernel: KernelSymbols,
    files: Files,
    processes: BTreeMap<(u32, u64), Process>,
    /// Whether it looks for source files and lines, too.
    lines: bool,
}

/// Where an address of user code lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Spot<'a> {
    file: &'a FileId,
    offset: u64,
}

/// A stack, as far as it can be one.
struct Walked<'a> {
    /// The innermost first.
    frames: Vec<(u64, &'a Mapping)>,
}

impl Symbols {
    /// One that looks for source files and lines, too.
    pub(in crate::probes) fn with_lines() -> Self {
        Self {
            lines: true,
            ..Self::default()
        }
    }

    /// Looks at the processes of these samples, while they live: what is mapped now. At those that it
    /// knows already only if `again` is true.
    pub(in crate::probes) fn meet(&mut self, samples: &[StackSample], again: bool) {
        let processes: BTreeSet<_> = samples
            .iter()
            .filter(|sample| sample.space != 0)
            .map(|sample| (sample.tgid, sample.space))
            .collect();
        for (tgid, space) in processes {
            if !again && self.processes.contains_key(&(tgid, space)) {
                continue;
            }
            if let Some(now) = Process::look(tgid, space, &mut self.files) {
                self.processes.insert((tgid, space), now);
            }
        }
    }

    /// Names the stacks of these samples, one by one.
    pub(in crate::probes) fn name(&mut self, samples: &[StackSample]) -> Vec<NamedStack> {
        let in_kernel: BTreeSet<u64> = samples.iter().flat_map(|s| calls(&s.kernel)).collect();
        let in_kernel: Vec<u64> = in_kernel.into_iter().collect();
        let names = self.kernel.names(&in_kernel);
        let kernel: BTreeMap<u64, Arc<str>> = in_kernel.into_iter().zip(names).collect();
        let walked: Vec<Option<Walked<'_>>> = samples.iter().map(|s| self.walk(s)).collect();
        let spots = walked.iter().flatten().flat_map(Walked::spots).collect();
        let found = self.look_up(&spots);
        let maps = self.perf_maps(samples);
        let stack = |(sample, walked): (&StackSample, &Option<Walked<'_>>)| {
            let mut stack = NamedStack::default();
            match walked {
                Some(walked) => {
                    let perf_map = maps.get(&(sample.tgid, sample.space));
                    stack.frames = walked.named(&found, perf_map);
                    stack.truncated = !walked.reaches_start(&stack.frames, &self.files);
                }
                None if sample.space != 0 => {
                    stack.frames.push(Frame {
                        name: GONE.into(),
                        ..Frame::default()
                    });
                    stack.truncated = true;
                    stack.gone = true;
                }
                None => {}
            }
            stack.frames.extend(kernel_frames(&sample.kernel, &kernel));
            stack
        };
        samples.iter().zip(&walked).map(stack).collect()
    }

    /// Which of a sample's user addresses can be frames; `None` if the process is not known.
    fn walk(&self, sample: &StackSample) -> Option<Walked<'_>> {
        let process = self.processes.get(&(sample.tgid, sample.space))?;
        let mut frames = Vec::new();
        for (i, at) in sample.user.iter().enumerate() {
            let frame = process.mapping(*at);
            let frame = frame.filter(|m| i == 0 || self.files.may_return_to(m, *at));
            let Some(mapping) = frame else { break };
            // What is called last in a function returns behind its end.
            frames.push((at - u64::from(i != 0), mapping));
        }
        Some(Walked { frames })
    }

    /// Symbols by file and offset; those that are not there have none. Each comes with what was built
    /// into it, the outermost first.
    fn look_up(&self, spots: &BTreeSet<Spot<'_>>) -> BTreeMap<(FileId, u64), Vec<Frame>> {
        let mut found = BTreeMap::new();
        let symbolizer = Symbolizer::builder()
            .enable_code_info(self.lines)
            .enable_inlined_fns(self.lines)
            .build();
        let mut by_file: BTreeMap<&FileId, Vec<u64>> = BTreeMap::new();
        for spot in spots {
            by_file.entry(spot.file).or_default().push(spot.offset);
        }
        for (id, offsets) in by_file {
            let Some(file) = self.files.get(id) else {
                continue;
            };
            let mut elf = Elf::new(file.path());
            elf.debug_syms = self.lines;
            let symbols = symbolizer.symbolize(&Source::Elf(elf), Input::FileOffset(&offsets));
            for (offset, symbol) in offsets.iter().zip(symbols.unwrap_or_default()) {
                if let Some(symbol) = symbol
                    .as_sym()
                    .filter(|s| s.size.is_some() || s.offset < NEAR)
                {
                    found.insert((id.clone(), *offset), frames_of(symbol));
                }
            }
        }
        found
    }

    /// The perf maps of the processes that have one.
    fn perf_maps(&self, samples: &[StackSample]) -> BTreeMap<(u32, u64), Rc<PerfMap>> {
        let keys: BTreeSet<_> = samples.iter().map(|s| (s.tgid, s.space)).collect();
        let map = |key: (u32, u64)| {
            let file = self.processes.get(&key)?.perf_map.as_ref()?;
            Some((key, Rc::new(PerfMap::read(file))))
        };
        keys.into_iter().filter_map(map).collect()
    }
}

impl Walked<'_> {
    fn spots(&self) -> impl Iterator<Item = Spot<'_>> {
        self.frames.iter().filter_map(|(at, mapping)| {
            Some(Spot {
                file: mapping.file.as_ref()?,
                offset: mapping.offset_of(*at),
            })
        })
    }

    /// The outermost first.
    fn named(
        &self,
        found: &BTreeMap<(FileId, u64), Vec<Frame>>,
        perf_map: Option<&Rc<PerfMap>>,
    ) -> Vec<Frame> {
        let mut named = Vec::new();
        for (at, mapping) in self.frames.iter().rev() {
            let offset = mapping.offset_of(*at);
            let by_file = mapping.file.clone().and_then(|id| found.get(&(id, offset)));
            let compiled = || {
                let name = perf_map.filter(|_| mapping.may_be_compiled())?.name(*at)?;
                Some(vec![Frame {
                    name: name.into(),
                    ..Frame::default()
                }])
            };
            let nameless = || {
                vec![Frame {
                    name: format!("{}+{offset:#x}", mapping.module).into(),
                    ..Frame::default()
                }]
            };
            let frames = by_file.cloned().or_else(compiled).unwrap_or_else(nameless);
            named.extend(frames.into_iter().map(|frame| Frame {
                module: Some(mapping.module.clone()),
                ..frame
            }));
        }
        named
    }

    /// Whether it goes back to where the thread began.
    fn reaches_start(&self, named: &[Frame], files: &Files) -> bool {
        let Some((outermost, (at, mapping))) = named.first().zip(self.frames.last()) else {
            return false;
        };
        is_start(&outermost.name)
            || self.frames.len() > 1 && files.begins(mapping, at + 1)
            // Whatever it is in the C library that calls `main`.
            || mapping.is_libc() && named.get(1).is_some_and(|second| is_start(&second.name))
    }
}

/// A function and what was built into it.
fn frames_of(symbol: &Sym<'_>) -> Vec<Frame> {
    let frame = |name: &str, at: Option<&blazesym::symbolize::CodeInfo<'_>>, inlined| Frame {
        name: text::clean(name).into(),
        kernel: false,
        inlined,
        module: None,
        file: at.map(|at| text::clean(&at.to_path().to_string_lossy()).into()),
        line: at.and_then(|at| at.line),
    };
    let own = frame(&symbol.name, symbol.code_info.as_deref(), false);
    let inlined = symbol.inlined.iter();
    let inlined = inlined.map(|f| frame(&f.name, f.code_info.as_ref(), true));
    std::iter::once(own).chain(inlined).collect()
}

/// The calls that a stack consists of: all but the innermost are addresses to return to.
fn calls(stack: &[u64]) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator {
    stack
        .iter()
        .enumerate()
        .map(|(i, at)| at - u64::from(i != 0))
}

/// The outermost first.
fn kernel_frames(stack: &[u64], names: &BTreeMap<u64, Arc<str>>) -> impl Iterator<Item = Frame> {
    calls(stack).rev().filter_map(|at| {
        Some(Frame {
            name: names.get(&at)?.clone(),
            kernel: true,
            ..Frame::default()
        })
    })
}
