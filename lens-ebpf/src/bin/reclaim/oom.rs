//! Processes killed for want of memory, and which limit was hit.
//!
//! The kernel does not tell the limit. But it kills only after the one who wants memory has
//! reclaimed in vain, and that was for the host or for a limit; and it looks once more whether the
//! cgroup is full before it kills. So the limit is that of the first full cgroup above the victim
//! that is above the one who wants memory as well.

use aya_ebpf::{
    Global,
    helpers::{bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str},
    macros::{btf_tracepoint, map},
    maps::{LruHashMap, RingBuf},
    programs::BtfTracePointContext,
};
use lens_common::{
    lifecycle::COMM,
    limits::{DOOMED, OOM_BYTES},
    loss,
    memory::{ANON, FILE, SHMEM},
    reclaim::{DIRECT, FOR_HOST, FOR_LIMIT, FOR_UNKNOWN, LEVELS, LIMIT, NAME, OomEvent},
};
use lens_ebpf::{
    clock::now,
    field::read,
    loss::count,
    offsets, resident,
    target::{CGROUP_KN, CSS_CGROUP, KN_ID, TASK_CGROUPS, cgroup_of, slot_of},
    task::{TASK_LEADER, TASK_MM, TASK_TGID, comm_of, current},
};

use crate::{LAST, TASK_PID};

#[map]
static OOMS: RingBuf = RingBuf::with_byte_size(OOM_BYTES, 0);
/// Victims by thread id, where the kernel tells no more than that when it marks them.
#[map]
static VICTIMS: LruHashMap<u32, Victim> = LruHashMap::with_max_entries(DOOMED, 0);

offsets! {
    /// `css_set.subsys[memory_cgrp_id]`
    CSS_SET_MEMORY,
    /// `cgroup_subsys_state.parent`
    CSS_PARENT,
    /// `cgroup.level`
    CGROUP_LEVEL,
    /// `cgroup.ancestors`
    CGROUP_ANCESTORS,
    /// `cgroup.root`
    CGROUP_ROOT,
    /// `cgroup_root.hierarchy_id`
    ROOT_ID,
    /// `kernfs_node.name`
    KN_NAME,
    /// `mem_cgroup.memory.usage`
    MEMORY_USAGE,
    /// `mem_cgroup.memory.max`
    MEMORY_MAX,
    /// `mem_cgroup.memsw.usage`
    MEMSW_USAGE,
    /// `mem_cgroup.memsw.max`
    MEMSW_MAX,
}

/// 1 where `mark_victim` is given the task (since 6.9), not its id.
#[unsafe(no_mangle)]
static HAS_VICTIM_TASK: Global<u32> = Global::new(0);
/// 1 where it is known how to find a memory cgroup and its limit.
#[unsafe(no_mangle)]
static HAS_LIMITS: Global<u32> = Global::new(0);
/// 1 where a `cgroup` knows those above it.
#[unsafe(no_mangle)]
static HAS_ANCESTORS: Global<u32> = Global::new(0);

const SIGKILL: u32 = 9;
/// `SEND_SIG_PRIV`: the kernel itself sends the signal.
const BY_KERNEL: u64 = 1;
/// With less than this left, in pages, a cgroup is full: what wants more at once is refused without
/// a kill.
const ROOM: u64 = 8;
/// Levels of the hierarchy that are searched.
const DEPTH: u32 = 16;

/// Who is killed.
#[repr(C)]
#[derive(Clone, Copy)]
struct Victim {
    cgroup: u64,
    /// The address of its memory cgroup.
    memory: u64,
    pages: u64,
    tgid: u64,
    comm: [u8; COMM],
}

/// `mark_victim(struct task_struct *task, uid_t uid)`, before 6.9 `mark_victim(int pid)`
#[btf_tracepoint(function = "mark_victim")]
fn mark_victim(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is that of the prototype above.
    unsafe {
        if HAS_VICTIM_TASK.load() != 0 {
            let victim = victim_of(ctx.arg(0));
            tell(&victim);
            return 0;
        }
        let tid = ctx.arg::<u64>(0) as u32;
        if let Some(victim) = VICTIMS.get_ptr(tid) {
            tell(&*victim);
        } else {
            count(loss::EVENTS);
        }
    }
    0
}

/// `signal_generate(int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int
/// result)`: only where [`mark_victim`], which follows, is not given the task.
#[btf_tracepoint(function = "signal_generate")]
fn signal_generate(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<u64>(0) as u32 != SIGKILL || ctx.arg::<u64>(1) != BY_KERNEL {
        return 0;
    }
    // SAFETY: the argument is that of the prototype above.
    unsafe {
        let task: *const u8 = ctx.arg(2);
        let victim = victim_of(task);
        // It takes the place of one long marked.
        let _ = VICTIMS.insert(read::<u32>(task, &TASK_PID), victim, 0);
    }
    0
}

#[inline(always)]
unsafe fn victim_of(task: *const u8) -> Victim {
    // SAFETY: `task` is a program's argument.
    unsafe {
        let leader: *const u8 = read(task, &TASK_LEADER);
        let mm: *const u8 = read(task, &TASK_MM);
        let mut pages = 0;
        if !mm.is_null() {
            for kind in [FILE, ANON, SHMEM] {
                pages += resident::pages(mm, kind);
            }
        }
        Victim {
            cgroup: cgroup_of(task),
            memory: memory_of(task),
            pages: pages.max(0) as u64,
            tgid: u64::from(read::<u32>(task, &TASK_TGID)),
            comm: comm_of(leader),
        }
    }
}

/// The address of `task`'s memory cgroup; its `cgroup_subsys_state` comes first in it.
#[inline(always)]
unsafe fn memory_of(task: *const u8) -> u64 {
    // SAFETY: `task` is typed.
    unsafe {
        let set: *const u8 = read(task, &TASK_CGROUPS);
        read(set, &CSS_SET_MEMORY)
    }
}

