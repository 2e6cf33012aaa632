//! What sockets send again, lose and refuse is what the kernel says of their namespace, and belongs to
//! whose socket it is, whoever runs when a packet comes.

use std::{
    fs,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lens_agent::probes::{HeldSockets, KernelReading, Messages, NetCounters, NetReading};
use lens_tests::{cgroup::Cgroup, root_or_say_not_run, until};
use serde_json::Value;

use crate::objects::{Nest, Work};

/// Two processes in one network namespace, and beside them one that computes all the time, on the
/// CPUs that work through their packets.
struct Pair {
    server: Work,
    client: Work,
    _busy: Busy,
    serving: Cgroup,
    calling: Cgroup,
    control: Cgroup,
    nest: Nest,
    /// Parts that this kernel lacks.
    lacks: Vec<String>,
}

/// Ends with the test.
struct Busy(Child);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Pair {
    fn new() -> Result<Self> {
        let nest = Nest::new("net")?;
        let serving = nest.top.child("serving")?;
        let calling = nest.top.child("calling")?;
        let control = nest.top.child("control")?;
        let mut computing = Command::new("/bin/sh");
        computing.args(["-c", "while :; do :; done"]);
        let busy = Busy(control.spawn(&mut computing)?);
        let program = env!("CARGO_BIN_EXE_load_net");
        let server = Work::of(program, &serving)?;
        let mut client = Work::of(program, &calling)?;
        client.run(&format!("join {}", server.pid()))?;
        Ok(Self {
            server,
            client,
            _busy: busy,
            serving,
            calling,
            control,
            nest,
            lacks: Vec::new(),
        })
    }

    /// Of server and client, after what the control had is seen to be nothing.
    fn read(&mut self) -> Result<(NetReading, NetCounters, NetCounters)> {
        let reading = self.nest.read();
        let quality = &reading.quality;
        self.lacks = quality.missing.iter().map(|m| m.probe.clone()).collect();
        // Not before 6.3, and 6.11.
        let may_lack = ["net.messages", "net.drops.received"];
        let mut lacks = self.lacks.iter();
        assert!(lacks.all(|part| may_lack.contains(&&**part)), "{quality:?}");
        assert!(quality.lost.is_empty(), "{quality:?}");
        let idle = NetCounters {
            messages: (!self.lacks("net.messages")).then(Messages::default),
            listen_drops: Some(0),
            held: Some(HeldSockets::default()),
            ..NetCounters::default()
        };
        assert_eq!(of(&reading, &self.control)?, idle);
        let (server, client) = (of(&reading, &self.serving)?, of(&reading, &self.calling)?);
        Ok((reading.net.context("no reading")?, server, client))
    }

    /// The same, once sockets have been looked up again and `is_so` of them: on a slow machine that is
    /// not done at every reading.
    fn read_until(
        &mut self,
        is_so: impl Fn(&NetCounters, &NetCounters) -> bool,
    ) -> Result<(NetReading, NetCounters, NetCounters)> {
        let mut last = self.read()?;
        until("as expected", Duration::from_secs(20), || {
            if !is_so(&last.1, &last.2)
                && let Ok(next) = self.read()
            {
                last = next;
            }
            is_so(&last.1, &last.2)
        })
        .with_context(|| format!("{last:?}"))?;
        Ok(last)
    }

    fn lacks(&self, part: &str) -> bool {
        self.lacks.iter().any(|lacks| lacks == part)
    }

    /// A counter of the kernel's for their namespace.
    fn kernel(&self, file: &str, protocol: &str, counter: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/net/{file}", self.server.pid()))?;
        let mut lines = text.lines().filter_map(|l| l.strip_prefix(protocol));
        let names = lines.next().context("no such protocol")?;
        let values = lines.next().context("no values")?;
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, value) = pairs
            .find(|(name, _)| *name == counter)
            .context("no such counter")?;
        Ok(value.parse()?)
    }

    fn listen(&mut self, backlog: u32) -> Result<u64> {
        number(&self.server.run(&format!("listen {backlog}"))?, "port")
    }
}

