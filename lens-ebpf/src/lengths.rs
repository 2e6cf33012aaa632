//! How long waits were.

use aya_ebpf::{macros::map, maps::Array};
use lens_common::{
    hist::{BUCKETS, bucket},
    lengths::Lengths,
    limits,
};

use crate::{per_cpu, places};

#[map]
static LENGTHS: Array<Lengths> = Array::with_max_entries(limits::LENGTHS, per_cpu::MAPPED);

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
