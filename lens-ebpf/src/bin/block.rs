//! Requests to block devices: how long they took, and whose were served meanwhile.
//!
//! A request is its maker's from the moment it is made, in the maker's own context, until it ends,
//! wherever that is noticed. What a kernel thread makes is writeback, for whoever has dirtied the
//! pages: where the kernel itself keeps an owner (cgroup v2 with `io`) it is theirs, elsewhere the
//! agent divides it by who dirtied how many pages of the device.
//!
//! A device works on one request after another, as far as can be seen from here: the time from the end
//! of one to the end of the next belongs to the next. A request that waited is walked back over those
//! intervals to the moment it was made, and each is booked as (maker, whose was served). Devices
//! that serve many at once end them in quick succession, so that whoever has most of them ended has
//! most of the time.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    bindings::BPF_NOEXIST,
    helpers::generated::bpf_loop,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use lens_common::{
    block::{
        BY_WRITEBACK, BY_WRITEBACK_MASK, BlockIo, BlockPair, BlockSlot, Device, Dirtied, FLUSH,
        Flight, OTHER, READ, Service, WRITE, device, writeback,
    },
    hist::{BUCKETS, bucket},
    holder::BY_UNATTRIBUTED,
    limits::{DEVICES, FLIGHTS, SERVED, SLOTS},
    loss,
    target::OTHER_SLOT,
};
use lens_ebpf::{
    atomic,
    clock::now,
    field::read,
    loss::count,
    offsets, per_cpu, places,
    target::{cgroup_of, id_of, slot_of},
    task::{current, is_kernel_thread},
};

#[map]
static SLOT: Array<BlockSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
#[map]
static IO: Array<BlockIo> = Array::with_max_entries(1, per_cpu::MAPPED);
#[map]
static PAIR: Array<BlockPair> = Array::with_max_entries(1, per_cpu::MAPPED);
#[map]
static DIRTIED: Array<Dirtied> = Array::with_max_entries(1, per_cpu::MAPPED);
/// Requests under way.
#[map]
static FLIGHT: HashMap<u64, Flight> = HashMap::with_max_entries(FLIGHTS, 0);
#[map]
static DEVICE: HashMap<u64, Device> = HashMap::with_max_entries(DEVICES, 0);
/// What a new device looks like: too big for a program's stack, and always zero.
#[map]
static NEW: PerCpuArray<Device> = PerCpuArray::with_max_entries(1, 0);

offsets! {
    /// `request.q`
    REQUEST_QUEUE,
    /// `request.cmd_flags`
    REQUEST_FLAGS,
    /// `request.__data_len`
    REQUEST_BYTES,
    /// `request.bio`
    REQUEST_BIO,
    /// `request_queue.disk`
    QUEUE_DISK,
    /// `gendisk.major`
    DISK_MAJOR,
    /// `gendisk.first_minor`
    DISK_MINOR,
    /// `bio.bi_blkg`
    BIO_GROUP,
    /// `blkcg_gq.blkcg`
    GROUP_BLKCG,
    /// `blkcg.css.cgroup`
    BLKCG_CGROUP,
    /// `address_space.host`
    MAPPING_HOST,
    /// `inode.i_sb`
    INODE_SUPER,
    /// `super_block.s_bdev`
    SUPER_DEVICE,
    /// `block_device.bd_disk`
    DEVICE_DISK,
}

/// 1 where the kernel keeps an owner of what is written back.
#[unsafe(no_mangle)]
static HAS_OWNER: Global<u32> = Global::new(0);

/// The root of cgroup v2.
const ROOT: u64 = 1;

/// `block_io_start(struct request *rq)`, since 6.5: a request is made, by the current task.
#[btf_tracepoint(function = "block_io_start")]
fn block_io_start(ctx: BtfTracePointContext) -> i32 {
    made(ctx.arg(0), ctx.arg(0));
    0
}

