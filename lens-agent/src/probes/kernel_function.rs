//! Functions of the kernel, by the names in its own list of symbols, and why one cannot be traced.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::Path,
};

use super::alike::{near, suggestion};

/// The kernel's symbols: those that are code are its functions.
const SYMBOLS: &str = "/proc/kallsyms";
/// Where the kernel says that it takes breakpoints in itself (`CONFIG_KPROBE_EVENTS`).
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe/type";
/// Where it says that it takes them in programs (`CONFIG_UPROBE_EVENTS`).
const UPROBES: &str = "/sys/bus/event_source/devices/uprobe/type";
/// A function that the kernel has for trying `fentry` (`net/bpf/test_run.c`) and never calls otherwise.
pub(super) const TRIED: &str = "bpf_fentry_test1";

/// Why a function of the kernel cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum KernelFunctionError {
    /// The list of symbols cannot be read.
    #[error("cannot read {SYMBOLS}: {0}")]
    Read(io::Error),
    /// There is none.
    #[error(
        "no such function: the kernel has no `{function}`{} (one that is built into its callers has no code of its own: trace a caller)", suggestion(.near, *.all)
    )]
    NoFunction {
        /// The function.
        function: String,
        /// Names like it.
        near: Vec<String>,
        /// How many functions there are.
        all: usize,
    },
    /// Only parts of it, or versions.
    #[error(
        "the kernel has `{function}` only as the compiler has cut it: trace {}", .parts.join(" or ")
    )]
    Parts {
        /// The function.
        function: String,
        /// What there is.
        parts: Vec<String>,
    },
    /// There are several.
    #[error("the kernel has {n} functions called `{function}`: none can be traced by that name")]
    Ambiguous {
        /// The function.
        function: String,
        /// How many.
        n: usize,
    },
    /// This kernel lets nobody trace its functions.
    #[error(
        "this kernel lets none of its functions be traced: fentry: {fentry}; kprobes: {kprobe}. It would need CONFIG_FUNCTION_TRACER and CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS, or CONFIG_KPROBE_EVENTS. Functions of programs can be traced (FILE:FUNCTION)"
    )]
    NoMeans {
        /// Why not by `fentry`.
        fentry: String,
        /// Why not by kprobes.
        kprobe: String,
    },
    /// It lets others be traced, but not this one.
    #[error(
        "`{function}` is there, but this kernel does not let it be traced (notrace, or on the list of what probes must not touch): fentry: {fentry}; kprobes: {kprobe}. Trace a function that calls it, or that it calls"
    )]
    NotTraceable {
        /// The function.
        function: String,
        /// Why not by `fentry`.
        fentry: String,
        /// Why not by kprobes.
        kprobe: String,
    },
}

/// Where a function is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// In the kernel itself.
    Kernel,
    /// In this module.
    Module(String),
}

/// Finds `name`.
pub(super) fn find(name: &str) -> Result<Home, KernelFunctionError> {
    let symbols = File::open(SYMBOLS).map_err(KernelFunctionError::Read)?;
    let lines = BufReader::new(symbols).lines();
    let found = functions(lines).map_err(KernelFunctionError::Read)?;
    choose(name, found)
}

/// Names of functions, and the modules that they are in.
type Found = Vec<(String, Option<String>)>;

fn functions(lines: impl Iterator<Item = io::Result<String>>) -> io::Result<Found> {
    let mut found = Vec::new();
    for line in lines {
        let line = line?;
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some(kind), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        let module = words.next().map(|m| m.trim_matches(['[', ']']));
        // What BPF and ftrace have made is not the kernel's; in front of functions lies padding.
        let is_made = module.is_some_and(|m| m == "bpf" || m.starts_with("__builtin"));
        if matches!(kind, "t" | "T" | "w" | "W") && !is_made && !name.starts_with("__pfx_") {
            found.push((name.to_owned(), module.map(str::to_owned)));
        }
    }
    Ok(found)
}

fn choose(name: &str, mut found: Found) -> Result<Home, KernelFunctionError> {
    let function = name.to_owned();
    let n = found.iter().filter(|(known, _)| known == name).count();
    if n > 1 {
        return Err(KernelFunctionError::Ambiguous { function, n });
    }
    if let Some(at) = found.iter().position(|(known, _)| known == name) {
        return Ok(match found.swap_remove(at).1 {
            Some(module) => Home::Module(module),
            None => Home::Kernel,
        });
    }
    // `name.isra.0`, `name.constprop.0`, `name.part.0`; `name.cold` is what hardly ever runs.
    let is_part = |known: &str| {
        let rest = known.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with('.') && !rest.contains(".cold"))
    };
    let parts = found.iter().filter(|(known, _)| is_part(known));
    let mut parts: Vec<_> = parts.map(|(known, _)| format!("`{known}`")).collect();
    parts.dedup();
    if !parts.is_empty() {
        return Err(KernelFunctionError::Parts { function, parts });
    }
    let names: Vec<&str> = found.iter().map(|(known, _)| known.as_str()).collect();
    Err(KernelFunctionError::NoFunction {
        near: near(name, &names),
        function,
        all: names.len(),
    })
}

/// Whether the kernel takes breakpoints in itself.
pub(super) fn has_kprobes() -> Result<(), String> {
    is_there(KPROBES)
}

/// Whether it takes them in programs.
pub(super) fn has_uprobes() -> Result<(), String> {
    is_there(UPROBES)
}

fn is_there(path: &str) -> Result<(), String> {
    let there = Path::new(path).exists();
    there
        .then_some(())
        .ok_or_else(|| format!("this kernel has none (no {path})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let lines = "ffffffff81000000 T __x64_sys_getpgid\n\
            ffffffff81000010 t twice\nffffffff81000020 t twice\n\
            ffffffff81000030 t __pfx_find_task\n\
            ffffffff81000030 t find_task.isra.0\nffffffff81000040 t find_task.cold\n\
            ffffffff81000050 D data\n\
            ffffffffc0000000 t ext9_read\t[ext9]\nffffffffc0000100 t bpf_prog_1\t[bpf]\n";
        functions(lines.lines().map(|line| Ok(line.to_owned()))).unwrap()
    }

    #[test]
    fn functions_are_found_where_they_are() {
        assert_eq!(choose("__x64_sys_getpgid", found()).unwrap(), Home::Kernel);
        let module = Home::Module("ext9".to_owned());
        assert_eq!(choose("ext9_read", found()).unwrap(), module);
        assert_eq!(choose("find_task.isra.0", found()).unwrap(), Home::Kernel);
    }

    #[test]
    fn what_is_not_there_is_told_with_what_is() {
        let why = |name| choose(name, found()).unwrap_err().to_string();
        let near = why("sys_getpgid");
        assert!(near.contains("did you mean `__x64_sys_getpgid`?"), "{near}");
        assert!(near.contains("built into its callers"), "{near}");
        let parts = why("find_task");
        assert!(parts.ends_with("trace `find_task.isra.0`"), "{parts}");
        assert!(why("twice").contains("has 2 functions"));
        assert!(why("bpf_prog_1").contains("no such function"));
        assert!(why("data").contains("no such function"));
    }
}
