//! What sockets send again, lose and refuse, and how they are at present.
//!
//! Whose a packet is says its socket, not the task that runs: a socket belongs to the cgroup in
//! which it was made, one that was accepted to that of the listening one.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    bindings::{file, seq_file},
    helpers::generated::{bpf_seq_write, bpf_skc_to_tcp_sock, bpf_sock_from_file},
    macros::{btf_tracepoint, map},
    maps::Array,
    programs::BtfTracePointContext,
};
use lens_common::{
    hist::bucket,
    limits::{DROPS, SLOTS},
    net::{Dropped, Drops, NetSlot, REASONS, Socket, state},
};
use lens_ebpf::{
    atomic,
    field::read,
    offsets, per_cpu, places, sample,
    target::{id_of, slot_of},
    task::FileContext,
};

#[map]
static SLOT: Array<NetSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
/// Dropped packets by cgroup and reason.
#[map]
static DROP: Array<Drops> = Array::with_max_entries(DROPS, per_cpu::MAPPED);
/// Dropped packets by reason, also those of nobody.
#[map]
static DROPPED: Array<Dropped> = Array::with_max_entries(REASONS, per_cpu::MAPPED);

offsets! {
    /// `sock.__sk_common.skc_state`
    SK_STATE,
    /// `sock.__sk_common.skc_family`
    SK_FAMILY,
    /// `sock.__sk_common.skc_num`
    SK_PORT,
    /// `sock.sk_protocol`
    SK_PROTOCOL,
    /// `sock.sk_err`
    SK_ERR,
    /// `sock.sk_drops`
    SK_DROPS,
    /// `sock.sk_backlog.rmem_alloc`
    SK_UNREAD,
    /// `sock.sk_ack_backlog`
    SK_BACKLOG,
    /// `sock.sk_max_ack_backlog`
    SK_LIMIT,
    /// `sock.sk_cgrp_data.cgroup`
    SK_CGROUP,
    /// `tcp_sock.srtt_us`
    TCP_SRTT,
    /// `sk_buff.sk`
    SKB_SK,
    /// `tcp_skb_cb.tcp_gso_segs`, in `sk_buff.cb`
    SKB_SEGMENTS,
    /// `socket.sk`
    SOCKET_SK,
    /// `bpf_iter_meta.seq`
    META_SEQ,
}

/// The last reason that says nothing: the packet was used, or nobody told why it was not.
#[unsafe(no_mangle)]
static UNTOLD: Global<u32> = Global::new(0);
/// 1 where `kfree_skb` says which socket the packet was for (since 6.11).
#[unsafe(no_mangle)]
static HAS_RX_SK: Global<u32> = Global::new(0);

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const TCP: u16 = 6;
const UDP: u16 = 17;
const ECONNREFUSED: i32 = 111;
const ETIMEDOUT: i32 = 110;

/// The id of the cgroup that `sk` belongs to; 0 if it only stands for a socket.
#[inline(always)]
unsafe fn owner_of(sk: *const u8) -> u64 {
    // SAFETY: `sk` is typed, and not NULL.
    unsafe {
        let state = u16::from(read::<u8>(sk, &SK_STATE));
        if state == state::TIME_WAIT || state == state::NEW_SYN_RECV {
            return 0;
        }
        id_of(read(sk, &SK_CGROUP))
    }
}

/// The counters of the target that `sk` belongs to.
#[inline(always)]
unsafe fn slot(sk: *const u8) -> Option<*mut NetSlot> {
    // SAFETY: `sk` is typed.
    let slot = slot_of(unsafe { owner_of(sk) })?;
    SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot))
}

/// The smoothed round-trip time of `sk` in µs; 0 if it is no TCP socket, or has none yet.
#[inline(always)]
unsafe fn rtt_us(sk: *const u8) -> u32 {
    // SAFETY: `sk` is typed; the kernel keeps eighths.
    unsafe {
        let tcp = bpf_skc_to_tcp_sock(sk.cast_mut().cast::<c_void>()).cast::<u8>();
        if tcp.is_null() {
            return 0;
        }
        read::<u32>(tcp, &TCP_SRTT) >> 3
    }
}

