//! Read-only, by the kernel's word: after attaching, the process gives up what it does not need.
//!
//! Landlock refuses to make, write or remove files outside the state directory. Seccomp refuses to
//! run programs, to signal others, to mount, to load programs or attach them to anything, to speak
//! to anything but the network, and to change files' owners and modes, other processes or the
//! machine in any other way that lens has no use for. Neither can be undone, and threads made
//! later inherit both; so this is done before there are any. It is a list of what is refused, not
//! of what is allowed, and capabilities are not dropped.

use std::{collections::BTreeMap, io, path::Path};

use landlock::{
    ABI, AccessFs, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus,
    path_beneath_rules,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::base::quality::Quality;

/// Why a door could not be closed.
#[derive(Debug, thiserror::Error)]
enum ClosedError {
    #[error("Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    #[error("this kernel has no Landlock (5.13, CONFIG_SECURITY_LANDLOCK and `lsm=...,landlock`)")]
    NoLandlock,
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
    #[error("seccomp: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

/// Calls that lens has no use for once its probes are attached, refused with EPERM.
const REFUSED: &[i64] = &[
    // run programs
    libc::SYS_execve,
    libc::SYS_execveat,
    // signal, stop or look into others
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pidfd_getfd,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_ioprio_set,
    // change what Landlock does not watch of files
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    SETXATTRAT,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    REMOVEXATTRAT,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_utimensat,
    // what is asked for through a ring passes no filter
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // mount
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    // change the machine
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_msgctl,
    libc::SYS_semctl,
    libc::SYS_shmctl,
    libc::SYS_userfaultfd,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// Calls newer than their names in libc; the numbers are the kernel's.
const FCHMODAT2: i64 = 452;
const SETXATTRAT: i64 = 463;
const REMOVEXATTRAT: i64 = 466;
const OPEN_TREE_ATTR: i64 = 467;

/// Calls through the 32-bit pointers of x32, which has numbers of its own.
const X32: u32 = 0x4000_0000;

/// What the agent leaves to its child that attaches on demand.
const ATTACHING: &[i64] = &[libc::SYS_perf_event_open];

/// What that child has no use for, but the agent has.
const SPEAKING: &[i64] = &[libc::SYS_socket, libc::SYS_connect, libc::SYS_listen];

/// Commands of bpf(2) that are needed afterwards: to look into maps and at programs. Their numbers
/// are the order of `enum bpf_cmd`.
const BPF_COMMANDS: &[u64] = &[
    1,  // BPF_MAP_LOOKUP_ELEM
    2,  // BPF_MAP_UPDATE_ELEM
    3,  // BPF_MAP_DELETE_ELEM
    4,  // BPF_MAP_GET_NEXT_KEY
    15, // BPF_OBJ_GET_INFO_BY_FD
    17, // BPF_RAW_TRACEPOINT_OPEN: of programs that were loaded and detached before
    21, // BPF_MAP_LOOKUP_AND_DELETE_ELEM
    24, // BPF_MAP_LOOKUP_BATCH
    32, // BPF_ENABLE_STATS
];

/// Closes what can be closed; what cannot is told in `quality`.
pub fn close(state_dir: &Path, quality: &mut Quality) {
    if let Err(why) = forbid_writes(&[state_dir]) {
        quality.miss("closed.writes", why.to_string());
    }
    if let Err(why) = forbid_calls(ATTACHING, Some(BPF_COMMANDS)) {
        quality.miss("closed.calls", why.to_string());
    }
}

/// The same for the child that attaches on demand: it writes nowhere and speaks to nobody, and may
/// load programs.
pub(super) fn close_attacher(quality: &mut Quality) {
    if let Err(why) = forbid_writes(&[]) {
        quality.miss("closed.attacher_writes", why.to_string());
    }
    if let Err(why) = forbid_calls(SPEAKING, None) {
        quality.miss("closed.attacher_calls", why.to_string());
    }
}

/// Ways to change files that Landlock would refuse.
const CHANGING: &[i64] = &[
    libc::SYS_creat,
    // its flags lie in memory, which a filter cannot read
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
];

/// The same for the child that names addresses: without Landlock, which would keep it from looking at
/// other processes' mappings; it opens nothing for writing, and neither speaks nor loads or attaches
/// programs.
pub fn close_namer(quality: &mut Quality) {
    let refused = [SPEAKING, ATTACHING, CHANGING].concat();
    let closed = writing_opens().and_then(|opens| forbid(&refused, Some(&[]), opens));
    if let Err(why) = closed {
        quality.miss("closed.namer_calls", why.to_string());
    }
}

/// `open` and `openat` with a flag that lets one write or make a file.
fn writing_opens() -> Result<Vec<(i64, Vec<SeccompRule>)>, ClosedError> {
    let flags = [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC];
    let with_any = |argument| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let with = |flag: &i32| {
            let flag = u64::try_from(*flag).unwrap_or_default();
            let set = SeccompCmpOp::MaskedEq(flag);
            let flags = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, set, flag)?;
            SeccompRule::new(vec![flags])
        };
        flags.iter().map(with).collect()
    };
    Ok(vec![
        (libc::SYS_open, with_any(1)?),
        (libc::SYS_openat, with_any(2)?),
    ])
}

fn forbid_writes(but_in: &[&Path]) -> Result<(), ClosedError> {
    let writes = AccessFs::from_write(ABI::V5);
    let status = Ruleset::default()
        .handle_access(writes)?
        .create()?
        .add_rules(path_beneath_rules(but_in, writes))?
        .restrict_self()?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(ClosedError::NoLandlock),
        _ => Ok(()),
    }
}

