//! The sockets that processes hold at the moment of reading: how many in which state, and how full
//! the queues of listening ones are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use lens_common::{
    hist::bucket,
    limits::SOCKETS,
    net::{
        Socket,
        state::{ESTABLISHED, LISTEN},
    },
};

use super::{HeldSockets, Listener, NetReading, own_or_other};
use crate::{
    base::quality::Quality,
    probes::{Setup, mapped::plain, object::Object, targets::Targets},
};

const AF_INET6: u16 = 10;
const UDP: u16 = 17;
/// Rows of listening ports in a reading.
const LISTENERS: usize = 1024;

/// What a listening socket had dropped when it was last seen, by its address.
type Seen = BTreeMap<u64, u32>;

/// The iterator over them, and what it said the last time.
#[derive(Debug)]
pub(super) struct Sockets {
    iterator: Result<PathBuf, String>,
    seen: Seen,
    /// What the listening sockets of each target have dropped since it became one.
    dropped: BTreeMap<u64, u64>,
    /// The targets of the reading before.
    targets: BTreeSet<u64>,
}

impl Sockets {
    pub(super) fn start(object: &mut Object, setup: &Setup<'_>) -> Self {
        let iterator = object.pin_iterator("sockets", "task_file", setup.types, setup.pins);
        Self {
            iterator: iterator.map_err(|why| why.to_string()),
            seen: Seen::new(),
            dropped: BTreeMap::new(),
            targets: BTreeSet::new(),
        }
    }

    /// Adds what there is.
    pub(super) fn read(&mut self, targets: &Targets, into: &mut NetReading, quality: &mut Quality) {
        let records = self.iterator.as_ref().map(|path| walk(path));
        let sockets = match records {
            Ok(Ok(sockets)) => sockets,
            Ok(Err(why)) => return quality.miss("net.sockets", why.to_string()),
            Err(why) => return quality.miss("net.sockets", why),
        };
        if sockets.len() >= SOCKETS as usize {
            quality.miss(
                "net.sockets",
                "more descriptors of sockets than are looked at",
            );
        }
        for counters in into.cgroups.values_mut() {
            counters.held = Some(HeldSockets::default());
        }
        let mut listeners = BTreeMap::new();
        let mut once = BTreeSet::new();
        let mut seen = Seen::new();
        for socket in sockets.iter().filter(|s| once.insert(s.address)) {
            if socket.state == LISTEN && socket.protocol != UDP {
                self.count_drops(socket);
                seen.insert(socket.address, socket.drops);
                listen(socket, listeners.entry(key(socket)).or_default());
            }
            let counters = own_or_other(&mut into.cgroups, socket.cgroup);
            if let Some(held) = counters.and_then(|counters| counters.held.as_mut()) {
                hold(socket, held);
            }
        }
        self.seen = seen;
        self.targets = targets.live().keys().copied().collect();
        self.dropped
            .retain(|cgroup, _| self.targets.contains(cgroup));
        for counters in into.cgroups.values_mut() {
            counters.listen_drops = Some(0);
        }
        for (cgroup, n) in &self.dropped {
            if let Some(counters) = own_or_other(&mut into.cgroups, *cgroup) {
                *counters.listen_drops.get_or_insert_default() += n;
            }
        }
        if listeners.len() > LISTENERS {
            let left_out = (listeners.len() - LISTENERS) as u64;
            quality.lost.insert("net.listeners".to_owned(), left_out);
        }
        into.listeners = listeners.into_values().take(LISTENERS).collect();
    }

    /// Adds what a listening socket has dropped since it was seen. One that is new to a target that is
    /// not has dropped all of it since; another may have long before.
    fn count_drops(&mut self, socket: &Socket) {
        let before = self.seen.get(&socket.address).copied();
        let since = match before {
            // Less than before is another socket, at the same address.
            Some(before) if before <= socket.drops => socket.drops - before,
            None if !self.targets.contains(&socket.cgroup) => 0,
            _ => socket.drops,
        };
        *self.dropped.entry(socket.cgroup).or_default() += u64::from(since);
    }

    /// Nobody has looked for a while.
    pub(super) fn forget(&mut self) {
        self.seen.clear();
        self.targets.clear();
    }
}

/// The descriptors that are sockets of targets, as many as are looked at.
fn walk(path: &Path) -> std::io::Result<Vec<Socket>> {
    let most = SOCKETS as usize * size_of::<Socket>();
    let mut records = Vec::new();
    fs::File::open(path)?
        .take(most as u64)
        .read_to_end(&mut records)?;
    let records = records.chunks_exact(size_of::<Socket>());
    Ok(records.filter_map(plain).collect())
}

fn key(socket: &Socket) -> (u64, u16, u16) {
    (socket.cgroup, socket.port, socket.family)
}

fn listen(socket: &Socket, row: &mut Listener) {
    row.cgroup = socket.cgroup;
    row.port = socket.port;
    row.is_v6 = socket.family == AF_INET6;
    row.sockets += 1;
    row.backlog += u64::from(socket.backlog);
    row.limit += u64::from(socket.limit);
    row.drops += u64::from(socket.drops);
    // One more may wait than the limit says.
    let percent = 100 * u64::from(socket.backlog) / (u64::from(socket.limit) + 1);
    row.fullest_percent = row.fullest_percent.max(percent);
}

fn hold(socket: &Socket, held: &mut HeldSockets) {
    held.unread_bytes += u64::from(socket.unread);
    if socket.protocol == UDP {
        held.udp += 1;
    } else if let Some(n) = held.tcp.get_mut(usize::from(socket.state)) {
        *n += 1;
    }
    if socket.state == ESTABLISHED && socket.rtt_us != 0 {
        held.rtt_us[bucket(u64::from(socket.rtt_us))] += 1;
    }
}
