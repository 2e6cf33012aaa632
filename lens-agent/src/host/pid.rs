//! `/proc/PID`: one process.
//!
//! A process may end at any moment: then these fail with an error that
//! [is gone](ReadError::is_gone).

use std::fs;

use serde::{Deserialize, Serialize};

use super::{ReadError, Root, ticks_to_ms};
use crate::base::text::clean;

/// `PF_KTHREAD` of include/linux/sched.h: a kernel thread.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// What a thread does, as `/proc` shows it (`task_state_array` in fs/proc/array.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// R: runs, or waits for a CPU.
    Running,
    /// S: sleeps; a signal wakes it.
    Sleeping,
    /// D: sleeps; no signal wakes it.
    Blocked,
    /// T and t: stopped by a signal or a debugger.
    Stopped,
    /// Z: has ended, and its parent has not taken notice.
    Zombie,
    /// I: a kernel thread without work.
    Idle,
    /// X, P, and what a later kernel may add.
    Other,
}

impl From<char> for TaskState {
    fn from(letter: char) -> Self {
        match letter {
            'R' => Self::Running,
            'S' => Self::Sleeping,
            'D' => Self::Blocked,
            'T' | 't' => Self::Stopped,
            'Z' => Self::Zombie,
            'I' => Self::Idle,
            _ => Self::Other,
        }
    }
}

/// `/proc/PID/stat` (proc(5)). Times at a resolution of 10 ms; of all threads together, those that
/// have ended included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidStat {
    /// The process.
    pub pid: u32,
    /// The main thread's name, cleaned; at most 15 bytes in the kernel.
    pub comm: String,
    /// The main thread's state; the other threads may do something else.
    pub state: TaskState,
    /// Its parent; 0 for what has none.
    pub parent: u32,
    /// Whether it is a kernel thread.
    pub is_kernel_thread: bool,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that had to wait for a disk.
    pub major_faults: u64,
    /// CPU time in user mode.
    pub user_ms: u64,
    /// CPU time in the kernel.
    pub system_ms: u64,
    /// Threads; 0 for a zombie whose threads have all ended.
    pub threads: u64,
    /// When it was started, in milliseconds since boot; with `pid` this names a process for good.
    pub started_ms: u64,
    /// Address space.
    pub virtual_bytes: u64,
    /// Pages in memory. Off by up to 64 pages for each CPU and kind of page.
    pub rss_bytes: u64,
}

/// Reads `/proc/PID/stat`.
pub fn stat(root: &Root, pid: u32, buffer: &mut Vec<u8>) -> Result<PidStat, ReadError> {
    let text = root.read(format!("proc/{pid}/stat"), buffer)?;
    let line = text.as_line();
    // The name may contain everything, parentheses and line breaks too, but it comes once.
    let (start, end) = line
        .text
        .find('(')
        .zip(line.text.rfind(')'))
        .filter(|(start, end)| start < end)
        .ok_or_else(|| line.error("comm", "in parentheses", line.text))?;
    let comm = clean(&line.text[start + 1..end]);
    let mut fields = line.from(end + 1).fields();
    let state = fields.word("state")?.chars().next().unwrap_or('?').into();
    let parent = fields.number("ppid")?;
    let flags: u64 = fields.skip(4).number("flags")?;
    let minor_faults: u64 = fields.number("minflt")?;
    let major_faults: u64 = fields.skip(1).number("majflt")?;
    let user_ms = ticks_to_ms(fields.skip(1).number("utime")?);
    let system_ms = ticks_to_ms(fields.number("stime")?);
    let threads = fields.skip(4).number("num_threads")?;
    let started_ms = ticks_to_ms(fields.skip(1).number("starttime")?);
    let virtual_bytes = fields.number("vsize")?;
    let rss_pages: u64 = fields.number("rss")?;
    Ok(PidStat {
        pid,
        comm,
        state,
        parent,
        is_kernel_thread: flags & KERNEL_THREAD != 0,
        page_faults: minor_faults.saturating_add(major_faults),
        major_faults,
        user_ms,
        system_ms,
        threads,
        started_ms,
        virtual_bytes,
        rss_bytes: rss_pages.saturating_mul(page_size()),
    })
}

