//! Which cgroups are watched.

use aya_ebpf::{Global, macros::map, maps::HashMap};
use lens_common::{limits::TARGET_NAMES, target::Target};

use crate::{field::read, offsets};

/// Cgroup id to slot: one map for all objects. `targets` adds to it when a cgroup is made, the
/// agent does the rest.
#[map]
pub static TARGETS: HashMap<u64, Target> = HashMap::with_max_entries(TARGET_NAMES, 0);

offsets! {
    /// `task_struct.cgroups`
    TASK_CGROUPS,
    /// `css_set.dfl_cgrp`, or on a host that lives in a v1 hierarchy `css_set.subsys[i]`
    CSS_SET_CGROUP,
    /// `cgroup_subsys_state.cgroup`, used on a v1 hierarchy only
    CSS_CGROUP,
    /// `cgroup.kn`
    CGROUP_KN,
    /// `kernfs_node.id`
    KN_ID,
}

/// 1 where the watched hierarchy is a v1 one.
#[unsafe(no_mangle)]
static CGROUP_V1: Global<u32> = Global::new(0);

/// The id of `task`'s cgroup in the watched hierarchy.
///
/// # Safety
///
/// `task` is a typed pointer to a `task_struct`.
#[inline(always)]
pub unsafe fn cgroup_of(task: *const u8) -> u64 {
    // SAFETY: each offset is that of a pointer, the last of a u64.
    unsafe {
        let set: *const u8 = read(task, &TASK_CGROUPS);
        let mut cgroup: *const u8 = read(set, &CSS_SET_CGROUP);
        if CGROUP_V1.load() != 0 {
            cgroup = read(cgroup, &CSS_CGROUP);
        }
        id_of(cgroup)
    }
}

/// The id of the cgroup at `cgroup`.
///
/// # Safety
///
/// `cgroup` is a typed pointer to a `cgroup`.
#[inline(always)]
pub unsafe fn id_of(cgroup: *const u8) -> u64 {
    // SAFETY: the offsets are those of a pointer and of a u64.
    unsafe {
        let kn: *const u8 = read(cgroup, &CGROUP_KN);
        read(kn, &KN_ID)
    }
}

/// The slot of the cgroup with `id`, if it is watched.
#[inline(always)]
pub fn slot_of(id: u64) -> Option<u32> {
    // SAFETY: entries are never written in place but replaced, and the pointer is read at once.
    TARGETS.get_ptr(id).map(|t| unsafe { (*t).slot })
}
