//! Stacks of the current task, kept by a hash of all their bits, and what was seen at them. The
//! kernel's own map of stacks would put two of them in one place, and the second, be it the hottest
//! of all, would not be seen.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_F_USER_STACK, BPF_NOEXIST, task_struct},
    helpers::generated::{bpf_get_stack, bpf_get_task_stack},
    maps::{Array, HashMap},
};
use lens_common::{
    loss,
    stacks::{FRAMES, Place, Seen, Stack},
};

use crate::{
    atomic,
    field::read,
    loss::count,
    offsets, per_cpu,
    task::{TASK_LEADER, TASK_MM, TASK_TGID, comm_of},
};

/// Where an object keeps them; made by [`stacks!`](crate::stacks!), so that objects without have no
/// such maps.
#[expect(missing_debug_implementations, reason = "maps have none")]
pub struct Stacks {
    /// Stacks by their keys.
    pub frames: &'static HashMap<u64, Stack>,
    /// Where each CPU puts a stack together: too big for a program's own.
    pub scratch: &'static Array<Stack>,
    /// What was seen where.
    pub seen: &'static HashMap<Place, Seen>,
}

/// Gives the object room for stacks, under this name.
#[macro_export]
macro_rules! stacks {
    ($name:ident) => {
        #[aya_ebpf::macros::map]
        static STACKS: aya_ebpf::maps::HashMap<u64, lens_common::stacks::Stack> =
            aya_ebpf::maps::HashMap::with_max_entries(lens_common::limits::STACKS, 0);
        #[aya_ebpf::macros::map]
        static STACK_SCRATCH: aya_ebpf::maps::Array<lens_common::stacks::Stack> =
            aya_ebpf::maps::Array::with_max_entries(1, 0);
        #[aya_ebpf::macros::map]
        static SEEN: aya_ebpf::maps::HashMap<
            lens_common::stacks::Place,
            lens_common::stacks::Seen,
        > = aya_ebpf::maps::HashMap::with_max_entries(lens_common::limits::STACK_PLACES, 0);
        const $name: $crate::stacks::Stacks = $crate::stacks::Stacks {
            frames: &STACKS,
            scratch: &STACK_SCRATCH,
            seen: &SEEN,
        };
    };
}

offsets! {
    /// `mm_struct.start_stack`
    MM_START_STACK,
}

/// The place of `task` of `cgroup` with these stacks.
///
/// # Safety
///
/// `task` is a typed pointer to a `task_struct`.
#[inline(always)]
pub unsafe fn place(task: *const u8, cgroup: u64, user: u64, kernel: u64) -> Place {
    // SAFETY: by the caller; a task without an address space has NULL there, and reads 0.
    unsafe {
        let mm: *const u8 = read(task, &TASK_MM);
        Place {
            cgroup,
            tgid: u64::from(read::<u32>(task, &TASK_TGID)),
            space: read(mm, &MM_START_STACK),
            user,
            kernel,
        }
    }
}

impl Stacks {
    /// Keeps the current user stack, and returns its key: 0 if there was no room. `None` if there is no
    /// stack.
    ///
    /// # Safety
    ///
    /// `ctx` is the program's, and no other program on this CPU comes in between that takes stacks.
    #[inline(always)]
    pub unsafe fn user(&self, ctx: *mut c_void) -> Option<u64> {
        // SAFETY: by the caller.
        unsafe { self.of_current(ctx, u64::from(BPF_F_USER_STACK)) }
    }

    /// The same for the kernel stack.
    ///
    /// # Safety
    ///
    /// As for [`Stacks::user`].
    #[inline(always)]
    pub unsafe fn kernel(&self, ctx: *mut c_void) -> Option<u64> {
        // SAFETY: by the caller.
        unsafe { self.of_current(ctx, 0) }
    }

    #[inline(always)]
    unsafe fn of_current(&self, ctx: *mut c_void, flags: u64) -> Option<u64> {
        let scratch = self.scratch.get_ptr_mut(per_cpu::cpu())?;
        // SAFETY: the helper is given as many bytes as there are, and fills all of them.
        unsafe {
            let got = bpf_get_stack(
                ctx,
                scratch.cast::<c_void>(),
                size_of::<Stack>() as u32,
                flags,
            );
            self.kept(scratch, got)
        }
    }

    /// Keeps the kernel stack of `task`, which is not running.
    ///
    /// # Safety
    ///
    /// `task` is a typed pointer to a `task_struct`; and as for [`Stacks::user`].
    #[inline(always)]
    pub unsafe fn kernel_of(&self, task: *const u8) -> Option<u64> {
        let scratch = self.scratch.get_ptr_mut(per_cpu::cpu())?;
        // SAFETY: by the caller; the helper is given as many bytes as there are, and fills all of them.
        unsafe {
            let got = bpf_get_task_stack(
                task.cast_mut().cast::<task_struct>(),
                scratch.cast::<c_void>(),
                size_of::<Stack>() as u32,
                0,
            );
            self.kept(scratch, got)
        }
    }

    /// Keeps the stack in `scratch`, of which the first `bytes` are frames.
    #[inline(always)]
    unsafe fn kept(&self, scratch: *mut Stack, bytes: i64) -> Option<u64> {
        if bytes <= 0 {
            return None;
        }
        let frames = bytes as u64 / 8;
        let mut key: u64 = 0xCBF2_9CE4_8422_2325;
        let mut i = 0;
        // SAFETY: inside the scratch.
        unsafe {
            while i < FRAMES {
                if i as u64 >= frames {
                    break;
                }
                key = (key ^ *scratch.cast::<u64>().add(i)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                key ^= key >> 32;
                i += 1;
            }
            if self.frames.get_ptr(key).is_none() {
                // Another CPU may have been faster.
                #[expect(
                    clippy::needless_borrows_for_generic_args,
                    reason = "by value it would not fit a program's stack"
                )]
                let _ = self.frames.insert(key, &*scratch, u64::from(BPF_NOEXIST));
                if self.frames.get_ptr(key).is_none() {
                    count(loss::STACKS);
                    return Some(0);
                }
            }
        }
        Some(key)
    }

    /// Notes that something was seen `times` at `place` of `task`, and took `ns`.
    ///
    /// # Safety
    ///
    /// `task` is a typed pointer to a `task_struct`.
    #[inline(always)]
    pub unsafe fn note(&self, task: *const u8, place: &Place, times: u64, ns: u64) {
        // SAFETY: words of a map's value; by the caller.
        unsafe {
            if let Some(seen) = self.seen.get_ptr_mut(place) {
                atomic::add(&raw mut (*seen).times, times);
                atomic::add(&raw mut (*seen).ns, ns);
                return;
            }
            let leader: *const u8 = read(task, &TASK_LEADER);
            let seen = Seen {
                times,
                ns,
                comm: core::mem::transmute::<[u8; 16], [u64; 2]>(comm_of(leader)),
            };
            if self
                .seen
                .insert(place, seen, u64::from(BPF_NOEXIST))
                .is_ok()
            {
                return;
            }
            // No room; or another CPU was faster.
            match self.seen.get_ptr_mut(place) {
                Some(seen) => {
                    atomic::add(&raw mut (*seen).times, times);
                    atomic::add(&raw mut (*seen).ns, ns);
                }
                None => count(loss::STACKS),
            }
        }
    }
}