/// Forbids what nobody needs, `more`, and all commands of bpf(2) but `commands`, if any are named.
fn forbid_calls(more: &[i64], commands: Option<&[u64]>) -> Result<(), ClosedError> {
    forbid(more, commands, Vec::new())
}

/// The same, and what `others` say.
fn forbid(
    more: &[i64],
    commands: Option<&[u64]>,
    others: Vec<(i64, Vec<SeccompRule>)>,
) -> Result<(), ClosedError> {
    let itself = &[0];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::from([
        // Limits and weight of other processes.
        (libc::SYS_prlimit64, vec![unless(0, itself)?]),
        (
            libc::SYS_setpriority,
            vec![unless(0, &[PRIO_PROCESS])?, unless(1, itself)?],
        ),
        (libc::SYS_socket, vec![unless(0, NETWORK)?]),
    ]);
    match commands {
        // Without a condition: all of them.
        Some([]) => drop(rules.insert(libc::SYS_bpf, Vec::new())),
        Some(commands) => drop(rules.insert(libc::SYS_bpf, vec![unless(0, commands)?])),
        None => {}
    }
    rules.extend(others);
    let refused = REFUSED.iter().chain(more);
    rules.extend(refused.map(|call| (*call, Vec::new())));
    let refuse = SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap_or(1));
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter_all_threads(&program)?;
    seccompiler::apply_filter_all_threads(&without_x32())?;
    Ok(())
}

/// `which` of setpriority(2): one process, or thread.
const PRIO_PROCESS: u64 = 0;
/// Domains of socket(2): `AF_INET`, `AF_INET6`. Not `AF_UNIX`: who listens there may do what is
/// refused here.
const NETWORK: &[u64] = &[2, 10];

/// Refused, unless this argument is one of those: all "not equal" at once.
fn unless(argument: u8, allowed: &[u64]) -> Result<SeccompRule, seccompiler::BackendError> {
    let other =
        |n: &u64| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *n);
    SeccompRule::new(allowed.iter().map(other).collect::<Result<Vec<_>, _>>()?)
}

/// Refuses every call by a number of x32, which the other filter does not know.
fn without_x32() -> BpfProgram {
    let step = |code: u32, (jt, jf): (u8, u8), k: u32| seccompiler::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    let errno = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap_or(1);
    vec![
        // The number is the first word of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, (0, 1), X32),
        step(libc::BPF_RET | libc::BPF_K, (0, 0), errno),
        step(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ALLOW),
    ]
}

/// One thing that a closed process must not be able to do.
#[derive(Debug)]
pub struct Door {
    /// What was tried.
    pub what: &'static str,
    /// The system's answer.
    pub answer: io::Result<()>,
}

impl Door {
    /// Whether the kernel forbids it; that it failed for another reason is no lock.
    pub fn is_closed(&self) -> bool {
        let errno = self.answer.as_ref().err().and_then(io::Error::raw_os_error);
        matches!(errno, Some(libc::EPERM | libc::EACCES))
    }
}

/// What the process may still do, tried out in a directory outside the state directory. What turns
/// out to be possible is undone.
pub fn try_doors(outside: &Path) -> Vec<Door> {
    let door = |what, answer| Door { what, answer };
    let (file, folder) = (outside.join("door"), outside.join("doors"));
    let parent = rustix::process::getppid();
    vec![
        door("write a file", std::fs::write(&file, "open")),
        door(
            "make a directory",
            std::fs::create_dir(&folder).and_then(|()| std::fs::remove_dir(&folder)),
        ),
        door(
            "change a mode",
            std::fs::set_permissions(outside, std::os::unix::fs::PermissionsExt::from_mode(0o700)),
        ),
        door(
            "run a program",
            std::process::Command::new("/bin/true").status().map(|_| ()),
        ),
        door(
            "signal a process",
            // Signal 0: only whether it would be allowed.
            parent.map_or(Ok(()), |parent| {
                Ok(rustix::process::test_kill_process(parent)?)
            }),
        ),
        door(
            "change another's weight",
            rustix::process::getpriority_process(parent)
                .and_then(|nice| rustix::process::setpriority_process(parent, nice))
                .map_err(io::Error::from),
        ),
        door("mount a file system", mount(outside)),
        door("speak to a local service", speak(outside)),
        door("set up a ring", ring()),
    ]
}

fn mount(at: &Path) -> io::Result<()> {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", at, "tmpfs", flags, c"")?;
    Ok(rustix::mount::unmount(
        at,
        rustix::mount::UnmountFlags::empty(),
    )?)
}

/// An address at which nobody listens: refused is only the socket.
fn speak(outside: &Path) -> io::Result<()> {
    match std::os::unix::net::UnixStream::connect(outside.join("nobody")) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map(|_| ()),
    }
}

fn ring() -> io::Result<()> {
    // SAFETY: the kernel checks the pointer, which points nowhere.
    #[expect(unsafe_code, reason = "no safe wrapper in use here")]
    let made = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
    let why = io::Error::last_os_error();
    // It was let in, and found no parameters.
    if made >= 0 || why.raw_os_error() == Some(libc::EFAULT) {
        return Ok(());
    }
    Err(why)
}
