//! Which cgroups are watched, by which slot, and what they are called.
//!
//! The kernel program gives a slot to a cgroup born under a watched one; everything else about
//! the table is done here, and only here. A removed cgroup keeps its slot until its last counts
//! have been read, and one reading longer, until no program can still be counting in it.
//!
//! A cgroup that is in the table for its children only counts in a slot that nobody reads, and so
//! does not pass for one of the targets beyond the limit.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::{HashMap, MapData, Queue, RingBuf};
use lens_common::{
    limits::{MAX_TARGETS, TARGET_NAMES},
    target::{CgroupEvent, MADE, OTHER_SLOT, Target},
};

use super::{
    glob::Globs,
    kernel_types::KernelTypes,
    object::{Losses, Machine, Object, ObjectError, Plan, bytes},
    pins::Pins,
    records::plain,
};
use crate::base::{quality::Quality, text};

/// Names of removed cgroups that are kept, because a pair may still name them.
const FORMER_NAMES: usize = 4096;

/// The hierarchy whose cgroups are targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Where it is mounted.
    pub root: PathBuf,
    /// `memory` or another v1 controller; `None` on v2.
    pub v1: Option<String>,
    /// Its number in the kernel; 0 on v2.
    pub id: u32,
}

impl Watched {
    /// Whether the controller is on v2, and v2 is what is watched.
    pub(super) fn has_controller(&self, controller: &str) -> bool {
        let all = fs::read_to_string(self.root.join("cgroup.controllers"));
        let has = |all: String| all.split_ascii_whitespace().any(|c| c == controller);
        self.v1.is_none() && all.is_ok_and(has)
    }
}

/// A watched cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetState {
    /// Its path in the hierarchy.
    pub path: Arc<str>,
    /// Where its numbers are.
    pub slot: u32,
    /// It is gone, and this is its last reading.
    pub removed: bool,
}

/// The table of targets.
pub struct Targets {
    root: PathBuf,
    globs: Globs,
    table: HashMap<MapData, u64, u64>,
    free: Queue<MapData, u32>,
    events: RingBuf<MapData>,
    losses: Losses,
    /// Whether the last scan reached every cgroup.
    names_all: bool,
    /// Keeps the programs attached.
    object: Object,
    live: BTreeMap<u64, TargetState>,
    names: BTreeMap<u64, Arc<str>>,
    former: VecDeque<u64>,
    /// Targets that hold no processes and have no slot yet, because many others have.
    empty: BTreeMap<u64, Arc<str>>,
    /// Slots that were taken out of the table since the last reading, and before it.
    cooling: [Vec<u32>; 2],
    /// The slot of cgroups that are in the table for their children only.
    aside: u32,
    lost_events: u64,
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Targets")
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

/// Globals that tell an object how to find a task's cgroup.
pub(super) fn cgroup_constants(
    plan: &mut Plan<'_>,
    types: &KernelTypes,
    watched: &Watched,
) -> Result<(), ObjectError> {
    plan.offset("TASK_CGROUPS", "task_struct", "cgroups")?;
    plan.offset("CSS_CGROUP", "cgroup_subsys_state", "cgroup")?;
    plan.offset("CGROUP_KN", "cgroup", "kn")?;
    plan.offset("KN_ID", "kernfs_node", "id")?;
    match &watched.v1 {
        None => {
            plan.offset("CSS_SET_CGROUP", "css_set", "dfl_cgrp")?;
            plan.constant("CGROUP_V1", 0);
        }
        Some(controller) => {
            let missing = ObjectError::NoField {
                structure: "css_set",
                field: "subsys",
            };
            let subsys = types.offset("css_set", "subsys").ok_or(missing)?;
            let index = types
                .enum_value("cgroup_subsys_id", &format!("{controller}_cgrp_id"))
                .ok_or(ObjectError::NoField {
                    structure: "cgroup_subsys_id",
                    field: "…_cgrp_id",
                })?;
            plan.constant("CSS_SET_CGROUP", subsys + 8 * index);
            plan.constant("CGROUP_V1", 1);
        }
    }
    Ok(())
}

impl Targets {
    /// Loads the object, fills the queue of free slots, and takes up what is there already.
    pub fn start(
        types: &KernelTypes,
        pins: &Pins,
        machine: &Machine,
        watched: &Watched,
        globs: Globs,
    ) -> Result<Self, ObjectError> {
        let mut plan = Plan::new("targets", bytes!("targets"), types, machine);
        plan.offset("CGROUP_KN", "cgroup", "kn")?
            .offset("KN_ID", "kernfs_node", "id")?;
        plan.offset("CGROUP_ROOT", "cgroup", "root")?;
        plan.offset("ROOT_HIERARCHY", "cgroup_root", "hierarchy_id")?;
        plan.offset("CGROUP_LEVEL", "cgroup", "level")?;
        plan.offset("CGROUP_PARENT", "cgroup", "self.parent")?;
        plan.offset("PARENT_CGROUP", "cgroup_subsys_state", "cgroup")?;
        plan.constant("HIERARCHY", watched.id)
            .share("TARGETS", pins);
        let mut object = plan.load()?;
        let losses = Losses::of(&object)?;
        let table = object.take_map("TARGETS")?;
        let mut free: Queue<MapData, u32> = object.take_map("FREE")?;
        let aside = MAX_TARGETS;
        for slot in 1..aside {
            free.push(slot, 0).map_err(|why| ObjectError::Load {
                object: "targets",
                why: format!("map FREE: {why}"),
            })?;
        }
        let events = object.take_map("EVENTS")?;
        object.attach("cgroup_mkdir", types)?;
        object.attach("cgroup_rmdir", types)?;
        let mut targets = Self {
            root: watched.root.clone(),
            globs,
            table,
            free,
            events,
            losses,
            names_all: true,
            object,
            live: BTreeMap::new(),
            names: BTreeMap::new(),
            former: VecDeque::new(),
            empty: BTreeMap::new(),
            cooling: [Vec::new(), Vec::new()],
            aside,
            lost_events: 0,
        };
        targets.scan();
        Ok(targets)
    }