fn of(reading: &KernelReading, cgroup: &Cgroup) -> Result<NetCounters> {
    let net = reading.net.as_ref().context("no reading")?;
    let counters = net.cgroups.get(&cgroup.id()?);
    Ok(counters.context("no target")?.clone())
}

fn established(counters: &NetCounters) -> Option<u64> {
    counters.held.as_ref().map(|held| held.tcp[1])
}

fn number(said: &Value, name: &str) -> Result<u64> {
    said[name]
        .as_u64()
        .with_context(|| format!("{said}: no {name}"))
}

#[test]
fn a_full_accept_queue_is_the_listening_sockets() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut pair = Pair::new()?;
    let port = pair.listen(4)?;
    let (_, before, _) = pair.read()?;
    let said = pair.client.run(&format!("connect {port} 12 100"))?;
    let (reading, server, client) = pair.read_until(|s, _| s.listen_drops == Some(7))?;
    let given_up = number(&said, "timed_out")?;
    let overflows = pair.kernel("netstat", "TcpExt:", "ListenOverflows")?;
    assert_eq!((overflows, given_up), (7, 7), "{said}");
    assert_eq!(
        (before.listen_drops, server.listen_drops),
        (Some(0), Some(7))
    );
    assert_eq!((client.connected, server.accepted), (5, 5));
    assert_eq!((client.abandoned, client.refused), (7, 0));
    let [row] = reading.listeners.as_slice() else {
        panic!("{:?}", reading.listeners);
    };
    assert_eq!(u64::from(row.port), port);
    assert_eq!((row.cgroup, row.is_v6), (pair.serving.id()?, false));
    assert_eq!((row.backlog, row.limit, row.fullest_percent), (5, 4, 100));
    // Those that wait are no process's yet.
    assert_eq!(
        (established(&server), established(&client)),
        (Some(0), Some(5))
    );
    for _ in 0..5 {
        pair.server.run("accept")?;
    }
    let (reading, server, _) = pair.read_until(|s, _| established(s) == Some(5))?;
    assert_eq!(reading.listeners[0].backlog, 0);
    assert_eq!(
        (server.listen_drops, established(&server)),
        (Some(7), Some(5))
    );
    pair.nest.print_costs();
    Ok(())
}

#[test]
fn a_syn_that_nobody_takes_is_sent_again() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut pair = Pair::new()?;
    let port = pair.listen(0)?;
    let (_, before, _) = pair.read()?;
    assert_eq!(before.listen_drops, Some(0));
    // The first takes the only place; the kernel tries again after a second, and gives up then.
    pair.client.run(&format!("connect {port} 1 1000"))?;
    let error = pair.client.run(&format!("try {port} 1500"))?;
    let drops = pair.kernel("netstat", "TcpExt:", "ListenDrops")?;
    let (_, server, client) = pair.read_until(|s, _| s.listen_drops == Some(drops))?;
    assert_eq!(error["timed_out"], Value::Bool(true), "{error}");
    let again = pair.kernel("snmp", "Tcp:", "RetransSegs")?;
    assert!(again >= 1);
    assert_eq!((client.syn_retransmits, client.retransmits), (again, again));
    assert_eq!((client.timed_out, client.abandoned), (1, 0));
    assert_eq!((server.retransmits, server.timed_out), (0, 0));
    Ok(())
}

#[test]
fn refused_connects_are_the_callers() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut pair = Pair::new()?;
    // A port that was open, and is not any more.
    let port = pair.listen(4)?;
    pair.listen(4)?;
    let said = pair.client.run(&format!("connect {port} 50 1000"))?;
    let (_, server, client) = pair.read()?;
    assert_eq!(number(&said, "refused")?, 50);
    assert_eq!((client.refused, client.connected), (50, 0));
    assert_eq!(client.resets_received, 50);
    assert_eq!((server.refused, server.resets_received), (0, 0));
    pair.nest.print_costs();
    Ok(())
}

