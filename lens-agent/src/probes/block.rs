//! Requests to block devices by cgroup, and whose were served meanwhile: the reader of the block
//! object.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{HashMap, MapData};
use lens_common::{
    block::{BlockIo, BlockPair, BlockSlot, Device, Dirtied, KINDS, device_of_writeback},
    hist::Hist,
    limits::{BLOCK_PAIRS, BLOCK_PLACES, DIRTIED_PLACES},
};
use serde::{Deserialize, Serialize};

use super::{
    Holder, KernelReading, Probe, ProbeError, Setup,
    batch::entries,
    keyed::{Strangers, empty},
    lengths::now_ns,
    mapped::Mapped,
    object::{Losses, Object, Plan, bytes},
    records::plain,
    slots::Slots,
    targets::{Targets, cgroup_constants},
};
use crate::base::clock::{Clock as _, Moment, SystemClock};

/// A block device: major and minor number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u32,
    /// Its device.
    pub minor: u32,
}

impl DeviceNumber {
    pub(super) fn from_kernel(number: u64) -> Self {
        Self {
            major: u32::try_from(number >> 32).unwrap_or_default(),
            minor: u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default(),
        }
    }
}

/// Requests of one cgroup to one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIo {
    /// Reads, writes, flushes and others that ended.
    pub ios: [u64; KINDS],
    /// Bytes of these.
    pub bytes: [u64; KINDS],
    /// Requests that failed.
    pub errors: u64,
    /// Time from when they were made to when they ended, over all of them; those under way count as far
    /// as they have come.
    pub wait_ns: u64,
    /// The part of it on the device, of those that ended.
    pub device_ns: u64,
    /// Their lengths, of those that ended.
    pub hist: Hist,
    /// Requests under way.
    pub under_way: u64,
    /// For how long the oldest of them has been.
    pub oldest_ns: u64,
    /// Bytes that the kernel wrote back of what it dirtied: its part, by how many of the device's pages
    /// it dirtied lately.
    pub written_back_bytes: u64,
}

/// Counters of one cgroup since it became a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCounters {
    /// By device.
    pub devices: BTreeMap<DeviceNumber, DeviceIo>,
    /// Time that its requests were under way while those of each holder were served; its own are among
    /// them.
    pub served: BTreeMap<Holder, u64>,
    /// The part whose holder found no room in the table, and of requests under way.
    pub other_ns: u64,
}

impl BlockCounters {
    /// Time that its requests took.
    pub fn wait_ns(&self) -> u64 {
        self.devices.values().map(|io| io.wait_ns).sum()
    }
}

/// What one device has served, for anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounters {
    /// Requests that ended.
    pub served: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Bytes that the kernel wrote back, or read and wrote on its own behalf.
    pub writeback_bytes: u64,
    /// Time that these requests took.
    pub writeback_ns: u64,
    /// Requests under way.
    pub under_way: u64,
    /// For how long the oldest of them has been.
    pub oldest_ns: u64,
}

/// What the block object has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockReading {
    /// By cgroup id; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, BlockCounters>,
    /// By device.
    pub devices: BTreeMap<DeviceNumber, DeviceCounters>,
}

/// The probe.
#[derive(Debug)]
struct Block {
    object: Object,
    losses: Losses,
    slots: Slots<BlockSlot>,
    ios: Mapped<BlockIo>,
    pairs: Mapped<BlockPair>,
    dirtied: Mapped<Dirtied>,
    flights: HashMap<MapData, u64, [u64; 4]>,
    devices: HashMap<MapData, u64, [u8; size_of::<Device>()]>,
    strangers: Strangers,
    owners: Owners,
}