    /// What happened since the last call: cgroups made and removed. Call it right before the
    /// probes are read, and [`Targets::settle`] right after.
    pub fn update(&mut self) {
        let mut happened = Vec::new();
        while let Some(record) = self.events.next() {
            if let Some(event) = parse(&record) {
                happened.push(event);
            }
        }
        for event in happened {
            if event.made {
                self.name(event.id, &event.path);
                self.take_up(event.id, &event.path, true);
            } else {
                self.gone(event.id);
            }
        }
        let empty = std::mem::take(&mut self.empty);
        for (id, path) in empty {
            let populated = holds_processes(&self.root.join(path.trim_start_matches('/')));
            self.take_up(id, &path, populated);
        }
        let lost = self.losses.count(lens_common::loss::EVENTS);
        if lost != self.lost_events {
            self.lost_events = lost;
            self.scan();
        }
    }

    /// Takes removed cgroups out of the table. Slots that were taken out before the last reading
    /// are cleared, which nobody counts in any more, and free again.
    pub fn settle(&mut self, clear: impl Fn(u32)) {
        let [recent, before] = &mut self.cooling;
        for slot in before.drain(..) {
            clear(slot);
            // It came out of this queue, so there is room for it.
            let _ = self.free.push(slot, 0);
        }
        std::mem::swap(recent, before);
        let removed: Vec<u64> = self
            .live
            .iter()
            .filter(|(_, t)| t.removed)
            .map(|(id, _)| *id)
            .collect();
        for id in removed {
            self.live.remove(&id);
            if let Some(slot) = self.drop_entry(id) {
                // Its last counts have just been read.
                self.cooling[1].push(slot);
            }
            self.forget_later(id);
        }
    }