/// Of `/proc/PID/status` (proc(5)) what `stat` does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidStatus {
    /// The process as its own, innermost pid namespace numbers it.
    pub inner_pid: Option<u32>,
    /// Real user id.
    pub uid: Option<u32>,
    /// Anonymous pages.
    pub rss_anon_bytes: Option<u64>,
    /// Pages of files.
    pub rss_file_bytes: Option<u64>,
    /// Pages of shared memory.
    pub rss_shmem_bytes: Option<u64>,
    /// What is swapped out.
    pub swap_bytes: Option<u64>,
    /// Times that the main thread waited for something.
    pub voluntary_switches: Option<u64>,
    /// Times that the CPU was taken from the main thread.
    pub involuntary_switches: Option<u64>,
}

/// Reads `/proc/PID/status`.
pub fn status(root: &Root, pid: u32, buffer: &mut Vec<u8>) -> Result<PidStatus, ReadError> {
    let text = root.read(format!("proc/{pid}/status"), buffer)?;
    let mut status = PidStatus::default();
    for line in text.lines() {
        let mut fields = line.fields();
        let Ok(key) = fields.word("key") else {
            continue;
        };
        let mut bytes = || {
            fields
                .number::<u64>(key)
                .map(|kib| Some(kib.saturating_mul(1024)))
        };
        match key {
            "RssAnon:" => status.rss_anon_bytes = bytes()?,
            "RssFile:" => status.rss_file_bytes = bytes()?,
            "RssShmem:" => status.rss_shmem_bytes = bytes()?,
            "VmSwap:" => status.swap_bytes = bytes()?,
            "Uid:" => status.uid = Some(fields.number(key)?),
            "voluntary_ctxt_switches:" => status.voluntary_switches = Some(fields.number(key)?),
            "nonvoluntary_ctxt_switches:" => {
                status.involuntary_switches = Some(fields.number(key)?);
            }
            // From the outermost namespace to the innermost.
            "NSpid:" => {
                status.inner_pid = line
                    .text
                    .split_ascii_whitespace()
                    .last()
                    .and_then(|p| p.parse().ok());
            }
            _ => {}
        }
    }
    Ok(status)
}

/// `/proc/PID/io` (Documentation/filesystems/proc.rst, 3.3). Wants the right to trace the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidIo {
    /// Bytes that read calls returned, from the page cache or a pipe too.
    pub read_call_bytes: Option<u64>,
    /// Bytes that were given to write calls.
    pub write_call_bytes: Option<u64>,
    /// Read calls.
    pub read_calls: Option<u64>,
    /// Write calls.
    pub write_calls: Option<u64>,
    /// Bytes that came from a block device.
    pub read_bytes: Option<u64>,
    /// Bytes to go to a block device, counted when the page is dirtied.
    pub write_bytes: Option<u64>,
    /// Of these, bytes that were dropped before they went.
    pub cancelled_write_bytes: Option<u64>,
}

/// Reads `/proc/PID/io`.
pub fn io(root: &Root, pid: u32, buffer: &mut Vec<u8>) -> Result<PidIo, ReadError> {
    let text = root.read(format!("proc/{pid}/io"), buffer)?;
    let mut io = PidIo::default();
    text.each_pair(|key, n| match key {
        "rchar" => io.read_call_bytes = Some(n),
        "wchar" => io.write_call_bytes = Some(n),
        "syscr" => io.read_calls = Some(n),
        "syscw" => io.write_calls = Some(n),
        "read_bytes" => io.read_bytes = Some(n),
        "write_bytes" => io.write_bytes = Some(n),
        "cancelled_write_bytes" => io.cancelled_write_bytes = Some(n),
        _ => {}
    })?;
    Ok(io)
}

/// How many files the process has open.
///
/// The size of `/proc/PID/fd` says so since Linux 6.2 (`proc_readfd_count` in fs/proc/fd.c); before,
/// it is 0, and the entries are counted.
pub fn open_files(root: &Root, pid: u32) -> Result<u64, ReadError> {
    let path = root.path(format!("proc/{pid}/fd"));
    let count = || match fs::metadata(&path)?.len() {
        0 => fs::read_dir(&path).map(|entries| entries.count() as u64),
        n => Ok(n),
    };
    count().map_err(|source| ReadError::Io {
        path: path.clone(),
        source,
    })
}