/// `tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb)`, with a third argument
/// since 6.17. One buffer may be several segments.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn tcp_retransmit_skb(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above; counters in this CPU's block.
    unsafe {
        let sk: *const u8 = ctx.arg(0);
        let skb: *const u8 = ctx.arg(1);
        if let Some(slot) = slot(sk) {
            let segments = u64::from(read::<u16>(skb, &SKB_SEGMENTS)).max(1);
            atomic::add(&raw mut (*slot).retransmits, segments);
            if u16::from(read::<u8>(sk, &SK_STATE)) == state::SYN_SENT {
                atomic::add(&raw mut (*slot).syn_retransmits, 1);
            }
        }
    }
    0
}

/// `tcp_retransmit_synack(const struct sock *sk, const struct request_sock *req)`; `sk` listens.
#[btf_tracepoint(function = "tcp_retransmit_synack")]
fn tcp_retransmit_synack(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is that of the prototype above; a counter in this CPU's block.
    unsafe {
        if let Some(slot) = slot(ctx.arg(0)) {
            atomic::add(&raw mut (*slot).synack_retransmits, 1);
        }
    }
    0
}

/// `tcp_send_reset(const struct sock *sk, const struct sk_buff *skb)`, with a third argument since
/// 6.10; `sk` may be NULL.
#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is that of the prototype above; a counter in this CPU's block.
    unsafe {
        let sk: *const u8 = ctx.arg(0);
        if !sk.is_null()
            && let Some(slot) = slot(sk)
        {
            atomic::add(&raw mut (*slot).resets_sent, 1);
        }
    }
    0
}

/// `tcp_receive_reset(struct sock *sk)`
#[btf_tracepoint(function = "tcp_receive_reset")]
fn tcp_receive_reset(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is that of the prototype above; a counter in this CPU's block.
    unsafe {
        if let Some(slot) = slot(ctx.arg(0)) {
            atomic::add(&raw mut (*slot).resets_received, 1);
        }
    }
    0
}

/// `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above; counters in this CPU's block.
    unsafe {
        let sk: *const u8 = ctx.arg(0);
        let old = ctx.arg::<u64>(1) as u16;
        let new = ctx.arg::<u64>(2) as u16;
        let begins = new == state::ESTABLISHED;
        if !begins && new != state::CLOSE || read::<u16>(sk, &SK_PROTOCOL) != TCP {
            return 0;
        }
        let Some(slot) = slot(sk) else {
            return 0;
        };
        match (old, begins) {
            (state::SYN_SENT, true) => atomic::add(&raw mut (*slot).connected, 1),
            (state::SYN_RECV, true) => atomic::add(&raw mut (*slot).accepted, 1),
            (state::SYN_SENT, false) => failed(slot, read(sk, &SK_ERR)),
            // Neither of them was a connection.
            (_, true) | (state::LISTEN | state::SYN_RECV | state::CLOSE, false) => {}
            (_, false) => {
                atomic::add(&raw mut (*slot).closed, 1);
                let rtt = rtt_us(sk);
                if rtt != 0 {
                    let at = (*slot).rtt_us.as_mut_ptr().add(bucket(u64::from(rtt)) & 31);
                    atomic::add(at, 1);
                }
            }
        }
    }
    0
}

/// Counts an attempt to connect that came to nothing.
#[inline(always)]
unsafe fn failed(slot: *mut NetSlot, error: i32) {
    // SAFETY: counters in this CPU's block.
    unsafe {
        match error {
            ECONNREFUSED => atomic::add(&raw mut (*slot).refused, 1),
            ETIMEDOUT => atomic::add(&raw mut (*slot).timed_out, 1),
            0 => atomic::add(&raw mut (*slot).abandoned, 1),
            _ => atomic::add(&raw mut (*slot).unreachable, 1),
        }
    }
}

/// `udp_fail_queue_rcv_skb(int rc, struct sock *sk)`, with a third argument since 6.10.
#[btf_tracepoint(function = "udp_fail_queue_rcv_skb")]
fn udp_fail_queue_rcv_skb(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is that of the prototype above; a counter in this CPU's block.
    unsafe {
        if let Some(slot) = slot(ctx.arg(1)) {
            atomic::add(&raw mut (*slot).udp_drops, 1);
        }
    }
    0
}

