//! Reading fields of kernel structures through typed pointers.

use aya_ebpf::Global;

/// The value of the field at `offset` of the structure at `base`.
///
/// Works on pointers that the verifier knows by type: arguments of a `tp_btf` program, the current
/// task, and what was loaded from them. A load through NULL reads 0: the kernel mends it.
///
/// # Safety
///
/// `offset` is that of a field of type `T`.
#[inline(always)]
pub unsafe fn read<T: Copy>(base: *const u8, offset: &Global<u32>) -> T {
    // SAFETY: by the caller; volatile, so that the load stays one load of exactly this width.
    unsafe { core::ptr::read_volatile(base.add(offset.load() as usize).cast::<T>()) }
}

/// Declares offsets that the agent fills in before the object is loaded.
#[macro_export]
macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub static $name: aya_ebpf::Global<u32> = aya_ebpf::Global::new(0);
    )*};
}
