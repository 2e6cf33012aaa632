//! The sockets that processes hold: how many, in which state, and whose queues are full.

use lens_common::net::state::{CLOSE_WAIT, ESTABLISHED, LISTEN, SYN_SENT};

use super::{Look, Skill, View};
use crate::{
    base::{
        metric::{Bad, Metric, Unit, gauge, rate},
        scope::Scope,
    },
    probes::{HeldSockets, NetCounters, NetReading},
};

/// The skill.
#[derive(Debug)]
pub(super) struct Sockets;

const METRICS: &[Metric] = &[
    gauge(
        "tcp_sockets_count",
        Unit::Count,
        Bad::Never,
        100.0,
        "TCP sockets that processes hold, in any state.",
    ),
    gauge(
        "established_sockets_count",
        Unit::Count,
        Bad::Never,
        100.0,
        "TCP connections that processes hold.",
    ),
    gauge(
        "connecting_sockets_count",
        Unit::Count,
        Bad::Never,
        20.0,
        "TCP sockets that wait for the answer to their SYN.",
    ),
    gauge(
        "close_wait_sockets_count",
        Unit::Count,
        Bad::High,
        50.0,
        "TCP connections that the other side has closed and their process has not.",
    ),
    gauge(
        "listening_sockets_count",
        Unit::Count,
        Bad::Never,
        10.0,
        "TCP sockets that wait for connections.",
    ),
    gauge(
        "udp_sockets_count",
        Unit::Count,
        Bad::Never,
        100.0,
        "UDP sockets that processes hold.",
    ),
    gauge(
        "socket_unread_bytes",
        Unit::Bytes,
        Bad::Never,
        4e6,
        "Memory of what has come in through TCP and UDP and was not read yet.",
    ),
    gauge(
        "accept_queue_percent",
        Unit::Percent,
        Bad::High,
        50.0,
        "How full the fullest accept queue is; at 100 the next connection is dropped.",
    ),
    rate(
        "listen_drops_per_sec",
        Unit::PerSec,
        Bad::High,
        1.0,
        "Requests for a connection that listening sockets dropped, mostly because the queue was full.",
    )
    .suffering(20.0),
    rate(
        "tcp_connected_per_sec",
        Unit::PerSec,
        Bad::Never,
        500.0,
        "TCP connections made from here.",
    ),
    rate(
        "tcp_accepted_per_sec",
        Unit::PerSec,
        Bad::Never,
        500.0,
        "TCP connections that came in.",
    ),
    rate(
        "tcp_closed_per_sec",
        Unit::PerSec,
        Bad::Never,
        500.0,
        "TCP connections that ended.",
    ),
];

impl Skill for Sockets {
    fn id(&self) -> &'static str {
        "sockets"
    }

    fn title(&self) -> &'static str {
        "Sockets"
    }

    fn description(&self) -> &'static str {
        "The TCP and UDP sockets that processes hold, by state, and the queues of those that listen. \
         They are looked up at each reading (on a host with very many of them, less often) among the \
         files of all processes, in every network namespace; connections made, accepted and ended are counted as it happens. A queue that is \
         full at the moment of reading means a service that accepts too slowly; its drops are the \
         kernel's count for each listening socket, in which a request may be dropped, and counted, \
         several times. A leak shows as a count that only grows: in CLOSE_WAIT when the process \
         forgets to close. Not seen: sockets that no process holds (TIME_WAIT, connections that wait \
         to be accepted), drops of a socket in its last interval, and queues between two readings."
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
        let mut look = Look::default();
        let (mut held, mut drops) = (None, None);
        let (mut connected, mut accepted, mut closed) = (0, 0, 0);
        let none = NetCounters::default();
        for (_, now, then) in view.of_scope(&now.cgroups, &then.cgroups)? {
            let then = then.unwrap_or(&none);
            connected += now.connected.saturating_sub(then.connected);
            accepted += now.accepted.saturating_sub(then.accepted);
            closed += now.closed.saturating_sub(then.closed);
            if let Some(now) = now.listen_drops {
                *drops.get_or_insert(0) += now.saturating_sub(then.listen_drops.unwrap_or(0));
            }
            if let Some(now) = &now.held {
                add(held.get_or_insert_default(), now);
            }
        }
        for (metric, n) in [
            ("tcp_connected_per_sec", connected),
            ("tcp_accepted_per_sec", accepted),
            ("tcp_closed_per_sec", closed),
        ] {
            look.set(metric, view.per_sec(n as f64));
        }
        look.set(
            "listen_drops_per_sec",
            drops.map(|n| view.per_sec(n as f64)),
        );
        if let Some(held) = held {
            show(&held, &mut look);
        }
        look.set("accept_queue_percent", fullest(view, now));
        Some(look)
    }
}