    /// Looks at the whole tree: at the start, when events were lost, and now and then for
    /// cgroups that were empty and are not any more.
    pub fn scan(&mut self) {
        // Before the tree: what is made meanwhile must not pass for removed.
        let entered: BTreeSet<u64> = self.table.keys().flatten().collect();
        let mut found = Vec::new();
        walk(&self.root, "/", &mut found);
        // Who runs now has a better right to a slot.
        found.sort_by_key(|(.., populated)| !populated);
        self.empty.clear();
        let mut there = BTreeSet::new();
        for (id, path, populated) in found {
            there.insert(id);
            self.name(id, &path);
            self.take_up(id, &path, populated);
        }
        self.names_all = there.len() < TARGET_NAMES as usize;
        if !self.names_all {
            // Those that were not reached are not gone.
            return;
        }
        let former: BTreeSet<u64> = self.former.iter().copied().collect();
        let known = entered.iter().chain(self.names.keys());
        let gone: BTreeSet<u64> = known
            .filter(|id| !there.contains(id) && !former.contains(id))
            .copied()
            .collect();
        for id in gone {
            self.gone(id);
        }
    }

    /// The watched cgroups by id.
    pub fn live(&self) -> &BTreeMap<u64, TargetState> {
        &self.live
    }

    /// What the cgroup with `id` is or was called.
    pub fn name_of(&self, id: u64) -> Option<&Arc<str>> {
        self.names.get(&id)
    }

    /// Whether every cgroup is watched.
    pub fn watch_all(&self) -> bool {
        self.globs.is_everything()
    }

    /// The patterns that no cgroup matches at present.
    pub fn unmatched(&self) -> Vec<String> {
        self.globs.unmatched(self.names.values().map(|n| &**n))
    }

    /// What the table could not take.
    pub fn quality(&self, quality: &mut Quality) {
        self.losses.tell(quality);
        if !self.names_all {
            let why =
                format!("there are more than {TARGET_NAMES} cgroups; the others are not looked at");
            quality.miss("targets.names", why);
        }
        let beyond = self.live.values().filter(|t| t.slot == OTHER_SLOT).count();
        if beyond != 0 {
            quality.miss(
                "targets",
                format!("{beyond} cgroups beyond the limit of {MAX_TARGETS} are counted together"),
            );
        }
        for glob in self.unmatched() {
            quality.miss("targets", format!("no cgroup matches `{glob}`"));
        }
    }

    /// What watching cgroups costs.
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// Whether the kernel side counts for the cgroup with `id` and somebody reads it, or will.
    pub fn counts(&self, id: u64) -> bool {
        self.live.contains_key(&id) || self.entry(id).is_some_and(|t| t.slot != self.aside)
    }

    /// Checks that each slot is in exactly one place: free, in use by a live target, or about to
    /// be free. For tests: while it runs, a new cgroup finds no free slot.
    pub fn audit(&mut self) -> Result<(), String> {
        let mut places: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let mut note = |slot: u32, place: String| places.entry(slot).or_default().push(place);
        let mut free = Vec::new();
        while let Ok(slot) = self.free.pop(0) {
            free.push(slot);
        }
        for slot in free {
            let _ = self.free.push(slot, 0);
            note(slot, "free".to_owned());
        }
        for slot in self.cooling.iter().flatten() {
            note(*slot, "cooling".to_owned());
        }
        let mut wrong = Vec::new();
        let entries: Vec<(u64, u64)> = self.table.iter().flatten().collect();
        for (id, bits) in entries {
            let slot = Target::from_bits(bits).slot;
            if slot == self.aside {
                continue;
            }
            if self.live.get(&id).map(|t| t.slot) != Some(slot) {
                wrong.push(format!("{id} counts in slot {slot} and is no live target"));
            }
            note(slot, format!("of {id}"));
        }
        for (id, target) in &self.live {
            if self.entry(*id).is_none_or(|t| t.slot != target.slot) {
                wrong.push(format!(
                    "{id} is live in slot {} and not in the table",
                    target.slot
                ));
            }
        }
        for slot in 1..self.aside {
            match places.get(&slot).map_or(&[][..], Vec::as_slice) {
                [_] => {}
                found => wrong.push(format!("slot {slot} is in {found:?}")),
            }
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join("; "))
        }
    }

