//! A process whose allocations are looked at: its C library, and whether it allocates by that.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    num::NonZeroU32,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use object::{Object as _, ObjectSymbol as _, ReadCache};

use super::HeapError;
use crate::{
    base::text,
    probes::prologue::{self, Function, PlaceError},
};

/// A process and its C library.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) pid: NonZeroU32,
    pub(super) comm: String,
    /// `mm_struct.start_stack`, by which its address space is known again.
    pub(super) space: u64,
    library: File,
    name: String,
}

/// A file with code that a process has mapped.
struct Mapped {
    /// `START-END`, as `/proc/PID/map_files` has it.
    range: String,
    path: String,
}

impl Target {
    /// Looks at the process.
    pub(super) fn look(pid: u32) -> Result<Self, HeapError> {
        let gone = || HeapError::NoProcess(pid);
        let number = NonZeroU32::new(pid).ok_or_else(gone)?;
        let comm = fs::read(format!("/proc/{pid}/comm")).map_err(|_| gone())?;
        let comm = text::clean_bytes(comm.trim_ascii_end());
        let maps = fs::read(format!("/proc/{pid}/maps")).map_err(|why| HeapError::System {
            what: "cannot look at what the process maps",
            why,
        })?;
        let files = code(&String::from_utf8_lossy(&maps));
        let open = |mapped: &Mapped| -> io::Result<File> {
            // As the process sees it, in whatever mount namespace, and if it has been removed, too.
            File::open(format!("/proc/{pid}/map_files/{}", mapped.range))
        };
        let mut library = None;
        let mut own_malloc = None;
        let mut is_go = false;
        for mapped in &files {
            let name = name_of(&mapped.path);
            // The loader has one for itself.
            if name.starts_with("ld-linux") || name.starts_with("ld-2.") {
                continue;
            }
            let Ok(file) = open(mapped) else { continue };
            if is_c_library(name) {
                library = library.or(Some((file, name.to_owned())));
                continue;
            }
            let (mallocs, go) = looks_like(&file);
            is_go |= go;
            if mallocs {
                own_malloc = own_malloc.or_else(|| Some(name.to_owned()));
            }
        }
        let unsupported = |why: String| HeapError::Unsupported {
            pid,
            comm: comm.clone(),
            why,
        };
        if is_go {
            let why = "it is a Go program, whose runtime has an allocator of its own";
            return Err(unsupported(why.to_owned()));
        }
        if let Some(name) = own_malloc {
            let why = format!("its `malloc` is that of {}", text::clean(&name));
            return Err(unsupported(why));
        }
        let Some((library, name)) = library else {
            let why = "it maps no C library (linked statically, or a runtime of its own)";
            return Err(unsupported(why.to_owned()));
        };
        Ok(Self {
            pid: number,
            comm,
            space: space_of(pid).ok_or_else(gone)?,
            library,
            name,
        })
    }

    /// Where this process finds the library.
    pub(super) fn file(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.library.as_raw_fd()))
    }

    /// The library's function of this name.
    pub(super) fn function(&self, name: &str) -> Result<Function, PlaceError> {
        let opened = File::open(self.file()).map_err(|why| PlaceError::Read {
            file: self.name.clone(),
            why: why.to_string(),
        })?;
        prologue::find_in(opened, &self.name, name)
    }

    /// Whether it is still there, and the same.
    pub(super) fn lives(&self) -> bool {
        space_of(self.pid.get()) == Some(self.space)
    }

    /// CPU time of its threads.
    pub(super) fn cpu_time(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid));
        let of = |task: io::Result<fs::DirEntry>| {
            let told = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            told.split(' ').next()?.parse::<u64>().ok()
        };
        let ns: u64 = tasks.into_iter().flatten().filter_map(of).sum();
        Duration::from_nanos(ns)
    }
}

fn space_of(pid: u32) -> Option<u64> {
    crate::probes::symbols::start_stack(pid)
}

/// Files that code is mapped of, by what they are.
fn code(maps: &str) -> Vec<Mapped> {
    let mut found: BTreeMap<(String, String), Mapped> = BTreeMap::new();
    for line in maps.lines() {
        let mut words = line.splitn(6, ' ');
        let (Some(range), Some(modes), _, Some(device), Some(inode)) = (
            words.next(),
            words.next(),
            words.next(),
            words.next(),
            words.next(),
        ) else {
            continue;
        };
        let path = words.next().unwrap_or_default().trim_start();
        if modes.as_bytes().get(2) != Some(&b'x') || !path.starts_with('/') {
            continue;
        }
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        found
            .entry((device.to_owned(), inode.to_owned()))
            .or_insert_with(|| Mapped {
                range: range.to_owned(),
                path: path.to_owned(),
            });
    }
    found.into_values().collect()
}

fn name_of(path: &str) -> &str {
    let name = Path::new(path).file_name().and_then(|name| name.to_str());
    name.unwrap_or_default()
}

/// glibc's, by its old names, too, and musl's.
fn is_c_library(name: &str) -> bool {
    name == "libc.so.6"
        || name.starts_with("libc-2.")
        || name.starts_with("ld-musl-")
        || name.starts_with("libc.musl-")
}

/// Whether a file offers a `malloc` of its own, and whether it is a program of Go.
fn looks_like(file: &File) -> (bool, bool) {
    let Ok(file) = file.try_clone() else {
        return (false, false);
    };
    let cache = ReadCache::new(file);
    let Ok(elf) = object::File::parse(&cache) else {
        return (false, false);
    };
    let mallocs = elf
        .dynamic_symbols()
        .any(|symbol| !symbol.is_undefined() && symbol.name() == Ok("malloc"));
    let is_go = prologue::is_go(|name| elf.section_by_name(name).is_some());
    (mallocs, is_go)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_libraries_are_known_by_their_names() {
        for (name, is) in [
            ("libc.so.6", true),
            ("libc-2.31.so", true),
            ("ld-musl-x86_64.so.1", true),
            ("libc++.so.1", false),
            ("libcrypto.so.3", false),
        ] {
            assert_eq!(is_c_library(name), is, "{name}");
        }
    }

    #[test]
    fn each_file_with_code_is_looked_at_once() {
        let maps = "1000-2000 r--p 00000000 08:01 7   /usr/lib/libc.so.6\n\
            2000-3000 r-xp 00001000 08:01 7   /usr/lib/libc.so.6\n\
            4000-5000 r-xp 00001000 08:01 7   /usr/lib/libc.so.6\n\
            6000-7000 r-xp 00000000 08:01 9   /srv/a b (deleted)\n\
            8000-9000 rwxp 00000000 00:00 0 \n";
        let found: Vec<_> = code(maps).into_iter().map(|m| (m.range, m.path)).collect();
        let wanted = [
            ("2000-3000", "/usr/lib/libc.so.6"),
            ("6000-7000", "/srv/a b"),
        ];
        let wanted = wanted.map(|(range, path)| (range.to_owned(), path.to_owned()));
        assert_eq!(found, wanted);
    }
}
