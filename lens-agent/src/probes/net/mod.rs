//! What sockets send again, lose and refuse, and how they are at present: the reader of the net
//! object.

mod sockets;

use std::{collections::BTreeMap, sync::Arc};

use lens_common::{
    hist::Hist,
    limits::DROPS,
    net::{Dropped, Drops, NetSlot, REASONS, state::STATES},
};
use serde::{Deserialize, Serialize};

use self::sockets::Sockets;
use super::{
    Fill, KernelReading, KernelTypes, Probe, ProbeError, Reduction, Setup,
    keyed::Strangers,
    mapped::Mapped,
    object::{Losses, Object, ObjectError, Plan, bytes},
    sample::Sample,
    slots::{Slots, counted_as},
    targets::{Targets, cgroup_constants},
};

/// Messages through sockets of any kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Messages {
    /// Sent.
    pub sends: u64,
    /// Bytes of these.
    pub sent_bytes: u64,
    /// Received.
    pub receives: u64,
    /// Bytes of these.
    pub received_bytes: u64,
}

/// The sockets of one cgroup that a process holds, at the moment of reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldSockets {
    /// TCP sockets by state, as the kernel numbers states.
    pub tcp: [u64; STATES],
    /// UDP sockets.
    pub udp: u64,
    /// Memory of what waits to be read from them.
    pub unread_bytes: u64,
    /// Smoothed round-trip times (µs) of the established ones.
    pub rtt_us: Hist,
}

/// Counters of one cgroup since it became a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// TCP segments sent again, SYNs included, SYN-ACKs not.
    pub retransmits: u64,
    /// SYNs of these.
    pub syn_retransmits: u64,
    /// SYN-ACKs sent again, for listening sockets.
    pub synack_retransmits: u64,
    /// Resets sent by its sockets; what comes to a closed port has none.
    pub resets_sent: u64,
    /// Resets received.
    pub resets_received: u64,
    /// Connections made from here.
    pub connected: u64,
    /// Connections that came in.
    pub accepted: u64,
    /// Connections that ended.
    pub closed: u64,
    /// Attempts to connect that were refused.
    pub refused: u64,
    /// Attempts to connect that nobody answered.
    pub timed_out: u64,
    /// Attempts to connect that failed for another reason.
    pub unreachable: u64,
    /// Attempts to connect that were given up by who made them.
    pub abandoned: u64,
    /// Datagrams that found no room in a receive buffer.
    pub udp_drops: u64,
    /// Messages; not before 6.3.
    pub messages: Option<Messages>,
    /// Smoothed round-trip times (µs) of connections when they ended.
    pub closed_rtt_us: Hist,
    /// Dropped packets by the kernel's name for the reason; those that used up their packet or say no
    /// reason are none.
    pub drops: BTreeMap<Arc<str>, u64>,
    /// Requests for connections that its listening sockets dropped.
    pub listen_drops: Option<u64>,
    /// Its sockets.
    pub held: Option<HeldSockets>,
}

/// The sockets that listen on one port; several share it with `SO_REUSEPORT`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The cgroup's id.
    pub cgroup: u64,
    /// Whether it is of IPv6, which may take IPv4 as well.
    pub is_v6: bool,
    /// The local port.
    pub port: u16,
    /// Sockets.
    pub sockets: u64,
    /// Connections that wait to be accepted.
    pub backlog: u64,
    /// How many may wait.
    pub limit: u64,
    /// How full the fullest of the queues is.
    pub fullest_percent: u64,
    /// Requests that they dropped since they were made.
    pub drops: u64,
}

/// What the net object has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetReading {
    /// One entry a target; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, NetCounters>,
    /// Listening sockets of the targets.
    pub listeners: Vec<Listener>,
    /// Dropped packets of the whole host by reason, also those of no socket.
    pub drops: BTreeMap<Arc<str>, u64>,
}

/// The programs that count messages.
const MESSAGES: [&str; 2] = ["sock_send_length", "sock_recv_length"];

