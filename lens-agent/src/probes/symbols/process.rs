//! The address space of a process: what is mapped where, and the files of it, opened while it lives.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use super::call::{self, ends_with_call};
use crate::base::text;

/// A file of somebody else's that is kept open.
#[derive(Debug)]
pub(super) struct Opened(File);

impl Opened {
    /// A regular file; waits for nobody.
    fn regular(path: &Path, more: i32) -> Option<Self> {
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY | more;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = file.ok()?;
        file.metadata().ok()?.is_file().then_some(Self(file))
    }

    /// Where this process finds it, also when its owner is gone.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// The same from its beginning.
    pub(super) fn reopened(&self) -> Option<File> {
        File::open(self.path()).ok()
    }
}

/// A file, wherever it is mapped: device and inode.
pub(super) type FileId = (String, u64);

/// Code that is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    /// The file; none of what a program has made itself.
    pub(super) file: Option<FileId>,
    /// The name that people know it by.
    pub(super) module: Arc<str>,
}

impl Mapping {
    /// One line of `/proc/PID/maps`, if code may run there.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        if words.next()?.as_bytes().get(2) != Some(&b'x') {
            return None;
        }
        let number = |word: &str| u64::from_str_radix(word, 16).ok();
        let offset = number(words.next()?)?;
        let device = words.next()?;
        let inode: u64 = words.next()?.parse().ok()?;
        let path = words.next().unwrap_or_default().trim_start();
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let name = path.rsplit('/').next().filter(|name| !name.is_empty());
        Some(Self {
            start: number(start)?,
            end: number(end)?,
            offset,
            file: (inode != 0 && path.starts_with('/')).then(|| (device.to_owned(), inode)),
            module: name.map_or_else(|| "[anon]".into(), |name| text::clean(name).into()),
        })
    }

    /// Where in the file, or in what is no file, `at` lies.
    pub(super) fn offset_of(&self, at: u64) -> u64 {
        at - self.start + if self.file.is_some() { self.offset } else { 0 }
    }

    /// Whether the process's own compiler may have put code there.
    pub(super) fn may_be_compiled(&self) -> bool {
        self.file.is_none() && (&*self.module == "[anon]" || self.module.starts_with("[anon:"))
    }

    /// Whether it is of the C library of GNU, in which threads and programs begin.
    pub(super) fn is_libc(&self) -> bool {
        ["libc.so", "libc-", "libpthread"]
            .iter()
            .any(|start| self.module.starts_with(start))
    }
}

/// Files that are kept open, by what they are.
#[derive(Debug, Default)]
pub(super) struct Files(BTreeMap<FileId, Option<Rc<Opened>>>);

/// Files that are kept open at the most; of others symbols are not known.
const OPEN: usize = 512;

impl Files {
    pub(super) fn get(&self, id: &FileId) -> Option<&Rc<Opened>> {
        self.0.get(id)?.as_ref()
    }

    fn open(&mut self, pid: u32, mapping: &Mapping) {
        let Some(id) = &mapping.file else { return };
        if self.0.contains_key(id) || self.0.len() >= OPEN {
            return;
        }
        // As the process sees it, in whatever mount namespace, and if it has been removed, too.
        let (start, end) = (mapping.start, mapping.end);
        let path = format!("/proc/{pid}/map_files/{start:x}-{end:x}");
        let opened = Opened::regular(Path::new(&path), 0).map(Rc::new);
        self.0.insert(id.clone(), opened);
    }

    /// Whether a function can return to `at` of `mapping`; where its bytes are not known, it may.
    pub(super) fn may_return_to(&self, mapping: &Mapping, at: u64) -> bool {
        self.around(mapping, at).is_none_or(|(bytes, back)| {
            let (before, behind) = bytes.split_at(back);
            ends_with_call(before) || behind.starts_with(&call::RESTORER)
        })
    }

    /// Whether a thread or a program begins with what is called in front of `at` of `mapping`.
    pub(super) fn begins(&self, mapping: &Mapping, at: u64) -> bool {
        mapping.is_libc()
            && self.around(mapping, at).is_some_and(|(bytes, back)| {
                let (before, behind) = bytes.split_at(back);
                call::begins(before, behind)
            })
    }

