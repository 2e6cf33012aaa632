//! How long waits were.

use aya_ebpf::{macros::map, maps::Array};
use lens_common::{
    hist::{BUCKETS, bucket},
    lengths::Lengths,
};

use crate::{per_cpu, places};

/// One place where nobody asks for more: every object that refers to this module has the map.
#[map]
static LENGTHS: Array<Lengths> = Array::with_max_entries(1, per_cpu::MAPPED);

/// Notes that a wait of `kind` took `ns`.
#[inline(always)]
pub fn note(cgroup: u64, kind: u64, ns: u64) {
    let Some(lengths) = places::of(&LENGTHS, cgroup, kind) else {
        return;
    };
    // SAFETY: this CPU's place; the bucket is in bounds.
    unsafe {
        if ns > (*lengths).max_ns {
            (*lengths).max_ns = ns;
        }
        let b = bucket(ns);
        if b < BUCKETS {
            *(*lengths).hist.as_mut_ptr().add(b) += 1;
        }
    }
}