fn add(sum: &mut HeldSockets, more: &HeldSockets) {
    for (sum, more) in sum.tcp.iter_mut().zip(more.tcp) {
        *sum += more;
    }
    sum.udp += more.udp;
    sum.unread_bytes += more.unread_bytes;
}

fn show(held: &HeldSockets, look: &mut Look) {
    let of = |state: u16| {
        held.tcp
            .get(usize::from(state))
            .copied()
            .unwrap_or_default()
    };
    for (metric, n) in [
        ("tcp_sockets_count", held.tcp.iter().sum()),
        ("established_sockets_count", of(ESTABLISHED)),
        ("connecting_sockets_count", of(SYN_SENT)),
        ("close_wait_sockets_count", of(CLOSE_WAIT)),
        ("listening_sockets_count", of(LISTEN)),
        ("udp_sockets_count", held.udp),
        ("socket_unread_bytes", held.unread_bytes),
    ] {
        look.set(metric, n as f64);
    }
}

/// How full the fullest accept queue of the scope is; `None` if nobody listens.
fn fullest(view: &View<'_>, now: &NetReading) -> Option<f64> {
    let own = view.scope.path().map(|path| view.cgroup_id(path));
    let rows = now.listeners.iter();
    let of_scope = rows.filter(|row| *view.scope == Scope::Host || own == Some(Some(row.cgroup)));
    let fullest = of_scope.map(|row| row.fullest_percent).max()?;
    Some(fullest as f64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        probes::Listener,
        skills::{look_everywhere, view::tests::sample},
    };

    #[test]
    fn queues_and_states_are_of_their_cgroup() {
        let targets = [(7, "/shop"), (8, "/batch")];
        let mut before = sample(Duration::from_secs(10), &targets);
        let mut now = sample(Duration::from_secs(12), &targets);
        let of = |close_wait, drops| {
            let mut held = HeldSockets::default();
            held.tcp[usize::from(CLOSE_WAIT)] = close_wait;
            held.tcp[usize::from(LISTEN)] = 1;
            NetCounters {
                held: Some(held),
                listen_drops: Some(drops),
                ..NetCounters::default()
            }
        };
        let listener = |cgroup, fullest_percent| Listener {
            cgroup,
            fullest_percent,
            ..Listener::default()
        };
        before.kernel.net = Some(NetReading {
            cgroups: [(7, of(0, 10)), (8, NetCounters::default())].into(),
            ..NetReading::default()
        });
        now.kernel.net = Some(NetReading {
            cgroups: [(7, of(60, 20)), (8, NetCounters::default())].into(),
            listeners: vec![listener(7, 10), listener(7, 100)],
            ..NetReading::default()
        });
        let looks = look_everywhere(1, &now, &before, &[&Sockets]);
        let value = |scope: &Scope, metric| {
            let look = looks.iter().find(|s| s.scope == *scope).unwrap();
            look.value(metric, None)
        };
        let (shop, batch) = (Scope::cgroup("/shop"), Scope::cgroup("/batch"));
        for scope in [&Scope::Host, &shop] {
            assert_eq!(value(scope, "close_wait_sockets_count"), Some(60.0));
            assert_eq!(value(scope, "tcp_sockets_count"), Some(61.0));
            assert_eq!(value(scope, "accept_queue_percent"), Some(100.0));
            assert_eq!(value(scope, "listen_drops_per_sec"), Some(5.0));
        }
        assert_eq!(value(&batch, "accept_queue_percent"), None);
        assert_eq!(value(&batch, "tcp_sockets_count"), None, "absent, not 0");
        assert_eq!(value(&batch, "tcp_accepted_per_sec"), Some(0.0));
    }
}