#[test]
fn resets_have_a_sender_and_a_receiver() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut pair = Pair::new()?;
    let port = pair.listen(64)?;
    pair.client.run(&format!("connect {port} 20 1000"))?;
    for _ in 0..20 {
        pair.server.run("accept")?;
    }
    let before = pair.kernel("snmp", "Tcp:", "OutRsts")?;
    pair.server.run("reset")?;
    let resets = pair.kernel("snmp", "Tcp:", "OutRsts")? - before;
    let (_, server, client) = pair.read()?;
    assert_eq!((server.resets_sent, resets), (20, 20));
    assert_eq!((client.resets_received, client.resets_sent), (20, 0));
    assert_eq!((server.closed, client.closed), (20, 20));
    pair.nest.print_costs();
    Ok(())
}

#[test]
fn what_is_sent_again_is_what_the_kernel_says() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut pair = Pair::new()?;
    let port = pair.listen(4)?;
    pair.client.run(&format!("connect {port} 1 1000"))?;
    pair.server.run("accept")?;
    pair.server.run("deafen")?;
    pair.client.run("send 100")?;
    until("sent again", Duration::from_secs(10), || {
        let said = pair.client.run("info").ok();
        said.and_then(|said| said["retransmits"].as_u64()) >= Some(3)
    })?;
    pair.server.run("hear")?;
    pair.server.run("receive 100")?;
    let truth = number(&pair.client.run("info")?, "retransmits")?;
    let (reading, server, client) = pair.read()?;
    assert_eq!(client.retransmits, truth);
    assert_eq!(pair.kernel("snmp", "Tcp:", "RetransSegs")?, truth);
    assert_eq!((client.syn_retransmits, server.retransmits), (0, 0));
    // All but the last were dropped by the filter.
    if !pair.lacks("net.drops.received") {
        assert_eq!(server.drops.get("SOCKET_FILTER"), Some(&truth));
    }
    assert!(reading.drops.get("SOCKET_FILTER") >= Some(&truth));
    assert_eq!(client.drops.get("SOCKET_FILTER"), None);
    pair.nest.print_costs();
    Ok(())
}

#[test]
fn datagrams_without_room_are_the_receivers() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut pair = Pair::new()?;
    let port = number(&pair.server.run("bind 4096")?, "port")?;
    pair.client.run(&format!("datagrams {port} 500"))?;
    let errors = pair.kernel("snmp", "Udp:", "RcvbufErrors")?;
    let holds_one = |c: &NetCounters| c.held.as_ref().is_some_and(|held| held.udp == 1);
    let (_, server, client) = pair.read_until(|server, _| holds_one(server))?;
    assert!(errors > 400, "{errors}");
    assert_eq!((server.udp_drops, client.udp_drops), (errors, 0));
    let held = server.held.context("not looked at")?;
    assert!(held.unread_bytes >= (500 - errors) * 512, "{held:?}");
    if let Some(messages) = client.messages {
        assert_eq!((messages.sends, messages.sent_bytes), (500, 500 * 512));
    }
    pair.nest.print_costs();
    Ok(())
}

#[test]
fn round_trips_are_those_of_tcp_info() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut pair = Pair::new()?;
    let port = pair.listen(4)?;
    pair.client.run(&format!("connect {port} 1 1000"))?;
    pair.server.run("accept")?;
    for _ in 0..20 {
        pair.client.run("send 100")?;
        pair.server.run("receive 100")?;
    }
    let rtt_us = number(&pair.client.run("info")?, "rtt_us")?;
    let mut expected = [0; 32];
    expected[rtt_us.ilog2() as usize] = 1;
    let is_so = |c: &NetCounters| c.held.as_ref().is_some_and(|held| held.rtt_us == expected);
    let (_, server, client) = pair.read_until(|_, client| is_so(client))?;
    if let Some((sent, received)) = client.messages.zip(server.messages) {
        assert_eq!((sent.sends, sent.sent_bytes), (20, 2000));
        assert_eq!((received.receives, received.received_bytes), (20, 2000));
    }
    pair.client.run("reset")?;
    let (_, _, client) = pair.read()?;
    assert_eq!(client.closed_rtt_us, expected);
    pair.nest.print_costs();
    Ok(())
}
