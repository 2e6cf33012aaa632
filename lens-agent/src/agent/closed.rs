//! Read-only, by the kernel's word: after attaching, the process gives up what it does not need.
//!
//! Landlock refuses every write outside the state directory. Seccomp refuses to run programs, to
//! signal others, to mount, to load programs or attach them to anything, and to change the
//! machine in any other way that lens has no use for. Neither can be undone, and threads made
//! later inherit both; so this is done before there are any. Capabilities are not dropped.

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
    libc::SYS_process_vm_writev,
    // mount
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
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
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

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
    21, // BPF_MAP_LOOKUP_AND_DELETE_ELEM
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
    let refused = REFUSED.iter().chain(more);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        refused.map(|call| (*call, Vec::new())).collect();
    if let Some(commands) = commands {
        // Refused unless the command is one of those: all "not equal" at once.
        let others = commands
            .iter()
            .map(|n| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *n))
            .collect::<Result<Vec<_>, _>>()?;
        rules.insert(libc::SYS_bpf, vec![SeccompRule::new(others)?]);
    }
    let refuse = SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap_or(1));
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter_all_threads(&program)?;
    Ok(())
}

/// What the process may still do, tried out: each door with the system's answer.
pub fn try_doors(outside: &Path) -> Vec<(&'static str, io::Result<()>)> {
    vec![
        (
            "write a file outside the state directory",
            std::fs::write(outside.join("door"), "open"),
        ),
        (
            "make a directory outside the state directory",
            std::fs::create_dir(outside.join("doors")),
        ),
        (
            "run a program",
            std::process::Command::new("/bin/true").status().map(|_| ()),
        ),
        ("signal a process", signal_parent()),
        ("mount a file system", mount(outside)),
    ]
}

fn signal_parent() -> io::Result<()> {
    let parent = rustix::process::getppid().unwrap_or(rustix::process::Pid::INIT);
    // Signal 0: only whether it would be allowed.
    Ok(rustix::process::test_kill_process(parent)?)
}

fn mount(at: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount(
        "none",
        at,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        c"",
    )?)
}
