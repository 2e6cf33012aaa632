//! What tasks wait for at a file system beside the device itself: pauses because writeback does not keep
//! up, and journals. What the page cache did not hold, and data that was written back in vain.
//!
//! A pause is known with its length when it begins, and is none of more than a fifth of a second: it
//! counts as a whole from then on. Pages are told apart by the call in which they come into the cache;
//! what comes through `io_uring` counts as read.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_ptr_alignment,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use aya_ebpf::{
    Global,
    bindings::{BPF_NOEXIST, task_struct},
    helpers::{bpf_probe_read_kernel, generated::bpf_task_pt_regs},
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use lens_common::{
    block::device,
    files::{EDQUOT, EIO, ENOSPC, FileDevice, FileSlot, HELD, OTHER, PAUSE},
    hist::{BUCKETS, bucket},
    limits::{FILE_DEVICES, SLOTS},
    loss,
    target::OTHER_SLOT,
};
use lens_ebpf::{
    atomic,
    clock::now,
    field::read,
    lengths,
    loss::count,
    near, offsets, per_cpu,
    target::cgroup_of,
    task::{current, is_kernel_thread},
};

#[map]
static SLOT: Array<FileSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
/// By number.
#[map]
static DEVICE: HashMap<u64, FileDevice> = HashMap::with_max_entries(FILE_DEVICES, 0);
/// What a new device looks like: too big for a program's stack, and always zero.
#[map]
static NEW: PerCpuArray<FileDevice> = PerCpuArray::with_max_entries(1, 0);

offsets! {
    /// `pt_regs.orig_ax`
    REGS_ORIG_AX,
    /// `folio.flags`
    FOLIO_FLAGS,
    /// `folio._nr_pages`, or `_folio_nr_pages` before 6.15
    FOLIO_PAGES,
    /// `address_space.host`
    MAPPING_HOST,
    /// `inode.i_sb`
    INODE_SUPER,
    /// `inode.i_mode`
    INODE_MODE,
    /// `inode.i_rdev`
    INODE_DEVICE,
    /// `super_block.s_dev`
    SUPER_DEVICE,
    /// `journal_s.j_fs_dev`
    JOURNAL_DEVICE,
    /// `block_device.bd_dev`
    DEVICE_NUMBER,
    /// `transaction_s.t_tid`
    TRANSACTION_ID,
}

/// Which argument of `balance_dirty_pages` the pause is: 6, and 10 before 6.17.
#[unsafe(no_mangle)]
static PAUSE_AT: Global<u32> = Global::new(0);
/// The kernel's tick in ns.
#[unsafe(no_mangle)]
static TICK_NS: Global<u32> = Global::new(0);
/// The bit of `folio.flags` that tells one of several pages: `1 << PG_head`.
#[unsafe(no_mangle)]
static LARGE: Global<u32> = Global::new(0);

/// Numbers below 64 of calls that write to files: `write`, `pwrite64`, `writev`.
const WRITES: u64 = 1 << 1 | 1 << 18 | 1 << 20;
/// The others: `truncate`, `ftruncate`, `fallocate`, `pwritev`, `pwritev2`.
const MORE_WRITES: [u64; 5] = [76, 77, 285, 296, 328];
/// Stands for the number where it was no call that entered the kernel.
const NO_CALL: u64 = u64::MAX;

/// `S_IFMT` and `S_IFBLK`.
const KIND: u16 = 0o170_000;
const BLOCK: u16 = 0o060_000;

/// The counters of the current task's cgroup, with its id; `None` if it is not watched, or works for
/// everybody.
#[inline(always)]
fn own() -> Option<(u64, u32, *mut FileSlot)> {
    // SAFETY: the current task is typed.
    unsafe {
        let task = current();
        let cgroup = cgroup_of(task);
        let slot = near::slot_of(cgroup)?;
        if is_kernel_thread(task) {
            return None;
        }
        let counters = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot))?;
        Some((cgroup, slot, counters))
    }
}