/// The probe.
#[derive(Debug)]
struct Net {
    object: Object,
    losses: Losses,
    slots: Slots<NetSlot>,
    drop: Mapped<Drops>,
    dropped: Mapped<Dropped>,
    sample: Sample,
    strangers: Strangers,
    sockets: Sockets,
    /// The kernel's names of reasons.
    reasons: BTreeMap<u64, Arc<str>>,
    /// Parts that this kernel lacks, and why.
    missing: Vec<(&'static str, String)>,
}

/// Loads and attaches it.
pub(super) fn start(setup: &Setup<'_>) -> Result<Box<dyn Probe>, ProbeError> {
    if setup.watched.v1.is_some() {
        return Err(ProbeError::Read {
            probe: "net",
            why: "a socket knows its cgroup only where processes live in cgroup v2".to_owned(),
        });
    }
    let types = setup.types;
    let mut plan = Plan::new("net", bytes!("net"), types, setup.machine);
    cgroup_constants(&mut plan, types, setup.watched)?;
    plan.share("TARGETS", setup.pins);
    constants(&mut plan, types)?;
    plan.places("DROP", DROPS).per_cpu("DROPPED", REASONS);
    Slots::<NetSlot>::plan(&mut plan);
    Sample::plan(&mut plan);
    let mut object = plan.load()?;
    let mut missing = Vec::new();
    let mut attach = |object: &mut Object, part, programs: &[&'static str]| {
        let attached = programs
            .iter()
            .try_for_each(|name| object.attach(name, types));
        if let Err(why) = attached {
            missing.push((part, why.to_string()));
        }
    };
    attach(&mut object, "net.state", &["inet_sock_set_state"]);
    let again = ["tcp_retransmit_skb", "tcp_retransmit_synack"];
    attach(&mut object, "net.retransmits", &again);
    let resets = ["tcp_send_reset", "tcp_receive_reset"];
    attach(&mut object, "net.resets", &resets);
    attach(&mut object, "net.udp_drops", &["udp_fail_queue_rcv_skb"]);
    attach(&mut object, "net.drops", &["kfree_skb"]);
    attach(&mut object, "net.messages", &MESSAGES);
    if !says_receiver(types) {
        let why = "this kernel does not say for which socket a dropped packet came in";
        missing.push(("net.drops.received", why.to_owned()));
    }
    Ok(Box::new(Net {
        losses: Losses::of(&object)?,
        slots: Slots::of(&object)?,
        drop: object.mapped_places("DROP", DROPS)?,
        dropped: object.mapped("DROPPED", REASONS)?,
        sample: Sample::of(&object)?,
        sockets: Sockets::start(&mut object, setup),
        object,
        strangers: Strangers::default(),
        reasons: reasons(types),
        missing,
    }))
}

fn constants(plan: &mut Plan<'_>, types: &KernelTypes) -> Result<(), ObjectError> {
    for (name, structure, field) in [
        ("SK_STATE", "sock", "__sk_common.skc_state"),
        ("SK_FAMILY", "sock", "__sk_common.skc_family"),
        ("SK_PORT", "sock", "__sk_common.skc_num"),
        ("SK_PROTOCOL", "sock", "sk_protocol"),
        ("SK_ERR", "sock", "sk_err"),
        ("SK_DROPS", "sock", "sk_drops"),
        ("SK_UNREAD", "sock", "sk_backlog.rmem_alloc"),
        ("SK_BACKLOG", "sock", "sk_ack_backlog"),
        ("SK_LIMIT", "sock", "sk_max_ack_backlog"),
        ("SK_CGROUP", "sock", "sk_cgrp_data.cgroup"),
        ("TCP_SRTT", "tcp_sock", "srtt_us"),
        ("SKB_SK", "sk_buff", "sk"),
        ("SOCKET_SK", "socket", "sk"),
        ("META_SEQ", "bpf_iter_meta", "seq"),
    ] {
        plan.offset(name, structure, field)?;
    }
    let absent = |structure, field| ObjectError::NoField { structure, field };
    let cb = types.offset("sk_buff", "cb");
    let segments = types.offset("tcp_skb_cb", "tcp_gso_segs");
    let segments = cb.zip(segments).map(|(cb, at)| cb + at);
    plan.constant(
        "SKB_SEGMENTS",
        segments.ok_or(absent("tcp_skb_cb", "tcp_gso_segs"))?,
    );
    // `SKB_CONSUMED` came in front of it in 6.4.
    let untold = types.enum_value(REASON, "SKB_DROP_REASON_NOT_SPECIFIED");
    plan.constant(
        "UNTOLD",
        untold.ok_or(absent(REASON, "SKB_DROP_REASON_NOT_SPECIFIED"))?,
    );
    plan.constant("HAS_RX_SK", u32::from(says_receiver(types)));
    Ok(())
}

/// Whether a dropped packet comes with the socket it was for, since 6.11.
fn says_receiver(types: &KernelTypes) -> bool {
    types.tracepoint_args("kfree_skb") >= Some(4)
}

/// The kernel's enumeration of why packets are dropped.
const REASON: &str = "skb_drop_reason";

/// The names of the reasons by number, as short as they are unique.
fn reasons(types: &KernelTypes) -> BTreeMap<u64, Arc<str>> {
    let names = types.enum_names(REASON).into_iter();
    let mut reasons: BTreeMap<u64, Arc<str>> = names
        .map(|(n, name)| {
            let short = name.strip_prefix("SKB_DROP_REASON_").unwrap_or(&name);
            (u64::from(n), Arc::from(short))
        })
        .collect();
    reasons.insert(u64::from(REASONS - 1), "other".into());
    reasons
}

impl Net {
    fn is_missing(&self, part: &str) -> bool {
        self.missing.iter().any(|(missing, _)| *missing == part)
    }