/// Loads and attaches it.
pub(super) fn start(setup: &Setup<'_>) -> Result<Box<dyn Probe>, ProbeError> {
    let types = setup.types;
    let mut plan = Plan::new("block", bytes!("block"), types, setup.machine);
    cgroup_constants(&mut plan, types, setup.watched)?;
    plan.share("TARGETS", setup.pins);
    for (name, structure, field) in [
        ("TASK_FLAGS", "task_struct", "flags"),
        ("REQUEST_QUEUE", "request", "q"),
        ("REQUEST_FLAGS", "request", "cmd_flags"),
        ("REQUEST_BYTES", "request", "__data_len"),
        ("REQUEST_BIO", "request", "bio"),
        ("QUEUE_DISK", "request_queue", "disk"),
        ("DISK_MAJOR", "gendisk", "major"),
        ("DISK_MINOR", "gendisk", "first_minor"),
        ("MAPPING_HOST", "address_space", "host"),
        ("INODE_SUPER", "inode", "i_sb"),
        ("SUPER_DEVICE", "super_block", "s_bdev"),
        ("DEVICE_DISK", "block_device", "bd_disk"),
    ] {
        plan.offset(name, structure, field)?;
    }
    // CONFIG_BLK_CGROUP
    let owner = [
        types.offset("bio", "bi_blkg"),
        types.offset("blkcg_gq", "blkcg"),
        types.offset("blkcg", "css.cgroup"),
    ];
    let has_owner = owner.iter().all(Option::is_some)
        && setup.watched.has_controller("io")
        && !setup.config.force_fallback;
    for (name, offset) in ["BIO_GROUP", "GROUP_BLKCG", "BLKCG_CGROUP"]
        .into_iter()
        .zip(owner)
    {
        plan.constant(name, offset.unwrap_or_default());
    }
    plan.constant("HAS_OWNER", u32::from(has_owner));
    plan.places("IO", BLOCK_PLACES)
        .places("PAIR", BLOCK_PAIRS)
        .places("DIRTIED", DIRTIED_PLACES);
    Slots::<BlockSlot>::plan(&mut plan);
    let mut object = plan.load()?;
    let flights = object.take_map("FLIGHT")?;
    let devices = object.take_map("DEVICE")?;
    object.attach("block_rq_complete", types)?;
    object.attach("block_rq_issue", types)?;
    object.attach("block_rq_insert", types)?;
    // Since 6.5; before, a request is only seen when it goes to a scheduler or a device.
    if types.tracepoint_args("block_io_start").is_some() && !setup.config.force_fallback {
        object.attach("block_io_start", types)?;
    }
    if !has_owner {
        object.attach("writeback_dirty_folio", types)?;
    }
    Ok(Box::new(Block {
        losses: Losses::of(&object)?,
        slots: Slots::of(&object)?,
        ios: object.mapped_places("IO", BLOCK_PLACES)?,
        pairs: object.mapped_places("PAIR", BLOCK_PAIRS)?,
        dirtied: object.mapped_places("DIRTIED", DIRTIED_PLACES)?,
        object,
        flights,
        devices,
        strangers: Strangers::default(),
        owners: Owners::default(),
    }))
}

fn read_error(why: &impl ToString) -> ProbeError {
    ProbeError::Read {
        probe: "block",
        why: why.to_string(),
    }
}

impl Block {
    /// Adds what ended, by cgroup and device.
    fn add_ended(
        &mut self,
        targets: &Targets,
        into: &mut KernelReading,
        reading: &mut BlockReading,
    ) {
        let cgroups = &mut reading.cgroups;
        let ios = self.strangers.sweep(&self.ios, targets, |_, _, at| {
            let of = cgroups.entry(at.cgroup).or_default();
            let io = of
                .devices
                .entry(DeviceNumber::from_kernel(at.key))
                .or_default();
            for kind in 0..KINDS {
                io.ios[kind] += at.ios[kind];
                io.bytes[kind] += at.bytes[kind];
            }
            io.errors += at.errors;
            io.wait_ns += at.wait_ns;
            io.device_ns += at.device_ns;
            for (sum, n) in io.hist.iter_mut().zip(at.hist) {
                *sum += n;
            }
        });
        into.tables.insert("block.ios".to_owned(), ios);
    }

    /// Adds whose requests were served meanwhile. What was written back is divided by who dirtied the
    /// device's pages.
    fn add_pairs(
        &mut self,
        targets: &Targets,
        into: &mut KernelReading,
        reading: &mut BlockReading,
    ) {
        let mut behind_writeback: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        let cgroups = &mut reading.cgroups;
        let pairs = self.strangers.sweep(&self.pairs, targets, |_, _, at| {
            if let Some(device) = device_of_writeback(at.key) {
                *behind_writeback.entry((at.cgroup, device)).or_default() += at.ns;
            } else {
                let served = &mut cgroups.entry(at.cgroup).or_default().served;
                *served.entry(Holder::from_kernel(at.key)).or_default() += at.ns;
            }
        });
        into.tables.insert("block.pairs".to_owned(), pairs);
        for ((victim, device), ns) in behind_writeback {
            let of = cgroups.entry(victim).or_default();
            for (holder, ns) in self.owners.divide_wait(victim, device, ns) {
                *of.served.entry(holder).or_default() += ns;
            }
        }
        for (id, slot) in self.slots.by_target(targets) {
            if slot.ios + slot.other_ns != 0 {
                let of = cgroups.entry(id).or_default();
                of.other_ns += slot.other_ns;
                // On a device that is not known.
                let io = of.devices.entry(DeviceNumber::default()).or_default();
                io.wait_ns += slot.wait_ns;
                of.other_ns += if id == 0 { slot.wait_ns } else { 0 };
            }
        }
    }