/// `balance_dirty_pages(struct bdi_writeback *wb, struct dirty_throttle_control *dtc, unsigned long
/// dirty_ratelimit, unsigned long task_ratelimit, unsigned long dirtied, unsigned long period, long pause,
/// unsigned long start_time)`; before 6.17 five numbers stand in place of `dtc`. The current task
/// is about to sleep for so many ticks, or has been told not to if that is no positive number.
#[btf_tracepoint(function = "balance_dirty_pages")]
fn balance_dirty_pages(ctx: BtfTracePointContext) -> i32 {
    let pause = if PAUSE_AT.load() == 6 {
        let pause = ctx.arg::<u64>(6);
        // Else both become one load at an address that the verifier does not know.
        atomic::in_order();
        pause
    } else {
        ctx.arg::<u64>(10)
    };
    if pause as i64 <= 0 {
        return 0;
    }
    let Some((cgroup, slot, counters)) = own() else {
        return 0;
    };
    let ns = pause.wrapping_mul(u64::from(TICK_NS.load()));
    // SAFETY: this CPU's counters.
    unsafe {
        (*counters).pauses += 1;
        (*counters).pause_ns += ns;
    }
    if slot != OTHER_SLOT {
        lengths::note(cgroup, PAUSE, ns);
    }
    0
}

/// `mm_filemap_add_to_page_cache(struct folio *folio)`: it was not there.
#[btf_tracepoint(function = "mm_filemap_add_to_page_cache")]
fn mm_filemap_add_to_page_cache(ctx: BtfTracePointContext) -> i32 {
    let Some((_, _, counters)) = own() else {
        return 0;
    };
    // SAFETY: the argument is that of the prototype above; registers of the current task, with which it
    // entered the kernel; this CPU's counters.
    unsafe {
        let pages = pages_of(ctx.arg(0));
        let regs = bpf_task_pt_regs(current().cast_mut().cast::<task_struct>()) as *const u8;
        let nr: u64 = read(regs, &REGS_ORIG_AX);
        if nr == NO_CALL {
            (*counters).faulted_pages += pages;
        } else if nr < 64 && WRITES >> nr & 1 != 0 || MORE_WRITES.contains(&nr) {
            (*counters).written_pages += pages;
        } else {
            (*counters).read_pages += pages;
        }
    }
    0
}

/// Of how many pages it is.
#[inline(always)]
unsafe fn pages_of(folio: *const u8) -> u64 {
    // SAFETY: `folio` is typed; the helper checks the address. Only a large one has the second member.
    unsafe {
        if read::<u64>(folio, &FOLIO_FLAGS) & u64::from(LARGE.load()) == 0 {
            return 1;
        }
        let pages = folio.add(FOLIO_PAGES.load() as usize).cast::<u32>();
        bpf_probe_read_kernel(pages).map_or(1, u64::from)
    }
}

/// `filemap_set_wb_err(struct address_space *mapping, errseq_t eseq)`: what was written back to it did
/// not get there; whoever asks next by a call such as `fsync` is told.
#[btf_tracepoint(function = "filemap_set_wb_err")]
fn filemap_set_wb_err(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above; offsets of pointers, then of numbers.
    unsafe {
        let mapping: *const u8 = ctx.arg(0);
        if mapping.is_null() {
            return 0;
        }
        let inode: *const u8 = read(mapping, &MAPPING_HOST);
        if inode.is_null() {
            return 0;
        }
        let number = if read::<u16>(inode, &INODE_MODE) & KIND == BLOCK {
            read(inode, &INODE_DEVICE)
        } else {
            let superblock: *const u8 = read(inode, &INODE_SUPER);
            read(superblock, &SUPER_DEVICE)
        };
        let Some(device) = device_at(number) else {
            return 0;
        };
        // `ERRSEQ_SHIFT` bits of it are the error.
        let error = match ctx.arg::<u64>(1) & 0xFFF {
            5 => EIO,
            28 => ENOSPC,
            122 => EDQUOT,
            _ => OTHER,
        };
        atomic::add((*device).errors.as_mut_ptr().add(error), 1);
    }
    0
}

/// The device of a `dev_t`, made if there is none.
#[inline(always)]
fn device_at(number: u32) -> Option<*mut FileDevice> {
    let key = key_of(number);
    if let Some(device) = DEVICE.get_ptr_mut(key) {
        return Some(device);
    }
    let new = NEW.get_ptr(0)?;
    // Another CPU may have been faster.
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "by value it would not fit a program's stack"
    )]
    // SAFETY: a value of zeros.
    let _ = unsafe { DEVICE.insert(key, &*new, u64::from(BPF_NOEXIST)) };
    let made = DEVICE.get_ptr_mut(key);
    if made.is_none() {
        count(loss::PLACES);
    }
    made
}