/// The processes there are, in no order.
pub fn all(root: &Root) -> Result<impl Iterator<Item = u32> + use<>, ReadError> {
    let path = root.path("proc");
    match fs::read_dir(&path) {
        Ok(entries) => Ok(entries.filter_map(Result::ok).filter_map(|entry| {
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
        })),
        Err(source) => Err(ReadError::Io { path, source }),
    }
}

fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::text::tests::root_with;

    fn stat_line(comm: &str) -> String {
        format!(
            "42 ({comm}) D 1 42 42 0 -1 4194560 100 7 5 0 30 12 0 0 20 0 3 0 67028 3133440 390 \
             18446744073709551615 1 1 1 0 0 0 0 0 0 0 0 0 17 1 0 0 9 0 0\n"
        )
    }

    #[test]
    fn the_fields_of_stat() {
        let (_dir, root) = root_with(&[("proc/42/stat", &stat_line("nginx"))]);
        let stat = stat(&root, 42, &mut Vec::new()).unwrap();
        assert_eq!(
            (stat.comm.as_str(), stat.state, stat.parent),
            ("nginx", TaskState::Blocked, 1)
        );
        assert_eq!((stat.page_faults, stat.major_faults), (105, 5));
        assert_eq!((stat.user_ms, stat.system_ms, stat.threads), (300, 120, 3));
        assert_eq!((stat.started_ms, stat.virtual_bytes), (670_280, 3_133_440));
        assert_eq!(stat.rss_bytes, 390 * page_size());
        assert!(!stat.is_kernel_thread);
    }

    #[test]
    fn a_hostile_name_breaks_nothing() {
        let (_dir, root) = root_with(&[("proc/42/stat", &stat_line("a) R 1 (\n\u{1b}[2J"))]);
        let stat = stat(&root, 42, &mut Vec::new()).unwrap();
        assert_eq!(
            (stat.comm.as_str(), stat.state),
            ("a) R 1 (??[2J", TaskState::Blocked)
        );
    }

    #[test]
    fn an_error_names_the_field() {
        let (_dir, root) = root_with(&[("proc/42/stat", "42 (sh) S 1 2 3 4 5 6 7 eight")]);
        let error = stat(&root, 42, &mut Vec::new()).unwrap_err().to_string();
        assert!(
            error.ends_with("proc/42/stat:1: majflt: ` S 1 2 3 4 5 6 7 eight` is not there"),
            "{error}"
        );
    }

    #[test]
    fn status_and_io() {
        let (_dir, root) = root_with(&[
            (
                "proc/7/status",
                "Name:\tsh\nNSpid:\t7\t1\nUid:\t1000\t0\t0\t0\nRssAnon:\t112 kB\nVmSwap:\t0 kB\n\
                 nonvoluntary_ctxt_switches:\t9\n",
            ),
            ("proc/7/io", "rchar: 6976\nwrite_bytes: 5\n"),
        ]);
        let status = status(&root, 7, &mut Vec::new()).unwrap();
        assert_eq!((status.inner_pid, status.uid), (Some(1), Some(1000)));
        assert_eq!(
            (status.rss_anon_bytes, status.swap_bytes),
            (Some(114_688), Some(0))
        );
        assert_eq!(
            (status.involuntary_switches, status.voluntary_switches),
            (Some(9), None)
        );
        let io = io(&root, 7, &mut Vec::new()).unwrap();
        assert_eq!(
            (io.read_call_bytes, io.write_bytes, io.read_bytes),
            (Some(6976), Some(5), None)
        );
    }

    #[test]
    fn this_process_is_there() {
        let root = Root::default();
        let pid = std::process::id();
        let stat = stat(&root, pid, &mut Vec::new()).unwrap();
        assert!(stat.rss_bytes > 0 && stat.threads > 0 && !stat.is_kernel_thread);
        assert!(open_files(&root, pid).unwrap() > 2);
        assert!(all(&root).unwrap().any(|other| other == pid));
    }
}