    /// Adds the devices, and what has been written back to each.
    fn add_devices(&mut self, reading: &mut BlockReading) -> Result<(), ProbeError> {
        for (number, bytes) in entries(&self.devices).map_err(|why| read_error(&why))? {
            let Some(device) = plain::<Device>(&bytes) else {
                continue;
            };
            let name = DeviceNumber::from_kernel(number);
            let counters = DeviceCounters {
                served: device.served,
                errors: device.errors,
                writeback_bytes: device.writeback_bytes,
                writeback_ns: device.writeback_ns,
                ..DeviceCounters::default()
            };
            reading.devices.insert(name, counters);
            for (cgroup, bytes) in self.owners.divide_bytes(number, device.writeback_bytes) {
                let of = reading.cgroups.entry(cgroup).or_default();
                let io = of.devices.entry(name).or_default();
                io.written_back_bytes = bytes;
            }
        }
        Ok(())
    }

    /// Adds requests that have not ended, as far as they have come; how many those are.
    fn add_under_way(
        &self,
        targets: &Targets,
        reading: &mut BlockReading,
    ) -> Result<u64, ProbeError> {
        let now = now_ns();
        let mut n = 0;
        let flights = entries(&self.flights).map_err(|why| read_error(&why))?;
        for (_, [by, device, made_at, _]) in flights {
            let age = now.saturating_sub(made_at);
            let name = DeviceNumber::from_kernel(device);
            let of_device = reading.devices.entry(name).or_default();
            of_device.under_way += 1;
            of_device.oldest_ns = of_device.oldest_ns.max(age);
            if !targets.live().contains_key(&by) {
                continue;
            }
            n += 1;
            let of = reading.cgroups.entry(by).or_default();
            let io = of.devices.entry(name).or_default();
            io.under_way += 1;
            io.oldest_ns = io.oldest_ns.max(age);
            io.wait_ns += age;
            of.other_ns += age;
        }
        Ok(n)
    }
}

impl Probe for Block {
    fn name(&self) -> &'static str {
        "block"
    }

    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError> {
        let mut reading = BlockReading::default();
        self.strangers.next_reading();
        let mut pages: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        self.strangers.sweep(&self.dirtied, targets, |_, _, at| {
            *pages.entry((at.key, at.cgroup)).or_default() += at.pages;
        });
        self.owners.note(SystemClock.now(), &pages);
        self.add_ended(targets, into, &mut reading);
        self.add_pairs(targets, into, &mut reading);
        self.add_devices(&mut reading)?;
        into.quality.censored += self.add_under_way(targets, &mut reading)?;
        self.owners.forget(targets);
        for holder in reading.cgroups.values().flat_map(|c| c.served.keys()) {
            into.mention(targets, *holder);
        }
        if self.owners.divided {
            into.quality.miss(
                "block.writeback_owner",
                "this host does not keep whose pages are written back: they are divided by who dirtied \
                 how many of the device's pages lately",
            );
        }
        self.losses.tell(&mut into.quality);
        into.block = Some(reading);
        Ok(())
    }

    fn clear(&self, slot: u32) {
        self.slots.clear(slot);
    }

    fn objects(&mut self) -> Vec<&mut Object> {
        vec![&mut self.object]
    }

    fn forget(&mut self) -> Result<(), ProbeError> {
        // Whatever has ended meanwhile would be under way for ever.
        empty(&mut self.flights);
        Ok(())
    }
}

/// How long pages are dirty before the kernel writes them back, by default: what was dirtied longer ago
/// counts less and less.
const DIRTY_SECS: f64 = 30.0;

/// Who dirtied the pages that are written back, where the kernel does not keep it.
#[derive(Debug, Default)]
struct Owners {
    noted_at: Option<Moment>,
    /// Whether anything was divided since the reading before.
    divided: bool,
    /// Pages dirtied so far, by device and cgroup.
    seen: BTreeMap<(u64, u64), u64>,
    /// Pages dirtied lately.
    lately: BTreeMap<(u64, u64), f64>,
    /// What was written back to a device at the last reading, and what of it was whose.
    bytes: BTreeMap<u64, (u64, BTreeMap<u64, f64>)>,
    /// The same of waits behind it, by victim and device.
    waits: BTreeMap<(u64, u64), (u64, BTreeMap<Holder, f64>)>,
}