/// `MAJOR` and `MINOR` of a `dev_t` (`include/linux/kdev_t.h`).
#[inline(always)]
fn key_of(number: u32) -> u64 {
    device(number >> 20, number & 0xF_FFFF)
}

/// The device of the journal that is argument 0.
#[inline(always)]
unsafe fn of_journal(ctx: &BtfTracePointContext) -> Option<*mut FileDevice> {
    // SAFETY: the argument is a `journal_t *`; offsets of a pointer and of a number.
    unsafe {
        let journal: *const u8 = ctx.arg(0);
        let block: *const u8 = read(journal, &JOURNAL_DEVICE);
        device_at(read(block, &DEVICE_NUMBER))
    }
}

/// `jbd2_start_commit(journal_t *journal, transaction_t *commit_transaction)`, in the journal's thread.
#[btf_tracepoint(function = "jbd2_start_commit")]
fn jbd2_start_commit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: a journal commits one transaction after the other.
    unsafe {
        if let Some(device) = of_journal(&ctx) {
            (*device).commit_at = now();
        }
    }
    0
}

/// `jbd2_commit_locking(journal_t *journal, transaction_t *commit_transaction)`: it lets nobody in any
/// more, and waits until the handles that are open are closed.
#[btf_tracepoint(function = "jbd2_commit_locking")]
fn jbd2_commit_locking(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above; the second argument is that of the prototype.
    unsafe {
        if let Some(device) = of_journal(&ctx) {
            let transaction: *const u8 = ctx.arg(1);
            (*device).transaction = u64::from(read::<u32>(transaction, &TRANSACTION_ID));
            (*device).locked_at = now();
        }
    }
    0
}

/// `jbd2_commit_flushing(journal_t *journal, transaction_t *commit_transaction)`: all are closed.
#[btf_tracepoint(function = "jbd2_commit_flushing")]
fn jbd2_commit_flushing(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe {
        if let Some(device) = of_journal(&ctx) {
            let since = (*device).locked_at;
            (*device).locked_at = 0;
            if since != 0 {
                (*device).locked_ns += now().wrapping_sub(since);
            }
        }
    }
    0
}

/// `jbd2_end_commit(journal_t *journal, transaction_t *commit_transaction)`
#[btf_tracepoint(function = "jbd2_end_commit")]
fn jbd2_end_commit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above; the bucket is in bounds.
    unsafe {
        if let Some(device) = of_journal(&ctx) {
            let since = (*device).commit_at;
            (*device).commit_at = 0;
            if since != 0 {
                let ns = now().wrapping_sub(since);
                (*device).commits += 1;
                (*device).commit_ns += ns;
                let b = bucket(ns);
                if b < BUCKETS {
                    *(*device).hist.as_mut_ptr().add(b) += 1;
                }
            }
        }
    }
    0
}

/// `jbd2_handle_stats(dev_t dev, tid_t tid, unsigned int type, unsigned int line_no, int interval, int
/// sync, int requested_blocks, int dirtied_blocks)`: the current task has closed a handle.
#[btf_tracepoint(function = "jbd2_handle_stats")]
fn jbd2_handle_stats(ctx: BtfTracePointContext) -> i32 {
    let number = ctx.arg::<u64>(0) as u32;
    let transaction = ctx.arg::<u64>(1) as u32;
    let Some(device) = DEVICE.get_ptr(key_of(number)) else {
        return 0;
    };
    // SAFETY: a device's value, which the journal's thread writes; this CPU's counters.
    unsafe {
        let since = core::ptr::read_volatile(&raw const (*device).locked_at);
        if since == 0 || (*device).transaction != u64::from(transaction) {
            return 0;
        }
        let Some((cgroup, slot, counters)) = own() else {
            return 0;
        };
        let ns = now().wrapping_sub(since);
        (*counters).held += 1;
        (*counters).held_ns += ns;
        if slot != OTHER_SLOT {
            lengths::note(cgroup, HELD, ns);
        }
    }
    0
}
