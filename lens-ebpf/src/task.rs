//! The current task, records that live and die with a task, and walks over all tasks and their files.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, task_struct},
    helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel, generated::bpf_task_storage_get},
};
use lens_common::lifecycle::COMM;

use crate::{field::read, offsets};

offsets! {
    /// `task_struct.comm`
    TASK_COMM,
    /// `task_struct.flags`
    TASK_FLAGS,
    /// `task_struct.tgid`
    TASK_TGID,
    /// `task_struct.mm`
    TASK_MM,
    /// `task_struct.group_leader`
    TASK_LEADER,
}

/// The task that runs the program.
#[inline(always)]
pub fn current() -> *const u8 {
    // SAFETY: takes nothing, and there is always a current task.
    unsafe { bpf_get_current_task_btf().cast::<u8>().cast_const() }
}

/// `PF_KTHREAD`
const KERNEL_THREAD: u32 = 0x0020_0000;

/// Whether `task` is the kernel's own, and works for everybody.
///
/// # Safety
///
/// `task` is a typed pointer to a `task_struct`.
#[inline(always)]
pub unsafe fn is_kernel_thread(task: *const u8) -> bool {
    // SAFETY: by the caller.
    unsafe { read::<u32>(task, &TASK_FLAGS) & KERNEL_THREAD != 0 }
}

/// The name of `task`.
///
/// # Safety
///
/// `task` points to a `task_struct`.
#[inline(always)]
pub unsafe fn comm_of(task: *const u8) -> [u8; COMM] {
    // SAFETY: the helper checks the address.
    let comm = unsafe { bpf_probe_read_kernel(task.add(TASK_COMM.load() as usize).cast()) };
    comm.unwrap_or([0; COMM])
}

/// `BPF_MAP_TYPE_TASK_STORAGE`, which aya-ebpf does not offer: the layout is the one of a BTF map
/// definition, whose pointers' types carry the numbers.
#[repr(C)]
#[derive(Debug)]
pub struct TaskStorage<T> {
    r#type: *const [i32; 29],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: a definition for the loader; nothing ever reads it.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    /// The definition.
    #[expect(
        clippy::new_without_default,
        reason = "a map definition is a static, made by name"
    )]
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The record of `task`; made, all zero, if `create` says so. NULL if there is none.
    ///
    /// # Safety
    ///
    /// `task` is a typed pointer to a `task_struct`.
    #[inline(always)]
    pub unsafe fn get(&self, task: *const u8, create: bool) -> *mut T {
        // SAFETY: by the caller; the map is this static.
        unsafe {
            bpf_task_storage_get(
                ptr::from_ref(self).cast_mut().cast::<c_void>(),
                task.cast_mut().cast::<task_struct>(),
                ptr::null_mut(),
                u64::from(create),
            )
            .cast::<T>()
        }
    }
}

/// `struct bpf_iter__task`: what an iterator over tasks is given.
#[repr(C)]
#[derive(Debug)]
pub struct TaskContext {
    /// `struct bpf_iter_meta`.
    pub meta: *const u8,
    /// The task; NULL after the last.
    pub task: *const u8,
}

/// `struct bpf_iter__task_file`: what an iterator over the files of all tasks is given.
#[repr(C)]
#[derive(Debug)]
pub struct FileContext {
    /// `struct bpf_iter_meta`.
    pub meta: *const u8,
    /// The task.
    pub task: *const u8,
    /// The descriptor.
    pub fd: u32,
    /// The file; NULL after the last.
    pub file: *const u8,
}
