//! The net object: what sockets send again, lose and refuse, and how they are at present.

use crate::{counters, hist::Hist, place, plain};

/// Reasons for which a packet is dropped, as the kernel numbers them; those of subsystems and all
/// beyond count as the last one.
pub const REASONS: u32 = 256;

/// The counters of one target on one CPU. Softirqs interrupt each other's programs, so all of them
/// are added to atomically.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct NetSlot {
    /// TCP segments sent again, SYNs included, SYN-ACKs not.
    pub retransmits: u64,
    /// SYNs of these.
    pub syn_retransmits: u64,
    /// SYN-ACKs sent again, for listening sockets.
    pub synack_retransmits: u64,
    /// Resets sent by sockets of the target; a closed port has none.
    pub resets_sent: u64,
    /// Resets received.
    pub resets_received: u64,
    /// Connections that were made from here.
    pub connected: u64,
    /// Connections that came in.
    pub accepted: u64,
    /// Connections that ended, made from here or not.
    pub closed: u64,
    /// Attempts to connect that were refused.
    pub refused: u64,
    /// Attempts to connect that nobody answered.
    pub timed_out: u64,
    /// Attempts to connect that failed for another reason: no route, a filter.
    pub unreachable: u64,
    /// Attempts to connect that were given up by who made them.
    pub abandoned: u64,
    /// Datagrams that found no room in the socket's receive buffer.
    pub udp_drops: u64,
    /// Messages sent, by any kind of socket.
    pub sends: u64,
    /// Bytes of these.
    pub sent_bytes: u64,
    /// Messages received.
    pub receives: u64,
    /// Bytes of these.
    pub received_bytes: u64,
    /// Smoothed round-trip times (µs) of TCP connections when they ended.
    pub rtt_us: Hist,
}

/// Packets of one cgroup's sockets that were dropped for one reason, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Drops {
    /// The cgroup's id; 0 is a free place.
    pub cgroup: u64,
    /// The reason, as the kernel numbers it.
    pub key: u64,
    /// Packets.
    pub packets: u64,
}

/// Packets that were dropped for one reason, whosoever they were, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Dropped {
    /// Packets.
    pub packets: u64,
}

/// A socket of a target, as it was when the iterator came by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Socket {
    /// Its cgroup's id.
    pub cgroup: u64,
    /// Its address in the kernel: several descriptors may be the same socket.
    pub address: u64,
    /// Packets that it dropped, since it was made.
    pub drops: u32,
    /// Bytes of memory that wait to be read from it.
    pub unread: u32,
    /// Of one that listens: connections that wait to be accepted.
    pub backlog: u32,
    /// How many may wait; one more does.
    pub limit: u32,
    /// The smoothed round-trip time of a TCP connection, in µs; 0 if it has none.
    pub rtt_us: u32,
    /// Its local port.
    pub port: u16,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: u16,
    /// Its state, as TCP numbers them.
    pub state: u16,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
}

/// States of a TCP socket that matter here, as the kernel numbers them.
pub mod state {
    /// Data may flow.
    pub const ESTABLISHED: u16 = 1;
    /// A SYN is on its way.
    pub const SYN_SENT: u16 = 2;
    /// A SYN came in.
    pub const SYN_RECV: u16 = 3;
    /// What is left of one that ended; no full socket.
    pub const TIME_WAIT: u16 = 6;
    /// Ended, or not begun.
    pub const CLOSE: u16 = 7;
    /// The other side has closed, this one has not.
    pub const CLOSE_WAIT: u16 = 8;
    /// Waits for connections.
    pub const LISTEN: u16 = 10;
    /// A connection that is being made; no full socket.
    pub const NEW_SYN_RECV: u16 = 12;
    /// How many numbers there are.
    pub const STATES: usize = 14;
}

counters!(NetSlot: 17 * 8 + size_of::<Hist>(), Dropped: 8);
place!(Drops: 24, crate::limits::DROPS);
plain!(Socket: 48);
