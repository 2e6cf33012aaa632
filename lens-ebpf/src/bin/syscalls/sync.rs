//! Calls that wait until data is on its device: every one is timed, those under way included.
//!
//! Not seen: the calls of the 32-bit entry, files opened with `O_SYNC`, and `io_uring`.

use aya_ebpf::{Global, macros::map, maps::HashMap};
use lens_common::{
    files::{MSYNC, SYNC_CALLS, SYNCS},
    lengths::UnderWay,
    limits::{SLOTS, SYNCING},
    loss,
    target::OTHER_SLOT,
};
use lens_ebpf::{
    clock::now, field::read, lengths, loss::count, near, offsets, per_cpu, target::cgroup_of,
    task::current,
};

use crate::{SLOT, TASK_PID, TASK_STATUS, TS_COMPAT};

/// By thread id.
#[map]
static UNDER_WAY: HashMap<u32, UnderWay> = HashMap::with_max_entries(SYNCING, 0);

offsets! {
    /// `pt_regs.dx`
    REGS_DX,
}

/// 1 where these calls are counted.
#[unsafe(no_mangle)]
pub(crate) static SYNC_COUNTED: Global<u32> = Global::new(0);

/// `MS_SYNC`: without it `msync` waits for nothing.
const MS_SYNC: u64 = 4;

/// Whether a call waits so. To be asked at the end only: the verifier walks what follows once for each
/// number.
#[inline(always)]
pub(crate) fn is_one(nr: u32) -> bool {
    kind_of(nr).is_some()
}

#[inline(always)]
fn kind_of(nr: u32) -> Option<usize> {
    let found = SYNC_CALLS.iter().find(|(call, _)| *call == nr);
    found.map(|(_, kind)| *kind)
}

/// The current task begins with the call `nr`.
#[inline(always)]
pub(crate) unsafe fn enter(regs: *const u8, nr: u32) {
    let Some(kind) = kind_of(nr) else {
        return;
    };
    // SAFETY: `regs` is a program's argument; the current task is typed.
    unsafe {
        let task = current();
        if read::<u32>(task, &TASK_STATUS) & TS_COMPAT != 0
            || nr == MSYNC && read::<u64>(regs, &REGS_DX) & MS_SYNC == 0
        {
            return;
        }
        let cgroup = cgroup_of(task);
        if near::slot_of(cgroup).is_none() {
            return;
        }
        let under_way = UnderWay {
            cgroup,
            since: now(),
            kind: kind as u64,
            what: 0,
        };
        if UNDER_WAY
            .insert(read::<u32>(task, &TASK_PID), under_way, 0)
            .is_err()
        {
            count(loss::UNDER_WAY);
        }
    }
}

/// Such a call of the current task returned. Asked for in two places, and seldom.
#[inline(never)]
pub(crate) fn exit() {
    // SAFETY: the current task is typed, the record its own; this CPU's counters, the kind in bounds.
    unsafe {
        let tid: u32 = read(current(), &TASK_PID);
        let Some(noted) = UNDER_WAY.get_ptr(tid) else {
            return;
        };
        let UnderWay {
            cgroup,
            since,
            kind,
            ..
        } = *noted;
        let ns = now().wrapping_sub(since);
        // It was there a moment ago, and nobody else removes it.
        let _ = UNDER_WAY.remove(tid);
        let Some(slot) = near::slot_of(cgroup) else {
            return;
        };
        let at = kind as usize;
        if at >= SYNCS {
            return;
        }
        if let Some(all) = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot)) {
            *(*all).syncs.as_mut_ptr().add(at) += 1;
            *(*all).sync_ns.as_mut_ptr().add(at) += ns;
        }
        if slot != OTHER_SLOT {
            lengths::note(cgroup, kind, ns);
        }
    }
}
