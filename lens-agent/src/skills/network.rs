//! What does not get through: packets sent again, resets, drops, connects that fail.

use lens_common::hist::{BUCKETS, Hist};

use super::{Look, Skill, View, quantile_us};
use crate::{
    base::{
        metric::{Bad, Metric, Unit, quantile, rate},
        scope::Scope,
    },
    probes::{Messages, NetCounters},
};

/// The skill.
#[derive(Debug)]
pub(super) struct Network;

const METRICS: &[Metric] = &[
    rate(
        "tcp_retransmits_per_sec",
        Unit::PerSec,
        Bad::High,
        20.0,
        "TCP segments sent again, because nobody acknowledged them.",
    ),
    rate(
        "tcp_syn_retransmits_per_sec",
        Unit::PerSec,
        Bad::High,
        1.0,
        "SYNs and SYN-ACKs sent again: each has cost a connection a second or more.",
    ),
    rate(
        "tcp_resets_sent_per_sec",
        Unit::PerSec,
        Bad::Never,
        20.0,
        "Resets that sockets sent; for packets to a closed port nobody's socket does.",
    ),
    rate(
        "tcp_resets_received_per_sec",
        Unit::PerSec,
        Bad::High,
        50.0,
        "Resets that sockets received.",
    ),
    rate(
        "connect_failures_per_sec",
        Unit::PerSec,
        Bad::High,
        2.0,
        "TCP connects that were refused, that nobody answered, or that had no way.",
    )
    .suffering(50.0),
    rate(
        "connect_refused_per_sec",
        Unit::PerSec,
        Bad::Never,
        2.0,
        "Those of them that were refused: nobody listens there.",
    ),
    rate(
        "connect_timeouts_per_sec",
        Unit::PerSec,
        Bad::Never,
        1.0,
        "Those of them that nobody answered.",
    ),
    rate(
        "connects_abandoned_per_sec",
        Unit::PerSec,
        Bad::Never,
        5.0,
        "TCP connects that their maker gave up before there was an answer.",
    ),
    rate(
        "udp_receive_drops_per_sec",
        Unit::PerSec,
        Bad::High,
        10.0,
        "Datagrams that found no room in the receive buffer of their socket.",
    ),
    rate(
        "packet_drops_per_sec",
        Unit::PerSec,
        Bad::Never,
        100.0,
        "Packets that the kernel dropped for a reason it names; for the host also those of no socket.",
    ),
    quantile(
        "tcp_rtt_p99_us",
        Unit::Micros,
        Bad::High,
        50_000.0,
        "99 % of TCP connections have a smoothed round-trip time below this.",
    ),
    rate(
        "sent_bytes_per_sec",
        Unit::BytesPerSec,
        Bad::Never,
        16e6,
        "Bytes that were sent through sockets of any kind.",
    ),
    rate(
        "received_bytes_per_sec",
        Unit::BytesPerSec,
        Bad::Never,
        16e6,
        "Bytes that were received through sockets of any kind.",
    ),
    rate(
        "messages_sent_per_sec",
        Unit::PerSec,
        Bad::Never,
        10_000.0,
        "Calls that sent something through a socket.",
    ),
    rate(
        "messages_received_per_sec",
        Unit::PerSec,
        Bad::Never,
        10_000.0,
        "Calls that received something through a socket.",
    ),
];

impl Skill for Network {
    fn id(&self) -> &'static str {
        "network"
    }

    fn title(&self) -> &'static str {
        "Network"
    }

    fn description(&self) -> &'static str {
        "What does not get through: TCP segments sent again, resets, packets dropped, connects that \
         fail. Counted in the kernel where it happens, for the cgroup in which the socket was made, \
         whatever ran when the packet came; an accepted connection belongs to the cgroup of the \
         listening socket. Retransmits tell of a lossy path or of a receiver that is gone; refused \
         connects of a service that does not listen. Round-trip times are the kernel's smoothed \
         ones, of connections that are held at the moment of reading or have ended since the one \
         before, as powers of two. Reasons for drops are kept by the kernel's names in the reading. \
         Not seen: who was behind a packet without a socket (a closed port, a router's traffic), \
         what other hosts dropped, and sizes of messages before Linux 6.3."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["net"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let now = view.now.kernel.net.as_ref()?;
        let then = view.before.kernel.net.as_ref()?;
        let mut change = Change::default();
        let mut look = Look::default();
        if let Some(rows) = view.of_scope(&now.cgroups, &then.cgroups) {
            let none = NetCounters::default();
            rows.for_each(|(_, now, then)| change.add(now, then.unwrap_or(&none)));
            change.show(view, &mut look);
        }
        if *view.scope == Scope::Host {
            let drops = now.drops.values().sum::<u64>();
            let dropped = drops.saturating_sub(then.drops.values().sum());
            look.set("packet_drops_per_sec", view.per_sec(dropped as f64));
        }
        Some(look)
    }
}

/// What came in the interval.
#[derive(Default)]
struct Change {
    sum: NetCounters,
    drops: u64,
    rtt_us: Hist,
}

