//! What tasks wait for at file systems, and what the page cache did not hold: the reader of the files
//! object.

use std::collections::BTreeMap;

use aya::maps::{HashMap, MapData};
use lens_common::{
    files::{EDQUOT, EIO, ENOSPC, ERRORS, FileDevice, FileSlot, HELD, OTHER, PAUSE},
    hist::Hist,
};
use rustix::time::{ClockId, clock_getres};
use serde::{Deserialize, Serialize};

use super::{
    DeviceNumber, KernelReading, KernelTypes, Probe, ProbeError, Setup,
    batch::entries,
    lengths::{Lengths, Waits, now_ns},
    near::Near,
    object::{Losses, Object, Plan, bytes},
    records::{bytes_of, plain},
    slots::Slots,
    targets::{Targets, cgroup_constants},
};

/// Counters of one cgroup since it became a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCounters {
    /// Pauses for dirtying pages faster than they are written back; they count as a whole from when they
    /// begin.
    pub pauses: Waits,
    /// Times that a commit of a journal waited until one of its handles was closed, from when the
    /// commit began to wait.
    pub held: Waits,
    /// Pages that were not in the page cache, and were put there to be read. What is read ahead is
    /// among them.
    pub read_pages: u64,
    /// The same in page faults.
    pub faulted_pages: u64,
    /// Pages that were put there to be written.
    pub written_pages: u64,
}

impl From<FileSlot> for FileCounters {
    fn from(slot: FileSlot) -> Self {
        let waits = |ended, ns| Waits {
            ended,
            ns,
            ..Waits::default()
        };
        Self {
            pauses: waits(slot.pauses, slot.pause_ns),
            held: waits(slot.held, slot.held_ns),
            read_pages: slot.read_pages,
            faulted_pages: slot.faulted_pages,
            written_pages: slot.written_pages,
        }
    }
}

/// What happened to one device's file system, whoever caused it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDeviceCounters {
    /// Times that data which was written back did not get there: EIO, ENOSPC, EDQUOT and others.
    pub errors: [u64; ERRORS],
    /// Commits of its journal that have ended.
    pub commits: u64,
    /// Their length in all; one under way counts as far as it has come.
    pub commit_ns: u64,
    /// The part of it in which they waited for open handles.
    pub locked_ns: u64,
    /// For how long the one under way has been; 0 if there is none.
    pub under_way_ns: u64,
    /// Lengths of those that have ended, by power of two.
    pub hist: Hist,
}

impl FileDeviceCounters {
    fn new(device: &FileDevice, now: u64) -> Self {
        let since = |at: u64| if at == 0 { 0 } else { now.saturating_sub(at) };
        let under_way_ns = since(device.commit_at);
        Self {
            errors: device.errors,
            commits: device.commits,
            commit_ns: device.commit_ns + under_way_ns,
            locked_ns: device.locked_ns + since(device.locked_at),
            under_way_ns,
            hist: device.hist,
        }
    }

    /// The errors with their names.
    pub fn by_error(&self) -> impl Iterator<Item = (&'static str, u64)> {
        const NAMES: [&str; ERRORS] = {
            let mut names = [""; ERRORS];
            names[EIO] = "EIO";
            names[ENOSPC] = "ENOSPC";
            names[EDQUOT] = "EDQUOT";
            names[OTHER] = "other";
            names
        };
        NAMES.into_iter().zip(self.errors)
    }
}

/// What the files object has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesReading {
    /// One entry a target; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, FileCounters>,
    /// By device, those on which something happened.
    pub devices: BTreeMap<DeviceNumber, FileDeviceCounters>,
    /// Whether pauses are counted.
    pub has_pauses: bool,
    /// Whether pages are counted that come into the page cache.
    pub has_page_cache: bool,
    /// Whether journals are watched.
    pub has_journals: bool,
}