    fn counters(&self, sum: &NetSlot) -> NetCounters {
        let messages = Messages {
            sends: sum.sends,
            sent_bytes: sum.sent_bytes,
            receives: sum.receives,
            received_bytes: sum.received_bytes,
        };
        NetCounters {
            retransmits: sum.retransmits,
            syn_retransmits: sum.syn_retransmits,
            synack_retransmits: sum.synack_retransmits,
            resets_sent: sum.resets_sent,
            resets_received: sum.resets_received,
            connected: sum.connected,
            accepted: sum.accepted,
            closed: sum.closed,
            refused: sum.refused,
            timed_out: sum.timed_out,
            unreachable: sum.unreachable,
            abandoned: sum.abandoned,
            udp_drops: sum.udp_drops,
            messages: (!self.is_missing("net.messages")).then_some(messages),
            closed_rtt_us: sum.rtt_us,
            ..NetCounters::default()
        }
    }

    fn name(&self, reason: u64) -> Arc<str> {
        let known = self.reasons.get(&reason).cloned();
        known.unwrap_or_else(|| reason.to_string().into())
    }

    /// How full the table was.
    fn add_drops(&mut self, targets: &Targets, into: &mut NetReading) -> Fill {
        for cpu in 0..self.dropped.cpus() {
            for reason in 0..self.dropped.block() {
                let dropped = self.dropped.get(cpu, reason).unwrap_or_default();
                if dropped.packets != 0 {
                    let name = self.name(reason as u64);
                    *into.drops.entry(name).or_default() += dropped.packets;
                }
            }
        }
        let mut found = Vec::new();
        self.strangers.next_reading();
        let fill = self.strangers.sweep(&self.drop, targets, |_, _, at| {
            found.push(*at);
        });
        for at in found {
            let name = self.name(at.key);
            if let Some(counters) = own_or_other(&mut into.cgroups, at.cgroup) {
                *counters.drops.entry(name).or_default() += at.packets;
            }
        }
        fill
    }
}

/// The counters of a target, or of those beyond the limit if it is one of these.
fn own_or_other(cgroups: &mut BTreeMap<u64, NetCounters>, cgroup: u64) -> Option<&mut NetCounters> {
    cgroups.get_mut(&counted_as(cgroups, cgroup))
}

impl Probe for Net {
    fn name(&self) -> &'static str {
        "net"
    }

    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError> {
        let sums = self.slots.by_target(targets);
        let mut reading = NetReading {
            cgroups: sums.map(|(id, sum)| (id, self.counters(&sum))).collect(),
            ..NetReading::default()
        };
        let fill = self.add_drops(targets, &mut reading);
        into.tables.insert("net.drops".to_owned(), fill);
        self.sockets.read(targets, &mut reading, &mut into.quality);
        for (part, why) in &self.missing {
            into.quality.miss(*part, why);
        }
        self.losses.tell(&mut into.quality);
        into.net = Some(reading);
        Ok(())
    }

    fn clear(&self, slot: u32) {
        self.slots.clear(slot);
    }

    fn objects(&mut self) -> Vec<&mut Object> {
        vec![&mut self.object]
    }

    fn reductions(&self) -> &'static [Reduction] {
        &[Reduction::Sampled(16), Reduction::Detached]
    }

    fn reduce(&mut self, to: usize) -> Result<(), ProbeError> {
        self.sample.set(self.reductions(), to);
        Ok(())
    }

    fn forget(&mut self) -> Result<(), ProbeError> {
        self.sockets.forget();
        Ok(())
    }
}