impl Change {
    fn add(&mut self, now: &NetCounters, then: &NetCounters) {
        let sum = &mut self.sum;
        sum.retransmits += now.retransmits.saturating_sub(then.retransmits);
        sum.syn_retransmits += now.syn_retransmits.saturating_sub(then.syn_retransmits);
        sum.synack_retransmits += now
            .synack_retransmits
            .saturating_sub(then.synack_retransmits);
        sum.resets_sent += now.resets_sent.saturating_sub(then.resets_sent);
        sum.resets_received += now.resets_received.saturating_sub(then.resets_received);
        sum.refused += now.refused.saturating_sub(then.refused);
        sum.timed_out += now.timed_out.saturating_sub(then.timed_out);
        sum.unreachable += now.unreachable.saturating_sub(then.unreachable);
        sum.abandoned += now.abandoned.saturating_sub(then.abandoned);
        sum.udp_drops += now.udp_drops.saturating_sub(then.udp_drops);
        if let Some(now) = now.messages {
            let then = then.messages.unwrap_or_default();
            let sum = sum.messages.get_or_insert_default();
            sum.sends += now.sends.saturating_sub(then.sends);
            sum.sent_bytes += now.sent_bytes.saturating_sub(then.sent_bytes);
            sum.receives += now.receives.saturating_sub(then.receives);
            sum.received_bytes += now.received_bytes.saturating_sub(then.received_bytes);
        }
        let all = |counters: &NetCounters| counters.drops.values().sum::<u64>();
        self.drops += all(now).saturating_sub(all(then));
        for bucket in 0..BUCKETS {
            let held = now.held.as_ref().map_or(0, |held| held.rtt_us[bucket]);
            let before = then.closed_rtt_us[bucket];
            self.rtt_us[bucket] += held + now.closed_rtt_us[bucket].saturating_sub(before);
        }
    }

    fn show(&self, view: &View<'_>, look: &mut Look) {
        let sum = &self.sum;
        let failed = sum.refused + sum.timed_out + sum.unreachable;
        for (metric, n) in [
            ("tcp_retransmits_per_sec", sum.retransmits),
            (
                "tcp_syn_retransmits_per_sec",
                sum.syn_retransmits + sum.synack_retransmits,
            ),
            ("tcp_resets_sent_per_sec", sum.resets_sent),
            ("tcp_resets_received_per_sec", sum.resets_received),
            ("connect_failures_per_sec", failed),
            ("connect_refused_per_sec", sum.refused),
            ("connect_timeouts_per_sec", sum.timed_out),
            ("connects_abandoned_per_sec", sum.abandoned),
            ("udp_receive_drops_per_sec", sum.udp_drops),
            ("packet_drops_per_sec", self.drops),
        ] {
            look.set(metric, view.per_sec(n as f64));
        }
        // The histogram is of µs, where that function has ns.
        let p99_us = quantile_us(&self.rtt_us, 0.99).map(|thousandths| thousandths * 1e3);
        look.set("tcp_rtt_p99_us", p99_us);
        if let Some(messages) = &sum.messages {
            show_messages(messages, view, look);
        }
    }
}

fn show_messages(messages: &Messages, view: &View<'_>, look: &mut Look) {
    for (metric, n) in [
        ("sent_bytes_per_sec", messages.sent_bytes),
        ("received_bytes_per_sec", messages.received_bytes),
        ("messages_sent_per_sec", messages.sends),
        ("messages_received_per_sec", messages.receives),
    ] {
        look.set(metric, view.per_sec(n as f64));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        probes::{HeldSockets, NetReading},
        skills::{look_everywhere, view::tests::sample},
    };

    #[test]
    fn what_failed_is_the_change_and_what_is_unknown_is_absent() {
        let mut before = sample(Duration::from_secs(10), &[(7, "/shop")]);
        let mut now = sample(Duration::from_secs(12), &[(7, "/shop")]);
        let mut shop = NetCounters {
            retransmits: 100,
            ..NetCounters::default()
        };
        shop.closed_rtt_us[20] = 50;
        let reading = |shop: &NetCounters, lost| NetReading {
            cgroups: [(7, shop.clone())].into(),
            drops: [("NO_SOCKET".into(), lost)].into(),
            ..NetReading::default()
        };
        before.kernel.net = Some(reading(&shop, 10));
        shop.retransmits = 120;
        shop.refused = 6;
        shop.timed_out = 2;
        shop.abandoned = 4;
        shop.drops = [("TCP_CSUM".into(), 2)].into();
        let mut held = HeldSockets::default();
        held.rtt_us[9] = 3;
        shop.held = Some(held);
        now.kernel.net = Some(reading(&shop, 30));
        let looks = look_everywhere(1, &now, &before, &[&Network]);
        let value = |scope: &Scope, metric| {
            let look = looks.iter().find(|s| s.scope == *scope).unwrap();
            look.value(metric, None)
        };
        let (host, shop) = (Scope::Host, Scope::cgroup("/shop"));
        for scope in [&host, &shop] {
            assert_eq!(value(scope, "tcp_retransmits_per_sec"), Some(10.0));
            assert_eq!(value(scope, "connect_failures_per_sec"), Some(4.0));
            assert_eq!(value(scope, "connect_refused_per_sec"), Some(3.0));
            assert_eq!(value(scope, "connects_abandoned_per_sec"), Some(2.0));
            assert_eq!(value(scope, "sent_bytes_per_sec"), None);
            // Slow connections that ended before do not count.
            assert_eq!(value(scope, "tcp_rtt_p99_us"), Some(1024.0));
        }
        assert_eq!(value(&host, "packet_drops_per_sec"), Some(10.0));
        assert_eq!(value(&shop, "packet_drops_per_sec"), Some(1.0));
    }
}
