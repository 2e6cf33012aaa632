//! The sockets that processes hold at the moment of reading: how many in which state, and how full
//! the queues of listening ones are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    mem,
    path::{Path, PathBuf},
    time::Duration,
};

use lens_common::{
    hist::bucket,
    limits::SOCKETS,
    net::{
        Socket,
        state::{ESTABLISHED, LISTEN},
    },
};

use rustix::time::ClockId;

use super::{HeldSockets, Listener, NetReading, own_or_other};
use crate::{
    base::quality::Quality,
    probes::{Setup, object::Object, records::all, targets::Targets},
};

const AF_INET6: u16 = 10;
const UDP: u16 = 17;
/// Rows of listening ports in a reading.
const LISTENERS: usize = 1024;

/// What a listening socket had dropped when it was last seen, by its address.
type Seen = BTreeMap<u64, u32>;

/// A walk that takes less CPU time than this is made at every reading.
const CHEAP: Duration = Duration::from_millis(5);
/// After a dearer one nobody walks for so many times as long.
const REST: u32 = 200;

/// The iterator over them, and what it said the last time.
#[derive(Debug)]
pub(super) struct Sockets {
    iterator: Result<PathBuf, String>,
    /// What the last walk found.
    found: Vec<Socket>,
    /// When the next one is due, by the monotonic clock.
    due: Duration,
    /// The targets at that walk.
    targets: BTreeSet<u64>,
    /// What each listening socket had dropped then.
    seen: Seen,
    /// What the listening sockets of each target have dropped since it became one.
    dropped: BTreeMap<u64, u64>,
}

impl Sockets {
    pub(super) fn start(object: &mut Object, setup: &Setup<'_>) -> Self {
        let iterator = object.pin_iterator("sockets", "task_file", setup.types, setup.pins);
        Self {
            iterator: iterator.map_err(|why| why.to_string()),
            found: Vec::new(),
            due: Duration::ZERO,
            targets: BTreeSet::new(),
            seen: Seen::new(),
            dropped: BTreeMap::new(),
        }
    }

    /// Adds what there is, or was at the last walk.
    pub(super) fn read(&mut self, targets: &Targets, into: &mut NetReading, quality: &mut Quality) {
        if let Err(why) = self.look(targets) {
            return quality.miss("net.sockets", why);
        }
        if self.found.len() >= SOCKETS as usize {
            quality.miss(
                "net.sockets",
                "more descriptors of sockets than are looked at",
            );
        }
        for (cgroup, counters) in &mut into.cgroups {
            // One that is new since the walk is not known to have none.
            if *cgroup == 0 || self.targets.contains(cgroup) {
                counters.held = Some(HeldSockets::default());
                counters.listen_drops = Some(0);
            }
        }
        let mut listeners = BTreeMap::new();
        let mut once = BTreeSet::new();
        for socket in self.found.iter().filter(|s| once.insert(s.address)) {
            if is_listening(socket) {
                listen(socket, listeners.entry(key(socket)).or_default());
            }
            let counters = own_or_other(&mut into.cgroups, socket.cgroup);
            if let Some(held) = counters.and_then(|counters| counters.held.as_mut()) {
                hold(socket, held);
            }
        }
        for (cgroup, n) in &self.dropped {
            let counters = own_or_other(&mut into.cgroups, *cgroup);
            if let Some(drops) = counters.and_then(|counters| counters.listen_drops.as_mut()) {
                *drops += n;
            }
        }
        if listeners.len() > LISTENERS {
            let left_out = (listeners.len() - LISTENERS) as u64;
            quality.lost.insert("net.listeners".to_owned(), left_out);
        }
        into.listeners = listeners.into_values().take(LISTENERS).collect();
    }

    /// Walks, if that is due.
    fn look(&mut self, targets: &Targets) -> Result<(), String> {
        let path = self.iterator.as_ref().map_err(Clone::clone)?;
        if now(ClockId::Monotonic) < self.due {
            return Ok(());
        }
        let began = now(ClockId::ThreadCPUTime);
        self.found = walk(path).map_err(|why| why.to_string())?;
        let live = targets.live().keys().copied().collect();
        let before = mem::replace(&mut self.targets, live);
        self.count_drops(&before);
        self.dropped
            .retain(|cgroup, _| self.targets.contains(cgroup));
        let took = now(ClockId::ThreadCPUTime).saturating_sub(began);
        if took >= CHEAP {
            self.due = now(ClockId::Monotonic) + took * REST;
        }
        Ok(())
    }

    /// Adds what listening sockets have dropped since they were seen. One that is new to a target that
    /// is not has dropped all of it since; another may have long before.
    fn count_drops(&mut self, before: &BTreeSet<u64>) {
        let mut seen = Seen::new();
        for socket in self.found.iter().filter(|socket| is_listening(socket)) {
            if seen.insert(socket.address, socket.drops).is_some() {
                continue;
            }
            let since = match self.seen.get(&socket.address) {
                // Less than before is another socket, at the same address.
                Some(then) if *then <= socket.drops => socket.drops - then,
                None if !before.contains(&socket.cgroup) => 0,
                _ => socket.drops,
            };
            *self.dropped.entry(socket.cgroup).or_default() += u64::from(since);
        }
        self.seen = seen;
    }

    /// Nobody has looked for a while.
    pub(super) fn forget(&mut self) {
        self.seen.clear();
        self.targets.clear();
        self.due = Duration::ZERO;
    }
}

fn now(clock: ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

fn is_listening(socket: &Socket) -> bool {
    socket.state == LISTEN && socket.protocol != UDP
}

/// The descriptors that are sockets of targets, as many as are looked at.
fn walk(path: &Path) -> std::io::Result<Vec<Socket>> {
    let most = SOCKETS as usize * size_of::<Socket>();
    let mut records = Vec::new();
    fs::File::open(path)?
        .take(most as u64)
        .read_to_end(&mut records)?;
    Ok(all(&records).collect())
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