/// `kfree_skb(struct sk_buff *skb, void *location, enum skb_drop_reason reason)`, since 6.11 with
/// `struct sock *rx_sk`.
#[btf_tracepoint(function = "kfree_skb")]
fn kfree_skb(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above; counters in this CPU's block.
    unsafe {
        let reason = ctx.arg::<u64>(2) as u32;
        if reason <= UNTOLD.load() {
            return 0;
        }
        let weight = sample::weight();
        if weight == 0 {
            return 0;
        }
        let reason = reason.min(REASONS - 1);
        if let Some(dropped) = DROPPED.get_ptr_mut(per_cpu::index(REASONS, reason)) {
            atomic::add(&raw mut (*dropped).packets, weight);
        }
        let skb: *const u8 = ctx.arg(0);
        let sk: *const u8 = read(skb, &SKB_SK);
        let mut cgroup = if sk.is_null() { 0 } else { owner_of(sk) };
        if HAS_RX_SK.load() != 0 && cgroup == 0 {
            let sk: *const u8 = ctx.arg(3);
            if !sk.is_null() {
                cgroup = owner_of(sk);
            }
        }
        if cgroup != 0
            && slot_of(cgroup).is_some()
            && let Some(place) = places::of(&DROP, cgroup, u64::from(reason))
        {
            atomic::add(&raw mut (*place).packets, weight);
        }
    }
    0
}

/// `sock_send_length(struct sock *sk, int ret, int flags)`; since 6.3.
#[btf_tracepoint(function = "sock_send_length")]
fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    let bytes = ctx.arg::<u64>(1) as i32;
    if bytes <= 0 {
        return 0;
    }
    let weight = sample::weight();
    // SAFETY: the argument is that of the prototype above; counters in this CPU's block.
    unsafe {
        if weight != 0
            && let Some(slot) = slot(ctx.arg(0))
        {
            atomic::add(&raw mut (*slot).sends, weight);
            atomic::add(&raw mut (*slot).sent_bytes, weight * bytes as u64);
        }
    }
    0
}

/// `sock_recv_length(struct sock *sk, int ret, int flags)`; since 6.3.
#[btf_tracepoint(function = "sock_recv_length")]
fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    let bytes = ctx.arg::<u64>(1) as i32;
    if bytes <= 0 {
        return 0;
    }
    let weight = sample::weight();
    // SAFETY: the argument is that of the prototype above; counters in this CPU's block.
    unsafe {
        if weight != 0
            && let Some(slot) = slot(ctx.arg(0))
        {
            atomic::add(&raw mut (*slot).receives, weight);
            atomic::add(&raw mut (*slot).received_bytes, weight * bytes as u64);
        }
    }
    0
}

/// Writes a [`Socket`] for each descriptor of a watched TCP or UDP socket, in all network namespaces.
#[unsafe(link_section = "iter/task_file")]
#[unsafe(no_mangle)]
extern "C" fn sockets(ctx: *const FileContext) -> i32 {
    // SAFETY: `ctx` is what the kernel gives; `file` is NULL after the last.
    unsafe {
        let at = (*ctx).file;
        if at.is_null() {
            return 0;
        }
        let socket = bpf_sock_from_file(at.cast_mut().cast::<file>()).cast::<u8>();
        if socket.is_null() {
            return 0;
        }
        let sk: *const u8 = read(socket, &SOCKET_SK);
        if sk.is_null() {
            return 0;
        }
        let family: u16 = read(sk, &SK_FAMILY);
        let protocol: u16 = read(sk, &SK_PROTOCOL);
        if family != AF_INET && family != AF_INET6 || protocol != TCP && protocol != UDP {
            return 0;
        }
        let cgroup = owner_of(sk);
        if slot_of(cgroup).is_none() {
            return 0;
        }
        let record = Socket {
            cgroup,
            address: sk as u64,
            drops: read(sk, &SK_DROPS),
            unread: read(sk, &SK_UNREAD),
            backlog: read(sk, &SK_BACKLOG),
            limit: read(sk, &SK_LIMIT),
            rtt_us: rtt_us(sk),
            port: read(sk, &SK_PORT),
            family,
            protocol,
            state: u16::from(read::<u8>(sk, &SK_STATE)),
            reserved: 0,
        };
        let seq: *mut seq_file = read((*ctx).meta, &META_SEQ);
        bpf_seq_write(
            seq,
            (&raw const record).cast::<c_void>(),
            size_of::<Socket>() as u32,
        );
    }
    0
}