/// What is at `offset` behind the address `base`; 0 if nothing is.
#[inline(always)]
unsafe fn peek<T: Copy + Default>(base: u64, offset: u32) -> T {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.unwrap_or_default()
}

#[inline(always)]
unsafe fn tell(victim: &Victim) {
    if slot_of(victim.cgroup).is_none() {
        return;
    }
    let Some(mut entry) = OOMS.reserve::<OomEvent>(0) else {
        count(loss::EVENTS);
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: all of the record but unused names is written; the current task is typed.
    unsafe {
        let task = current();
        (*event).at_ns = now();
        (*event).cgroup = victim.cgroup;
        (*event).pages = victim.pages;
        (*event).tgid = victim.tgid as u32;
        (*event).comm = victim.comm;
        (*event).by_cgroup = cgroup_of(task);
        (*event).by_tgid = read(task, &TASK_TGID);
        (*event).by_comm = comm_of(task);
        (*event).why = FOR_UNKNOWN;
        (*event).limit_cgroup = 0;
        (*event).limit_pages = 0;
        (*event).is_v1 = 0;
        (*event).levels = 0;
        (*event).reserved = 0;
        if let Some(last) = LAST.get_ptr(read::<u32>(task, &TASK_PID)) {
            if *last == DIRECT as u32 {
                (*event).why = FOR_HOST;
            } else if *last == LIMIT as u32 {
                (*event).why = FOR_LIMIT;
                if HAS_LIMITS.load() != 0 {
                    tell_limit(event, victim.memory, memory_of(task));
                }
            }
        }
    }
    entry.submit(0);
}

/// Says whose limit it was, if that can be found.
#[inline(always)]
unsafe fn tell_limit(event: *mut OomEvent, victim: u64, asking: u64) {
    // SAFETY: addresses of cgroups, checked by the helpers; `event` is a reserved record.
    unsafe {
        let cgroup: u64 = peek(victim, CSS_CGROUP.load());
        let root: u64 = peek(cgroup, CGROUP_ROOT.load());
        let is_v1 = peek::<u32>(root, ROOT_ID.load()) != 0;
        let asking: u64 = peek(asking, CSS_CGROUP.load());
        let mut found = first_full(victim, is_v1, asking);
        if found == 0 {
            // Somebody outside may have lowered the limit.
            found = first_full(victim, is_v1, 0);
        }
        if found == 0 {
            return;
        }
        (*event).is_v1 = u32::from(is_v1);
        (*event).limit_pages = limit(found, is_v1);
        let cgroup: u64 = peek(found, CSS_CGROUP.load());
        let kn: u64 = peek(cgroup, CGROUP_KN.load());
        (*event).limit_cgroup = peek(kn, KN_ID.load());
        tell_path(event, found);
    }
}

/// The first full cgroup at or above `memory` that is also at or above `asking`, if that is not 0; 0
/// if there is none.
#[inline(always)]
unsafe fn first_full(mut memory: u64, is_v1: bool, asking: u64) -> u64 {
    let mut depth = 0;
    // SAFETY: addresses of cgroups, checked by the helpers.
    unsafe {
        while depth < DEPTH && memory != 0 {
            let full = limit(memory, is_v1) != 0;
            if full && (asking == 0 || is_above(peek(memory, CSS_CGROUP.load()), asking)) {
                return memory;
            }
            memory = peek(memory, CSS_PARENT.load());
            depth += 1;
        }
    }
    0
}

/// The limit of a cgroup that is full; 0 of others.
#[inline(always)]
unsafe fn limit(memory: u64, is_v1: bool) -> u64 {
    // SAFETY: the helper checks the address.
    unsafe {
        let max: u64 = peek(memory, MEMORY_MAX.load());
        if peek::<u64>(memory, MEMORY_USAGE.load()) + ROOM > max {
            return max;
        }
        if is_v1 {
            let max: u64 = peek(memory, MEMSW_MAX.load());
            if peek::<u64>(memory, MEMSW_USAGE.load()) + ROOM > max {
                return max;
            }
        }
    }
    0
}

/// Whether the cgroup `above` is `below` or above it; where that cannot be known, it is.
#[inline(always)]
unsafe fn is_above(above: u64, below: u64) -> bool {
    if HAS_ANCESTORS.load() == 0 {
        return true;
    }
    // SAFETY: the helper checks the address.
    unsafe {
        let level: u32 = peek(above, CGROUP_LEVEL.load());
        level <= peek::<u32>(below, CGROUP_LEVEL.load())
            && peek::<u64>(below, CGROUP_ANCESTORS.load() + 8 * level) == above
    }
}

#[inline(always)]
unsafe fn tell_path(event: *mut OomEvent, mut memory: u64) {
    let mut level = 0;
    // SAFETY: addresses of cgroups, checked by the helpers; the index is in bounds.
    unsafe {
        while level < LEVELS {
            let parent: u64 = peek(memory, CSS_PARENT.load());
            if parent == 0 {
                break;
            }
            let cgroup: u64 = peek(memory, CSS_CGROUP.load());
            let kn: u64 = peek(cgroup, CGROUP_KN.load());
            let name: u64 = peek(kn, KN_NAME.load());
            let to = (*event).names.as_mut_ptr().add(level);
            bpf_probe_read_kernel_str(to.cast(), NAME as u32, name as *const core::ffi::c_void);
            memory = parent;
            level += 1;
        }
        let is_cut = level == LEVELS && peek::<u64>(memory, CSS_PARENT.load()) != 0;
        (*event).levels = level as u32 + u32::from(is_cut);
    }
}