/// `block_rq_insert(struct request *rq)`: it goes to the scheduler of its device.
#[btf_tracepoint(function = "block_rq_insert")]
fn block_rq_insert(ctx: BtfTracePointContext) -> i32 {
    made(ctx.arg(0), ctx.arg(0));
    0
}

/// `block_rq_issue(struct request *rq)`: it goes to its device; again if that had no room.
#[btf_tracepoint(function = "block_rq_issue")]
fn block_rq_issue(ctx: BtfTracePointContext) -> i32 {
    let address: u64 = ctx.arg(0);
    made(ctx.arg(0), address);
    if let Some(flight) = FLIGHT.get_ptr_mut(address) {
        // SAFETY: nobody else writes it between here and its end.
        unsafe { (*flight).issued_at = now() }
    }
    0
}

/// Notes a request, unless it is known.
#[inline(always)]
fn made(request: *const u8, address: u64) {
    if FLIGHT.get_ptr(address).is_some() {
        return;
    }
    // SAFETY: `request` is a program's argument, the current task is typed.
    unsafe {
        let device = device_of(request);
        let flight = Flight {
            by: maker(request, device),
            device,
            made_at: now(),
            issued_at: 0,
        };
        if FLIGHT
            .insert(address, flight, u64::from(BPF_NOEXIST))
            .is_err()
        {
            count(loss::UNDER_WAY);
        }
    }
}

#[inline(always)]
unsafe fn device_of(request: *const u8) -> u64 {
    // SAFETY: offsets of pointers, then of two numbers; a queue without a disk reads 0.
    unsafe {
        let queue: *const u8 = read(request, &REQUEST_QUEUE);
        let disk: *const u8 = read(queue, &QUEUE_DISK);
        device(read(disk, &DISK_MAJOR), read(disk, &DISK_MINOR))
    }
}

/// Whose the request is that the current task makes.
#[inline(always)]
unsafe fn maker(request: *const u8, device: u64) -> u64 {
    // SAFETY: the current task is typed; offsets of pointers.
    unsafe {
        let task = current();
        if !is_kernel_thread(task) {
            return cgroup_of(task);
        }
        if HAS_OWNER.load() != 0 {
            let bio: *const u8 = read(request, &REQUEST_BIO);
            let group: *const u8 = read(bio, &BIO_GROUP);
            let blkcg: *const u8 = read(group, &GROUP_BLKCG);
            let cgroup: *const u8 = read(blkcg, &BLKCG_CGROUP);
            let id = id_of(cgroup);
            if id > ROOT {
                return id;
            }
        }
        writeback(device)
    }
}

/// `block_rq_complete(struct request *rq, blk_status_t error, unsigned int nr_bytes)`: so many bytes of
/// it are done.
#[btf_tracepoint(function = "block_rq_complete")]
fn block_rq_complete(ctx: BtfTracePointContext) -> i32 {
    let address: u64 = ctx.arg(0);
    let has_failed = ctx.arg::<u64>(1) as u32 != 0;
    let bytes = ctx.arg::<u64>(2) as u32;
    let Some(flight) = FLIGHT.get_ptr(address) else {
        return 0;
    };
    // SAFETY: `request` is the program's argument; the record is copied before it goes.
    unsafe {
        let request: *const u8 = ctx.arg(0);
        let flight = *flight;
        let kind = match read::<u32>(request, &REQUEST_FLAGS) & 0xFF {
            0 => READ,
            1 => WRITE,
            2 => FLUSH,
            _ => OTHER,
        };
        let is_last = bytes >= read::<u32>(request, &REQUEST_BYTES);
        let end = now();
        let done = Done {
            flight,
            end,
            kind,
            bytes: u64::from(bytes),
            has_failed,
            is_last,
        };
        if is_last {
            // Whoever was first.
            let _ = FLIGHT.remove(address);
        }
        account(&done);
    }
    0
}

