//! How many of its events an object counts.

use crate::plain;

/// What the agent says to the programs of one CPU, on a cache line of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// One event in so many counts; 0 and 1 are all of them.
    pub one_in: u64,
    /// Events until the next one that counts; the programs' own.
    pub left: u64,
    /// Keeps other CPUs away.
    pub apart: [u64; 6],
}

plain!(Sample: 64);