    /// What is in front of `at` and behind it, and how much of it is in front.
    fn around(&self, mapping: &Mapping, at: u64) -> Option<(Vec<u8>, usize)> {
        let file = self.get(mapping.file.as_ref()?)?;
        let offset = mapping.offset_of(at);
        let back = offset.min(call::LONGEST as u64);
        let mut bytes = vec![0; call::LONGEST + call::RESTORER.len()];
        let read = file.0.read_at(&mut bytes, offset - back).ok()?;
        bytes.truncate(read);
        let back = usize::try_from(back).ok()?;
        (back <= read).then_some((bytes, back))
    }
}

/// A process that was alive when it was looked at.
#[derive(Debug)]
pub(super) struct Process {
    mappings: Vec<Mapping>,
    pub(super) perf_map: Option<Opened>,
}

impl Process {
    /// The process `pid`, if its address space is the one that is known as `space`.
    pub(super) fn look(pid: u32, space: u64, files: &mut Files) -> Option<Self> {
        let is_same = || start_stack(pid) == Some(space);
        if !is_same() {
            return None;
        }
        let maps = fs::read(format!("/proc/{pid}/maps")).ok()?;
        let maps = String::from_utf8_lossy(&maps);
        let mappings: Vec<_> = maps.lines().filter_map(Mapping::parse).collect();
        for mapping in &mappings {
            files.open(pid, mapping);
        }
        let perf_map = perf_map(pid);
        // It may have begun another program meanwhile, or be another process.
        (is_same() && !mappings.is_empty()).then_some(Self { mappings, perf_map })
    }

    /// Where code is mapped that `at` lies in.
    pub(super) fn mapping(&self, at: u64) -> Option<&Mapping> {
        let behind = self.mappings.partition_point(|m| m.start <= at);
        let mapping = self.mappings.get(behind.checked_sub(1)?)?;
        (at < mapping.end).then_some(mapping)
    }
}

/// The perf map of a process, as it sees it: by its root, and by the number that it knows itself by.
fn perf_map(pid: u32) -> Option<Opened> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("NStgid:"));
    let own = line?.split_ascii_whitespace().next_back()?;
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let path = root.join("tmp").join(format!("perf-{own}.map"));
    // A link would be followed from this process's root.
    Opened::regular(&path, libc::O_NOFOLLOW)
}

/// Field 28 of `/proc/PID/stat`: `mm->start_stack`.
pub(in crate::probes) fn start_stack(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // In front is the name, which may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(28 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_taken_and_files_keep_their_names() {
        let line = "7f00-8f00 r-xp 00001000 08:01 77                   /usr/lib/lib c.so (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.start, mapping.end), (0x7f00, 0x8f00));
        assert_eq!(mapping.file, Some(("08:01".to_owned(), 77)));
        assert_eq!(&*mapping.module, "lib c.so");
        assert_eq!(mapping.offset_of(0x7f10), 0x1010);
        assert!(Mapping::parse("7f00-8f00 rw-p 00000000 00:00 0 [heap]").is_none());
        let compiled = Mapping::parse("7f00-8f00 rwxp 00000000 00:00 0 ").unwrap();
        assert!(compiled.may_be_compiled());
        assert_eq!(compiled.offset_of(0x7f10), 0x10);
        let vdso = Mapping::parse("7f00-8f00 r-xp 00000000 00:00 0      [vdso]").unwrap();
        assert!(!vdso.may_be_compiled() && vdso.file.is_none());
    }

    #[test]
    fn this_process_is_known_again() {
        let pid = std::process::id();
        let space = start_stack(pid).unwrap();
        let mut files = Files::default();
        let process = Process::look(pid, space, &mut files).unwrap();
        let here = this_process_is_known_again as fn() as usize as u64;
        let mapping = process.mapping(here).unwrap();
        assert!(files.get(mapping.file.as_ref().unwrap()).is_some());
        assert!(process.mapping(0x10).is_none());
        assert!(Process::look(pid, space + 1, &mut files).is_none());
    }
}