/// A request, or a part of one, that is done.
struct Done {
    flight: Flight,
    end: u64,
    kind: usize,
    bytes: u64,
    has_failed: bool,
    is_last: bool,
}

#[inline(always)]
unsafe fn account(done: &Done) {
    let flight = &done.flight;
    let Some(device) = device_at(flight.device) else {
        count(loss::PLACES);
        return;
    };
    let wait = done.end.wrapping_sub(flight.made_at);
    // SAFETY: a device's value, which several CPUs write: atomically.
    unsafe {
        if done.has_failed {
            atomic::add(&raw mut (*device).errors, 1);
        }
        if flight.by & BY_WRITEBACK_MASK == BY_WRITEBACK {
            atomic::add(&raw mut (*device).writeback_bytes, done.bytes);
            if done.is_last {
                atomic::add(&raw mut (*device).writeback_ios, 1);
                atomic::add(&raw mut (*device).writeback_ns, wait);
            }
        } else if let Some(slot) = slot_of(flight.by) {
            let Some(other) = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot)) else {
                return;
            };
            if slot == OTHER_SLOT {
                beyond(other, done, wait);
            } else {
                ended(other, done, wait);
                if done.is_last {
                    walk(flight.by, other, device, done.end, wait);
                }
            }
        }
        if done.is_last {
            served(device, flight.by, done.end);
        }
    }
}

#[inline(always)]
fn device_at(number: u64) -> Option<*mut Device> {
    if let Some(device) = DEVICE.get_ptr_mut(number) {
        return Some(device);
    }
    let new = NEW.get_ptr(0)?;
    // Another CPU may have been faster.
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "by value it would not fit a program's stack"
    )]
    // SAFETY: a value of zeros.
    let _ = unsafe { DEVICE.insert(number, &*new, u64::from(BPF_NOEXIST)) };
    DEVICE.get_ptr_mut(number)
}

/// Counts a request of a target beyond the limit, or one that found no place.
#[inline(always)]
unsafe fn beyond(other: *mut BlockSlot, done: &Done, wait: u64) {
    if done.is_last {
        // SAFETY: this CPU's counters, which an interrupt may write too.
        unsafe {
            atomic::add(&raw mut (*other).ios, 1);
            atomic::add(&raw mut (*other).wait_ns, wait);
        }
    }
}

#[inline(always)]
unsafe fn ended(other: *mut BlockSlot, done: &Done, wait: u64) {
    let flight = &done.flight;
    let Some(io) = places::of(&IO, flight.by, flight.device) else {
        // SAFETY: the caller's.
        unsafe { beyond(other, done, wait) };
        return;
    };
    // SAFETY: this CPU's place, which an interrupt may write too; indexes are checked.
    unsafe {
        if done.kind <= OTHER {
            atomic::add((*io).bytes.as_mut_ptr().add(done.kind), done.bytes);
        }
        if done.has_failed {
            atomic::add(&raw mut (*io).errors, 1);
        }
        if !done.is_last {
            return;
        }
        if done.kind <= OTHER {
            atomic::add((*io).ios.as_mut_ptr().add(done.kind), 1);
        }
        atomic::add(&raw mut (*io).wait_ns, wait);
        if flight.issued_at != 0 {
            let on_device = done.end.wrapping_sub(flight.issued_at);
            atomic::add(&raw mut (*io).device_ns, on_device);
        }
        let b = bucket(wait);
        if b < BUCKETS {
            atomic::add((*io).hist.as_mut_ptr().add(b), 1);
        }
    }
}

/// Puts a request among those that the device has served.
#[inline(always)]
unsafe fn served(device: *mut Device, by: u64, end: u64) {
    // SAFETY: a device's value; the index is masked.
    unsafe {
        let n = atomic::add_up(&raw mut (*device).served, 1);
        let at = n.wrapping_sub(1) & (SERVED as u64 - 1);
        let service = (*device).last.as_mut_ptr().add(at as usize);
        (*service).by = by;
        (*service).end = end;
    }
}

