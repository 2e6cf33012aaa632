//! Watches cgroups come and go: a cgroup born under a watched one gets its slot here, before its
//! first task can be moved into it.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::bpf_probe_read_kernel_str_bytes,
    macros::{btf_tracepoint, map},
    maps::{Queue, RingBuf},
    programs::BtfTracePointContext,
};
use lens_common::{
    limits::MAX_TARGETS,
    loss,
    target::{CgroupEvent, MADE, OTHER_SLOT, REMOVED, Target},
};
use lens_ebpf::{field::read, loss::count, offsets, target};

/// Slots that nobody has.
#[map]
static FREE: Queue<u32> = Queue::with_max_entries(MAX_TARGETS, 0);

/// What happened to cgroups, for the agent, which knows the names by it.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);

offsets! {
    /// `cgroup.root`
    CGROUP_ROOT,
    /// `cgroup_root.hierarchy_id`
    ROOT_HIERARCHY,
    /// `cgroup.level`
    CGROUP_LEVEL,
    /// `cgroup.self.parent`, a `cgroup_subsys_state`
    CGROUP_PARENT,
    /// `cgroup_subsys_state.cgroup`
    PARENT_CGROUP,
}

/// The id of the watched hierarchy, as the kernel numbers them (v2 is 0).
#[unsafe(no_mangle)]
static HIERARCHY: aya_ebpf::Global<u32> = aya_ebpf::Global::new(0);

/// `cgroup_mkdir(struct cgroup *cgrp, const char *path)`, 5.1 to 6.18; under `cgroup_mutex`.
#[btf_tracepoint(function = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above.
    unsafe {
        let cgroup: *const u8 = ctx.arg(0);
        if !is_watched_hierarchy(cgroup) {
            return 0;
        }
        let id = target::id_of(cgroup);
        let css: *const u8 = read(cgroup, &CGROUP_PARENT);
        let parent: *const u8 = read(css, &PARENT_CGROUP);
        let parent = target::id_of(parent);
        if let Some(of_parent) = target::TARGETS.get_ptr(parent)
            && (*of_parent).children != 0
        {
            watch(id);
        }
        tell(id, MADE, cgroup, ctx.arg(1));
    }
    0
}

/// `cgroup_rmdir(struct cgroup *cgrp, const char *path)`, 5.1 to 6.18; under `cgroup_mutex`.
///
/// The entry stays until the agent has read the last counts.
#[btf_tracepoint(function = "cgroup_rmdir")]
fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above.
    unsafe {
        let cgroup: *const u8 = ctx.arg(0);
        if is_watched_hierarchy(cgroup) {
            tell(target::id_of(cgroup), REMOVED, cgroup, ctx.arg(1));
        }
    }
    0
}

unsafe fn is_watched_hierarchy(cgroup: *const u8) -> bool {
    // SAFETY: `cgroup` is typed; `root` is never NULL.
    unsafe {
        let root: *const u8 = read(cgroup, &CGROUP_ROOT);
        read::<u32>(root, &ROOT_HIERARCHY) == HIERARCHY.load()
    }
}

fn watch(id: u64) {
    let slot = if let Ok(Some(slot)) = FREE.pop() {
        slot
    } else {
        count(loss::TARGETS);
        OTHER_SLOT
    };
    let added = target::TARGETS.insert(id, Target { slot, children: 1 }, u64::from(BPF_NOEXIST));
    if added.is_err() {
        count(loss::TARGETS);
        if slot != OTHER_SLOT {
            // The queue held this slot a moment ago, so there is room for it.
            let _ = FREE.push(slot, 0);
        }
    }
}

unsafe fn tell(id: u64, what: u32, cgroup: *const u8, path: *const u8) {
    #[cfg(feature = "log")]
    lens_ebpf::log::cgroup(id, what);
    let Some(mut event) = EVENTS.reserve::<CgroupEvent>(0) else {
        count(loss::EVENTS);
        return;
    };
    let to = event.as_mut_ptr();
    // SAFETY: `to` is the record's memory, and the path ends with NUL.
    unsafe {
        (*to).id = id;
        (*to).what = what;
        (*to).level = read(cgroup, &CGROUP_LEVEL);
        (*to).path[0] = 0;
        let _ = bpf_probe_read_kernel_str_bytes(path, &mut (*to).path);
    }
    event.submit(0);
}