/// The probe.
#[derive(Debug)]
struct Files {
    object: Object,
    losses: Losses,
    slots: Slots<FileSlot>,
    lengths: Lengths,
    devices: HashMap<MapData, u64, [u8; size_of::<FileDevice>()]>,
    near: Near,
    /// Parts that this kernel lacks, and why.
    missing: Vec<(&'static str, String)>,
    has_pauses: bool,
    has_page_cache: bool,
    has_journals: bool,
}

/// Parts of the object's programs: without one of them the kernel tells less.
const PAUSES: &str = "files.pauses";
const CACHE: &str = "files.page_cache";
const ERRORS_OF_WRITEBACK: &str = "files.writeback_errors";
const JOURNAL: &str = "files.journal";

/// Loads and attaches it.
pub(super) fn start(setup: &Setup<'_>) -> Result<Box<dyn Probe>, ProbeError> {
    let types = setup.types;
    let mut plan = Plan::new("files", bytes!("files"), types, setup.machine);
    cgroup_constants(&mut plan, types, setup.watched)?;
    plan.share("TARGETS", setup.pins);
    for (name, structure, field) in [
        ("TASK_FLAGS", "task_struct", "flags"),
        ("REGS_ORIG_AX", "pt_regs", "orig_ax"),
        ("FOLIO_FLAGS", "folio", "flags"),
        ("MAPPING_HOST", "address_space", "host"),
        ("INODE_SUPER", "inode", "i_sb"),
        ("INODE_MODE", "inode", "i_mode"),
        ("INODE_DEVICE", "inode", "i_rdev"),
        ("SUPER_DEVICE", "super_block", "s_dev"),
        ("DEVICE_NUMBER", "block_device", "bd_dev"),
    ] {
        plan.offset(name, structure, field)?;
    }
    let mut missing = Vec::new();
    let has_pages = folio_constants(&mut plan, types);
    let has_pauses = pause_constants(&mut plan, types);
    let has_journal = journal_constants(&mut plan, types);
    Slots::<FileSlot>::plan(&mut plan);
    Near::plan(&mut plan);
    Lengths::plan(&mut plan);
    let mut object = plan.load()?;
    let mut attach = |part, known: Result<(), String>, programs: &[&'static str]| {
        let attached = known.and_then(|()| {
            let mut programs = programs.iter();
            let attached = programs.try_for_each(|program| object.attach(program, types));
            attached.map_err(|why| why.to_string())
        });
        let is_there = attached.is_ok();
        missing.extend(attached.err().map(|why| (part, why)));
        is_there
    };
    let has_pauses = attach(PAUSES, has_pauses, &["balance_dirty_pages"]);
    let has_page_cache = attach(CACHE, has_pages, &["mm_filemap_add_to_page_cache"]);
    attach(ERRORS_OF_WRITEBACK, Ok(()), &["filemap_set_wb_err"]);
    // An end that is noted needs its beginning.
    let of_journal = [
        "jbd2_end_commit",
        "jbd2_commit_flushing",
        "jbd2_commit_locking",
        "jbd2_start_commit",
        "jbd2_handle_stats",
    ];
    let has_journals = attach(JOURNAL, has_journal, &of_journal);
    let devices = object.take_map("DEVICE")?;
    Ok(Box::new(Files {
        losses: Losses::of(&object)?,
        slots: Slots::of(&object)?,
        lengths: Lengths::of_known("files", &object)?,
        devices,
        near: Near::of(&object)?,
        object,
        missing,
        has_pauses,
        has_page_cache,
        has_journals,
    }))
}

/// How many pages a folio has.
fn folio_constants(plan: &mut Plan<'_>, types: &KernelTypes) -> Result<(), String> {
    let pages = types.any_offset("folio", &["_nr_pages", "_folio_nr_pages"]);
    let head = types.enum_value("pageflags", "PG_head");
    plan.constant("FOLIO_PAGES", pages.unwrap_or_default());
    plan.constant("LARGE", head.map_or(0, |bit| 1 << bit.min(31)));
    if pages.is_none() || head.is_none() {
        return Err("this kernel does not tell how many pages a folio has".to_owned());
    }
    Ok(())
}

/// Where the pause stands among the arguments, and how long a tick is.
fn pause_constants(plan: &mut Plan<'_>, types: &KernelTypes) -> Result<(), String> {
    // Numbers were put together into a structure in 6.17.
    let at = match types.tracepoint_args("balance_dirty_pages") {
        Some(8) => Ok(6),
        Some(12) => Ok(10),
        found => Err(format!(
            "this kernel's balance_dirty_pages has arguments that are not known: {found:?}"
        )),
    };
    plan.constant("PAUSE_AT", at.as_ref().copied().unwrap_or_default());
    // Of the coarse clock, which goes forward at each tick.
    let tick = clock_getres(ClockId::MonotonicCoarse).tv_nsec;
    plan.constant("TICK_NS", u32::try_from(tick).unwrap_or_default());
    at.map(drop)
}

/// Where things are in a journal.
fn journal_constants(plan: &mut Plan<'_>, types: &KernelTypes) -> Result<(), String> {
    let device = types.offset("journal_s", "j_fs_dev");
    let transaction = types.offset("transaction_s", "t_tid");
    plan.constant("JOURNAL_DEVICE", device.unwrap_or_default());
    plan.constant("TRANSACTION_ID", transaction.unwrap_or_default());
    if device.is_none() || transaction.is_none() {
        return Err("journals (jbd2) are in a module, or not in this kernel at all".to_owned());
    }
    Ok(())
}

fn read_error(why: &impl ToString) -> ProbeError {
    ProbeError::Read {
        probe: "files",
        why: why.to_string(),
    }
}

impl Files {
    fn devices(&self) -> Result<BTreeMap<DeviceNumber, FileDeviceCounters>, ProbeError> {
        let now = now_ns();
        let mut devices = BTreeMap::new();
        for (number, bytes) in entries(&self.devices).map_err(|why| read_error(&why))? {
            if let Some(device) = plain::<FileDevice>(&bytes) {
                let counters = FileDeviceCounters::new(&device, now);
                devices.insert(DeviceNumber::from_kernel(number), counters);
            }
        }
        Ok(devices)
    }
}

impl Probe for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError> {
        let mut cgroups: BTreeMap<u64, FileCounters> = self.slots.counters(targets);
        let fill = self.lengths.add_ended(targets, |id, kind, add| {
            let counters = cgroups.get_mut(&id);
            match (kind, counters) {
                (PAUSE, Some(counters)) => add(&mut counters.pauses),
                (HELD, Some(counters)) => add(&mut counters.held),
                _ => {}
            }
        });
        into.tables.insert("files.lengths".to_owned(), fill);
        self.near.forget();
        for (part, why) in &self.missing {
            into.quality.miss(*part, why);
        }
        self.losses.tell(&mut into.quality);
        into.files = Some(FilesReading {
            cgroups,
            devices: self.devices()?,
            has_pauses: self.has_pauses,
            has_page_cache: self.has_page_cache,
            has_journals: self.has_journals,
        });
        Ok(())
    }

    fn clear(&self, slot: u32) {
        self.slots.clear(slot);
    }

    fn objects(&mut self) -> Vec<&mut Object> {
        vec![&mut self.object]
    }

    fn forget(&mut self) -> Result<(), ProbeError> {
        // A commit that was under way has ended, and its end was not seen.
        for (number, bytes) in entries(&self.devices).map_err(|why| read_error(&why))? {
            let Some(mut device) = plain::<FileDevice>(&bytes) else {
                continue;
            };
            (device.commit_at, device.locked_at) = (0, 0);
            let set = self.devices.insert(number, bytes_of(&device), 0);
            set.map_err(|why| read_error(&why))?;
        }
        Ok(())
    }
}
