//! Perf events that run a program, on the CPUs that are online when they are opened.
//!
//! Their descriptors are kept, because a closed agent can open no others: so they can be stopped and
//! started again, and their pace be changed.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// At what a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// At each page fault that waits for a disk (`PERF_COUNT_SW_PAGE_FAULTS_MAJ`).
    MajorFault,
    /// Each time so many nanoseconds have passed, on CPUs that are not idle
    /// (`PERF_COUNT_SW_CPU_CLOCK`).
    Clock(u64),
}

/// The first version of `struct perf_event_attr`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample: u64,
    read: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    more: u64,
}

const _: () = assert!(size_of::<Attr>() == 64);

/// `PERF_TYPE_SOFTWARE`, and two of `enum perf_sw_ids`.
const SOFTWARE: u32 = 1;
const CPU_CLOCK: u64 = 0;
const MAJOR_FAULTS: u64 = 6;
/// `perf_event_attr.exclude_idle`
const EXCLUDE_IDLE: u64 = 1 << 7;
/// `PERF_FLAG_FD_CLOEXEC`
const CLOSE_ON_EXEC: u64 = 1 << 3;

/// `PERF_EVENT_IOC_ENABLE`, `_DISABLE`, `_PERIOD`, `_SET_BPF`
const ENABLE: libc::c_ulong = 0x2400;
const DISABLE: libc::c_ulong = 0x2401;
const PERIOD: libc::c_ulong = 0x4008_2404;
const SET_BPF: libc::c_ulong = 0x4004_2408;

/// One event on each CPU.
#[derive(Debug)]
pub(super) struct Events(Vec<OwnedFd>);

impl Events {
    /// Has `program` run at `event` on these CPUs.
    pub(super) fn open(event: Event, cpus: &[u32], program: BorrowedFd<'_>) -> io::Result<Self> {
        let mut events = Vec::new();
        for cpu in cpus {
            let event = open(event, *cpu)?;
            let program = libc::c_ulong::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
            control(&event, SET_BPF, program)?;
            events.push(event);
        }
        Ok(Self(events))
    }

    /// Lets them happen or not.
    pub(super) fn enable(&self, enabled: bool) -> io::Result<()> {
        let request = if enabled { ENABLE } else { DISABLE };
        self.0
            .iter()
            .try_for_each(|event| control(event, request, 0))
    }

    /// Has those of a clock happen each time so many nanoseconds have passed.
    pub(super) fn set_period(&self, ns: u64) -> io::Result<()> {
        self.0.iter().try_for_each(|event| {
            let at = std::ptr::from_ref(&ns).expose_provenance();
            control(
                event,
                PERIOD,
                libc::c_ulong::try_from(at).map_err(io::Error::other)?,
            )
        })
    }
}

fn open(event: Event, cpu: u32) -> io::Result<OwnedFd> {
    let (config, period, flags) = match event {
        Event::MajorFault => (MAJOR_FAULTS, 1, 0),
        Event::Clock(ns) => (CPU_CLOCK, ns, EXCLUDE_IDLE),
    };
    let attr = Attr {
        kind: SOFTWARE,
        size: 64,
        config,
        period,
        flags,
        ..Attr::default()
    };
    let (everybody, no_group) = (-1, -1);
    // SAFETY: the structure is as long as it says, and read only.
    #[expect(unsafe_code, reason = "no safe wrapper for perf_event_open")]
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            everybody,
            cpu,
            no_group,
            CLOSE_ON_EXEC,
        )
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows it.
    #[expect(unsafe_code, reason = "takes over a new descriptor")]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn control(event: &OwnedFd, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: `argument` is what the request takes: nothing, a descriptor, or the address of a number.
    #[expect(unsafe_code, reason = "no safe wrapper for these requests")]
    let done = unsafe { libc::ioctl(event.as_raw_fd(), request, argument) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
