//! What the kernel programs and the agent share: `repr(C)` types without hidden padding, limits,
//! and the arithmetic that both must do alike.
//!
//! Everything the kernel counts lies in plain arrays, one block a CPU, which the agent maps into
//! its memory: reading costs no system call, and no CPU ever writes another's block.
#![no_std]

pub mod block;
pub mod files;
pub mod function;
pub mod futex;
pub mod heap;
pub mod hist;
pub mod holder;
pub mod interrupts;
pub mod lengths;
pub mod lifecycle;
pub mod limits;
pub mod locks;
pub mod loss;
pub mod memory;
pub mod net;
pub mod place;
pub mod profile;
pub mod reclaim;
pub mod sample;
pub mod sched;
pub mod stacks;
pub mod syscalls;
pub mod target;

/// A type whose every bit pattern is a value and that has no padding.
///
/// # Safety
///
/// The type is `repr(C)`, holds only integers and arrays of them, and its fields leave no gap.
#[expect(
    unsafe_code,
    reason = "the promise that lets the agent read mapped kernel memory"
)]
pub unsafe trait Plain: Copy {}

/// Declares that types are [`Plain`], and checks at compile time that their fields leave no gap.
#[macro_export]
macro_rules! plain {
    ($($type:ty: $size:expr),* $(,)?) => {$(
        const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() == 8);
        #[expect(unsafe_code, reason = "integers only; the size is the sum of the fields' sizes")]
        // SAFETY: integers only, and the assertion above leaves no room for padding.
        unsafe impl $crate::Plain for $type {}
    )*};
}

/// A [`Plain`] type of 64-bit counters only: what several CPUs counted is their sum, word by word.
///
/// # Safety
///
/// Every field is a `u64`, an `i64`, or an array of them.
#[expect(
    unsafe_code,
    reason = "the promise that lets the agent add them up as words"
)]
pub unsafe trait Counters: Plain + Default {}

/// Declares that types are [`Plain`] and [`Counters`].
#[macro_export]
macro_rules! counters {
    ($($type:ty: $size:expr),* $(,)?) => {$(
        $crate::plain!($type: $size);
        #[expect(unsafe_code, reason = "said by whoever declares it")]
        // SAFETY: as the macro's user says: fields of 64 bits only.
        unsafe impl $crate::Counters for $type {}
    )*};
}