/// A wait that is being walked back.
struct Walk {
    victim: u64,
    other: *mut BlockSlot,
    device: *const Device,
    /// Whose request was served in the interval looked at.
    by: u64,
    /// Index of the one before it.
    i: u64,
    made: u64,
    /// From here on all is booked.
    upto: u64,
}

/// Books the `wait` of a request that ends now, and is not yet among those served.
#[inline(always)]
unsafe fn walk(victim: u64, other: *mut BlockSlot, device: *const Device, end: u64, wait: u64) {
    // SAFETY: a device's value.
    let served = unsafe { (*device).served };
    let mut walk = Walk {
        victim,
        other,
        device,
        by: victim,
        i: served,
        made: end.wrapping_sub(wait),
        upto: end,
    };
    // SAFETY: the callback is given this very walk.
    unsafe {
        bpf_loop(
            SERVED as u32 - 1,
            further as *mut c_void,
            (&raw mut walk).cast::<c_void>(),
            0,
        );
        if walk.upto > walk.made {
            book(&walk, BY_UNATTRIBUTED, walk.upto.wrapping_sub(walk.made));
        }
    }
}

/// One request further back. The verifier looks at this once.
unsafe extern "C" fn further(_: u64, walk: *mut Walk) -> i64 {
    // SAFETY: `bpf_loop` hands over what `walk` gave it; the index is masked.
    unsafe {
        let walk = &mut *walk;
        walk.i = walk.i.wrapping_sub(1);
        let at = walk.i & (SERVED as u64 - 1);
        let before: Service = *(*walk.device).last.as_ptr().add(at as usize);
        if before.end == 0 {
            // Nothing was served before: all of the time is this one's.
            book(walk, walk.by, walk.upto.wrapping_sub(walk.made));
            walk.upto = walk.made;
            return 1;
        }
        if before.end >= walk.upto {
            // Another CPU's, noted out of turn.
            return 0;
        }
        let from = if before.end > walk.made {
            before.end
        } else {
            walk.made
        };
        book(walk, walk.by, walk.upto.wrapping_sub(from));
        walk.upto = from;
        walk.by = before.by;
        i64::from(from == walk.made)
    }
}

#[inline(always)]
unsafe fn book(walk: &Walk, by: u64, ns: u64) {
    // SAFETY: this CPU's places and counters, which an interrupt may write too.
    unsafe {
        if let Some(pair) = places::of(&PAIR, walk.victim, by) {
            atomic::add(&raw mut (*pair).ns, ns);
        } else {
            atomic::add(&raw mut (*walk.other).other_ns, ns);
        }
    }
}

/// `writeback_dirty_folio(struct folio *folio, struct address_space *mapping)`: the current task has
/// made it dirty.
#[btf_tracepoint(function = "writeback_dirty_folio")]
fn writeback_dirty_folio(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is that of the prototype above; offsets of pointers, then two numbers.
    unsafe {
        let cgroup = cgroup_of(current());
        if slot_of(cgroup).is_none_or(|slot| slot == OTHER_SLOT) {
            return 0;
        }
        let mapping: *const u8 = ctx.arg(1);
        if mapping.is_null() {
            return 0;
        }
        let host: *const u8 = read(mapping, &MAPPING_HOST);
        if host.is_null() {
            return 0;
        }
        let superblock: *const u8 = read(host, &INODE_SUPER);
        let block: *const u8 = read(superblock, &SUPER_DEVICE);
        if block.is_null() {
            // A file system without a device has nobody to wait for.
            return 0;
        }
        let disk: *const u8 = read(block, &DEVICE_DISK);
        let number = device(read(disk, &DISK_MAJOR), read(disk, &DISK_MINOR));
        if let Some(dirtied) = places::of(&DIRTIED, cgroup, number) {
            atomic::add(&raw mut (*dirtied).pages, 1);
        }
    }
    0
}