    /// Sees to it that the table says of the cgroup what was asked for.
    fn take_up(&mut self, id: u64, path: &str, populated: bool) {
        let wanted = self.globs.matches(path);
        let children = u32::from(self.globs.matches_children_of(path));
        let entered = self.entry(id);
        if !wanted {
            // The kernel gave it a slot as a child of a watched one, or the globs want no more.
            if entered.is_some_and(|t| t.slot != self.aside || t.children != children)
                && let Some(slot) = self.drop_entry(id)
            {
                self.cooling[0].push(slot);
            }
            if children != 0 {
                self.enter(
                    id,
                    Target {
                        slot: self.aside,
                        children,
                    },
                );
            }
            return;
        }
        let had = entered.map(|t| t.slot).filter(|slot| *slot != self.aside);
        let slot = match had {
            Some(slot) if slot != OTHER_SLOT => slot,
            // Beyond the limit when it was made, and there may be room now; or not yet counted.
            _ if populated || had.is_some() || self.has_room() => {
                self.free.pop(0).unwrap_or(OTHER_SLOT)
            }
            _ => {
                self.empty.insert(id, path.into());
                if children != 0 {
                    self.enter(
                        id,
                        Target {
                            slot: self.aside,
                            children,
                        },
                    );
                }
                return;
            }
        };
        if self.enter(id, Target { slot, children }) {
            let live = self.live.entry(id).or_insert_with(|| TargetState {
                path: path.into(),
                slot,
                removed: false,
            });
            live.slot = slot;
        } else if had != Some(slot) && slot != OTHER_SLOT {
            let _ = self.free.push(slot, 0);
        }
    }

    /// Whether so few slots are taken that a cgroup may have one before anything runs in it.
    fn has_room(&self) -> bool {
        let cooling: usize = self.cooling.iter().map(Vec::len).sum();
        let live = self.live.values().filter(|t| t.slot != OTHER_SLOT).count();
        live + cooling < MAX_TARGETS as usize / 2
    }

    /// The cgroup has been removed: it has its last reading before it, or leaves no trace.
    fn gone(&mut self, id: u64) {
        self.empty.remove(&id);
        if let Some(target) = self.live.get_mut(&id) {
            target.removed = true;
            return;
        }
        if let Some(slot) = self.drop_entry(id) {
            self.cooling[0].push(slot);
        }
        self.forget_later(id);
    }

    fn entry(&self, id: u64) -> Option<Target> {
        self.table.get(&id, 0).ok().map(Target::from_bits)
    }

    /// Whether there was room for it.
    fn enter(&mut self, id: u64, target: Target) -> bool {
        self.entry(id) == Some(target) || self.table.insert(id, target.to_bits(), 0).is_ok()
    }

    /// Takes the cgroup out of the table; the slot that it had for itself.
    fn drop_entry(&mut self, id: u64) -> Option<u32> {
        let slot = self.entry(id)?.slot;
        let _ = self.table.remove(&id);
        (slot != OTHER_SLOT && slot != self.aside).then_some(slot)
    }

    fn name(&mut self, id: u64, path: &str) {
        self.names.insert(id, path.into());
    }

    fn forget_later(&mut self, id: u64) {
        self.former.push_back(id);
        if self.former.len() > FORMER_NAMES
            && let Some(oldest) = self.former.pop_front()
        {
            self.names.remove(&oldest);
        }
    }
}

struct Happened {
    id: u64,
    made: bool,
    path: String,
}

fn parse(record: &[u8]) -> Option<Happened> {
    let event: CgroupEvent = plain(record)?;
    Some(Happened {
        id: event.id,
        made: event.what == MADE,
        path: text::clean_bytes(&event.path),
    })
}

/// Every cgroup below `dir` with its id, path and whether it holds processes; at most as many as
/// the table can name.
pub(super) fn walk(dir: &Path, path: &str, found: &mut Vec<(u64, String, bool)>) {
    if found.len() >= TARGET_NAMES as usize {
        return;
    }
    let Ok(meta) = fs::metadata(dir) else { return };
    found.push((meta.ino(), text::clean(path), holds_processes(dir)));
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let name = entry.file_name();
            let below = format!("{}/{}", path.trim_end_matches('/'), name.to_string_lossy());
            walk(&entry.path(), &below, found);
        }
    }
}

fn holds_processes(dir: &Path) -> bool {
    let read = || -> io::Result<bool> {
        let mut first = [0_u8; 1];
        Ok(io::Read::read(&mut fs::File::open(dir.join("cgroup.procs"))?, &mut first)? != 0)
    };
    read().unwrap_or(false)
}
