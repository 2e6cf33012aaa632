//! Tables of places, one block a CPU: each place belongs to a cgroup and one more word.

use crate::{Counters, Plain};

/// A place whose first word is the id of its cgroup; 0 is a free place.
pub trait OfCgroup: Plain {
    /// The id.
    fn cgroup(&self) -> u64;
}

/// A place whose second word is the rest of its key; behind it are counters.
pub trait Place: OfCgroup + Counters {
    /// Places a CPU; a power of two.
    const PLACES: u32;
}

/// Declares that types begin with the id of their cgroup, in a field `cgroup`.
#[macro_export]
macro_rules! of_cgroup {
    ($($type:ty),* $(,)?) => {$(
        impl $crate::place::OfCgroup for $type {
            fn cgroup(&self) -> u64 {
                const { assert!(core::mem::offset_of!($type, cgroup) == 0) };
                self.cgroup
            }
        }
    )*};
}

/// Declares [`Place`]s with fields `cgroup` and `key`, their size, and how many a CPU has.
#[macro_export]
macro_rules! place {
    ($($type:ty: $size:expr, $places:expr);* $(;)?) => {$(
        $crate::counters!($type: $size);
        $crate::of_cgroup!($type);
        impl $crate::place::Place for $type {
            const PLACES: u32 = {
                assert!(core::mem::offset_of!($type, key) == 8);
                assert!(u32::is_power_of_two($places));
                $places
            };
        }
    )*};
}