impl Owners {
    /// Takes in the pages dirtied so far.
    fn note(&mut self, now: Moment, pages: &BTreeMap<(u64, u64), u64>) {
        self.divided = false;
        let elapsed = self.noted_at.replace(now).map(|at| now.since(&at));
        let keep = elapsed.map_or(0.0, |e| (-e.as_secs_f64() / DIRTY_SECS).exp());
        self.lately.retain(|_, lately| {
            *lately *= keep;
            *lately >= 1.0
        });
        for (key, now) in pages {
            let then = self.seen.get(key).copied().unwrap_or_default();
            *self.lately.entry(*key).or_default() += now.saturating_sub(then) as f64;
        }
        self.seen.clone_from(pages);
    }

    /// Each cgroup's part, 0 to 1, of what is dirty on `device`.
    fn parts(&self, device: u64) -> Vec<(u64, f64)> {
        let of_device = self.lately.range((device, 0)..=(device, u64::MAX));
        let all: f64 = of_device.clone().map(|(_, pages)| pages).sum();
        let part = |((_, cgroup), pages): (&(u64, u64), &f64)| (*cgroup, pages / all);
        of_device.filter(|_| all > 0.0).map(part).collect()
    }

    /// What each cgroup has of the `bytes` written back to `device` so far.
    fn divide_bytes(&mut self, device: u64, bytes: u64) -> Vec<(u64, u64)> {
        let parts = self.parts(device);
        let (then, whose) = self.bytes.entry(device).or_default();
        let grown = bytes.saturating_sub(*then) as f64;
        *then = bytes;
        self.divided |= grown > 0.0 && !parts.is_empty();
        for (cgroup, part) in parts {
            *whose.entry(cgroup).or_default() += grown * part;
        }
        let parts = whose.iter();
        parts
            .map(|(cgroup, bytes)| (*cgroup, whole(*bytes)))
            .collect()
    }

    /// Behind whom `victim` has waited for the `ns` so far behind what was written back to `device`.
    fn divide_wait(&mut self, victim: u64, device: u64, ns: u64) -> Vec<(Holder, u64)> {
        let parts = self.parts(device);
        let (then, whose) = self.waits.entry((victim, device)).or_default();
        let grown = ns.saturating_sub(*then) as f64;
        *then = ns;
        self.divided |= grown > 0.0 && !parts.is_empty();
        if parts.is_empty() {
            *whose.entry(Holder::Kernel).or_default() += grown;
        }
        for (cgroup, part) in parts {
            *whose.entry(Holder::Cgroup(cgroup)).or_default() += grown * part;
        }
        let parts = whose.iter();
        parts.map(|(holder, ns)| (*holder, whole(*ns))).collect()
    }

    /// Forgets cgroups that are gone.
    fn forget(&mut self, targets: &Targets) {
        let live: BTreeSet<u64> = targets.live().keys().copied().collect();
        for (_, whose) in self.bytes.values_mut() {
            whose.retain(|cgroup, _| live.contains(cgroup));
        }
        self.waits.retain(|(victim, _), _| live.contains(victim));
    }
}

/// A sum of parts as a counter.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what was divided was a u64, and its parts are not negative"
)]
fn whole(sum: f64) -> u64 {
    sum.round() as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(secs: u64) -> Moment {
        let mono = Duration::from_secs(secs);
        Moment {
            mono,
            wall: jiff::Timestamp::UNIX_EPOCH + mono,
        }
    }

    #[test]
    fn what_is_written_back_belongs_to_who_dirtied_it_lately() {
        const DISK: u64 = 8 << 32;
        let mut owners = Owners::default();
        owners.note(at(0), &[((DISK, 7), 300), ((DISK, 8), 100)].into());
        assert_eq!(owners.divide_bytes(DISK, 4000), [(7, 3000), (8, 1000)]);
        let row = owners.divide_wait(9, DISK, 400);
        assert_eq!(row, [(Holder::Cgroup(7), 300), (Holder::Cgroup(8), 100)]);
        // Long afterwards only one of them dirties pages.
        owners.note(at(600), &[((DISK, 7), 300), ((DISK, 8), 200)].into());
        assert_eq!(owners.divide_bytes(DISK, 5000), [(7, 3000), (8, 2000)]);
        let other = 9 << 32;
        assert_eq!(
            owners.divide_wait(9, other, 50),
            [(Holder::Kernel, 50)],
            "nobody is known to have dirtied anything"
        );
    }
}
